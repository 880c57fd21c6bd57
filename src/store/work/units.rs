//! Leasing, releasing and reclaiming units.

use std::collections::{BTreeMap, HashSet};

use sqlx::FromRow;

use super::backlog::add_waiting;
use super::isolation::{Deaths, LEASE, undo_death};
use crate::codec::segment::Encoded;
use crate::domain::unit::{Bitmap, UnitKey, UnitLease};
use crate::store::engine::{Rows, Tx, Value, bind_rows, in_tx, on_pool, sql};
use crate::store::{Result, Store, Who};

/// Units named in one statement.
const NAMED_UNITS_MAX: usize = 500;

/// A unit that was leased. No other process writes the unit while its epoch is unchanged.
#[derive(Clone, Debug)]
pub struct LeasedUnit {
    pub lease: UnitLease,
    /// How often the unit was flushed, under all its leases.
    pub flush_no: i64,
    pub requests: i64,
    pub chunk_bytes: i64,
    pub deaths: Deaths,
    /// The lines that are done already. The statement that leases the unit reads them, so segments
    /// need not be read.
    pub done: Bitmap,
    /// The finished lines that are in no segment yet.
    pub tail: Option<Encoded>,
}

#[derive(FromRow)]
struct Row {
    chunk_no: i64,
    epoch: i64,
    flush_no: i64,
    requests: i64,
    chunk_bytes: i64,
    takeovers: i64,
    noted_line: Option<i64>,
    crashes: i64,
    done: Vec<u8>,
    tail_entries: Option<Vec<u8>>,
    tail_data: Option<Vec<u8>>,
}

impl Store {
    /// Leases up to `count` waiting units of one model in a batch, the first chunks first. A
    /// replica without a row gets no unit: it has to rejoin first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lease_units(
        &self,
        owner: &str,
        batch_id: &str,
        model_no: i64,
        count: i64,
    ) -> Result<Vec<LeasedUnit>> {
        // The choice is a CTE of its own: a planner may run a limited subquery more than once.
        let sql = sql!(
            "-- lease_units
             WITH chosen AS MATERIALIZED (
                SELECT chunk_no FROM units
                WHERE batch_id = $1 AND model_no = $2 AND state = 'waiting'
                    AND EXISTS (SELECT 1 FROM replicas WHERE token = $4)
                ORDER BY chunk_no LIMIT $3 {lock})
             UPDATE units SET state = 'leased', owner = $4, epoch = epoch + 1,
                {lease}
             FROM chosen
             WHERE units.batch_id = $1 AND units.model_no = $2
               AND units.chunk_no = chosen.chunk_no AND units.state = 'waiting'
             RETURNING units.chunk_no, units.epoch, units.flush_no, units.requests,
                units.chunk_bytes, units.takeovers, units.noted_line, units.crashes, units.done,
                units.tail_entries, units.tail_data",
            lock = self.engine().skip_locked(),
            lease = LEASE
        );
        let mut tx = self.begin().await?;
        let mut rows: Vec<Row> = in_tx!(&mut tx, |c| {
            sqlx::query_as(sql)
                .bind(batch_id)
                .bind(model_no)
                .bind(count)
                .bind(owner)
                .fetch_all(c)
                .await?
        });
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        add_waiting(&mut tx, batch_id, model_no, -(rows.len() as i64)).await?;
        tx.commit().await?;
        rows.sort_by_key(|row| row.chunk_no);
        Ok(rows
            .into_iter()
            .map(|row| LeasedUnit {
                lease: UnitLease {
                    key: UnitKey {
                        batch_id: batch_id.to_owned(),
                        chunk_no: row.chunk_no,
                        model_no,
                    },
                    epoch: row.epoch,
                },
                flush_no: row.flush_no,
                requests: row.requests,
                chunk_bytes: row.chunk_bytes,
                deaths: Deaths {
                    owners: row.takeovers,
                    recorded_line: row.noted_line,
                    alone: row.crashes,
                },
                done: Bitmap::from_bytes(row.done),
                tail: tail_of(row.tail_entries, row.tail_data),
            })
            .collect())
    }

    /// The units that an owner holds, according to the store.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leased_units(&self, owner: &str) -> Result<Vec<UnitLease>> {
        let rows: Vec<LeaseRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(LEASED_UNITS)
                .bind(owner)
                .fetch_all(c)
                .await?
        });
        Ok(rows.into_iter().map(into_lease).collect())
    }

    /// Reclaims units that were taken over but not leased again. Returns the units that this owner
    /// has lost.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reclaim_units(&self, owner: &str, units: &[UnitLease]) -> Result<Vec<UnitLease>> {
        let mut tx = self.begin().await?;
        let lost = keep(&mut tx, owner, units).await?;
        tx.commit().await?;
        Ok(lost)
    }

    /// Releases units, so that any process can lease them. A unit that this owner has lost is left
    /// alone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_units(&self, owner: &str, units: &[UnitLease]) -> Result<()> {
        for units in units.chunks(NAMED_UNITS_MAX) {
            self.release_some(owner, units).await?;
        }
        if !units.is_empty() {
            self.wake_all(Who::Supplies);
        }
        Ok(())
    }

    async fn release_some(&self, owner: &str, units: &[UnitLease]) -> Result<()> {
        let rows = rows(units);
        let sql = sql!(
            "-- release_units
             WITH {released}
             UPDATE units SET state = 'waiting', owner = NULL
             FROM v
             WHERE units.batch_id = v.batch_id AND units.chunk_no = v.chunk_no
               AND units.model_no = v.model_no AND units.epoch = v.epoch
               AND units.owner = $1 AND units.state = 'leased'
             RETURNING units.batch_id, units.model_no",
            released = rows.table("v", 2, self.engine())
        );
        let mut tx = self.begin().await?;
        let released: Vec<(String, i64)> = in_tx!(&mut tx, |c| {
            let release = sqlx::query_as(sql).persistent(false).bind(owner);
            bind_rows!(release, rows).fetch_all(c).await?
        });
        for ((batch_id, model_no), count) in count_by_model(released) {
            add_waiting(&mut tx, &batch_id, model_no, count).await?;
        }
        tx.commit().await
    }
}

