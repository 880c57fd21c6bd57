//! The table of all routes, and what stands before and behind every handler.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware, routing};
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{
    Api, admin, auth, azure, batch_output, batches, cache, content, cors, drain, error, files,
    health, metrics, models, openapi, progress, reload, request_log, upload, upstreams, usage,
    welcome,
};

/// The routes of the whole API.
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
        // Before the key is checked: a browser sends none with a preflight request.
        router.layer(cors::layer(&api.allowed_origins))
    };
    let router: Router = router
        .layer(middleware::from_fn(request_log::observe))
        .layer(middleware::from_fn(metrics::observe))
        .with_state(api);
    let azure = router.clone().map_request(azure::rewritten);
    router.route_service(azure::ROUTE, azure)
}

/// The routes of a `--role worker` process: health, metrics and status. Any other path gets 404
/// with a hint, with or without a key.
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

/// Every route, and what the OpenAPI document says of it.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::retrieve))
        .routes(routes!(batches::cancel))
        .routes(routes!(batch_output::output))
        .routes(routes!(batch_output::errors))
        .routes(routes!(batches::pause))
        .routes(routes!(batches::resume))
        .routes(routes!(progress::retrieve))
        .routes(routes!(upload::create, files::list))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(content::download))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve))
        .routes(routes!(usage::completions))
        .routes(routes!(usage::embeddings))
        .routes(routes!(usage::moderations))
        .routes(routes!(usage::images))
        .routes(routes!(usage::costs))
        .routes(routes!(welcome::show))
        .merge(operators_routes())
}

/// The routes for those who run the server. Every process has them, whatever its role.
fn operators_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::version))
        .routes(routes!(metrics::expose))
        .routes(routes!(admin::status))
        .routes(routes!(usage::of_all))
        .routes(routes!(reload::reload))
        .routes(routes!(cache::show, cache::clear))
        .routes(routes!(upstreams::reset))
        .routes(routes!(upstreams::disable))
        .routes(routes!(upstreams::enable))
        .routes(routes!(upstreams::drain))
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = routes().into_openapi();
    openapi::add_common_errors(&mut document);
    document
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

/// The answer of a handler that panicked. The panic hook logs the panic itself.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a request's handler panicked");
    error::internal().into_response()
}
