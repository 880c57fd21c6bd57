//! The middleware before all routes: who asks.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::caller::Caller;
use super::keys::{hash, masked};
use super::state::Auth;
use crate::api::drain::{drain, expects_continue};
use crate::api::error::{self, Result};
use crate::api::{Api, origin};
use crate::domain::scope::Scopes;
use crate::store::{self, KnownKey};

/// The tenant of the bootstrap key, and of everybody where no keys are needed.
pub const DEFAULT_TENANT: &str = "default";

/// The header in which Azure's clients send their key.
pub(in crate::api) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Paths that need no key.
const OPEN: [&str; 6] = [
    "/",
    "/healthz",
    "/readyz",
    "/version",
    "/openapi.json",
    "/docs",
];

/// What the log and batches call the bootstrap key, which has no id of its own.
const BOOTSTRAP_KEY_ID: &str = "bootstrap";

/// While the database does not answer, these paths accept operators' keys that this process
/// verified a short time ago: see [`Operators`](super::operators::Operators).
const FOR_OPERATORS: [&str; 2] = ["/metrics", "/admin/status"];
/// How long the database may take to confirm such a key again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds out who asks, for the extractors of the handlers, and refuses those without a valid key.
pub async fn authenticate(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match caller(&api, &parts).await {
        Ok(caller) => {
            if let Some(caller) = &caller {
                parts.extensions.insert(caller.clone());
            }
            let mut response = next.run(Request::from_parts(parts, body)).await;
            if let Some(caller) = caller {
                // For the request's line in the log.
                response.extensions_mut().insert(caller);
            }
            response
        }
        Err(error) => {
            if !expects_continue(&parts.headers) {
                drain(body).await;
            }
            error.into_response()
        }
    }
}

/// Who asks; `None` where anybody may.
async fn caller(api: &Api, parts: &Parts) -> Result<Option<Caller>> {
    let (bootstrap, operators, lately, last_use) = match &*api.auth {
        Auth::Off => {
            origin::require_local(parts)?;
            return Ok(Some(Caller {
                tenant: DEFAULT_TENANT.to_owned(),
                key_id: None,
                scopes: Scopes::WITHOUT_KEYS,
            }));
        }
        Auth::Keys {
            bootstrap,
            operators,
            lately,
            last_use,
        } => (bootstrap.get(), operators, lately, last_use),
    };
    let path = parts.uri.path();
    if is_open(path) {
        return Ok(None);
    }
    let key = key(parts)?;
    let given = hash(key);
    let bootstrap = (*bootstrap).as_ref();
    if let Some(bootstrap) = bootstrap.filter(|key| same(&key.hash, &given)) {
        return Ok(Some(Caller {
            tenant: DEFAULT_TENANT.to_owned(),
            key_id: Some(BOOTSTRAP_KEY_ID.to_owned()),
            scopes: bootstrap.scopes,
        }));
    }
    let now_ms = api.clock.now_ms();
    let is_for_operators = FOR_OPERATORS.contains(&path);
    let lately_confirmed = lately.confirmed(&given, now_ms);
    if let Some(caller) = lately_confirmed.filter(|_| !is_for_operators) {
        if let Some(id) = &caller.key_id {
            last_use.note(id, now_ms);
        }
        return Ok(Some(caller));
    }
    let known = operators.known(&given, now_ms);
    let found = match known.filter(|_| is_for_operators) {
        None => api.looks.key(&given).await?,
        Some(operator) => match in_time(api.looks.key(&given)).await {
            // Operators must see what is wrong just then.
            Err(error) if error.is_outage() => return Ok(Some(operator)),
            found => found?,
        },
    };
    match found {
        KnownKey::Active(stored) if same(&stored.hash, &given) => {
            last_use.note(&stored.id, now_ms);
            let caller = Caller {
                tenant: stored.tenant,
                key_id: Some(stored.id),
                scopes: stored.scopes,
            };
            lately.note(&given, &caller, stored.expires_at);
            operators.note(given, &caller, stored.expires_at);
            Ok(Some(caller))
        }
        KnownKey::Expired(stored) if same(&stored.hash, &given) => {
            operators.forget(&given);
            Err(error::expired_key(&masked(key)))
        }
        _ => {
            operators.forget(&given);
            Err(error::bad_key(&masked(key)))
        }
    }
}

async fn in_time(answer: impl Future<Output = store::Result<KnownKey>>) -> store::Result<KnownKey> {
    let late = |_| store::Error::TimedOut("a key");
    tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
}

fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with("/docs/")
}

/// The key in `Authorization: Bearer KEY`, or else in `api-key: KEY`.
fn key(parts: &Parts) -> Result<&str> {
    // Keys are ASCII, so what is not can be no key, and is no reason to overlook the other header.
    let headers = [header::AUTHORIZATION, API_KEY]
        .map(|name| parts.headers.get(name).map(HeaderValue::to_str));
    let is_unreadable = headers.iter().any(|value| matches!(value, Some(Err(_))));
    let [authorization, api_key] = headers.map(|value| value?.ok());
    let bearer = authorization.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let given = [bearer, api_key].into_iter().flatten();
    let mut keys = given.map(str::trim).filter(|key| !key.is_empty());
    match keys.next() {
        Some(key) => Ok(key),
        None if is_unreadable => Err(error::bad_key("***")),
        None => Err(error::missing_key()),
    }
}

/// Compares two hashes in the same time wherever they differ.
fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}
