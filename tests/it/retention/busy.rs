//! Much to remove while there is work: nobody waits for it, and the space is used again.

use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use super::files::{assert_well, delete, id_of, noise, purge};
use super::store_of;
use crate::support::session::Session;
use crate::support::{CHAT, Server, chat, engines, eventually, ids, on, on_every_engine};

const CHUNKS: i64 = 100_000;
const EXPIRED: i64 = 5_000;
/// Chunks removed by one transaction at the most: each may hold 1 MiB.
const AT_ONCE: i64 = 16;
/// Notes how many chunks each transaction removes. SQLite has no name for a transaction.
const NOTE: &str = "
    CREATE TABLE removals (transaction TEXT, removed BIGINT);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO removals SELECT pg_current_xact_id(), count(*) FROM gone;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER DELETE ON chunks REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION note()";

/// A big file was deleted and thousands have expired: the task that removes them goes on for far
/// longer than a batch, and batches run meanwhile.
async fn removal_holds_up_neither_batches_nor_requests() {
    let mut server = Server::start().await;
    let input = server.upload_batch(chat("a", Value::Null)).await;
    server.stop().await;
    let fill = format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {CHUNKS})
         INSERT INTO chunks SELECT file_id, n, 0, n, 1, 1, 0, data FROM chunks, n
         WHERE file_id = '{input}';
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {EXPIRED})
         INSERT INTO files (id, tenant, purpose, filename, bytes, created_at, expires_at, state,
            touched_at)
         SELECT 'file-expired-' || n, tenant, purpose, filename, 0, 0, 1, 'ready', 0
         FROM files, n WHERE id = '{input}';
         UPDATE files SET state = 'deleted', touched_at = 0, is_one_chunk = 0
         WHERE id = '{input}'"
    );
    engines::execute(&server.database, &fill).await;
    let mut session = Session::open(&server.database).await;
    if session.engine() == Engine::Postgres {
        session.execute(NOTE).await;
    }
    server.start_again().await;

    let removed = format!("chunks WHERE file_id = '{input}'");
    let left = server.until_rows(&removed, |left| left <= CHUNKS).await;
    assert!(left > 0, "all went at once");
    let mut ended_meanwhile = 0;
    loop {
        let ids = ids(20);
        let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
        let batch = server.run(jsonl, CHAT).await;
        server.exactly_once(&batch, &ids).await;
        server.get("/v1/batches").await;
        if engines::rows(&server.database, &removed).await == 0 {
            break;
        }
        ended_meanwhile += 1;
    }
    assert!(
        ended_meanwhile > 0,
        "no batch ended while there was something to remove"
    );
    server
        .until_rows("files WHERE state = 'ready' AND expires_at = 1", |left| {
            left == 0
        })
        .await;
    if session.engine() == Engine::Postgres {
        let most = "SELECT CAST(max(removed) AS BIGINT) FROM
            (SELECT sum(removed) AS removed FROM removals GROUP BY transaction) AS transactions";
        let most = session.number(most).await;
        assert!((1..=AT_ONCE).contains(&most), "{most} in one transaction");
    }
}

/// What was removed is room for what comes, wherever an autovacuum keeps up.
#[tokio::test]
async fn postgres_uses_the_space_again() {
    const BYTES: usize = 4 << 20;
    const SIZE: &str =
        "SELECT pg_total_relation_size('chunks') + pg_total_relation_size('segments')";
    let test = async {
        let server = Server::start().await;
        let store = store_of(&server).await;
        let mut session = Session::open(&server.database).await;
        let mut sizes = Vec::new();
        for _ in 0..8 {
            let response = server.upload(noise(BYTES), "noise", "user_data").await;
            let file: Value = response.json().await.expect("is JSON");
            let long = json!({"bytes": 20_000});
            let jsonl: String = ids(40).iter().map(|id| chat(id, long.clone())).collect();
            let batch = server.run(jsonl, CHAT).await;
            sizes.push(session.number(SIZE).await);
            for file in [id_of(&file, "id"), id_of(&batch.json, "output_file_id")] {
                delete(&server, file).await;
            }
            delete(&server, id_of(&batch.json, "input_file_id")).await;
            assert_eq!(purge(&store).await, 3);
            vacuum(&mut session).await;
        }
        println!("bytes of chunks and segments, cycle by cycle: {sizes:?}");
        let (first, most) = (sizes[0], sizes.iter().max().copied());
        assert!(first > BYTES as i64, "{sizes:?}");
        assert!(most <= Some(first * 3 / 2), "{sizes:?}");
        assert_well(&store).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// Vacuums until no dead row is left, as an autovacuum does that keeps up: what somebody's snapshot
/// may still see stays for its next round, and a snapshot sees as far back as the oldest
/// transaction of the whole server, other tests' included.
async fn vacuum(session: &mut Session) {
    const DEAD: &str = "
        SELECT CAST(sum(n_dead_tup) AS BIGINT) FROM pg_stat_all_tables WHERE relid IN (
            SELECT unnest(ARRAY[oid, reltoastrelid]) FROM pg_class
            WHERE oid IN ('chunks'::regclass, 'segments'::regclass))";
    eventually("what was removed is nobody's any more", async || {
        session.execute("VACUUM chunks").await;
        session.execute("VACUUM segments").await;
        // Exact from here to the next deletion: it is what `VACUUM` says it left.
        session.number(DEAD).await == 0
    })
    .await;
}

on_every_engine![removal_holds_up_neither_batches_nor_requests];
