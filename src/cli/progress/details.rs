//! What a bar says beside how far a batch has got: why requests failed, what is waited for, and
//! which calls take long. Each is one line, and no line is wider than the terminal.

use std::time::Duration;

use console::measure_text_width;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use reqwest::StatusCode;

use crate::cli::figures;
use crate::cli::printable::{CUT, cut, printable};
use crate::domain::outcome::{ErrorCode, Failure};
use crate::upstream::{OldCalls, Reason, UpstreamState, UpstreamStatus};

/// A wait of at least so long is shown with its end.
const WORTH_TELLING: Duration = Duration::from_secs(2);
/// How the cause of a call begins that was answered.
const ANSWERED: &str = "the model server answered ";
/// A cause is not cut to less than this.
const CAUSE_WIDTH_MIN: usize = 12;
/// What is known of a batch's requests beside its counts.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The failed requests of this process, by cause.
    pub failures: Vec<(Failure, u64)>,
    /// Requests that failed in earlier processes.
    pub failed_before: u64,
    pub upstreams: Vec<UpstreamStatus>,
    /// Calls that are old enough to be shown.
    pub old_calls: Option<OldCalls>,
    /// The wall-clock time, in milliseconds.
    pub now_ms: i64,
}

/// The lines of details. `failed`: how many requests have failed in all.
pub(super) fn lines(details: &Details, failed: u64, width: usize) -> Vec<String> {
    let zone = TimeZone::system();
    let lines = [
        failures(details, failed, width),
        waits(details, &zone, width),
        details.old_calls.map(old_calls),
    ];
    lines.into_iter().flatten().collect()
}

/// `12 failed: 9 rate limited (429), 3 timed out`.
fn failures(details: &Details, failed: u64, width: usize) -> Option<String> {
    if details.failures.is_empty() {
        return None;
    }
    let mut causes = details.failures.clone();
    causes.sort_by_key(|&(failure, count)| (u64::MAX - count, failure));
    let mut parts: Vec<String> = causes
        .into_iter()
        .map(|(failure, count)| format!("{} {}", figures::count(count), cause(failure)))
        .collect();
    if details.failed_before > 0 {
        parts.push(format!(
            "{} in earlier runs",
            figures::count(details.failed_before)
        ));
    }
    let head = format!("{} failed: ", figures::count(failed));
    Some(joined(&head, &parts, ", ", width))
}

/// What failed requests have in common, in words.
fn cause(failure: Failure) -> String {
    match failure {
        Failure::Status(429) => "rate limited (429)".to_owned(),
        Failure::Status(status) => {
            let known = StatusCode::from_u16(status).ok();
            match known.and_then(|status| status.canonical_reason()) {
                Some(reason) => format!("{} ({status})", reason.to_ascii_lowercase()),
                None => format!("answered {status}"),
            }
        }
        Failure::Unreadable => "unreadable in the database".to_owned(),
        Failure::Code(code) => match code {
            ErrorCode::BatchExpired => "expired",
            ErrorCode::BatchCancelled => "cancelled",
            ErrorCode::RequestTimeout => "timed out",
            ErrorCode::UpstreamUnavailable => "without an answer",
            ErrorCode::InvalidResponse => "with an unreadable answer",
            ErrorCode::ResponseTooLarge => "with too large an answer",
            ErrorCode::RequestCrashed => "crashed",
            ErrorCode::RequestTooLarge => "too large for a rate limit",
            ErrorCode::UnsupportedParameter => "asks for what no upstream can do",
        }
        .to_owned(),
    }
}

/// What takes no requests now, or fewer than it could, and why.
fn waits(details: &Details, zone: &TimeZone, width: usize) -> Option<String> {
    let waits = details.upstreams.iter().filter_map(|upstream| {
        let is_alone = details.upstreams.len() == 1;
        wait(upstream, is_alone, details.now_ms, zone)
    });
    let waits: Vec<Wait> = waits.collect();
    let first = waits.first()?;
    let parts: Vec<String> = waits.iter().map(|wait| wait.text(usize::MAX)).collect();
    let text = joined("", &parts, "; ", width);
    if !text.ends_with(CUT) {
        return Some(text);
    }
    // Not even the first has room: its cause is cut, and not its end.
    Some(match waits.len() {
        1 => first.text(width),
        count => {
            let more = format!("; and {} more", count - 1);
            let room = width.saturating_sub(measure_text_width(&more));
            first.text(room) + &more
        }
    })
}

/// One wait: `head cause tail`.
struct Wait {
    head: String,
    cause: String,
    tail: String,
}

