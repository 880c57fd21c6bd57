//! What becomes of usage as it ages: minutes move into their hours, and hours go when their time is
//! over. A row is in one table at any time, so that whoever reads counts it once.

use std::collections::BTreeMap;

use sqlx::FromRow;

use super::add::{COLUMNS, add};
use super::read::Sums;
use crate::domain::totals::Totals;
use crate::store::engine::{Sql, Value, in_tx, on_pool, sql};
use crate::store::{Result, Store};

const HOUR_MS: i64 = 3_600_000;
/// For so long usage is kept by the minute.
const MINUTES_KEPT_MS: i64 = 48 * HOUR_MS;
/// Rows that are moved or removed in one transaction.
const AT_ONCE: i64 = 500;
/// Transactions in one round.
const ROUND: usize = 20;

const MINUTE_KEY: &str = "start, tenant, key_id, model, upstream, task, endpoint, slot";
const HOUR_KEY: &str = "start, tenant, key_id, model, upstream, task, endpoint";

/// A row that leaves the minutes.
#[derive(FromRow)]
struct Minute {
    start: i64,
    tenant: String,
    key_id: String,
    model: String,
    upstream: String,
    task: String,
    endpoint: String,
    #[sqlx(flatten)]
    sums: Sums,
}

impl Store {
    /// Moves rows of minutes that are older than two days into those of their hours. Returns
    /// whether there may be more.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn roll_up_usage(&self) -> Result<bool> {
        let before = (self.now_ms() - MINUTES_KEPT_MS).div_euclid(HOUR_MS) * HOUR_MS;
        for _ in 0..ROUND {
            if self.roll_up(before).await? < AT_ONCE {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves some rows, in one transaction. Returns how many.
    async fn roll_up(&self, before: i64) -> Result<i64> {
        let mut tx = self.begin().await?;
        let sql = sql!(
            "-- roll_up_usage
             WITH old AS MATERIALIZED
                (SELECT {key} FROM usage_minutes WHERE start < $1
                 ORDER BY {key} LIMIT $2 {lock})
             DELETE FROM usage_minutes WHERE ({key}) IN (SELECT * FROM old)
             RETURNING start, tenant, key_id, model, upstream, task, endpoint, {sums}",
            key = MINUTE_KEY,
            lock = tx.engine().for_update(),
            sums = Sql::joined(COLUMNS.map(|name| sql!("{name}", name))),
        );
        let minutes: Vec<Minute> = in_tx!(&mut tx, |c| {
            let taken = sqlx::query_as(sql).bind(before).bind(AT_ONCE);
            taken.fetch_all(c).await?
        });
        let moved = i64::try_from(minutes.len()).unwrap_or(i64::MAX);
        let mut hours: BTreeMap<(i64, [String; 6]), Totals> = BTreeMap::new();
        for minute in minutes {
            let hour = minute.start.div_euclid(HOUR_MS) * HOUR_MS;
            let key = [
                minute.tenant,
                minute.key_id,
                minute.model,
                minute.upstream,
                minute.task,
                minute.endpoint,
            ];
            *hours.entry((hour, key)).or_default() += Totals::from(minute.sums);
        }
        let hours = hours.iter().map(|((hour, key), totals)| {
            let [tenant, key_id, model, upstream, task, endpoint] = key;
            let key = [
                ("start", Value::from(*hour)),
                ("tenant", tenant.into()),
                ("key_id", key_id.into()),
                ("model", model.into()),
                ("upstream", upstream.into()),
                ("task", task.into()),
                ("endpoint", endpoint.into()),
            ];
            (key, totals)
        });
        add(&mut tx, ("usage_hours", HOUR_KEY), hours).await?;
        tx.commit().await?;
        Ok(moved)
    }

    /// Removes what was used before a time. Returns whether there may be more.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn forget_usage(&self, before_ms: i64) -> Result<bool> {
        for _ in 0..ROUND {
            let sql = sql!(
                "-- forget_usage
                 WITH old AS MATERIALIZED
                    (SELECT {key} FROM usage_hours WHERE start < $1
                     ORDER BY {key} LIMIT $2 {lock})
                 DELETE FROM usage_hours WHERE ({key}) IN (SELECT * FROM old)",
                key = HOUR_KEY,
                lock = self.engine().for_update(),
            );
            let removed = on_pool!(self.writer(), |c| {
                let remove = sqlx::query(sql).bind(before_ms).bind(AT_ONCE);
                remove.execute(c).await?.rows_affected()
            });
            if removed < AT_ONCE.unsigned_abs() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
