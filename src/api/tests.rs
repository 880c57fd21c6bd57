//! The router as a whole, on a database in a temporary directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use futures::future::BoxFuture;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::auth::{Auth, new_key};
use super::configuration::{Loaded, Reload};
use super::engine::Engine;
use super::looks::Looks;
use super::model_object::ModelObject;
use super::snapshots::Snapshots;
use super::{Api, router};
use crate::config::{Config, Environment, Overrides};
use crate::domain::clock::Clock;
use crate::domain::current::Current;
use crate::domain::endpoint::Endpoints;
use crate::domain::id;
use crate::domain::scope::Scopes;
use crate::domain::tenant::CurrentTenants;
use crate::metrics::ProcessSnapshot;
use crate::store::{ApiKey, Store};
use crate::transfer::UploadBudget;

/// A server without a socket, and the directory of its database.
pub(super) struct TestApi {
    engine: Arc<TestEngine>,
    pub api: Api,
    _directory: tempfile::TempDir,
}

/// An answer, read whole.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: body.to_vec(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The error's code, and that it is an error of that status.
    fn code(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.json());
        let error = &self.json()["error"];
        assert_eq!(error.as_object().unwrap().len(), 4);
        error["code"].clone()
    }
}

/// An engine that has models and does nothing.
pub struct TestEngine {
    models: &'static [&'static str],
    is_running: AtomicBool,
}

impl TestEngine {
    pub fn new(models: &'static [&'static str]) -> Self {
        Self {
            models,
            is_running: AtomicBool::new(true),
        }
    }
}

impl Engine for TestEngine {
    fn snapshot(&self) -> ProcessSnapshot {
        ProcessSnapshot::default()
    }

    fn models(&self) -> Vec<ModelObject> {
        let model = |id: &&str| ModelObject {
            id: (*id).to_owned(),
            object: "model",
            created: 0,
            owned_by: "upstream".to_owned(),
            shutdown_date: None,
        };
        self.models.iter().map(model).collect()
    }

    fn label(&self, task: Option<&str>, model: &str) -> String {
        let label = task.unwrap_or(model);
        let is_known = self.models.contains(&label);
        if is_known { label } else { "other" }.to_owned()
    }

    fn currency(&self) -> String {
        "usd".to_owned()
    }

    fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    fn reset(&self, upstream: &str) -> bool {
        upstream == "known"
    }
}

impl Reload for TestEngine {
    fn loaded(&self) -> Loaded {
        Loaded::default()
    }

    fn reload(&self) -> BoxFuture<'static, Result<Loaded, Vec<String>>> {
        let faults = ["a: is wrong", "b: is missing"].map(str::to_owned);
        Box::pin(async { Err(faults.into()) })
    }
}

impl TestApi {
    pub async fn new(auth: Auth) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("test.db").display());
        let clock = Clock::default();
        let config = Config::built_in(&Overrides::default(), &Environment::default()).unwrap();
        let engine = Arc::new(TestEngine::new(&["plain", "org/slashed"]));
        let store = Store::open(&url, 1, clock.clone()).await.unwrap();
        let api = Api {
            looks: Arc::new(Looks::new(&store)),
            waits: Arc::default(),
            store,
            clock,
            uploads: UploadBudget::new(config.limits.max_line_bytes),
            limits: Current::new(config.limits),
            retention: Current::new(config.retention),
            output: Current::new(config.output),
            reuse: Current::new(config.reuse),
            tenants: CurrentTenants::default(),
            auth: Arc::new(auth),
            snapshots: Arc::new(Snapshots::new(engine.clone())),
            engine: engine.clone(),
            reload: engine.clone(),
            stopping: CancellationToken::new(),
            endpoints: Endpoints::USUAL,
            allowed_origins: Arc::new([]),
        };
        Self {
            api,
            engine,
            _directory: directory,
        }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        Answer::of(router(self.api.clone()).oneshot(request).await.unwrap()).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.send(request(method, path, &[], body)).await
    }

    /// Stores a new key and gives back its header.
    async fn key(&self, tenant: &str) -> (String, String) {
        let new = new_key();
        let key = ApiKey {
            id: id::key(),
            tenant: tenant.to_owned(),
            name: "test".to_owned(),
            hash: new.hash,
            hint: new.hint,
            scopes: Scopes::API,
            created_at: 0,
            expires_at: None,
            last_used_at: None,
            revoked_at: None,
        };
        self.api.store.add_key(&key).await.unwrap();
        (key.id, format!("Bearer {}", new.key.expose_secret()))
    }
}

