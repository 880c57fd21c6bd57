//! `/admin/upstreams`: what operators do with upstreams.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::auth::Admin;
use super::page::Query;
use super::path::Id;
use super::{Api, error};
use crate::domain::clock::seconds;
use crate::store::{Engine, SwitchRow, Undrained};

/// How often the store is asked whether an upstream is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest `timeout` of a drain, in seconds.
const TIMEOUT_MAX: i64 = 86_400;
/// Who has asked, where no key is needed.
const WITHOUT_A_KEY: &str = "a request without a key";

/// An upstream that was reset.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ResetUpstream {
    pub name: String,
    pub reset: bool,
}

/// An upstream that was enabled or disabled.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SwitchedUpstream {
    pub name: String,
    /// Whether lines are sent there.
    pub enabled: bool,
    /// Who has set that: the id of a key, or words. If it was so before, who has set it then.
    pub changed_by: String,
    /// When, in Unix seconds.
    pub changed_at: i64,
}

impl From<SwitchRow> for SwitchedUpstream {
    fn from(row: SwitchRow) -> Self {
        Self {
            name: row.upstream,
            enabled: row.enabled,
            changed_by: row.changed_by,
            changed_at: seconds(row.changed_at),
        }
    }
}

/// A process that may have calls in flight at an upstream that is disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UndrainedReplica {
    /// Its name, as among the `replicas` of `/admin/status`.
    pub replica: String,
    /// Calls that it has in flight there. `null`: it has not followed, because it is about to, or
    /// because its configuration says something else of `enabled`.
    pub in_flight: Option<u64>,
}

impl From<Undrained> for UndrainedReplica {
    fn from(row: Undrained) -> Self {
        Self {
            replica: row.name,
            in_flight: row.in_flight.map(i64::unsigned_abs),
        }
    }
}

/// How far an upstream is drained.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainedUpstream {
    pub name: String,
    /// Always false: no line is sent there.
    pub enabled: bool,
    /// Who has disabled it: the id of a key, or words.
    pub changed_by: String,
    /// When, in Unix seconds.
    pub changed_at: i64,
    /// The processes that may have calls in flight there. Empty: it is drained.
    pub waits_for: Vec<UndrainedReplica>,
}

/// Opens all that is closed at an upstream, because it is mended.
///
/// Its lines are sent again at once, by every process, whatever it was closed for: a wait that it
/// asked for, a refused key, failures.
#[utoipa::path(
    post,
    path = "/admin/upstreams/{name}/reset",
    operation_id = "resetUpstream",
    tag = "Operators",
    params(("name" = String, Path, description = "The upstream's name.")),
    responses(
        (status = 200, description = "It is open, in the process that answers; the others follow \
            within a second or so.", body = ResetUpstream),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
        (status = 404, description = "There is no such upstream.", body = error::Envelope),
    ),
)]
pub async fn reset(
    State(api): State<Api>,
    admin: Admin,
    Id(name): Id,
) -> error::Result<Json<ResetUpstream>> {
    if !api.engine.reset(&name) {
        return Err(no_such_upstream(&name));
    }
    if api.store.engine() == Engine::Postgres {
        api.store.reset_upstream(&name).await?;
    }
    tracing::info!(
        upstream.name = name,
        key.id = admin.key_id,
        "an operator has reset the upstream"
    );
    Ok(Json(ResetUpstream { name, reset: true }))
}

/// Sends no more lines to an upstream, until it is enabled.
///
/// Every process follows within a second or so, and after a restart, too. Calls in flight go on.
/// Lines go to other upstreams, or wait. What an operator sets so counts while `enabled` in the
/// configuration says what it said then.
#[utoipa::path(
    post,
    path = "/admin/upstreams/{name}/disable",
    operation_id = "disableUpstream",
    tag = "Operators",
    params(("name" = String, Path, description = "The upstream's name.")),
    responses(
        (status = 200, description = "It is disabled, or was so before.", body = SwitchedUpstream),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
        (status = 404, description = "There is no such upstream.", body = error::Envelope),
    ),
)]
pub async fn disable(
    State(api): State<Api>,
    admin: Admin,
    Id(name): Id,
) -> error::Result<Json<SwitchedUpstream>> {
    let set = switch(&api, &admin, &name, false).await?;
    Ok(Json(set.into()))
}

/// Sends lines to an upstream again.
#[utoipa::path(
    post,
    path = "/admin/upstreams/{name}/enable",
    operation_id = "enableUpstream",
    tag = "Operators",
    params(("name" = String, Path, description = "The upstream's name.")),
    responses(
        (status = 200, description = "It is enabled, or was so before.", body = SwitchedUpstream),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
        (status = 404, description = "There is no such upstream.", body = error::Envelope),
    ),
)]
pub async fn enable(
    State(api): State<Api>,
    admin: Admin,
    Id(name): Id,
) -> error::Result<Json<SwitchedUpstream>> {
    let set = switch(&api, &admin, &name, true).await?;
    Ok(Json(set.into()))
}

