//! `/admin/upstreams`: what operators do with upstreams.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Admin;
use super::path::Id;
use super::{Api, error};
use crate::domain::clock::seconds;
use crate::store::{Engine, SwitchRow};

/// How often the store is asked whether an upstream is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);
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
/// That may take as long as the longest call. A client that goes away ends the wait, not the
/// drain.
#[utoipa::path(
    post,
    path = "/admin/upstreams/{name}/drain",
    operation_id = "drainUpstream",
    tag = "Operators",
    params(("name" = String, Path, description = "The upstream's name.")),
    responses(
        (status = 200, description = "It is disabled, and nothing is in flight there.",
            body = SwitchedUpstream),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
        (status = 404, description = "There is no such upstream.", body = error::Envelope),
        (status = 409, description = "Somebody has enabled it meanwhile, or disabled it \
            anew.", body = error::Envelope),
        (status = 503, description = "The process that answers stops. The upstream stays disabled.",
            body = error::Envelope),
    ),
)]
pub async fn drain(
    State(api): State<Api>,
    admin: Admin,
    Id(name): Id,
) -> error::Result<Json<SwitchedUpstream>> {
    let set = switch(&api, &admin, &name, false).await?;
    loop {
        let now = api.store.upstream_switches().await?;
        if let Some(message) = overruled(&set, &now) {
            return Err(error::conflict(message));
        }
        if api.store.undrained(&name, set.changed_at).await?.is_empty() {
            return Ok(Json(set.into()));
        }
        if !api.engine.is_running() {
            return Err(error::stopping());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
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
