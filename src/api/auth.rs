//! Who asks: API keys, and what stands in for them where none are needed.

mod operators;

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

use super::drain::{drain, waits_for_leave};
use super::error::{self, ApiError, Result};
use super::{Api, origin};
use crate::store::{self, ApiKey};
use operators::Operators;

/// The tenant of the bootstrap key, and of everybody where no keys are needed.
pub const DEFAULT_TENANT: &str = "default";

/// The header in which Azure's clients send their key.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// What can be asked for without a key.
const OPEN: [&str; 5] = ["/", "/healthz", "/readyz", "/openapi.json", "/docs"];

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
        /// The hash of a first key that is configured rather than stored.
        bootstrap: Option<String>,
        operators: Operators,
    },
}

impl Auth {
    /// Keys are needed: those in the store, and the bootstrap key of the configuration.
    #[must_use]
    pub fn keys(bootstrap: Option<&SecretString>) -> Self {
        Auth::Keys {
            bootstrap: bootstrap.map(|key| hash(key.expose_secret())),
            operators: Operators::default(),
        }
    }
}

/// On whose behalf a request is made. A handler that takes one is open to callers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub tenant: String,
    /// Whether the key was made with `--admin`, or none is needed.
    pub admin: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        // Put there by `authenticate`, which stands before all but the open routes.
        parts
            .extensions
            .get::<Caller>()
            .cloned()
            .ok_or_else(error::missing_key)
    }
}

/// A caller who may see what operators see.
pub struct Admin;

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if caller.admin {
            Ok(Admin)
        } else {
            Err(error::forbidden(
                "This is for operators: it needs a key made with `nightshift keys create --admin`.",
            ))
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
    hex(&Sha256::digest(key))
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
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
            if !waits_for_leave(&parts.headers) {
                drain(body).await;
            }
            error.into_response()
        }
    }
}

/// Who asks; `None` where anybody may.
async fn caller(api: &Api, parts: &Parts) -> Result<Option<Caller>> {
    let (bootstrap, operators) = match &*api.auth {
        Auth::Off => {
            origin::require_local(parts)?;
            return Ok(Some(Caller {
                admin: true,
                ..default_tenant()
            }));
        }
        Auth::Keys {
            bootstrap,
            operators,
        } => (bootstrap.as_deref(), operators),
    };
    if is_open(parts.uri.path()) {
        return Ok(None);
    }
    let key = key(parts)?;
    let given = hash(key);
    if bootstrap.is_some_and(|hash| same(hash, &given)) {
        return Ok(Some(default_tenant()));
    }
    let path = parts.uri.path();
    let known = operators.known(&given);
    let found = match known.filter(|_| FOR_OPERATORS.contains(&path)) {
        None => api.store.key_of_hash(&given).await?,
        Some(operator) => match in_time(api.store.key_of_hash(&given)).await {
            // The database is away, or slow: who watches over it is to see so.
            Err(error) if error.is_outage() => return Ok(Some(operator)),
            found => found?,
        },
    };
    match found {
        Some(stored) if same(&stored.hash, &given) => {
            let caller = Caller {
                tenant: stored.tenant,
                admin: stored.admin,
            };
            operators.note(given, &caller);
            Ok(Some(caller))
        }
        _ => {
            operators.forget(&given);
            Err(error::bad_key(&masked(key)))
        }
    }
}

async fn in_time(
    answer: impl Future<Output = store::Result<Option<ApiKey>>>,
) -> store::Result<Option<ApiKey>> {
    let late = |_| store::Error::TimedOut("a key");
    tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
}

fn default_tenant() -> Caller {
    Caller {
        tenant: DEFAULT_TENANT.to_owned(),
        admin: false,
    }
}

fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with("/docs/")
}

/// The key in `Authorization: Bearer KEY`, or else in `api-key: KEY`.
fn key(parts: &Parts) -> Result<&str> {
    let header = |name: HeaderName| {
        // Keys are ASCII, so what is not can be no key.
        let value = parts.headers.get(name).map(HeaderValue::to_str).transpose();
        value.map_err(|_| error::bad_key("***"))
    };
    let bearer = header(header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let given = [bearer, header(API_KEY)?].into_iter().flatten();
    let mut keys = given.map(str::trim).filter(|key| !key.is_empty());
    keys.next().ok_or_else(error::missing_key)
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
