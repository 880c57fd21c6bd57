//! How a batch gets on, for people: a bar on a terminal, a line now and then elsewhere. Written to
//! standard error only.

mod details;

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

use console::{Term, measure_text_width, truncate_str};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::telemetry::terminal;
pub use details::Details;

/// Rates are over this much of the past.
const TRAILING: Duration = Duration::from_secs(10);
/// A look at the past is kept this often.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// Where there is no terminal, a line comes this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;
/// The bar itself has at least so many columns where the text beside it can be shorter.
const BAR_COLUMNS_MIN: usize = 10;
/// A call is told of from this age on…
const OLD_FROM: Duration = Duration::from_secs(10);
/// …and only if it is so many times as old as a call that ends.
const OLD_TIMES: f64 = 4.0;

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

    /// Shows a snapshot taken at `now`, and the details. What the first snapshot says was done
    /// before is in no rate.
    pub fn update(&mut self, snapshot: Snapshot, details: &Details, now: Instant) {
        self.meter.note(snapshot, now);
        let rates = self.meter.trailing();
        match &mut self.output {
            Output::Bar(bar) => {
                let columns = columns();
                let lines = details::lines(details, snapshot.failed, columns);
                // Where the causes stand below, their sum stands there, too.
                let has_causes = !details.failures.is_empty();
                let shown = shown(&texts(snapshot, rates, !has_causes), columns);
                bar.set_style(style(!lines.is_empty()));
                bar.set_prefix(lines.join("\n"));
                show(bar, snapshot, shown);
            }
            Output::Nothing => {}
            Output::Lines { next } => {
                if next.is_none_or(|next| now >= next) {
                    *next = Some(now + LINE_EVERY);
                    let mut text = line(snapshot, rates);
                    for detail in details::lines(details, snapshot.failed, usize::MAX) {
                        text.push_str("  ");
                        text.push_str(&detail);
                    }
                    print(&text);
                }
            }
        }
    }

    /// From which age on a call is told of, where so many calls are in flight: calls of a model
    /// that always takes long are not told of while answers come.
    #[must_use]
    pub fn notable_age(&self, in_flight: usize) -> Duration {
        let per_second = self.meter.trailing().requests_per_second;
        // As long as answers come, a call takes about so long.
        let usual = float(in_flight as u64) / per_second;
        let many_times = Duration::try_from_secs_f64(OLD_TIMES * usual);
        many_times.map_or(OLD_FROM, |age| age.max(OLD_FROM))
    }

    /// Shows the last snapshot, with the rates of the whole time, and leaves it standing. The
    /// batch need not have come to its end.
    pub fn finish(mut self, snapshot: Snapshot, now: Instant) {
        self.meter.note(snapshot, now);
        let (rates, elapsed) = self.meter.overall(snapshot, now);
        match &self.output {
            Output::Bar(bar) => {
                bar.set_style(style(false));
                show(
                    bar,
                    snapshot,
                    shown(&last_texts(snapshot, rates, elapsed), columns()),
                );
                bar.abandon();
                terminal::show(None);
            }
            Output::Lines { .. } => print(&last_line(snapshot, rates, elapsed)),
            Output::Nothing => {}
        }
    }
}

/// How wide the terminal is. It may be made wider or narrower at any time.
fn columns() -> usize {
    let size = Term::stderr().size_checked();
    size.map_or(COLUMNS, |(_, columns)| columns.into())
}

/// The first of these texts that leaves room for the bar beside it; else the shortest of them, cut
/// where it must be.
fn shown(texts: &[String], columns: usize) -> String {
    let has_room = |text: &&String| measure_text_width(text) + 1 + BAR_COLUMNS_MIN <= columns;
    let text = texts.iter().find(has_room).or(texts.last());
    let text = text.map_or("", String::as_str);
    truncate_str(text, columns.saturating_sub(1), "…").into_owned()
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
    let mut texts = texts(snapshot, rates, true);
    texts.swap_remove(0)
}

