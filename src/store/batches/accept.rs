//! Batches that were validated: let run or refused, many at once.
//!
//! A batch whose input has many units gets them in ranges, each in a transaction of its own, while
//! the batch stays `validating`. The units that are there say how far the batch is, so any process
//! can go on. No unit can be leased before the batch's last transaction, which writes the backlog.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::admit::admit;
use super::state::{self, Changed, IfLocked, LockedBatch};
use super::validate::Unvalidated;
use crate::domain::batch::{BatchState, Event};
use crate::domain::findings::{self, Finding};
use crate::domain::unit::{Bitmap, UnitKey, UnitLease};
use crate::store::engine::{Rows, Tx, Value, bind_rows, in_tx, on_pool, sql};
use crate::store::{Deaths, LeasedUnit, Result, Store, Who};

/// Rows written by one statement: a file may name a great many models.
const ROWS_A_STATEMENT: usize = 1_000;
/// The epoch of a unit under its first lease.
const FIRST_EPOCH: i64 = 1;

/// What validation found of a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It can run. `model` is the one that all its lines name.
    Accepted { model: Option<String> },
    /// It cannot: a JSON list of findings.
    Rejected { errors: String },
}

impl Verdict {
    fn is_accepted(&self) -> bool {
        matches!(self, Verdict::Accepted { .. })
    }
}

/// How far a batch is that gets its units in ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It has all its units, and runs.
    Runs,
    /// It has some more than before.
    Grows,
    /// It is not validating any more, or another process is at it.
    Elsewhere,
    /// It may not run, because its tenant has too much enqueued: it has failed.
    Refused,
}

/// What became of a group of batches.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// How many were let run or refused.
    pub settled: usize,
    /// Those that run and of which units wait to be leased.
    pub waiting: Vec<String>,
    /// The units that were leased directly.
    pub leased: Vec<LeasedUnit>,
}

/// Leases the units of some batches in the transaction that makes the units.
#[derive(Clone, Copy, Debug)]
pub struct DirectLease<'a> {
    /// The token of a process that holds its lease.
    pub owner: &'a str,
    /// The ids of the batches: each [has one unit](Unvalidated::only_model).
    pub batches: &'a HashSet<String>,
}

/// A unit that is made.
struct NewUnit<'a> {
    batch: &'a Unvalidated,
    model_no: i64,
    /// `None`: it waits to be leased.
    owner: Option<&'a str>,
    requests: i64,
    chunk_bytes: i64,
}

/// How many units of a model wait in a batch.
struct NewBacklog<'a> {
    batch_id: &'a str,
    model_no: i64,
    model: &'a str,
    waiting: i64,
}