impl Wait {
    /// The whole, with the cause cut where it must be.
    fn text(&self, width: usize) -> String {
        let others = measure_text_width(&self.head) + measure_text_width(&self.tail);
        let room = width.saturating_sub(others).max(CAUSE_WIDTH_MIN);
        let text = format!("{}{}{}", self.head, cut(&self.cause, room), self.tail);
        cut(&text, width)
    }
}

fn wait(upstream: &UpstreamStatus, is_alone: bool, now_ms: i64, zone: &TimeZone) -> Option<Wait> {
    let name = printable(&upstream.name);
    let model = upstream.models.first();
    let is_shut = matches!(upstream.state, UpstreamState::Down | UpstreamState::Ejected);
    let is_limited = !is_shut && model.is_some_and(|model| model.reason == Reason::Limited);
    if is_limited && upstream.in_flight > 0 {
        let by = if is_alone {
            String::new()
        } else {
            format!(" by {name}")
        };
        let (calls, limit) = (upstream.in_flight as u64, upstream.limit as u64);
        return Some(Wait {
            head: format!(
                "rate limited{by}: {} of {} calls get through",
                figures::count(calls),
                figures::count(limit)
            ),
            cause: String::new(),
            tail: String::new(),
        });
    }
    let (subject, cause, left) = match (&upstream.cause, model) {
        (Some(cause), _) => (format!("upstream {name}"), cause, upstream.left),
        (None, Some(model)) => {
            let of_model = printable(&model.model);
            let subject = format!("model {of_model} at upstream {name}");
            (subject, &model.cause, model.left)
        }
        (None, None) => return None,
    };
    let (between, cause) = match cause.strip_prefix(ANSWERED) {
        Some(answer) => (" answers ", answer),
        None => (": ", cause.as_str()),
    };
    let tail = match left {
        left if left < WORTH_TELLING => String::new(),
        left if is_limited => format!(" until {}", clock_time(now_ms, left, zone)),
        left => format!(", tried again at {}", clock_time(now_ms, left, zone)),
    };
    Some(Wait {
        head: format!("waiting: {subject}{between}"),
        cause: printable(cause).into_owned(),
        tail,
    })
}

/// `1 call is 12 s old`.
fn old_calls(old: OldCalls) -> String {
    let age = match old.oldest.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        _ => figures::duration(old.oldest),
    };
    match old.count as u64 {
        1 => format!("1 call is {age} old"),
        count => format!("{} calls are up to {age} old", figures::count(count)),
    }
}

/// The time on the clock after a wait: with the date where that is not today.
fn clock_time(now_ms: i64, left: Duration, zone: &TimeZone) -> String {
    let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
    let at = now_ms.saturating_add(left).saturating_add(500);
    let in_zone = |ms: i64| {
        let moment = Timestamp::from_millisecond(ms).ok()?;
        Some(ZonedDateTime::new(moment, zone.clone()))
    };
    match (in_zone(now_ms), in_zone(at)) {
        (Some(now), Some(at)) if now.date() == at.date() => at.strftime("%H:%M:%S").to_string(),
        (_, Some(at)) => at.strftime("%Y-%m-%d %H:%M").to_string(),
        _ => "?".to_owned(),
    }
}

