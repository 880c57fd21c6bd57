//! The simulator as its clients see it, over a connection.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::*;

const CHAT: &str = "/v1/chat/completions";

struct Client {
    simulator: Simulator,
    http: reqwest::Client,
}

impl Client {
    async fn new(options: Options) -> Self {
        let simulator = Simulator::start("127.0.0.1:0", options).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { simulator, http }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.simulator.address())
    }

    async fn send(&self, path: &str, body: impl ToString) -> reqwest::Result<reqwest::Response> {
        let request = self.http.post(self.url(path)).body(body.to_string());
        request.header("authorization", "Bearer key").send().await
    }

    async fn status(&self, path: &str, body: impl ToString) -> u16 {
        self.send(path, body).await.unwrap().status().as_u16()
    }

    async fn json(&self, path: &str, body: impl ToString) -> Value {
        let text = self.send(path, body).await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.http.get(self.url(path)).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap())
    }
}

fn chat(question: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": question}]})
}

fn steered(steering: Value) -> Value {
    json!({"model": "m", "messages": [], "simulate": steering})
}

#[tokio::test]
async fn every_endpoint_answers_in_its_shape() {
    let client = Client::new(Options::default()).await;
    let body = json!({"model": "m", "input": "a", "prompt": "a", "dimensions": 4});
    for (path, object, part) in [
        (CHAT, "chat.completion", "/choices/0/message/content"),
        ("/v1/completions", "text_completion", "/choices/0/text"),
        ("/v1/responses", "response", "/output/0/content/0/text"),
        ("/v1/embeddings", "list", "/data/0/embedding/3"),
        ("/v1/moderations", "", "/results/0/category_scores/hate"),
        ("/v1/images/generations", "", "/data/0/b64_json"),
        ("/v1/images/edits", "", "/data/0/b64_json"),
        ("/v1/videos", "video", "/status"),
        ("/v1/messages", "", "/content/0/text"),
        ("/v1/rerank", "", "/results"),
    ] {
        let answer = client.json(path, &body).await;
        assert!(answer.pointer(part).is_some(), "{path}: {answer}");
        assert_eq!(answer["object"].as_str().unwrap_or(""), object);
        if let Some(model) = answer.get("model") {
            assert_eq!(model, "m");
        }
    }
    assert_eq!(client.simulator.stats().models["m"].answered, 10);
}

#[tokio::test]
async fn the_messages_endpoint_has_its_own_errors() {
    let client = Client::new(Options::default()).await;
    let body = steered(json!({"status": 529})).to_string();
    let answer = client.send("/v1/messages", &body).await.unwrap();
    assert_eq!(answer.status(), 529);
    let error: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(error["type"], "error");
    assert_eq!(error["error"]["type"], "overloaded_error");
    assert!(error["request_id"].as_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn the_same_request_gets_the_same_answer_which_can_be_foretold() {
    let options = Options::default();
    let body = chat("Why?").to_string();
    let foretold = options.answer(CHAT, body.as_bytes()).unwrap();
    for _ in 0..2 {
        let client = Client::new(options.clone()).await;
        let answer = client.send(CHAT, &body).await.unwrap();
        assert!(answer.headers()["x-request-id"].len() > 20);
        assert_eq!(answer.bytes().await.unwrap(), foretold);
    }
    let other = Options { seed: 1, ..options };
    assert_ne!(other.answer(CHAT, body.as_bytes()).unwrap(), foretold);
    assert_eq!(other.answer("/v1/nothing", body.as_bytes()), None);
}

#[test]
fn answers_compress_no_better_than_text() {
    let options = Options::default();
    let answers: Vec<u8> = (0..200)
        .flat_map(|n| {
            let body = chat(&format!("Question {n}?")).to_string();
            options.answer(CHAT, body.as_bytes()).unwrap()
        })
        .collect();
    let compressed = zstd::encode_all(&answers[..], 3).unwrap();
    let ratio = answers.len() as f64 / compressed.len() as f64;
    assert!(ratio <= 3.0, "{ratio}");
}

#[tokio::test]
async fn a_request_steers_its_answer_as_often_as_it_says() {
    let client = Client::new(Options::default()).await;
    let body = steered(json!({"status": 503, "times": 2}));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(client.status(CHAT, &body).await);
    }
    assert_eq!(statuses, [503, 503, 200]);

    let body = steered(json!({
        "status": 429, "retry_after_ms": 20, "headers": {"x-a": "b"}, "body": "<p>Slow down"
    }));
    let answer = client.send(CHAT, body).await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers()["retry-after-ms"], "20");
    assert!(!answer.headers().contains_key("retry-after"));
    assert_eq!(answer.headers()["x-a"], "b");
    assert_eq!(answer.headers()["content-type"], "text/plain");
    assert_eq!(answer.text().await.unwrap(), "<p>Slow down");

    let error = client.json(CHAT, steered(json!({"status": 400}))).await;
    assert_eq!(error["error"]["type"], "invalid_request_error");
    assert_eq!(
        client.status(CHAT, steered(json!({"statsu": 1}))).await,
        400
    );
    assert_eq!(
        client.status(CHAT, steered(json!({"status": 9}))).await,
        400
    );
}

