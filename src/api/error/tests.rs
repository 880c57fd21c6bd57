use serde_json::json;

use super::*;

#[test]
fn messages_are_openais_to_the_letter() {
    for (error, message) in [
        (
            missing_parameter("input_file_id"),
            "Missing required parameter: 'input_file_id'.",
        ),
        (
            invalid_value("endpoint", "/v1/x", &["/a", "/b", "/c"]),
            "Invalid value: '/v1/x'. Supported values are: '/a', '/b', and '/c'.",
        ),
        (
            invalid_type("metadata.tags", "a string", "an array"),
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
        ),
        (
            integer_above("limit", 100, 101),
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got \
             101 instead.",
        ),
        (file_not_found("file-abc"), "No such File object: file-abc"),
        (
            batch_not_found("batch_abc"),
            "No batch found with id 'batch_abc'.",
        ),
        (
            not_found_route(&Method::POST, "/v1/x"),
            "Invalid URL (POST /v1/x)",
        ),
        (
            method_not_allowed(&Method::PUT, "/v1/files"),
            "Not allowed to PUT on /v1/files.",
        ),
    ] {
        assert_eq!(error.message, message);
    }
}

#[test]
fn a_long_value_is_not_repeated_whole() {
    let long = "é".repeat(100_000);
    let long = long.as_str();
    for error in [
        batch_not_found(long),
        missing_parameter(long),
        unknown_parameter(long),
        invalid_value(long, long, &["a"]),
        invalid_type(long, "a string", "null"),
        integer_above(long, 1, long),
        integer_below(long, 1, long),
        string_above(long, 1, 2),
        too_many_properties(long, 1, 2),
        property_name_above(long, 1, 2),
    ] {
        let length = error.message.len() + error.param.unwrap_or_default().len();
        assert!(length < 2_000, "{}", error.message);
    }
}

#[tokio::test]
async fn the_envelope_has_all_four_keys() {
    let response = conflict("No.").into_response();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = axum::body::to_bytes(response.into_body(), 1 << 16)
        .await
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&body).unwrap(),
        json!({"error": {
            "message": "No.", "type": "invalid_request_error", "param": null, "code": null,
        }})
    );
}
