//! Takes a request and decides what to answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::answer::{Draft, Endpoint};
use super::call::{Call, Steering};
use super::ending::{Cut, Ending};
use super::engine::Engine;
use super::events::Events;
use super::keys::Keys;
use super::limit::RateLimit;
use super::options::Options;
use super::outage::{self, OutageKind};
use super::prefix::PrefixCache;
use super::reply::{Reply, ReplyBody, Sending};
use super::stats::{Ledger, OpenCall, Stats};
use super::text::{Random, fingerprint};

/// The largest body that is read.
const MAX_BODY_BYTES: usize = 256 << 20;
/// Where an engine is told beyond how many calls at once it slows down.
const SLOW_BEYOND: &str = "/slow-beyond/";
/// Where a key is refused and accepted.
const KEYS: &str = "/keys/";
/// Tokens a second that an engine writes where nothing is said.
const DEFAULT_RATE: f64 = 50.0;

pub(super) struct Service {
    options: Options,
    pub(super) ledger: Arc<Ledger>,
    rate_limit: Option<RateLimit>,
    pub(super) keys: Keys,
    slots: Option<Arc<Semaphore>>,
    /// What writes the tokens, where their pace depends on how many calls there are.
    pub(super) engine: Option<Engine>,
    prefixes: Option<PrefixCache>,
    /// A permit for each answer that is granted.
    pub(super) grants: Option<Semaphore>,
    requests: AtomicU64,
    /// The status that every call is answered with; 0: none.
    pub(super) outage: AtomicU16,
    started: Instant,
}

impl Service {
    pub(super) fn new(options: Options) -> Self {
        Self {
            ledger: Arc::new(Ledger::new(options.track)),
            rate_limit: options.requests_per_minute.map(RateLimit::per_minute),
            keys: Keys::new(&options.api_keys, &options.rate_limits, options.dialect),
            slots: options
                .max_concurrency
                .map(|most| Arc::new(Semaphore::new(most))),
            engine: options.slow_beyond.map(|knee| {
                let rate = options.tokens_per_second;
                Engine::start(knee, rate.unwrap_or(DEFAULT_RATE))
            }),
            prefixes: options.prefix_cache.map(PrefixCache::of),
            grants: options.granted.map(Semaphore::new),
            requests: AtomicU64::new(0),
            outage: AtomicU16::new(0),
            started: Instant::now(),
            options,
        }
    }

    /// Answers a request. An error means that its connection is to be cut.
    pub(super) async fn respond(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, Cut> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut ids = Random::new(self.options.seed ^ number.rotate_left(32));
        let request_id = format!("req_{:016x}{:016x}", ids.next(), ids.next());

        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let endpoint = Endpoint::of(path).filter(|_| parts.method == Method::POST);
        let mut open = None;
        let reply = match endpoint {
            Some(endpoint) => {
                let open = open.insert(self.ledger.open());
                match self.away().await {
                    Some(away) => away,
                    None => self.call(endpoint, &parts, body, open).await,
                }
            }
            None if path.starts_with("/v1/") => match self.away().await {
                Some(away) => away,
                None => self.look(&parts.method, path, &parts.headers),
            },
            None => self.look(&parts.method, path, &parts.headers),
        };
        let reply = match endpoint {
            Some(Endpoint::Messages) => reply.for_messages(&request_id),
            _ => reply,
        };
        reply.into_response(&request_id, open)
    }

    /// What a request gets while the simulator is away.
    async fn away(&self) -> Option<Reply> {
        let since = self.started.elapsed();
        let outage = outage::at(&self.options.outages, since)?;
        match outage.kind {
            OutageKind::Status(status) => {
                let status = StatusCode::from_u16(status).ok()?;
                let mut reply = Reply::steered_error(status);
                reply.status = status;
                Some(reply)
            }
            OutageKind::Hang | OutageKind::Refuse => {
                tokio::time::sleep(outage.to.saturating_sub(since)).await;
                let mut reply = Reply::server_error();
                reply.sending = Sending::Nothing;
                Some(reply)
            }
        }
    }

