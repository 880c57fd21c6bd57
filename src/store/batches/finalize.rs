//! Bringing a batch to its end once all its lines are done: its files are published, and its units
//! are removed.
//!
//! Queries over live batches repeat the condition of their partial index word for word: SQLite
//! uses it only then.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::FromRow;

use super::batch::{COUNT_COLUMNS, CountsSum};
use super::counts::take_counts;
use super::state::{self, Changed, FoundBatch};
use crate::domain::batch::{BatchState, Counts, Event, Status};
use crate::domain::file::{Kind, Purpose};
use crate::domain::id;
use crate::store::each::each;
use crate::store::engine::{Rows, Tx, Value, bind_each, bind_rows, in_tx, list, on_pool, sql};
use crate::store::files::encode_sizes;
use crate::store::{Result, Store};

/// Batches looked at in one round, and brought to their end in one transaction at most.
const ROUND: i64 = 100;
/// Units removed in one transaction: in the one that publishes their batches, and in each later
/// one.
const REMOVED_UNITS_MAX: i64 = 500;
/// Lines that the batches of one transaction have together, where it has more than one batch. The
/// table of an output file's chunks grows with them.
const LINES_PER_GROUP: i64 = 50_000;

/// Whether no unit of a batch `b` is open. Units that wait are in the backlog, which is short and
/// is asked first. On Postgres the units' index has the entries of all units that were open until a
/// vacuum has passed, and each look would pass them all.
const NONE_OPEN: &str = "CASE
    WHEN EXISTS (SELECT 1 FROM backlog w WHERE w.batch_id = b.id AND w.waiting > 0) THEN FALSE
    ELSE NOT EXISTS (SELECT 1 FROM units u WHERE u.batch_id = b.id AND u.state <> 'done') END";
/// Batches named in one statement.
const NAMED_BATCHES_MAX: usize = 500;

/// The outcome of an attempt to end a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalized {
    Ended,
    /// The batch has open units, or has ended already.
    NotYet,
    /// Another transaction has locked the batch's row, to end the batch or to cancel it.
    Busy,
}

/// A batch with nothing left to run, and how many lines it has.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Drained {
    pub id: String,
    pub total: i64,
}

impl Drained {
    /// Divides batches into groups that are ended by one transaction each.
    #[must_use]
    pub fn into_groups(drained: Vec<Drained>) -> Vec<Vec<String>> {
        let mut groups: Vec<Vec<String>> = Vec::new();
        let mut lines = 0;
        for Drained { id, total } in drained {
            lines += total;
            match groups.last_mut() {
                Some(group) if lines <= LINES_PER_GROUP && group.len() < ROUND as usize => {
                    group.push(id);
                }
                _ => {
                    lines = total;
                    groups.push(vec![id]);
                }
            }
        }
        groups
    }
}

/// A file of a batch that is published.
struct NewFile<'a> {
    id: &'a str,
    batch_id: &'a str,
    kind: Kind,
    /// How many bytes each chunk gave.
    sizes: &'a [(i64, i64)],
}

/// A batch whose only unit is written at once, and what it leaves.
pub(in crate::store) struct WholeBatch<'a> {
    pub id: &'a str,
    pub chunk_no: i64,
    /// Raw bytes of the output and of the error file.
    pub bytes: [i64; 2],
    pub counts: CountsSum,
    pub total: i64,
}

/// What the units of a batch say when none is open.
#[derive(Default)]
struct UnitSums {
    units: i64,
    open: i64,
    /// Of each kind, how many bytes each chunk gave: chunks that gave some.
    sizes: [Vec<(i64, i64)>; 2],
}

/// A batch that is brought to its end.
struct Ending {
    found: FoundBatch,
    sums: UnitSums,
    counts: CountsSum,
    /// The ids of the output and the error file. A file of no bytes is not made.
    files: [Option<String>; 2],
}

const KINDS: [Kind; 2] = [Kind::Output, Kind::Error];