impl Store {
    /// Lets batches run or refuses them, all in one transaction: their units, their backlog and
    /// their new state. Each has to be [small](Unvalidated::is_small). A batch that another process
    /// is at is left to that process, and a batch that is not validating any more is left alone.
    ///
    /// The units of some batches can be leased directly. The backlog has no row for such a unit
    /// until the unit waits.
    ///
    /// # Errors
    /// When the database fails: then none is settled.
    pub async fn settle_batches(
        &self,
        judged: &[(&Unvalidated, &Verdict)],
        direct: Option<DirectLease<'_>>,
    ) -> Result<Settled> {
        let could_run = judged.iter().filter(|(_, verdict)| verdict.is_accepted());
        let could_run: Vec<&Unvalidated> = could_run.map(|(batch, _)| *batch).collect();
        let mut tx = self.begin().await?;
        let admission = admit(&mut tx, &could_run).await?;
        let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
        for (batch, verdict) in judged {
            let id = batch.batch_id.as_str();
            if admission.elsewhere.contains(id) {
                continue;
            }
            match (verdict, admission.refused.get(id)) {
                (Verdict::Accepted { model }, None) => {
                    accepted.push((id, begin_columns(batch, model.as_deref())));
                }
                (Verdict::Rejected { errors }, _) | (Verdict::Accepted { .. }, Some(errors)) => {
                    rejected.push((id, [("errors", Value::from(errors))]));
                }
            }
        }
        let (from, now) = (BatchState::CREATED, self.now_ms());
        let begun = state::advance_free(&mut tx, from, &[Event::Accepted], now, &accepted).await?;
        let refused =
            state::advance_free(&mut tx, from, &[Event::Rejected], now, &rejected).await?;
        let ours: HashSet<&str> = begun.iter().map(Changed::batch_id).collect();
        let run = judged.iter().map(|(batch, _)| *batch);
        let run = run.filter(|batch| ours.contains(&*batch.batch_id));
        let (units, backlog) = make_units(&mut tx, &run.collect::<Vec<_>>(), direct).await?;
        tx.commit().await?;

        let settled = begun.len() + refused.len();
        announce(judged, &admission.refused, begun.into_iter().chain(refused));
        let waiting: BTreeSet<&str> = backlog.iter().map(|row| row.batch_id).collect();
        if !waiting.is_empty() {
            self.wake(Who::Supplies);
        }
        Ok(Settled {
            settled,
            waiting: waiting.into_iter().map(str::to_owned).collect(),
            leased: units.iter().filter_map(NewUnit::leased).collect(),
        })
    }

    /// Gives a batch with many units a range of them. Once no unit is missing, the batch runs. A
    /// small batch gets all its units and runs at once.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<Begun> {
        if batch.is_small() {
            let model = model.map(str::to_owned);
            let verdict = Verdict::Accepted { model };
            let settled = self.settle_batches(&[(batch, &verdict)], None).await?;
            return Ok(match settled.settled {
                0 => Begun::Elsewhere,
                _ => Begun::Runs,
            });
        }
        let mut tx = self.begin().await?;
        let Some(locked) = lock_validating(&mut tx, batch).await? else {
            return Ok(Begun::Elsewhere);
        };
        if let Some(next) = next_chunk(&mut tx, batch).await? {
            // What is too much already is refused before any unit is made.
            if next == 0 && self.refuse(&mut tx, batch, &locked).await? {
                tx.commit().await?;
                return Ok(Begun::Refused);
            }
            let end = next.saturating_add(batch.chunks_at_once());
            make_range(&mut tx, batch, next..end).await?;
            tx.commit().await?;
            return Ok(Begun::Grows);
        }
        // No unit is missing. They are counted outside of the transaction: the input never changes,
        // and others want to write.
        tx.commit().await?;
        let backlog = self.units_by_model(&batch.input_file_id).await?;
        let backlog = backlog.into_iter().map(|(model_no, waiting)| NewBacklog {
            batch_id: &batch.batch_id,
            model_no,
            model: batch.model_name(model_no),
            waiting,
        });
        let backlog: Vec<_> = backlog.collect();
        let mut tx = self.begin().await?;
        let Some(locked) = lock_validating(&mut tx, batch).await? else {
            return Ok(Begun::Elsewhere);
        };
        // Others may have been let run while its units were made.
        if self.refuse(&mut tx, batch, &locked).await? {
            tx.commit().await?;
            return Ok(Begun::Refused);
        }
        insert_backlog(&mut tx, &backlog).await?;
        let columns = begin_columns(batch, model);
        let (events, now) = ([Event::Accepted], self.now_ms());
        let changed = state::advance_all(&mut tx, &events, now, &[(&locked, columns)]).await?;
        tx.commit().await?;
        for changed in changed {
            changed.with_counts(Some(batch.fresh_counts())).announce();
        }
        self.wake(Who::Supplies);
        Ok(Begun::Runs)
    }

    /// Lets a batch run, however many units it has. False if it is not validating any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<bool> {
        loop {
            match self.begin_batch(batch, model).await? {
                Begun::Runs => return Ok(true),
                Begun::Elsewhere | Begun::Refused => return Ok(false),
                Begun::Grows => {}
            }
        }
    }

    /// Fails a batch, if its tenant has too much enqueued beside it. True if so.
    async fn refuse(&self, tx: &mut Tx, batch: &Unvalidated, locked: &LockedBatch) -> Result<bool> {
        let admission = admit(tx, &[batch]).await?;
        let Some(errors) = admission.refused.get(&batch.batch_id) else {
            return Ok(false);
        };
        let (events, now) = ([Event::Rejected], self.now_ms());
        let columns = [("errors", Value::from(errors))];
        for changed in state::advance_all(tx, &events, now, &[(locked, columns)]).await? {
            changed.because(in_short(errors)).announce();
        }
        Ok(true)
    }

    /// How many units of each model a batch of a file has, by number.
    async fn units_by_model(&self, file_id: &str) -> Result<Vec<(i64, i64)>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- units_by_model
                 SELECT model_no, COUNT(*) FROM chunk_models WHERE file_id = $1 GROUP BY model_no",
            )
            .bind(file_id)
            .fetch_all(c)
            .await?
        }))
    }
}