#[tokio::test]
async fn a_request_says_how_long_its_answer_takes_and_is() {
    let client = Client::new(Options::default()).await;
    let body = steered(json!({"latency_ms": 60, "bytes": 5000}));
    let start = Instant::now();
    let answer = client.json(CHAT, body).await;
    assert!(start.elapsed() >= Duration::from_millis(60));
    let content = answer["choices"][0]["message"]["content"].as_str();
    assert_eq!(content.unwrap().len(), 5000);

    let short = json!({"model": "m", "messages": [], "max_tokens": 3});
    let answer = client.json(CHAT, short).await;
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn an_echo_shows_the_request_as_it_came() {
    let client = Client::new(Options::default()).await;
    let body = "{ \"model\":\"m\", \"top_p\":1.0, \"simulate\":{\"echo\":true} }";
    let answer = client.json(CHAT, body).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["echo"]["body"], body);
    assert_eq!(answer["echo"]["path"], CHAT);
    assert_eq!(answer["echo"]["headers"]["authorization"], "Bearer key");
}

#[tokio::test]
async fn connections_are_cut_before_or_within_an_answer() {
    let client = Client::new(Options::default()).await;
    let reset = steered(json!({"reset": true, "times": 1}));
    assert!(client.send(CHAT, &reset).await.is_err());
    assert_eq!(client.status(CHAT, &reset).await, 200);

    let truncated = client.send(CHAT, steered(json!({"truncate": true}))).await;
    assert!(truncated.unwrap().bytes().await.is_err());
    let total = client.simulator.stats().total;
    assert_eq!((total.cut, total.answered, total.in_flight), (2, 1, 0));
}

#[tokio::test]
async fn a_call_that_hangs_ends_with_its_client_or_with_the_server() {
    let client = Client::new(Options::default()).await;
    let hang = steered(json!({"hang": true}));
    let request = client.http.post(client.url(CHAT)).body(hang.to_string());
    let leaves = tokio::spawn(request.send());
    while client.simulator.stats().total.in_flight == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    leaves.abort();
    while client.simulator.stats().total.abandoned == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let address = client.simulator.address();
    let request = client.http.post(client.url(CHAT)).body(hang.to_string());
    let waiting = tokio::spawn(request.send());
    while client.simulator.stats().total.in_flight == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.simulator.stop().await;
    assert!(waiting.await.unwrap().is_err());
    let again = Simulator::start(address, Options::default()).await;
    assert_eq!(again.unwrap().address(), address);
}

#[tokio::test]
async fn no_more_is_answered_than_is_granted() {
    let options = Options {
        granted: Some(1),
        ..Options::default()
    };
    let client = Client::new(options).await;
    assert_eq!(client.status(CHAT, chat("one")).await, 200);
    let request = client.http.post(client.url(CHAT));
    let two = tokio::spawn(request.body(chat("two").to_string()).send());
    while client.simulator.stats().total.in_flight == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!two.is_finished());
    client.simulator.grant(1);
    assert_eq!(two.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn luck_is_the_same_in_every_run_and_new_for_every_try() {
    let options = Options {
        error_rate: 0.2,
        rate_limit_rate: 0.1,
        track: true,
        ..Options::default()
    };
    let mut runs = Vec::new();
    for _ in 0..2 {
        let client = Client::new(options.clone()).await;
        let mut statuses = Vec::new();
        for n in 0..300 {
            // Each request comes three times.
            statuses.push(client.status(CHAT, chat(&(n % 100).to_string())).await);
        }
        let bodies = client.simulator.stats().bodies.unwrap();
        assert_eq!((bodies.distinct, bodies.most_calls), (100, 3));
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0][..100], runs[0][100..200]);
    let share = |status| runs[0].iter().filter(|s| **s == status).count();
    assert!((40..=80).contains(&share(500)), "{}", share(500));
    assert!((15..=45).contains(&share(429)), "{}", share(429));
}

