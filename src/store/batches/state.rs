//! The one place that writes the state of batches: how a batch is created, and how it is moved on.
//! `tests/it/architecture.rs` keeps every other file from writing the columns.
//!
//! [`BatchState::after`] says what an event leads to. [`advance`] writes the next state, and
//! returns a [`Changed`]. What must be recorded of a change is written here, in the transaction of
//! the change.

use std::collections::HashMap;

use super::batch::NewBatch;
use crate::domain::batch::{BatchState, Counts, EndReason, Event, Status};
use crate::metrics::metrics;
use crate::store::engine::{Rows, Sql, Tx, Value, bind_each, bind_rows, in_tx, list, sql};
use crate::store::{Error, Result};

/// A state from its columns.
pub(in crate::store) fn from_columns(status: &str, ending: Option<&str>) -> Result<BatchState> {
    let unknown = || Error::corrupt("state of a batch", status);
    let status = Status::parse(status).ok_or_else(unknown)?;
    let end_reason = match ending {
        Some(reason) => Some(EndReason::parse(reason).ok_or_else(unknown)?),
        None => None,
    };
    Ok(BatchState { status, end_reason })
}

/// A batch whose row belongs to a transaction until the transaction ends.
#[derive(Clone, Debug)]
pub(super) struct LockedBatch {
    pub id: String,
    pub state: BatchState,
}

/// What to do about a row that another transaction has locked.
#[derive(Clone, Copy, Debug)]
pub(super) enum IfLocked {
    Wait,
    Skip,
}

/// Locks a batch's row. `None` where there is no such batch, or its row was skipped.
pub(super) async fn lock(
    tx: &mut Tx,
    id: &str,
    if_locked: IfLocked,
) -> Result<Option<LockedBatch>> {
    let lock = match if_locked {
        IfLocked::Wait => tx.engine().for_update(),
        IfLocked::Skip => tx.engine().skip_locked(),
    };
    let sql = sql!(
        "-- lock_batch\nSELECT status, ending FROM batches WHERE id = $1 {lock}",
        lock
    );
    let row: Option<(String, Option<String>)> = in_tx!(tx, |c| {
        sqlx::query_as(sql).bind(id).fetch_optional(c).await?
    });
    let Some((status, ending)) = row else {
        return Ok(None);
    };
    Ok(Some(LockedBatch {
        id: id.to_owned(),
        state: from_columns(&status, ending.as_deref())?,
    }))
}

/// Locks the rows of those of these batches that are validating, by id. Skips rows that another
/// transaction has locked.
pub(super) async fn lock_validating(
    tx: &mut Tx,
    ids: &[&str],
) -> Result<HashMap<String, LockedBatch>> {
    let sql = sql!(
        "-- lock_validating
         SELECT id FROM batches WHERE id IN {ids} AND status = 'validating' ORDER BY id {lock}",
        ids = list(1, ids.len()),
        lock = tx.engine().skip_locked()
    );
    let rows: Vec<(String,)> = in_tx!(tx, |c| {
        let lock = sqlx::query_as(sql).persistent(false);
        bind_each!(lock, ids).fetch_all(c).await?
    });
    let locked = rows.into_iter().map(|(id,)| {
        let state = BatchState::CREATED;
        (id.clone(), LockedBatch { id, state })
    });
    Ok(locked.collect())
}

/// Creates a batch.
pub(super) async fn create(tx: &mut Tx, new: &NewBatch) -> Result<()> {
    let row = Rows::of([[
        ("id", Value::from(&new.id)),
        ("tenant", Value::from(&new.tenant)),
        ("endpoint", Value::from(&new.endpoint)),
        ("input_file_id", Value::from(&new.input_file_id)),
        ("completion_window", Value::from(&new.completion_window)),
        ("output_expires_seconds", new.output_expires_seconds.into()),
        ("metadata", Value::from(&new.metadata)),
        ("status", BatchState::CREATED.status.as_str().into()),
        ("created_at", new.created_at.into()),
        ("expires_at", new.expires_at.into()),
        ("key_id", Value::from(&new.key_id)),
    ]]);
    let sql = sql!(
        "-- create_batch\nINSERT INTO batches ({columns}) VALUES {row}",
        columns = row.columns(),
        row = row.parameters(1)
    );
    in_tx!(tx, |c| {
        bind_rows!(sqlx::query(sql), row).execute(c).await?;
    });
    Ok(())
}

