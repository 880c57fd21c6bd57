//! How the values of flags are read.

use std::time::Duration;

use serde_json::Value;

use crate::config::parse_duration;

/// `600/m`: so many calls in a second, a minute, an hour or a day. What is between two of them.
pub(super) fn rate(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number and a unit of time, such as 10/s, 600/m or 5000/h".to_owned();
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    match count.parse::<u32>() {
        Ok(0) | Err(_) => Err(wrong()),
        Ok(count) => Ok(Duration::from_secs(seconds) / count),
    }
}

/// A duration that is not nothing.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("a call takes some time: at least 1ms".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

/// `NAME: VALUE`
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("expected NAME: VALUE, as in 'x-team: batch'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// `KEY=JSON`
pub(super) fn set(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("expected KEY=JSON, as in temperature=0.2")?;
    if key == "stream" {
        return Err("answers in a batch are never streamed".to_owned());
    }
    let value = serde_json::from_str(value).map_err(|_| {
        format!("the value of {key} is not JSON: a text is written in quotes, as in '{key}=\"…\"'")
    })?;
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_calls_in_a_time() {
        assert_eq!(rate("10/s"), Ok(Duration::from_millis(100)));
        assert_eq!(rate("600/m"), Ok(Duration::from_millis(100)));
        assert_eq!(rate("1/d"), Ok(Duration::from_hours(24)));
        for wrong in ["", "10", "0/s", "-1/s", "1.5/s", "10/w", "10/", "/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_header_has_a_name_and_a_key_a_value() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(header("x-a: b:c"), pair("x-a", "b:c"));
        assert!(header("x-a").is_err());
        assert_eq!(set("a=[1]"), Ok(("a".to_owned(), serde_json::json!([1]))));
        assert_eq!(set("a=\"b=c\""), Ok(("a".to_owned(), "b=c".into())));
        for wrong in ["a", "a=word", "stream=false"] {
            assert!(set(wrong).is_err(), "{wrong}");
        }
    }
}
