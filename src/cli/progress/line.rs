//! What a line says of a batch: how far, how fast, and how long it takes.

use std::time::Duration;

use console::measure_text_width;

use super::meter::{Rates, Snapshot, float};
use crate::cli::figures;
use crate::cli::printable::cut;

/// The bar itself has at least so many columns where the text beside it can be shorter.
const BAR_COLUMNS_MIN: usize = 10;

/// A line on a batch that runs: `42%  420/1,000  3 failed  83 req/s  5,320 tok/s  ETA 7s`.
pub(super) fn line(snapshot: Snapshot, rates: Rates) -> String {
    let mut texts = texts(snapshot, rates, true);
    texts.swap_remove(0)
}

/// The same, and shorter ones for a terminal that is too narrow for it. `with_failed`: they say
/// how many requests have failed.
pub(super) fn texts(snapshot: Snapshot, rates: Rates, with_failed: bool) -> Vec<String> {
    let left = snapshot.total.saturating_sub(snapshot.done);
    let eta = Duration::try_from_secs_f64(float(left) / rates.requests_per_second);
    let eta = match eta {
        _ if left == 0 => String::new(),
        Ok(eta) => format!("ETA {}", figures::duration(eta)),
        // Without a rate, or with next to none, nobody knows.
        Err(_) => "ETA -".to_owned(),
    };
    shorter_and_shorter(snapshot, rates, with_failed, &eta)
}

/// The line on a batch that has ended, or been left.
pub(super) fn last_line(snapshot: Snapshot, rates: Rates, elapsed: Duration) -> String {
    let mut texts = last_texts(snapshot, rates, elapsed);
    texts.swap_remove(0)
}

pub(super) fn last_texts(snapshot: Snapshot, rates: Rates, elapsed: Duration) -> Vec<String> {
    let took = format!("in {}", figures::duration(elapsed));
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
        format!("{} failed", figures::count(snapshot.failed))
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
        return (String::new(), format!("{} done", figures::count(done)));
    }
    // Rounded down: 100% means all of it.
    let percent = u128::from(done) * 100 / u128::from(total);
    (
        format!("{percent:>3}%"),
        format!("{}/{}", figures::count(done), figures::count(total)),
    )
}

/// One decimal below ten.
fn speed(rate: f64) -> String {
    if rate < 9.95 {
        return format!("{rate:.1}");
    }
    let whole = Duration::try_from_secs_f64(rate.round()).unwrap_or(Duration::MAX);
    figures::count(whole.as_secs())
}

/// The first of these texts that leaves room for the bar beside it; else the shortest of them, cut
/// where it must be.
pub(super) fn shown(texts: &[String], columns: usize) -> String {
    let has_room = |text: &&String| measure_text_width(text) + 1 + BAR_COLUMNS_MIN <= columns;
    let text = texts.iter().find(has_room).or(texts.last());
    let text = text.map_or("", String::as_str);
    cut(text, columns.saturating_sub(1))
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
}
