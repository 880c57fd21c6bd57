//! What tests read of a batch.

use std::fmt;
use std::ops::Index;

use serde::Deserialize;
use serde_json::Value;

/// A batch, as the API shows it. Fields that few tests read are read by name: `batch["metadata"]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub id: String,
    pub status: String,
    pub counts: Counts,
    pub input_file_id: String,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub json: Value,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Counts {
    pub total: usize,
    pub completed: usize,
    pub failed: usize,
}

impl Counts {
    pub fn of(total: usize, completed: usize, failed: usize) -> Counts {
        Counts {
            total,
            completed,
            failed,
        }
    }
}

impl Batch {
    /// How many of its lines are done.
    pub fn done(&self) -> usize {
        self.counts.completed + self.counts.failed
    }

    /// Whether nothing can happen to it any more.
    pub fn has_ended(&self) -> bool {
        ["completed", "failed", "expired", "cancelled"].contains(&self.status.as_str())
    }

    /// Where the API shows it.
    pub fn path(&self) -> String {
        format!("/v1/batches/{}", self.id)
    }
}

impl From<Value> for Batch {
    fn from(json: Value) -> Batch {
        let text = |field: &str| json[field].as_str().map(str::to_owned);
        let must = |field: &str| text(field).unwrap_or_else(|| panic!("no {field} in {json}"));
        let counts = Counts::deserialize(&json["request_counts"]);
        Batch {
            id: must("id"),
            status: must("status"),
            counts: counts.unwrap_or_else(|error| panic!("request_counts: {error}: {json}")),
            input_file_id: must("input_file_id"),
            output_file_id: text("output_file_id"),
            error_file_id: text("error_file_id"),
            json,
        }
    }
}

/// Where a batch is named by its id.
impl AsRef<str> for Batch {
    fn as_ref(&self) -> &str {
        &self.id
    }
}

impl Index<&str> for Batch {
    type Output = Value;

    fn index(&self, field: &str) -> &Value {
        &self.json[field]
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.json.fmt(f)
    }
}
