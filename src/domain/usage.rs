//! Tokens used, as answers report them and as a batch sums them.

use std::ops::AddAssign;

use super::divide::divide;
use super::json;

/// No answer uses more tokens than this: what is beyond is a mistake, and must not spoil the sum
/// of a batch.
const MAX_TOKENS: i64 = 1_000_000_000;

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: i64,
    /// Those of the input that came from a cache.
    pub cached_tokens: i64,
    /// Those of the input that were written to a cache.
    pub cache_written_tokens: i64,
    pub output_tokens: i64,
    /// Those of the output that were spent on reasoning.
    pub reasoning_tokens: i64,
    pub total_tokens: i64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        for (sum, part) in [
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.cached_tokens, other.cached_tokens),
            (&mut self.cache_written_tokens, other.cache_written_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.reasoning_tokens, other.reasoning_tokens),
            (&mut self.total_tokens, other.total_tokens),
        ] {
            *sum = sum.saturating_add(part);
        }
    }
}

impl Usage {
    /// The parts of several, by their weights: they add up to it.
    #[must_use]
    pub fn divided(&self, weights: &[u64]) -> Vec<Usage> {
        type Field = fn(&mut Usage) -> &mut i64;
        let divided = |tokens: i64| {
            let total = u128::try_from(tokens).unwrap_or(0);
            let parts = divide(total, weights).into_iter();
            parts.map(|part| i64::try_from(part).unwrap_or(i64::MAX))
        };
        let mut parts = vec![Usage::default(); weights.len()];
        let fields: [(i64, Field); 6] = [
            (self.input_tokens, |part| &mut part.input_tokens),
            (self.cached_tokens, |part| &mut part.cached_tokens),
            (self.cache_written_tokens, |part| {
                &mut part.cache_written_tokens
            }),
            (self.output_tokens, |part| &mut part.output_tokens),
            (self.reasoning_tokens, |part| &mut part.reasoning_tokens),
            (self.total_tokens, |part| &mut part.total_tokens),
        ];
        for (tokens, field) in fields {
            for (part, tokens) in parts.iter_mut().zip(divided(tokens)) {
                *field(part) = tokens;
            }
        }
        parts
    }
}

/// What an answer's body reports under `usage`; `None` if it is no JSON object or reports nothing.
#[must_use]
pub fn read(body: &[u8]) -> Option<Usage> {
    let mut usage = None;
    let body = std::str::from_utf8(body).ok()?;
    json::members(body, |key, value| {
        if key == "usage" {
            usage = Some(value);
        }
    })?;
    parse(usage?)
}

/// Reads the value of `usage`, as OpenAI's API has it, in the names of the Responses API or of
/// those before it, or as the Messages API has it: that counts what was read from a cache, and
/// written to one, beside the input, and has no total. Nothing in it is relied on: what is absent
/// or no number counts as 0.
pub(crate) fn parse(usage: &str) -> Option<Usage> {
    let mut tokens = Usage::default();
    let (mut total, mut is_chat) = (None, false);
    let (mut read, mut written) = (0, 0);
    json::members(usage, |key, value| match key {
        "input_tokens" => tokens.input_tokens = count(value),
        "prompt_tokens" => {
            tokens.input_tokens = count(value);
            is_chat = true;
        }
        "output_tokens" | "completion_tokens" => tokens.output_tokens = count(value),
        "total_tokens" => total = (value != "null").then(|| count(value)),
        "input_tokens_details" | "prompt_tokens_details" => {
            let names = ["cached_tokens", "cache_write_tokens"];
            [tokens.cached_tokens, tokens.cache_written_tokens] = details(value, names);
        }
        "output_tokens_details" | "completion_tokens_details" => {
            let [reasoning, thinking] = details(value, ["reasoning_tokens", "thinking_tokens"]);
            tokens.reasoning_tokens = reasoning.max(thinking);
        }
        "cache_read_input_tokens" => read = count(value),
        "cache_creation_input_tokens" => written = count(value),
        _ => {}
    })?;
    // Some gateways put these names beside OpenAI's, whose sums hold them already.
    if total.is_none() && !is_chat {
        tokens.cached_tokens += read;
        tokens.input_tokens += read + written;
    }
    tokens.cache_written_tokens = tokens.cache_written_tokens.max(written);
    tokens.total_tokens = total.unwrap_or(tokens.input_tokens + tokens.output_tokens);
    Some(tokens)
}

/// Numbers within the object of details, such as `cached_tokens`; 0 for one that is not there.
fn details<const N: usize>(details: &str, names: [&str; N]) -> [i64; N] {
    let mut found = [0; N];
    // Details that are no object hold nothing.
    let _ = json::members(details, |key, value| {
        if let Some(at) = names.iter().position(|name| *name == key) {
            found[at] = count(value);
        }
    });
    found
}

