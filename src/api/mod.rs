//! OpenAI's HTTP: extract, ask the store, answer.
//!
//! One file a resource; a new endpoint is a handler and a line in [`routes`], and its
//! documentation comes with it. This room knows no SQL, and nothing of the worker: the two meet
//! in the store.

pub mod admin;
pub mod auth;
mod azure;
pub mod batch_object;
pub mod batch_request;
pub mod batches;
pub mod content;
mod cors;
pub mod drain;
pub mod engine;
pub mod error;
pub mod expiry;
pub mod files;
pub mod health;
pub mod idempotency;
mod integer;
pub mod json;
pub mod metrics;
pub mod models;
mod multipart;
pub mod openapi;
mod origin;
pub mod page;
pub mod path;
mod range;
mod request_log;
pub mod server;
pub mod snapshots;
#[cfg(test)]
mod tests;
pub mod upload;
mod welcome;

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware, routing};
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use auth::Auth;
use engine::Engine;
use snapshots::Snapshots;

use crate::config;
use crate::domain::clock::Clock;
use crate::store::Store;
use crate::transfer::UploadBudget;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub store: Store,
    pub clock: Clock,
    pub limits: Arc<config::Limits>,
    pub retention: Arc<config::Retention>,
    pub auth: Arc<Auth>,
    pub engine: Arc<dyn Engine>,
    /// What operators look at.
    pub snapshots: Arc<Snapshots>,
    /// What uploads may hold in memory together.
    pub uploads: Arc<UploadBudget>,
    /// Web pages from these origins may use the API.
    pub allowed_origins: Arc<[String]>,
}

/// All of the API, ready to be served.
pub fn router(api: Api) -> Router {
    let (router, mut document) = routes().split_for_parts();
    openapi::add_common_errors(&mut document);
    let router = router
        .merge(openapi::pages(document))
        // A name with slashes that were not sent as %2F. The document has it already.
        .route(
            "/v1/models/{model}/{*rest}",
            routing::get(models::retrieve_slashed),
        )
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(
            api.clone(),
            auth::authenticate,
        ))
        .layer(CatchPanicLayer::custom(panicked));
    let router = if api.allowed_origins.is_empty() {
        router
    } else {
        // Before the key is looked at: a browser sends none with a preflight request.
        router.layer(cors::layer(&api.allowed_origins))
    };
    let router: Router = router
        .layer(middleware::from_fn(request_log::observe))
        .layer(middleware::from_fn(metrics::observe))
        .with_state(api);
    let azure = router.clone().map_request(azure::rewritten);
    router.route_service(azure::ROUTE, azure)
}

/// What a process without the API serves: whether it is well, and how things stand in it. Whoever
/// asks it for anything else is told, with a key or without, that this is the wrong process.
pub fn worker_router(api: Api) -> Router {
    let (router, _) = operators_routes().split_for_parts();
    router
        .route_layer(middleware::from_fn_with_state(
            api.clone(),
            auth::authenticate,
        ))
        .fallback(not_of_a_worker)
        .method_not_allowed_fallback(no_such_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(request_log::observe))
        .layer(middleware::from_fn(metrics::observe))
        .with_state(api)
}

/// The table of contents.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::retrieve))
        .routes(routes!(batches::cancel))
        .routes(routes!(upload::create, files::list))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(content::download))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve))
        .routes(routes!(welcome::show))
        .merge(operators_routes())
}

/// What is for those who run the server: every process has it, whatever its role.
fn operators_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::version))
        .routes(routes!(metrics::expose))
        .routes(routes!(admin::status))
        .routes(routes!(admin::reset))
}

async fn no_such_route(request: Request) -> Response {
    refuse(request, error::not_found_route).await
}

async fn not_of_a_worker(request: Request) -> Response {
    refuse(request, error::not_of_a_worker).await
}

async fn no_such_method(request: Request) -> Response {
    refuse(request, error::method_not_allowed).await
}

async fn refuse(
    request: Request,
    error: fn(&axum::http::Method, &str) -> error::ApiError,
) -> Response {
    let error = error(request.method(), azure::asked_path(&request));
    let (parts, body) = request.into_parts();
    if !drain::expects_continue(&parts.headers) {
        drain::drain(body).await;
    }
    error.into_response()
}

/// The panic itself is told by the panic hook.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a request's handler panicked");
    error::internal().into_response()
}
