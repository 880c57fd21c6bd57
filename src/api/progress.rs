//! `/v1/batches/{id}/progress`: one picture of how a batch goes.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::BatchCaller;
use super::batches::owner;
use super::error::{self, Envelope, Result};
use super::path::Id;
use crate::domain::batch::Status;
use crate::domain::totals::Totals;
use crate::store::{Batch, Told, UsedPart};

/// How a batch goes. `running`, `waiting`, `completed`, `failed` and `cancelled` are `total`
/// together; lines that have expired are among the failed ones.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchProgress {
    /// The batch's id.
    pub id: String,
    /// Always `batch.progress`.
    #[schema(example = "batch.progress")]
    pub object: &'static str,
    /// The batch's.
    pub status: &'static str,
    /// Nothing new of the batch is sent until it is resumed.
    pub paused: bool,
    /// Lines.
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    /// Lines that a model server works on, as each process told last: every two seconds.
    pub running: i64,
    pub waiting: i64,
    /// At the pace of the last minute, over all processes.
    pub lines_per_second: f64,
    pub tokens_per_second: f64,
    /// How long the rest takes at that pace; null where nothing moves.
    pub eta_seconds: Option<i64>,
    /// Whether the rest is done before the completion window ends, at that pace; null where that is
    /// not known.
    pub window_holds: Option<bool>,
    /// What lines wait for, in words; null where nothing holds them up.
    pub waits_for: Option<String>,
    /// What the calls cost so far whose price is known, in the currency of the prices: a decimal.
    /// Null where no price is known.
    pub cost: Option<String>,
    /// By model, as the lines name it.
    pub models: Vec<ProgressPart>,
    /// By upstream.
    pub upstreams: Vec<ProgressPart>,
}

/// What a model or an upstream has done for a batch so far.
#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ProgressPart {
    /// Of the model or of the upstream.
    pub name: String,
    /// Lines that were sent there and have ended.
    pub lines: i64,
    /// Those of them that have no good answer.
    pub failed: i64,
    /// Calls after which their line was sent again.
    pub retries: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// Of a line's last call, on average; null where no line has ended.
    pub latency_ms: Option<i64>,
    /// As the batch's.
    pub cost: Option<String>,
}

/// Tells how a batch goes: counts, pace, what it waits for, and what it used by model and upstream.
///
/// A key of the scope `admin` asks about any tenant's batch; the log says so.
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}/progress",
    operation_id = "retrieveBatchProgress",
    tag = "Batches",
    params(("batch_id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "How it goes.", body = BatchProgress),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
    ),
)]
pub async fn retrieve(
    State(api): State<Api>,
    BatchCaller(caller): BatchCaller,
    Id(id): Id,
) -> Result<Json<BatchProgress>> {
    let tenant = owner(&api, caller, &id, "progress").await?;
    let batch = api.looks.batch(&tenant, &id).await?;
    let batch = batch.ok_or_else(|| error::batch_not_found(&id))?;
    let told = api.store.told_of_batch(&id).await?;
    let used = api.store.used_by_batch(&id).await?;
    let now_ms = api.store.now().await?;
    Ok(Json(BatchProgress::new(&batch, &told, &used, now_ms)))
}

impl BatchProgress {
    fn new(batch: &Batch, told: &[Told], used: &[UsedPart], now_ms: i64) -> Self {
        let (row, counts, status) = (&batch.row, batch.counts, batch.state.status);
        let has_ended = status.is_terminal();
        let told: &[Told] = if has_ended { &[] } else { told };
        let open = counts.open();
        // What is told is a little older than the counts.
        let in_flight: i64 = told.iter().map(|told| told.in_flight).sum();
        let running = in_flight.clamp(0, open.max(0));
        let lines_per_second: f64 = told.iter().map(|told| told.lines_per_second).sum();
        let paused = row.paused_at.is_some();
        let eta_seconds = match open {
            0 if row.in_progress_at.is_some() => Some(0),
            _ if paused || lines_per_second <= 0.0 => None,
            open => Some((open as f64 / lines_per_second).ceil() as i64),
        };
        let window_holds = row.expires_at.zip(eta_seconds);
        let window_holds = window_holds
            .filter(|_| !has_ended)
            .map(|(end, eta)| now_ms.saturating_add(eta.saturating_mul(1_000)) <= end);
        let mut all = Totals::default();
        for part in used {
            all += part.totals;
        }
        Self {
            id: row.id.clone(),
            object: "batch.progress",
            status: status.as_str(),
            paused,
            total: counts.total,
            completed: counts.completed,
            failed: counts.failed,
            cancelled: counts.cancelled,
            running,
            waiting: open - running,
            lines_per_second,
            tokens_per_second: told.iter().map(|told| told.tokens_per_second).sum(),
            eta_seconds,
            window_holds,
            waits_for: waits_for(batch, told, now_ms),
            cost: cost(&all),
            models: parts(used, |part| &part.model),
            upstreams: parts(used, |part| &part.upstream),
        }
    }
}

/// What lines of a batch wait for, in words.
fn waits_for(batch: &Batch, told: &[Told], now_ms: i64) -> Option<String> {
    let row = &batch.row;
    let is_validating = batch.state.status == Status::Validating;
    if !batch.state.can_be_paused() || (batch.counts.open() == 0 && !is_validating) {
        return None;
    }
    if row.paused_at.is_some() {
        return Some("the batch is paused".to_owned());
    }
    if row.not_before.is_some_and(|begin| begin > now_ms) {
        return Some("the time before which no line is sent (not_before)".to_owned());
    }
    if is_validating {
        return Some("its validation".to_owned());
    }
    if told.is_empty() {
        return Some("its turn".to_owned());
    }
    told.iter().find_map(|told| told.waits_for.clone())
}

/// What was used by name.
fn parts<'u>(used: &'u [UsedPart], name: impl Fn(&'u UsedPart) -> &'u String) -> Vec<ProgressPart> {
    let mut totals = std::collections::BTreeMap::<&str, Totals>::new();
    for part in used {
        *totals.entry(name(part)).or_default() += part.totals;
    }
    let parts = totals.into_iter().map(|(name, totals)| ProgressPart {
        name: name.to_owned(),
        lines: totals.requests,
        failed: totals.failed,
        retries: totals.retries,
        input_tokens: totals.usage.input_tokens,
        output_tokens: totals.usage.output_tokens,
        latency_ms: totals.latency_ms.checked_div(totals.requests),
        cost: cost(&totals),
    });
    parts.collect()
}

/// What was spent, where any of it is known.
fn cost(totals: &Totals) -> Option<String> {
    totals.known_cost().map(|cost| cost.to_string())
}
