//! What `/metrics` tells while the database is away, and of processes that come and go.

use serde_json::Value;

use crate::support::engines::{on_postgres_by, shared_postgres};
use crate::support::metrics::{Metrics, operator};
use crate::support::proxy::Proxy;
use crate::support::session::Session;
use crate::support::{CHAT, Server, chat, granting, ids, on_every_engine};
use nightshift::internals::store::Engine;

/// What falls silent is given up after some seconds.
const CONFIG: &str = "[database]\nstatement_timeout = \"3s\"\n";
const ERRORS: &str = "nightshift_store_errors_total";
const OUTAGES: [&str; 1] = [r#"kind="outage""#];

const REFUSE: &str = "
    CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'not this one';
    END $$;
    CREATE TRIGGER refused BEFORE INSERT ON files FOR EACH ROW EXECUTE FUNCTION refused()";
const REFUSE_SQLITE: &str = "
    CREATE TRIGGER refused BEFORE INSERT ON files
    BEGIN
        SELECT RAISE(ABORT, 'not this one');
    END";

/// A statement that the database refuses may fail as a part of many things, but it fails once.
async fn an_error_of_the_database_is_counted_once() {
    let mut server = Server::with("").binary().await;
    let (base, key) = (server.url(""), operator(&server.database).await);
    let mut database = Session::open(&server.database).await;
    database
        .execute(match database.engine() {
            Engine::Sqlite => REFUSE_SQLITE,
            Engine::Postgres => REFUSE,
        })
        .await;
    for refused in 1..=3 {
        let answer = server
            .upload(chat("a", Value::Null).into_bytes(), "in.jsonl", "batch")
            .await;
        assert_eq!(answer.status(), 500, "{answer:?}");
        let metrics = Metrics::of(&base, Some(&key)).await;
        assert_eq!(metrics.sum(ERRORS, &[]), f64::from(refused));
        assert_eq!(metrics.sum(ERRORS, &OUTAGES), 0.0);
    }
    server.stop().await;
}

on_every_engine![an_error_of_the_database_is_counted_once];

/// Has the database go away in the middle of a batch, and reads `/metrics` meanwhile.
async fn looks_inside_while(goes_away: impl Fn(&Proxy)) {
    let proxy = Proxy::to(&shared_postgres()).await;
    let test = async {
        let mut server = Server::with(CONFIG).upstream(granting(0)).binary().await;
        let (base, key) = (server.url(""), operator(&server.database).await);
        let ids = ids(32);
        let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
        let batch = server.create_batch(jsonl, CHAT).await;
        let before = Metrics::until(&base, &key, |metrics| {
            metrics.sum("nightshift_upstream_in_flight", &[]) == 32.0
                && metrics.sum("nightshift_replicas", &[]) == 1.0
        })
        .await;
        assert_eq!(before.sum("nightshift_database_up", &[]), 1.0);
        assert_eq!(before.sum(ERRORS, &OUTAGES), 0.0);
        assert_eq!(before.sum("nightshift_flush_failures_total", &[]), 0.0);

        goes_away(&proxy);
        server.simulator.grant(32);
        // It goes on with what it has in hand, and tells so: calls are answered, and wait.
        let away = Metrics::until(&base, &key, |metrics| {
            metrics.sum("nightshift_database_up", &[]) == 0.0
                && metrics.sum("nightshift_upstream_calls_total", &[]) == 32.0
                && metrics.sum("nightshift_flush_failures_total", &[]) >= 1.0
                && metrics.sum(ERRORS, &OUTAGES) >= 1.0
        })
        .await;
        assert_eq!(
            away.sum("nightshift_lines_total", &[]),
            0.0,
            "none is written"
        );
        assert!(away.sum("nightshift_budget_used_bytes", &[]) > 0.0);
        for of_the_database in [
            "nightshift_replicas",
            "nightshift_batches{",
            "nightshift_queue_",
        ] {
            let told = |line: &str| line.starts_with(of_the_database);
            assert!(!away.0.lines().any(told), "{of_the_database} in {}", away.0);
        }

        proxy.restore();
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 32);
        server.exactly_once(&batch, &ids).await;
        let after = Metrics::until(&base, &key, |metrics| {
            metrics.sum("nightshift_database_up", &[]) == 1.0
                && metrics.sum("nightshift_lines_total", &[]) == 32.0
        })
        .await;
        assert!(after.sum(ERRORS, &OUTAGES) >= away.sum(ERRORS, &OUTAGES));
        assert_eq!(after.sum("nightshift_replicas", &[]), 1.0);
        server.stop().await;
    };
    on_postgres_by(proxy.url(), Box::pin(test)).await;
}

#[tokio::test]
async fn a_process_tells_what_it_knows_while_the_database_refuses_it() {
    looks_inside_while(Proxy::refuse).await;
}

#[tokio::test]
async fn a_process_tells_what_it_knows_while_the_database_is_silent() {
    looks_inside_while(Proxy::fall_silent).await;
}

/// Who has not been let in yet cannot be told from a stranger.
#[tokio::test]
async fn only_operators_that_are_known_look_inside_while_the_database_is_away() {
    let proxy = Proxy::to(&shared_postgres()).await;
    let test = async {
        let mut server = Server::with(CONFIG).binary().await;
        let base = server.url("");
        let (known, new) = (
            operator(&server.database).await,
            operator(&server.database).await,
        );
        let revoked = operator(&server.database).await;
        for key in [&known, &revoked] {
            Metrics::of(&base, Some(key)).await;
        }
        revoke(&server, &revoked).await;
        let asked = status(&server, "/metrics", &revoked).await;
        assert_eq!(asked, 401, "it is revoked");
        assert_eq!(status(&server, "/v1/batches", server.key()).await, 200);

        proxy.refuse();
        for (path, key, expected) in [
            ("/metrics", known.as_str(), 200),
            ("/admin/status", &known, 200),
            ("/metrics", &new, 503),
            ("/metrics", &revoked, 503),
            ("/metrics", server.key(), 503),
            ("/metrics", "sk-ns-nobodys-key", 503),
            ("/v1/batches", &known, 503),
        ] {
            assert_eq!(status(&server, path, key).await, expected, "{path}: {key}");
        }
        proxy.restore();
        server.stop().await;
    };
    on_postgres_by(proxy.url(), Box::pin(test)).await;
}

async fn status(server: &Server, path: &str, key: &str) -> u16 {
    let client = crate::support::client_with(Some(key));
    let answer = client.get(server.url(path)).send().await;
    answer.expect("answers").status().as_u16()
}

/// Revokes an operator's key.
async fn revoke(server: &Server, key: &str) {
    use crate::support::binary::{command, ended};
    let list = ["keys", "list", "--wide", "--database", &server.database];
    let listed = ended(command(&list)).await;
    let end = &key[key.len() - 4..];
    let row = listed.out.lines().find(|line| line.contains(end));
    let id = row.and_then(|row| row.split_whitespace().next());
    let revoke = ["keys", "revoke", id.expect("is listed"), "--database"];
    let revoked = ended(command(&[&revoke[..], &[&server.database]].concat())).await;
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
}
