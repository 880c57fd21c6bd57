//! Against scripted model servers on the loopback.

mod balancing;
mod calls;
mod engines;
mod keys;
mod outages;
mod rates;
mod reload;
mod routing;
mod scopes;
mod streams;
mod translation;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::attempt::call::Attempt;
use super::settings::Pace;
use super::*;
use crate::domain::outcome::ErrorCode;

/// A request that a scripted server has received.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    /// How many of this method came before.
    nth: usize,
}

impl Seen {
    fn is_get(&self) -> bool {
        self.method == "GET"
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    delay: Duration,
}

fn reply(status: u16, body: &str) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: body.to_owned(),
        delay: Duration::ZERO,
    }
}

impl Reply {
    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn after(mut self, ms: u64) -> Self {
        self.delay = Duration::from_millis(ms);
        self
    }
}

fn models(ids: &[&str]) -> Reply {
    let data: Vec<_> = ids.iter().map(|id| serde_json::json!({"id": id})).collect();
    reply(
        200,
        &serde_json::json!({"object": "list", "data": data}).to_string(),
    )
}

/// A scripted server; it goes away when dropped.
struct Server {
    base_url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _stop: DropGuard,
}

impl Server {
    async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::on(listener, script)
    }

    fn on(listener: TcpListener, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let (script, log) = (Arc::new(script), Arc::clone(&seen));
        let router = axum::Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX)
                .await
                .expect("a body");
            let method = parts.method.to_string();
            let one = {
                let mut log = log.lock().expect("a lock");
                let one = Seen {
                    nth: log.iter().filter(|seen| seen.method == method).count(),
                    method,
                    path: parts.uri.to_string(),
                    headers: parts.headers,
                    body,
                };
                log.push(one.clone());
                one
            };
            let reply = script(&one);
            tokio::time::sleep(reply.delay).await;
            respond(reply)
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            let served = axum::serve(listener, router);
            tokio::select! {
                served = served => served.expect("serves"),
                () = stopped => {}
            }
        });
        Self {
            base_url: format!("http://{address}/v1"),
            seen,
            _stop: stop.drop_guard(),
        }
    }

    fn seen(&self, method: &str) -> Vec<Seen> {
        let seen = self.seen.lock().expect("a lock");
        seen.iter()
            .filter(|seen| seen.method == method)
            .cloned()
            .collect()
    }
}

fn respond(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).expect("a status");
    let mut response = (status, reply.body).into_response();
    for (name, value) in reply.headers {
        let value = HeaderValue::try_from(value).expect("a value");
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    response
}

/// A server that reads a request and then writes these bytes and closes; `None`: says nothing.
async fn raw(answer: Option<&'static [u8]>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                match answer {
                    Some(answer) => stream.write_all(answer).await.expect("is read"),
                    None => std::future::pending().await,
                }
            });
        }
    });
    format!("http://{address}/v1")
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}/v1", listener.local_addr().expect("an address"))
}

pub(crate) fn upstream(name: &str, base_url: &str) -> UpstreamSettings {
    UpstreamSettings {
        rate_limits: Vec::new(),
        name: name.to_owned(),
        provider: ProviderKind::OpenAi,
        base_url: base_url.to_owned(),
        api_version: None,
        unsupported_params: UnsupportedParams::Reject,
        only_max_tokens: false,
        reasoning_key: None,
        price: None,
        capabilities: Vec::new(),
        translates_responses: false,
        keys: Vec::new(),
        auth_header: None,
        enabled: true,
        concurrency: 4,
        is_auto: false,
        metrics_url: None,
        yields: false,
        timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(2),
        stream: false,
        idle_timeout: Duration::from_mins(1),
        stream_timeout: Duration::from_mins(1),
        max_response_bytes: 1 << 20,
        headers: BTreeMap::new(),
        proxy: None,
        ca_file: None,
        http2: Http2::Auto,
    }
}

fn key(name: &str, secret: &str) -> UpstreamKey {
    UpstreamKey {
        name: name.to_owned(),
        secret: secret.into(),
    }
}

pub(super) fn route(upstream: &str, model: Option<&str>) -> RouteSettings {
    RouteSettings {
        pack: None,
        rate_limits: Vec::new(),
        upstream: upstream.to_owned(),
        model: model.map(str::to_owned),
        weight: 1,
        tier: 0,
        concurrency: None,
        is_auto: false,
        defaults: serde_json::Map::new(),
        overrides: serde_json::Map::new(),
        price: None,
    }
}

