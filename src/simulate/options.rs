//! How the simulator behaves.

use std::time::Duration;

use super::ending::Ending;
use super::keys::ApiKey;
use super::outage::Outage;
use super::rate::{Dialect, RateLimit};

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
    /// Adds to a call's time what a model would need to embed its inputs, or to judge them.
    pub inputs_per_second: Option<f64>,
    /// With more calls at once than this, tokens come in proportion slower than
    /// `tokens_per_second` says.
    pub slow_beyond: Option<usize>,
    /// Calls beyond it get 429 with `retry-after`. A second's worth may come at once, as hosted
    /// providers have it.
    pub requests_per_minute: Option<u64>,
    /// A call that would make any window exceed one of them gets 429 with `retry-after`, and is
    /// counted as a violation. The tokens of a call are counted when the call arrives. Each of
    /// `api_keys` has them for itself.
    pub rate_limits: Vec<RateLimit>,
    /// Whose headers say what is left of `rate_limits`.
    pub dialect: Dialect,
    /// The share of calls, from 0 to 1, that get 500 after the usual time.
    pub error_rate: f64,
    /// The first messages of so many calls are kept, and are cached input of the calls that have
    /// the same. `None`: nothing is kept, and nothing is said of it.
    pub prefix_cache: Option<usize>,
    /// A call whose body has this text gets 400.
    pub refused_text: Option<String>,
    /// The share of calls, from 0 to 1, that get 429 at once, with a short `retry-after-ms`.
    pub rate_limit_rate: f64,
    /// The share of streamed answers, from 0 to 1, that stand still in their middle, and that break
    /// off there.
    pub stall_rate: f64,
    pub break_rate: f64,
    /// More calls at once get 429, with no word on when to come again.
    pub max_concurrency: Option<usize>,
    /// So many calls are answered; more wait until [`Simulator::grant`] lets them. `None`: none
    /// waits. What stands in the middle of a batch so stands there for as long as is needed.
    pub granted: Option<usize>,
    /// When it is away, and how. In such a time everything under `/v1` is away: calls and the list
    /// of models.
    pub outages: Vec<Outage>,
    /// Another seed: other answers, and other calls that fail.
    pub seed: u64,
    /// What is served; another model is a 404. None named: every model is served.
    pub models: Vec<String>,
    /// Calls without one of them get 401. None named: every call is let in.
    pub api_keys: Vec<ApiKey>,
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
            inputs_per_second: None,
            slow_beyond: None,
            requests_per_minute: None,
            rate_limits: Vec::new(),
            dialect: Dialect::default(),
            error_rate: 0.0,
            prefix_cache: None,
            refused_text: None,
            rate_limit_rate: 0.0,
            stall_rate: 0.0,
            break_rate: 0.0,
            max_concurrency: None,
            granted: None,
            outages: Vec::new(),
            seed: 0,
            models: Vec::new(),
            api_keys: Vec::new(),
            answer_tokens: 80,
            track: false,
        }
    }
}

impl Options {
    pub(super) fn serves(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|name| name == model)
    }

    pub(super) fn listed_models(&self) -> Vec<&str> {
        if self.models.is_empty() {
            return vec![ANY_MODEL];
        }
        self.models.iter().map(String::as_str).collect()
    }

    /// Whether a call's luck can change its answer or its time.
    pub(super) fn is_moody(&self) -> bool {
        let rates = [
            self.error_rate,
            self.rate_limit_rate,
            self.stall_rate,
            self.break_rate,
        ];
        rates.into_iter().any(|rate| rate > 0.0) || !self.jitter.is_zero()
    }

    /// How a streamed answer ends whose call's luck is `mood`, from 0 to 1.
    pub(super) fn ending(&self, mood: f64) -> Ending {
        let others = self.error_rate + self.rate_limit_rate;
        if mood < others {
            Ending::Whole
        } else if mood < others + self.stall_rate {
            Ending::Stalls
        } else if mood < others + self.stall_rate + self.break_rate {
            Ending::Breaks
        } else {
            Ending::Whole
        }
    }

    /// How long a word of a streamed answer takes.
    pub(super) fn pace(&self) -> Duration {
        let rate = self
            .tokens_per_second
            .filter(|_| self.slow_beyond.is_none());
        let pace = rate.map(|rate| Duration::try_from_secs_f64(1.0 / rate));
        pace.and_then(Result::ok).unwrap_or_default()
    }

    /// How long a call takes beside what an engine takes; `luck` is from 0 to 1.
    pub(super) fn wait(&self, luck: f64, tokens: usize, inputs: usize) -> Duration {
        let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let tokens = number(tokens);
        let reading = self
            .inputs_per_second
            .map_or(0.0, |rate| number(inputs) / rate);
        let rate = self
            .tokens_per_second
            .filter(|_| self.slow_beyond.is_none());
        let writing = rate.map_or(0.0, |rate| tokens / rate);
        let jitter = self.jitter.as_secs_f64() * (2.0 * luck - 1.0);
        let seconds = self.latency.as_secs_f64() + jitter + writing + reading;
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
    }
}