/// Tells of batches that were let run or refused.
fn announce(
    judged: &[(&Unvalidated, &Verdict)],
    not_admitted: &HashMap<String, String>,
    changed: impl Iterator<Item = Changed>,
) {
    let judged: HashMap<&str, &(&Unvalidated, &Verdict)> = judged
        .iter()
        .map(|judged| (judged.0.batch_id.as_str(), judged))
        .collect();
    for changed in changed {
        if let Some(errors) = not_admitted.get(changed.batch_id()) {
            changed.because(in_short(errors)).announce();
            continue;
        }
        match judged.get(changed.batch_id()) {
            Some((_, Verdict::Rejected { errors })) => changed.because(in_short(errors)),
            Some((batch, _)) => changed.with_counts(Some(batch.fresh_counts())),
            None => changed,
        }
        .announce();
    }
}

/// What the step writes that lets a batch run.
fn begin_columns<'a>(
    batch: &Unvalidated,
    model: Option<&'a str>,
) -> [(&'static str, Value<'a>); 3] {
    [
        ("total", batch.total().into()),
        ("estimated_tokens", batch.estimated_tokens().into()),
        ("model", Value::from(model)),
    ]
}

/// What is wrong with a batch, for the log. `errors`: a JSON list of findings.
fn in_short(errors: &str) -> String {
    let errors: Vec<Finding> = serde_json::from_str(errors).unwrap_or_default();
    findings::in_short(&errors)
}

/// Locks a batch that is validating, if no other process is at it.
async fn lock_validating(tx: &mut Tx, batch: &Unvalidated) -> Result<Option<LockedBatch>> {
    let locked = state::lock(tx, &batch.batch_id, IfLocked::Skip).await?;
    Ok(locked.filter(|batch| batch.state == BatchState::CREATED))
}

/// Makes all units of batches, and the backlog of the units that wait.
async fn make_units<'a>(
    tx: &mut Tx,
    batches: &[&'a Unvalidated],
    direct: Option<DirectLease<'a>>,
) -> Result<(Vec<NewUnit<'a>>, Vec<NewBacklog<'a>>)> {
    let (mut units, mut several_chunks) = (Vec::new(), HashMap::new());
    for batch in batches {
        match batch.only_chunk() {
            Some(_) => units.extend(units_of_chunk(batch, direct)),
            None => drop(several_chunks.insert(&*batch.batch_id, *batch)),
        }
    }
    for units in units.chunks(ROWS_A_STATEMENT) {
        insert_units(tx, units).await?;
    }
    let mut waiting: BTreeMap<(&str, i64), (&str, i64)> = BTreeMap::new();
    let mut add = |batch: &'a Unvalidated, model_no| {
        let row = waiting.entry((&*batch.batch_id, model_no));
        row.or_insert((batch.model_name(model_no), 0)).1 += 1;
    };
    for unit in units.iter().filter(|unit| unit.owner.is_none()) {
        add(unit.batch, unit.model_no);
    }
    if !several_chunks.is_empty() {
        for (batch_id, model_no) in copy_units(tx, &several_chunks).await? {
            if let Some(batch) = several_chunks.get(&*batch_id) {
                add(batch, model_no);
            }
        }
    }
    let backlog = waiting.into_iter();
    let backlog = backlog.map(|((batch_id, model_no), (model, waiting))| NewBacklog {
        batch_id,
        model_no,
        model,
        waiting,
    });
    let backlog: Vec<_> = backlog.collect();
    insert_backlog(tx, &backlog).await?;
    Ok((units, backlog))
}