pub(super) fn model(name: &str, routes: Vec<RouteSettings>) -> ModelSettings {
    ModelSettings {
        order: Order::default(),
        rate_limits: Vec::new(),
        name: name.to_owned(),
        concurrency: None,
        is_auto: false,
        balance: Strategy::default(),
        spill: Spill::default(),
        routes,
        defaults: serde_json::Map::new(),
        overrides: serde_json::Map::new(),
    }
}

pub(super) fn settings(upstreams: Vec<UpstreamSettings>, models: Vec<ModelSettings>) -> Settings {
    Settings {
        upstreams,
        models,
        tenants: Vec::new(),
        retry: RetrySettings {
            max_attempts: 5,
            initial_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_millis(100),
            longest_wait: Duration::from_mins(10),
        },
        tasks: Vec::new(),
        currency: None,
        max_in_flight_bytes: 1 << 26,
    }
}

/// Options that do not keep a test waiting.
pub(super) fn hasty() -> Options {
    Options {
        pace: Pace {
            probe_first: Duration::from_millis(20),
            probe_longest: Duration::from_millis(100),
            failing_longest: Duration::from_millis(100),
            trial_first: Duration::from_millis(50),
            trial_longest: Duration::from_millis(200),
            discovery: Duration::from_millis(50),
            first_discovery_max: Duration::from_secs(30),
        },
        ..Options::default()
    }
}

fn pool(settings: &Settings) -> Arc<Pool> {
    Pool::new(settings, hasty()).expect("a good configuration")
}

/// A pool whose upkeep runs until the guard is dropped.
fn running(settings: &Settings) -> (Arc<Pool>, DropGuard) {
    let (pool, stop) = (pool(settings), CancellationToken::new());
    tokio::spawn(Arc::clone(&pool).run(stop.clone()));
    (pool, stop.drop_guard())
}

/// A line whose last attempt failed at this one of the targets.
fn failed_at(routes: &Routes, place: usize) -> History {
    let (mut history, backend) = (History::default(), &routes.targets[place].by_key[0].backend);
    history.failed(backend, &backend.evidence(), tokio::time::Instant::now());
    history
}

fn permit(pool: &Arc<Pool>, model: &str) -> Permit {
    permit_for(pool, model, &History::default())
}

fn permit_for(pool: &Arc<Pool>, model: &str, history: &History) -> Permit {
    let routes = pool.resolve(model).expect("is served");
    match pool.try_acquire(&routes, history, 0, None) {
        Acquired::Permit(permit) => permit,
        other => panic!("no permit: {other:?}"),
    }
}

const CHAT: &str = "/v1/chat/completions";

async fn send(pool: &Arc<Pool>, permit: Permit, body: &str) -> Attempt {
    let call = Call {
        path: CHAT,
        body: Bytes::copy_from_slice(body.as_bytes()),
        reservation: pool.budget().reserve(),
        traceparent: None,
    };
    pool.call(permit, call, &mut History::default(), &mut Timer::default())
        .await
}

/// Sends a line that may have failed before.
async fn send_again(pool: &Arc<Pool>, history: &mut History, body: &str) -> Attempt {
    let call = Call {
        path: CHAT,
        body: Bytes::copy_from_slice(body.as_bytes()),
        reservation: pool.budget().reserve(),
        traceparent: None,
    };
    let permit = permit_for(pool, "m", history);
    pool.call(permit, call, history, &mut Timer::default())
        .await
}

async fn line(pool: &Arc<Pool>) -> Attempt {
    send(pool, permit(pool, "m"), r#"{"model":"m"}"#).await
}

fn answer(attempt: Attempt) -> Answer {
    match attempt {
        Attempt {
            next: Next::End,
            answer: Some(answer),
            ..
        } => answer,
        other => panic!("no answer: {other:?}"),
    }
}

fn retried(attempt: Attempt) -> Attempt {
    assert_ne!(attempt.next, Next::End, "not again: {attempt:?}");
    attempt
}

/// Sends a line until it has ended.
async fn to_its_end(pool: &Arc<Pool>) -> Answer {
    let mut history = History::default();
    let routes = pool.resolve("m").expect("is served");
    for _ in 0..100 {
        let permit = match pool.try_acquire(&routes, &history, 0, None) {
            Acquired::Permit(permit) => permit,
            Acquired::Full | Acquired::Closed { .. } => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            other => panic!("no permit: {other:?}"),
        };
        let call = Call {
            path: CHAT,
            body: Bytes::from_static(br#"{"model":"m"}"#),
            reservation: pool.budget().reserve(),
            traceparent: None,
        };
        let attempt = pool
            .call(permit, call, &mut history, &mut Timer::default())
            .await;
        if attempt.next == Next::End {
            return attempt.answer.expect("an answer");
        }
    }
    panic!("the line does not end");
}

/// Waits until something is so, and fails after a minute.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came true: {what}");
}