impl Store {
    /// Batches with nothing left to run that are not ended yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drained(&self) -> Result<Vec<Drained>> {
        let sql = sql!(
            "-- drained
             SELECT id, total FROM batches b
             WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
               AND status <> 'validating' AND {none_open}
             LIMIT $1",
            none_open = NONE_OPEN
        );
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(sql).bind(ROUND).fetch_all(c).await?
        }))
    }

    /// Which of these batches have nothing left to run, and are not ended yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drained_of(&self, batches: &BTreeSet<String>) -> Result<Vec<Drained>> {
        let batches: Vec<&String> = batches.iter().collect();
        let mut drained = Vec::new();
        for batches in batches.chunks(NAMED_BATCHES_MAX) {
            let sql = sql!(
                "-- drained_of
                 SELECT id, total FROM batches b
                 WHERE id IN {ids} AND status IN ('in_progress', 'finalizing', 'cancelling')
                   AND {none_open}",
                ids = list(1, batches.len()),
                none_open = NONE_OPEN
            );
            let rows: Vec<Drained> = on_pool!(self.reader(), |c| {
                let look = sqlx::query_as(sql).persistent(false);
                bind_each!(look, batches.iter().copied())
                    .fetch_all(c)
                    .await?
            });
            drained.extend(rows);
        }
        Ok(drained)
    }

    /// Brings a drained batch to its end. Repeating it changes nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finalize_batch(&self, batch_id: &str) -> Result<Finalized> {
        let outcomes = self.finalize_batches(&[batch_id]).await?;
        Ok(outcomes.first().copied().unwrap_or(Finalized::Busy))
    }

    /// Brings drained batches to their end, in one transaction: their files and their last status.
    /// A batch that ran to completion is `finalizing` within the transaction. Repeating it changes
    /// nothing. Returns the outcome for each batch, in their order.
    ///
    /// # Errors
    /// When the database fails: then none is ended.
    pub async fn finalize_batches(&self, ids: &[&str]) -> Result<Vec<Finalized>> {
        let mut tx = self.begin().await?;
        // The batches' rows are locked first: then nobody else is about to end the batches.
        let found = state::lock_all(&mut tx, ids).await?;
        let locked: BTreeSet<String> = found.iter().map(|found| found.batch.id.clone()).collect();
        let mut endings = find_endings(&mut tx, found).await?;
        let units = endings
            .iter()
            .map(|one| (&*one.found.batch.id, one.sums.units));
        let (now, later) = removed_with(units);
        let (now, later) = (owned(now), owned(later));
        let mut changed = Vec::new();
        if !endings.is_empty() {
            self.publish_files(&mut tx, &new_files(&endings)).await?;
            let ids: Vec<&str> = endings.iter().map(|one| &*one.found.batch.id).collect();
            // All lines are counted, because every unit is done.
            let mut counts = take_counts(&mut tx, &ids).await?;
            for ending in &mut endings {
                ending.counts = counts.remove(&ending.found.batch.id).unwrap_or_default();
            }
            changed = self.end(&mut tx, &endings).await?;
            let ended: Vec<&str> = endings.iter().map(|one| &*one.found.batch.id).collect();
            remove_few_units(&mut tx, &now).await?;
            remove_backlog(&mut tx, &ended).await?;
            tx.commit().await?;
        }
        let counts: BTreeMap<&str, Counts> = endings
            .iter()
            .map(|one| (&*one.found.batch.id, one.counts.counts(one.found.total)))
            .collect();
        for changed in changed {
            let counts = counts.get(changed.batch_id()).copied();
            changed.with_counts(counts).announce();
        }
        for batch_id in &later {
            self.remove_units(batch_id).await?;
        }
        let outcomes = ids.iter().map(|id| {
            if counts.contains_key(id) {
                Finalized::Ended
            } else if locked.contains(*id) {
                Finalized::NotYet
            } else {
                Finalized::Busy
            }
        });
        Ok(outcomes.collect())
    }

    /// Brings batches to their end whose only units a transaction writes: those that run, are not
    /// being ended, and whose rows are free. Returns these batches. Their units, and then their
    /// backlog, are the caller's to remove.
    pub(in crate::store) async fn end_whole(
        &self,
        tx: &mut Tx,
        batches: &[WholeBatch<'_>],
    ) -> Result<Vec<Changed>> {
        let files: Vec<[Option<String>; 2]> = batches
            .iter()
            .map(|batch| batch.bytes.map(|bytes| (bytes > 0).then(id::file)))
            .collect();
        let steps = batches.iter().zip(&files).map(|(batch, files)| {
            let files = [&files[0], &files[1]];
            (batch.id, end_columns(files, &batch.counts))
        });
        let from = BatchState {
            status: Status::InProgress,
            end_reason: None,
        };
        let (events, now) = ([Event::Drained, Event::Published], self.now_ms());
        let steps: Vec<_> = steps.collect();
        let changed = state::advance_free(tx, from, &events, now, &steps).await?;
        let ours: BTreeSet<&str> = changed.iter().map(Changed::batch_id).collect();
        let ended = batches.iter().zip(&files);
        let ended = ended.filter(|(batch, _)| ours.contains(batch.id));
        let sizes: Vec<[[(i64, i64); 1]; 2]> = ended
            .clone()
            .map(|(batch, _)| batch.bytes.map(|bytes| [(batch.chunk_no, bytes)]))
            .collect();
        let new_files = ended
            .clone()
            .zip(&sizes)
            .flat_map(|((batch, files), sizes)| {
                let files = files.iter().zip(KINDS).zip(sizes);
                files.filter_map(|((id, kind), sizes)| {
                    Some(NewFile {
                        id: id.as_deref()?,
                        batch_id: batch.id,
                        kind,
                        sizes,
                    })
                })
            });
        self.publish_files(tx, &new_files.collect::<Vec<_>>())
            .await?;
        let counts: BTreeMap<&str, Counts> = ended
            .map(|(batch, _)| (batch.id, batch.counts.counts(batch.total)))
            .collect();
        let with_counts = changed.into_iter().map(|changed| {
            let counts = counts.get(changed.batch_id()).copied();
            changed.with_counts(counts)
        });
        Ok(with_counts.collect())
    }

    /// Moves batches to their last status, by a statement for each state that they are in.
    async fn end(&self, tx: &mut Tx, endings: &[Ending]) -> Result<Vec<Changed>> {
        let mut by_state: Vec<(BatchState, Vec<&Ending>)> = Vec::new();
        for ending in endings {
            let state = ending.found.batch.state;
            match by_state.iter_mut().find(|(of, _)| *of == state) {
                Some((_, endings)) => endings.push(ending),
                None => by_state.push((state, vec![ending])),
            }
        }
        let (events, now) = ([Event::Drained, Event::Published], self.now_ms());
        let mut changed = Vec::new();
        for (_, endings) in by_state {
            let steps: Vec<_> = endings
                .into_iter()
                .map(|ending| {
                    let files = [&ending.files[0], &ending.files[1]];
                    (&ending.found.batch, end_columns(files, &ending.counts))
                })
                .collect();
            changed.extend(state::advance_all(tx, &events, now, &steps).await?);
        }
        Ok(changed)
    }

    /// Writes the rows of output and error files, each with how many of its bytes every chunk gave,
    /// so that a range can be found.
    async fn publish_files(&self, tx: &mut Tx, files: &[NewFile<'_>]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let tables: Vec<Vec<u8>> = files.iter().map(|file| encode_sizes(file.sizes)).collect();
        let rows = Rows::of(files.iter().zip(&tables).map(|(file, sizes)| {
            let name = match file.kind {
                Kind::Output => "output",
                Kind::Error => "error",
            };
            let bytes = file.sizes.iter().map(|&(_, bytes)| bytes).sum::<i64>();
            [
                ("id", Value::from(file.id)),
                ("purpose", Purpose::BatchOutput.as_str().into()),
                ("filename", format!("{}_{name}.jsonl", file.batch_id).into()),
                ("bytes", bytes.into()),
                ("kind", name.into()),
                ("chunk_sizes", Value::from(sizes)),
                ("batch_id", file.batch_id.into()),
            ]
        }));
        let insert = sql!(
            "-- publish_files
             WITH {files}
             INSERT INTO files ({columns}, tenant, created_at, expires_at, state, touched_at)
             SELECT v.*, b.tenant, {now},
                CASE WHEN b.output_expires_seconds > 0
                    THEN {now} + b.output_expires_seconds * 1000 END,
                'ready', {now}
             FROM v JOIN batches b ON b.id = v.batch_id",
            files = rows.table("v", 2, tx.engine()),
            columns = rows.columns(),
            now = self.now_sql(1)
        );
        let is_usual = files.len() == 1;
        in_tx!(tx, |c| {
            let insert = sqlx::query(insert).persistent(is_usual);
            let insert = insert.bind(self.offset_ms());
            bind_rows!(insert, rows).execute(c).await?;
        });
        Ok(())
    }

    /// Removes units of batches that have ended: of a batch whose process died before it removed
    /// them, or of a batch that ended while its units were being made.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn sweep_units(&self) -> Result<()> {
        let ended: Vec<(String,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                // From batch to batch along the index: as many steps as there are batches, not
                // units.
                "-- sweep_units
                 WITH RECURSIVE kept(batch_id) AS (
                    SELECT MIN(batch_id) FROM units
                    UNION ALL
                    SELECT (SELECT MIN(batch_id) FROM units WHERE batch_id > kept.batch_id)
                    FROM kept WHERE kept.batch_id IS NOT NULL)
                 SELECT b.id FROM kept JOIN batches b ON b.id = kept.batch_id
                 WHERE b.status IN ('completed', 'expired', 'cancelled', 'failed') LIMIT $1",
            )
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        each(
            "sweep_units",
            &ended,
            |(id,)| id,
            |(id,)| self.remove_units(id),
        )
        .await?;
        Ok(())
    }

    /// Removes the units of a batch that has ended, in small transactions. All of them are done, or
    /// the batch ended before it ran. No unit is made after a batch's end.
    async fn remove_units(&self, batch_id: &str) -> Result<()> {
        // Locked in the order of their keys: several processes may do this at once.
        let sql = sql!(
            "-- remove_units
             WITH chosen AS MATERIALIZED
                (SELECT chunk_no, model_no FROM units
                 WHERE batch_id = $1 AND chunk_no >= $3 AND EXISTS
                    (SELECT 1 FROM batches WHERE id = $1
                        AND status IN ('completed', 'expired', 'cancelled', 'failed'))
                 ORDER BY chunk_no, model_no LIMIT $2 {lock})
             DELETE FROM units
             WHERE batch_id = $1 AND (chunk_no, model_no) IN (SELECT * FROM chosen)
             RETURNING chunk_no",
            lock = self.engine().for_update()
        );
        // From where the last statement came to: on Postgres the index has the entries of removed
        // rows until a vacuum has passed.
        let mut from = 0;
        loop {
            let removed: Vec<(i64,)> = on_pool!(self.writer(), |c| {
                sqlx::query_as(sql.clone())
                    .bind(batch_id)
                    .bind(REMOVED_UNITS_MAX)
                    .bind(from)
                    .fetch_all(c)
                    .await?
            });
            // Fewer were removed also where another process removes the same units. The sweep
            // removes what both leave.
            if removed.len() < REMOVED_UNITS_MAX as usize {
                return Ok(());
            }
            from = removed
                .into_iter()
                .map(|(chunk,)| chunk)
                .max()
                .unwrap_or(from);
        }
    }
}

