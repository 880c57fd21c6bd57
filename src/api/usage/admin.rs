//! `/admin/usage`: what was used, by whatever operators want it told apart by.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::csv;
use crate::api::Api;
use crate::api::auth::Admin;
use crate::api::error::{self, Envelope, Result};
use crate::api::page::Query;
use crate::config::parse_duration;
use crate::domain::totals::Totals;
use crate::store::{UsageBy, UsageQuery, UsageRow};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// How far back is looked where nothing is said.
const SINCE_DEFAULT: Duration = Duration::from_hours(30 * 24);
/// The type of the text that is CSV.
const CSV: &str = "text/csv";

/// What usage can be told apart by.
const GROUPS: [&str; 9] = [
    "day", "hour", "tenant", "key", "model", "upstream", "task", "endpoint", "batch",
];
/// What it is told apart by where nothing is said.
const GROUPS_DEFAULT: &str = "model,upstream";

/// What was used.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AdminUsage {
    /// In the order of what was told apart.
    pub data: Vec<UsageEntry>,
    /// Of all of it.
    pub total: UsageFigures,
    /// Of all costs.
    pub currency: String,
}

/// What was used by what is told apart. Keys by which nothing is told apart are left out; an empty
/// text stands for none.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UsageEntry {
    /// Such as `2026-11-28`, in UTC. With `batch`: when the batch was created, as the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// Such as `2026-11-28T15:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The id of the key that batches were created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The public name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Of the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    #[serde(flatten)]
    pub figures: UsageFigures,
}

/// What lines and their calls add up to. Tokens and costs are of all calls, those whose answers were
/// thrown away among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageFigures {
    /// Lines that were sent and have ended.
    pub requests: i64,
    /// Those of them without a good answer.
    pub failed: i64,
    /// Calls after which their line was sent again.
    pub retries: i64,
    /// Calls that may be billed, and whose answers nobody has: what they used is not known.
    pub lost: i64,
    /// Lines that got the answer of another. They are no requests.
    pub reused: i64,
    /// Calls that were answered and whose cost is not known: their price or their usage is not.
    pub unpriced: i64,
    pub input_tokens: i64,
    /// Those of the input that came from a cache.
    pub cached_tokens: i64,
    /// Those of the input that were written to a cache.
    pub cache_written_tokens: i64,
    pub output_tokens: i64,
    /// Those of the output that were spent on reasoning.
    pub reasoning_tokens: i64,
    /// Summed over the requests: each for its last call.
    pub latency_ms: i64,
    /// An exact decimal, of the calls whose cost is known; null where there is none.
    #[schema(required)]
    pub cost: Option<String>,
}

impl From<&Totals> for UsageFigures {
    fn from(totals: &Totals) -> Self {
        let usage = &totals.usage;
        Self {
            requests: totals.requests,
            failed: totals.failed,
            retries: totals.retries,
            lost: totals.lost,
            reused: totals.reused,
            unpriced: totals.unpriced,
            input_tokens: usage.input_tokens,
            cached_tokens: usage.cached_tokens,
            cache_written_tokens: usage.cache_written_tokens,
            output_tokens: usage.output_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            latency_ms: totals.latency_ms,
            cost: totals.known_cost().map(|cost| cost.to_string()),
        }
    }
}

impl UsageFigures {
    /// The figures in the order of their names.
    fn cells(&self) -> [(&'static str, String); 13] {
        let number = |name, number: i64| (name, number.to_string());
        [
            number("requests", self.requests),
            number("failed", self.failed),
            number("retries", self.retries),
            number("lost", self.lost),
            number("reused", self.reused),
            number("unpriced", self.unpriced),
            number("input_tokens", self.input_tokens),
            number("cached_tokens", self.cached_tokens),
            number("cache_written_tokens", self.cache_written_tokens),
            number("output_tokens", self.output_tokens),
            number("reasoning_tokens", self.reasoning_tokens),
            number("latency_ms", self.latency_ms),
            ("cost", self.cost.clone().unwrap_or_default()),
        ]
    }
}

/// What was used, by what `group_by` names.
#[utoipa::path(
    get,
    path = "/admin/usage",
    tag = "Operators",
    params(
        ("group_by" = Option<String>, Query, description = "What is told apart, with commas between: \
            `day`, `hour`, `tenant`, `key`, `model`, `upstream`, `task`, `endpoint`, `batch`. Left \
            out: `model,upstream`."),
        ("since" = Option<String>, Query, description = "From when on: `7d`, a date, a time such as \
            `2026-11-28T15:00:00Z`, or Unix seconds. With `batch`: of batches created since. Left \
            out: 30 days."),
        ("until" = Option<String>, Query, description = "Until when, likewise. Left out: now."),
        ("format" = Option<String>, Query, description = "`json` or `csv`; `Accept: text/csv` asks \
            for the latter, too."),
    ),
    responses(
        (status = 200, description = "What was used, sorted, with a total.", body = AdminUsage),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
    ),
)]
pub async fn of_all(
    State(api): State<Api>,
    _: Admin,
    query: Query,
    headers: HeaderMap,
) -> Result<Response> {
    let groups = groups(&query)?;
    let is_csv = is_csv(&query, &headers)?;
    let now_ms = api.clock.now_ms();
    let since_ms = moment(&query, "since", now_ms)?;
    let ask = UsageQuery {
        from_ms: since_ms.unwrap_or(now_ms - ms(SINCE_DEFAULT)),
        until_ms: moment(&query, "until", now_ms)?.unwrap_or(i64::MAX),
        period_ms: period_ms(&groups),
        by: by(&groups),
        tenants: None,
        keys: None,
        models: None,
        endpoints: None,
        rows_max: UsageQuery::ROWS_MAX + 1,
    };
    let rows = api.store.usage(&ask).await?;
    if rows.len() > UsageQuery::ROWS_MAX {
        let most = UsageQuery::ROWS_MAX;
        let message =
            format!("That is more than {most} rows: ask for a shorter time, or tell less apart.");
        return Err(error::invalid_value_because("group_by", message));
    }
    let mut total = Totals::default();
    for row in &rows {
        total += row.totals;
    }
    let usage = AdminUsage {
        data: rows.into_iter().map(|row| entry(row, &groups)).collect(),
        total: UsageFigures::from(&total),
        currency: api.engine.currency(),
    };
    if is_csv {
        let kind = [(header::CONTENT_TYPE, "text/csv; charset=utf-8")];
        return Ok((kind, written(&usage, &groups)).into_response());
    }
    Ok(Json(usage).into_response())
}

