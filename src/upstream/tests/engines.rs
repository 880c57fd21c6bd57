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

/// What is logged in a test's thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        // Somebody listens in every thread and for ever. Otherwise a line that another test's
        // thread reaches at this very moment could be remembered as one that nobody wants.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let log = Self::default();
        let sink = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || sink.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// Of which upstreams it was said that their engine cannot be read, and why, in order.
    fn unreadable(&self) -> Vec<(String, String)> {
        let bytes = self.0.lock().expect("a lock");
        let lines = bytes.split(|byte| *byte == b'\n');
        let events = lines.filter_map(|line| serde_json::from_slice(line).ok());
        let causes = events.filter_map(|event: serde_json::Value| {
            let text = |name| event[name].as_str().map(str::to_owned);
            let message = text("message")?;
            let is_of_metrics = message.contains("metrics_url cannot be read");
            text("upstream.name")
                .zip(text("cause"))
                .filter(|_| is_of_metrics)
        });
        let mut causes: Vec<_> = causes.collect();
        causes.sort();
        causes
    }
}

#[tokio::test]
async fn an_engine_that_answers_too_much_or_too_late_is_not_heard_and_that_is_said_once() {
    let (log, _guard) = Log::begin();
    let large = format!("{LOAD}{}", "#".repeat(4 << 20));
    let large = Server::start(move |_| reply(200, &large)).await;
    let late = Server::start(|_| reply(200, LOAD).after(3_600_000)).await;
    let well = Server::start(|_| reply(200, LOAD)).await;
    let servers = [("large", &large), ("late", &late), ("well", &well)];
    let upstreams = servers.map(|(name, server)| UpstreamSettings {
        name: name.to_owned(),
        ..asked(&server.base_url, &metrics_of(server))
    });
    let (_pool, _upkeep) = running(&settings(upstreams.into(), Vec::new()));
    for (_, server) in servers {
        // By the third question, two have been answered.
        questions(server, 3).await;
    }
    let unreadable = log.unreadable();
    let said: Vec<(&str, &str)> = unreadable
        .iter()
        .map(|(name, cause)| (name.as_str(), cause.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("large", "it answers with more than 4194304 bytes"),
            ("late", "no answer within 2s"),
        ]
    );
}