/// The units of a batch whose input is one chunk: one for each model.
fn units_of_chunk<'a>(
    batch: &'a Unvalidated,
    direct: Option<DirectLease<'a>>,
) -> impl Iterator<Item = NewUnit<'a>> {
    let direct = direct.filter(|direct| direct.batches.contains(&batch.batch_id));
    let owner = direct.map(|direct| direct.owner);
    batch.only_chunk().into_iter().flat_map(move |chunk| {
        let models = (0..).zip(chunk.models.iter());
        models.map(move |(model_no, model)| NewUnit {
            batch,
            model_no,
            owner,
            requests: i64::try_from(model.requests).unwrap_or(i64::MAX),
            chunk_bytes: chunk.bytes,
        })
    })
}

/// Makes units of inputs that are one chunk.
async fn insert_units(tx: &mut Tx, units: &[NewUnit<'_>]) -> Result<()> {
    let rows = Rows::of(units.iter().map(|unit| {
        let (state, epoch) = match unit.owner {
            Some(_) => ("leased", FIRST_EPOCH),
            None => ("waiting", 0),
        };
        [
            ("batch_id", Value::from(&unit.batch.batch_id)),
            ("chunk_no", 0.into()),
            ("model_no", unit.model_no.into()),
            ("state", state.into()),
            ("owner", unit.owner.into()),
            ("epoch", epoch.into()),
            ("requests", unit.requests.into()),
            ("chunk_bytes", unit.chunk_bytes.into()),
        ]
    }));
    let sql = sql!(
        "-- accept_batch_units
         WITH {units}
         INSERT INTO units ({columns}, flush_no, takeovers, done, output_bytes, error_bytes)
         SELECT v.*, 0, 0, {no_lines}, 0, 0 FROM v",
        units = rows.table("v", 1, tx.engine()),
        columns = rows.columns(),
        no_lines = tx.engine().no_bytes()
    );
    let is_usual = units.len() == 1;
    in_tx!(tx, |c| {
        let make = sqlx::query(sql).persistent(is_usual);
        bind_rows!(make, rows).execute(c).await?;
    });
    Ok(())
}

/// The columns of a unit that has only been made.
const UNIT: &str = "batch_id, chunk_no, model_no, state, epoch, flush_no, takeovers, requests,
                chunk_bytes, done, output_bytes, error_bytes";

/// Makes all units of batches whose inputs have several chunks. Returns the batch and the model of
/// each unit. Some may be there already: an earlier version began the batch, and took it for one
/// with many units. Nobody has ever had one of them.
async fn copy_units(
    tx: &mut Tx,
    batches: &HashMap<&str, &Unvalidated>,
) -> Result<Vec<(String, i64)>> {
    let inputs = Rows::of(batches.values().map(|batch| {
        [
            ("batch_id", Value::from(&batch.batch_id)),
            ("file_id", Value::from(&batch.input_file_id)),
        ]
    }));
    let sql = sql!(
        "-- accept_batch_chunks
         WITH {inputs}
         INSERT INTO units ({unit})
         SELECT v.batch_id, c.chunk_no, c.model_no, 'waiting', 0, 0, 0, c.requests,
            c.chunk_bytes, {no_lines}, 0, 0
         FROM v JOIN chunk_models c ON c.file_id = v.file_id WHERE TRUE
         ON CONFLICT (batch_id, chunk_no, model_no) DO UPDATE SET requests = excluded.requests
         RETURNING batch_id, model_no",
        inputs = inputs.table("v", 1, tx.engine()),
        unit = UNIT,
        no_lines = tx.engine().no_bytes()
    );
    Ok(in_tx!(tx, |c| {
        let make = sqlx::query_as(sql).persistent(false);
        bind_rows!(make, inputs).fetch_all(c).await?
    }))
}

/// Makes the units of some chunks of a batch. The range has two ends, so that it costs the same
/// wherever it stands, even where Postgres knows nothing of the table yet.
async fn make_range(tx: &mut Tx, batch: &Unvalidated, chunks: Range<i64>) -> Result<()> {
    let sql = sql!(
        "-- accept_batch_range
         INSERT INTO units ({unit})
         SELECT CAST($1 AS TEXT), chunk_no, model_no, 'waiting', 0, 0, 0, requests,
            chunk_bytes, {no_lines}, 0, 0
         FROM chunk_models WHERE file_id = $2 AND chunk_no >= $3 AND chunk_no < $4",
        unit = UNIT,
        no_lines = tx.engine().no_bytes()
    );
    in_tx!(tx, |c| {
        sqlx::query(sql)
            .bind(&batch.batch_id)
            .bind(&batch.input_file_id)
            .bind(chunks.start)
            .bind(chunks.end)
            .execute(c)
            .await?;
    });
    Ok(())
}

/// Writes the backlog of batches that have all their units.
async fn insert_backlog(tx: &mut Tx, backlog: &[NewBacklog<'_>]) -> Result<()> {
    for backlog in backlog.chunks(ROWS_A_STATEMENT) {
        let rows = Rows::of(backlog.iter().map(|row| {
            [
                ("batch_id", Value::from(row.batch_id)),
                ("model_no", row.model_no.into()),
                ("model", Value::from(row.model)),
                ("waiting", row.waiting.into()),
            ]
        }));
        let sql = sql!(
            "-- insert_backlog\nINSERT INTO backlog ({columns}) VALUES {rows}",
            columns = rows.columns(),
            rows = rows.parameters(1)
        );
        in_tx!(&mut *tx, |c| {
            let insert = sqlx::query(sql).persistent(false);
            bind_rows!(insert, rows).execute(c).await?;
        });
    }
    Ok(())
}

/// The first chunk of which a batch has no units yet.
async fn next_chunk(tx: &mut Tx, batch: &Unvalidated) -> Result<Option<i64>> {
    let (next,): (Option<i64>,) = in_tx!(tx, |c| {
        sqlx::query_as(
            "-- begun_units
             SELECT MIN(chunk_no) FROM chunk_models WHERE file_id = $2 AND chunk_no >
                COALESCE((SELECT MAX(chunk_no) FROM units WHERE batch_id = $1), -1)",
        )
        .bind(&batch.batch_id)
        .bind(&batch.input_file_id)
        .fetch_one(c)
        .await?
    });
    Ok(next)
}

impl NewUnit<'_> {
    /// The unit under its first lease, if it was leased directly.
    fn leased(&self) -> Option<LeasedUnit> {
        self.owner?;
        let key = UnitKey {
            batch_id: self.batch.batch_id.clone(),
            chunk_no: 0,
            model_no: self.model_no,
        };
        let epoch = FIRST_EPOCH;
        Some(LeasedUnit {
            lease: UnitLease { key, epoch },
            flush_no: 0,
            requests: self.requests,
            chunk_bytes: self.chunk_bytes,
            deaths: Deaths::default(),
            done: Bitmap::default(),
            tail: None,
        })
    }
}