/// Disables an upstream, and answers when no process has a call in flight there.
///
/// That may take as long as the longest call. With a `timeout` the answer comes no later, and says
/// which processes have calls in flight, and how many; `/admin/status` says so meanwhile. A client
/// that goes away ends the wait, not the drain.
#[utoipa::path(
    post,
    path = "/admin/upstreams/{name}/drain",
    operation_id = "drainUpstream",
    tag = "Operators",
    params(
        ("name" = String, Path, description = "The upstream's name."),
        ("timeout" = Option<i64>, Query, minimum = 0, maximum = 86_400,
            description = "How long to wait at most, in seconds. Without it: as long as it takes."),
    ),
    responses(
        (status = 200, description = "It is disabled, and nothing is in flight there.",
            body = DrainedUpstream),
        (status = 202, description = "It is disabled, the timeout is over, and calls are in flight \
            there.", body = DrainedUpstream),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
        (status = 404, description = "There is no such upstream.", body = error::Envelope),
        (status = 409, description = "Somebody has enabled it meanwhile, or disabled it \
            anew.", body = error::Envelope),
        (status = 503, description = "The process that answers stops. The upstream stays disabled. \
            The message says which processes have calls in flight there.",
            body = error::Envelope),
    ),
)]
pub async fn drain(
    State(api): State<Api>,
    admin: Admin,
    Id(name): Id,
    query: Query,
) -> error::Result<(StatusCode, Json<DrainedUpstream>)> {
    let timeout = query.timeout(0..=TIMEOUT_MAX)?;
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let set = switch(&api, &admin, &name, false).await?;
    loop {
        let now = api.store.upstream_switches().await?;
        if let Some(message) = overruled(&set, &now) {
            return Err(error::conflict(message));
        }
        let undrained = api.store.undrained(&name, set.changed_at).await?;
        let is_over = end.is_some_and(|end| end <= Instant::now());
        if undrained.is_empty() || is_over {
            let status = if undrained.is_empty() {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            return Ok((status, Json(drained(set, undrained))));
        }
        if api.stopping.is_cancelled() {
            let left = drained(set, undrained).waits_for;
            return Err(error::stopping(&format!(
                "The upstream {name} stays disabled, and is not drained by {}.",
                in_words(&left)
            )));
        }
        let next = Instant::now() + LOOK_EVERY;
        let next = end.map_or(next, |end| end.min(next));
        tokio::select! {
            () = api.stopping.cancelled() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

fn drained(set: SwitchRow, undrained: Vec<Undrained>) -> DrainedUpstream {
    DrainedUpstream {
        name: set.upstream,
        enabled: set.enabled,
        changed_by: set.changed_by,
        changed_at: seconds(set.changed_at),
        waits_for: undrained.into_iter().map(Into::into).collect(),
    }
}

/// Such as `a (3 calls in flight), b (1 call in flight)`.
pub(crate) fn in_words(undrained: &[UndrainedReplica]) -> String {
    let one = |one: &UndrainedReplica| {
        let calls = match one.in_flight {
            Some(1) => "1 call in flight".to_owned(),
            Some(calls) => format!("{calls} calls in flight"),
            None => "it has not followed: `enabled` may be something else in its configuration"
                .to_owned(),
        };
        format!("{} ({calls})", one.replica)
    };
    let words: Vec<String> = undrained.iter().map(one).collect();
    words.join(", ")
}

/// What has become of an upstream that was disabled so, in words, if that holds no more.
pub(crate) fn overruled(set: &SwitchRow, now: &[SwitchRow]) -> Option<String> {
    let name = &set.upstream;
    match now.iter().find(|row| row.upstream == *name) {
        Some(row) if row == set => None,
        Some(row) if !row.enabled => Some(format!(
            "The upstream {name} was disabled anew by {} while it was drained.",
            row.changed_by
        )),
        _ => Some(format!(
            "The upstream {name} was enabled while it was drained."
        )),
    }
}

async fn switch(api: &Api, admin: &Admin, name: &str, enabled: bool) -> error::Result<SwitchRow> {
    let upstreams = api.snapshots.process().upstreams;
    let known = upstreams.iter().find(|upstream| upstream.name == name);
    let configured = known.ok_or_else(|| no_such_upstream(name))?.configured;
    let by = admin.key_id.as_deref().unwrap_or(WITHOUT_A_KEY);
    let set = api.store.switch_upstream(name, enabled, configured, by);
    Ok(set.await?)
}

fn no_such_upstream(name: &str) -> error::ApiError {
    error::not_found(format!("No such upstream: {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_where_somebody_has_set_something_else() {
        let set = SwitchRow {
            upstream: "gpu".to_owned(),
            enabled: false,
            configured: true,
            changed_by: "key_1".to_owned(),
            changed_at: 1,
        };
        assert_eq!(overruled(&set, std::slice::from_ref(&set)), None);
        let by_another = |enabled: bool| SwitchRow {
            enabled,
            changed_by: "key_2".to_owned(),
            changed_at: 2,
            ..set.clone()
        };
        let said = |enabled: bool| overruled(&set, &[by_another(enabled)]).expect("a message");
        assert!(said(true).contains("was enabled"), "{}", said(true));
        assert!(
            said(false).contains("disabled anew by key_2"),
            "{}",
            said(false)
        );
    }
}
