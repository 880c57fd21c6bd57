//! The Batch object: what OpenAI's clients know of a batch, and one key beside it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::error::{self, ApiError, Result};
use crate::domain::batch::{BatchState, Counts, Status};
use crate::domain::clock::seconds;
use crate::domain::findings::Finding;
use crate::domain::usage::Usage;
use crate::store::{Batch, NewBatch};

/// A batch. Times are in Unix seconds, and null until they come. OpenAI's keys are always there.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = Batch)]
pub struct BatchObject {
    pub id: String,
    /// Always `batch`.
    #[schema(example = "batch")]
    pub object: &'static str,
    /// Where every line is sent.
    pub endpoint: String,
    /// The model that the lines name; null where they name several.
    pub model: Option<String>,
    /// Why the batch failed validation.
    pub errors: Option<BatchErrors>,
    pub input_file_id: String,
    /// How long the batch may take, as it was asked for.
    #[schema(example = "24h")]
    pub completion_window: String,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling`
    /// or `cancelled`.
    #[schema(example = "in_progress")]
    pub status: &'static str,
    /// The lines that were answered with 2xx; null until it is whole, and where there are none.
    pub output_file_id: Option<String>,
    /// All other lines; null until it is whole, and where there are none.
    pub error_file_id: Option<String>,
    pub created_at: i64,
    pub in_progress_at: Option<i64>,
    /// When the completion window ends.
    pub expires_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub request_counts: RequestCounts,
    /// What the answered lines used; null until the batch has begun.
    pub usage: Option<BatchUsage>,
    pub metadata: Option<BTreeMap<String, String>>,
    /// What OpenAI's batches do not have. Left out where there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nightshift: Option<BatchExtension>,
}

/// What OpenAI's batches do not have. Each key stands there only where it says something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = BatchNightshift)]
pub struct BatchExtension {
    /// Nothing new of the batch is sent until it is resumed. The status stays as it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Since when, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<i64>,
    /// The id of the key that has paused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    /// Where it is not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// No line is sent before that time, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
}

impl BatchExtension {
    /// Nothing where there is nothing to say.
    fn said(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// What is wrong with a batch's input.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchErrors {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<BatchError>,
}

/// One thing that is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// The line, from 1; null if it is about the file.
    pub line: Option<u64>,
}

/// How many lines have which outcome.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct RequestCounts {
    pub total: i64,
    /// Answered with 2xx.
    pub completed: i64,
    /// Answered otherwise, given up, or expired. Lines that were cancelled are in neither count.
    pub failed: i64,
}

/// How many tokens the answered lines used.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchUsage {
    pub input_tokens: i64,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: i64,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct InputTokensDetails {
    pub cached_tokens: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    pub reasoning_tokens: i64,
}

impl BatchObject {
    /// The object of a batch that is being made.
    ///
    /// # Errors
    /// When its metadata is damaged, which is a fault of ours.
    pub fn created(new: &NewBatch) -> Result<Self> {
        Ok(Self {
            id: new.id.clone(),
            object: "batch",
            endpoint: new.endpoint.clone(),
            input_file_id: new.input_file_id.clone(),
            completion_window: new.completion_window.clone(),
            status: BatchState::CREATED.status.as_str(),
            created_at: seconds(new.created_at),
            expires_at: new.expires_at.map(seconds),
            metadata: stored("metadata", new.metadata.as_deref())?,
            nightshift: BatchExtension {
                paused: new.steering.is_paused,
                paused_at: new.steering.is_paused.then(|| seconds(new.created_at)),
                paused_by: new.key_id.clone().filter(|_| new.steering.is_paused),
                priority: Some(new.steering.priority).filter(|priority| *priority != 0),
                not_before: new.steering.not_before.map(seconds),
            }
            .said(),
            ..Self::default()
        })
    }
}

impl TryFrom<Batch> for BatchObject {
    type Error = ApiError;

    fn try_from(batch: Batch) -> Result<Self> {
        let row = batch.row;
        let has_begun = row.in_progress_at.is_some() && batch.state.status != Status::Failed;
        Ok(Self {
            object: "batch",
            errors: stored::<Vec<Finding>>("errors", row.errors.as_deref())?.map(Into::into),
            status: batch.state.status.as_str(),
            created_at: seconds(row.created_at),
            in_progress_at: row.in_progress_at.map(seconds),
            expires_at: row.expires_at.map(seconds),
            finalizing_at: row.finalizing_at.map(seconds),
            completed_at: row.completed_at.map(seconds),
            failed_at: row.failed_at.map(seconds),
            expired_at: row.expired_at.map(seconds),
            cancelling_at: row.cancelling_at.map(seconds),
            cancelled_at: row.cancelled_at.map(seconds),
            request_counts: batch.counts.into(),
            usage: has_begun.then(|| batch.usage.into()),
            metadata: stored("metadata", row.metadata.as_deref())?,
            nightshift: BatchExtension {
                paused: row.paused_at.is_some(),
                paused_at: row.paused_at.map(seconds),
                paused_by: row.paused_by,
                priority: Some(row.priority).filter(|priority| *priority != 0),
                not_before: row.not_before.map(seconds),
            }
            .said(),
            id: row.id,
            endpoint: row.endpoint,
            model: row.model,
            input_file_id: row.input_file_id,
            completion_window: row.completion_window,
            output_file_id: row.output_file_id,
            error_file_id: row.error_file_id,
        })
    }
}

impl From<Vec<Finding>> for BatchErrors {
    fn from(findings: Vec<Finding>) -> Self {
        let findings = findings.into_iter();
        Self {
            object: "list",
            data: findings
                .map(|finding| BatchError {
                    code: finding.code,
                    message: finding.message,
                    param: finding.param,
                    line: finding.line,
                })
                .collect(),
        }
    }
}

impl From<Counts> for RequestCounts {
    fn from(counts: Counts) -> Self {
        Self {
            total: counts.total,
            completed: counts.completed,
            failed: counts.failed,
        }
    }
}

impl From<Usage> for BatchUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.cached_tokens,
            },
            output_tokens: usage.output_tokens,
            output_tokens_details: OutputTokensDetails {
                reasoning_tokens: usage.reasoning_tokens,
            },
            total_tokens: usage.total_tokens,
        }
    }
}

/// Reads what was stored as JSON.
fn stored<T: DeserializeOwned>(what: &str, text: Option<&str>) -> Result<Option<T>> {
    text.map(serde_json::from_str).transpose().map_err(|error| {
        tracing::error!(%error, "the stored {what} of a batch are damaged");
        error::internal()
    })
}
