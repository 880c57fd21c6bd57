//! The one place that writes the state of batches: how a batch is created, and how it is moved on.
//! `tests/it/architecture.rs` keeps every other file from writing the columns.
//!
//! [`BatchState::after`] says what an event leads to. [`advance`] writes the next state, and
//! returns a [`Changed`]. What must be recorded of a change is written here, in the transaction of
//! the change.

use std::collections::BTreeMap;

use super::batch::{CountsSum, NewBatch};
use crate::domain::batch::{BatchState, Counts, EndReason, Event, Status};
use crate::domain::reuse::Choice;
use crate::metrics::metrics;
use crate::store::engine::{Engine, Rows, Sql, Tx, Value, bind_each, bind_rows, in_tx, list, sql};
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

/// A batch whose row belongs to a transaction, and how many lines the batch has.
#[derive(Clone, Debug)]
pub(super) struct FoundBatch {
    pub batch: LockedBatch,
    pub total: i64,
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

/// Locks the rows of batches in the order of their ids. Skips rows that another
/// transaction has locked.
pub(super) async fn lock_all(tx: &mut Tx, ids: &[&str]) -> Result<Vec<FoundBatch>> {
    let sql = sql!(
        "-- lock_batches
         SELECT id, status, ending, total FROM batches WHERE id IN {ids} ORDER BY id {lock}",
        ids = list(1, ids.len()),
        lock = tx.engine().skip_locked()
    );
    let is_usual = ids.len() == 1;
    let rows: Vec<(String, String, Option<String>, i64)> = in_tx!(tx, |c| {
        let lock = sqlx::query_as(sql).persistent(is_usual);
        bind_each!(lock, ids).fetch_all(c).await?
    });
    let found = rows.into_iter().map(|(id, status, ending, total)| {
        let state = from_columns(&status, ending.as_deref())?;
        let batch = LockedBatch { id, state };
        Ok(FoundBatch { batch, total })
    });
    found.collect()
}

/// Creates a batch, by a statement and the row that the statement binds. While the reference to the
/// input file is written, the file's row is locked, so that nobody purges the file in between.
pub(super) fn creation(new: &NewBatch, engine: Engine) -> (Sql, Rows<'_>) {
    let is_paused = new.steering.is_paused;
    let paused_at = is_paused.then_some(new.created_at);
    let paused_by = new.key_id.as_deref().filter(|_| is_paused);
    let row = Rows::of([[
        ("id", Value::from(&new.id)),
        ("tenant", Value::from(&new.tenant)),
        ("endpoint", Value::from(&new.endpoint)),
        ("input_file_id", Value::from(&new.input_file_id)),
        ("completion_window", Value::from(&new.completion_window)),
        ("output_expires_seconds", new.output_expires_seconds.into()),
        ("metadata", Value::from(&new.metadata)),
        ("task", Value::from(&new.task)),
        ("reuse", new.reuse.map(Choice::as_str).into()),
        ("details", i64::from(new.details).into()),
        ("status", BatchState::CREATED.status.as_str().into()),
        ("created_at", new.created_at.into()),
        ("expires_at", new.expires_at.into()),
        ("key_id", Value::from(&new.key_id)),
        ("priority", new.steering.priority.into()),
        ("not_before", new.steering.not_before.into()),
        ("paused_at", paused_at.into()),
        ("paused_by", Value::from(paused_by)),
    ]]);
    let sql = sql!(
        "-- create_batch
         WITH {batch},
         input AS MATERIALIZED (
            SELECT 1 FROM files
            WHERE id = (SELECT input_file_id FROM v) AND tenant = (SELECT tenant FROM v) {lock})
         INSERT INTO batches ({columns}) SELECT v.* FROM v LEFT JOIN input ON TRUE",
        batch = row.table("v", 1, engine),
        lock = engine.for_share(),
        columns = row.columns()
    );
    (sql, row)
}

/// Pauses a batch, unless it is paused already. The transaction has locked its row. `by`: the key.
pub(super) async fn pause(tx: &mut Tx, id: &str, now_ms: i64, by: Option<&str>) -> Result<()> {
    in_tx!(tx, |c| {
        sqlx::query(
            "-- pause_batch
             UPDATE batches SET paused_at = $2, paused_by = $3
             WHERE id = $1 AND paused_at IS NULL",
        )
        .bind(id)
        .bind(now_ms)
        .bind(by)
        .execute(c)
        .await?;
    });
    Ok(())
}

/// Resumes a batch. The transaction has locked its row.
pub(super) async fn resume(tx: &mut Tx, id: &str) -> Result<()> {
    in_tx!(tx, |c| {
        sqlx::query(
            "-- resume_batch
             UPDATE batches SET paused_at = NULL, paused_by = NULL WHERE id = $1",
        )
        .bind(id)
        .execute(c)
        .await?;
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
    let changed = advance_all(tx, &[event], now_ms, &[(batch, [])]).await?;
    Ok(changed.into_iter().next())
}

/// What a step writes into other columns of a batch.
type Columns<'a, const N: usize> = [(&'static str, Value<'a>); N];

/// Moves batches that are all in the same state, by one statement, as events say that happen one
/// after the other. An event that changes nothing is passed over. Each batch has values of other
/// columns that are written with the step. Empty where no event changes anything.
///
/// # Errors
/// [`Error::Stale`] when a batch is in another state.
pub(super) async fn advance_all<const N: usize>(
    tx: &mut Tx,
    events: &[Event],
    now_ms: i64,
    batches: &[(&LockedBatch, Columns<'_, N>)],
) -> Result<Vec<Changed>> {
    let Some((first, _)) = batches.first() else {
        return Ok(Vec::new());
    };
    let from = first.state;
    let rows = batches.iter().map(|(batch, columns)| (&*batch.id, columns));
    let changed = write(tx, from, events, now_ms, rows.collect(), Locked::Before).await?;
    match changed {
        None => Ok(Vec::new()),
        Some(changed) if changed.len() == batches.len() => Ok(changed),
        Some(_) => Err(Error::Stale("the batch")),
    }
}

/// Moves those of these batches that are in a state, by one statement, as events say that happen
/// one after the other. A batch whose row another transaction has locked is left out. Returns the
/// batches that were moved.
pub(super) async fn advance_free<const N: usize>(
    tx: &mut Tx,
    from: BatchState,
    events: &[Event],
    now_ms: i64,
    batches: &[(&str, Columns<'_, N>)],
) -> Result<Vec<Changed>> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let rows = batches.iter().map(|(id, columns)| (*id, columns));
    let changed = write(tx, from, events, now_ms, rows.collect(), Locked::Now).await?;
    Ok(changed.unwrap_or_default())
}

/// Adds counts to the rows of batches that have ended. The transaction has locked the rows.
pub(super) async fn add_counts(tx: &mut Tx, counts: &BTreeMap<String, CountsSum>) -> Result<()> {
    let rows = Rows::of(counts.iter().map(|(id, counts)| {
        let row = [("id", Value::from(id))];
        row.into_iter().chain(counts.columns())
    }));
    let columns = CountsSum::default().columns().map(|(column, _)| column);
    let set = columns.map(|column| sql!("{column} = batches.{column} + v.{column}", column));
    let sql = sql!(
        "-- add_counts_of_ended
         WITH {counts}
         UPDATE batches SET {set} FROM v WHERE batches.id = v.id",
        counts = rows.table("v", 1, tx.engine()),
        set = Sql::joined(set)
    );
    in_tx!(tx, |c| {
        let add = sqlx::query(sql).persistent(false);
        bind_rows!(add, rows).execute(c).await?;
    });
    Ok(())
}

/// When the rows of batches that are moved were locked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Locked {
    Before,
    /// By the statement that moves them.
    Now,
}

/// Writes a step of at least one batch. `None` where no event changes anything.
async fn write<const N: usize>(
    tx: &mut Tx,
    from: BatchState,
    events: &[Event],
    now_ms: i64,
    batches: Vec<(&str, &Columns<'_, N>)>,
    locked: Locked,
) -> Result<Option<Vec<Changed>>> {
    let path = path(from, events);
    let Some(&to) = path.last() else {
        return Ok(None);
    };
    let others = batches.iter().take(1).flat_map(|(_, columns)| *columns);
    let others = others.map(|(column, _)| sql!("{column} = v.{column}", column = *column));
    let set = Sql::joined(state_set(from, &path).into_iter().chain(others));
    let rows = Rows::of(batches.iter().map(|(id, columns)| {
        let row = [("id", Value::from(*id)), ("now", now_ms.into())];
        row.into_iter().chain(columns.iter().cloned())
    }));
    let is_from = sql!(
        "batches.status = '{status}' AND {end_reason}",
        status = from.status.as_str(),
        end_reason = match from.end_reason {
            Some(reason) => sql!("batches.ending = '{reason}'", reason = reason.as_str()),
            None => sql!("batches.ending IS NULL"),
        }
    );
    let free = match locked {
        Locked::Before => sql!(""),
        // In the order of their ids, as everywhere.
        Locked::Now => sql!(
            "AND batches.id IN (SELECT id FROM batches WHERE id IN (SELECT id FROM v)
                AND {is_from} ORDER BY id {lock})",
            is_from = &is_from,
            lock = tx.engine().skip_locked()
        ),
    };
    let sql = sql!(
        "-- advance_batches
         WITH {moved}
         UPDATE batches SET {set}
         FROM v WHERE batches.id = v.id AND {is_from} {free}
         RETURNING batches.id",
        moved = rows.table("v", 1, tx.engine()),
        set,
        is_from,
        free
    );
    let is_usual = batches.len() == 1;
    let written: Vec<(String,)> = in_tx!(tx, |c| {
        let advance = sqlx::query_as(sql).persistent(is_usual);
        bind_rows!(advance, rows).fetch_all(c).await?
    });
    let changed = written.into_iter().map(|(batch_id,)| Changed {
        batch_id,
        from: from.status,
        to: to.status,
        counts: None,
        why: None,
    });
    Ok(Some(changed.collect()))
}

/// The states that a batch goes through when events happen one after the other.
fn path(from: BatchState, events: &[Event]) -> Vec<BatchState> {
    let mut path = Vec::new();
    for event in events {
        let last = path.last().copied().unwrap_or(from);
        path.extend(last.after(*event));
    }
    path
}

/// What a step along a path writes into the state's columns: the last state, and the time of each
/// status that the batch enters.
fn state_set(from: BatchState, path: &[BatchState]) -> Vec<Sql> {
    let to = path.last().copied().unwrap_or(from);
    let mut set = vec![sql!("status = '{status}'", status = to.status.as_str())];
    set.push(match to.end_reason {
        Some(reason) => sql!("ending = '{reason}'", reason = reason.as_str()),
        None => sql!("ending = NULL"),
    });
    if !to.can_be_paused() {
        // Its lines have their outcome, or get it, which they would wait for.
        set.extend(["paused_at", "paused_by"].map(|column| sql!("{column} = NULL", column)));
    }
    let mut entered = Vec::new();
    let mut last = from.status;
    for next in path.iter().map(|state| state.status) {
        if next != last {
            entered.push(next);
            // A batch that is cancelled before it ran was cancelling for no time.
            if next == Status::Cancelled && last != Status::Cancelling {
                entered.push(Status::Cancelling);
            }
        }
        last = next;
    }
    let times = entered.into_iter().map(Status::as_str);
    set.extend(times.map(|status| sql!("{status}_at = v.now", status)));
    set
}

/// A change of a batch's state. The log and the metrics hear of the change once its transaction is
/// committed: see [`announce`](Changed::announce).
#[derive(Debug)]
#[must_use]
pub(in crate::store) struct Changed {
    batch_id: String,
    from: Status,
    to: Status,
    counts: Option<Counts>,
    why: Option<String>,
}

impl Changed {
    pub fn batch_id(&self) -> &str {
        &self.batch_id
    }

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

/// For tests that ask about batches without a file: `$1` is the id, `$2` the task.
#[cfg(test)]
pub(super) const A_BATCH: &str = "INSERT INTO batches (id, tenant, endpoint, input_file_id,
        completion_window, output_expires_seconds, status, created_at, task)
    VALUES ($1, '', '', '', '', 0, 'in_progress', 0, $2)";
