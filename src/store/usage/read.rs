//! What was used, as those who pay for it ask.

use sqlx::FromRow;

use super::add::COLUMNS;
use crate::domain::price::Cost;
use crate::domain::totals::Totals;
use crate::domain::usage::Usage;
use crate::store::engine::{Sql, bind_each, list, on_pool, sql};
use crate::store::{Result, Store};

/// By what usage can be told apart, beside time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageBy {
    Tenant,
    Key,
    Model,
    Upstream,
    Task,
    Endpoint,
    Batch,
}

/// Which usage is asked for, and by what it is told apart.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// In milliseconds, inclusive. By batch: when the batch was created.
    pub from_ms: i64,
    /// Exclusive.
    pub until_ms: i64,
    /// Periods of so many milliseconds are told apart. They begin at multiples of that.
    pub period_ms: Option<i64>,
    pub by: Vec<UsageBy>,
    /// Only rows with one of these. `None`: any.
    pub tenants: Option<Vec<String>>,
    pub keys: Option<Vec<String>>,
    pub models: Option<Vec<String>>,
    pub endpoints: Option<Vec<String>>,
    /// How many rows are read at most.
    pub rows_max: usize,
}

/// What was used in a period by what is told apart. What is not told apart is empty.
#[derive(Clone, Debug)]
pub struct UsageRow {
    /// When the period begins, in milliseconds; 0 where periods are not told apart.
    pub start_ms: i64,
    pub tenant: String,
    pub key_id: String,
    pub model: String,
    pub upstream: String,
    pub task: String,
    pub endpoint: String,
    pub batch_id: String,
    pub totals: Totals,
}

#[derive(FromRow)]
struct Row {
    start: i64,
    tenant: String,
    key_id: String,
    model: String,
    upstream: String,
    task: String,
    endpoint: String,
    batch_id: String,
    #[sqlx(flatten)]
    sums: Sums,
}

#[derive(FromRow)]
pub(super) struct Sums {
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

impl From<Sums> for Totals {
    fn from(sums: Sums) -> Self {
        Totals {
            requests: sums.requests,
            failed: sums.failed,
            retries: sums.retries,
            lost: sums.lost,
            reused: sums.reused,
            unpriced: sums.unpriced,
            usage: Usage {
                input_tokens: sums.input_tokens,
                cached_tokens: sums.cached_tokens,
                cache_written_tokens: sums.cache_written_tokens,
                output_tokens: sums.output_tokens,
                reasoning_tokens: sums.reasoning_tokens,
                total_tokens: sums.input_tokens.saturating_add(sums.output_tokens),
            },
            cost: Cost::of_parts([sums.cost, sums.cost_rest]),
            latency_ms: sums.latency_ms,
        }
    }
}

/// The columns by which rows are told apart, behind the period's.
const KEYS: [(UsageBy, &str); 7] = [
    (UsageBy::Tenant, "tenant"),
    (UsageBy::Key, "key_id"),
    (UsageBy::Model, "model"),
    (UsageBy::Upstream, "upstream"),
    (UsageBy::Task, "task"),
    (UsageBy::Endpoint, "endpoint"),
    (UsageBy::Batch, "batch_id"),
];

impl UsageQuery {
    /// Who asks over HTTP is given no more rows than this at once.
    pub const ROWS_MAX: usize = 100_000;

    /// The columns by which rows are told apart.
    fn columns(&self) -> impl Iterator<Item = &'static str> {
        let keys = KEYS.iter().filter(|(by, _)| self.by.contains(by));
        keys.map(|(_, column)| *column)
    }

    /// Which rows are wanted, and the values to bind for that from number `first` on.
    fn wanted(&self, first: usize) -> (Sql, Vec<&str>) {
        let columns = [
            ("tenant", &self.tenants),
            ("key_id", &self.keys),
            ("model", &self.models),
            ("endpoint", &self.endpoints),
        ];
        let (mut conditions, mut values) = (sql!(""), Vec::new());
        for (column, wanted) in columns {
            conditions = match wanted.as_deref() {
                None => continue,
                Some([]) => sql!("{conditions} AND 1 = 0", conditions),
                Some(wanted) => {
                    let places = list(first + values.len(), wanted.len());
                    values.extend(wanted.iter().map(String::as_str));
                    sql!(
                        "{conditions} AND {column} IN {places}",
                        conditions,
                        column,
                        places
                    )
                }
            };
        }
        (conditions, values)
    }

