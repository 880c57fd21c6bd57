//! The stand-in upstream: a server with OpenAI's endpoints, and `/v1/rerank`, and no model behind
//! them, for trying things out, for tests and for measuring.
//!
//! # What it promises
//!
//! - **The same request gets the same answer**, byte for byte, in every run with the same options:
//!   an answer follows from the seed, the endpoint and the bytes of the body. [`Options::answer`]
//!   says what it will be.
//! - **Misfortune is reproducible too.** Whether a call fails (`error_rate`, `rate_limit_rate`)
//!   and how long it takes (`jitter`) follows from the seed, the body and how many calls with this
//!   body came before, and not from the order in which different requests arrive. So a retry has
//!   new luck, and the same run fails in the same places whatever the concurrency.
//! - **It counts what it saw** ([`Stats`]), so that a client can be held to its limits.
//! - **It has an engine** with `slow_beyond`: up to so many calls at once are written at
//!   `tokens_per_second`, more of them in proportion slower. `POST /slow-beyond/N` changes the
//!   number, and `GET /metrics` tells what vLLM would.
//! - **It has a prefix cache** with `prefix_cache`: it keeps so many first messages, those that came
//!   last, counts how often a call has one of them, and tells it as cached tokens.
//! - **Its keys are counted each for itself**, have each its own `rate_limits`, and are refused and
//!   accepted by `POST /keys/NAME/STATUS`: 401, 402, 403 or 429 (the quota is spent) refuse, and
//!   200 accepts.
//! - **It streams where it is asked to** (`stream` in the body): a word at a time, at
//!   `tokens_per_second`. A share of the streams stalls (`stall_rate`) or breaks off
//!   (`break_rate`).
//! - **Its text compresses like text**: no better than three to one with zstd at level 3.
//!
//! # Steering
//!
//! A request says how it wants to be treated with the top-level key `simulate` of its body:
//!
//! | key | the answer |
//! |---|---|
//! | `"status": 400` | has this status, and an error for a body if that is no success |
//! | `"body": "text"` | is this text (JSON if it begins with a brace or bracket) |
//! | `"headers": {"a": "b"}` | has these headers |
//! | `"retry_after_ms": 20` | has `retry-after-ms`, and `retry-after` from a second on |
//! | `"reset": true` | never comes: the connection is cut |
//! | `"truncate": true` | breaks off in the middle: the connection is cut |
//! | `"stall": true` | stands still in the middle, where it is a stream |
//! | `"hang": true` | never comes, until the client leaves |
//! | `"times": 2` | is as said above for the first two calls with this body, and then the usual one |
//! | `"latency_ms": 50` | takes this long, whatever the options say |
//! | `"bytes": 5000` | has a text (or each of its images) of exactly so many bytes |
//! | `"echo": true` | has a key `echo` with the path, query, headers and body of the request |
//!
//! An unknown key there is a 400. What a request asks for by status goes before luck; the key, the
//! rate limit and the concurrency go before both.

mod answer;
mod call;
mod ending;
mod engine;
mod events;
mod keys;
mod limit;
mod options;
mod outage;
mod prefix;
mod rate;
mod reply;
mod server;
mod service;
mod shape;
mod stats;
#[cfg(test)]
mod tests;
mod text;

use bytes::Bytes;

pub use keys::ApiKey;
pub use options::Options;
pub use outage::{Outage, OutageKind};
pub use rate::{Dialect, RateKind, RateLimit};
pub use server::Simulator;

impl Options {
    /// The usual answer (that of 200, without `echo`) to this body at this path, which begins
    /// with `/v1/`. `None` if there is none: another path, no JSON object, no model.
    #[must_use]
    pub fn answer(&self, path: &str, body: &[u8]) -> Option<Bytes> {
        let endpoint = answer::Endpoint::of(path)?;
        let call = call::Call::read(body).ok()?;
        let model = call.model.as_deref().or(endpoint.default_model())?;
        let fingerprint = text::fingerprint(self.seed, body);
        let draft = answer::Draft::new(self, endpoint, &call, model, fingerprint, body.len());
        let (answer, _) = draft.write().ok()?;
        Some(answer)
    }
}
