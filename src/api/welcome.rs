//! `GET /`: says what answers here, to people who open the address and to programs that probe it.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// What answers here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Welcome {
    /// Always `Nightshift`.
    #[schema(example = "Nightshift")]
    name: &'static str,
    /// What the server does, in words.
    description: &'static str,
    version: &'static str,
    /// Where clients find OpenAI's API: their `base_url` ends in it.
    #[schema(example = "/v1")]
    api: &'static str,
    /// Where people read the documentation of the API.
    #[schema(example = "/docs")]
    docs: &'static str,
    /// Where programs read the documentation of the API.
    #[schema(example = "/openapi.json")]
    openapi: &'static str,
}

/// Says what this server is, and where its documentation is.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "welcome",
    tag = "About",
    security(()),
    responses((status = 200, description = "What answers here.", body = Welcome)),
)]
pub async fn show() -> Json<Welcome> {
    Json(Welcome {
        name: "Nightshift",
        description: "OpenAI's Batch API, for any model server.",
        version: env!("CARGO_PKG_VERSION"),
        api: "/v1",
        docs: "/docs",
        openapi: "/openapi.json",
    })
}
