//! What a flush adds to usage, in the flush's transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::totals::Totals;
use crate::store::Result;
use crate::store::engine::{Rows, Sql, Tx, Value, bind_rows, in_tx, sql};

const MINUTE_MS: i64 = 60_000;
/// Rows that one statement writes. SQLite takes 32,766 values.
const ROWS_PER_STATEMENT: usize = 500;

/// By what usage is told apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsageKey {
    pub tenant: Arc<str>,
    /// Of the key that the batch was created with. Empty: there was none.
    pub key_id: Arc<str>,
    /// The public name. Empty: the lines name none.
    pub model: Arc<str>,
    pub upstream: Arc<str>,
    /// The batch's. Empty: it has none.
    pub task: Arc<str>,
    /// Its path.
    pub endpoint: &'static str,
}

/// What lines and their calls add up to, by where the calls were made.
#[derive(Clone, Debug)]
pub struct Used {
    pub by: UsageKey,
    pub totals: Totals,
}

/// Adds what the units of batches used to the rows of this minute and to those of their batches.
/// The rows are locked in the order of their keys, those of minutes first.
pub(in crate::store) async fn add_usage<'u>(
    tx: &mut Tx,
    (now_ms, slot): (i64, i64),
    used: impl Iterator<Item = (&'u str, &'u [Used])>,
) -> Result<()> {
    let mut by_key: BTreeMap<&UsageKey, Totals> = BTreeMap::new();
    let mut by_batch: BTreeMap<(&str, &str, &str), Totals> = BTreeMap::new();
    for (batch_id, used) in used {
        for Used { by, totals } in used {
            *by_key.entry(by).or_default() += *totals;
            let of_batch = (batch_id, &*by.model, &*by.upstream);
            *by_batch.entry(of_batch).or_default() += *totals;
        }
    }
    let minute = now_ms.div_euclid(MINUTE_MS) * MINUTE_MS;
    let minutes = by_key.iter().map(|(by, totals)| {
        let key = [
            ("start", Value::from(minute)),
            ("tenant", (&*by.tenant).into()),
            ("key_id", (&*by.key_id).into()),
            ("model", (&*by.model).into()),
            ("upstream", (&*by.upstream).into()),
            ("task", (&*by.task).into()),
            ("endpoint", by.endpoint.into()),
            ("slot", slot.into()),
        ];
        (key, totals)
    });
    let key = "start, tenant, key_id, model, upstream, task, endpoint, slot";
    add(tx, ("usage_minutes", key), minutes).await?;
    let batches = by_batch
        .iter()
        .map(|(&(batch_id, model, upstream), totals)| {
            let key = [
                ("batch_id", Value::from(batch_id)),
                ("model", model.into()),
                ("upstream", upstream.into()),
                ("slot", slot.into()),
            ];
            (key, totals)
        });
    let key = "batch_id, model, upstream, slot";
    add(tx, ("usage_batches", key), batches).await
}

/// The columns of totals, with their values.
fn columns(totals: &Totals) -> [(&'static str, i64); COLUMNS.len()] {
    let usage = &totals.usage;
    let [cost, cost_rest] = totals.cost.parts();
    let values = [
        totals.requests,
        totals.failed,
        totals.retries,
        totals.lost,
        totals.reused,
        totals.unpriced,
        usage.input_tokens,
        usage.cached_tokens,
        usage.cache_written_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        cost,
        cost_rest,
        totals.latency_ms,
    ];
    std::array::from_fn(|at| (COLUMNS[at], values[at]))
}

/// The columns of totals in each table of usage.
pub(super) const COLUMNS: [&str; 14] = [
    "requests",
    "failed",
    "retries",
    "lost",
    "reused",
    "unpriced",
    "input_tokens",
    "cached_tokens",
    "cache_written_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost",
    "cost_rest",
    "latency_ms",
];

/// Adds totals to the rows of a table, by its key.
pub(super) async fn add<'u, const N: usize>(
    tx: &mut Tx,
    (table, key): (&'static str, &'static str),
    rows: impl Iterator<Item = ([(&'static str, Value<'u>); N], &'u Totals)>,
) -> Result<()> {
    let sums = COLUMNS.map(|name| sql!("{name} = {table}.{name} + excluded.{name}", name, table));
    let sums = Sql::joined(sums);
    let rows: Vec<_> = rows.collect();
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        let is_usual = rows.len() == 1;
        let rows = Rows::of(rows.iter().map(|(key, totals)| {
            let totals = columns(totals).map(|(name, value)| (name, Value::from(value)));
            key.iter().cloned().chain(totals)
        }));
        let sql = sql!(
            "-- add_usage
             INSERT INTO {table} ({columns}) VALUES {rows}
             ON CONFLICT ({key}) DO UPDATE SET {sums}",
            table,
            columns = rows.columns(),
            rows = rows.parameters(1),
            key,
            sums = &sums,
        );
        in_tx!(tx, |c| {
            let add = sqlx::query(sql).persistent(is_usual);
            bind_rows!(add, rows).execute(c).await?;
        });
    }
    Ok(())
}
