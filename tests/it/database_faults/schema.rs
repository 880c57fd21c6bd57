//! Migrations: several servers that start at once, and servers of different versions.

use std::time::Duration;

use nightshift::internals::domain::clock::Clock;
use nightshift::internals::store::{Engine, Settings, Store};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};

use crate::support::binary::{Launch, command, ended};
use crate::support::metrics::operator;
use crate::support::{
    Batch, CHAT, Server, chat, client_with, engines, eventually, granting, ids, on_every_engine,
};

/// How many start at once.
const STARTS: usize = 6;

async fn however_many_start_at_once_one_migrates() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let starts = (0..STARTS).map(|_| {
        let url = url.clone();
        // On threads of their own, as processes would be.
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("builds").block_on(async {
                let options = Settings {
                    connections: 2,
                    open_timeout: Duration::from_mins(1),
                    ..Settings::default()
                };
                let opened = Store::open_with(&url, &options, Clock::default()).await;
                let store = opened.expect("opens");
                let keys = store.keys().await.expect("has its tables");
                store.close().await;
                keys.len()
            })
        })
    });
    for start in futures::future::join_all(starts).await {
        assert_eq!(start.expect("does not panic"), 0);
    }
}

async fn processes_that_start_at_once_do_not_get_in_each_others_way() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let starts = (0..STARTS).map(|_| {
        let mut create = command(&["keys", "create", "--name", "a", "--database", &url]);
        create.current_dir(directory.path());
        ended(create)
    });
    for started in futures::future::join_all(starts).await {
        assert_eq!(started.code, Some(0), "{}", started.errors);
    }
}

/// Has a database look as if a newer program had migrated it.
async fn migrate_beyond(url: &str) {
    const BEYOND: &str = "INSERT INTO _sqlx_migrations
        (version, description, success, checksum, execution_time)
        VALUES (9999, 'of the future', TRUE, '', 0)";
    let done = match engines::current() {
        Engine::Sqlite => {
            let mut connection = SqliteConnection::connect(url).await.expect("connects");
            connection.execute(BEYOND).await.map(|_| ())
        }
        Engine::Postgres => {
            let mut connection = PgConnection::connect(url).await.expect("connects");
            connection.execute(BEYOND).await.map(|_| ())
        }
    };
    done.expect("writes");
}

async fn a_server_that_is_older_than_the_schema_says_so_and_stops() {
    let mut server = Server::with("").binary().await;
    migrate_beyond(&server.database).await;
    server.leave_broken();
    // The one that runs notices, too.
    let running = server.binary_process().ended().await;
    let file = server.config_file();
    let mut serve = command(&["serve", "--config", &file]);
    serve
        .env("DATABASE_URL", &server.database)
        .env("NIGHTSHIFT_SERVER__LISTEN", "127.0.0.1:0");
    for ended in [running, ended(serve).await] {
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        for word in ["version 9999", "versions up to", "upgrade"] {
            assert!(ended.errors.contains(word), "{word}: {}", ended.errors);
        }
    }
}

/// What a database had before version 12, and version 14 on Postgres. Lines that stand in tails
/// today were segments.
const BEFORE_12: &str = "
    INSERT INTO segments (batch_id, chunk_no, model_no, flush_no, entries, data)
        SELECT batch_id, chunk_no, model_no, flush_no, tail_entries, tail_data
        FROM units WHERE tail_data IS NOT NULL;
    ALTER TABLE units DROP COLUMN tail_data;
    ALTER TABLE units DROP COLUMN tail_entries;
    DELETE FROM _sqlx_migrations WHERE version IN (12, 14);
";

/// What it had before version 11.
const BEFORE_11: &str = "
    DROP INDEX batches_ended;
    DELETE FROM _sqlx_migrations WHERE version = 11;
";

/// What it had before version 10.
const BEFORE_10: &str = "
    ALTER TABLE api_keys ADD COLUMN admin BOOLEAN NOT NULL DEFAULT FALSE;
    UPDATE api_keys SET admin = TRUE WHERE tenant = 'tenant-a';
    ALTER TABLE api_keys DROP COLUMN scopes;
    ALTER TABLE api_keys DROP COLUMN expires_at;
    ALTER TABLE api_keys DROP COLUMN last_used_at;
    ALTER TABLE batches DROP COLUMN key_id;
    DELETE FROM _sqlx_migrations WHERE version = 10;
";

/// Runs a batch, of which the first half was done with a database of an earlier version.
async fn a_batch_that_goes_on_from(earlier: &[&str]) -> (Server, Batch) {
    let mut server = Server::with("").upstream(granting(0)).binary().await;
    let ids = ids(20);
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch(jsonl, CHAT).await;
    server.simulator.grant(ids.len() / 2);
    server
        .until(&batch, |batch| batch.done() == ids.len() / 2)
        .await;
    server.kill().await;
    for step in earlier {
        engines::execute(&server.database, step).await;
    }

    server.start_process(Launch::new()).await;
    server.simulator.grant(ids.len());
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "completed");
    server.exactly_once(&batch, &ids).await;
    let calls = server.simulator.stats().total.calls;
    assert_eq!(calls, 30, "what was done is not sent again");
    (server, batch)
}

async fn a_database_of_the_version_before_opens_and_its_live_batches_go_on() {
    let (server, _) = a_batch_that_goes_on_from(&[BEFORE_12]).await;
    // The segment of the version before, and that of this one.
    assert_eq!(engines::rows(&server.database, "segments").await, 2);
}

async fn a_database_of_two_versions_before_opens_and_its_ended_batches_are_listed() {
    let (server, batch) = a_batch_that_goes_on_from(&[BEFORE_12, BEFORE_11]).await;
    let operator = server.by(&operator(&server.database).await);
    eventually("the batch is listed", async || {
        let status = operator.get("/admin/status").await;
        if status["ended_batches"][0]["id"] == batch.id {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
}

async fn a_database_of_three_versions_before_opens_and_its_keys_open_what_they_opened() {
    let (server, batch) = a_batch_that_goes_on_from(&[BEFORE_12, BEFORE_11, BEFORE_10]).await;
    // Its keys open what they opened: an operator's, and a tenant's.
    let path = batch.path();
    for (path, operators, others) in [
        ("/v1/batches", 200, 200),
        ("/metrics", 200, 403),
        ("/admin/status", 200, 403),
        (path.as_str(), 200, 404),
    ] {
        for (key, expected) in [(server.key(), operators), (server.other().key(), others)] {
            let asked = client_with(Some(key)).get(server.url(path)).send().await;
            assert_eq!(asked.expect("answers").status(), expected, "{path}");
        }
    }
    let jsonl = chat("foreign", Value::Null);
    let foreign = server.other().create_batch(jsonl, CHAT).await;
    let path = foreign.path();
    let asked = server.client().get(server.url(&path)).send().await;
    assert_eq!(asked.expect("answers").status(), 404, "no other tenant's");
}

on_every_engine![
    a_database_of_the_version_before_opens_and_its_live_batches_go_on,
    a_database_of_two_versions_before_opens_and_its_ended_batches_are_listed,
    a_database_of_three_versions_before_opens_and_its_keys_open_what_they_opened,
    however_many_start_at_once_one_migrates,
    processes_that_start_at_once_do_not_get_in_each_others_way,
    a_server_that_is_older_than_the_schema_says_so_and_stops,
];
