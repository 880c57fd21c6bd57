//! The requests of the demo: varied, and a few that fail in ways that are worth seeing.

use serde_json::{Value, json};

pub(super) const ENDPOINT: &str = "/v1/chat/completions";
const REQUESTS: usize = 600;

const TASKS: [&str; 6] = [
    "Summarise this review in one sentence",
    "Translate this into French",
    "Name the product that this is about",
    "Say whether this is praise or a complaint",
    "Write a polite answer to this",
    "List the facts in this",
];
const TEXTS: [&str; 7] = [
    "The kettle boils fast, but the lid sticks after a week.",
    "Arrived two days late; the lamp itself is lovely.",
    "My daughter wears the boots every day, rain or shine.",
    "I asked for blue and got green. Nobody answers the phone.",
    "Five years on, the saw still cuts as on the first day.",
    "The manual is in four languages, none of which is mine.",
    "It's a pen. It writes. What else is there to say?",
];

/// The input file: one request a line.
pub(super) fn jsonl() -> String {
    (0..REQUESTS)
        .map(|number| format!("{}\n", line(number)))
        .collect()
}

fn line(number: usize) -> Value {
    let task = TASKS[number % TASKS.len()];
    let text = TEXTS[number % TEXTS.len()];
    let mut body = json!({
        "model": if number.is_multiple_of(4) { "large" } else { "small" },
        "messages": [
            {"role": "system", "content": "You work through reviews, one at a time."},
            {"role": "user", "content": format!("{task} (review {number}): {text}")},
        ],
        "max_tokens": 50 + 10 * (number % 20),
    });
    if let Some(steering) = steering(number) {
        body["simulate"] = steering;
    }
    json!({
        "custom_id": format!("review-{number:04}"),
        "method": "POST",
        "url": ENDPOINT,
        "body": body,
    })
}

/// What the simulated upstream is to do with some of them, beside answering.
fn steering(number: usize) -> Option<Value> {
    match number {
        // A request that the model server will never take: it ends in the error file.
        77 | 333 => Some(json!({"status": 400})),
        // Trouble that passes: sent again, and answered.
        _ if number % 50 == 23 => Some(json!({"status": 500, "times": 1})),
        _ => None,
    }
}
