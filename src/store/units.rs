//! Units: leased and given back.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, FromRow};

use super::backlog::add_waiting;
use super::engine::{on, typed_values, within};
use super::{Result, Store};
use crate::domain::unit::{Bitmap, UnitKey};

/// Units given back in one transaction.
const RELEASED_UNITS_MAX: usize = 500;

/// A unit that this process holds: nobody else writes it while the epoch stands.
#[derive(Clone, Debug)]
pub struct LeasedUnit {
    pub key: UnitKey,
    pub epoch: i64,
    /// How often the unit was flushed, by whomever.
    pub flush_no: i64,
    pub requests: i64,
    pub chunk_bytes: i64,
    /// How often it was taken over from a process that died with it.
    pub takeovers: i64,
    /// What is done already: read by the statement that leases, never from segments.
    pub done: Bitmap,
}

#[derive(FromRow)]
struct Row {
    chunk_no: i64,
    epoch: i64,
    flush_no: i64,
    requests: i64,
    chunk_bytes: i64,
    takeovers: i64,
    done: Vec<u8>,
}

impl Store {
    /// Leases up to `count` waiting units of one model in a batch, the first chunks first.
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
        let sql = format!(
            "-- lease_units
             WITH chosen AS MATERIALIZED (
                SELECT chunk_no FROM units
                WHERE batch_id = $1 AND model_no = $2 AND state = 'waiting'
                ORDER BY chunk_no LIMIT $3 {})
             UPDATE units SET state = 'leased', owner = $4, epoch = epoch + 1
             FROM chosen
             WHERE units.batch_id = $1 AND units.model_no = $2
               AND units.chunk_no = chosen.chunk_no AND units.state = 'waiting'
             RETURNING units.chunk_no, units.epoch, units.flush_no, units.requests,
                units.chunk_bytes, units.takeovers, units.done",
            self.engine().skip_locked()
        );
        let mut tx = self.begin().await?;
        let mut rows: Vec<Row> = within!(&mut tx, c => {
            sqlx::query_as(AssertSqlSafe(sql))
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
                key: UnitKey {
                    batch_id: batch_id.to_owned(),
                    chunk_no: row.chunk_no,
                    model_no,
                },
                epoch: row.epoch,
                flush_no: row.flush_no,
                requests: row.requests,
                chunk_bytes: row.chunk_bytes,
                takeovers: row.takeovers,
                done: Bitmap::from_bytes(row.done),
            })
            .collect())
    }

    /// The units that the store says an owner holds, with their epochs.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leased_units(&self, owner: &str) -> Result<Vec<(UnitKey, i64)>> {
        let rows: Vec<(String, i64, i64, i64)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- leased_units
                 SELECT batch_id, chunk_no, model_no, epoch FROM units
                 WHERE owner = $1 AND state = 'leased'",
            )
            .bind(owner)
            .fetch_all(c)
            .await?
        });
        Ok(rows
            .into_iter()
            .map(|(batch_id, chunk_no, model_no, epoch)| {
                (
                    UnitKey {
                        batch_id,
                        chunk_no,
                        model_no,
                    },
                    epoch,
                )
            })
            .collect())
    }

    /// Gives units back to whoever leases them next. Those that are not this owner's under that
    /// epoch any more are left alone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_units(&self, owner: &str, units: &[(UnitKey, i64)]) -> Result<()> {
        for units in units.chunks(RELEASED_UNITS_MAX) {
            self.release_some(owner, units).await?;
        }
        if !units.is_empty() {
            self.wake();
        }
        Ok(())
    }

    async fn release_some(&self, owner: &str, units: &[(UnitKey, i64)]) -> Result<()> {
        let sql = format!(
            "-- release_units
             WITH v(batch_id, chunk_no, model_no, epoch) AS (VALUES {})
             UPDATE units SET state = 'waiting', owner = NULL
             FROM v
             WHERE units.batch_id = v.batch_id AND units.chunk_no = v.chunk_no
               AND units.model_no = v.model_no AND units.epoch = v.epoch
               AND units.owner = $1 AND units.state = 'leased'
             RETURNING units.batch_id, units.model_no",
            typed_values(2, units.len(), &["TEXT", "BIGINT", "BIGINT", "BIGINT"])
        );
        let mut tx = self.begin().await?;
        let released: Vec<(String, i64)> = within!(&mut tx, c => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false).bind(owner);
            for (key, epoch) in units {
                query = query.bind(&key.batch_id).bind(key.chunk_no).bind(key.model_no).bind(epoch);
            }
            query.fetch_all(c).await?
        });
        for ((batch_id, model_no), count) in tally(released) {
            add_waiting(&mut tx, &batch_id, model_no, count).await?;
        }
        tx.commit().await
    }
}

/// How many units of each batch and model there are, in the order in which backlog rows are
/// locked.
pub(super) fn tally(units: Vec<(String, i64)>) -> BTreeMap<(String, i64), i64> {
    let mut counts = BTreeMap::new();
    for unit in units {
        *counts.entry(unit).or_default() += 1;
    }
    counts
}