    /// The rows that are summed: `$1` and `$2` bound their times.
    fn rows(&self, wanted: &Sql) -> Sql {
        let columns = self
            .columns()
            .chain(COLUMNS)
            .map(|name| sql!("{name}", name));
        let columns = Sql::joined(columns);
        if self.by.contains(&UsageBy::Batch) {
            // What a batch says of itself is in its row.
            return sql!(
                "SELECT start, {columns} FROM
                    (SELECT b.created_at AS start, b.tenant, COALESCE(b.key_id, '') AS key_id,
                        u.model, u.upstream, COALESCE(b.task, '') AS task, b.endpoint, u.batch_id,
                        {sums}
                     FROM batches b JOIN usage_batches u ON u.batch_id = b.id
                     WHERE b.created_at >= $1 AND b.created_at < $2) AS of_batches
                 WHERE 1 = 1{wanted}",
                columns,
                sums = Sql::joined(COLUMNS.map(|name| sql!("u.{name}", name))),
                wanted
            );
        }
        let of = |table: &'static str| {
            sql!(
                "SELECT start, {columns} FROM {table} WHERE start >= $1 AND start < $2{wanted}",
                columns = &columns,
                table,
                wanted
            )
        };
        let (minutes, hours) = (of("usage_minutes"), of("usage_hours"));
        sql!("{minutes} UNION ALL {hours}", minutes, hours)
    }
}

impl Store {
    /// What was used, by period and by what is told apart, in that order. What is more than two
    /// days old stands at the beginning of its hour.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>> {
        let (wanted, values) = query.wanted(4);
        let start = match query.period_ms {
            Some(period) => sql!("start - start % {period}", period),
            None => sql!("CAST(0 AS BIGINT)"),
        };
        let told_apart: Vec<&str> = query.columns().collect();
        let keys = KEYS.map(|(_, column)| {
            if told_apart.contains(&column) {
                sql!("{column}", column)
            } else {
                sql!("CAST('' AS TEXT) AS {column}", column)
            }
        });
        let groups = (0_usize..).zip(KEYS);
        let groups = groups.filter(|(_, (_, column))| told_apart.contains(column));
        // By their places: the first is the period.
        let groups = groups.map(|(place, _)| sql!("{place}", place = place + 2));
        let groups = Sql::joined(std::iter::once(sql!("1")).chain(groups));
        let sums = COLUMNS.map(|name| sql!("CAST(SUM({name}) AS BIGINT) AS {name}", name));
        let sql = sql!(
            "-- usage
             SELECT {start} AS start, {keys}, {sums} FROM ({rows}) AS used
             GROUP BY {groups} ORDER BY {groups} LIMIT $3",
            start,
            keys = Sql::joined(keys),
            sums = Sql::joined(sums),
            rows = query.rows(&wanted),
            groups = &groups,
        );
        let rows_max = i64::try_from(query.rows_max).unwrap_or(i64::MAX);
        let rows: Vec<Row> = on_pool!(self.reader(), |c| {
            let read = sqlx::query_as(sql).persistent(false);
            let read = read.bind(query.from_ms).bind(query.until_ms).bind(rows_max);
            bind_each!(read, values.iter().copied())
                .fetch_all(c)
                .await?
        });
        Ok(rows.into_iter().map(UsageRow::from).collect())
    }
}

impl From<Row> for UsageRow {
    fn from(row: Row) -> Self {
        UsageRow {
            start_ms: row.start,
            tenant: row.tenant,
            key_id: row.key_id,
            model: row.model,
            upstream: row.upstream,
            task: row.task,
            endpoint: row.endpoint,
            batch_id: row.batch_id,
            totals: row.sums.into(),
        }
    }
}
