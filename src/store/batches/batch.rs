//! What a batch is.

use sqlx::FromRow;

use crate::domain::batch::{BatchState, Counts};
use crate::domain::reuse::Choice;
use crate::domain::usage::Usage;
use crate::store::engine::{Sql, Value, sql};

/// What a user asks for.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub id: String,
    pub tenant: String,
    /// The key that it is created with; `None` where none is needed.
    pub key_id: Option<String>,
    pub endpoint: String,
    pub input_file_id: String,
    /// What is to be done with all its lines. `None`: the lines say.
    pub task: Option<String>,
    /// What it asks for of reuse. `None`: as the server is configured, while it runs.
    pub reuse: Option<Choice>,
    /// Whether its output lines say how they were answered.
    pub details: bool,
    pub completion_window: String,
    /// How long its output and error file are kept, or [`NewBatch::KEPT_FOR_GOOD`].
    pub output_expires_seconds: i64,
    /// JSON, as given.
    pub metadata: Option<String>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub steering: Steering,
}

/// When the lines of a batch are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Within its tenant, batches of a higher priority go first.
    pub priority: i64,
    /// No line is sent before that time, in milliseconds.
    pub not_before: Option<i64>,
    /// No line is sent until the batch is resumed.
    pub is_paused: bool,
}

impl NewBatch {
    /// In place of a number of seconds.
    pub const KEPT_FOR_GOOD: i64 = 0;
}

/// A batch. Times are in milliseconds.
#[derive(Clone, Debug)]
pub struct Batch {
    pub row: BatchRow,
    pub state: BatchState,
    pub counts: Counts,
    pub usage: Usage,
}

/// The columns of a [`BatchRow`].
pub(super) const COLUMNS: &str = "batches.id, batches.tenant, batches.endpoint,
    batches.input_file_id, batches.completion_window, batches.output_expires_seconds,
    batches.metadata, batches.status, batches.ending, batches.model, batches.errors, batches.total,
    batches.output_file_id, batches.error_file_id, batches.created_at, batches.expires_at,
    batches.in_progress_at, batches.finalizing_at, batches.completed_at, batches.failed_at,
    batches.expired_at, batches.cancelling_at, batches.cancelled_at, batches.priority,
    batches.not_before, batches.paused_at, batches.paused_by";

#[derive(Clone, Debug, FromRow)]
pub struct BatchRow {
    pub id: String,
    pub tenant: String,
    pub endpoint: String,
    pub input_file_id: String,
    pub completion_window: String,
    pub output_expires_seconds: i64,
    pub metadata: Option<String>,
    pub status: String,
    pub ending: Option<String>,
    pub model: Option<String>,
    /// JSON: a list of findings.
    pub errors: Option<String>,
    pub total: i64,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub in_progress_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub priority: i64,
    pub not_before: Option<i64>,
    pub paused_at: Option<i64>,
    /// The key that has paused it.
    pub paused_by: Option<String>,
}

/// A batch's counts and its usage: see [`summed`].
#[derive(Clone, Debug, Default, FromRow)]
pub(in crate::store) struct CountsSum {
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    input_tokens: i64,
    cached_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
    total_tokens: i64,
}

/// How many columns [`CountsSum::columns`] has.
pub(in crate::store) const COUNT_COLUMNS: usize = 8;

impl CountsSum {
    /// What lines count, by their outcome, and the tokens that they used.
    pub(in crate::store) fn of([completed, failed, cancelled]: [i64; 3], usage: &Usage) -> Self {
        CountsSum {
            completed,
            failed,
            cancelled,
            input_tokens: usage.input_tokens,
            cached_tokens: usage.cached_tokens,
            output_tokens: usage.output_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            total_tokens: usage.total_tokens,
        }
    }

    /// The columns with their values, as `batches` and `batch_counts` have them.
    pub(in crate::store) fn columns(&self) -> [(&'static str, Value<'static>); COUNT_COLUMNS] {
        [
            ("completed", self.completed.into()),
            ("failed", self.failed.into()),
            ("cancelled", self.cancelled.into()),
            ("input_tokens", self.input_tokens.into()),
            ("cached_tokens", self.cached_tokens.into()),
            ("output_tokens", self.output_tokens.into()),
            ("reasoning_tokens", self.reasoning_tokens.into()),
            ("total_tokens", self.total_tokens.into()),
        ]
    }

    /// The counts of a batch of so many lines.
    pub(super) fn counts(&self, total: i64) -> Counts {
        Counts {
            total,
            completed: self.completed,
            failed: self.failed,
            cancelled: self.cancelled,
        }
    }

    pub(in crate::store) fn usage(&self) -> Usage {
        Usage {
            input_tokens: self.input_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            reasoning_tokens: self.reasoning_tokens,
            total_tokens: self.total_tokens,
            // A batch's object does not say it.
            cache_written_tokens: 0,
        }
    }
}

impl std::ops::AddAssign for CountsSum {
    fn add_assign(&mut self, other: Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.output_tokens += other.output_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
        self.total_tokens += other.total_tokens;
    }
}

/// The columns of a [`CountsSum`], from `batches` joined with `batch_counts`, by batch: what stands
/// in the batch's own row once the batch has ended, and the sums of the slots until then.
pub(in crate::store) fn summed() -> Sql {
    let sum = |name: &'static str| {
        sql!(
            "CAST(batches.{name} + COALESCE(SUM(batch_counts.{name}), 0) AS BIGINT) AS {name}",
            name
        )
    };
    Sql::joined([
        sum("completed"),
        sum("failed"),
        sum("cancelled"),
        sum("input_tokens"),
        sum("cached_tokens"),
        sum("output_tokens"),
        sum("reasoning_tokens"),
        sum("total_tokens"),
    ])
}