pub(super) fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

const GOOD: &str = r#"{"input_file_id":"file-abc","endpoint":"/v1/chat/completions",
    "completion_window":"24h","metadata":{"b":"2","a":"1"}}"#;

#[tokio::test]
async fn a_batch_of_a_file_that_nobody_has_is_validating_with_every_key() {
    let test = TestApi::new(Auth::Off).await;
    let created = test.ask("POST", "/v1/batches", GOOD).await;
    assert_eq!(created.status, 200);
    assert_eq!(created.headers["content-type"], "application/json");
    let mut batch = created.json();
    let id = batch["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("batch_") && id.len() == 38, "{id}");
    let created_at = batch["created_at"].as_i64().unwrap();

    let retrieved = test.ask("GET", &format!("/v1/batches/{id}"), "").await;
    assert_eq!(retrieved.json(), batch);

    batch["id"] = Value::Null;
    assert_eq!(
        batch,
        json!({
            "id": null, "object": "batch", "endpoint": "/v1/chat/completions", "model": null,
            "errors": null, "input_file_id": "file-abc", "completion_window": "24h",
            "status": "validating", "output_file_id": null, "error_file_id": null,
            "created_at": created_at, "in_progress_at": null, "expires_at": created_at + 86_400,
            "finalizing_at": null, "completed_at": null, "failed_at": null, "expired_at": null,
            "cancelling_at": null, "cancelled_at": null,
            "request_counts": {"total": 0, "completed": 0, "failed": 0}, "usage": null,
            "metadata": {"a": "1", "b": "2"},
        })
    );
}

#[tokio::test]
async fn lists_go_from_page_to_page() {
    let test = TestApi::new(Auth::Off).await;
    let empty = test.ask("GET", "/v1/batches", "").await.json();
    assert_eq!(
        empty,
        json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false})
    );
    let mut ids = Vec::new();
    for _ in 0..3 {
        let batch = test.ask("POST", "/v1/batches", GOOD).await.json();
        ids.insert(0, batch["id"].as_str().unwrap().to_owned());
    }
    let first = test.ask("GET", "/v1/batches?limit=2", "").await.json();
    assert_eq!(first["data"][0]["id"], ids[0]);
    assert_eq!(first["first_id"], ids[0]);
    assert_eq!(first["last_id"], ids[1]);
    assert_eq!(first["has_more"], true);
    let path = format!("/v1/batches?limit=2&after={}", ids[1]);
    let second = test.ask("GET", &path, "").await.json();
    assert_eq!(second["data"].as_array().unwrap().len(), 1);
    assert_eq!(second["data"][0]["id"], ids[2]);
    assert_eq!(second["has_more"], false);

    let unknown = test.ask("GET", "/v1/batches?after=batch_x", "").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["param"], "after");
    let answer = test.ask("GET", "/v1/batches?limit=101", "").await;
    assert_eq!(answer.code(400), "integer_above_max_value");
}

#[tokio::test]
async fn cancelling_takes_any_body_and_is_refused_for_what_is_not_there() {
    let test = TestApi::new(Auth::Off).await;
    let batch = test.ask("POST", "/v1/batches", GOOD).await.json();
    let path = format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap());
    for headers in [&[("content-type", "application/json")][..], &[]] {
        let cancelled = test.send(request("POST", &path, headers, "")).await;
        assert_eq!(cancelled.status, 200);
        let cancelled = cancelled.json();
        assert_eq!(cancelled["status"], "cancelled", "it had not begun");
        assert_eq!(cancelled["usage"], Value::Null);
    }
    let answer = test.ask("POST", "/v1/batches/batch_x/cancel", "").await;
    assert_eq!(answer.code(404), Value::Null);
    assert_eq!(
        answer.json()["error"]["message"],
        "No batch found with id 'batch_x'."
    );
}

