//! `/admin/cache`: the answers that are kept to be given to equal requests.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Admin;
use super::page::Query;
use super::{Api, error};
use crate::domain::reuse::Mode;
use crate::store::{AnswerCount, KeptOfTenant};

/// What is kept, and by which terms.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CacheStatus {
    /// Which lines may be answered so: `off`, `embeddings`, `deterministic` or `all`.
    pub mode: String,
    /// How long an answer is kept.
    pub ttl_seconds: u64,
    /// How many bytes all answers may have, as they are stored.
    pub max_bytes: u64,
    /// How many are kept, those among them whose time is over and that are not removed yet.
    pub answers: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// By tenant, the one with the most bytes first.
    pub tenants: Vec<CacheOfTenant>,
}

/// What is kept of one tenant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CacheOfTenant {
    pub tenant: String,
    pub answers: u64,
    pub bytes: u64,
}

/// Answers that were removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClearedCache {
    /// Whose they were. `null`: of all tenants.
    pub tenant: Option<String>,
    pub answers: u64,
    pub bytes: u64,
}

impl From<KeptOfTenant> for CacheOfTenant {
    fn from(kept: KeptOfTenant) -> Self {
        Self {
            tenant: kept.tenant,
            answers: kept.answers.unsigned_abs(),
            bytes: kept.bytes.unsigned_abs(),
        }
    }
}

/// Shows which answers are kept to be given to equal requests.
#[utoipa::path(
    get,
    path = "/admin/cache",
    operation_id = "cacheStatus",
    tag = "Operators",
    responses(
        (status = 200, description = "What is kept.", body = CacheStatus),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
    ),
)]
pub async fn show(State(api): State<Api>, _: Admin) -> error::Result<Json<CacheStatus>> {
    let kept = api.store.kept_of_tenants().await?;
    Ok(Json(status(&api, kept)))
}

/// Removes the answers that are kept, so that equal requests are sent again.
#[utoipa::path(
    delete,
    path = "/admin/cache",
    operation_id = "clearCache",
    tag = "Operators",
    params(
        ("tenant" = Option<String>, Query, description = "Whose. Without it: those of all tenants."),
    ),
    responses(
        (status = 200, description = "They are removed.", body = ClearedCache),
        (status = 400, description = "`tenant` is empty.", body = error::Envelope),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
    ),
)]
pub async fn clear(
    State(api): State<Api>,
    admin: Admin,
    query: Query,
) -> error::Result<Json<ClearedCache>> {
    if query.is_empty("tenant") {
        // Most likely a variable that is not set: it must not come to mean all tenants.
        let message = "Empty value for 'tenant'. Leave it out for all tenants.";
        return Err(error::invalid_value_because("tenant", message));
    }
    let tenant = query.text("tenant");
    let AnswerCount { answers, bytes } = api.store.clear_answers(tenant).await?;
    tracing::info!(
        tenant,
        answers,
        bytes,
        key.id = admin.key_id,
        "an operator has removed kept answers"
    );
    Ok(Json(ClearedCache {
        tenant: tenant.map(str::to_owned),
        answers: answers.unsigned_abs(),
        bytes: bytes.unsigned_abs(),
    }))
}

/// What `/admin/status` says of reuse. `None` where nothing is reused.
pub(super) fn of_status(api: &Api, kept: &[KeptOfTenant]) -> Option<CacheStatus> {
    (api.reuse.get().mode != Mode::Off).then(|| status(api, kept.to_vec()))
}

fn status(api: &Api, kept: Vec<KeptOfTenant>) -> CacheStatus {
    let terms = api.reuse.get();
    let tenants: Vec<CacheOfTenant> = kept.into_iter().map(Into::into).collect();
    CacheStatus {
        mode: terms.mode.as_str().to_owned(),
        ttl_seconds: terms.ttl.as_secs(),
        max_bytes: terms.max_bytes,
        answers: tenants.iter().map(|one| one.answers).sum(),
        bytes: tenants.iter().map(|one| one.bytes).sum(),
        tenants,
    }
}
