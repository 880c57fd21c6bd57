//! A stand-in for Anthropic's Messages API. It takes what the documentation says and nothing else:
//! a key that is missing, an unknown member or an empty text is an error, as there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// The key that it takes.
pub const KEY: &str = "sk-ant-0123456789";

/// The members that a request may have.
const MEMBERS: [&str; 14] = [
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_p",
];

/// The server. It goes away when dropped.
pub struct Claude {
    origin: String,
    seen: Arc<Seen>,
    _serves: AbortOnDropHandle<()>,
}

struct Seen {
    /// One call in so many is turned away; 0: none.
    trouble: usize,
    /// After so many answers the others wait.
    most: watch::Sender<usize>,
    calls: AtomicUsize,
    answered: AtomicUsize,
    turned_away: AtomicUsize,
    refused: Mutex<Vec<String>>,
}

impl Claude {
    pub async fn start(trouble: usize) -> Self {
        let seen = Arc::new(Seen {
            trouble,
            most: watch::Sender::new(usize::MAX),
            calls: AtomicUsize::default(),
            answered: AtomicUsize::default(),
            turned_away: AtomicUsize::default(),
            refused: Mutex::default(),
        });
        let router = axum::Router::new()
            .route("/v1/messages", post(messages))
            .with_state(Arc::clone(&seen));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let serves = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self {
            origin: format!("http://{address}"),
            seen,
            _serves: AbortOnDropHandle::new(serves),
        }
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Answers about so many calls. Others wait until it may answer more.
    pub fn answer_at_most(&self, most: usize) {
        self.seen.most.send_replace(most);
    }

    pub fn calls(&self) -> usize {
        self.seen.calls.load(Ordering::SeqCst)
    }

    pub fn answered(&self) -> usize {
        self.seen.answered.load(Ordering::SeqCst)
    }

    pub fn turned_away(&self) -> usize {
        self.seen.turned_away.load(Ordering::SeqCst)
    }

    /// What was wrong with requests that were not as the API has them.
    pub fn refused(&self) -> Vec<String> {
        self.seen.refused.lock().expect("no panic").clone()
    }
}

async fn messages(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> Response {
    let call = seen.calls.fetch_add(1, Ordering::SeqCst) + 1;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let id = format!("req_0{call}");
    if header("x-api-key") != Some(KEY) {
        return error(&id, 401, "authentication_error", "invalid x-api-key");
    }
    if header("anthropic-version") != Some("2023-06-01") {
        let message = "anthropic-version: header is required";
        return error(&id, 400, "invalid_request_error", message);
    }
    if seen.trouble > 0 && call.is_multiple_of(seen.trouble) {
        let nth = seen.turned_away.fetch_add(1, Ordering::SeqCst);
        return match nth % 3 {
            0 => error(&id, 529, "overloaded_error", "Overloaded"),
            1 => {
                let message = "This request would exceed your organization's rate limit";
                let mut answer = error(&id, 429, "rate_limit_error", message);
                let wait = "0.05".parse().expect("a header value");
                answer.headers_mut().insert("retry-after", wait);
                answer
            }
            _ => error(&id, 500, "api_error", "Internal server error"),
        };
    }
    match asked(&body) {
        Ok(Asked {
            model,
            said,
            is_streamed,
        }) => {
            let may_answer = |most: &usize| seen.answered.load(Ordering::SeqCst) < *most;
            let mut most = seen.most.subscribe();
            most.wait_for(may_answer).await.expect("is kept");
            seen.answered.fetch_add(1, Ordering::SeqCst);
            let answer = json!({
                "id": format!("msg_0{call}"), "type": "message", "role": "assistant",
                "model": model,
                "content": [{"type": "text", "text": "You said: "}, {"type": "text", "text": said}],
                "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 10, "output_tokens": 4},
            });
            if is_streamed {
                return stream(&id, &answer);
            }
            reply(&id, 200, &answer)
        }
        Err(message) => {
            seen.refused.lock().expect("no panic").push(message.clone());
            error(&id, 400, "invalid_request_error", &message)
        }
    }
}

/// What a request asks for.
struct Asked {
    model: String,
    /// The last text of the last message.
    said: String,
    is_streamed: bool,
}

fn asked(body: &[u8]) -> Result<Asked, String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let members = body.as_object().ok_or("an object is expected")?;
    if let Some(extra) = members.keys().find(|key| !MEMBERS.contains(&key.as_str())) {
        return Err(format!("{extra}: Extra inputs are not permitted"));
    }
    let model = body["model"].as_str().ok_or("model: Field required")?;
    if body["max_tokens"].as_u64().is_none() {
        return Err("max_tokens: Field required".to_owned());
    }
    if model.starts_with("claude-opus-5") && body.get("temperature").is_some() {
        return Err("`temperature` is deprecated for this model".to_owned());
    }
    let messages = body["messages"]
        .as_array()
        .ok_or("messages: Field required")?;
    let last = messages
        .last()
        .ok_or("messages: at least one message is required")?;
    for message in messages {
        if !["user", "assistant", "system"].contains(&message["role"].as_str().unwrap_or("")) {
            return Err("messages.0.role: Input should be 'user' or 'assistant'".to_owned());
        }
        for block in message["content"]
            .as_array()
            .ok_or("messages.0.content: a list")?
        {
            let is_empty = block["text"]
                .as_str()
                .is_some_and(|text| text.trim().is_empty());
            if is_empty {
                return Err("messages: text content blocks must be non-empty".to_owned());
            }
        }
    }
    let text = last["content"]
        .as_array()
        .and_then(|blocks| blocks.last()?["text"].as_str());
    Ok(Asked {
        model: model.to_owned(),
        said: text.unwrap_or_default().to_owned(),
        is_streamed: body["stream"] == true,
    })
}

/// A message as a stream of events.
fn stream(id: &str, answer: &Value) -> Response {
    let mut begun = answer.clone();
    begun["content"] = json!([]);
    begun["stop_reason"] = Value::Null;
    let mut events = vec![json!({"type": "message_start", "message": begun})];
    let blocks = answer["content"].as_array().into_iter().flatten();
    for (index, block) in blocks.enumerate() {
        let empty = json!({"type": "text", "text": ""});
        let delta = json!({"type": "text_delta", "text": block["text"]});
        events.extend([
            json!({"type": "content_block_start", "index": index, "content_block": empty}),
            json!({"type": "ping"}),
            json!({"type": "content_block_delta", "index": index, "delta": delta}),
            json!({"type": "content_block_stop", "index": index}),
        ]);
    }
    let delta = json!({"stop_reason": answer["stop_reason"], "stop_sequence": null});
    let usage = json!({"output_tokens": answer["usage"]["output_tokens"]});
    events.extend([
        json!({"type": "message_delta", "delta": delta, "usage": usage}),
        json!({"type": "message_stop"}),
    ]);
    let events = events.iter().map(|data| {
        let kind = data["type"].as_str().expect("a type");
        format!("event: {kind}\ndata: {data}\n\n")
    });
    let headers = [("content-type", "text/event-stream"), ("request-id", id)];
    (headers, events.collect::<String>()).into_response()
}

fn error(id: &str, status: u16, kind: &str, message: &str) -> Response {
    let error = json!({"type": kind, "message": message});
    let body = json!({"type": "error", "error": error, "request_id": id});
    reply(id, status, &body)
}

fn reply(id: &str, status: u16, body: &Value) -> Response {
    let headers = [("content-type", "application/json"), ("request-id", id)];
    let status = StatusCode::from_u16(status).expect("a status");
    (status, headers, body.to_string()).into_response()
}
