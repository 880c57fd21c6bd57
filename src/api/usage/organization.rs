//! `/v1/organization/usage` and `/v1/organization/costs`, as OpenAI has them: buckets of time, by
//! pages. A tenant is a project.

use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::api::auth::UsageCaller;
use crate::api::error::{self, Envelope, Result};
use crate::api::integer::integer;
use crate::api::page::Query;
use crate::domain::totals::Totals;
use crate::store::{UsageBy, UsageQuery, UsageRow};

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;
/// The last second of the year 9999.
const TIME_MAX: i64 = 253_402_300_799;
/// Widths of buckets in seconds, each with how many buckets a page has at most, and how many
/// unless it is asked for more or fewer.
const WIDTHS: [(&str, i64, i64, i64); 3] = [
    ("1m", MINUTE, 1440, 60),
    ("1h", 3_600, 168, 24),
    ("1d", DAY, 31, 7),
];
/// Those of costs.
const COST_WIDTHS: [(&str, i64, i64, i64); 1] = [("1d", DAY, 180, 7)];
/// What a cursor begins with; the time follows at which the page begins.
const CURSOR: &str = "page_";

/// Endpoints whose answers are text.
const COMPLETIONS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/completions",
    "/v1/messages",
];
const EMBEDDINGS: [&str; 1] = ["/v1/embeddings"];
const MODERATIONS: [&str; 1] = ["/v1/moderations"];
/// Endpoints of images, each with what OpenAI calls the source of its images.
const IMAGES: [(&str, &str); 2] = [
    ("/v1/images/generations", "image.generation"),
    ("/v1/images/edits", "image.edit"),
];

/// A page of buckets.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsagePage<T> {
    /// Always `page`.
    #[schema(example = "page")]
    object: &'static str,
    data: Vec<UsageBucket<T>>,
    /// Whether there are buckets behind this page.
    has_more: bool,
    /// The `page` of the next page; null on the last.
    #[schema(required)]
    next_page: Option<String>,
}

/// What was used in a time. Times are in Unix seconds.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageBucket<T> {
    /// Always `bucket`.
    #[schema(example = "bucket")]
    object: &'static str,
    start_time: i64,
    end_time: i64,
    /// One for each combination of what was asked to be told apart; none where nothing was used.
    results: Vec<T>,
}

/// What was used of endpoints that write text. What `group_by` does not name is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionsUsage {
    /// Always `organization.usage.completions.result`.
    object: &'static str,
    /// Tokens of input, those from and into a cache among them.
    input_tokens: i64,
    input_cached_tokens: i64,
    input_cache_write_tokens: i64,
    /// Tokens of input that have nothing to do with a cache.
    input_uncached_tokens: i64,
    output_tokens: i64,
    /// Always 0: audio is not told apart.
    input_audio_tokens: i64,
    /// Always 0.
    output_audio_tokens: i64,
    /// Lines that were answered.
    num_model_requests: i64,
    #[schema(required)]
    project_id: Option<String>,
    /// Always null: there are no users.
    #[schema(required)]
    user_id: Option<String>,
    #[schema(required)]
    api_key_id: Option<String>,
    #[schema(required)]
    model: Option<String>,
    /// Always true, or null.
    #[schema(required)]
    batch: Option<bool>,
    /// Always null.
    #[schema(required)]
    service_tier: Option<String>,
    /// `unlabeled`, or null.
    #[schema(required)]
    api_source: Option<&'static str>,
}

/// What was used of embeddings or moderations. What `group_by` does not name is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct InputUsage {
    /// Such as `organization.usage.embeddings.result`.
    object: &'static str,
    input_tokens: i64,
    /// Lines that were answered.
    num_model_requests: i64,
    #[schema(required)]
    project_id: Option<String>,
    /// Always null: there are no users.
    #[schema(required)]
    user_id: Option<String>,
    #[schema(required)]
    api_key_id: Option<String>,
    #[schema(required)]
    model: Option<String>,
}

