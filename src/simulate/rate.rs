//! Limits on requests and tokens in a time, as hosted providers have them, and a check of every
//! window: what a call needs is charged when it arrives, and a call that would make any window
//! exceed a limit is a violation.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;

/// How much there may be in any window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub kind: RateKind,
    pub limit: u64,
    pub period: Duration,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateKind {
    Requests,
    Tokens,
    InputTokens,
    OutputTokens,
}

/// Whose headers say what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    OpenAi,
    Anthropic,
}

/// What a limit has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LimitStats {
    /// Whose limit it is, where keys are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub r#type: &'static str,
    pub limit: u64,
    pub period_ms: u64,
    /// Let through since the start, or the last reset.
    pub admitted: u64,
    /// The most that any window had, with what was refused.
    pub most: u64,
    /// Calls that came though a window had no room for them. Each gets 429.
    pub violations: u64,
}

/// What a call needs, in tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    pub input: u64,
    pub output: u64,
}

/// All limits, behind one lock: a call counts against all of them or none.
pub(super) struct RateLimits {
    dialect: Dialect,
    windows: Mutex<Vec<Window>>,
}

struct Window {
    limit: RateLimit,
    /// When what was let through, within the last period.
    admitted: VecDeque<(Instant, u64)>,
    used: u64,
    stats: LimitStats,
}

impl RateKind {
    /// In the words of the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RateKind::Requests => "requests",
            RateKind::Tokens => "tokens",
            RateKind::InputTokens => "input_tokens",
            RateKind::OutputTokens => "output_tokens",
        }
    }

    fn amount(self, need: Need) -> u64 {
        match self {
            RateKind::Requests => 1,
            RateKind::Tokens => need.input + need.output,
            RateKind::InputTokens => need.input,
            RateKind::OutputTokens => need.output,
        }
    }
}

impl RateLimits {
    /// `None`: there are no limits.
    pub(super) fn new(limits: &[RateLimit], dialect: Dialect) -> Option<Self> {
        let window = |limit: &RateLimit| Window {
            limit: *limit,
            admitted: VecDeque::new(),
            used: 0,
            stats: LimitStats {
                r#type: limit.kind.as_str(),
                limit: limit.limit,
                period_ms: u64::try_from(limit.period.as_millis()).unwrap_or(u64::MAX),
                ..LimitStats::default()
            },
        };
        let windows: Vec<Window> = limits.iter().map(window).collect();
        (!windows.is_empty()).then(|| Self {
            dialect,
            windows: Mutex::new(windows),
        })
    }

    /// Lets a call through, or says after how long there will be room for it.
    pub(super) fn admit(&self, now: Instant, need: Need) -> Result<(), Duration> {
        let mut windows = self.lock();
        let mut wait = None;
        for window in &mut *windows {
            window.pass(now);
            let amount = window.limit.kind.amount(need);
            window.stats.most = window.stats.most.max(window.used + amount);
            if window.used + amount > window.limit.limit {
                window.stats.violations += 1;
                wait = wait.max(Some(window.opens(now, amount)));
            }
        }
        if let Some(wait) = wait {
            return Err(wait);
        }
        for window in &mut *windows {
            let amount = window.limit.kind.amount(need);
            window.admitted.push_back((now, amount));
            window.used += amount;
            window.stats.admitted += amount;
        }
        Ok(())
    }

    /// The headers that say what is left.
    pub(super) fn headers(&self, now: Instant) -> Vec<(HeaderName, HeaderValue)> {
        let mut windows = self.lock();
        let mut headers = Vec::new();
        for window in &mut *windows {
            window.pass(now);
            let remaining = window.limit.limit.saturating_sub(window.used);
            let reset = window.admitted.back().map_or(Duration::ZERO, |(at, _)| {
                (*at + window.limit.period).saturating_duration_since(now)
            });
            let name = window.limit.kind.as_str().replace('_', "-");
            let header = |what: &str| match self.dialect {
                Dialect::OpenAi => format!("x-ratelimit-{what}-{name}"),
                Dialect::Anthropic => format!("anthropic-ratelimit-{name}-{what}"),
            };
            let reset = match self.dialect {
                Dialect::OpenAi => format!("{}ms", reset.as_millis()),
                Dialect::Anthropic => in_time(reset),
            };
            for (what, value) in [
                ("limit", window.limit.limit.to_string()),
                ("remaining", remaining.to_string()),
                ("reset", reset),
            ] {
                let name = HeaderName::try_from(header(what)).ok();
                headers.extend(name.zip(HeaderValue::try_from(value).ok()));
            }
        }
        headers
    }

