//! Spans, to a receiver of OTLP.

use serde_json::Value;

use crate::support::receiver::Receiver;
use crate::support::{CHAT, Server, chat, client_with};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn exporting(base: &str, ratio: &str) -> String {
    format!("[telemetry]\notlp_endpoint = \"{base}\"\nsample_ratio = {ratio}\n")
}

/// The bytes of [`TRACE`], as they are sent.
fn trace_id() -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&TRACE[at..at + 2], 16).expect("is hex");
    (0..TRACE.len()).step_by(2).map(byte).collect()
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
    let mut server = Server::binary(&exporting(&base, "1.0")).await;
    ask_as_part_of_a_trace(&server).await;
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    assert_eq!(batch["request_counts"]["completed"], 1, "{batch}");
    let key = server.key().to_owned();
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
        batch["id"].as_str().expect("has an id"),
    ] {
        assert!(receiver.holds(name.as_bytes()), "no {name} was exported");
    }
    assert!(receiver.holds(&trace_id()), "the client's trace goes on");
    for secret in [key.as_str(), "This is a."] {
        assert!(!receiver.holds(secret.as_bytes()), "{secret} was exported");
    }
}

#[tokio::test]
async fn only_what_is_sampled_is_exported() {
    let (receiver, base) = Receiver::start().await;
    let mut server = Server::binary(&exporting(&base, "0")).await;
    server.run(chat("a", Value::Null), CHAT).await;
    ask_as_part_of_a_trace(&server).await;
    server.stop().await;
    assert!(receiver.holds(&trace_id()), "its client has sampled it");
    assert!(!receiver.holds(b"upstream call"), "nobody has sampled it");
}

#[tokio::test]
async fn a_receiver_that_is_away_holds_up_nothing() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let nobody = format!("http://{}", free.local_addr().expect("has an address"));
    drop(free);
    let mut server = Server::binary(&exporting(&nobody, "1.0")).await;
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    let log = server.binary_process().terminate().await;
    let told = log.matches("does not take spans").count();
    assert_eq!(told, 1, "once, however often it is tried: {log}");
}
