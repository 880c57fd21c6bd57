//! The two halves of the server, as processes of their own over one Postgres.

use nightshift::internals::store::Engine;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::binary::{Launch, command, ended};
use crate::support::{CHAT, Server, chat, client_with, eventually, ids, on};

/// No `[[models]]`: what is listed is what the upstream reports.
const DISCOVERED: &str = r#"
[[upstreams]]
name = "simulated"
base_url = "{simulated}"
"#;

#[tokio::test]
async fn two_halves_do_together_what_one_server_does() {
    on(
        Engine::Postgres,
        Box::pin(async {
            let mut server = Server::with(DISCOVERED).binary().await;
            server.stop().await;
            server
                .start_process(Launch::new().flags(&["--role", "api"]))
                .await;

            let ready = client_with(None).get(server.url("/readyz")).send().await;
            assert_eq!(ready.expect("answers").status(), StatusCode::OK);
            let listed = async || server.get("/v1/models").await["data"] != json!([]);
            eventually("the upstream's models are listed", listed).await;

            let ids = ids(40);
            let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
            let early = server.create_batch(&jsonl, CHAT).await;
            // Looked at again and again, it is nobody's work yet.
            for _ in 0..20 {
                assert_eq!(server.batch(&early).await.status, "validating");
            }

            let worker = server
                .replica(Launch::new().flags(&["--role", "worker"]))
                .await;
            let late = server.create_batch(&jsonl, CHAT).await;
            for batch in [early, late] {
                let batch = server.ended(&batch).await;
                assert_eq!(batch.status, "completed", "{batch}");
                server.exactly_once(&batch, &ids).await;
            }
            worker.terminate().await;
            server.stop().await;
        }),
    )
    .await;
}

#[tokio::test]
async fn a_worker_answers_only_whether_it_is_well() {
    on(
        Engine::Postgres,
        Box::pin(async {
            let mut server = Server::with("[auth]\nrequired = true").binary().await;
            server.stop().await;
            server
                .start_process(Launch::new().flags(&["--role", "worker"]))
                .await;

            for path in ["/healthz", "/readyz"] {
                let well = client_with(None).get(server.url(path)).send().await;
                assert_eq!(well.expect("answers").status(), StatusCode::OK, "{path}");
            }
            for path in ["/v1/models", "/v1/batches", "/docs", "/"] {
                let client = client_with(None);
                for request in [client.get(server.url(path)), client.post(server.url(path))] {
                    let answer = request.body("{}").send().await.expect("answers");
                    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
                    let body: Value = answer.json().await.expect("is JSON");
                    let message = body["error"]["message"].as_str().expect("has a message");
                    assert!(message.contains("--role worker"), "{message}");
                }
            }
            server.stop().await;
        }),
    )
    .await;
}

#[tokio::test]
async fn a_worker_that_others_can_reach_needs_no_key() {
    on(
        Engine::Postgres,
        Box::pin(async {
            let directory = tempfile::tempdir().expect("makes a directory");
            let database = crate::support::engines::database(directory.path()).await;
            let variables = [
                ("DATABASE_URL", database.as_str()),
                ("NIGHTSHIFT_SERVER__LISTEN", "0.0.0.0:0"),
                ("NIGHTSHIFT_SERVER__ROLE", "worker"),
            ];
            let worker = crate::support::binary::Binary::serve(&[], &variables).await;
            worker.terminate().await;

            // The other half has something to keep from strangers.
            let mut api = command(&["serve", "--role", "api"]);
            api.envs(variables).current_dir(directory.path());
            let refused = ended(api).await;
            assert_eq!(refused.code, Some(1));
            assert!(refused.errors.contains("API key"), "{}", refused.errors);
        }),
    )
    .await;
}

#[tokio::test]
async fn half_a_server_on_sqlite_is_refused() {
    let directory = tempfile::tempdir().expect("makes a directory");
    for role in ["api", "worker"] {
        let mut serve = command(&["serve", "--role", role]);
        serve.current_dir(directory.path());
        let refused = ended(serve).await;
        assert_eq!(refused.code, Some(1), "{role}");
        let why = "needs Postgres: a SQLite file";
        assert!(refused.errors.contains(why), "{}", refused.errors);

        let mut check = command(&["check"]);
        check
            .current_dir(directory.path())
            .env("NIGHTSHIFT_SERVER__ROLE", role);
        let checked = ended(check).await;
        assert_eq!(checked.code, Some(1), "{role}");
        assert!(checked.out.contains(why), "{}", checked.out);
    }
}