    pub(super) fn stats(&self) -> Vec<LimitStats> {
        let windows = self.lock();
        windows.iter().map(|window| window.stats.clone()).collect()
    }

    /// Counts from zero again. What the windows hold stays.
    pub(super) fn reset(&self) {
        for window in &mut *self.lock() {
            (window.stats.admitted, window.stats.violations) = (0, 0);
            window.stats.most = window.used;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// What is older than the period does not count.
    fn pass(&mut self, now: Instant) {
        while let Some((at, amount)) = self.admitted.front().copied()
            && now.saturating_duration_since(at) >= self.limit.period
        {
            self.used -= amount;
            self.admitted.pop_front();
        }
    }

    /// After how long there is room for so much; a period where there never is.
    fn opens(&self, now: Instant, amount: u64) -> Duration {
        let mut used = self.used;
        for (at, of_call) in &self.admitted {
            used -= of_call;
            if used + amount <= self.limit.limit {
                return (*at + self.limit.period).saturating_duration_since(now);
            }
        }
        self.limit.period
    }
}

/// The time in so long, as Anthropic writes it: whole seconds, rounded up.
fn in_time(wait: Duration) -> String {
    let now = jiff::Timestamp::now();
    let seconds = i64::try_from(wait.as_secs()).unwrap_or(0) + 1;
    let at = now.as_second().saturating_add(seconds);
    jiff::Timestamp::from_second(at).map_or_else(|_| String::new(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> RateLimits {
        let limit = |kind, limit| RateLimit {
            kind,
            limit,
            period: Duration::from_mins(1),
        };
        let limits = [limit(RateKind::Requests, 3), limit(RateKind::Tokens, 100)];
        RateLimits::new(&limits, Dialect::OpenAi).expect("some")
    }

    fn need(tokens: u64) -> Need {
        Need {
            input: tokens / 2,
            output: tokens - tokens / 2,
        }
    }

    #[test]
    fn every_window_is_checked_however_it_is_laid() {
        let (limits, start) = (limits(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(limits.admit(at(50), need(60)), Ok(()));
        assert_eq!(limits.admit(at(70), need(40)), Ok(()));
        // The first leaves the window at 110, the second at 130.
        let wait = |seconds| Err(Duration::from_secs(seconds));
        assert_eq!(limits.admit(at(100), need(10)), wait(10));
        assert_eq!(limits.admit(at(110), need(60)), Ok(()));
        assert_eq!(limits.admit(at(111), need(1)), wait(19));
        let [requests, tokens] = &limits.stats()[..] else {
            panic!("two limits");
        };
        assert_eq!((requests.violations, tokens.violations), (0, 2));
        assert_eq!((requests.admitted, tokens.admitted), (3, 160));
        assert_eq!((requests.most, tokens.most), (3, 110));
    }

    #[test]
    fn the_headers_say_what_is_left() {
        let (limits, now) = (limits(), Instant::now());
        assert_eq!(limits.admit(now, need(60)), Ok(()));
        let headers = limits.headers(now + Duration::from_secs(1));
        let headers: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        for expected in [
            "x-ratelimit-limit-requests: 3",
            "x-ratelimit-remaining-requests: 2",
            "x-ratelimit-remaining-tokens: 40",
            "x-ratelimit-reset-tokens: 59000ms",
        ] {
            assert!(headers.iter().any(|one| one == expected), "{headers:?}");
        }
    }
}