    /// The next time in which connections are refused, from when until when.
    pub(super) fn next_refusal(&self) -> Option<(Instant, Instant)> {
        let outage = outage::next_refusal(&self.options.outages, self.started.elapsed())?;
        Some((self.started + outage.from, self.started + outage.to))
    }

    /// What was seen so far.
    pub(super) fn stats(&self) -> Stats {
        Stats {
            keys: self.keys.stats(),
            limits: self.keys.limits(),
            prefixes: self.prefixes.as_ref().map(PrefixCache::stats),
            ..self.ledger.stats()
        }
    }

    /// Counts from zero again.
    pub(super) fn reset(&self) {
        self.ledger.reset();
        self.keys.reset();
        if let Some(prefixes) = &self.prefixes {
            prefixes.reset();
        }
    }

    /// Everything that is not a call to a model.
    fn look(&self, method: &Method, path: &str, headers: &HeaderMap) -> Reply {
        match (method.as_str(), path) {
            ("GET", "/health") => Reply::json("{\"status\":\"ok\"}"),
            ("GET", "/stats") => match serde_json::to_vec(&self.stats()) {
                Ok(stats) => Reply::json(stats),
                Err(_) => Reply::server_error(),
            },
            ("POST", "/stats/reset") => {
                self.reset();
                Reply::json("{}")
            }
            ("GET", "/metrics") if self.engine.is_some() => {
                let engine = self.engine.as_ref();
                let model = self.options.listed_models();
                let model = model.first().copied().unwrap_or_default();
                let metrics = engine.map(|engine| engine.metrics(model));
                Reply::json(metrics.unwrap_or_default())
            }
            ("POST", path) if path.starts_with(SLOW_BEYOND) => {
                let knee = path[SLOW_BEYOND.len()..].parse().ok();
                match self.engine.as_ref().zip(knee.filter(|knee| *knee > 0)) {
                    Some((engine, knee)) => {
                        engine.bend_at(knee);
                        Reply::json("{}")
                    }
                    None => Reply::invalid("The simulator has no engine, or this is no number."),
                }
            }
            ("POST", path) if path.starts_with(KEYS) => self.turn_key(&path[KEYS.len()..]),
            (_, path) if path.starts_with("/v1/") => match self.keys.of(headers) {
                None => Reply::wrong_key(),
                Some(key) => match key.refusal() {
                    Some(status) => Reply::refused_key(status),
                    None => self.look_at_models(method, path),
                },
            },
            (verb, path) => Reply::unknown_url(StatusCode::NOT_FOUND, verb, path),
        }
    }

    /// Refuses and accepts a key: `NAME/STATUS`.
    fn turn_key(&self, rest: &str) -> Reply {
        let turned = rest.rsplit_once('/').and_then(|(name, status)| {
            let status = status.parse().ok()?;
            let is_known = matches!(status, 200 | 401 | 402 | 403 | 429);
            (is_known && self.keys.set(name, status)).then_some(())
        });
        match turned {
            Some(()) => Reply::json("{}"),
            None => Reply::invalid("There is no key of this name, or it cannot have this status."),
        }
    }

    /// What there is under `/v1` beside calls.
    fn look_at_models(&self, method: &Method, path: &str) -> Reply {
        match (method.as_str(), path) {
            ("GET", "/v1/models") => {
                let names = self.options.listed_models();
                let models: Vec<Value> = names.iter().map(|name| model(name)).collect();
                Reply::json(json!({"object": "list", "data": models}).to_string())
            }
            (verb, path) => match path.strip_prefix("/v1/models/") {
                Some(name) if verb == "GET" => {
                    let name = name.replace("%2F", "/").replace("%2f", "/");
                    if self.options.serves(&name) {
                        Reply::json(model(&name).to_string())
                    } else {
                        Reply::unknown_model(&name)
                    }
                }
                None if Endpoint::of(path).is_some() => {
                    Reply::unknown_url(StatusCode::METHOD_NOT_ALLOWED, verb, path)
                }
                _ => Reply::unknown_url(StatusCode::NOT_FOUND, verb, path),
            },
        }
    }

