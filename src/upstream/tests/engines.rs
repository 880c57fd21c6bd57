//! Engines that say of themselves how many calls run and how many wait.

use super::*;

const LOAD: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n";

/// An upstream whose calls at once are found out, and whose engine is asked.
fn asked(base_url: &str, metrics_url: &str) -> UpstreamSettings {
    UpstreamSettings {
        keys: vec![key("GPU_KEY", "sk-of-the-upstream")],
        is_auto: true,
        metrics_url: Some(metrics_url.to_owned()),
        yields: true,
        ..upstream("gpu", base_url)
    }
}

/// Waits until a server was asked for its metrics so often.
async fn questions(server: &Server, count: usize) -> Vec<Seen> {
    let asked = async {
        loop {
            let seen = server.seen("GET");
            let seen: Vec<Seen> = seen
                .into_iter()
                .filter(|seen| seen.path == "/metrics")
                .collect();
            if seen.len() >= count {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let asked = tokio::time::timeout(Duration::from_mins(1), asked).await;
    asked.expect("the engine is asked")
}

fn metrics_of(server: &Server) -> String {
    server.base_url.replace("/v1", "/metrics")
}

#[tokio::test]
async fn a_key_goes_to_the_metrics_of_its_own_server_and_to_no_other() {
    let own = Server::start(|_| reply(200, LOAD)).await;
    let other = Server::start(|_| reply(200, LOAD)).await;
    for (metrics, key) in [(&own, Some("Bearer sk-of-the-upstream")), (&other, None)] {
        let settings = asked(&own.base_url, &metrics_of(metrics));
        let (_pool, _guard) = running(&super::settings(vec![settings], Vec::new()));
        for seen in questions(metrics, 1).await {
            let sent = seen.headers.get("authorization");
            let sent = sent.map(|value| value.to_str().expect("is text"));
            assert_eq!(sent, key);
            assert!(!format!("{:?}", seen.headers).contains("sk-of") || key.is_some());
        }
    }
}

#[tokio::test]
async fn an_engine_that_cannot_be_read_is_asked_again_and_calls_go_on() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.nth) {
        ("/metrics", nth) if nth % 2 == 0 => reply(500, "no"),
        ("/metrics", _) => reply(200, "<html>"),
        _ => reply(200, "{}"),
    })
    .await;
    let settings = asked(&server.base_url, &metrics_of(&server));
    let (pool, _guard) = running(&super::settings(vec![settings], Vec::new()));
    questions(&server, 2).await;
    let attempt = line(&pool).await;
    assert_eq!(attempt.result, CallResult::Succeeded);
}
