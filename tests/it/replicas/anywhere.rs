//! Any replica serves any request.

use std::collections::BTreeSet;

use nightshift::store::Engine;
use serde_json::{Value, json};

use super::{LASTING, get, lines, replicas};
use crate::support::binary::Binary;
use crate::support::{CHAT, Server, client_with, ids, on};

/// Sends the other replica what the client of the server sends.
async fn post(server: &Server, replica: &Binary, path: &str, body: &Value) -> Value {
    let client = client_with(Some(server.key()));
    let request = client.post(format!("{}{path}", replica.base)).json(body);
    let response = request.send().await.expect("answers");
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.expect("is JSON")
}

#[tokio::test]
async fn any_replica_does_what_is_asked_for_with_what_another_one_has_made() {
    on(Engine::Postgres, async {
        let (server, others) = replicas(LASTING, 6, &["b", "c"]).await;
        let [b, c] = &others[..] else {
            panic!("there are two more")
        };
        let (few, many) = (ids(30), ids(1_500));
        let mut batches = Vec::new();
        for (ids, latency_ms) in [(&few, 10), (&many, 500)] {
            let file = server.upload_batch(lines(ids, latency_ms)).await;
            let body = json!({
                "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
            });
            batches.push(post(&server, b, "/v1/batches", &body).await);
        }
        let (small, large) = (&batches[0], &batches[1]);
        let id = large["id"].as_str().expect("has an id");
        server
            .until(large, |batch| batch["status"] == "in_progress")
            .await;
        let path = format!("/v1/batches/{id}/cancel");
        post(&server, c, &path, &json!({})).await;

        assert_eq!(server.ended(large).await["status"], "cancelled");
        let small = server.ended(small).await;
        assert_eq!(small["status"], "completed", "{small}");
        let output = small["output_file_id"].as_str().expect("has an output");
        let path = format!("/v1/files/{output}/content");
        let request = client_with(Some(server.key())).get(format!("{}{path}", c.base));
        let response = request.send().await.expect("answers");
        assert_eq!(response.status(), 200);
        let text = response.text().await.expect("is text");
        assert_eq!(text.lines().count(), few.len());

        let listed = server.get("/v1/batches").await;
        let found: BTreeSet<&str> = listed["data"]
            .as_array()
            .expect("is a list")
            .iter()
            .filter_map(|batch| batch["id"].as_str())
            .collect();
        assert_eq!(
            found,
            batches.iter().filter_map(|b| b["id"].as_str()).collect()
        );
        for replica in &others {
            assert_eq!(get(&server, replica, "/v1/batches").await, listed);
        }
    })
    .await;
}