    /// A call to a model. The body is read first whatever becomes of it, so that the connection
    /// can be used again.
    async fn call(
        &self,
        endpoint: Endpoint,
        parts: &Parts,
        body: Incoming,
        open: &mut OpenCall,
    ) -> Reply {
        let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
            return Reply::too_large();
        };
        let body = body.to_bytes();
        if let Ok(status) = StatusCode::from_u16(self.outage.load(Ordering::Relaxed)) {
            let mut reply = Reply::steered_error(status);
            reply.status = status;
            return reply;
        }
        let Some(key) = self.keys.of(&parts.headers) else {
            return Reply::wrong_key();
        };
        if let Some(status) = key.enter() {
            return Reply::refused_key(status);
        }
        if let Some(limit) = &self.rate_limit
            && let Err(wait) = limit.admit(Instant::now())
        {
            return Reply::rate_limited().with_retry_after(wait);
        }
        match self.slots.clone().map(Semaphore::try_acquire_owned) {
            Some(Err(_)) => return Reply::rate_limited(),
            Some(Ok(slot)) => open.hold(slot),
            None => {}
        }
        let call = match Call::read(&body) {
            Ok(call) => call,
            Err(error) => return Reply::invalid(&format!("The body is not valid: {error}.")),
        };
        let Some(model) = call.model.as_deref().or(endpoint.default_model()) else {
            return Reply::invalid("you must provide a model parameter");
        };
        open.of_model(model);
        if !self.options.serves(model) {
            return Reply::unknown_model(model);
        }
        let caller = Caller {
            endpoint,
            parts,
            body: &body,
            call: &call,
            model,
        };
        let Some(limits) = &key.limits else {
            return self.serve(&caller, open).await;
        };
        let draft = Draft::new(
            &self.options,
            endpoint,
            &call,
            model,
            fingerprint(self.options.seed, &body),
            body.len(),
        );
        let mut reply = match limits.admit(Instant::now(), draft.need()) {
            Ok(()) => self.serve(&caller, open).await,
            Err(wait) => Reply::rate_limited().with_retry_after(wait),
        };
        reply.headers.extend(limits.headers(Instant::now()));
        reply
    }

    /// Waits as long as a model would take, then answers, unless the request or luck says
    /// otherwise.
    async fn serve(&self, caller: &Caller<'_>, open: &mut OpenCall) -> Reply {
        let fingerprint = fingerprint(self.options.seed, caller.body);
        let steering = &caller.call.simulate;
        let counts_bodies =
            self.options.track || self.options.is_moody() || steering.times.is_some();
        let earlier = if counts_bodies {
            open.of_body(fingerprint)
        } else {
            0
        };
        let steers = steering.has_fault() && steering.times.is_none_or(|times| earlier < times);
        if steers && steering.hang {
            std::future::pending::<()>().await;
        }

        let mut luck = Random::new(fingerprint.rotate_left(32) ^ u64::from(earlier));
        let mood = luck.share();
        let is_limited = mood >= self.options.error_rate
            && mood < self.options.error_rate + self.options.rate_limit_rate;
        if !steers && is_limited {
            let wait = Duration::from_millis(20 + luck.next() % 100);
            return Reply::rate_limited().with_retry_after(wait);
        }

        let draft = Draft::new(
            &self.options,
            caller.endpoint,
            caller.call,
            caller.model,
            fingerprint,
            caller.body.len(),
        );
        let prefixes = self.prefixes.as_ref();
        let draft = draft.cached(prefixes.map(|prefixes| prefixes.enter(caller.body)));
        // The words of a stream take their time each.
        let streams = caller.streams();
        let written = if streams { 0 } else { draft.tokens() };
        let inputs = caller.call.inputs().len();
        let wait = match steering.latency_ms {
            Some(ms) => Duration::from_millis(ms),
            None => self.options.wait(luck.share(), written, inputs),
        };
        let mut presence = self.engine.as_ref().map(Engine::enter);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if let Some(presence) = &mut presence
            && steering.latency_ms.is_none()
        {
            presence.write(draft.tokens()).await;
        }
        drop(presence);
        if let Some(grants) = &self.grants
            && let Ok(grant) = grants.acquire().await
        {
            grant.forget();
        }
        if !steers && mood < self.options.error_rate {
            return Reply::server_error();
        }
        if let Some(text) = &self.options.refused_text
            && memchr::memmem::find(caller.body, text.as_bytes()).is_some()
        {
            return Reply::invalid("The body has a text that is refused.");
        }
        let mut reply = if steers {
            steered(steering, || caller.answer(draft))
        } else {
            caller.answer(draft)
        };
        if streams && reply.status.is_success() && reply.sending != Sending::Nothing {
            let ending = if steers {
                steering.ending()
            } else {
                self.options.ending(mood)
            };
            let course = (self.options.pace(), ending);
            reply.events = caller.events(&reply.body, course);
        }
        reply
    }
}