fn groups(query: &Query) -> Result<Vec<&'static str>> {
    let given = query.text("group_by").unwrap_or(GROUPS_DEFAULT);
    let mut groups: Vec<&'static str> = Vec::new();
    for given in given.split(',').map(str::trim) {
        let known = GROUPS.iter().find(|known| **known == given);
        let Some(known) = known else {
            return Err(error::invalid_value("group_by", given, &GROUPS));
        };
        if !groups.contains(known) {
            groups.push(known);
        }
    }
    Ok(groups)
}

fn period_ms(groups: &[&str]) -> Option<i64> {
    let has = |name| groups.contains(&name);
    if has("hour") {
        Some(HOUR_MS)
    } else {
        has("day").then_some(DAY_MS)
    }
}

fn by(groups: &[&str]) -> Vec<UsageBy> {
    let by = groups.iter().filter_map(|name| {
        Some(match *name {
            "tenant" => UsageBy::Tenant,
            "key" => UsageBy::Key,
            "model" => UsageBy::Model,
            "upstream" => UsageBy::Upstream,
            "task" => UsageBy::Task,
            "endpoint" => UsageBy::Endpoint,
            "batch" => UsageBy::Batch,
            _ => return None,
        })
    });
    by.collect()
}

fn is_csv(query: &Query, headers: &HeaderMap) -> Result<bool> {
    match query.text("format") {
        Some("csv") => Ok(true),
        Some("json") => Ok(false),
        Some(other) => Err(error::invalid_value("format", other, &["csv", "json"])),
        None => {
            let accepted = headers.get(header::ACCEPT);
            let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
            Ok(accepted.is_some_and(|accepted| accepted.contains(CSV)))
        }
    }
}

/// A time: so long ago, a date, a moment, or Unix seconds. In milliseconds.
fn moment(query: &Query, name: &str, now_ms: i64) -> Result<Option<i64>> {
    let Some(text) = query.text(name) else {
        return Ok(None);
    };
    let ago = || parse_duration(text).ok().map(|ago| now_ms - ms(ago));
    let seconds = || text.parse::<i64>().ok()?.checked_mul(1000);
    let date = || {
        let date = text.parse::<Date>().ok()?;
        let start = date.to_zoned_datetime(TimeZone::UTC).ok()?;
        Some(start.timestamp().as_millisecond())
    };
    let moment = || Some(text.parse::<Timestamp>().ok()?.as_millisecond());
    let found = ago().or_else(seconds).or_else(moment).or_else(date);
    found.map(Some).ok_or_else(|| {
        let message = "expected a time ago such as 7d, a date such as 2026-11-28, a moment such as \
                       2026-11-28T15:00:00Z, or Unix seconds";
        error::invalid_value_because(name, message)
    })
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn entry(row: UsageRow, groups: &[&str]) -> UsageEntry {
    let has = |name| groups.contains(&name);
    let start = Timestamp::from_millisecond(row.start_ms).unwrap_or_default();
    let day = || TimeZone::UTC.to_datetime(start).date().to_string();
    UsageEntry {
        day: has("day").then(day),
        hour: has("hour").then(|| start.to_string()),
        tenant: has("tenant").then_some(row.tenant),
        key: has("key").then_some(row.key_id),
        model: has("model").then_some(row.model),
        upstream: has("upstream").then_some(row.upstream),
        task: has("task").then_some(row.task),
        endpoint: has("endpoint").then_some(row.endpoint),
        batch: has("batch").then_some(row.batch_id),
        figures: UsageFigures::from(&row.totals),
    }
}

impl UsageEntry {
    /// What it is told apart by: the value of one of the [`GROUPS`].
    #[must_use]
    pub fn of_group(&self, name: &str) -> &str {
        let value = match name {
            "day" => &self.day,
            "hour" => &self.hour,
            "tenant" => &self.tenant,
            "key" => &self.key,
            "model" => &self.model,
            "upstream" => &self.upstream,
            "task" => &self.task,
            "endpoint" => &self.endpoint,
            _ => &self.batch,
        };
        value.as_deref().unwrap_or_default()
    }
}

/// As CSV: a row of names, the rows, and no total, which a spreadsheet makes by itself.
fn written(usage: &AdminUsage, groups: &[&str]) -> String {
    let mut out = String::new();
    let names = usage.total.cells().map(|(name, _)| name);
    csv::row(
        &mut out,
        groups.iter().copied().chain(names).chain(["currency"]),
    );
    for entry in &usage.data {
        let figures = entry.figures.cells();
        let figures = figures.iter().map(|(_, cell)| &**cell);
        let cells = groups.iter().map(|name| entry.of_group(name));
        let cells = cells.chain(figures);
        csv::row(&mut out, cells.chain([&*usage.currency]));
    }
    out
}