/// What was used of images. What `group_by` does not name is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImagesUsage {
    /// Always `organization.usage.images.result`.
    object: &'static str,
    /// As many as lines: how many images a line has brought is not kept.
    images: i64,
    /// Lines that were answered.
    num_model_requests: i64,
    /// `image.generation` or `image.edit`.
    #[schema(required)]
    source: Option<&'static str>,
    /// Always null: it is not kept.
    #[schema(required)]
    size: Option<String>,
    #[schema(required)]
    project_id: Option<String>,
    /// Always null: there are no users.
    #[schema(required)]
    user_id: Option<String>,
    #[schema(required)]
    api_key_id: Option<String>,
    #[schema(required)]
    model: Option<String>,
}

/// What was spent. What `group_by` does not name is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct Costs {
    /// Always `organization.costs.result`.
    object: &'static str,
    /// Null where no cost is known.
    #[schema(required)]
    amount: Option<Amount>,
    /// The model.
    #[schema(required)]
    line_item: Option<String>,
    #[schema(required)]
    project_id: Option<String>,
    /// Always null: there are no users.
    #[schema(required)]
    user_id: Option<String>,
    #[schema(required)]
    api_key_id: Option<String>,
    /// Always null.
    #[schema(required)]
    quantity: Option<f64>,
    /// Always null.
    #[schema(required)]
    quantity_unit: Option<String>,
    /// `unlabeled`, or null.
    #[schema(required)]
    api_source: Option<&'static str>,
    /// What the amount leaves out, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    nightshift: Option<LeftOut>,
}

/// An amount of money.
#[derive(Debug, Serialize, ToSchema)]
pub struct Amount {
    value: f64,
    /// In lower case.
    #[schema(example = "usd")]
    currency: String,
}

/// Calls that an amount leaves out, because nobody knows what they cost.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeftOut {
    /// Calls that were answered, and have no price or no usage.
    unpriced: i64,
    /// Calls that may be billed, and whose answers nobody has.
    lost: i64,
}

/// What an endpoint of usage takes.
struct Kind {
    widths: &'static [(&'static str, i64, i64, i64)],
    group_by: &'static [&'static str],
}

const OF_COMPLETIONS: Kind = Kind {
    widths: &WIDTHS,
    group_by: &[
        "project_id",
        "user_id",
        "api_key_id",
        "model",
        "batch",
        "service_tier",
        "api_source",
    ],
};
const OF_INPUT: Kind = Kind {
    widths: &WIDTHS,
    group_by: &["project_id", "user_id", "api_key_id", "model"],
};
const OF_IMAGES: Kind = Kind {
    widths: &WIDTHS,
    group_by: &[
        "project_id",
        "user_id",
        "api_key_id",
        "model",
        "size",
        "source",
    ],
};
const OF_COSTS: Kind = Kind {
    widths: &COST_WIDTHS,
    group_by: &[
        "project_id",
        "user_id",
        "line_item",
        "api_key_id",
        "api_source",
    ],
};

/// What a request asks for.
struct Asked {
    group_by: Vec<&'static str>,
    /// When each bucket of the page begins and ends.
    buckets: Vec<(i64, i64)>,
    next_page: Option<String>,
    query: UsageQuery,
}