/// A request that has got as far as the model.
struct Caller<'a> {
    endpoint: Endpoint,
    parts: &'a Parts,
    body: &'a Bytes,
    call: &'a Call,
    model: &'a str,
}

impl Caller<'_> {
    /// Whether the answer is to be a stream.
    fn streams(&self) -> bool {
        self.call.stream == Some(true) && self.endpoint.writes_text()
    }

    /// An answer as a stream: how far its words are apart, and how it ends.
    fn events(&self, answer: &[u8], course: (Duration, Ending)) -> Option<Events> {
        Events::of(self.endpoint, answer, self.call.wants_usage(), course)
    }

    fn answer(&self, draft: Draft<'_>) -> Reply {
        match draft.write() {
            Ok((answer, used)) if self.call.simulate.echo => Reply {
                used,
                ..self.echo(&answer)
            },
            Ok((answer, used)) => Reply {
                used,
                ..Reply::json(answer)
            },
            Err(_) => Reply::server_error(),
        }
    }

    /// The answer with one more key: `echo`, what the request looked like from here.
    fn echo(&self, answer: &[u8]) -> Reply {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers: Value = self
            .parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), Value::String(text(value))))
            .collect();
        let echo = json!({
            "path": self.parts.uri.path(),
            "query": self.parts.uri.query(),
            "headers": headers,
            "body": String::from_utf8_lossy(self.body),
        });
        let start = answer.strip_suffix(b"}").unwrap_or(answer);
        let end = format!(",\"echo\":{echo}}}");
        Reply::json([start, end.as_bytes()].concat())
    }
}

/// The answer that a request asked for.
fn steered(steering: &Steering, usual: impl FnOnce() -> Reply) -> Reply {
    let status = match steering.status.map(StatusCode::from_u16) {
        Some(Err(_)) => return Reply::invalid("simulate.status is no status."),
        Some(Ok(status)) => status,
        None => StatusCode::OK,
    };
    let mut reply = match &steering.body {
        Some(text) => Reply::json(text.clone()),
        None if status.is_success() => usual(),
        None => Reply::steered_error(status),
    };
    reply.status = status;
    if let Some(ms) = steering.retry_after_ms {
        reply = reply.with_retry_after(Duration::from_millis(ms));
    }
    for (name, value) in &steering.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) else {
            return Reply::invalid("simulate.headers has a name or value that is none.");
        };
        reply = reply.with_header(name, value);
    }
    if steering.truncate {
        reply.sending = Sending::Half;
    }
    if steering.reset {
        reply.sending = Sending::Nothing;
    }
    reply
}

fn model(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 1_750_000_000, "owned_by": "simulate"})
}
