//! How a batch goes: what the processes that work on it tell, and what it has used by model and
//! upstream.

use sqlx::FromRow;

use crate::domain::price::Cost;
use crate::domain::totals::Totals;
use crate::domain::usage::Usage;
use crate::store::engine::{Rows, Value, bind_each, bind_rows, list, on_pool, sql};
use crate::store::{Result, Store};

/// Rows that one statement writes.
const ROWS_A_STATEMENT: usize = 1_000;
/// For so long what a process tells is true, in milliseconds.
const TRUE_FOR_MS: i64 = 10_000;

/// What a process tells of a batch that it works on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    pub batch_id: String,
    /// Lines in flight.
    pub in_flight: i64,
    /// Lines and tokens a second, at the pace of the last minute.
    pub lines_per_second: f64,
    pub tokens_per_second: f64,
    /// What lines wait for, in words. `None`: nothing holds them up.
    pub waits_for: Option<String>,
}

/// What a part of a batch's lines has used.
#[derive(Clone, Debug)]
pub struct UsedPart {
    pub model: String,
    pub upstream: String,
    pub totals: Totals,
}

#[derive(FromRow)]
struct ToldRow {
    in_flight: i64,
    lines: i64,
    tokens: i64,
    waits_for: Option<String>,
}

#[derive(FromRow)]
struct UsedRow {
    model: String,
    upstream: String,
    requests: i64,
    failed: i64,
    retries: i64,
    lost: i64,
    reused: i64,
    unpriced: i64,
    input_tokens: i64,
    cached_tokens: i64,
    cache_written_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
    cost: i64,
    cost_rest: i64,
    latency_ms: i64,
}

impl Store {
    /// Tells of the batches that a process works on.
    ///
    /// # Errors
    /// When the database fails, or the process has no lease.
    pub async fn tell_progress(&self, token: &str, told: &[Told]) -> Result<()> {
        for told in told.chunks(ROWS_A_STATEMENT) {
            let rows = Rows::of(told.iter().map(|one| {
                [
                    ("token", Value::from(token)),
                    ("batch_id", Value::from(&one.batch_id)),
                    ("in_flight", one.in_flight.into()),
                    ("lines", thousandths(one.lines_per_second).into()),
                    ("tokens", thousandths(one.tokens_per_second).into()),
                    ("waits_for", Value::from(&one.waits_for)),
                ]
            }));
            let sql = sql!(
                "-- tell_progress
                 WITH {told}
                 INSERT INTO batch_progress ({columns}, told_at)
                 SELECT v.*, {now} FROM v WHERE TRUE
                 ON CONFLICT (token, batch_id) DO UPDATE SET told_at = excluded.told_at,
                    in_flight = excluded.in_flight, lines = excluded.lines,
                    tokens = excluded.tokens, waits_for = excluded.waits_for",
                told = rows.table("v", 2, self.engine()),
                columns = rows.columns(),
                now = self.now_sql(1)
            );
            on_pool!(self.writer(), |c| {
                let tell = sqlx::query(sql).persistent(false).bind(self.offset_ms());
                bind_rows!(tell, rows).execute(c).await?;
            });
        }
        Ok(())
    }

    /// Takes back what a process told of these batches: it works on them no more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_progress(&self, token: &str, batches: &[String]) -> Result<()> {
        for batches in batches.chunks(ROWS_A_STATEMENT) {
            let sql = sql!(
                "-- forget_progress
                 DELETE FROM batch_progress WHERE token = $1 AND batch_id IN {batches}",
                batches = list(2, batches.len())
            );
            on_pool!(self.writer(), |c| {
                let forget = sqlx::query(sql).persistent(false).bind(token);
                bind_each!(forget, batches).execute(c).await?;
            });
        }
        Ok(())
    }

    /// What the processes that work on a batch tell of it together.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn told_of_batch(&self, id: &str) -> Result<Vec<Told>> {
        let sql = sql!(
            "-- told_of_batch
             SELECT in_flight, lines, tokens, waits_for FROM batch_progress
             WHERE batch_id = $2 AND told_at > {now} - {TRUE_FOR_MS}",
            now = self.now_sql(1),
            TRUE_FOR_MS
        );
        let rows: Vec<ToldRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(self.offset_ms())
                .bind(id)
                .fetch_all(c)
                .await?
        });
        let told = rows.into_iter().map(|row| Told {
            batch_id: id.to_owned(),
            in_flight: row.in_flight,
            lines_per_second: row.lines as f64 / 1_000.0,
            tokens_per_second: row.tokens as f64 / 1_000.0,
            waits_for: row.waits_for,
        });
        Ok(told.collect())
    }

    /// What a batch has used so far, by model and upstream.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn used_by_batch(&self, id: &str) -> Result<Vec<UsedPart>> {
        let rows: Vec<UsedRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- used_by_batch
                 SELECT model, upstream,
                    CAST(SUM(requests) AS BIGINT) AS requests,
                    CAST(SUM(failed) AS BIGINT) AS failed,
                    CAST(SUM(retries) AS BIGINT) AS retries,
                    CAST(SUM(lost) AS BIGINT) AS lost,
                    CAST(SUM(reused) AS BIGINT) AS reused,
                    CAST(SUM(unpriced) AS BIGINT) AS unpriced,
                    CAST(SUM(input_tokens) AS BIGINT) AS input_tokens,
                    CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens,
                    CAST(SUM(cache_written_tokens) AS BIGINT) AS cache_written_tokens,
                    CAST(SUM(output_tokens) AS BIGINT) AS output_tokens,
                    CAST(SUM(reasoning_tokens) AS BIGINT) AS reasoning_tokens,
                    CAST(SUM(cost) AS BIGINT) AS cost,
                    CAST(SUM(cost_rest) AS BIGINT) AS cost_rest,
                    CAST(SUM(latency_ms) AS BIGINT) AS latency_ms
                 FROM usage_batches WHERE batch_id = $1
                 GROUP BY model, upstream ORDER BY model, upstream",
            )
            .bind(id)
            .fetch_all(c)
            .await?
        });
        Ok(rows.into_iter().map(UsedPart::from).collect())
    }
}

impl From<UsedRow> for UsedPart {
    fn from(row: UsedRow) -> Self {
        Self {
            model: row.model,
            upstream: row.upstream,
            totals: Totals {
                requests: row.requests,
                failed: row.failed,
                retries: row.retries,
                lost: row.lost,
                reused: row.reused,
                unpriced: row.unpriced,
                usage: Usage {
                    input_tokens: row.input_tokens,
                    cached_tokens: row.cached_tokens,
                    cache_written_tokens: row.cache_written_tokens,
                    output_tokens: row.output_tokens,
                    reasoning_tokens: row.reasoning_tokens,
                    total_tokens: row.input_tokens + row.output_tokens,
                },
                cost: Cost::of_parts([row.cost, row.cost_rest]),
                latency_ms: row.latency_ms,
            },
        }
    }
}

fn thousandths(rate: f64) -> i64 {
    (rate * 1_000.0).round() as i64
}
