use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// What a JSON text says. Two texts are to have one canonical form where this is the same: it
/// knows nothing of how they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Says {
    Null,
    Boolean(bool),
    /// Digits as a number, and a power of ten: without a zero at the end of the digits.
    Number(i128, i32),
    Text(String),
    List(Vec<Says>),
    Object(BTreeMap<String, Says>),
}

impl Says {
    fn number(mut digits: i128, mut power: i32) -> Self {
        while digits != 0 && digits % 10 == 0 {
            (digits, power) = (digits / 10, power + 1);
        }
        Says::Number(digits, if digits == 0 { 0 } else { power })
    }
}

fn texts() -> impl Strategy<Value = String> {
    "([a-c]|[\"\\\\/\n\u{0}\u{7f}]|[\u{85}\u{2028}é𝄞]){0,4}"
}

fn values() -> impl Strategy<Value = Says> {
    let leaf = prop_oneof![
        Just(Says::Null),
        any::<bool>().prop_map(Says::Boolean),
        (any::<i64>(), -30..30).prop_map(|(digits, power)| Says::number(digits.into(), power)),
        (-20_i128..20, -2..2).prop_map(|(digits, power)| Says::number(digits, power)),
        // Beyond what a float tells apart.
        (0_i128..4).prop_map(|more| Says::number((1 << 53) + more, 0)),
        texts().prop_map(Says::Text),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Says::List),
            proptest::collection::btree_map(texts(), inner, 0..4).prop_map(Says::Object),
        ]
    })
}

fn objects() -> impl Strategy<Value = Says> {
    proptest::collection::btree_map(texts(), values(), 0..5).prop_map(Says::Object)
}

/// Writes a value in one of the many ways in which it can be written.
fn written(value: &Says, choices: &mut impl FnMut() -> usize, out: &mut String) {
    let space = |choice: usize| ["", " ", "\n", "\t \r\n"][choice % 4];
    out.push_str(space(choices()));
    match value {
        Says::Null => out.push_str("null"),
        Says::Boolean(boolean) => out.push_str(&boolean.to_string()),
        Says::Number(digits, power) => number(*digits, *power, choices(), out),
        Says::Text(text) => string(text, choices(), out),
        Says::List(items) => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                out.push_str(if place > 0 { "," } else { "" });
                written(item, choices, out);
            }
            out.push(']');
        }
        Says::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            if !members.is_empty() {
                let first = choices() % members.len();
                members.rotate_left(first);
            }
            out.push('{');
            for (place, (key, value)) in members.into_iter().enumerate() {
                out.push_str(if place > 0 { "," } else { "" });
                out.push_str(space(choices()));
                string(key, choices(), out);
                out.push_str(space(choices()));
                out.push(':');
                written(value, choices, out);
            }
            out.push('}');
        }
    }
    out.push_str(space(choices()));
}

fn number(digits: i128, power: i32, choice: usize, out: &mut String) {
    let sign = if digits < 0 { "-" } else { "" };
    let all = digits.unsigned_abs().to_string();
    let zeros = if digits == 0 { 0 } else { choice % 3 };
    match choice % 5 {
        0 => out.push_str(&format!(
            "{sign}{all}{}e{}",
            "0".repeat(zeros),
            power - zeros as i32
        )),
        1 => out.push_str(&format!("{sign}{all}.{}E{power:+}", "0".repeat(zeros + 1))),
        2 if digits != 0 => {
            let power = power + all.len() as i32 + 2;
            out.push_str(&format!("{sign}0.00{all}e{power}"));
        }
        _ if (0..30).contains(&power) => {
            out.push_str(&format!("{sign}{all}{}", "0".repeat(power as usize)));
        }
        _ => out.push_str(&format!("{sign}{all}e{power}")),
    }
}

fn string(text: &str, choice: usize, out: &mut String) {
    if choice.is_multiple_of(2) {
        out.push_str(&serde_json::to_string(text).expect("JSON"));
        return;
    }
    out.push('"');
    for unit in text.encode_utf16() {
        out.push_str(&format!("\\u{unit:04X}"));
    }
    out.push('"');
}

fn spelled(value: &Says, choices: &[Index]) -> String {
    let mut at = 0;
    let mut choices = || {
        at += 1;
        choices[at % choices.len()].index(1 << 20)
    };
    let mut out = String::new();
    written(value, &mut choices, &mut out);
    out
}