/// The tail in a unit's row, if it has one.
pub(in crate::store) fn tail_of(
    entries: Option<Vec<u8>>,
    data: Option<Vec<u8>>,
) -> Option<Encoded> {
    let (entries, data) = entries.zip(data)?;
    Some(Encoded { entries, data })
}

/// How a statement names units under their leases.
fn rows(units: &[UnitLease]) -> Rows<'_> {
    Rows::of(units.iter().map(|unit| {
        [
            ("batch_id", Value::from(&unit.key.batch_id)),
            ("chunk_no", unit.key.chunk_no.into()),
            ("model_no", unit.key.model_no.into()),
            ("epoch", unit.epoch.into()),
        ]
    }))
}

type LeaseRow = (String, i64, i64, i64);

const LEASED_UNITS: &str = "-- leased_units
    SELECT batch_id, chunk_no, model_no, epoch FROM units WHERE owner = $1 AND state = 'leased'";

pub(in crate::store) fn into_lease((batch_id, chunk_no, model_no, epoch): LeaseRow) -> UnitLease {
    let key = UnitKey {
        batch_id,
        chunk_no,
        model_no,
    };
    UnitLease { key, epoch }
}

/// Reclaims these units where that is possible. Returns the units that this owner has lost.
pub(in crate::store) async fn keep(
    tx: &mut Tx,
    owner: &str,
    units: &[UnitLease],
) -> Result<Vec<UnitLease>> {
    reclaim(tx, owner, units).await?;
    let rows: Vec<LeaseRow> = in_tx!(tx, |c| {
        sqlx::query_as(LEASED_UNITS)
            .bind(owner)
            .fetch_all(c)
            .await?
    });
    let ours: HashSet<UnitLease> = rows.into_iter().map(into_lease).collect();
    let lost = units.iter().filter(|unit| !ours.contains(unit));
    Ok(lost.cloned().collect())
}

/// Leases units to their last owner again, under the same epoch. The units were taken over but not
/// leased again, so no other process can have sent or written anything of them. The take-over is
/// not counted as a death, because the owner lives. Returns the units that were reclaimed.
pub(in crate::store) async fn reclaim(
    tx: &mut Tx,
    owner: &str,
    units: &[UnitLease],
) -> Result<HashSet<UnitLease>> {
    let mut reclaimed = HashSet::new();
    for units in units.chunks(NAMED_UNITS_MAX) {
        let rows = rows(units);
        let sql = sql!(
            "-- reclaim_units
             WITH {claimed}
             UPDATE units SET state = 'leased', {undo_death}
             FROM v
             WHERE units.batch_id = v.batch_id AND units.chunk_no = v.chunk_no
               AND units.model_no = v.model_no AND units.epoch = v.epoch
               AND units.owner = $1 AND units.state = 'waiting'
             RETURNING units.batch_id, units.chunk_no, units.model_no, units.epoch",
            claimed = rows.table("v", 2, tx.engine()),
            undo_death = undo_death()
        );
        let rows: Vec<LeaseRow> = in_tx!(&mut *tx, |c| {
            let reclaim = sqlx::query_as(sql).persistent(false).bind(owner);
            bind_rows!(reclaim, rows).fetch_all(c).await?
        });
        reclaimed.extend(rows.into_iter().map(into_lease));
    }
    let backlogs = reclaimed
        .iter()
        .map(|unit| (unit.key.batch_id.clone(), unit.key.model_no));
    for ((batch_id, model_no), units) in count_by_model(backlogs.collect()) {
        add_waiting(tx, &batch_id, model_no, -units).await?;
    }
    Ok(reclaimed)
}

/// Counts units by batch and model, in the order in which backlog rows are locked.
pub(in crate::store) fn count_by_model(units: Vec<(String, i64)>) -> BTreeMap<(String, i64), i64> {
    let mut counts = BTreeMap::new();
    for unit in units {
        *counts.entry(unit).or_default() += 1;
    }
    counts
}
