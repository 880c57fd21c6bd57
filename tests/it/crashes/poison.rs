//! A line that kills whoever sends it.

use axum::Router;
use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{CHAT, Server, chat, ids, on_every_engine};

/// Where in its unit it stands.
const POISON: usize = 200;
/// Three with others on their way, two alone; and some that a flush in between has made up for.
const KILLS_MAX: usize = 12;

/// A model server that tells of calls with the poisonous line, and does not answer them.
async fn upstream() -> (String, mpsc::UnboundedReceiver<()>) {
    let (tell, told) = mpsc::unbounded_channel();
    let answer = move |body: Bytes| {
        let tell = tell.clone();
        async move {
            if memchr::memmem::find(&body, b"poison").is_some() {
                let _ = tell.send(());
                std::future::pending::<()>().await;
            }
            axum::Json(json!({"choices": []}))
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("listens");
    let address = listener.local_addr().expect("has an address");
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}/v1"), told)
}

async fn a_line_that_kills_its_server_ends_as_an_error_and_all_others_are_answered() {
    let (base_url, mut sent) = upstream().await;
    let config = format!(
        "[worker]\nname = \"killed\"\nlease = \"1s\"\n\n\
         [[upstreams]]\nname = \"fatal\"\nbase_url = \"{base_url}\"\nconcurrency = 16"
    );
    let mut server = Server::binary(&config).await;
    let mut ids = ids(700);
    ids[POISON] = "poison".to_owned();
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    let mut kills = 0;
    let batch = loop {
        let ended = tokio::select! {
            Some(()) = sent.recv() => None,
            batch = server.ended(&batch) => Some(batch),
        };
        if let Some(batch) = ended {
            break batch;
        }
        kills += 1;
        assert!(kills <= KILLS_MAX, "it kills for ever");
        server.kill().await;
        while sent.try_recv().is_ok() {}
        server.start_binary_again().await;
    };
    println!("kills: {kills}");
    assert_eq!(
        batch["request_counts"],
        json!({"total": 700, "completed": 699, "failed": 1})
    );
    let mut lines = server.exactly_once(&batch, &ids).await;
    let poison = lines.remove("poison").expect("is there");
    assert_eq!(poison["response"], Value::Null);
    assert_eq!(poison["error"]["code"], "request_crashed");
    for (id, line) in lines {
        assert_eq!(line["response"]["status_code"], 200, "{id}");
    }
}

on_every_engine![a_line_that_kills_its_server_ends_as_an_error_and_all_others_are_answered];
