//! How requests begin: engines keep what they have computed of a beginning, and need not compute it
//! again for the next request that has the same.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::json;

/// Beginnings that are the same for so many bytes of the first message stand near each other, and
/// those that are the same for longer nearer still. What is shorter saves nothing.
const NEAR: usize = 256;
const NEARER: usize = 2_048;

/// Requests that have so many steps in common have the same first message.
pub const FIRST_MESSAGE: u32 = 3;
/// The bits of a step.
const BITS: u32 = 16;
const STEPS: u32 = 4;

/// The least number that has so many steps in common with another one.
#[must_use]
pub fn least(beginning: u64, steps: u32) -> u64 {
    let rest = BITS * STEPS.saturating_sub(steps);
    beginning >> rest << rest
}

/// A number for how the body of a request begins: in the order of these numbers, requests that share
/// a long beginning stand next to each other. A beginning is the model, the tools and the first two
/// messages, in four steps. The first message is most often the system's, whatever the endpoint calls
/// it. A body that is no JSON object has the number 0.
#[must_use]
pub fn beginning(body: &str) -> u64 {
    let mut shared = DefaultHasher::new();
    let mut system = Vec::new();
    let (mut list, mut model, mut tools) = (None, "", "");
    let read = json::members(body, |key, value| match key {
        "model" => model = value,
        "tools" => tools = value,
        "system" | "instructions" if value != "null" => system.push(value),
        "messages" | "input" | "prompt" => list = Some(value),
        _ => {}
    });
    if read.is_none() {
        return 0;
    }
    (model, tools).hash(&mut shared);
    let mut messages = system;
    if let Some(list) = list {
        if list.starts_with('[') {
            // The whole of it was read already.
            let _ = json::items(list, |item| messages.push(item));
        } else {
            messages.push(list);
        }
    }
    let mut messages = messages.into_iter();
    let first = messages.next().unwrap_or_default();
    let second = messages.next().unwrap_or_default();
    // Each step has all that the one before has, so that it only tells apart what that does not.
    let steps: [(&[u8], &str); STEPS as usize] = [
        (up_to(first, NEAR), ""),
        (up_to(first, NEARER), ""),
        (first.as_bytes(), ""),
        (first.as_bytes(), second),
    ];
    steps.into_iter().fold(0, |number, step| {
        let mut hasher = shared.clone();
        step.hash(&mut hasher);
        (number << BITS) | (hasher.finish() >> (u64::BITS - BITS))
    })
}

/// The first bytes of a message.
fn up_to(message: &str, bytes: usize) -> &[u8] {
    let bytes = bytes.min(message.len());
    &message.as_bytes()[..bytes]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// How many steps two requests have in common.
    fn shared(one: &serde_json::Value, other: &serde_json::Value) -> u32 {
        let [one, other] = [one, other].map(|body| beginning(&body.to_string()));
        (one ^ other).leading_zeros() / 16
    }

    fn chat(system: &str, user: &str) -> serde_json::Value {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        json!({
            "model": "m",
            "messages": [message("system", system), message("user", user), message("user", "?")],
        })
    }

    #[test]
    fn requests_have_as_many_steps_in_common_as_their_beginnings_do() {
        let long = "Answer as a lawyer would. ".repeat(100);
        let other_end = format!("{long} Be brief.");
        let other_middle = format!("{}{}", &long[..500], "x".repeat(400));
        let request = chat(&long, "Yes?");
        assert_eq!(shared(&request, &request), 4);
        assert_eq!(shared(&request, &chat(&long, "No?")), 3);
        assert_eq!(shared(&request, &chat(&other_end, "Yes?")), 2);
        assert_eq!(shared(&chat(&long[..900], ""), &chat(&other_middle, "")), 1);
        assert_eq!(shared(&request, &chat("Another one.", "Yes?")), 0);
        let mut with_tools = request.clone();
        with_tools["tools"] = json!([{"type": "function"}]);
        assert_eq!(shared(&request, &with_tools), 0);
        let mut of_another = request.clone();
        of_another["model"] = json!("n");
        assert_eq!(shared(&request, &of_another), 0);
    }

    #[test]
    fn the_first_message_is_what_the_endpoint_calls_so() {
        let of = |body: serde_json::Value| beginning(&body.to_string());
        for (one, other) in [
            (
                json!({"model": "m", "instructions": "long", "input": "a"}),
                json!({"input": "b", "instructions": "long", "model": "m"}),
            ),
            (
                json!({"model": "m", "system": "long", "messages": [{"content": "a"}]}),
                json!({"model": "m", "system": "long", "messages": [{"content": "b"}]}),
            ),
            (
                json!({"model": "m", "prompt": "long", "n": 1}),
                json!({"model": "m", "prompt": "long", "n": 2}),
            ),
        ] {
            assert!(
                of(one.clone()) >> 16 == of(other.clone()) >> 16,
                "{one} {other}"
            );
        }
        assert_eq!(beginning("7"), 0);
        let nothing = of(json!({"model": "m"}));
        assert_eq!(nothing, of(json!({"model": "m", "messages": []})));
    }
}