#[tokio::test]
async fn the_same_key_gives_the_same_batch() {
    let test = TestApi::new(Auth::Off).await;
    let create = |key: &'static str, body: &'static str| {
        test.send(request(
            "POST",
            "/v1/batches",
            &[("idempotency-key", key)],
            body,
        ))
    };
    let first = create("k1", GOOD).await;
    assert_eq!(first.status, 200);
    let again = create("k1", GOOD).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.headers["content-type"], "application/json");
    // Another order of keys and white space ask for the same.
    let reordered = r#"{"metadata":{"a":"1","b":"2"},"completion_window":"24h",
        "endpoint":"/v1/chat/completions","input_file_id":"file-abc"}"#;
    assert_eq!(create("k1", reordered).await.body, first.body);
    let other = r#"{"input_file_id":"file-other","endpoint":"/v1/chat/completions",
        "completion_window":"24h"}"#;
    assert_eq!(
        create("k1", other).await.code(400),
        "idempotency_key_reused"
    );
    assert_ne!(create("k2", GOOD).await.body, first.body);
    assert_eq!(create("", GOOD).await.code(400), "invalid_value");
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    use super::idempotency::{Begun, Key, begin};
    let test = TestApi::new(Auth::Off).await;
    let start = || begin(&test.api.store, "t", "route", Key(Some("k".to_owned())));
    let Ok(Begun::First(attempt)) = start().await else {
        panic!("the first");
    };
    let running = start().await.unwrap_err();
    assert_eq!(running.status, 409);
    assert_eq!(running.should_retry, Some(true));
    let failed: super::error::Result<()> = Err(super::error::internal());
    attempt.settle(&failed).await;
    let Ok(Begun::First(attempt)) = start().await else {
        panic!("given up");
    };
    // A client that goes away gives its claim up as well, a moment later.
    drop(attempt);
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while start().await.is_err() {
        assert!(std::time::Instant::now() < deadline, "never given up");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn with_keys_every_tenant_sees_its_own() {
    let test = TestApi::new(Auth::keys(Some(&"boot-key".to_owned().into()), Scopes::API)).await;
    let (one_id, one) = test.key("one").await;
    let (_, other) = test.key("other").await;
    let ask = |method: &'static str, path: String, key: &str, body: &'static str| {
        test.send(request(method, &path, &[("authorization", key)], body))
    };
    let batches = || "/v1/batches".to_owned();
    let batch = ask("POST", batches(), &one, GOOD).await.json();
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    assert_eq!(ask("GET", path.clone(), &one, "").await.status, 200);
    for stranger in [other.as_str(), "Bearer boot-key", "bearer boot-key"] {
        assert_eq!(
            ask("GET", path.clone(), stranger, "").await.code(404),
            Value::Null
        );
        let list = ask("GET", batches(), stranger, "").await.json();
        assert_eq!(list["data"], json!([]));
        let cancel = ask("POST", format!("{path}/cancel"), stranger, "").await;
        assert_eq!(cancel.status, 404);
    }

    let wrong = "Bearer sk-proj-abcdefghijklmnopqrstuvwxyz";
    let refused = ask("GET", path.clone(), wrong, "").await;
    assert_eq!(refused.code(401), "invalid_api_key");
    let message = refused.json()["error"]["message"].clone();
    let message = message.as_str().unwrap();
    assert!(
        message.starts_with("Incorrect API key provided: sk-***wxyz."),
        "{message}"
    );
    for none in ["Bearer ", "Basic Zm9v", ""] {
        assert_eq!(
            ask("GET", path.clone(), none, "").await.code(401),
            Value::Null
        );
    }

    assert!(test.api.store.revoke_key(&one_id).await.unwrap());
    let is_refused = async {
        loop {
            let revoked = ask("GET", path.clone(), &one, "").await;
            if revoked.status != StatusCode::OK {
                return revoked;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(30), is_refused);
    let refused = refused.await.expect("a revoked key is refused soon");
    assert_eq!(refused.code(401), "invalid_api_key");
}

#[tokio::test]
async fn some_pages_are_open_to_all() {
    let test = TestApi::new(Auth::keys(None, Scopes::API)).await;
    for path in ["/healthz", "/readyz", "/openapi.json", "/docs"] {
        let answer = test.ask("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}");
        let head = test.ask("HEAD", path, "").await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    }
    assert_eq!(test.ask("GET", "/v1/models", "").await.status, 401);
    test.engine.is_running.store(false, Ordering::Relaxed);
    assert_eq!(test.ask("GET", "/readyz", "").await.status, 503);
    assert_eq!(test.ask("GET", "/healthz", "").await.status, 200);
}

#[tokio::test]
async fn the_documentation_loads_nothing_from_elsewhere() {
    let test = TestApi::new(Auth::Off).await;
    let page = test.ask("GET", "/docs", "").await;
    let text = String::from_utf8(page.body).unwrap();
    assert!(!text.contains("://") && !text.contains("\"//"), "{text}");
    let assets = text.split('"').filter(|part| part.starts_with("/docs/"));
    let mut found = 0;
    for asset in assets {
        let answer = test.ask("GET", asset, "").await;
        assert_eq!(answer.status, 200, "{asset}");
        assert!(!answer.body.is_empty());
        found += 1;
    }
    assert_eq!(found, 5);
    let start = test.ask("GET", "/docs/swagger-initializer.js", "").await;
    let start = String::from_utf8(start.body).unwrap();
    assert!(start.contains("/openapi.json") && start.contains("\"validatorUrl\": \"none\""));
    assert_eq!(test.ask("GET", "/docs/nothing.js", "").await.status, 404);
}

#[tokio::test]
async fn without_keys_only_this_machine_is_answered() {
    let test = TestApi::new(Auth::Off).await;
    for (name, value, status) in [
        ("host", "localhost:8080", 200),
        ("host", "evil.example", 403),
        ("origin", "https://evil.example", 403),
        ("origin", "http://localhost:3000", 200),
        ("authorization", "Bearer whatever", 200),
    ] {
        let answer = test
            .send(request("GET", "/v1/models", &[(name, value)], ""))
            .await;
        assert_eq!(answer.status, status, "{name}: {value}");
    }
}

#[tokio::test]
async fn every_answer_has_an_id_and_every_refusal_an_envelope() {
    let test = TestApi::new(Auth::Off).await;
    let cases = [
        ("POST", "/v1/x", 404, "Invalid URL (POST /v1/x)"),
        ("GET", "/v1/batches/", 404, "Invalid URL (GET /v1/batches/)"),
        (
            "PUT",
            "/v1/batches",
            405,
            "Not allowed to PUT on /v1/batches.",
        ),
        (
            "GET",
            "/v1/batches/%ff",
            400,
            "The path of the URL is not valid UTF-8.",
        ),
        (
            "GET",
            "/v1/batches/a%00",
            404,
            "No batch found with id 'a\u{fffd}'.",
        ),
        (
            "GET",
            "/v1/models/org%2Fm:a%20b",
            404,
            "The model `org/m:a b` does not exist or you do not have access to it.",
        ),
        (
            "GET",
            "/v1/models/org/m/x",
            404,
            "The model `org/m/x` does not exist or you do not have access to it.",
        ),
    ];
    for (method, path, status, message) in cases {
        let answer = test.ask(method, path, "").await;
        answer.code(status);
        assert_eq!(answer.json()["error"]["message"], message);
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert!(id.starts_with("req_"), "{id}");
        assert_eq!(answer.headers["openai-version"], "2020-10-01");
        assert!(answer.headers.contains_key("openai-processing-ms"));
    }
    let answer = test.ask("PUT", "/v1/batches", "").await;
    assert_eq!(answer.code(405), "method_not_supported");
    assert!(answer.headers.contains_key("allow"));
}

#[tokio::test]
async fn a_model_is_found_by_its_name_however_its_slash_is_sent() {
    let test = TestApi::new(Auth::Off).await;
    let list = test.ask("GET", "/v1/models", "").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "plain");
    for path in ["org%2Fslashed", "org/slashed"] {
        let answer = test.ask("GET", &format!("/v1/models/{path}"), "").await;
        assert_eq!(
            answer.json(),
            json!({"id": "org/slashed", "object": "model", "created": 0, "owned_by": "upstream"})
        );
    }
    let answer = test.ask("GET", "/v1/models/slashed", "").await;
    assert_eq!(answer.code(404), "model_not_found");
}

#[tokio::test]
async fn a_body_over_256_kib_is_too_large() {
    let test = TestApi::new(Auth::Off).await;
    let body = |length: usize| format!("{{{}}}", " ".repeat(length - 2));
    let answer = test.ask("POST", "/v1/batches", &body(256 << 10)).await;
    assert_eq!(answer.code(400), "missing_required_parameter");
    let answer = test
        .ask("POST", "/v1/batches", &body((256 << 10) + 1))
        .await;
    assert_eq!(answer.code(413), Value::Null);
    assert_eq!(answer.headers["x-should-retry"], "false");
}

#[test]
fn the_document_names_every_public_path() {
    let document = super::document();
    for path in [
        "/healthz",
        "/readyz",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
        "/v1/models",
        "/v1/models/{model}",
    ] {
        assert!(document.paths.paths.contains_key(path), "{path}");
    }
}