/// How many columns [`end_columns`] has.
const END_COLUMNS: usize = COUNT_COLUMNS + 2;

/// What the last step of a batch writes: the ids of its two files, and its counts.
fn end_columns<'a>(
    [output, error]: [&'a Option<String>; 2],
    counts: &CountsSum,
) -> [(&'static str, Value<'a>); END_COLUMNS] {
    let [c, f, x, input, cached, out, reasoning, total] = counts.columns();
    let output = ("output_file_id", Value::from(output));
    let error = ("error_file_id", Value::from(error));
    [output, error, c, f, x, input, cached, out, reasoning, total]
}

/// The files that batches are to have.
fn new_files(endings: &[Ending]) -> Vec<NewFile<'_>> {
    let files = endings.iter().flat_map(|ending| {
        let files = ending.files.iter().zip(KINDS).zip(&ending.sums.sizes);
        files.filter_map(|((id, kind), sizes)| {
            Some(NewFile {
                id: id.as_deref()?,
                batch_id: &ending.found.batch.id,
                kind,
                sizes,
            })
        })
    });
    files.collect()
}

/// Which of these batches can be brought to their end: no unit is open, and the batch runs.
async fn find_endings(tx: &mut Tx, found: Vec<FoundBatch>) -> Result<Vec<Ending>> {
    let is_live = |found: &FoundBatch| !found.batch.state.status.is_terminal();
    let found: Vec<FoundBatch> = found.into_iter().filter(is_live).collect();
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = found.iter().map(|found| &*found.batch.id).collect();
    let mut sums = unit_sums(tx, &ids).await?;
    let endings = found.into_iter().filter_map(|found| {
        let sums = sums.remove(&found.batch.id).unwrap_or_default();
        let state = found.batch.state;
        let state = state.after(Event::Drained).unwrap_or(state);
        // No unit is open, and none that is done is opened again. A batch that does not run yet
        // has no end.
        if sums.open > 0 || state.after(Event::Published).is_none() {
            return None;
        }
        let file = |kind: usize| (!sums.sizes[kind].is_empty()).then(id::file);
        Some(Ending {
            files: [file(0), file(1)],
            found,
            sums,
            counts: CountsSum::default(),
        })
    });
    Ok(endings.collect())
}