impl Asked {
    /// `now`: in Unix seconds.
    fn read(query: &Query, kind: &Kind, caller: &UsageCaller, now: i64) -> Result<Self> {
        let times = 0..=TIME_MAX;
        let time = |name| query.text(name).map(|given| integer(name, given, &times));
        let start = time("start_time").ok_or_else(|| error::missing_parameter("start_time"))??;
        let end = time("end_time").transpose()?;
        if end.is_some_and(|end| end <= start) {
            let message = "'end_time' must be later than 'start_time'.";
            return Err(error::invalid_value_because("end_time", message));
        }
        let (width, limits, limit) = width(query, kind)?;
        let limit = query.limit(limits, limit)?;
        let begins = start - start % MINUTE;
        let first = match query.text("page") {
            None => begins,
            Some(page) => cursor(page).filter(|at| *at >= begins).ok_or_else(|| {
                let message = "'page' is not the 'next_page' of an earlier answer.";
                error::invalid_value_because("page", message)
            })?,
        };
        let (mut buckets, mut at) = (Vec::new(), first);
        while at < end.unwrap_or(now + 1) && (buckets.len() as i64) < limit {
            let next = at - at % width + width;
            let next = end.map_or(next, |end| next.min(end));
            buckets.push((at, next));
            at = next;
        }
        let group_by = group_by(query, kind)?;
        let by = [
            ("project_id", UsageBy::Tenant),
            ("api_key_id", UsageBy::Key),
            ("model", UsageBy::Model),
            ("line_item", UsageBy::Model),
            ("source", UsageBy::Endpoint),
        ];
        let by = by.into_iter().filter(|(name, _)| group_by.contains(name));
        let mut models = query.list("models");
        if models.is_none() && kind.group_by.contains(&"line_item") {
            models = query.list("line_items");
        }
        // There are no users, and all there is are batches.
        let is_none = query.list("user_ids").is_some() || query.text("batch") == Some("false");
        let mut tenants = query.list("project_ids");
        if let Some(own) = &caller.tenant {
            let others = tenants.unwrap_or_else(|| vec![own.clone()]);
            tenants = Some(others.into_iter().filter(|tenant| tenant == own).collect());
        }
        let has_more = at < end.unwrap_or(now + 1);
        Ok(Self {
            next_page: has_more.then(|| format!("{CURSOR}{at:x}")),
            query: UsageQuery {
                from_ms: first * 1000,
                until_ms: at * 1000,
                period_ms: Some(width * 1000),
                by: by.map(|(_, by)| by).collect(),
                tenants: if is_none { Some(Vec::new()) } else { tenants },
                keys: query.list("api_key_ids"),
                models,
                endpoints: None,
                rows_max: UsageQuery::ROWS_MAX + 1,
            },
            group_by,
            buckets,
        })
    }

    fn is_by(&self, name: &str) -> bool {
        self.group_by.contains(&name)
    }

    /// A value by which results are told apart, if they are. What has none has null.
    fn told_apart(&self, name: &str, value: &str) -> Option<String> {
        (self.is_by(name) && !value.is_empty()).then(|| value.to_owned())
    }

    fn project(&self, row: &UsageRow) -> Option<String> {
        self.told_apart("project_id", &row.tenant)
    }

    fn key(&self, row: &UsageRow) -> Option<String> {
        self.told_apart("api_key_id", &row.key_id)
    }

    fn model(&self, row: &UsageRow) -> Option<String> {
        self.told_apart("model", &row.model)
    }

    fn source(&self) -> Option<&'static str> {
        self.is_by("api_source").then_some("unlabeled")
    }

    /// Reads what was used, and divides it by bucket.
    async fn page<T>(
        self,
        api: &Api,
        endpoints: Option<Vec<String>>,
        result: impl Fn(&Asked, &UsageRow) -> T,
    ) -> Result<Json<UsagePage<T>>> {
        let query = UsageQuery {
            endpoints,
            ..self.query.clone()
        };
        let rows = api.store.usage(&query).await?;
        if rows.len() > UsageQuery::ROWS_MAX {
            let message = "That is too much at once: ask for fewer buckets, or group by less.";
            return Err(error::invalid_value_because("limit", message));
        }
        let mut rows = rows.into_iter().peekable();
        let buckets = self.buckets.iter().map(|&(start_time, end_time)| {
            let mut results = Vec::new();
            // The rows come in the order of time. Those of the first bucket may be of a period that
            // begins before the bucket.
            while let Some(row) = rows.next_if(|row| row.start_ms < end_time * 1000) {
                results.push(result(&self, &row));
            }
            UsageBucket {
                object: "bucket",
                start_time,
                end_time,
                results,
            }
        });
        let data = buckets.collect();
        Ok(Json(UsagePage {
            object: "page",
            data,
            has_more: self.next_page.is_some(),
            next_page: self.next_page,
        }))
    }
}

/// The width of a bucket in seconds, how many buckets a page may have, and how many it has.
fn width(query: &Query, kind: &Kind) -> Result<(i64, RangeInclusive<i64>, i64)> {
    let given = query.text("bucket_width").unwrap_or("1d");
    let mut known = kind.widths.iter();
    let Some(&(_, width, most, usual)) = known.find(|(name, ..)| *name == given) else {
        let names: Vec<&str> = kind.widths.iter().map(|(name, ..)| *name).collect();
        return Err(error::invalid_value("bucket_width", given, &names));
    };
    Ok((width, 1..=most, usual))
}

