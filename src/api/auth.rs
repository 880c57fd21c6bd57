//! Who asks: API keys, and what stands in for them where none are needed.

mod last_use;
mod operators;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use super::drain::{drain, expects_continue};
use super::error::{self, ApiError, Result};
use super::{Api, origin};
use crate::domain::scope::Scopes;
use crate::store::{self, KnownKey, Store};
use last_use::LastUse;
use operators::Operators;

/// The tenant of the bootstrap key, and of everybody where no keys are needed.
pub const DEFAULT_TENANT: &str = "default";

/// The header in which Azure's clients send their key.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// What can be asked for without a key.
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

/// What operators read: they may while the database does not answer, too.
const FOR_OPERATORS: [&str; 2] = ["/metrics", "/admin/status"];
/// How long the database may take to say whether a known operator's key still holds.
const PATIENCE: Duration = Duration::from_secs(2);

/// What every key begins with.
const KEY_PREFIX: &str = "sk-ns-";
/// What the keys of most services begin with.
pub(super) const KEY_BEGINNING: &str = "sk-";
/// Random characters of a key: 62 to the power of 32 is more than 190 bits.
const KEY_RANDOM_CHARS: usize = 32;
/// A text shorter than this is masked whole.
const MASKED_CHARS_MIN: usize = 20;

/// Whether keys are needed.
#[derive(Debug)]
pub enum Auth {
    /// Everybody is the default tenant; but only this machine's own pages and programs may ask.
    Off,
    /// A key is needed.
    Keys {
        /// A first key that is configured rather than stored.
        bootstrap: Option<BootstrapKey>,
        operators: Operators,
        last_use: LastUse,
    },
}

/// A key of the configuration.
#[derive(Debug)]
pub struct BootstrapKey {
    hash: String,
    scopes: Scopes,
}

impl Auth {
    /// Keys are needed: those in the store, and the bootstrap key of the configuration with its
    /// scopes.
    #[must_use]
    pub fn keys(bootstrap: Option<&SecretString>, scopes: Scopes) -> Self {
        Auth::Keys {
            bootstrap: bootstrap.map(|key| BootstrapKey {
                hash: hash(key.expose_secret()),
                scopes,
            }),
            operators: Operators::default(),
            last_use: LastUse::default(),
        }
    }

    /// Writes when keys were used last, until it is stopped.
    pub async fn write_last_use(self: Arc<Self>, store: Store, stop: CancellationToken) {
        if let Auth::Keys { last_use, .. } = &*self {
            let statement = |uses: Vec<_>| {
                let store = store.clone();
                async move { store.note_use_of_keys(&uses).await }
            };
            last_use.write(statement, &stop).await;
        }
    }
}

/// On whose behalf a request is made. A handler that takes one is open to a tenant's callers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Empty where the key belongs to no tenant.
    pub tenant: String,
    /// `None` where no key is needed.
    pub key_id: Option<String>,
    pub scopes: Scopes,
}

impl Caller {
    /// The caller that `authenticate` found, which stands before all but the open routes.
    fn found(parts: &Parts) -> Result<&Caller> {
        let caller = parts.extensions.get::<Caller>();
        caller.ok_or_else(error::missing_key)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = Caller::found(parts)?;
        if caller.scopes.open_the_api() {
            Ok(caller.clone())
        } else {
            Err(error::missing_scope("api"))
        }
    }
}

/// A caller who may act on single batches: those of the own tenant, or with the scope `admin` those
/// of every tenant.
pub struct BatchCaller(pub Caller);

impl<S: Send + Sync> FromRequestParts<S> for BatchCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let caller = Caller::found(parts)?;
        if caller.scopes.open_every_batch() {
            return Ok(BatchCaller(caller.clone()));
        }
        Caller::from_request_parts(parts, state)
            .await
            .map(BatchCaller)
    }
}

/// A caller who may read the metrics.
pub struct Scraper;

impl<S: Send + Sync> FromRequestParts<S> for Scraper {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        if Caller::found(parts)?.scopes.open_metrics() {
            Ok(Scraper)
        } else {
            Err(error::missing_scope("metrics"))
        }
    }
}

/// A caller who may see and do what operators do.
pub struct Admin {
    /// `None` where no key is needed.
    pub key_id: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = Caller::found(parts)?;
        if caller.scopes.open_admin() {
            Ok(Admin {
                key_id: caller.key_id.clone(),
            })
        } else {
            Err(error::missing_scope("admin"))
        }
    }
}

/// A key that was made just now.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The key itself: shown once, stored nowhere.
    pub key: SecretString,
    /// What is stored: see [`hash`].
    pub hash: String,
    /// The key's first and last characters, for people to tell keys apart.
    pub hint: String,
}

/// A new random key.
#[must_use]
pub fn new_key() -> NewKey {
    let random = Alphanumeric.sample_string(&mut rand::rng(), KEY_RANDOM_CHARS);
    let key = format!("{KEY_PREFIX}{random}");
    NewKey {
        hash: hash(&key),
        hint: masked(&key),
        key: SecretString::from(key),
    }
}

/// The SHA-256 of a key, in hex. No salt: keys are random, and found by their hash.
#[must_use]
pub fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

/// The middleware before all routes: finds out who asks, and turns strangers away.
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
    let (bootstrap, operators, last_use) = match &*api.auth {
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
            last_use,
        } => (bootstrap.as_ref(), operators, last_use),
    };
    let path = parts.uri.path();
    if is_open(path) {
        return Ok(None);
    }
    let key = key(parts)?;
    let given = hash(key);
    if let Some(bootstrap) = bootstrap.filter(|key| same(&key.hash, &given)) {
        return Ok(Some(Caller {
            tenant: DEFAULT_TENANT.to_owned(),
            key_id: Some(BOOTSTRAP_KEY_ID.to_owned()),
            scopes: bootstrap.scopes,
        }));
    }
    let now_ms = api.clock.now_ms();
    let known = operators.known(&given, now_ms);
    let found = match known.filter(|_| FOR_OPERATORS.contains(&path)) {
        None => api.store.key_of_hash(&given).await?,
        Some(operator) => match in_time(api.store.key_of_hash(&given)).await {
            // The database is away, or slow: who watches over it is to see so.
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

/// Enough of a key to tell which it is, and too little to use it.
fn masked(key: &str) -> String {
    if key.len() < MASKED_CHARS_MIN || !key.is_ascii() {
        return "***".to_owned();
    }
    let shown = key
        .strip_prefix(KEY_PREFIX)
        .map_or(3, |_| KEY_PREFIX.len() + 2);
    format!("{}***{}", &key[..shown], &key[key.len() - 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_random_and_only_hinted_at() {
        let (one, other) = (new_key(), new_key());
        let key = one.key.expose_secret();
        assert_ne!(key, other.key.expose_secret());
        assert!(key.starts_with("sk-ns-") && key.len() == 6 + 32, "{key}");
        assert_eq!(one.hash, hash(key));
        assert_eq!(one.hint, format!("{}***{}", &key[..8], &key[34..]));
    }

    #[test]
    fn a_hash_is_sha_256_in_hex() {
        assert_eq!(
            hash("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn short_keys_are_masked_whole() {
        assert_eq!(masked("sk-short"), "***");
        assert_eq!(masked("sk-proj-0123456789abcdef"), "sk-***cdef");
        assert_eq!(masked(&"é".repeat(30)), "***");
    }
}