fn place() -> Place<'static> {
    Place {
        tenant: "t",
        path: CHAT,
        upstream: "gpu",
        url: "http://gpu/v1/chat/completions",
        api_version: "",
    }
}

fn key(body: &str) -> Option<Key> {
    place().key(body, None)
}

fn choices() -> impl Strategy<Value = Vec<Index>> {
    proptest::collection::vec(any::<Index>(), 1..40)
}

/// Every place in a value at which something stands.
fn count(value: &Says) -> usize {
    1 + match value {
        Says::List(items) => items.iter().map(count).sum(),
        Says::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// Puts another value at one of the places.
fn replace(value: &mut Says, at: &mut usize, other: &Says) {
    if *at == 0 {
        *value = other.clone();
    }
    *at = at.wrapping_sub(1);
    match value {
        Says::List(items) => items.iter_mut().for_each(|item| replace(item, at, other)),
        Says::Object(members) => members
            .values_mut()
            .for_each(|item| replace(item, at, other)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn however_a_body_is_written_it_has_one_key(
        body in objects(), one in choices(), other in choices(),
    ) {
        let [one, other] = [one, other].map(|choices| spelled(&body, &choices));
        let of_one = key(&one);
        prop_assert!(of_one.is_some(), "{one}");
        prop_assert_eq!(of_one, key(&other), "{} {}", one, other);
    }

    #[test]
    fn bodies_that_say_different_things_have_different_keys(
        body in objects(), other in values(), at in any::<Index>(), choices in choices(),
    ) {
        let mut changed = body.clone();
        let mut place = 1 + at.index(count(&body));
        replace(&mut changed, &mut place, &other);
        let [one, two] = [&body, &changed].map(|body| key(&spelled(body, &choices)));
        let is_left_out = |body: &Says| match body {
            Says::Object(members) => members.keys().any(|key| left_out(CHAT).contains(&&**key)),
            _ => false,
        };
        prop_assume!(!is_left_out(&body));
        prop_assert_eq!(one == two, body == changed);
    }

    #[test]
    fn a_list_in_another_order_has_another_key(
        items in proptest::collection::vec(values(), 2..5), by in any::<Index>(),
        choices in choices(),
    ) {
        let mut turned = items.clone();
        turned.rotate_left(by.index(items.len()));
        let of = |items: &[Says]| {
            let body = Says::Object([("a".to_owned(), Says::List(items.to_vec()))].into());
            key(&spelled(&body, &choices))
        };
        prop_assert_eq!(of(&items) == of(&turned), items == turned);
    }
}

#[test]
fn whoever_asks_and_whoever_is_asked_make_a_difference() {
    let body = r#"{"a":1}"#;
    let usual = place();
    let other = |change: fn(&mut Place<'static>)| {
        let mut place = usual;
        change(&mut place);
        place.key(body, None).expect("a key")
    };
    let all = [
        usual.key(body, None).expect("a key"),
        usual.key(body, Some("{}")).expect("a key"),
        usual.key(body, Some(r#"{"b":1}"#)).expect("a key"),
        other(|place| place.tenant = "other"),
        other(|place| place.path = COMPLETIONS),
        other(|place| place.upstream = "other"),
        other(|place| place.url = "http://other/v1/chat/completions"),
        other(|place| place.api_version = "2024-10-21"),
        other(|place| (place.tenant, place.path) = ("t/", "v1/chat/completions")),
    ];
    for (at, key) in all.iter().enumerate() {
        assert!(!all[..at].contains(key), "{at}");
    }
}

#[test]
fn what_cannot_change_the_answer_is_left_out_at_its_endpoint() {
    let with = r#"{"a":1,"user":"x","metadata":{"b":[1]},"store":true}"#;
    let key_at = |path: &'static str, body: &str| Place { path, ..place() }.key(body, None);
    let bare = r#"{"a":1}"#;
    assert_eq!(key_at(CHAT, with), key_at(CHAT, bare));
    assert_ne!(
        key_at(RESPONSES, with),
        key_at(RESPONSES, bare),
        "they are repeated"
    );
    assert_ne!(key_at(EMBEDDINGS, with), key_at(EMBEDDINGS, bare));
    assert_eq!(
        key_at(EMBEDDINGS, r#"{"a":1,"user":"x"}"#),
        key_at(EMBEDDINGS, bare)
    );
    assert_eq!(without_left_out(CHAT, with), bare);
    assert_eq!(without_left_out(CHAT, r#"{ "user":"x" }"#), "{}");
    assert_eq!(without_left_out(RESPONSES, with), with);
}

#[test]
fn each_mode_takes_what_the_one_before_it_takes() {
    let zero = r#"{"temperature":0.0}"#;
    let seeded = r#"{"temperature":0.7,"seed":1}"#;
    let warm = r#"{"temperature":0.7,"seed":null}"#;
    let lines = [
        (EMBEDDINGS, "{}", Mode::Embeddings),
        (MODERATIONS, "{}", Mode::Deterministic),
        (CHAT, zero, Mode::Deterministic),
        (CHAT, seeded, Mode::Deterministic),
        (CHAT, warm, Mode::All),
        (CHAT, "{}", Mode::All),
        (COMPLETIONS, zero, Mode::All),
        (RESPONSES, zero, Mode::All),
        ("/v1/rerank", "{}", Mode::All),
    ];
    for (path, body, from) in lines {
        for mode in Mode::ALL {
            assert_eq!(
                mode.takes(path, body),
                mode >= from,
                "{path} {body} {mode:?}"
            );
        }
    }
}

#[test]
fn a_batch_chooses_no_more_than_the_operator_allows() {
    let terms = |mode| Terms {
        mode,
        ..Terms::default()
    };
    for (operator, batch, expected) in [
        (Mode::Off, None, Mode::Off),
        (Mode::Off, Some(Choice::Mode(Mode::All)), Mode::Off),
        (Mode::Off, Some(Choice::Refresh), Mode::Off),
        (Mode::Deterministic, None, Mode::Deterministic),
        (
            Mode::Deterministic,
            Some(Choice::Refresh),
            Mode::Deterministic,
        ),
        (
            Mode::Deterministic,
            Some(Choice::Mode(Mode::Off)),
            Mode::Off,
        ),
        (
            Mode::Deterministic,
            Some(Choice::Mode(Mode::All)),
            Mode::Deterministic,
        ),
    ] {
        assert_eq!(
            terms(operator).mode_of(batch),
            expected,
            "{operator:?} {batch:?}"
        );
    }
    assert_eq!(Choice::allowed(Mode::Off), ["off"]);
    assert_eq!(
        Choice::allowed(Mode::Embeddings),
        ["off", "embeddings", "refresh"]
    );
    for choice in ["off", "embeddings", "deterministic", "all", "refresh"] {
        assert_eq!(Choice::parse(choice).map(Choice::as_str), Some(choice));
    }
}

#[test]
fn only_an_answer_that_its_model_has_ended_is_whole() {
    let choices = |reasons: &[&str]| {
        let all = reasons.iter();
        let all: Vec<String> = all
            .map(|reason| format!("{{\"index\":0,\"finish_reason\":{reason}}}"))
            .collect();
        format!("{{\"choices\":[{}]}}", all.join(","))
    };
    for (path, body, is_whole) in [
        (CHAT, choices(&["\"stop\""]), true),
        (CHAT, choices(&["\"tool_calls\"", "\"stop\""]), true),
        (CHAT, choices(&["\"stop\"", "\"length\""]), false),
        (CHAT, choices(&["\"content_filter\""]), false),
        (CHAT, choices(&["null"]), false),
        (CHAT, choices(&[]), false),
        (CHAT, "{\"choices\":[{}]}".to_owned(), false),
        (COMPLETIONS, choices(&["\"length\""]), false),
        (RESPONSES, "{\"status\":\"completed\"}".to_owned(), true),
        (RESPONSES, "{\"status\":\"incomplete\"}".to_owned(), false),
        (RESPONSES, "{\"status\":\"queued\"}".to_owned(), false),
        (MESSAGES, "{\"stop_reason\":\"end_turn\"}".to_owned(), true),
        (
            MESSAGES,
            "{\"stop_reason\":\"max_tokens\"}".to_owned(),
            false,
        ),
        (EMBEDDINGS, "{\"data\":[]}".to_owned(), true),
    ] {
        assert_eq!(ends_naturally(path, &body), is_whole, "{path} {body}");
    }
}
