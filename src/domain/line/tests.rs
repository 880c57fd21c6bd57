use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::asked::Shape;

/// A good line, changed as `change` says.
fn line(change: impl FnOnce(&mut Value)) -> String {
    let mut line = json!({
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": []},
    });
    change(&mut line);
    line.to_string()
}

fn fault_of(line: &[u8]) -> Option<Fault> {
    match check(line, Endpoints::USUAL) {
        Check::Blank => None,
        Check::Request(request) => request.fault,
        Check::Fault(fault) => Some(fault),
    }
}

fn assert_fault(line: impl AsRef<[u8]>, code: &str, param: Option<&str>, message: &str) {
    let line = line.as_ref();
    let fault =
        fault_of(line).unwrap_or_else(|| panic!("no fault in {}", String::from_utf8_lossy(line)));
    assert_eq!(
        (fault.code, fault.param.as_deref(), fault.message.as_str()),
        (code, param, message)
    );
}

#[test]
fn a_good_line_is_a_request() {
    let good = line(|_| {});
    let expected = Request {
        custom_id: "a".into(),
        url: "/v1/chat/completions".into(),
        endpoint: endpoint::find("/v1/chat/completions"),
        model: Some("m".into()),
        fault: None,
        fault_beside_model: None,
        body: r#"{"messages":[],"model":"m"}"#,
        shape: Shape::default(),
    };
    assert_eq!(
        check(good.as_bytes(), Endpoints::USUAL),
        Check::Request(expected.clone())
    );
    let loose = format!(" \t{good}\r\n");
    assert_eq!(
        check(loose.as_bytes(), Endpoints::USUAL),
        Check::Request(expected)
    );
    let envelope = read(&loose).expect("a request");
    assert_eq!(
        (&*envelope.custom_id, &*envelope.url),
        ("a", "/v1/chat/completions")
    );
    assert_eq!(envelope.body, r#"{"messages":[],"model":"m"}"#);
}

#[test]
fn a_line_of_white_space_is_blank() {
    for blank in ["", " ", "\r\n", "\t \r"] {
        assert_eq!(
            check(blank.as_bytes(), Endpoints::USUAL),
            Check::Blank,
            "{blank:?}"
        );
    }
    // Not white space to JSON.
    for other in ["\u{a0}", "\u{feff}", "\u{b}", "\0"] {
        assert!(
            matches!(check(other.as_bytes(), Endpoints::USUAL), Check::Fault(_)),
            "{other:?}"
        );
    }
}

#[test]
fn a_line_that_is_no_json_object_is_refused() {
    let good = line(|_| {});
    let mut not_utf8 = good.clone().into_bytes();
    not_utf8[15] = 0xFF;
    let with_body = |body: &str| good.replace("[]", body);
    let nested = |depth: usize| with_body(&("[".repeat(depth) + &"]".repeat(depth)));
    for (bad, why) in [
        (&b"hello"[..], "no JSON from column 1"),
        (b"[]", "It is an array: each line"),
        (b" [1]\r", "without brackets"),
        (b"null", "It is null: each line must be one object with"),
        (b"\"\"", "It is a string"),
        (b"{}{}", "column 3: trailing characters"),
        (&not_utf8, "Byte 16 is 0xFF"),
        (
            &good.as_bytes()[..good.len() - 1],
            "write each request on one line",
        ),
        (format!("\u{feff}{good}").as_bytes(), "byte order mark"),
        (with_body("[01]").as_bytes(), "invalid number"),
        (with_body("[NaN]").as_bytes(), "expected value"),
        (with_body("[\"\t\"]").as_bytes(), "control character"),
        (
            good.replace("\"a\"", r#""\ud800""#).as_bytes(),
            "'custom_id' has",
        ),
        (nested(127).as_bytes(), "deeper than 128"),
        (nested(10_000).as_bytes(), "deeper than 128"),
    ] {
        let Check::Fault(fault) = check(bad, Endpoints::USUAL) else {
            panic!("{why}: it is taken");
        };
        let sentence = "This line is not parseable as valid JSON. ";
        assert_eq!((fault.code, &fault.param), ("invalid_json_line", &None));
        assert!(fault.message.starts_with(sentence), "{}", fault.message);
        assert!(fault.message.contains(why), "{why}: {}", fault.message);
    }
    // With the line and its body, 128.
    assert_eq!(fault_of(nested(126).as_bytes()), None);
    // Nobody here reads these; the upstream judges them.
    assert_eq!(fault_of(with_body(r#"["\ud800", 1e999]"#).as_bytes()), None);
}

#[test]
fn a_key_that_is_missing_null_or_empty_is_named() {
    for key in ["custom_id", "method", "url", "body"] {
        let message = format!("Missing required parameter: '{key}'.");
        let without = line(|line| drop(line.as_object_mut().map(|line| line.remove(key))));
        assert_fault(without, "missing_required_parameter", Some(key), &message);
        let null = line(|line| line[key] = Value::Null);
        assert_fault(null, "missing_required_parameter", Some(key), &message);
        if key != "body" {
            let empty = line(|line| line[key] = "".into());
            assert_fault(empty, "missing_required_parameter", Some(key), &message);
        }
    }
    let first = "Missing required parameter: 'custom_id'.";
    assert_fault("{}", "missing_required_parameter", Some("custom_id"), first);
}

#[test]
fn a_key_of_the_wrong_type_is_named() {
    for (value, is) in [
        (json!(1), "an integer"),
        (json!(1.5), "a decimal"),
        (json!(true), "a boolean"),
        (json!([]), "an array"),
        (json!({}), "an object"),
    ] {
        for key in ["custom_id", "method", "url"] {
            let message =
                format!("Invalid type for '{key}': expected a string, but got {is} instead.");
            assert_fault(
                line(|line| line[key] = value.clone()),
                "invalid_type",
                Some(key),
                &message,
            );
        }
        let message = format!("Invalid type for 'model': expected a string, but got {is} instead.");
        let bad = line(|line| line["body"]["model"] = value.clone());
        assert_fault(bad, "invalid_type", Some("body.model"), &message);
    }
    let message = "Invalid type for 'body': expected an object, but got a string instead.";
    assert_fault(
        line(|line| line["body"] = "{}".into()),
        "invalid_type",
        Some("body"),
        message,
    );
}

#[test]
fn only_post_is_a_method() {
    let message = "Invalid value: 'post'. Supported values are: 'POST'.";
    assert_fault(
        line(|line| line["method"] = "post".into()),
        "invalid_value",
        Some("method"),
        message,
    );
    let long = line(|line| line["method"] = "é".repeat(1_000_000).into());
    let fault = fault_of(long.as_bytes()).expect("a fault");
    assert!(
        fault.message.len() < 300,
        "a message repeats only the start of what is long"
    );
}

#[test]
fn a_body_must_have_what_its_endpoint_requires() {
    for endpoint in &endpoint::ENDPOINTS {
        let mut body = json!({"model": "m", "stream": false});
        for key in endpoint.required.iter().copied().chain(endpoint.limit) {
            let bad = line(|line| {
                line["url"] = endpoint.path.into();
                line["body"] = body.clone();
                line["body"][key] = Value::Null;
            });
            let (param, message) = (
                format!("body.{key}"),
                format!("Missing required parameter: '{key}'."),
            );
            assert_fault(bad, "missing_required_parameter", Some(&param), &message);
            body[key] = "x".into();
        }
        let good = line(|line| {
            line["url"] = endpoint.path.into();
            line["body"] = body.clone();
        });
        assert_eq!(fault_of(good.as_bytes()), None, "{}", endpoint.path);
        let without_model = good.replace(r#""model":"m""#, r#""model":null"#);
        if endpoint.model_required {
            let message = "Missing required parameter: 'model'.";
            assert_fault(
                without_model,
                "missing_required_parameter",
                Some("body.model"),
                message,
            );
        } else {
            assert_eq!(
                fault_of(without_model.as_bytes()),
                None,
                "{}",
                endpoint.path
            );
        }
        let streaming = good.replace("false", "true");
        let message = format!(
            "{}: Streaming is not supported in the Batch API.",
            endpoint.name
        );
        assert_fault(
            streaming,
            "streaming_unsupported",
            Some("body.stream"),
            &message,
        );
    }
    assert_eq!(
        fault_of(line(|line| line["body"]["stream"] = 1.into()).as_bytes()),
        None
    );
}

#[test]
fn a_response_is_not_computed_in_the_background() {
    let with = |url: &str, background: Value| {
        line(|line| {
            line["url"] = url.into();
            line["body"] = json!({
                "model": "m", "prompt": "x", "input": "x", "background": background,
            });
        })
    };
    assert_fault(
        with("/v1/responses", true.into()),
        "background_unsupported",
        Some("body.background"),
        "Responses: Background mode is not supported in the Batch API. A batch runs in the \
         background anyway.",
    );
    for good in [
        with("/v1/responses", false.into()),
        with("/v1/responses", Value::Null),
        // There it is the colour behind a picture.
        with("/v1/images/generations", "transparent".into()),
        with("/v1/embeddings", true.into()),
    ] {
        assert_eq!(fault_of(good.as_bytes()), None, "{good}");
    }
}

#[test]
fn the_body_of_an_unknown_endpoint_is_not_judged() {
    let other = line(|line| {
        line["url"] = "/v1/other".into();
        line["body"] = json!({"stream": true});
    });
    let Check::Request(request) = check(other.as_bytes(), Endpoints::USUAL) else {
        panic!("{other} is a request");
    };
    assert_eq!(
        (request.endpoint, request.model, request.fault),
        (None, None, None)
    );
}

#[test]
fn a_very_long_model_name_is_refused() {
    let named = |length: usize| line(|line| line["body"]["model"] = "m".repeat(length).into());
    assert_eq!(fault_of(named(256).as_bytes()), None);
    let message = "Invalid value for 'model': expected at most 256 bytes.";
    assert_fault(named(257), "invalid_value", Some("body.model"), message);
}

#[test]
fn of_a_key_that_stands_twice_the_last_counts() {
    let twice = r#"{"custom_id":1,"custom_id":"\u0061","method":"POST","url":"/v1/embeddings",
        "body":[],"body":{"model":1,"mod\u0065l":"m","input":null,"input":"x","stream":true,
        "stream":null}}"#;
    let Check::Request(request) = check(twice.as_bytes(), Endpoints::USUAL) else {
        panic!("{twice} is a request");
    };
    assert_eq!(
        (&*request.custom_id, request.model.as_deref()),
        ("a", Some("m"))
    );
    assert_eq!(request.fault, None);
    let null = twice.replace(r#""input":"x""#, r#""input":null"#);
    assert!(fault_of(null.as_bytes()).is_some());
}

/// What [`check`] should say of a line, judged the slow way; `None` for a fault of the envelope.
type Judged = Option<(String, String, Option<String>, bool)>;

fn judge(line: &Value) -> Judged {
    let text = |key: &str| line[key].as_str().filter(|text| !text.is_empty());
    let (custom_id, method, url) = (text("custom_id")?, text("method")?, text("url")?);
    let body = line["body"].as_object().filter(|_| method == "POST")?;
    let model = body
        .get("model")
        .filter(|model| !model.is_null() && *model != "");
    let endpoint = endpoint::find(url);
    let is_good = endpoint.is_none_or(|endpoint| {
        let has = |key: &&str| body.get(*key).is_some_and(|value| !value.is_null());
        model.map_or(!endpoint.model_required, Value::is_string)
            && endpoint.required.iter().chain(&endpoint.limit).all(has)
            && body.get("stream") != Some(&Value::Bool(true))
            && !(endpoint.has_background && body.get("background") == Some(&Value::Bool(true)))
    });
    let model = model.and_then(Value::as_str);
    let has_nul = model.is_some_and(|model| model.contains('\0'));
    let model = model.filter(|_| !has_nul).map(str::to_owned);
    let is_good = is_good && !has_nul;
    Some((custom_id.to_owned(), url.to_owned(), model, is_good))
}

fn agrees_with_value(line: &[u8]) -> Result<(), TestCaseError> {
    let value = serde_json::from_slice::<Value>(line);
    let checked = check(line, Endpoints::USUAL);
    if line.iter().all(|&byte| json::is_space(byte)) {
        prop_assert_eq!(checked, Check::Blank);
        return Ok(());
    }
    let Ok(value) = value else {
        // Half a surrogate pair or a boundless number, unread inside a body, may pass.
        let wide = serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok();
        let text = std::str::from_utf8(line);
        prop_assert!(wide || matches!(&checked, Check::Fault(fault) if fault.param.is_none()));
        prop_assert!(wide || text.is_err() || read(text.unwrap_or_default()).is_none());
        return Ok(());
    };
    let text = std::str::from_utf8(line).expect("UTF-8, as it is JSON");
    let found = match checked {
        Check::Blank => return Err(TestCaseError::fail("not blank")),
        Check::Fault(_) => None,
        Check::Request(request) => {
            let envelope = read(text).expect("what is a request can be read");
            prop_assert_eq!(&envelope.custom_id, &request.custom_id);
            prop_assert_eq!(endpoint::find(&envelope.url), request.endpoint);
            let body = serde_json::from_str::<Value>(envelope.body).expect("JSON");
            prop_assert_eq!(&body, &value["body"]);
            let model = request.model.map(Cow::into_owned);
            let (custom_id, url) = (envelope.custom_id.into_owned(), envelope.url.into_owned());
            Some((custom_id, url, model, request.fault.is_none()))
        }
    };
    prop_assert_eq!(found, judge(&value));
    Ok(())
}

/// Lines that are requests, or nearly.
fn lines() -> impl Strategy<Value = String> {
    let text = prop_oneof![Just("POST".to_owned()), "[a-z\"\\\\é\u{2028}𝄞]{0,4}"];
    let odd = json::tests::values().boxed();
    let url = prop::sample::select(vec!["/v1/chat/completions", "/v1/moderations", "/v1/x"]);
    let value = |usual: BoxedStrategy<Value>| prop_oneof![8 => usual, 1 => odd.clone(), 1 => Just(Value::Null)];
    let body = (
        value(text.clone().prop_map(Value::from).boxed()),
        value(any::<bool>().prop_map(Value::from).boxed()),
        value(odd.clone().boxed()),
        value(odd.clone().boxed()),
    )
        .prop_map(|(model, stream, messages, input)| {
            json!({"model": model, "stream": stream, "messages": messages, "input": input})
        });
    (
        value(text.prop_map(Value::from).boxed()),
        value(Just(Value::from("POST")).boxed()),
        value(url.prop_map(Value::from).boxed()),
        value(body.boxed()),
        prop::option::of(prop::sample::select(vec!["custom_id", "url", "body"])),
    )
        .prop_map(|(custom_id, method, url, body, twice)| {
            let line = json!({"custom_id": custom_id, "method": method, "url": url, "body": body});
            let twice = twice.map_or(String::new(), |key| format!("\"{key}\":1,"));
            line.to_string().replacen('{', &format!("{{{twice}"), 1)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn requests_are_read_as_value_reads_them(line in lines()) {
        agrees_with_value(line.as_bytes())?;
    }

    #[test]
    fn truncated_and_mutated_lines_are_read_as_value_reads_them(
        line in lines(),
        at in any::<prop::sample::Index>(),
        with in prop_oneof![any::<u8>(), prop::sample::select(b"\"\\{}[],:0 \n".to_vec())],
        truncate in any::<bool>(),
    ) {
        let mut line = line.into_bytes();
        let at = at.index(line.len());
        line[at] = with;
        line.truncate(if truncate { at } else { line.len() });
        agrees_with_value(&line)?;
    }

    #[test]
    fn any_bytes_are_read_as_value_reads_them(line in any::<Vec<u8>>()) {
        agrees_with_value(&line)?;
    }
}
