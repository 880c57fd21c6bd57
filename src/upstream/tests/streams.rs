//! Answers that are asked for as streams, and put together here.

use serde_json::{Value, json};

use super::*;
use crate::upstream::attempt::result::CallResult;

/// An upstream whose answers are streamed.
fn streamed(base_url: &str) -> UpstreamSettings {
    let mut upstream = upstream("gpu", base_url);
    upstream.stream = true;
    upstream
}

fn pool_of(upstream: UpstreamSettings) -> Arc<Pool> {
    pool(&settings(vec![upstream], vec![]))
}

fn events(data: &[Value]) -> String {
    let events = data.iter().map(|data| format!("data: {data}\n\n"));
    events.collect::<String>() + "data: [DONE]\n\n"
}

/// A chat in chunks.
fn chat(texts: &[&str]) -> Vec<Value> {
    let chunk = |choices: Value, usage: Value| {
        json!({"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
            "system_fingerprint": "fp", "choices": choices, "usage": usage})
    };
    let piece = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
        chunk(json!([choice]), Value::Null)
    };
    let first = piece(json!({"role": "assistant", "content": ""}), Value::Null);
    let texts = texts.iter();
    let texts = texts.map(|text| piece(json!({"content": text}), Value::Null));
    let last = piece(json!({}), "stop".into());
    let usage = chunk(
        json!([]),
        json!({"prompt_tokens": 3, "completion_tokens": 2}),
    );
    std::iter::once(first)
        .chain(texts)
        .chain([last, usage])
        .collect()
}

/// What a server answers that was not asked for a stream.
fn plain_chat(text: &str) -> Value {
    json!({"id": "c-1", "object": "chat.completion", "created": 7, "model": "m",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
            "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
}

fn stream_of(body: &str) -> Reply {
    reply(200, body).header("content-type", "text/event-stream")
}

/// The bytes of a streamed answer whose end is the end of its connection.
fn raw_stream(body: &str) -> &'static [u8] {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    format!("{head}{body}").into_bytes().leak()
}

/// Sends a line to an endpoint.
async fn send_to(pool: &Arc<Pool>, path: &'static str, body: &str) -> Attempt {
    let call = Call {
        path,
        body: Bytes::copy_from_slice(body.as_bytes()),
        reservation: pool.budget().reserve(),
        traceparent: None,
    };
    let permit = permit(pool, "m");
    pool.call(permit, call, &mut History::default(), &mut Timer::default())
        .await
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).expect("is JSON")
}

