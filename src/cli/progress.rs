//! How a batch gets on, for people: a bar on a terminal, a line now and then elsewhere. Written to
//! standard error only.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::telemetry::terminal;

/// Rates are over this much of the past.
const TRAILING: Duration = Duration::from_secs(10);
/// A look at the past is kept this often.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// Where there is no terminal, a line comes this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How far a batch has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests that have ended, the failed ones among them.
    pub done: u64,
    pub failed: u64,
    /// Requests whose answers are kept from an earlier run, among those that have ended.
    pub kept: u64,
    /// 0 where it is not known.
    pub total: u64,
    /// Tokens in and out, so far.
    pub tokens: u64,
}

/// How fast it gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub requests_per_second: f64,
    pub tokens_per_second: f64,
}

/// Shows how a batch gets on. `update` may be called as often as one likes.
pub struct Progress {
    meter: Meter,
    output: Output,
}

enum Output {
    Bar(ProgressBar),
    Lines { next: Option<Instant> },
    Nothing,
}

impl Progress {
    /// `total` may be filled in later, by a snapshot.
    #[must_use]
    pub fn new(total: Option<u64>) -> Self {
        let target = ProgressDrawTarget::stderr();
        let output = if target.is_hidden() {
            Output::Lines { next: None }
        } else {
            let bar = ProgressBar::with_draw_target(total, target);
            let bar = bar.with_style(style(false));
            terminal::show(Some(bar.clone()));
            Output::Bar(bar)
        };
        Self {
            meter: Meter::default(),
            output,
        }
    }

    /// A line now and then, on a terminal, too: the terminal shows something else meanwhile.
    #[must_use]
    pub fn lines() -> Self {
        Self {
            meter: Meter::default(),
            output: Output::Lines { next: None },
        }
    }

    /// Shows nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            meter: Meter::default(),
            output: Output::Nothing,
        }
    }

    /// Shows a snapshot taken at `now`, and what holds the batch up, if anything does. What the
    /// first one says was done before is in no rate.
    pub fn update(&mut self, snapshot: Snapshot, held_up: Option<&str>, now: Instant) {
        self.meter.note(snapshot, now);
        let text = || {
            let line = line(snapshot, self.meter.trailing());
            held_up.map_or_else(|| line.clone(), |cause| format!("{line}  {cause}"))
        };
        match &mut self.output {
            // What holds it up has a line of its own: beside the bar there is no room.
            Output::Bar(bar) => {
                bar.set_style(style(held_up.is_some()));
                bar.set_prefix(held_up.unwrap_or_default().to_owned());
                show(bar, snapshot, line(snapshot, self.meter.trailing()));
            }
            Output::Nothing => {}
            Output::Lines { next } => {
                if next.is_none_or(|next| now >= next) {
                    *next = Some(now + LINE_EVERY);
                    print(&text());
                }
            }
        }
    }

    /// Shows the last snapshot, with the rates of the whole time, and leaves it standing. The
    /// batch need not have come to its end.
    pub fn finish(mut self, snapshot: Snapshot, now: Instant) {
        self.meter.note(snapshot, now);
        let (rates, elapsed) = self.meter.overall(snapshot, now);
        let text = last_line(snapshot, rates, elapsed);
        match &self.output {
            Output::Bar(bar) => {
                bar.set_style(style(false));
                show(bar, snapshot, text);
                bar.abandon();
                terminal::show(None);
            }
            Output::Lines { .. } => print(&text),
            Output::Nothing => {}
        }
    }
}

fn show(bar: &ProgressBar, snapshot: Snapshot, text: String) {
    if snapshot.total > 0 {
        bar.set_length(snapshot.total);
    }
    bar.set_position(snapshot.done);
    bar.set_message(text);
}