#[tokio::test]
async fn limits_are_kept_with_429() {
    let client = Client::new(Options {
        requests_per_minute: Some(1),
        ..Options::default()
    })
    .await;
    assert_eq!(client.status(CHAT, chat("")).await, 200);
    let refused = client.send(CHAT, chat("")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");

    let client = Client::new(Options {
        max_concurrency: Some(2),
        ..Options::default()
    })
    .await;
    let hang = steered(json!({"hang": true})).to_string();
    let hanging: [_; 2] = std::array::from_fn(|_| {
        let request = client.http.post(client.url(CHAT)).body(hang.clone());
        tokio::spawn(request.send())
    });
    while client
        .simulator
        .stats()
        .models
        .get("m")
        .map(|m| m.in_flight)
        != Some(2)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.status(CHAT, chat("")).await, 429);
    assert_eq!(client.simulator.stats().total.most_in_flight, 3);
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    while client.simulator.stats().total.in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.status(CHAT, chat("")).await, 200);
}

#[tokio::test]
async fn the_key_and_the_model_are_asked_for() {
    let client = Client::new(Options {
        api_keys: vec![ApiKey::new("key", "key")],
        models: vec!["m".into(), "org/n".into()],
        ..Options::default()
    })
    .await;
    assert_eq!(client.get("/v1/models").await.0, 401);
    assert_eq!(client.get("/health").await.0, 200);
    assert_eq!(client.status(CHAT, chat("")).await, 200);
    assert_eq!(client.status(CHAT, json!({"messages": []})).await, 400);
    let error = client.json(CHAT, json!({"model": "x"})).await;
    assert_eq!(error["error"]["code"], "model_not_found");
    assert_eq!(client.status("/v1/other", "{}").await, 404);

    let open = Client::new(Options {
        models: vec!["m".into(), "org/n".into()],
        ..Options::default()
    })
    .await;
    let (_, list) = open.get("/v1/models").await;
    assert_eq!(list["data"][1]["id"], "org/n");
    assert_eq!(open.get("/v1/models/org%2Fn").await.1["id"], "org/n");
    assert_eq!(open.get("/v1/models/o").await.0, 404);
    assert_eq!(open.get(CHAT).await.0, 405);
}

#[tokio::test]
async fn the_counts_are_served_and_start_anew_when_asked() {
    let client = Client::new(Options::default()).await;
    client.status(CHAT, chat("")).await;
    client.status(CHAT, steered(json!({"status": 404}))).await;
    let (_, stats) = client.get("/stats").await;
    assert_eq!(stats["calls"], 2);
    assert_eq!(stats["answered"], 1);
    assert_eq!(stats["errors"], json!({"404": 1}));
    assert_eq!(stats["most_in_flight"], 1);
    assert_eq!(stats["models"]["m"]["calls"], 2);
    assert_eq!(stats["bodies"], Value::Null);
    assert_eq!(client.status("/stats/reset", "").await, 200);
    assert_eq!(client.get("/stats").await.1["calls"], 0);
}

#[tokio::test]
async fn an_engine_slows_down_beyond_a_number_of_calls_that_can_be_changed() {
    let options = Options {
        slow_beyond: Some(2),
        tokens_per_second: Some(1_000.0),
        ..Options::default()
    };
    let client = Client::new(options).await;
    assert_eq!(client.status(CHAT, chat("")).await, 200);
    let metrics = client
        .http
        .get(client.url("/metrics"))
        .send()
        .await
        .unwrap();
    let text = metrics.text().await.unwrap();
    assert!(text.contains("vllm:num_requests_running"), "{text}");
    assert_eq!(client.status("/slow-beyond/7", "").await, 200);
    assert_eq!(client.status("/slow-beyond/0", "").await, 400);
    let none = Client::new(Options::default()).await;
    assert_eq!(none.get("/metrics").await.0, 404);
    assert_eq!(none.status("/slow-beyond/7", "").await, 400);
}

