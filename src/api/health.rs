//! Whether the process lives, and whether it can do its work.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;

/// How long the database may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// How the process is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok` or `unavailable`.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// What is wrong, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<&'static str>,
}

const OK: Health = Health {
    status: "ok",
    problem: None,
};

/// What runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct Version {
    /// Always `nightshift`.
    #[schema(example = "nightshift")]
    pub name: &'static str,
    /// The program's version.
    pub version: &'static str,
}

/// Which program and version answers.
#[utoipa::path(
    get,
    path = "/version",
    operation_id = "version",
    tag = "Health",
    security(()),
    responses((status = 200, description = "What runs.", body = Version)),
)]
pub async fn version() -> Json<Version> {
    Json(Version {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// Whether the process lives.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "Health",
    security(()),
    responses((status = 200, description = "It does.", body = Health)),
)]
pub async fn live() -> Json<Health> {
    Json(OK)
}

/// Whether the process can take requests: its database answers, and its workers run.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Health",
    security(()),
    responses(
        (status = 200, description = "It can.", body = Health),
        (status = 503, description = "It cannot.", body = Health),
    ),
)]
pub async fn ready(State(api): State<Api>) -> (StatusCode, Json<Health>) {
    let ping = tokio::time::timeout(PING_TIMEOUT, api.store.ping()).await;
    let problem = if !matches!(ping, Ok(Ok(()))) {
        "the database does not answer"
    } else if !api.engine.is_running() {
        "the workers do not run"
    } else {
        return (StatusCode::OK, Json(OK));
    };
    let health = Health {
        status: "unavailable",
        problem: Some(problem),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(health))
}
