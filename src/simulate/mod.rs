//! The stand-in upstream: a server with OpenAI's endpoints and no model behind them, for trying
//! things out, for tests and for measuring.
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
mod limit;
mod reply;
mod server;
mod service;
mod shape;
mod stats;
#[cfg(test)]
mod tests;
mod text;

use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;

pub use server::Simulator;
pub use stats::Stats;

/// The model that is listed where any is served.
const ANY_MODEL: &str = "simulated";

/// How the simulator behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call takes, on average and without `tokens_per_second`.
    pub latency: Duration,
    /// A call takes up to this much less or more than `latency`, evenly spread.
    pub jitter: Duration,
    /// Adds to a call's time what a model would need to write its answer.
    pub tokens_per_second: Option<f64>,
    /// Calls beyond it get 429 with `retry-after`. A second's worth may come at once, as hosted
    /// providers have it.
    pub requests_per_minute: Option<u64>,
    /// The share of calls, from 0 to 1, that get 500 after the usual time.
    pub error_rate: f64,
    /// The share of calls, from 0 to 1, that get 429 at once, with a short `retry-after-ms`.
    pub rate_limit_rate: f64,
    /// More calls at once get 429, with no word on when to come again.
    pub max_concurrency: Option<usize>,
    /// So many calls are answered; more wait until [`Simulator::grant`] lets them. `None`: none
    /// waits. What stands in the middle of a batch so stands there for as long as is needed.
    pub granted: Option<usize>,
    /// Another seed: other answers, and other calls that fail.
    pub seed: u64,
    /// What is served; another model is a 404. None named: every model is served.
    pub models: Vec<String>,
    /// Calls without it get 401.
    pub api_key: Option<SecretString>,
    /// How long answers are on average, from half of it to one and a half.
    pub answer_tokens: usize,
    /// Counts how often each body came (about 20 bytes of memory for each).
    pub track: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            tokens_per_second: None,
            requests_per_minute: None,
            error_rate: 0.0,
            rate_limit_rate: 0.0,
            max_concurrency: None,
            granted: None,
            seed: 0,
            models: Vec::new(),
            api_key: None,
            answer_tokens: 80,
            track: false,
        }
    }
}

impl Options {
    /// The usual answer (that of 200, without `echo`) to this body at this path, which begins
    /// with `/v1/`. `None` if there is none: another path, no JSON object, no model.
    #[must_use]
    pub fn answer(&self, path: &str, body: &[u8]) -> Option<Bytes> {
        let endpoint = answer::Endpoint::of(path)?;
        let call = call::Call::read(body).ok()?;
        let model = call.model.as_deref().or(endpoint.default_model())?;
        let fingerprint = text::fingerprint(self.seed, body);
        answer::Draft::new(self, endpoint, &call, model, fingerprint, body.len())
            .write()
            .ok()
    }

    fn serves(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|name| name == model)
    }

    fn listed_models(&self) -> Vec<&str> {
        if self.models.is_empty() {
            return vec![ANY_MODEL];
        }
        self.models.iter().map(String::as_str).collect()
    }

    /// Whether a call's luck can change its answer or its time.
    fn is_moody(&self) -> bool {
        self.error_rate > 0.0 || self.rate_limit_rate > 0.0 || !self.jitter.is_zero()
    }

    /// How long a call takes; `luck` is from 0 to 1.
    fn wait(&self, luck: f64, tokens: usize) -> Duration {
        let tokens = f64::from(u32::try_from(tokens).unwrap_or(u32::MAX));
        let writing = self.tokens_per_second.map_or(0.0, |rate| tokens / rate);
        let jitter = self.jitter.as_secs_f64() * (2.0 * luck - 1.0);
        let seconds = self.latency.as_secs_f64() + jitter + writing;
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
    }
}
