//! A disk without room.

use std::process::Command;

use nightshift::internals::store::Engine;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::{CONFIG, GRANT, LINES, Midway, get, is_error, is_unavailable, start};
use crate::support::binary::Launch;
use crate::support::{CHAT, Server, chat, eventually, on};

/// Has Postgres say for two tables what it says when its disk is full, and count how often.
const FILL: &str = "
    CREATE SEQUENCE tries;
    CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM nextval('tries');
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END $$;
    CREATE TRIGGER no_room BEFORE INSERT ON chunks EXECUTE FUNCTION no_room();
    CREATE TRIGGER no_room BEFORE INSERT ON segments EXECUTE FUNCTION no_room();";
const MAKE_ROOM: &str = "DROP FUNCTION no_room CASCADE";

async fn upload(server: &Server) -> Response {
    let line = chat("late", Value::Null).into_bytes();
    server.upload(line, "late.jsonl", "batch").await
}

/// How many uploads of that file can be seen.
async fn uploaded(server: &Server) -> usize {
    let files = server.get("/v1/files").await;
    let files = files["data"].as_array().expect("is a list");
    files
        .iter()
        .filter(|file| file["filename"] == "late.jsonl")
        .count()
}

#[tokio::test]
async fn on_a_full_postgres_batches_wait_and_uploads_are_refused() {
    let test = async {
        let mut server = start(CONFIG).await;
        let mut postgres = PgConnection::connect(&server.database)
            .await
            .expect("connects");
        let midway = Midway::begin(&server).await;

        postgres
            .execute(sqlx::raw_sql(FILL))
            .await
            .expect("fills it");
        // Answers that are to be written now.
        server.simulator.grant(GRANT);
        is_error(upload(&server).await, StatusCode::INSUFFICIENT_STORAGE).await;
        assert_eq!(uploaded(&server).await, 0);
        // Far more often than what fails for another reason is tried before it is let go.
        eventually("answers were tried to be written", async || {
            let tries = sqlx::query_scalar("SELECT last_value FROM tries");
            let tries: i64 = tries.fetch_one(&mut postgres).await.expect("counts");
            tries >= 8
        })
        .await;
        postgres
            .execute(sqlx::raw_sql(MAKE_ROOM))
            .await
            .expect("empties it");

        midway.ends_well(&server).await;
        // Answers were kept meanwhile: no line was sent again.
        assert_eq!(server.simulator.stats().total.calls, LINES as u64);
        assert_eq!(upload(&server).await.status(), StatusCode::OK);
        assert_eq!(uploaded(&server).await, 1);
        server.stop().await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// How many bytes a process may write to each file.
fn limit_files(process: u32, bytes: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.arg("--pid").arg(process.to_string());
    let status = prlimit.arg(format!("--fsize={bytes}:unlimited")).status();
    assert!(status.expect("runs prlimit").success());
}

#[tokio::test]
async fn where_sqlite_cannot_write_batches_wait_and_uploads_are_refused() {
    let mut server = start(CONFIG).await;
    server.stop().await;
    // The limit is to make writing fail, and not to end the process by a signal.
    server
        .start_process(Launch::new().after("trap '' XFSZ;"))
        .await;
    let process = server.process_id();
    let midway = Midway::begin(&server).await;

    limit_files(process, "1");
    server.simulator.grant(GRANT);
    for _ in 0..5 {
        is_unavailable(upload(&server).await).await;
    }
    assert_eq!(get(&server, "/v1/batches").await.status(), StatusCode::OK);
    assert_eq!(uploaded(&server).await, 0);
    limit_files(process, "unlimited");

    midway.ends_well(&server).await;
    assert_eq!(server.simulator.stats().total.calls, LINES as u64);
    assert_eq!(upload(&server).await.status(), StatusCode::OK);
    assert_eq!(uploaded(&server).await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let mut server = Server::with("").binary().await;
    server.stop().await;
    server
        .start_process(Launch::new().after("exec 2>/dev/full;"))
        .await;
    let batch = server.run(chat("one", Value::Null), CHAT).await;
    assert_eq!(batch.status, "completed", "{batch}");
    server.stop().await;
}