#[tokio::test]
async fn a_stream_is_asked_for_and_its_answer_is_the_plain_one() {
    let server = Server::start(|_| stream_of(&events(&chat(&["Good ", "night"])))).await;
    let pool = pool_of(streamed(&server.base_url));
    let answer = answer(send_to(&pool, CHAT, r#"{"model":"m","stream":false,"seed":1}"#).await);
    assert_eq!(parsed(&answer.body), plain_chat("Good night"));
    assert_eq!(answer.usage.expect("is told").output_tokens, 2);
    assert_eq!(
        answer.reservation.bytes(),
        answer.body.len(),
        "what the events repeat is not held"
    );
    let sent = server.seen("POST").remove(0).body;
    assert_eq!(
        std::str::from_utf8(&sent).expect("text"),
        r#"{"model":"m","stream":true,"seed":1,"stream_options":{"include_usage":true}}"#
    );
}

#[tokio::test]
async fn completions_and_responses_are_streamed_and_embeddings_asked_plainly() {
    let server = Server::start(|seen| {
        let stream = parsed(&seen.body)["stream"] == true;
        match (seen.path.as_str(), stream) {
            ("/v1/completions", true) => stream_of(&events(&[
                json!({"id": "c", "object": "text_completion", "choices": [
                    {"index": 0, "text": "Good ", "logprobs": null, "finish_reason": null}]}),
                json!({"id": "c", "choices": [
                    {"index": 0, "text": "night", "logprobs": null, "finish_reason": "stop"}]}),
            ])),
            ("/v1/responses", true) => stream_of(&events(&[
                json!({"type": "response.output_text.delta", "delta": "Good"}),
                json!({"type": "response.completed", "response": {"id": "r", "output": []}}),
            ])),
            ("/v1/embeddings", false) => reply(200, r#"{"data":[]}"#),
            _ => reply(400, "{}"),
        }
    })
    .await;
    let pool = pool_of(streamed(&server.base_url));
    for (path, expected) in [
        (
            "/v1/completions",
            json!({"id": "c", "object": "text_completion", "choices": [
                {"index": 0, "text": "Good night", "logprobs": null, "finish_reason": "stop"}]}),
        ),
        ("/v1/responses", json!({"id": "r", "output": []})),
        ("/v1/embeddings", json!({"data": []})),
    ] {
        let answer = answer(send_to(&pool, path, r#"{"model":"m"}"#).await);
        assert_eq!(parsed(&answer.body), expected, "{path}");
    }
}

#[tokio::test]
async fn an_answer_that_comes_whole_all_the_same_is_taken_as_it_is() {
    let plain = plain_chat("Good night").to_string();
    let server =
        Server::start(move |_| reply(200, &plain).header("content-type", "application/json"));
    let server = server.await;
    let answer = answer(line(&pool_of(streamed(&server.base_url))).await);
    assert_eq!(parsed(&answer.body), plain_chat("Good night"));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_a_retry_and_never_half_an_answer() {
    let whole = events(&chat(&["Good ", "night"]));
    let end = whole
        .find("data: {\"choices\":[],")
        .expect("the last chunk");
    // Behind the text, behind the reason for which it ended, and within an event.
    for cut in [0, whole.len() / 3, end / 2, end, end + 10] {
        let pool = pool_of(streamed(&raw(Some(raw_stream(&whole[..cut]))).await));
        let attempt = retried(line(&pool).await);
        assert_eq!(attempt.result, CallResult::Broken, "{cut}");
        assert!(attempt.answer.is_none(), "{cut}");
        assert_eq!(pool.budget().used(), 0);
    }
    // Only the mark of the end is missing, and the usage is there.
    let cut = whole.find("data: [DONE]").expect("the mark");
    for cut in [cut, whole.len() - 1] {
        let pool = pool_of(streamed(&raw(Some(raw_stream(&whole[..cut]))).await));
        assert_eq!(
            parsed(&answer(line(&pool).await).body),
            plain_chat("Good night")
        );
    }
    // The connection breaks, with less than was announced.
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n";
    let broken = format!("{head}{}", &whole[..end]).into_bytes().leak();
    let attempt = retried(line(&pool_of(streamed(&raw(Some(broken)).await))).await);
    assert_eq!(attempt.result, CallResult::Broken);
}

/// A server that falls silent behind the beginning of its answer.
async fn stalling(begun: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base_url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        stream.write_all(begun).await.expect("is read");
        std::future::pending::<()>().await;
    });
    base_url
}

#[tokio::test]
async fn silence_is_noticed_after_the_idle_timeout_and_counts_as_such() {
    // The first says nothing at all, the second stops in the middle, and so does the third, which
    // does not stream.
    let text = events(&chat(&["Good ", "night"]));
    let begun = raw_stream(&text[..text.len() / 2]);
    let plain = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"id\":";
    let silent = [
        raw(None).await,
        stalling(begun).await,
        stalling(plain).await,
    ];
    for base_url in silent {
        let mut upstream = streamed(&base_url);
        upstream.idle_timeout = Duration::from_millis(200);
        let pool = pool_of(upstream);
        let attempt = retried(line(&pool).await);
        assert_eq!(attempt.result, CallResult::Stalled);
        assert_eq!(attempt.result.label(), "stalled");
        assert_eq!(attempt.result.error_code(), ErrorCode::RequestTimeout);
        let cause = "nothing came of the answer for 200ms (idle_timeout)";
        assert_eq!(attempt.cause, cause);
        assert_eq!(pool.budget().used(), 0);
    }
}

#[tokio::test]
async fn the_timeout_of_the_whole_holds_for_a_stream_that_goes_on_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base_url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(raw_stream("")).await;
        while stream.write_all(b": wait\n\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut upstream = streamed(&base_url);
    upstream.stream_timeout = Duration::from_millis(300);
    let attempt = retried(line(&pool_of(upstream)).await);
    assert_eq!(attempt.result, CallResult::TimedOut);
    assert_eq!(attempt.cause, "no whole answer within 300ms");
}

#[tokio::test]
async fn an_error_within_a_stream_is_classified_like_an_error_answer() {
    for (error, result, status) in [
        (
            json!({"message": "no", "code": 400}),
            CallResult::Rejected,
            400,
        ),
        (
            json!({"message": "no", "type": "BadRequestError"}),
            CallResult::Rejected,
            400,
        ),
        (
            json!({"message": "no", "code": "context_length_exceeded"}),
            CallResult::ContextTooLong,
            400,
        ),
        (
            json!({"message": "slow", "code": "rate_limit_exceeded"}),
            CallResult::Limited,
            429,
        ),
        (
            json!({"message": "pay", "type": "insufficient_quota"}),
            CallResult::Unpaid,
            429,
        ),
        (
            json!({"message": "full", "type": "overloaded_error"}),
            CallResult::Unavailable,
            503,
        ),
        (
            json!({"message": "oops", "type": "server_error"}),
            CallResult::ServerError,
            500,
        ),
        // It does not say what it is.
        (json!({"message": "oops"}), CallResult::Garbled, 200),
    ] {
        let mut all = chat(&["Good "]);
        all.insert(2, json!({"error": error}));
        let text = events(&all);
        let server = Server::start(move |_| stream_of(&text)).await;
        let attempt = line(&pool_of(streamed(&server.base_url))).await;
        assert_eq!(attempt.result, result, "{error}");
        if let Some(answer) = &attempt.answer {
            assert_eq!(answer.status, status, "{error}");
            assert_eq!(parsed(&answer.body), json!({"error": error}));
        }
    }
}

#[tokio::test]
async fn the_limit_on_answers_holds_for_what_a_stream_says_and_for_one_event() {
    let words = vec!["word "; 200];
    let many = events(&chat(&words));
    let pool_with = async |text: String, limit: usize| {
        let server = Server::start(move |_| stream_of(&text)).await;
        let mut upstream = streamed(&server.base_url);
        upstream.max_response_bytes = limit;
        (pool_of(upstream), server)
    };
    // The events are twenty times as long as what they say.
    assert!(many.len() > 20_000);
    let (pool, _server) = pool_with(many.clone(), 4_000).await;
    let text = "word ".repeat(200);
    assert_eq!(parsed(&answer(line(&pool).await).body), plain_chat(&text));
    let (pool, _server) = pool_with(many, 900).await;
    assert_eq!(line(&pool).await.result, CallResult::TooLarge);
    let (pool, _server) = pool_with(format!("data: {}", "x".repeat(5_000)), 4_000).await;
    assert_eq!(line(&pool).await.result, CallResult::TooLarge);
    assert_eq!(pool.budget().used(), 0);
}

/// A message of Anthropic's as a stream, and whole.
fn message() -> (String, Value) {
    let whole = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude",
        "content": [{"type": "text", "text": "Good night"}], "stop_reason": "end_turn",
        "stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 2}});
    let mut begun = whole.clone();
    begun["content"] = json!([]);
    let events = [
        json!({"type": "message_start", "message": begun}),
        json!({"type": "content_block_start", "index": 0,
               "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0,
               "delta": {"type": "text_delta", "text": "Good "}}),
        json!({"type": "content_block_delta", "index": 0,
               "delta": {"type": "text_delta", "text": "night"}}),
        json!({"type": "message_stop"}),
    ];
    let events = events.iter().map(|data| format!("data: {data}\n\n"));
    (events.collect(), whole)
}

#[tokio::test]
async fn messages_are_streamed_where_the_upstream_says_so_or_the_answer_may_be_long() {
    let server = Server::start(|seen| {
        let (stream, whole) = message();
        // The last answer is that of a server that has no streams.
        if parsed(&seen.body)["stream"] == true && seen.nth != 3 {
            stream_of(&stream)
        } else {
            reply(200, &whole.to_string()).header("content-type", "application/json")
        }
    })
    .await;
    let line = |max_tokens: u64| format!(r#"{{"model":"m","max_tokens":{max_tokens}}}"#);
    let mut told = Vec::new();
    for (streams, max_tokens) in [(false, 21_333), (false, 21_334), (true, 9), (true, 9)] {
        let mut upstream = streamed(&server.base_url);
        upstream.provider = ProviderKind::Anthropic;
        upstream.stream = streams;
        let pool = pool_of(upstream);
        let answer = answer(send_to(&pool, "/v1/messages", &line(max_tokens)).await);
        assert_eq!(parsed(&answer.body), message().1, "as one that came whole");
        assert_eq!(answer.usage.expect("is told").total_tokens, 5);
        assert_eq!(answer.reservation.bytes(), answer.body.len());
        drop(answer);
        assert_eq!(pool.budget().used(), 0);
        told.push(parsed(&server.seen("POST").pop().expect("sent").body)["stream"].clone());
    }
    assert_eq!(told, [json!(null), json!(true), json!(true), json!(true)]);
}

#[tokio::test]
async fn a_message_that_a_route_makes_long_is_streamed() {
    let server = Server::start(|_| stream_of(&message().0)).await;
    let mut upstream = upstream("claude", &server.base_url);
    upstream.provider = ProviderKind::Anthropic;
    let mut model = model("m", vec![route("claude", None)]);
    model
        .defaults
        .insert("max_tokens".to_owned(), 64_000.into());
    let pool = pool(&settings(vec![upstream], vec![model]));
    let answer = answer(send_to(&pool, "/v1/messages", r#"{"model":"m"}"#).await);
    assert_eq!(parsed(&answer.body), message().1);
    let sent = server.seen("POST").remove(0).body;
    assert_eq!(
        std::str::from_utf8(&sent).expect("text"),
        r#"{"model":"m","stream":true,"max_tokens":64000}"#
    );
}