/// What the units of batches say, by batch.
async fn unit_sums(tx: &mut Tx, ids: &[&str]) -> Result<BTreeMap<String, UnitSums>> {
    let sql = sql!(
        "-- unit_sums
         SELECT batch_id, chunk_no, COUNT(*),
            CAST(SUM(CASE WHEN state = 'done' THEN 0 ELSE 1 END) AS BIGINT),
            CAST(SUM(output_bytes) AS BIGINT), CAST(SUM(error_bytes) AS BIGINT)
         FROM units WHERE batch_id IN {ids} GROUP BY batch_id, chunk_no
         ORDER BY batch_id, chunk_no",
        ids = list(1, ids.len())
    );
    let is_usual = ids.len() == 1;
    let rows: Vec<(String, i64, i64, i64, i64, i64)> = in_tx!(tx, |c| {
        let read = sqlx::query_as(sql).persistent(is_usual);
        bind_each!(read, ids.iter().copied()).fetch_all(c).await?
    });
    let mut sums: BTreeMap<String, UnitSums> = BTreeMap::new();
    for (batch_id, chunk, units, open, output, error) in rows {
        let of_batch = sums.entry(batch_id).or_default();
        of_batch.units += units;
        of_batch.open += open;
        for (sizes, bytes) in of_batch.sizes.iter_mut().zip([output, error]) {
            if bytes > 0 {
                sizes.push((chunk, bytes));
            }
        }
    }
    Ok(sums)
}

