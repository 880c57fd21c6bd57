//! Bad input over HTTP: each request gets its status, type, code, param and message, and none
//! that is refused leaves a file or a batch behind.

use serde_json::Value;

use crate::support::{Server, on_every_engine};

mod batches;
mod case;
mod lines;
mod uploads;

use case::Text::{Any, Holds, Null, Starts};
use case::{LINE, batch_but, case, check, field, file, form, get, request};

const NO_KEY: &str = "You didn't provide an API key. You need to provide your API key in an \
    Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)";

async fn nothing_is_told_without_a_good_key() {
    let server = Server::start().await;
    let mut cases = Vec::new();
    for request in [
        get("/v1/files"),
        get("/v1/files/file-x"),
        get("/v1/files/file-x/content"),
        get("/v1/batches"),
        get("/v1/batches/batch_x"),
        get("/v1/models"),
        get("/v1/models/sim-small"),
        request("POST", "/v1/batches/batch_x/cancel"),
        request("DELETE", "/v1/files/file-x"),
        batch_but("metadata", Value::Null),
        form(&[field("purpose", "batch"), file(LINE)]),
    ] {
        let anonymous = request.clone().by("");
        cases.push(case("no key", anonymous, 401, (Null, Null, Starts(NO_KEY))));
        let wrong = request.by("Bearer sk-ns-0123456789abcdefghijklmnopqrstuvwxyz");
        let says = Starts("Incorrect API key provided: ");
        cases.push(case("bad key", wrong, 401, ("invalid_api_key", Null, says)));
    }
    check(&server, cases).await;
}

async fn what_is_not_there_is_not_found() {
    let server = Server::start().await;
    let no_file = || (Null, "id", "No such File object: file-x");
    let no_batch = || (Null, Null, "No batch found with id 'batch_x'.");
    let cases = vec![
        case("file", get("/v1/files/file-x"), 404, no_file()),
        case("content", get("/v1/files/file-x/content"), 404, no_file()),
        case(
            "deletion",
            request("DELETE", "/v1/files/file-x"),
            404,
            no_file(),
        ),
        case("batch", get("/v1/batches/batch_x"), 404, no_batch()),
        case(
            "cancelling",
            request("POST", "/v1/batches/batch_x/cancel"),
            404,
            no_batch(),
        ),
        // Python sends a content type with its empty body.
        case(
            "cancelling as Python does",
            request("POST", "/v1/batches/batch_x/cancel").with("application/json", ""),
            404,
            no_batch(),
        ),
        case(
            "model",
            get("/v1/models/x"),
            404,
            (
                "model_not_found",
                Any,
                "The model `x` does not exist or you do not have access to it.",
            ),
        ),
        case(
            "model with a slash",
            get("/v1/models/org/x"),
            404,
            (
                "model_not_found",
                Any,
                Starts("The model `org/x` does not exist"),
            ),
        ),
        case(
            "model with an encoded slash",
            get("/v1/models/org%2Fx"),
            404,
            (
                "model_not_found",
                Any,
                Starts("The model `org/x` does not exist"),
            ),
        ),
        case(
            "after, of files",
            get("/v1/files?after=file-x"),
            404,
            (Null, "after", Any),
        ),
        case(
            "after, of batches",
            get("/v1/batches?after=batch_x"),
            404,
            (Null, "after", Any),
        ),
        case(
            "id that is no text",
            get("/v1/files/%FF"),
            400,
            (Null, Any, Any),
        ),
        case(
            "POST route",
            request("POST", "/v1/x"),
            404,
            (Null, Null, "Invalid URL (POST /v1/x)"),
        ),
        case(
            "GET route",
            get("/nope"),
            404,
            (Null, Null, "Invalid URL (GET /nope)"),
        ),
        case(
            "query",
            get("/v1/x?key=secret"),
            404,
            (Null, Null, "Invalid URL (GET /v1/x)"),
        ),
    ];
    check(&server, cases).await;
}

async fn a_wrong_method_is_not_allowed() {
    let server = Server::start().await;
    let cases = [
        ("PUT", "/v1/files"),
        ("DELETE", "/v1/files"),
        ("PATCH", "/v1/files/file-x"),
        ("POST", "/v1/files/file-x"),
        ("POST", "/v1/files/file-x/content"),
        ("DELETE", "/v1/batches/batch_x"),
        ("GET", "/v1/batches/batch_x/cancel"),
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/sim-small"),
    ]
    .map(|(method, path)| {
        let message = format!("Not allowed to {method} on {path}.");
        case(
            "method",
            request(method, path),
            405,
            (Any, Null, message.as_str()),
        )
    });
    check(&server, cases.into()).await;
}

async fn a_query_out_of_bounds_is_refused() {
    let server = Server::start().await;
    let files = "limit must be between 1 and 10000.";
    let above = "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got \
                 101 instead.";
    let below = Starts("Invalid 'limit': integer below minimum value.");
    let cases = vec![
        case(
            "no files",
            get("/v1/files?limit=0"),
            400,
            (Null, Null, files),
        ),
        case(
            "many files",
            get("/v1/files?limit=10001"),
            400,
            (Null, Null, files),
        ),
        case(
            "minus one file",
            get("/v1/files?limit=-1"),
            400,
            (Null, Null, files),
        ),
        case(
            "files, a word",
            get("/v1/files?limit=ten"),
            400,
            (Any, Any, Holds("limit")),
        ),
        case(
            "files in no order",
            get("/v1/files?order=sideways"),
            400,
            (
                "invalid_value",
                "order",
                Starts("Invalid value: 'sideways'."),
            ),
        ),
        case(
            "many batches",
            get("/v1/batches?limit=101"),
            400,
            ("integer_above_max_value", "limit", above),
        ),
        case(
            "no batches",
            get("/v1/batches?limit=0"),
            400,
            ("integer_below_min_value", "limit", below),
        ),
        case(
            "batches, a word",
            get("/v1/batches?limit=ten"),
            400,
            (Any, "limit", Any),
        ),
        case(
            "more than a number holds",
            get("/v1/batches?limit=99999999999999999999"),
            400,
            (Any, "limit", Any),
        ),
    ];
    check(&server, cases).await;
}

on_every_engine![
    nothing_is_told_without_a_good_key,
    what_is_not_there_is_not_found,
    a_wrong_method_is_not_allowed,
    a_query_out_of_bounds_is_refused,
];
