//! Requests with an `Idempotency-Key` are done once, and get the same answer whenever they come
//! again.
//!
//! A request claims its key before its work begins. The transaction that does the work stores the
//! answer, too. A request that fails, or whose client goes away, gives its claim up.

use std::pin::pin;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::{self, ApiError, Result};
use crate::domain::id;
use crate::store::{Claim, Claimed, Remembered, Store};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY_CHARS_MAX: usize = 255;
/// How often a long request renews its claim. A claim that is not renewed for two minutes lapses.
const TOUCH_INTERVAL: Duration = Duration::from_secs(20);

/// The `Idempotency-Key` of a request, if it has one. A handler with a body takes a `Result<Key>`,
/// and reads the body before it refuses a bad key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Some(value) = parts.headers.get(HEADER) else {
            return Ok(Key(None));
        };
        match value.to_str() {
            Ok(key) if (1..=KEY_CHARS_MAX).contains(&key.len()) => Ok(Key(Some(key.to_owned()))),
            _ => Err(error::invalid_value_because(
                "Idempotency-Key",
                format!("An Idempotency-Key has 1 to {KEY_CHARS_MAX} ASCII characters."),
            )),
        }
    }
}

/// Whether a request is to be done.
#[derive(Debug)]
pub enum Begun {
    /// It is to be done: it is the first one with its key, or has none.
    First(Attempt),
    /// It was answered before: [`replay`] gives the answer again.
    Again(Remembered),
}

/// Begins a request. `route`: one key may be used once for each route at the same time.
///
/// # Errors
/// When another request with the key is still being worked on, or the database fails.
pub async fn begin(store: &Store, tenant: &str, route: &str, key: Key) -> Result<Begun> {
    let Some(key) = key.0 else {
        return Ok(Begun::First(Attempt { held: None }));
    };
    let claim = Claim {
        tenant: tenant.to_owned(),
        route: route.to_owned(),
        key,
        token: id::incarnation(),
        fingerprint: String::new(),
    };
    // Before the claim is made: a request that is cut off meanwhile gives its claim up, too.
    let attempt = Attempt {
        held: Some(Held {
            store: store.clone(),
            claim,
            touched: Instant::now(),
            touched_every: TOUCH_INTERVAL,
        }),
    };
    match attempt.claim_in_store().await? {
        Claimed::Fresh => Ok(Begun::First(attempt)),
        Claimed::Running => {
            attempt.done();
            Err(error::idempotency_running())
        }
        Claimed::Answered(remembered) => {
            attempt.done();
            Ok(Begun::Again(remembered))
        }
    }
}

/// A request that is being done, and its claim if it has a key. When it is dropped before it is
/// [settled](Attempt::settle), it gives the claim up in the background.
#[derive(Debug)]
pub struct Attempt {
    held: Option<Held>,
}

struct Held {
    store: Store,
    claim: Claim,
    touched: Instant,
    touched_every: Duration,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.claim.fmt(f)
    }
}

impl Attempt {
    async fn claim_in_store(&self) -> Result<Claimed> {
        match &self.held {
            Some(held) => Ok(held.store.claim(&held.claim).await?),
            None => Ok(Claimed::Fresh),
        }
    }

    /// Adds the fingerprint of what the request asks for. Called before [`Self::claim`].
    pub fn identify(&mut self, fingerprint: String) {
        if let Some(held) = &mut self.held {
            held.claim.fingerprint = fingerprint;
        }
    }

    /// The claim under which the store remembers the answer; `None` for a request without key.
    #[must_use]
    pub fn claim(&self) -> Option<&Claim> {
        self.held.as_ref().map(|held| &held.claim)
    }

    /// Renews the claim if that is due. Cheap: may be called at every step of a long request.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn touch(&mut self) -> Result<()> {
        if let Some(held) = &mut self.held
            && held.touched.elapsed() >= held.touched_every
        {
            held.store.touch_claim(&held.claim).await?;
            held.touched = Instant::now();
        }
        Ok(())
    }

    /// Does a piece of the work, and renews the claim for as long as that takes.
    ///
    /// # Errors
    /// When the database fails. The work is then given up.
    pub async fn alive_during<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        let mut work = pin!(work);
        loop {
            self.touch().await?;
            let Some(held) = &self.held else {
                return Ok(work.await);
            };
            if let Ok(done) = tokio::time::timeout(held.touched_every, &mut work).await {
                return Ok(done);
            }
        }
    }

    /// Ends the attempt. After a failure the claim is given up before the client gets the answer,
    /// so that the client can try again at once.
    pub async fn settle<T>(self, outcome: &Result<T>) {
        if outcome.is_err()
            && let Some(held) = &self.held
            && let Err(error) = held.store.abandon_claim(&held.claim).await
        {
            tracing::warn!(%error, "a claim was not given up; it will lapse by itself");
        }
        self.done();
    }

    /// Forgets the claim without giving it up.
    fn done(mut self) {
        self.held = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = held.store.abandon_claim(&held.claim).await {
                    tracing::warn!(%error, "a claim was not given up; it will lapse by itself");
                }
            });
        }
    }
}

/// The answer that was given before, byte for byte.
///
/// # Errors
/// When the first request with the key asked for something else.
pub fn replay(remembered: Remembered, fingerprint: &str) -> Result<Response> {
    if remembered.fingerprint != fingerprint {
        return Err(error::idempotency_key_reused());
    }
    let status = u16::try_from(remembered.status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::OK);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (REPLAYED, HeaderValue::from_static("true")),
    ];
    Ok((status, headers, remembered.body).into_response())
}

/// The hash of what a request asks for, in hex.
///
/// # Errors
/// When the request cannot be written as JSON.
pub fn fingerprint(request: &impl Serialize) -> Result<String> {
    let canonical = super::json::to_json(request)?;
    Ok(hex::encode(Sha256::digest(canonical)))
}

/// A response of 200 with that JSON.
#[must_use]
pub fn json_response(body: String) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::auth::Auth;
    use crate::api::tests::TestApi;

    #[tokio::test]
    async fn a_claim_outlives_a_long_wait_within_its_request() {
        let test = TestApi::new(Auth::Off).await;
        let (store, clock) = (&test.api.store, &test.api.clock);
        let begin = async || {
            let key = Key(Some("key".to_owned()));
            super::begin(store, "tenant", "POST /v1/files", key).await
        };
        let Ok(Begun::First(mut attempt)) = begin().await else {
            panic!("it is the first")
        };
        let every = Duration::from_millis(10);
        attempt.held.as_mut().unwrap().touched_every = every;
        let wait = async {
            for _ in 0..3 {
                clock.advance_ms(100_000);
                tokio::time::sleep(every * 20).await;
            }
        };
        attempt.alive_during(wait).await.unwrap();
        assert_eq!(begin().await.unwrap_err(), error::idempotency_running());

        clock.advance_ms(121_000);
        assert!(matches!(begin().await, Ok(Begun::First(_))), "it lapses");
    }
}
