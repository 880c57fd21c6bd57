//! How numbers stand in what people read: counts, rates, sizes, and lengths of time.

use std::time::Duration;

use indicatif::HumanCount;
use jiff::Timestamp;

/// `1,234,567`.
pub(super) fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// The two largest units that matter: `7s`, `3m 20s`, `2h 05m`, `3d 04h`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// The same of a number of seconds, rounded. What is less than nothing is nothing.
pub(super) fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds.round()).unwrap_or_default())
}

/// How long ago something was, in its largest unit.
pub(super) fn ago(seconds: i64) -> String {
    match seconds {
        ..60 => "just now".to_owned(),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// A time in Unix seconds, for people, to the minute.
pub(super) fn moment(seconds: i64) -> String {
    let Ok(time) = Timestamp::from_second(seconds) else {
        return "?".to_owned();
    };
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

/// A rate, to the tenth where that matters.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// Bytes, in MiB.
pub(super) fn size(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let durations = [0.4, 59.4, 59.6, 200.0, 7500.0, 273_600.0, -5.0].map(seconds);
        assert_eq!(
            durations,
            ["0s", "59s", "1m 00s", "3m 20s", "2h 05m", "3d 04h", "0s"]
        );
        assert_eq!(duration(Duration::from_millis(59_999)), "59s");
        let moments = [0, 59, 60, 7200, 172_801].map(ago);
        assert_eq!(
            moments,
            ["just now", "just now", "1m ago", "2h ago", "2d ago"]
        );
        assert_eq!([0.04, 99.94, 1234.5].map(rate), ["0.0", "99.9", "1234"]);
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(size(1 << 19), "0.5 MiB");
    }
}