/// Divides batches that end by how many units they have: those whose units are removed with the
/// batches' end, and those whose units are removed later.
fn removed_with<'a>(
    batches: impl IntoIterator<Item = (&'a str, i64)>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut now, mut later, mut left) = (Vec::new(), Vec::new(), REMOVED_UNITS_MAX);
    for (batch_id, units) in batches {
        if units <= left {
            left -= units;
            now.push(batch_id);
        } else {
            later.push(batch_id);
        }
    }
    (now, later)
}

fn owned(ids: Vec<&str>) -> Vec<String> {
    ids.into_iter().map(str::to_owned).collect()
}

/// Removes the backlog of batches that end. Their units are removed before: all transactions lock
/// units before backlog rows.
pub(in crate::store) async fn remove_backlog(tx: &mut Tx, ids: &[&str]) -> Result<()> {
    let sql = sql!(
        "-- remove_backlog\nDELETE FROM backlog WHERE batch_id IN {ids}",
        ids = list(1, ids.len())
    );
    let is_usual = ids.len() == 1;
    in_tx!(tx, |c| {
        let remove = sqlx::query(sql).persistent(is_usual);
        bind_each!(remove, ids.iter().copied()).execute(c).await?;
    });
    Ok(())
}

/// Removes the units of batches that end, where they are few.
async fn remove_few_units(tx: &mut Tx, ids: &[String]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let sql = sql!(
        "-- remove_few_units\nDELETE FROM units WHERE batch_id IN {ids}",
        ids = list(1, ids.len())
    );
    let is_usual = ids.len() == 1;
    in_tx!(tx, |c| {
        let remove = sqlx::query(sql).persistent(is_usual);
        bind_each!(remove, ids).execute(c).await?;
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{REMOVED_UNITS_MAX, removed_with};

    #[test]
    fn few_units_are_removed_with_the_end_of_however_many_batches() {
        let ids: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let batches = ids.iter().map(|id| (&**id, 499));
        let (now, later) = removed_with(batches);
        assert_eq!((now.len(), later.len()), (1, 99));
        let batches = [("large", REMOVED_UNITS_MAX + 1), ("a", 1), ("b", 0)];
        assert_eq!(removed_with(batches), (vec!["a", "b"], vec!["large"]));
        let batches = ids.iter().map(|id| (&**id, 1));
        assert_eq!(removed_with(batches).1, Vec::<&str>::new());
    }
}
