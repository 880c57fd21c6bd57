//! Trouble with the database: it is away, comes back, falls silent, is full, hangs. Nothing is
//! lost, nobody waits without end, and no server has to be started again.

mod full;
mod lost;
mod pooler;
mod schema;
mod start;
mod stuck;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Batch, CHAT, PATIENCE, Server, chat, eventually, granting, ids};

const LINES: usize = 1500;
/// How many more lines the model answers for each time that a batch is to go on. With trouble in
/// between it is never through.
const GRANT: usize = 200;

/// What falls silent is given up after some seconds.
const CONFIG: &str = r#"
[database]
statement_timeout = "3s"

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 16

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

/// A process whose model answers no more than it is granted.
async fn start(toml: &str) -> Server {
    Server::with(toml).upstream(granting(0)).binary().await
}

/// A batch that is in the middle of its lines.
struct Midway {
    batch: Batch,
    ids: Vec<String>,
}

impl Midway {
    async fn begin(server: &Server) -> Midway {
        let ids = ids(LINES);
        let slow = json!({"latency_ms": 30});
        let jsonl: String = ids.iter().map(|id| chat(id, slow.clone())).collect();
        let batch = server.create_batch(&jsonl, CHAT).await;
        let midway = Midway { batch, ids };
        midway.goes_on(server).await;
        midway
    }

    /// Waits until more lines are done than now. The database may be away for a while, and more
    /// lines are answered afterwards.
    async fn goes_on(&self, server: &Server) {
        let before = until(server, &self.batch, |_| true).await.done();
        server.simulator.grant(GRANT);
        let batch = until(server, &self.batch, |batch| batch.done() >= before + 50).await;
        assert!(batch.done() < LINES, "the trouble came too late");
    }

    /// Waits for its end, and asserts that each line was done once.
    async fn ends_well(&self, server: &Server) {
        server.simulator.grant(LINES);
        let batch = until(server, &self.batch, Batch::has_ended).await;
        assert_eq!(batch.status, "completed", "{batch}");
        let lines = server.exactly_once(&batch, &self.ids).await;
        for line in lines.values() {
            assert_eq!(line["response"]["status_code"], 200, "{line}");
        }
        assert_eq!(batch.done(), LINES);
    }
}

/// Waits until something holds of a batch. While the database is away, the answer may be 503.
async fn until(server: &Server, batch: &Batch, holds: impl Fn(&Batch) -> bool) -> Batch {
    let path = batch.path();
    eventually("the batch comes to that", async || {
        let response = get(server, &path).await;
        if response.status() == StatusCode::OK {
            let batch: Value = response.json().await.expect("is JSON");
            Some(Batch::from(batch)).filter(&holds)
        } else {
            is_unavailable(response).await;
            None
        }
    })
    .await
}

async fn get(server: &Server, path: &str) -> Response {
    let request = server.client().get(server.url(path));
    let answer = tokio::time::timeout(PATIENCE, request.send()).await;
    answer.expect("answers in time").expect("answers")
}

/// Asserts that an answer is 503 in OpenAI's form, and says when to come again.
async fn is_unavailable(response: Response) {
    is_error(response, StatusCode::SERVICE_UNAVAILABLE).await;
}

async fn is_error(response: Response, status: StatusCode) {
    let headers = response.headers().clone();
    let found = response.status();
    let text = response.text().await.expect("is text");
    assert_eq!(found, status, "{text}");
    let seconds = headers["retry-after"].to_str().expect("is text");
    assert!(
        seconds.parse::<u64>().expect("is a number") > 0,
        "{seconds}"
    );
    let body: Value = serde_json::from_str(&text).expect("is JSON");
    let error = &body["error"];
    assert_eq!(error["type"], "server_error", "{body}");
    assert!(error["message"].is_string(), "{body}");
    assert!(
        error["param"].is_null() && error["code"].is_null(),
        "{body}"
    );
}