fn style(has_more: bool) -> ProgressStyle {
    let template = if has_more {
        "{wide_bar:.cyan/blue} {msg}\n{prefix}"
    } else {
        "{wide_bar:.cyan/blue} {msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A closed standard error is no reason to stop a batch.
fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What was done when: enough of it for the rates.
#[derive(Default)]
struct Meter {
    first: Option<Sample>,
    /// Of the trailing time, the oldest in front.
    samples: VecDeque<Sample>,
    latest: Option<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    done: u64,
    tokens: u64,
}

impl Meter {
    fn note(&mut self, snapshot: Snapshot, now: Instant) {
        let sample = Sample::new(snapshot, now);
        self.first.get_or_insert(sample);
        self.latest = Some(sample);
        let last = self.samples.back();
        if last.is_none_or(|last| now.saturating_duration_since(last.at) >= SAMPLE_EVERY) {
            self.samples.push_back(sample);
        }
        // The one in front is the last that is old enough, so that the time is never cut short.
        while self
            .samples
            .get(1)
            .is_some_and(|second| now.saturating_duration_since(second.at) >= TRAILING)
        {
            self.samples.pop_front();
        }
    }

    fn trailing(&self) -> Rates {
        match (self.samples.front(), &self.latest) {
            (Some(from), Some(to)) => from.rates_until(to),
            _ => Rates::default(),
        }
    }

    fn overall(&self, snapshot: Snapshot, now: Instant) -> (Rates, Duration) {
        let to = Sample::new(snapshot, now);
        let from = self.first.unwrap_or(to);
        let elapsed = now.saturating_duration_since(from.at);
        (from.rates_until(&to), elapsed)
    }
}

impl Sample {
    fn new(snapshot: Snapshot, at: Instant) -> Self {
        Self {
            at,
            done: snapshot.done,
            tokens: snapshot.tokens,
        }
    }

    fn rates_until(&self, later: &Self) -> Rates {
        let seconds = later.at.saturating_duration_since(self.at).as_secs_f64();
        let rate = |count: u64| {
            if seconds > 0.0 {
                float(count) / seconds
            } else {
                0.0
            }
        };
        Rates {
            requests_per_second: rate(later.done.saturating_sub(self.done)),
            tokens_per_second: rate(later.tokens.saturating_sub(self.tokens)),
        }
    }
}

/// A line on a batch that runs: `42%  420/1,000  3 failed  83 req/s  5,320 tok/s  ETA 7s`.
#[must_use]
pub fn line(snapshot: Snapshot, rates: Rates) -> String {
    let left = snapshot.total.saturating_sub(snapshot.done);
    let eta = Duration::try_from_secs_f64(float(left) / rates.requests_per_second);
    let eta = match eta {
        _ if left == 0 => String::new(),
        Ok(eta) => format!("  ETA {}", short(eta)),
        // Without a rate, or with next to none, nobody knows.
        Err(_) => "  ETA -".to_owned(),
    };
    format!("{}  {}{eta}", counts(snapshot), speeds(rates))
}

/// The line on a batch that has ended, or been left.
fn last_line(snapshot: Snapshot, rates: Rates, elapsed: Duration) -> String {
    format!(
        "{}  {}  in {}",
        counts(snapshot),
        speeds(rates),
        short(elapsed)
    )
}

fn counts(snapshot: Snapshot) -> String {
    let Snapshot {
        done,
        failed,
        total,
        ..
    } = snapshot;
    let (done_count, failed) = (HumanCount(done), HumanCount(failed));
    if total == 0 {
        return format!("{done_count} done  {failed} failed");
    }
    // Rounded down: 100% means all of it.
    let percent = u128::from(done) * 100 / u128::from(total);
    format!(
        "{percent:>3}%  {done_count}/{}  {failed} failed",
        HumanCount(total)
    )
}

fn speeds(rates: Rates) -> String {
    format!(
        "{} req/s  {} tok/s",
        speed(rates.requests_per_second),
        speed(rates.tokens_per_second)
    )
}

/// One decimal below ten.
fn speed(rate: f64) -> String {
    if rate < 9.95 {
        return format!("{rate:.1}");
    }
    let whole = Duration::try_from_secs_f64(rate.round()).unwrap_or(Duration::MAX);
    HumanCount(whole.as_secs()).to_string()
}

/// The two largest units that matter: `7s`, `3m 20s`, `2h 05m`, `3d 04h`.
pub(super) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// Exact up to 2^53, which is more than any batch has.
#[expect(clippy::cast_precision_loss, reason = "rates are shown to two digits")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(done: u64, failed: u64, total: u64, tokens: u64) -> Snapshot {
        Snapshot {
            done,
            failed,
            kept: 0,
            total,
            tokens,
        }
    }

    fn rates(requests_per_second: f64, tokens_per_second: f64) -> Rates {
        Rates {
            requests_per_second,
            tokens_per_second,
        }
    }

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        assert_eq!(
            line(snapshot(420, 3, 1000, 99), rates(83.2, 5320.4)),
            " 42%  420/1,000  3 failed  83 req/s  5,320 tok/s  ETA 6s"
        );
        assert_eq!(
            line(snapshot(0, 0, 1000, 0), Rates::default()),
            "  0%  0/1,000  0 failed  0.0 req/s  0.0 tok/s  ETA -"
        );
        assert_eq!(
            line(snapshot(5, 0, 0, 9), rates(0.5, 9.96)),
            "5 done  0 failed  0.5 req/s  10 tok/s"
        );
        assert_eq!(
            line(snapshot(1, 0, u64::MAX, 0), rates(1e-300, 0.0)),
            "  0%  1/18,446,744,073,709,551,615  0 failed  0.0 req/s  0.0 tok/s  ETA -"
        );
    }

    #[test]
    fn a_hundred_percent_means_all_of_it() {
        let shown = |done| counts(snapshot(done, 0, 1_000_000, 0));
        assert_eq!(shown(999_999), " 99%  999,999/1,000,000  0 failed");
        assert_eq!(shown(1_000_000), "100%  1,000,000/1,000,000  0 failed");
    }

    #[test]
    fn the_last_line_says_how_long_it_took() {
        assert_eq!(
            last_line(
                snapshot(9, 9, 9, 0),
                rates(1.0, 0.0),
                Duration::from_secs(9)
            ),
            "100%  9/9  9 failed  1.0 req/s  0.0 tok/s  in 9s"
        );
    }

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (200, "3m 20s"),
            (7500, "2h 05m"),
            (273_600, "3d 04h"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn rates_are_over_the_trailing_time_and_bounded_in_memory() {
        let mut meter = Meter::default();
        let start = Instant::now();
        let mut done = 500;
        // Ten a second for 60 seconds, then a hundred a second for 20, looked at every 10 ms.
        for step in 0..8000_u32 {
            let now = start + step * Duration::from_millis(10);
            meter.note(snapshot(done, 0, 9999, done * 2), now);
            done += if step < 6000 {
                u64::from(step % 10 == 0)
            } else {
                1
            };
        }
        let trailing = meter.trailing();
        assert!((trailing.requests_per_second - 100.0).abs() < 1.0);
        assert!((trailing.tokens_per_second - 200.0).abs() < 2.0);
        assert!(meter.samples.len() <= 53, "{}", meter.samples.len());

        let end = start + Duration::from_secs(80);
        let (overall, elapsed) = meter.overall(snapshot(done, 0, 9999, 0), end);
        assert!((overall.requests_per_second - 32.5).abs() < 0.1);
        assert_eq!(elapsed, Duration::from_secs(80));
    }

    #[test]
    fn what_was_done_before_the_first_look_is_in_no_rate() {
        let mut meter = Meter::default();
        let start = Instant::now();
        meter.note(snapshot(900, 0, 1000, 0), start);
        assert_eq!(meter.trailing(), Rates::default());
        meter.note(
            snapshot(910, 0, 1000, 0),
            start + Duration::from_millis(100),
        );
        assert!((meter.trailing().requests_per_second - 100.0).abs() < 0.01);
    }
}