/// Moves a batch as an event says. `None` where the event changes nothing.
pub(super) async fn advance(
    tx: &mut Tx,
    batch: &LockedBatch,
    event: Event,
    now_ms: i64,
) -> Result<Option<Changed>> {
    let changed = advance_all(tx, event, now_ms, &[(batch, [])]).await?;
    Ok(changed.into_iter().next())
}

/// Moves batches that are all in the same state, by one statement. Each has values of other
/// columns that are written with the step. Empty where the event changes nothing.
///
/// # Errors
/// [`Error::Stale`] when a batch is in another state.
pub(super) async fn advance_all<const COLUMNS: usize>(
    tx: &mut Tx,
    event: Event,
    now_ms: i64,
    batches: &[(&LockedBatch, [(&'static str, Value<'_>); COLUMNS])],
) -> Result<Vec<Changed>> {
    let Some((first, others)) = batches.first() else {
        return Ok(Vec::new());
    };
    let from = first.state;
    let Some(to) = from.after(event) else {
        return Ok(Vec::new());
    };
    let others = others.iter().map(|(column, _)| *column);
    let others = others.map(|column| sql!("{column} = v.{column}", column));
    let set = Sql::joined(state_set(from, to).into_iter().chain(others));
    let rows = Rows::of(batches.iter().map(|(batch, others)| {
        let row = [("id", Value::from(&batch.id)), ("now", now_ms.into())];
        row.into_iter().chain(others.iter().cloned())
    }));
    let sql = sql!(
        "-- advance_batches
         WITH {moved}
         UPDATE batches SET {set}
         FROM v WHERE batches.id = v.id AND batches.status = '{from}'",
        moved = rows.table("v", 1, tx.engine()),
        set,
        from = from.status.as_str()
    );
    let is_usual = batches.len() == 1;
    let written = in_tx!(tx, |c| {
        let advance = sqlx::query(sql).persistent(is_usual);
        bind_rows!(advance, rows).execute(c).await?.rows_affected()
    });
    if written != batches.len() as u64 {
        return Err(Error::Stale("the batch"));
    }
    let changed = batches.iter().map(|(batch, _)| Changed {
        batch_id: batch.id.clone(),
        from: from.status,
        to: to.status,
        counts: None,
        why: None,
    });
    Ok(changed.collect())
}

/// What a step writes into the state's columns: the state, and the time of each status that the
/// batch enters.
fn state_set(from: BatchState, to: BatchState) -> Vec<Sql> {
    let mut set = vec![sql!("status = '{status}'", status = to.status.as_str())];
    set.push(match to.end_reason {
        Some(reason) => sql!("ending = '{reason}'", reason = reason.as_str()),
        None => sql!("ending = NULL"),
    });
    let mut entered = Vec::new();
    if from.status != to.status {
        entered.push(to.status);
        // A batch that is cancelled before it ran was cancelling for no time.
        if to.status == Status::Cancelled && from.status != Status::Cancelling {
            entered.push(Status::Cancelling);
        }
    }
    let times = entered.into_iter().map(Status::as_str);
    set.extend(times.map(|status| sql!("{status}_at = v.now", status)));
    set
}

/// A change of a batch's state. The log and the metrics hear of the change once its transaction is
/// committed: see [`announce`](Changed::announce).
#[derive(Debug)]
#[must_use]
pub(super) struct Changed {
    batch_id: String,
    from: Status,
    to: Status,
    counts: Option<Counts>,
    why: Option<String>,
}

impl Changed {
    /// Whether the batch has ended.
    pub fn is_terminal(&self) -> bool {
        self.to.is_terminal()
    }

    /// Adds the batch's counts for the log, where they are known.
    pub fn with_counts(self, counts: Option<Counts>) -> Self {
        Changed { counts, ..self }
    }

    /// Adds for the log why the batch failed.
    pub fn because(self, why: String) -> Self {
        Changed {
            why: Some(why),
            ..self
        }
    }

    /// Writes the change to the log and the metrics. To be called once the transaction is
    /// committed.
    pub fn announce(self) {
        let Changed {
            batch_id,
            from,
            to,
            counts,
            why,
        } = self;
        if from == to {
            return;
        }
        if to.is_terminal() {
            metrics().batch_ended(to.as_str());
        }
        tracing::info!(
            batch.id = batch_id,
            batch.from = from.as_str(),
            batch.total = counts.map(|counts| counts.total),
            batch.completed = counts.map(|counts| counts.completed),
            batch.failed = counts.map(|counts| counts.failed),
            batch.cancelled = counts.map(|counts| counts.cancelled),
            batch.errors = why,
            "the batch is {to}"
        );
    }
}