/// The status of a call with this key.
async fn status_with(client: &Client, key: &str) -> u16 {
    let request = client.http.post(client.url(CHAT)).bearer_auth(key);
    let answer = request.body(chat("").to_string()).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn a_key_is_refused_and_accepted_again_and_each_is_counted() {
    let refused = ApiKey {
        is_refused: true,
        ..ApiKey::new("B", "key-b")
    };
    let client = Client::new(Options {
        api_keys: vec![ApiKey::new("A", "key-a"), refused],
        ..Options::default()
    })
    .await;
    assert_eq!(status_with(&client, "key-a").await, 200);
    assert_eq!(status_with(&client, "key-b").await, 401);
    assert_eq!(status_with(&client, "key-c").await, 401);
    for status in [402, 403, 429, 200] {
        let turned = client.status(&format!("/keys/B/{status}"), "").await;
        assert_eq!(turned, 200);
        assert_eq!(status_with(&client, "key-b").await, status);
    }
    for path in ["/keys/C/401", "/keys/B/500", "/keys/B"] {
        assert_eq!(client.status(path, "").await, 400, "{path}");
    }
    client.simulator.turn_key("A", 401);
    let models = client.http.get(client.url("/v1/models"));
    let models = models.bearer_auth("key-a").send().await.unwrap();
    assert_eq!(models.status(), 401);
    let (_, stats) = client.get("/stats").await;
    assert_eq!(
        stats["keys"],
        json!([
            {"name": "A", "calls": 1, "refused": 0},
            {"name": "B", "calls": 5, "refused": 4},
        ])
    );
}

#[tokio::test]
async fn each_key_has_its_own_rate_limit() {
    let limit = RateLimit {
        kind: RateKind::Requests,
        limit: 2,
        period: Duration::from_hours(1),
    };
    let client = Client::new(Options {
        api_keys: vec![ApiKey::new("A", "key-a"), ApiKey::new("B", "key-b")],
        rate_limits: vec![limit],
        ..Options::default()
    })
    .await;
    for (key, status) in [
        ("key-a", 200),
        ("key-a", 200),
        ("key-a", 429),
        ("key-b", 200),
    ] {
        assert_eq!(status_with(&client, key).await, status);
    }
    let limits = client.simulator.stats().limits.unwrap();
    let seen: Vec<_> = limits
        .iter()
        .map(|limit| (limit.key.as_deref(), limit.admitted, limit.violations))
        .collect();
    assert_eq!(seen, [(Some("A"), 2, 1), (Some("B"), 1, 0)]);
}

/// The data of a stream's events.
fn data(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let lines = lines.filter(|data| *data != "[DONE]");
    lines
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

#[tokio::test]
async fn a_stream_says_what_a_plain_answer_would_have_said() {
    let client = Client::new(Options::default()).await;
    let mut body = chat("Good night?");
    body["stream"] = true.into();
    let plain: Value = {
        let answer = Options::default().answer(CHAT, body.to_string().as_bytes());
        serde_json::from_slice(&answer.unwrap()).unwrap()
    };
    let response = client.send(CHAT, &body).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    let events = data(&text);
    assert!(events.len() > 10, "a word at a time");
    let said: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(said, plain["choices"][0]["message"]["content"]);
    assert!(events.iter().all(|event| event.get("usage").is_none()));

    body["stream_options"] = json!({"include_usage": true});
    let text = client
        .send(CHAT, &body)
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let last = data(&text).pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["completion_tokens"].as_u64() > Some(0));

    let response = json!({"model": "m", "input": "a", "stream": true});
    let text = client.send("/v1/responses", &response).await.unwrap();
    let last = data(&text.text().await.unwrap()).pop().unwrap();
    assert_eq!(last["type"], "response.completed");
    let total = client.simulator.stats().total;
    assert_eq!((total.answered, total.in_flight), (3, 0));
}

#[tokio::test]
async fn streams_break_off_or_stall_in_their_middle() {
    let client = Client::new(Options::default()).await;
    let streamed = |steering: Value| {
        let mut body = steered(steering);
        body["stream"] = true.into();
        body
    };
    let broken = client.send(CHAT, streamed(json!({"truncate": true}))).await;
    let broken = broken.unwrap();
    assert_eq!(broken.status(), 200);
    assert!(broken.text().await.is_err(), "cut");
    let mut stalled = client
        .send(CHAT, streamed(json!({"stall": true})))
        .await
        .unwrap();
    assert!(stalled.chunk().await.unwrap().is_some());
    assert_eq!(client.simulator.stats().total.in_flight, 1);
    assert_eq!(client.simulator.stats().total.cut, 1);

    let unlucky = Client::new(Options {
        break_rate: 1.0,
        ..Options::default()
    })
    .await;
    let broken = unlucky.send(CHAT, streamed(json!({}))).await.unwrap();
    assert!(broken.text().await.is_err());
    let plain = unlucky.send(CHAT, chat("Plain?")).await.unwrap();
    assert!(plain.text().await.is_ok(), "what is whole breaks nowhere");
}
