//! A batch at a server that answers as Gemini's API does.

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::binary::{Binary, command, ended};
use crate::support::{Api, CHAT, request};

const KEY: &str = "AIzaSyOfTheProject0123456789abcdef";
const WRONG_KEY: &str = "AIzaSyOfAnotherProject0123456789ab";

/// What it answers to a call.
async fn answer(headers: HeaderMap, body: String) -> Response {
    let is_known = headers
        .get("x-goog-api-key")
        .is_some_and(|key| key.as_bytes() == KEY.as_bytes());
    let error = |status: StatusCode, name: &str, message: &str, details: Value| {
        let error = json!({"code": status.as_u16(), "message": message, "status": name,
            "details": details});
        (status, axum::Json(json!({"error": error}))).into_response()
    };
    let reason = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]);
    if !is_known {
        let message = "API key not valid. Please pass a valid API key.";
        return error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message, reason);
    }
    if body.contains("wrong") {
        let message = "Request contains an invalid argument.";
        return error(
            StatusCode::BAD_REQUEST,
            "INVALID_ARGUMENT",
            message,
            json!([]),
        );
    }
    let candidate = json!({"content": {"role": "model", "parts": [{"text": "Hello"}]},
        "finishReason": "STOP", "index": 0});
    axum::Json(
        json!({"candidates": [candidate], "responseId": "r", "modelVersion": "gemini",
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 4}}),
    )
    .into_response()
}

#[tokio::test]
async fn row_21_the_key_is_in_no_log_and_in_no_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("has an address");
    let router = axum::Router::new().fallback(answer);
    let _serves = AbortOnDropHandle::new(tokio::spawn(async move {
        axum::serve(listener, router).await.expect("serves");
    }));
    let directory = tempfile::tempdir().expect("makes a directory");
    let file = directory.path().join("nightshift.toml");
    // One upstream has a wrong key beside the right one. Nobody listens where the other should be.
    let toml = format!(
        "[[upstreams]]\nname = \"gemini\"\nprovider = \"gemini\"\nbase_url = \"http://{address}\"\n\
         api_key_envs = [\"WRONG_KEY\", \"KEY\"]\n\
         [[upstreams]]\nname = \"gone\"\nprovider = \"gemini\"\nbase_url = \"http://127.0.0.1:9\"\n\
         api_key_env = \"KEY\"\n\
         [[models]]\nname = \"m\"\nroutes = [{{ upstream = \"gemini\", model = \"gemini-3-pro\" }}, \
         {{ upstream = \"gone\", model = \"gemini-3-pro\" }}]\n[log]\nfilter = \"trace\"\n"
    );
    std::fs::write(&file, toml).expect("writes");
    let database = format!("sqlite://{}", directory.path().join("a.db").display());
    let config = ["--config", file.to_str().expect("is text")];
    let flags = [&config[..], &["--database", &database]].concat();
    let variables = [("KEY", KEY), ("WRONG_KEY", WRONG_KEY)];
    let server = Binary::serve(&flags, &variables).await;
    let client = Api::new(&server.base, "anything");
    let line = |id: usize| {
        let content = if id.is_multiple_of(5) { "wrong" } else { "Hi" };
        let messages = json!([{"role": "user", "content": content}]);
        request(
            &format!("line-{id}"),
            json!({"model": "m", "messages": messages}),
        )
    };
    let batch = client
        .run((0..50).map(line).collect::<String>(), CHAT)
        .await;
    assert_eq!(
        (batch.counts.completed, batch.counts.failed),
        (40, 10),
        "{batch}"
    );
    let mut told = String::new();
    for file in [&batch.output_file_id, &batch.error_file_id] {
        told += &client.content(file.as_ref().expect("is there")).await;
    }
    assert!(told.contains("INVALID_ARGUMENT"), "what it said itself");
    told += &client.get("/admin/status").await.to_string();
    told += &batch.json.to_string();
    let mut check = command(&[&["check", "--call"], &config[..]].concat());
    check.envs(variables);
    let checked = ended(check).await;
    told += &format!("{}{}", checked.out, checked.errors);
    let log = server.terminate().await;
    assert!(log.contains("TRACE"), "it is the whole log");
    for key in [KEY, WRONG_KEY] {
        assert!(!told.contains(key), "{key} is told");
        assert!(!log.contains(key), "{key} is in the log");
    }
}
