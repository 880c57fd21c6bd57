use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Any JSON value, with strings that hold whatever is awkward.
pub fn values() -> impl Strategy<Value = Value> {
    let text = "([a-z]|[\"\\\\/\n\r\t\u{0}\u{1f}\u{7f}]|[\u{85}\u{2028}\u{2029}é€𝄞]){0,12}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(text, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A value as text, written tightly or loosely.
pub fn texts() -> impl Strategy<Value = String> {
    (values(), any::<bool>()).prop_map(|(value, loose)| {
        if loose {
            format!("\t{value:#}\r\n")
        } else {
            value.to_string()
        }
    })
}

fn compacted(body: &[u8]) -> (bool, String) {
    let mut out = Vec::new();
    let json = std::str::from_utf8(body).ok().filter(|text| is_valid(text));
    match json {
        Some(json) => compact(json.as_bytes(), &mut out),
        None => string(&String::from_utf8_lossy(body), &mut out),
    }
    (json.is_some(), String::from_utf8(out).expect("UTF-8"))
}

fn is_one_line(text: &str) -> bool {
    !text.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
}

#[test]
fn compacting_changes_white_space_and_line_separators_only() {
    for (body, expected) in [
        ("{ }", "{}"),
        (
            "\n{\"a\" : [1.0, 1e5 ,-0.00]}\r\n",
            r#"{"a":[1.0,1e5,-0.00]}"#,
        ),
        (r#"{"b":1,"a":2,"b":3}"#, r#"{"b":1,"a":2,"b":3}"#),
        (
            "\" a\u{2028}b\u{2029}c\u{85}d \"",
            r#"" a\u2028b\u2029c\u0085d ""#,
        ),
        ("\"\u{2027}\u{80}é\"", "\"\u{2027}\u{80}é\""),
        (r#" "a \" b \\" "#, r#""a \" b \\""#),
        (
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        ("1e999", "1e999"),
        (r#""\ud800""#, r#""\ud800""#),
    ] {
        assert_eq!(
            compacted(body.as_bytes()),
            (true, expected.to_owned()),
            "{body}"
        );
    }
}

#[test]
fn what_is_not_json_becomes_a_string() {
    for (body, expected) in [
        (&b""[..], r#""""#),
        (
            b"<html>\r\n\t\"x\" \\ \x01\x7f",
            "\"<html>\\r\\n\\t\\\"x\\\" \\\\ \\u0001\u{7f}\"",
        ),
        (b"{\"a\":1", r#""{\"a\":1""#),
        (b"[1] [2]", r#""[1] [2]""#),
        (b"\xEF\xBB\xBF{}", "\"\u{feff}{}\""),
        (b"\"\xFF\"", "\"\\\"\u{fffd}\\\"\""),
        ("a\u{2028}b".as_bytes(), r#""a\u2028b""#),
    ] {
        assert_eq!(compacted(body), (false, expected.to_owned()), "{body:?}");
    }
}

#[test]
fn members_are_shown_in_order_with_decoded_keys() {
    let mut seen = Vec::new();
    let text = r#" { "a" : [ 1 ], "\u0062\n" : "x", "\ud800" : {}, "a" : null } "#;
    let shown = members(text, |key, value| seen.push((key.to_owned(), value)));
    assert_eq!(shown, Some(()));
    let expected = [("a", "[ 1 ]"), ("b\n", r#""x""#), ("", "{}"), ("a", "null")];
    assert_eq!(seen, expected.map(|(key, value)| (key.to_owned(), value)));
    for text in [
        "",
        "[]",
        "null",
        "{",
        "{}{}",
        "{\"a\"}",
        "{\"a\":1,}",
        "{\"\n\":1}",
        "{1:2}",
    ] {
        assert_eq!(members(text, |_, _| {}), None, "{text:?}");
    }
}

#[test]
fn nesting_is_counted_outside_strings_only() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(is_nested_within(&nested(128), 128));
    assert!(!is_nested_within(&nested(129), 128));
    assert!(!is_nested_within(&r#"{"a":"#.repeat(200), 128));
    assert!(is_nested_within(&format!("[{}1]", "[],{},".repeat(500)), 2));
    assert!(is_nested_within(
        &format!(r#"["\\","\"{}"]"#, "[".repeat(500)),
        1
    ));
    assert!(!is_nested_within(r#"["\\",[]]"#, 1));
}

#[test]
fn a_million_levels_do_not_overflow_the_stack() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    assert!(is_valid(&deep) && !is_nested_within(&deep, 128));
    assert!(compacted(deep.as_bytes()).0);
    let member = format!("{{\"a\":{deep}}}");
    assert_eq!(members(&member, |_, _| {}), Some(()));
}

proptest! {
    #[test]
    fn compact_json_has_the_same_value_on_one_line(text in texts()) {
        let (was_json, compact) = compacted(text.as_bytes());
        prop_assert!(was_json);
        prop_assert!(is_one_line(&compact), "{}", compact);
        prop_assert_eq!(
            serde_json::from_str::<Value>(&compact).expect("JSON"),
            serde_json::from_str::<Value>(&text).expect("JSON")
        );
        prop_assert_eq!(compacted(compact.as_bytes()), (true, compact));
    }

    #[test]
    fn any_bytes_become_json_on_one_line(
        text in texts(),
        at in any::<prop::sample::Index>(),
        with in prop_oneof![any::<u8>(), prop::sample::select(b"\"\\{}[],:0 \n".to_vec())],
        cut in any::<bool>(),
    ) {
        let mut body = text.into_bytes();
        let at = at.index(body.len());
        body[at] = with;
        body.truncate(if cut { at } else { body.len() });
        let (was_json, compact) = compacted(&body);
        prop_assert!(is_one_line(&compact), "{}", compact);
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) => {
                prop_assert!(was_json);
                prop_assert_eq!(serde_json::from_str::<Value>(&compact).expect("JSON"), value);
            }
            Err(_) if was_json => {
                // Wider than `Value`: numbers without end, half surrogate pairs.
                prop_assert!(serde_json::from_slice::<IgnoredAny>(&body).is_ok());
            }
            Err(_) => {
                let string: String = serde_json::from_str(&compact).expect("a string");
                prop_assert_eq!(string, String::from_utf8_lossy(&body));
            }
        }
        prop_assert_eq!(compacted(compact.as_bytes()), (true, compact));
    }

    #[test]
    fn a_string_reads_back_as_it_was(text in any::<String>()) {
        let mut out = Vec::new();
        string(&text, &mut out);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).expect("a string"), text);
    }
}
