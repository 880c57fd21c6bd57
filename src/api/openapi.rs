//! The OpenAPI document, and the page at `/docs` that shows it. The page loads nothing from
//! elsewhere: its assets are part of this program.

use std::sync::Arc;

use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::{Json, Router, routing};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{self, ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_swagger_ui::Config;

use super::auth::API_KEY;
use super::{Api, error};

const DOCUMENT_PATH: &str = "/openapi.json";

/// What the document says beside paths and schemas.
pub(super) fn base() -> OpenApi {
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key from `nightshift keys create`."))
        .build();
    let azure = ApiKey::Header(ApiKeyValue::with_description(
        API_KEY.as_str(),
        "The same key, as Azure's clients send it.",
    ));
    let no_scopes = Vec::<String>::new;
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Nightshift")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("OpenAI's Batch API, for any model server.")),
        )
        .components(Some(
            ComponentsBuilder::new()
                .security_scheme("api_key", SecurityScheme::Http(key))
                .security_scheme("azure_api_key", SecurityScheme::ApiKey(azure))
                .build(),
        ))
        .security(Some(
            ["api_key", "azure_api_key"].map(|name| SecurityRequirement::new(name, no_scopes())),
        ))
        .build()
}

/// Describes the errors that every operation may answer with, whatever it does.
pub(super) fn add_common_errors(document: &mut OpenApi) {
    const FORBIDDEN: (&str, &str) = (
        "403",
        "The key may not do this, or no keys are in use and the request is not from this machine.",
    );
    const OF_KEYS: [(&str, &str); 4] = [
        ("401", "The key is missing, unknown or revoked."),
        FORBIDDEN,
        (
            "500",
            "The server failed. Its log has the cause, under the `x-request-id`.",
        ),
        (
            "503",
            "The database cannot be reached, or all connections are in use; `Retry-After` says \
             when to try again.",
        ),
    ];
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            // An operation names its security only where no key is needed.
            let is_open = operation.security.is_some();
            let errors = if is_open { &[FORBIDDEN][..] } else { &OF_KEYS };
            for (status, description) in errors {
                let responses = &mut operation.responses.responses;
                if !responses.contains_key(*status) {
                    responses.insert((*status).to_owned(), error_response(description).into());
                }
            }
        }
    }
}

fn error_response(description: &str) -> openapi::Response {
    let envelope = openapi::Ref::from_schema_name("Envelope");
    let content = ContentBuilder::new().schema(Some(envelope)).build();
    ResponseBuilder::new()
        .description(description)
        .content("application/json", content)
        .build()
}

/// Routes that serve the document and its page.
pub(super) fn pages(document: OpenApi) -> Router<Api> {
    let document = Arc::new(document);
    let config = Config::from(DOCUMENT_PATH)
        // Otherwise the page lets a server on the internet validate the document.
        .validator_url("none")
        .persist_authorization(true);
    let config = Arc::new(config);
    let asset = move |Path(name): Path<String>| async move { asset(&name, config) };
    Router::new()
        .route(
            DOCUMENT_PATH,
            routing::get(move || async move { Json(document).into_response() }),
        )
        .route("/docs", routing::get(page))
        .route("/docs/", routing::get(page))
        .route("/docs/{*asset}", routing::get(asset))
}

/// The page that shows the document.
async fn page() -> Response {
    // The browser loads nothing from another origin, even if an asset asks for it.
    const POLICY: HeaderValue = HeaderValue::from_static(
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         frame-ancestors 'none'",
    );
    const HEADER: HeaderName = header::CONTENT_SECURITY_POLICY;
    let page = Html(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Nightshift</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/swagger-ui-standalone-preset.js"></script>
<script src="/docs/swagger-initializer.js"></script>
</body>
</html>
"#,
    );
    ([(HEADER, POLICY)], page).into_response()
}

fn asset(name: &str, config: Arc<Config<'static>>) -> Response {
    match utoipa_swagger_ui::serve(name, config) {
        Ok(Some(file)) => {
            let content_type = HeaderValue::from_str(&file.content_type)
                .unwrap_or(HeaderValue::from_static("application/octet-stream"));
            let headers = [(header::CONTENT_TYPE, content_type)];
            (StatusCode::OK, headers, file.bytes.into_owned()).into_response()
        }
        Ok(None) => error::not_found_route(&axum::http::Method::GET, &format!("/docs/{name}"))
            .into_response(),
        Err(cause) => {
            tracing::error!(%cause, "an asset of the documentation could not be served");
            error::internal().into_response()
        }
    }
}