fn group_by(query: &Query, kind: &Kind) -> Result<Vec<&'static str>> {
    let given = query.list("group_by").unwrap_or_default();
    let given = given.iter().flat_map(|names| names.split(','));
    let named = given.filter(|name| !name.is_empty()).map(|given| {
        let mut known = kind.group_by.iter();
        let known = known.find(|name| **name == given).copied();
        known.ok_or_else(|| error::invalid_value("group_by", given, kind.group_by))
    });
    named.collect()
}

/// When the page of a cursor begins, in Unix seconds.
fn cursor(page: &str) -> Option<i64> {
    let at = i64::from_str_radix(page.strip_prefix(CURSOR)?, 16).ok()?;
    (0..=TIME_MAX).contains(&at).then_some(at)
}

fn paths(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// Lines that were answered.
fn answered(totals: &Totals) -> i64 {
    totals.requests - totals.failed
}

/// What chat completions, completions, responses and messages used.
///
/// An operator's key sees every tenant, and any other key its own.
#[utoipa::path(
    get,
    path = "/v1/organization/usage/completions",
    tag = "Usage",
    params(UsageParameters),
    responses(
        (status = 200, description = "A page of buckets.", body = UsagePage<CompletionsUsage>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
    ),
)]
pub async fn completions(
    State(api): State<Api>,
    caller: UsageCaller,
    query: Query,
) -> Result<Json<UsagePage<CompletionsUsage>>> {
    let asked = Asked::read(&query, &OF_COMPLETIONS, &caller, now(&api))?;
    let result = |asked: &Asked, row: &UsageRow| {
        let usage = &row.totals.usage;
        let cached = usage.cached_tokens + usage.cache_written_tokens;
        CompletionsUsage {
            object: "organization.usage.completions.result",
            input_tokens: usage.input_tokens,
            input_cached_tokens: usage.cached_tokens,
            input_cache_write_tokens: usage.cache_written_tokens,
            input_uncached_tokens: (usage.input_tokens - cached).max(0),
            output_tokens: usage.output_tokens,
            input_audio_tokens: 0,
            output_audio_tokens: 0,
            num_model_requests: answered(&row.totals),
            project_id: asked.project(row),
            user_id: None,
            api_key_id: asked.key(row),
            model: asked.model(row),
            batch: asked.is_by("batch").then_some(true),
            service_tier: None,
            api_source: asked.source(),
        }
    };
    asked.page(&api, Some(paths(&COMPLETIONS)), result).await
}

/// What embeddings used.
///
/// An operator's key sees every tenant, and any other key its own.
#[utoipa::path(
    get,
    path = "/v1/organization/usage/embeddings",
    tag = "Usage",
    params(UsageParameters),
    responses(
        (status = 200, description = "A page of buckets.", body = UsagePage<InputUsage>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
    ),
)]
pub async fn embeddings(
    State(api): State<Api>,
    caller: UsageCaller,
    query: Query,
) -> Result<Json<UsagePage<InputUsage>>> {
    let asked = Asked::read(&query, &OF_INPUT, &caller, now(&api))?;
    let result = input_usage("organization.usage.embeddings.result");
    asked.page(&api, Some(paths(&EMBEDDINGS)), result).await
}

/// What moderations used.
///
/// An operator's key sees every tenant, and any other key its own.
#[utoipa::path(
    get,
    path = "/v1/organization/usage/moderations",
    tag = "Usage",
    params(UsageParameters),
    responses(
        (status = 200, description = "A page of buckets.", body = UsagePage<InputUsage>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
    ),
)]
pub async fn moderations(
    State(api): State<Api>,
    caller: UsageCaller,
    query: Query,
) -> Result<Json<UsagePage<InputUsage>>> {
    let asked = Asked::read(&query, &OF_INPUT, &caller, now(&api))?;
    let result = input_usage("organization.usage.moderations.result");
    asked.page(&api, Some(paths(&MODERATIONS)), result).await
}

fn input_usage(object: &'static str) -> impl Fn(&Asked, &UsageRow) -> InputUsage {
    move |asked, row| InputUsage {
        object,
        input_tokens: row.totals.usage.input_tokens,
        num_model_requests: answered(&row.totals),
        project_id: asked.project(row),
        user_id: None,
        api_key_id: asked.key(row),
        model: asked.model(row),
    }
}

