//! `/admin/reload`: reading the configuration again.

use axum::Json;
use axum::extract::State;

use super::auth::Admin;
use super::configuration::Loaded;
use super::{Api, error};

/// Reads the configuration again, in the process that answers.
///
/// What has changed holds from then on. Calls in flight go on, and lines that wait go by the new
/// routes. Where the configuration has mistakes, all of them are told, and nothing changes.
#[utoipa::path(
    post,
    path = "/admin/reload",
    operation_id = "reload",
    tag = "Operators",
    responses(
        (status = 200, description = "The configuration holds, but for keys that need a restart.",
            body = Loaded),
        (status = 400, description = "The configuration has mistakes, which the message tells, one \
            a line. Nothing was changed.", body = error::Envelope),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
    ),
)]
pub async fn reload(State(api): State<Api>, admin: Admin) -> error::Result<Json<Loaded>> {
    tracing::info!(
        key.id = admin.key_id,
        "an operator has the configuration read again"
    );
    let loaded = api.reload.reload().await;
    Ok(Json(
        loaded.map_err(|faults| error::invalid_configuration(&faults))?,
    ))
}
