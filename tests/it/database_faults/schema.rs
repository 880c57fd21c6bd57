//! Migrations: several servers that start at once, and servers of different versions.

use std::time::Duration;

use nightshift::internals::domain::clock::Clock;
use nightshift::internals::store::{Engine, Settings, Store};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};

use crate::support::binary::{Launch, command, ended};
use crate::support::metrics::operator;
use crate::support::session::Session;
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

/// What a database had before version 34.
const BEFORE_34: &str = "
    DROP TABLE batch_progress;
    DELETE FROM _sqlx_migrations WHERE version = 34;
";

/// What a database had before version 33.
const BEFORE_33: &str = "
    ALTER TABLE batches DROP COLUMN paused_at;
    ALTER TABLE batches DROP COLUMN paused_by;
    ALTER TABLE batches DROP COLUMN not_before;
    DELETE FROM _sqlx_migrations WHERE version = 33;
";

/// What a database had before version 32.
const BEFORE_32: &str = "
    DROP TABLE answers;
    DROP TABLE answer_totals;
    ALTER TABLE batches DROP COLUMN reuse;
    ALTER TABLE batches DROP COLUMN details;
    DELETE FROM _sqlx_migrations WHERE version = 32;
";

/// What a database had before version 30, or 31 on SQLite.
const BEFORE_30: &str = "
    DROP TABLE usage_minutes;
    DROP TABLE usage_hours;
    DROP TABLE usage_batches;
    DELETE FROM _sqlx_migrations WHERE version IN (30, 31);
";

/// What a database had before version 29.
const BEFORE_29: &str = "
    DROP INDEX batches_by_priority;
    DROP INDEX batches_in_progress;
    DELETE FROM _sqlx_migrations WHERE version = 29;
";

/// What a database had before version 28.
const BEFORE_28: &str = "
    ALTER TABLE replicas DROP COLUMN config_hash;
    ALTER TABLE replicas DROP COLUMN config_read_at;
    DELETE FROM _sqlx_migrations WHERE version = 28;
";

/// What a database had before version 27.
const BEFORE_27: &str = "
    ALTER TABLE upstream_drains DROP COLUMN in_flight;
    DELETE FROM _sqlx_migrations WHERE version = 27;
";

/// What a database had before version 25, or 26 on Postgres.
const BEFORE_25: [&str; 2] = [
    "
    DROP TRIGGER files_shown;
    DROP TRIGGER files_changed;
    DROP TRIGGER files_removed;
    DROP TABLE tenant_storage;
    DELETE FROM _sqlx_migrations WHERE version > 24;
",
    "
    DROP TRIGGER files_shown ON files;
    DROP TRIGGER files_changed ON files;
    DROP TRIGGER files_removed ON files;
    DROP FUNCTION count_storage;
    DROP TABLE tenant_storage;
    DELETE FROM _sqlx_migrations WHERE version > 24;
",
];

/// The same of the engine of the test that runs.
fn before_25() -> &'static str {
    match engines::current() {
        Engine::Sqlite => BEFORE_25[0],
        Engine::Postgres => BEFORE_25[1],
    }
}

/// What a database had before versions 23 and 24: segments that need no dictionary.
const BEFORE_23: &str = "DELETE FROM _sqlx_migrations WHERE version > 22";

/// What a database had before version 22.
const BEFORE_22: &str = "
    ALTER TABLE batches DROP COLUMN task;
    DELETE FROM _sqlx_migrations WHERE version = 22;
";

/// What a database had before version 21.
const BEFORE_21: &str = "
    DROP TABLE gates;
    CREATE TABLE gates (
        upstream     TEXT   NOT NULL,
        model        TEXT   NOT NULL,
        closed_until BIGINT NOT NULL,
        PRIMARY KEY (upstream, model)
    );
    DELETE FROM _sqlx_migrations WHERE version = 21;
";

/// What a database had before version 20.
const BEFORE_20: &str = "
    DROP TABLE auto_windows;
    DELETE FROM _sqlx_migrations WHERE version = 20;
";

/// What a database had before version 19.
const BEFORE_19: &str = "
    DROP INDEX batches_live;
    CREATE INDEX batches_live ON batches (status)
        WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
    ALTER TABLE batches DROP COLUMN estimated_tokens;
    DELETE FROM _sqlx_migrations WHERE version = 19;
";

/// What a database had before version 18.
const BEFORE_18: &str = "
    DROP TABLE upstream_switches;
    DROP TABLE upstream_drains;
    DELETE FROM _sqlx_migrations WHERE version = 18;
";

/// What a database had before version 17.
const BEFORE_17: &str = "
    DROP TABLE rate_books;
    DROP TABLE rate_grants;
    DELETE FROM _sqlx_migrations WHERE version = 17;
";