/// What images used.
///
/// An operator's key sees every tenant, and any other key its own.
#[utoipa::path(
    get,
    path = "/v1/organization/usage/images",
    tag = "Usage",
    params(UsageParameters),
    responses(
        (status = 200, description = "A page of buckets.", body = UsagePage<ImagesUsage>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
    ),
)]
pub async fn images(
    State(api): State<Api>,
    caller: UsageCaller,
    query: Query,
) -> Result<Json<UsagePage<ImagesUsage>>> {
    let asked = Asked::read(&query, &OF_IMAGES, &caller, now(&api))?;
    // Which sizes there were is not kept.
    let is_none = query.list("sizes").is_some();
    let sources = query.list("sources");
    let wanted = IMAGES.iter().filter(|(_, source)| {
        let is_wanted = |wanted: &Vec<String>| wanted.iter().any(|wanted| wanted == source);
        !is_none && sources.as_ref().is_none_or(is_wanted)
    });
    let endpoints = wanted.map(|(path, _)| (*path).to_owned()).collect();
    let result = |asked: &Asked, row: &UsageRow| {
        let mut sources = IMAGES.iter();
        let source = sources.find(|(path, _)| *path == row.endpoint);
        ImagesUsage {
            object: "organization.usage.images.result",
            images: answered(&row.totals),
            num_model_requests: answered(&row.totals),
            source: source.map(|(_, source)| *source),
            size: None,
            project_id: asked.project(row),
            user_id: None,
            api_key_id: asked.key(row),
            model: asked.model(row),
        }
    };
    asked.page(&api, Some(endpoints), result).await
}

/// What was spent.
///
/// An operator's key sees every tenant, and any other key its own. A cost is that of all calls whose
/// price and usage are known.
#[utoipa::path(
    get,
    path = "/v1/organization/costs",
    tag = "Usage",
    params(UsageParameters),
    responses(
        (status = 200, description = "A page of buckets of one day.", body = UsagePage<Costs>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
    ),
)]
pub async fn costs(
    State(api): State<Api>,
    caller: UsageCaller,
    query: Query,
) -> Result<Json<UsagePage<Costs>>> {
    let asked = Asked::read(&query, &OF_COSTS, &caller, now(&api))?;
    let currency = api.engine.currency();
    let result = |asked: &Asked, row: &UsageRow| {
        let totals = &row.totals;
        let left_out = LeftOut {
            unpriced: totals.unpriced,
            lost: totals.lost,
        };
        Costs {
            object: "organization.costs.result",
            amount: totals.known_cost().map(|cost| Amount {
                value: cost.to_f64(),
                currency: currency.clone(),
            }),
            line_item: asked.told_apart("line_item", &row.model),
            project_id: asked.project(row),
            user_id: None,
            api_key_id: asked.key(row),
            quantity: None,
            quantity_unit: None,
            api_source: asked.source(),
            nightshift: (totals.unpriced + totals.lost > 0).then_some(left_out),
        }
    };
    asked.page(&api, None, result).await
}

fn now(api: &Api) -> i64 {
    crate::domain::clock::seconds(api.clock.now_ms())
}

/// What requests for usage say. A list is given as `models=a&models=b`, or with `models[]`.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the OpenAPI document alone reads the fields")]
struct UsageParameters {
    /// In Unix seconds, inclusive: down to the minute. What is more than two days old is known by
    /// the hour.
    start_time: i64,
    /// In Unix seconds, exclusive. Left out: now.
    #[param(required = false)]
    end_time: Option<i64>,
    /// `1m`, `1h` or `1d`, which is also what is meant where nothing is said; of costs only `1d`.
    #[param(required = false)]
    bucket_width: Option<String>,
    /// How many buckets: of a minute 60 (at most 1440), of an hour 24 (168), of a day 7 (31; of
    /// costs 180).
    #[param(required = false)]
    limit: Option<i64>,
    /// The `next_page` of an earlier answer.
    #[param(required = false)]
    page: Option<String>,
    /// What results are told apart by, such as `model`.
    #[param(required = false)]
    group_by: Option<Vec<String>>,
    /// Only these models.
    #[param(required = false)]
    models: Option<Vec<String>>,
    /// Only these tenants.
    #[param(required = false)]
    project_ids: Option<Vec<String>>,
    /// Only batches that were created with these keys.
    #[param(required = false)]
    api_key_ids: Option<Vec<String>>,
}
