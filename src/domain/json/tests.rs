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

fn depth(text: &str) -> Option<usize> {
    shape(text).map(|shape| shape.depth)
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
    assert_eq!(shown.map(|shape| shape.depth), Some(2));
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
    for (text, expected) in [
        ("1".to_owned(), 0),
        ("\"[{\"".to_owned(), 0),
        ("[ ]".to_owned(), 1),
        ("{}".to_owned(), 1),
        (nested(128), 128),
        (format!("[{}1]", "[],{},".repeat(500)), 2),
        (r#"[1,[{"a":[{}],"b":[]}],2]"#.to_owned(), 5),
        (format!(r#"["\\","\"{}"]"#, "[".repeat(500)), 1),
        (r#"["\\",[]]"#.to_owned(), 2),
    ] {
        assert_eq!(depth(&text), Some(expected), "{text}");
        let member = format!(r#"{{"a":{text}}}"#);
        let shape = members(&member, |_, _| {}).expect("an object");
        assert_eq!(shape.depth, expected + 1, "{text}");
    }
    assert_eq!(members("{}", |_, _| {}).map(|shape| shape.depth), Some(1));
    assert_eq!(shape(&r#"{"a":"#.repeat(200)), None);
}

#[test]
fn json_is_tight_if_white_space_stands_in_its_strings_only() {
    for (text, is_tight) in [
        (r#"{"a b":[1,"c\n d"],"e":{}}"#, true),
        (" {}", false),
        ("{}\n", false),
        ("{ }", false),
        ("[ ]", false),
        ("[1, 2]", false),
        ("[1 ,2]", false),
        ("[[1\t]]", false),
        (r#"{"a" :1}"#, false),
        (r#"{"a":\r1}"#, false),
        (r#"{"a":{"b": 1}}"#, false),
    ] {
        let text = text.replace("\\r", "\r");
        assert_eq!(
            shape(&text).map(|shape| shape.is_tight),
            Some(is_tight),
            "{text:?}"
        );
        if let Some(shape) = members(&text, |_, _| {}) {
            assert_eq!(shape.is_tight, is_tight, "{text:?}");
        }
    }
}

#[test]
fn a_million_levels_do_not_overflow_the_stack() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    assert_eq!(depth(&deep), Some(1_000_000));
    assert!(compacted(deep.as_bytes()).0);
    let member = format!("{{\"a\":{deep}}}");
    let shape = members(&member, |_, _| {}).expect("an object");
    assert_eq!(shape.depth, 1_000_001);
}

/// Texts that are nearly JSON, for each place at which a reader could be too lenient or too strict.
#[test]
fn json_is_what_the_grammar_says() {
    for text in [
        "",
        " ",
        "0",
        "-0",
        "-",
        "00",
        "01",
        "-01",
        "1.",
        ".1",
        "1.0",
        "1.e1",
        "1e",
        "1e+",
        "1e-0",
        "1E5",
        "1e5.0",
        "+1",
        "0x1",
        "--1",
        "1 2",
        "nul",
        "null",
        "nulls",
        "tru",
        "true",
        "fals",
        "false",
        "True",
        "NaN",
        "Infinity",
        "\"",
        "\"\"",
        "\"\\",
        "\"\\\"",
        "\"\\\"\"",
        "\"\\x\"",
        "\"\\/\\b\\f\\n\\r\\t\"",
        "\"\\u12\"",
        "\"\\u123g\"",
        "\"\\uD800\"",
        "\"\\u00e9\"",
        "\"\t\"",
        "\"\u{1f}\"",
        "\"\u{7f}\"",
        "\"é\"",
        "'a'",
        "[",
        "]",
        "[]",
        "[ ]",
        "[,]",
        "[1,]",
        "[1 1]",
        "[1,,1]",
        "[1}",
        "{",
        "}",
        "{ }",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\" : 1 }",
        "{\"a\":1 \"b\":2}",
        "{\"a\":1,\"b\":2}",
        "{1:1}",
        "{\"a\":1]",
        "{a:1}",
        "[{}]",
        "[{]}",
        "{\"a\":[{\"b\":[1,{}]},2]}",
        "{\"a\":[{\"b\":[1,{}]},2}",
        "\u{a0}1",
        "\u{c}1",
        "/**/1",
        "\u{feff}1",
    ] {
        let expected = error(text).is_none();
        assert_eq!(is_valid(text), expected, "{text:?}");
        let member = format!("{{\"a\":{text}}}");
        let expected = error(&member).is_none();
        assert_eq!(
            members(&member, |_, _| {}).is_some(),
            expected,
            "{member:?}"
        );
    }
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
        let is_tight = shape(&text).is_some_and(|shape| shape.is_tight);
        let mut copied = Vec::new();
        push_escaped(text.as_bytes(), &mut copied);
        prop_assert_eq!(is_tight, copied == compact.as_bytes());
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
        prop_assert_eq!(was_json, fault(&body).is_none());
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
    fn members_are_those_that_a_json_reader_finds(value in values(), loose in any::<bool>()) {
        let members_of = |value: &Value| -> Vec<(String, Value)> {
            let members = value.as_object().into_iter().flatten();
            members.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let text = if loose { format!("{value:#}") } else { value.to_string() };
        // Digits of a float may change once as it is read.
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let mut seen = Vec::new();
        let shown = members(&text, |key, value| {
            seen.push((key.to_owned(), serde_json::from_str(value).expect("JSON")));
        });
        prop_assert_eq!(shown.is_some(), value.is_object());
        prop_assert_eq!(seen, members_of(&value));
    }

    #[test]
    fn members_of_a_member_are_shown_in_the_same_reading(
        value in values(),
        body in values(),
        loose in any::<bool>(),
    ) {
        let whole = serde_json::json!({"before": value, "body": body, "z": [{"body": {"x": 1}}]});
        let text = if loose { format!("{whole:#}") } else { whole.to_string() };
        let shown = |text: &str| {
            let mut shown = Vec::new();
            let _ = members(text, |key, value| shown.push((key.to_owned(), value.to_owned())));
            shown
        };
        let (mut seen, mut within) = (Vec::new(), Vec::new());
        let is_object = members_and_within(
            &text,
            "body",
            |key, value| seen.push((key.to_owned(), value.to_owned())),
            |key, value| within.push((key.to_owned(), value.to_owned())),
        );
        prop_assert!(is_object);
        prop_assert_eq!(&seen, &shown(&text));
        let (_, body) = &seen[1];
        prop_assert_eq!(within, shown(body));
        let cut = &text[..text.len() - 1];
        let is_object = members_and_within(cut, "body", |_, _| {}, |_, _| {});
        prop_assert!(!is_object);
    }

    #[test]
    fn a_string_reads_back_as_it_was(text in any::<String>()) {
        let mut out = Vec::new();
        string(&text, &mut out);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).expect("a string"), text);
    }
}

#[test]
fn the_items_of_an_array_are_shown_as_they_are_written() {
    let mut items = Vec::new();
    let shape = super::items(" [ 1 ,\"a,b\", [2, 3],{\"a\":[]}] ", |item| {
        items.push(item);
    });
    assert_eq!(items, ["1", "\"a,b\"", "[2, 3]", "{\"a\":[]}"]);
    let expected = Shape {
        depth: 3,
        is_tight: false,
    };
    assert_eq!(shape, Some(expected));
    for none in ["", "{}", "[1", "[1,]", "[,1]", "[1]2", "7"] {
        assert_eq!(super::items(none, |_| {}), None, "{none}");
    }
}
