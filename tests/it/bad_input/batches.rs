//! Requests for a batch that are refused.

use serde_json::{Value, json};

use super::case::Text::{Any, Null, Starts};
use super::case::{Request, batch, batch_but, case, check, field, form, request, send};
use crate::support::{Server, on_every_engine};

const UNPARSEABLE: &str = "We could not parse the JSON body of your request.";

async fn a_batch_that_cannot_be_is_refused() {
    let server = Server::start().await;
    let mut cases = Vec::new();
    for missing in ["input_file_id", "endpoint", "completion_window"] {
        let message = format!("Missing required parameter: '{missing}'.");
        let expected = ("missing_required_parameter", missing, message.as_str());
        cases.push(case(
            "missing",
            batch_but(missing, Value::Null),
            400,
            expected,
        ));
        let expected = ("invalid_type", missing, Starts("Invalid type for '"));
        cases.push(case(
            "a number",
            batch_but(missing, json!(7)),
            400,
            expected,
        ));
        let body = batch_but("metadata", Value::Null).body;
        let mut body: Value = serde_json::from_slice(&body).expect("JSON");
        body[missing] = Value::Null;
        cases.push(case(
            "null",
            batch(body.to_string()),
            400,
            (Any, missing, Any),
        ));
    }
    let lasting = |anchor: &str, seconds: Value| {
        batch_but(
            "output_expires_after",
            json!({"anchor": anchor, "seconds": seconds}),
        )
    };
    let pairs: Value = (0..17).map(|n| (format!("key{n}"), json!("v"))).collect();
    let window = || ("invalid_value", "completion_window", Any);
    let endpoint = |message| ("invalid_value", "endpoint", message);
    let seconds = |code| (code, "output_expires_after.seconds", Any);
    let anchor = |code| (code, "output_expires_after.anchor", Any);
    let unsupported = "Invalid value: '/v1/invalid/endpoint'. Supported values are: '/v1/";
    let array = "Invalid type for 'metadata.tags': expected a string, but got an array instead.";
    let number = "Invalid type for 'metadata.n': expected a string, but got an integer instead.";
    let long = batch_but("metadata", json!({"k": "é".repeat(513)}));
    let long_key = batch_but("metadata", json!({"k".repeat(65): "v"}));
    cases.extend([
        case(
            "an endpoint that is not",
            batch_but("endpoint", json!("/v1/invalid/endpoint")),
            400,
            endpoint(Starts(unsupported)),
        ),
        case(
            "a slash too many",
            batch_but("endpoint", json!("/v1/chat/completions/")),
            400,
            endpoint(Any),
        ),
        case(
            "too short",
            batch_but("completion_window", json!("59s")),
            400,
            window(),
        ),
        case(
            "too long",
            batch_but("completion_window", json!("31d")),
            400,
            window(),
        ),
        case(
            "two units",
            batch_but("completion_window", json!("1h30m")),
            400,
            window(),
        ),
        case(
            "no unit",
            batch_but("completion_window", json!("24")),
            400,
            window(),
        ),
        case(
            "an array in metadata",
            batch_but("metadata", json!({"tags": ["a"]})),
            400,
            ("invalid_type", "metadata.tags", array),
        ),
        case(
            "a number in metadata",
            batch_but("metadata", json!({"n": 7})),
            400,
            ("invalid_type", "metadata.n", number),
        ),
        case(
            "null in metadata",
            batch_but("metadata", json!({"n": null})),
            400,
            ("invalid_type", "metadata.n", Any),
        ),
        case(
            "metadata of text",
            batch_but("metadata", json!("text")),
            400,
            ("invalid_type", "metadata", Any),
        ),
        case(
            "17 pairs",
            batch_but("metadata", pairs),
            400,
            (Any, "metadata", Any),
        ),
        case("a key of 65", long_key, 400, (Any, Starts("metadata"), Any)),
        case(
            "a value of 513",
            long,
            400,
            ("string_above_max_length", "metadata.k", Any),
        ),
        case(
            "an anchor",
            lasting("last_used_at", json!(3600)),
            400,
            anchor("invalid_value"),
        ),
        case(
            "less than an hour",
            lasting("created_at", json!(3599)),
            400,
            seconds("integer_below_min_value"),
        ),
        case(
            "more than 30 days",
            lasting("created_at", json!(2_592_001)),
            400,
            seconds("integer_above_max_value"),
        ),
        case(
            "text",
            lasting("created_at", json!("3600")),
            400,
            seconds("invalid_type"),
        ),
        case(
            "no seconds",
            batch_but("output_expires_after", json!({"anchor": "created_at"})),
            400,
            seconds("missing_required_parameter"),
        ),
        case(
            "no anchor",
            batch_but("output_expires_after", json!({"seconds": 3600})),
            400,
            anchor("missing_required_parameter"),
        ),
        case(
            "a number for an object",
            batch_but("output_expires_after", json!(3600)),
            400,
            ("invalid_type", "output_expires_after", Any),
        ),
        case(
            "an unknown field",
            batch_but("colour", json!("blue")),
            400,
            ("unknown_parameter", "colour", Any),
        ),
    ]);
    check(&server, cases).await;
}

async fn a_body_that_is_not_a_json_object_is_refused() {
    let server = Server::start().await;
    let deep = format!(
        "{{\"metadata\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let unclosed = format!("{{\"metadata\":{}", "{\"a\":".repeat(10_000));
    let mut invalid_utf8 = br#"{"input_file_id":""#.to_vec();
    invalid_utf8.extend_from_slice(b"\xFF\xFE\"}");
    let unparseable =
        |name, body: Vec<u8>| case(name, batch(body), 400, (Null, Null, Starts(UNPARSEABLE)));
    let any = |name, request| case(name, request, 400, (Any, Any, Any));
    let form_data = "application/x-www-form-urlencoded";
    let cases = vec![
        unparseable("nothing", Vec::new()),
        unparseable("words", b"not json".to_vec()),
        unparseable("half an object", br#"{"input_file_id": "file-x""#.to_vec()),
        unparseable("two objects", b"{} {}".to_vec()),
        unparseable("invalid UTF-8", invalid_utf8),
        unparseable("nested and unclosed", unclosed.into()),
        any("nested 10,000 deep", batch(deep)),
        any("an array", batch("[]")),
        any("a text", batch("\"file-x\"")),
        any("null", batch("null")),
        any(
            "a form",
            request("POST", "/v1/batches").with(form_data, "input_file_id=file-x"),
        ),
        any(
            "a multipart form",
            Request {
                path: "/v1/batches".to_owned(),
                ..form(&[field("input_file_id", "file-x")])
            },
        ),
        case(
            "more than a batch can need",
            batch(vec![b' '; 16 * 1024 * 1024]),
            413,
            (Any, Null, Any),
        ),
    ];
    check(&server, cases).await;
}

async fn a_failed_batch_cannot_be_cancelled() {
    let server = Server::start().await;
    let failed = server
        .failed_batch("{}\nnot json\n", "/v1/chat/completions")
        .await;
    let path = format!("{}/cancel", failed.path());
    let message = "Cannot cancel a batch with status 'failed'.";
    let response = send(&server, &request("POST", &path)).await;
    assert_eq!(response.headers()["x-should-retry"], "false");
    let cases = vec![case(
        "cancelling",
        request("POST", &path),
        409,
        (Null, Null, message),
    )];
    check(&server, cases).await;
}

on_every_engine![
    a_batch_that_cannot_be_is_refused,
    a_body_that_is_not_a_json_object_is_refused,
    a_failed_batch_cannot_be_cancelled,
];