/// As many parts as have room, and how many more there are.
fn joined(head: &str, parts: &[String], between: &str, width: usize) -> String {
    for shown in (1..=parts.len()).rev() {
        let mut text = format!("{head}{}", parts[..shown].join(between));
        let more = parts.len() - shown;
        if more > 0 {
            text += &format!("{between}and {more} more");
        }
        if measure_text_width(&text) <= width {
            return text;
        }
    }
    let first = parts.first().map_or("", String::as_str);
    cut(&format!("{head}{first}"), width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::ClosedModel;

    const WIDTH: usize = 80;
    /// 2026-11-28 14:14:02 UTC.
    const NOW_MS: i64 = 1_795_875_242_000;

    fn upstream(name: &str) -> UpstreamStatus {
        UpstreamStatus {
            name: name.to_owned(),
            state: UpstreamState::Up,
            cause: None,
            left: Duration::ZERO,
            answered: true,
            in_flight: 0,
            share: 64,
            limit: 64,
            configured: true,
            set: None,
            models: Vec::new(),
            keys: Vec::new(),
        }
    }

    fn limited(cause: &str, left: u64) -> UpstreamStatus {
        let (cause, left) = (cause.to_owned(), Duration::from_secs(left));
        UpstreamStatus {
            cause: Some(cause.clone()),
            left,
            models: vec![ClosedModel {
                key: None,
                model: "m".to_owned(),
                reason: Reason::Limited,
                cause,
                left,
            }],
            ..upstream("default")
        }
    }

    fn waits_for(upstreams: &[UpstreamStatus]) -> Option<String> {
        let details = Details {
            upstreams: upstreams.to_vec(),
            now_ms: NOW_MS,
            ..Details::default()
        };
        let text = waits(&details, &TimeZone::UTC, WIDTH);
        let width = text.as_deref().map_or(0, measure_text_width);
        assert!(width <= WIDTH, "{width}: {text:?}");
        text
    }

    #[test]
    fn failures_are_grouped_by_cause_as_far_as_there_is_room() {
        let failures_of = |failures: &[(Failure, u64)], failed_before| {
            let failed = failures.iter().map(|(_, count)| count).sum::<u64>() + failed_before;
            let details = Details {
                failures: failures.to_vec(),
                failed_before,
                ..Details::default()
            };
            failures_line(&details, failed)
        };
        let timed_out = (Failure::Code(ErrorCode::RequestTimeout), 3);
        let limited = (Failure::Status(429), 9);
        assert_eq!(
            failures_of(&[timed_out, limited], 0),
            "12 failed: 9 rate limited (429), 3 timed out"
        );
        assert_eq!(
            failures_of(&[timed_out], 1200),
            "1,203 failed: 3 timed out, 1,200 in earlier runs"
        );
        let many: Vec<_> = [400, 404, 413, 422, 429, 499, 500, 503]
            .map(|status| (Failure::Status(status), 1000 + u64::from(status)))
            .to_vec();
        assert_eq!(
            failures_of(&many, 0),
            "11,570 failed: 1,503 service unavailable (503), and 7 more"
        );
        assert_eq!(cause(Failure::Status(499)), "answered 499");
        assert_eq!(cause(Failure::Unreadable), "unreadable in the database");
    }

    fn failures_line(details: &Details, failed: u64) -> String {
        let text = failures(details, failed, WIDTH).expect("some failed");
        assert!(measure_text_width(&text) <= WIDTH, "{text}");
        text
    }

    #[test]
    fn a_wait_has_its_end_on_the_clock() {
        let cause = "the model server answered 429";
        assert_eq!(
            waits_for(&[limited(cause, 60)]).as_deref(),
            Some("waiting: upstream default answers 429 until 14:15:02")
        );
        // A wait of a moment ends before it is read.
        assert_eq!(
            waits_for(&[limited(cause, 1)]).as_deref(),
            Some("waiting: upstream default answers 429")
        );
        assert_eq!(
            waits_for(&[limited(cause, 86_400)]).as_deref(),
            Some("waiting: upstream default answers 429 until 2026-11-29 14:14")
        );
        let down = UpstreamStatus {
            state: UpstreamState::Down,
            cause: Some("connection refused".to_owned()),
            left: Duration::from_secs(5),
            ..upstream("gpu")
        };
        assert_eq!(
            waits_for(std::slice::from_ref(&down)).as_deref(),
            Some("waiting: upstream gpu: connection refused, tried again at 14:14:07")
        );
        // A long cause is cut, and the end stands.
        let long = format!("{cause} with a body that is not JSON: {}", "x".repeat(300));
        assert_eq!(
            waits_for(&[limited(&long, 60)]).as_deref(),
            Some(
                "waiting: upstream default answers 429 with a body that is not JS… until 14:15:02"
            )
        );
        assert_eq!(
            waits_for(&[limited(&long, 60), down]).as_deref(),
            Some(
                "waiting: upstream default answers 429 with a body th… until 14:15:02; and 1 more"
            )
        );
        assert_eq!(waits_for(&[upstream("default")]), None);
        let unknown = UpstreamStatus {
            state: UpstreamState::Unknown,
            ..upstream("default")
        };
        assert_eq!(waits_for(&[unknown]), None);
    }

    #[test]
    fn a_rate_limit_that_lets_calls_through_says_how_many() {
        let narrow = UpstreamStatus {
            in_flight: 4,
            ..limited("the model server answered 429", 0)
        };
        assert_eq!(
            waits_for(std::slice::from_ref(&narrow)).as_deref(),
            Some("rate limited: 4 of 64 calls get through")
        );
        assert_eq!(
            waits_for(&[narrow, upstream("other")]).as_deref(),
            Some("rate limited by default: 4 of 64 calls get through")
        );
    }

    #[test]
    fn a_model_server_does_not_steer_the_terminal() {
        let text = waits_for(&[limited(
            "the model server answered 429: \u{1b}[2J\nhello",
            0,
        )]);
        assert_eq!(
            text.as_deref(),
            Some("waiting: upstream default answers 429:  [2J hello")
        );
    }

    #[test]
    fn calls_that_take_long_are_told() {
        let told = |count, seconds| {
            let oldest = Duration::from_secs(seconds);
            old_calls(OldCalls { count, oldest })
        };
        assert_eq!(told(1, 12), "1 call is 12 s old");
        assert_eq!(told(60_000, 75), "60,000 calls are up to 1m 15s old");
    }
}
