//! How a batch gets on, for people: a bar on a terminal, a line now and then elsewhere. Written to
//! standard error only.

mod details;
mod line;
mod meter;

use std::io::Write as _;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::telemetry::terminal;
pub(super) use details::Details;
use line::{last_line, last_texts, line, shown, texts};
pub(super) use meter::Snapshot;
use meter::{Meter, float};

/// Where there is no terminal, a line comes this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;
/// A call is shown as old from this age on…
const OLD_FROM: Duration = Duration::from_secs(10);
/// …and only if it is so many times as old as a call that ends.
const OLD_TIMES: f64 = 4.0;

/// Shows how a batch gets on. `update` may be called as often as one likes.
pub(super) struct Progress {
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
    pub(super) fn new(total: Option<u64>) -> Self {
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
    pub(super) fn lines() -> Self {
        Self {
            meter: Meter::default(),
            output: Output::Lines { next: None },
        }
    }

    /// Shows nothing.
    pub(super) fn silent() -> Self {
        Self {
            meter: Meter::default(),
            output: Output::Nothing,
        }
    }

    /// Begins at `now` with what was done before, which is in no rate.
    pub(super) fn begin(&mut self, before: Snapshot, now: Instant) {
        self.meter.note(before, now);
    }

    /// Shows a snapshot taken at `now`, and the details. What the first snapshot says was done
    /// before is in no rate.
    pub(super) fn update(&mut self, snapshot: Snapshot, details: &Details, now: Instant) {
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

    /// The age from which a call is shown as old: [`OLD_TIMES`] as long as calls take now, and at
    /// least [`OLD_FROM`]. How long calls take now follows from the calls in flight and the rate of
    /// answers. So the calls of a slow model are not shown while its answers come.
    pub(super) fn notable_age(&self, in_flight: usize) -> Duration {
        let per_second = self.meter.trailing().requests_per_second;
        // As long as answers come, a call takes about so long.
        let usual = float(in_flight as u64) / per_second;
        let many_times = Duration::try_from_secs_f64(OLD_TIMES * usual);
        many_times.map_or(OLD_FROM, |age| age.max(OLD_FROM))
    }

    /// Shows the last snapshot, with the rates of the whole time, and leaves it standing. The
    /// batch need not have come to its end.
    pub(super) fn finish(mut self, snapshot: Snapshot, now: Instant) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unusual_is_an_old_call() {
        let done = |done| Snapshot {
            done,
            total: 1000,
            ..Snapshot::default()
        };
        let mut progress = Progress::silent();
        let start = Instant::now();
        assert_eq!(progress.notable_age(64), OLD_FROM, "nothing has come yet");
        progress.meter.note(done(0), start);
        let later = start + Duration::from_secs(10);
        progress.meter.note(done(100), later);
        // 64 at once and ten a second: each takes 6.4 s.
        assert_eq!(progress.notable_age(64), Duration::from_secs_f64(25.6));
        assert_eq!(progress.notable_age(1), OLD_FROM);
    }
}