/// The same, and shorter ones for a terminal that is too narrow for it. `with_failed`: they say
/// how many requests have failed.
fn texts(snapshot: Snapshot, rates: Rates, with_failed: bool) -> Vec<String> {
    let left = snapshot.total.saturating_sub(snapshot.done);
    let eta = Duration::try_from_secs_f64(float(left) / rates.requests_per_second);
    let eta = match eta {
        _ if left == 0 => String::new(),
        Ok(eta) => format!("ETA {}", short(eta)),
        // Without a rate, or with next to none, nobody knows.
        Err(_) => "ETA -".to_owned(),
    };
    shorter_and_shorter(snapshot, rates, with_failed, &eta)
}

/// The line on a batch that has ended, or been left.
fn last_line(snapshot: Snapshot, rates: Rates, elapsed: Duration) -> String {
    let mut texts = last_texts(snapshot, rates, elapsed);
    texts.swap_remove(0)
}

fn last_texts(snapshot: Snapshot, rates: Rates, elapsed: Duration) -> Vec<String> {
    let took = format!("in {}", short(elapsed));
    shorter_and_shorter(snapshot, rates, true, &took)
}

/// What is left out first is what can be read from the rest, or from the result.
fn shorter_and_shorter(
    snapshot: Snapshot,
    rates: Rates,
    with_failed: bool,
    time: &str,
) -> Vec<String> {
    let (percent, counts) = counts(snapshot);
    let failed = if with_failed {
        format!("{} failed", count_of(snapshot.failed))
    } else {
        String::new()
    };
    let requests = format!("{} req/s", speed(rates.requests_per_second));
    let tokens = format!("{} tok/s", speed(rates.tokens_per_second));
    let (percent, failed, time) = (percent.as_str(), failed.as_str(), time);
    let all: [&[&str]; 4] = [
        &[percent, &counts, failed, &requests, &tokens, time],
        &[percent, &counts, failed, &requests, time],
        &[percent, &counts, failed, time],
        &[percent, failed, time],
    ];
    let text = |parts: &[&str]| {
        let parts = parts.iter().copied().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("  ")
    };
    all.map(text).to_vec()
}

/// How much of a batch is done: as a percentage where that is known, and in numbers.
fn counts(snapshot: Snapshot) -> (String, String) {
    let Snapshot { done, total, .. } = snapshot;
    if total == 0 {
        return (String::new(), format!("{} done", count_of(done)));
    }
    // Rounded down: 100% means all of it.
    let percent = u128::from(done) * 100 / u128::from(total);
    (
        format!("{percent:>3}%"),
        format!("{}/{}", count_of(done), count_of(total)),
    )
}

/// `1,234,567`.
fn count_of(count: u64) -> String {
    HumanCount(count).to_string()
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
        let shown = |done| line(snapshot(done, 0, 1_000_000, 0), Rates::default());
        let begin = " 99%  999,999/1,000,000  0 failed";
        assert!(shown(999_999).starts_with(begin), "{}", shown(999_999));
        let begin = "100%  1,000,000/1,000,000  0 failed";
        assert!(shown(1_000_000).starts_with(begin), "{}", shown(1_000_000));
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
    fn a_terminal_that_is_too_narrow_is_told_less() {
        let rates = rates(1234.0, 123_456.0);
        let texts = texts(snapshot(999_999, 12_345, 1_000_000, 0), rates, true);
        for (columns, text) in [
            (
                100,
                " 99%  999,999/1,000,000  12,345 failed  1,234 req/s  123,456 tok/s  ETA 0s",
            ),
            (
                80,
                " 99%  999,999/1,000,000  12,345 failed  1,234 req/s  ETA 0s",
            ),
            (60, " 99%  999,999/1,000,000  12,345 failed  ETA 0s"),
            (40, " 99%  12,345 failed  ETA 0s"),
            (20, " 99%  12,345 faile…"),
        ] {
            assert_eq!(shown(&texts, columns), text, "{columns}");
        }
    }

    #[test]
    fn only_what_is_unusual_is_an_old_call() {
        let mut progress = Progress::silent();
        let start = Instant::now();
        assert_eq!(progress.notable_age(64), OLD_FROM, "nothing has come yet");
        progress.meter.note(snapshot(0, 0, 1000, 0), start);
        let later = start + Duration::from_secs(10);
        progress.meter.note(snapshot(100, 0, 1000, 0), later);
        // 64 at once and ten a second: each takes 6.4 s.
        assert_eq!(progress.notable_age(64), Duration::from_secs_f64(25.6));
        assert_eq!(progress.notable_age(1), OLD_FROM);
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