/// What a database had before its last migrations, versions 13 to 16: models of files and counts of
/// ended batches in tables of their own.
const BEFORE_13: &str = r#"
    CREATE TABLE file_models (
        file_id     TEXT    NOT NULL,
        model_no    BIGINT  NOT NULL,
        name        TEXT    NOT NULL,
        requests    BIGINT  NOT NULL,
        first_lines TEXT    NOT NULL,
        PRIMARY KEY (file_id, model_no)
    );
    INSERT INTO file_models SELECT id, 0, 'sim-small', requests, '[1,2]' FROM files
        WHERE purpose = 'batch' AND requests = 20;
    INSERT INTO file_models SELECT id, 1, 'a "strange" model', 1, '[3]' FROM files
        WHERE purpose = 'batch' AND requests = 3;
    INSERT INTO file_models SELECT id, 0, 'sim-small', 2, '[1,2]' FROM files
        WHERE purpose = 'batch' AND requests = 3;
    INSERT INTO chunk_models SELECT id, 0, 0, requests, bytes FROM files WHERE is_one_chunk = 1;
    INSERT INTO batch_counts SELECT id, 0, completed - 1, failed, cancelled, input_tokens,
        cached_tokens, output_tokens - 7, reasoning_tokens, total_tokens
        FROM batches WHERE status = 'completed';
    INSERT INTO batch_counts SELECT id, 1, 1, 0, 0, 0, 0, 7, 0, 0 FROM batches
        WHERE status = 'completed';
    INSERT INTO backlog SELECT batch_id, model_no, 'sim-small', 0 FROM units WHERE NOT EXISTS
        (SELECT 1 FROM backlog WHERE backlog.batch_id = units.batch_id);
    ALTER TABLE files DROP COLUMN models;
    ALTER TABLE files DROP COLUMN is_one_chunk;
    ALTER TABLE batches DROP COLUMN completed;
    ALTER TABLE batches DROP COLUMN failed;
    ALTER TABLE batches DROP COLUMN cancelled;
    ALTER TABLE batches DROP COLUMN input_tokens;
    ALTER TABLE batches DROP COLUMN cached_tokens;
    ALTER TABLE batches DROP COLUMN output_tokens;
    ALTER TABLE batches DROP COLUMN reasoning_tokens;
    ALTER TABLE batches DROP COLUMN total_tokens;
    DELETE FROM _sqlx_migrations WHERE version IN (13, 15, 16);
"#;

/// What it had before version 12, and version 14 on Postgres. Lines that stand in tails
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
    let (server, _) = a_batch_that_goes_on_from(&[
        BEFORE_34,
        BEFORE_33,
        BEFORE_32,
        BEFORE_30,
        BEFORE_29,
        BEFORE_28,
        BEFORE_27,
        before_25(),
    ])
    .await;
    // What was there before is counted, and what came afterwards.
    let stored = "SELECT CAST(SUM(bytes) AS BIGINT) FROM";
    let mut session = Session::open(&server.database).await;
    let counted = session.number(&format!("{stored} tenant_storage")).await;
    let files = session
        .number(&format!("{stored} files WHERE state = 'ready'"))
        .await;
    assert_eq!(counted, files);
    let earlier = [
        BEFORE_34,
        BEFORE_33,
        BEFORE_32,
        BEFORE_30,
        BEFORE_29,
        BEFORE_28,
        BEFORE_27,
        before_25(),
        BEFORE_23,
        BEFORE_22,
        BEFORE_21,
        BEFORE_20,
        BEFORE_19,
        BEFORE_18,
        BEFORE_17,
        BEFORE_13,
    ];
    a_batch_that_goes_on_from(&earlier).await;
}

async fn a_database_of_two_versions_before_opens_and_its_live_batches_go_on() {
    let (server, _) = a_batch_that_goes_on_from(&[BEFORE_13, BEFORE_12]).await;
    // The segment of the version before, and that of this one.
    assert_eq!(engines::rows(&server.database, "segments").await, 2);
}

async fn a_database_of_three_versions_before_opens_and_its_ended_batches_are_listed() {
    let (server, batch) = a_batch_that_goes_on_from(&[BEFORE_13, BEFORE_12, BEFORE_11]).await;
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

async fn a_database_of_four_versions_before_opens_and_its_keys_open_what_they_opened() {
    let earlier = [BEFORE_13, BEFORE_12, BEFORE_11, BEFORE_10];
    let (server, batch) = a_batch_that_goes_on_from(&earlier).await;
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

async fn counts_and_models_of_the_version_before_are_known() {
    let mut server = Server::with("").binary().await;
    let ids = ids(20);
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let before = server.run(jsonl, CHAT).await;
    let lines = ["a", "b", "c"].map(|id| chat(id, Value::Null));
    let unknown = lines.concat().replacen("sim-small", "no-model", 3);
    let unknown = server.failed_batch(unknown, CHAT).await;
    server.kill().await;
    engines::execute(&server.database, BEFORE_13).await;

    server.start_process(Launch::new()).await;
    let after = server.batch(&before).await;
    assert_eq!(after.counts, before.counts);
    assert_eq!(after["usage"], before["usage"]);
    // The counts of batches that had ended move into the batches' rows, by and by.
    eventually("no counts are left beside", async || {
        match engines::rows(&server.database, "batch_counts").await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    let after = server.batch(&before).await;
    assert_eq!(after.counts, before.counts);
    assert_eq!(after["usage"], before["usage"]);
    // The files are as good as before for new batches.
    let again = |batch: &Batch| {
        json!({
            "input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h",
        })
    };
    let run = server.create(&again(&before)).await;
    let run = server.ended(&run).await;
    assert_eq!((&*run.status, &run.counts), ("completed", &before.counts));
    let refused = server.create(&again(&unknown)).await;
    let refused = server.ended(&refused).await;
    let message = refused["errors"]["data"][0]["message"].to_string();
    assert!(message.contains("strange"), "{refused}");
    assert_eq!(refused["errors"]["data"][0]["line"], 3, "{refused}");
}

on_every_engine![
    counts_and_models_of_the_version_before_are_known,
    a_database_of_the_version_before_opens_and_its_live_batches_go_on,
    a_database_of_two_versions_before_opens_and_its_live_batches_go_on,
    a_database_of_three_versions_before_opens_and_its_ended_batches_are_listed,
    a_database_of_four_versions_before_opens_and_its_keys_open_what_they_opened,
    however_many_start_at_once_one_migrates,
    processes_that_start_at_once_do_not_get_in_each_others_way,
    a_server_that_is_older_than_the_schema_says_so_and_stops,
];
