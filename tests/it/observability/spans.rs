//! Spans, to a receiver of OTLP.

use serde_json::{Value, json};

use crate::support::receiver::Receiver;
use crate::support::{CHAT, Server, chat, client_with};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn exporting(base: &str, ratio: &str) -> String {
    format!("[telemetry]\notlp_endpoint = \"{base}\"\nsample_ratio = {ratio}\n")
}

/// The bytes of an id in hex, as they are sent.
fn bytes(id: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).expect("is hex");
    (0..id.len()).step_by(2).map(byte).collect()
}

/// The header `traceparent` of each of a batch's calls.
async fn traceparents(server: &Server) -> Vec<Value> {
    let echo = |id| chat(id, json!({"echo": true}));
    let batch = server.run(echo("a") + &echo("b"), CHAT).await;
    let lines = server.output(&batch).await;
    assert_eq!(lines.len(), 2, "{batch}");
    let calls = lines.iter().map(|line| &line["response"]["body"]["echo"]);
    calls
        .map(|echo| echo["headers"]["traceparent"].clone())
        .collect()
}

async fn ask_as_part_of_a_trace(server: &Server) {
    let asked = client_with(Some(server.key()))
        .get(server.url("/v1/models"))
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    assert_eq!(asked.send().await.expect("answers").status(), 200);
}

#[tokio::test]
async fn spans_of_requests_batches_and_calls_are_exported() {
    let (receiver, base) = Receiver::start().await;
    let mut server = Server::with(&exporting(&base, "1.0")).binary().await;
    ask_as_part_of_a_trace(&server).await;
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    assert_eq!(batch.counts.completed, 1, "{batch}");
    let key = server.key().to_owned();
    receiver.gets(b"upstream call").await;
    // What is left is sent at the end.
    server.stop().await;
    for name in [
        "nightshift",
        "POST /v1/batches",
        "GET /v1/models",
        "validate batch",
        "upstream call",
        "answered",
        "flush",
        "finish batch",
        &*batch.id,
    ] {
        assert!(receiver.holds(name.as_bytes()), "no {name} was exported");
    }
    assert!(receiver.holds(&bytes(TRACE)), "the client's trace goes on");
    for secret in [key.as_str(), "This is a."] {
        assert!(!receiver.holds(secret.as_bytes()), "{secret} was exported");
    }
}

#[tokio::test]
async fn only_what_is_sampled_is_exported() {
    let (receiver, base) = Receiver::start().await;
    let mut server = Server::with(&exporting(&base, "0")).binary().await;
    server.run(chat("a", Value::Null), CHAT).await;
    ask_as_part_of_a_trace(&server).await;
    server.stop().await;
    assert!(receiver.holds(&bytes(TRACE)), "its client has sampled it");
    assert!(!receiver.holds(b"upstream call"), "nobody has sampled it");
}

#[tokio::test]
async fn each_call_tells_the_upstream_its_trace() {
    let (receiver, base) = Receiver::start().await;
    let mut server = Server::with(&exporting(&base, "1.0")).binary().await;
    let told = traceparents(&server).await;
    server.stop().await;
    for traceparent in &told {
        let text = traceparent.as_str().expect("is there");
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = parts[..] else {
            panic!("{text}");
        };
        assert_eq!((version, flags), ("00", "01"), "{text}");
        assert!(receiver.holds(&bytes(trace)), "{text}");
        assert!(receiver.holds(&bytes(span)), "{text}");
    }
    assert_ne!(told[0], told[1], "each call has its own");
}

#[tokio::test]
async fn without_tracing_no_call_has_a_trace() {
    let server = Server::with("").binary().await;
    assert_eq!(traceparents(&server).await, [Value::Null, Value::Null]);
}

#[tokio::test]
async fn a_receiver_that_is_away_holds_up_nothing() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let nobody = format!("http://{}", free.local_addr().expect("has an address"));
    drop(free);
    let mut server = Server::with(&exporting(&nobody, "1.0")).binary().await;
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    assert_eq!(batch.status, "completed", "{batch}");
    let log = server.binary_process().terminate().await;
    let told = log.matches("does not take spans").count();
    assert_eq!(told, 1, "once, however often it is tried: {log}");
}