/// A number of tokens, if it is one: `7`, but `7.0` and `7e0` as well.
fn count(value: &str) -> i64 {
    let number = value.parse().unwrap_or_else(|_| {
        let number: f64 = value.parse().unwrap_or_default();
        number as i64
    });
    number.clamp(0, MAX_TOKENS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usage(tokens: [i64; 5]) -> Usage {
        let [
            input_tokens,
            cached_tokens,
            output_tokens,
            reasoning_tokens,
            total_tokens,
        ] = tokens;
        Usage {
            input_tokens,
            cached_tokens,
            output_tokens,
            reasoning_tokens,
            total_tokens,
            cache_written_tokens: 0,
        }
    }

    #[test]
    fn usage_is_read_in_either_names_and_leniently() {
        for (body, expected) in [
            (
                r#"{"id":"x","usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":2},
                "completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":3},
                "total_tokens":12}}"#,
                [5, 2, 7, 3, 12],
            ),
            (
                r#"{"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":2},
                "output_tokens":7,"output_tokens_details":{"reasoning_tokens":3}}}"#,
                [5, 2, 7, 3, 12],
            ),
            (
                r#"{"usage":{"prompt_tokens":8,"total_tokens":8}}"#,
                [8, 0, 0, 0, 8],
            ),
            (
                r#"{"usage":{"prompt_tokens":4,"total_tokens":null}}"#,
                [4, 0, 0, 0, 4],
            ),
            (
                r#"{"usage":{"prompt_tokens":"9","completion_tokens":3.0}}"#,
                [0, 0, 3, 0, 3],
            ),
            (
                r#"{"usage":{"prompt_tokens":-9,"prompt_tokens_details":[1]}}"#,
                [0; 5],
            ),
            (
                r#"{"usage":{"input_tokens":5,"cache_read_input_tokens":7,
                "cache_creation_input_tokens":2,"output_tokens":3,
                "output_tokens_details":{"thinking_tokens":1}}}"#,
                [14, 7, 3, 1, 17],
            ),
            (
                r#"{"usage":{"prompt_tokens":14,"cache_read_input_tokens":7,"completion_tokens":3,
                "prompt_tokens_details":{"cached_tokens":7},"total_tokens":17}}"#,
                [14, 7, 3, 0, 17],
            ),
            (r#"{"usage":{"prompt_tokens":NaN}}"#, [-1; 5]),
            (
                r#"{"usage":{"prompt_tokens":1e300}}"#,
                [1_000_000_000, 0, 0, 0, 1_000_000_000],
            ),
            (
                r#"{"usage":{"output_tokens":99999999999999999999}}"#,
                [0, 0, 1_000_000_000, 0, 1_000_000_000],
            ),
            (r#"{"usage":{}}"#, [0; 5]),
            (
                r#"{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}"#,
                [2, 0, 0, 0, 2],
            ),
        ] {
            let expected = (expected[0] >= 0).then(|| usage(expected));
            let found = read(body.as_bytes()).map(|found| Usage {
                cache_written_tokens: 0,
                ..found
            });
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn what_was_written_to_a_cache_is_read_in_any_names() {
        for body in [
            r#"{"usage":{"input_tokens":5,"cache_creation_input_tokens":2}}"#,
            r#"{"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cache_write_tokens":2}}}"#,
            r#"{"usage":{"prompt_tokens":7,"cache_creation_input_tokens":2,"total_tokens":7}}"#,
        ] {
            let usage = read(body.as_bytes()).expect("usage");
            let found = (usage.input_tokens, usage.cache_written_tokens);
            assert_eq!(found, (7, 2), "{body}");
        }
    }

    #[test]
    fn a_body_without_usage_has_none() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"usage":null}"#,
            r#"{"usage":5}"#,
            r#"{"a":{"usage":{}}}"#,
        ] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
        assert_eq!(read(b"{\"usage\":{},\"a\":\"\xFF\"}"), None);
    }

    #[test]
    fn sums_do_not_overflow() {
        let mut sum = usage([i64::MAX, 1, 2, 3, i64::MAX]);
        sum += usage([1, 1, 1, 1, 1]);
        assert_eq!(sum, usage([i64::MAX, 2, 3, 4, i64::MAX]));
    }

    proptest! {
        #[test]
        fn whatever_is_reported_stays_within_bounds(value in json::tests::texts()) {
            let body = format!(
                r#"{{"usage":{{"prompt_tokens":{value},"completion_tokens":{value},
                "prompt_tokens_details":{value},"total_tokens":{value}}}}}"#
            );
            let usage = read(body.as_bytes()).expect("usage");
            for tokens in [usage.input_tokens, usage.cached_tokens, usage.output_tokens] {
                prop_assert!((0..=MAX_TOKENS).contains(&tokens));
            }
            prop_assert!((0..=2 * MAX_TOKENS).contains(&usage.total_tokens));
        }
    }
}
