//! Files that are deleted or expire: what their batches make of it, and what is left.

use std::collections::BTreeSet;

use nightshift::internals::domain::id;
use nightshift::internals::store::{Engine, NewBatch, Purged, Store};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{audit, store_of};
use crate::support::{CHAT, Server, chat, engines, granting, ids, on_every_engine};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Lines of which one in twenty fails.
fn lines(count: usize) -> String {
    let line = |(number, id): (usize, &String)| {
        let fault = json!({"status": 400});
        chat(id, if number % 20 == 0 { fault } else { Value::Null })
    };
    ids(count).iter().enumerate().map(line).collect()
}

async fn status(server: &Server, path: &str) -> u16 {
    let response = server.client().get(server.url(path)).send().await;
    response.expect("answers").status().as_u16()
}

pub(super) async fn delete(server: &Server, id: &str) {
    let url = server.url(&format!("/v1/files/{id}"));
    let response = server.client().delete(url).send().await.expect("answers");
    assert_eq!(response.status(), 200);
}

/// That a file is not there, as far as users can tell.
async fn assert_gone(server: &Server, id: &str) {
    assert_eq!(status(server, &format!("/v1/files/{id}")).await, 404);
    assert_eq!(
        status(server, &format!("/v1/files/{id}/content")).await,
        404
    );
    let listed = server.get("/v1/files").await;
    let is_listed = listed["data"]
        .as_array()
        .expect("lists")
        .iter()
        .any(|file| file["id"] == id);
    assert!(!is_listed);
}

pub(super) fn id_of<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().expect("is text")
}

/// Removes all that is hidden; says how many files that were.
pub(super) async fn purge(store: &Store) -> u64 {
    let purged = store.purge(i64::MAX).await.expect("purges");
    purged.removed
}

pub(super) async fn assert_well(store: &Store) {
    let found = audit(store).await;
    assert!(found.faults.is_empty(), "{found:#?}");
}

async fn an_input_that_is_deleted_while_its_batch_is_validating_is_run_all_the_same() {
    let mut server = Server::start().await;
    let input = server.upload_batch(lines(40)).await;
    server.stop().await;
    // Nobody validates meanwhile.
    let store = store_of(&server).await;
    let created_at = server.clock.now_ms();
    let batch = NewBatch {
        id: id::batch(),
        tenant: "tenant-a".to_owned(),
        key_id: None,
        endpoint: CHAT.to_owned(),
        input_file_id: input.clone(),
        task: None,
        reuse: None,
        details: false,
        completion_window: "1h".to_owned(),
        output_expires_seconds: 3600,
        metadata: None,
        created_at,
        expires_at: Some(created_at + HOUR_MS),
        steering: nightshift::internals::store::Steering::default(),
    };
    store.create_batch(&batch, None).await.expect("creates");
    assert!(
        store
            .delete_file("tenant-a", &input)
            .await
            .expect("deletes")
    );
    assert_eq!(purge(&store).await, 0, "a batch is to read it");

    server.start_again().await;
    assert_gone(&server, &input).await;
    let batch = server.ended(batch.id).await;
    assert_eq!(batch.status, "completed", "{batch}");
    assert_eq!(batch["input_file_id"], input);
    server.exactly_once(&batch, &ids(40)).await;
    assert_eq!(purge(&store).await, 1);
    assert_well(&store).await;
}

async fn an_input_that_is_deleted_while_its_batch_runs_is_read_to_the_end() {
    let server = Server::with("").upstream(granting(600)).await;
    let store = store_of(&server).await;
    let jsonl = lines(600) + &chat("last", Value::Null);
    let batch = server.create_batch(jsonl, CHAT).await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    let input = &batch.input_file_id;
    delete(&server, input).await;
    assert_gone(&server, input).await;
    assert_eq!(purge(&store).await, 0, "a batch reads it");
    server.simulator.grant(1);

    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "completed", "{batch}");
    let mut ids = ids(600);
    ids.push("last".to_owned());
    server.exactly_once(&batch, &ids).await;
    // Now it goes, and what came of it stays.
    assert_eq!(purge(&store).await, 1);
    assert_eq!(engines::rows(&server.database, "chunks").await, 0);
    server.exactly_once(&batch, &ids).await;
    assert_well(&store).await;
}

async fn many_small_files_are_removed_at_once_but_for_one_that_a_batch_reads() {
    let server = Server::with("").upstream(granting(0)).await;
    let store = store_of(&server).await;
    let batch = server.create_batch(lines(3), CHAT).await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    delete(&server, &batch.input_file_id).await;
    for _ in 0..50 {
        let id = server.upload_batch(lines(2)).await;
        delete(&server, &id).await;
    }
    assert_eq!(purge(&store).await, 50);
    assert_eq!(engines::rows(&server.database, "chunks").await, 1);
    assert_eq!(purge(&store).await, 0, "a batch reads it");
    server.simulator.grant(3);
    let batch = server.ended(&batch).await;
    server.exactly_once(&batch, &ids(3)).await;
    assert_eq!(purge(&store).await, 1);
    assert_eq!(engines::rows(&server.database, "chunks").await, 0);
    assert_well(&store).await;
}

async fn one_of_a_batchs_two_files_goes_without_the_other() {
    let server = Server::start().await;
    let store = store_of(&server).await;
    // The first segments have no line that fails, so that they can go with the output.
    let jsonl: String = ids(600)
        .iter()
        .map(|id| {
            chat(
                id,
                if id == "line-599" {
                    json!({"status": 400})
                } else {
                    Value::Null
                },
            )
        })
        .collect();
    let batch = server.run(jsonl, CHAT).await;
    let errors = server.content(id_of(&batch.json, "error_file_id")).await;
    let before = engines::rows(&server.database, "segments").await;
    assert!(before > 1, "there are several segments");

    let output = id_of(&batch.json, "output_file_id");
    delete(&server, output).await;
    assert_gone(&server, output).await;
    assert_eq!(
        server.content(id_of(&batch.json, "error_file_id")).await,
        errors
    );
    assert_eq!(purge(&store).await, 1);
    assert_eq!(
        server.content(id_of(&batch.json, "error_file_id")).await,
        errors
    );
    let after = engines::rows(&server.database, "segments").await;
    assert_eq!(
        after, 1,
        "only what the error file needs is left of {before}"
    );
    assert_well(&store).await;
    assert_eq!(
        server.batch(&batch).await,
        batch,
        "the batch stays as it was"
    );

    delete(&server, id_of(&batch.json, "error_file_id")).await;
    assert_eq!(purge(&store).await, 1);
    assert_eq!(engines::rows(&server.database, "segments").await, 0);
    assert_well(&store).await;

    // And the other way round.
    let batch = server.run(lines(600), CHAT).await;
    let output = server.content(id_of(&batch.json, "output_file_id")).await;
    delete(&server, id_of(&batch.json, "error_file_id")).await;
    assert_eq!(purge(&store).await, 1);
    assert_eq!(
        server.content(id_of(&batch.json, "output_file_id")).await,
        output
    );
    assert_well(&store).await;
}

async fn each_file_expires_by_itself() {
    let config = "[retention]\ninput_files = \"2d\"\noutput_files = \"3d\"\nother_files = \"4d\"";
    let server = Server::with(config).await;
    let store = store_of(&server).await;
    let batch = server.run(lines(40), CHAT).await;
    let other: Value = server
        .upload(b"x".to_vec(), "x", "user_data")
        .await
        .json()
        .await
        .expect("is JSON");
    let (input, output, error, other) = (
        id_of(&batch.json, "input_file_id"),
        id_of(&batch.json, "output_file_id"),
        id_of(&batch.json, "error_file_id"),
        id_of(&other, "id"),
    );
    for (file, days) in [(input, 2), (output, 3), (error, 3), (other, 4)] {
        let file = server.get(&format!("/v1/files/{file}")).await;
        let kept = file["expires_at"].as_i64().expect("expires")
            - file["created_at"].as_i64().expect("has one");
        assert_eq!(kept, days * 24 * 3600, "{file}");
    }
    for expired in [&[input][..], &[output, error], &[other]] {
        server.clock.advance_ms(if expired[0] == input {
            2 * DAY_MS
        } else {
            DAY_MS
        });
        for file in expired {
            assert_gone(&server, file).await;
        }
        // Hidden first, removed later: whoever reads may finish.
        let Purged {
            expired: hidden,
            removed,
        } = store.purge(0).await.expect("purges");
        assert_eq!((hidden, removed), (expired.len() as u64, 0));
        assert_eq!(purge(&store).await, expired.len() as u64);
        assert_well(&store).await;
    }
    for table in ["chunks", "chunk_models", "segments", "units", "backlog"] {
        assert_eq!(engines::rows(&server.database, table).await, 0, "{table}");
    }
    assert_eq!(
        server.batch(&batch).await,
        batch,
        "the batch stays as it was"
    );
}

async fn never_is_never_but_for_who_asks() {
    let config = "[retention]\ninput_files = \"never\"\noutput_files = \"never\"";
    let server = Server::with(config).await;
    let input = server.upload_batch(lines(21)).await;
    let body = json!({
        "input_file_id": input, "endpoint": CHAT, "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    });
    let asked = server.create(&body).await;
    let asked = server.ended(&asked).await;
    let silent = server.run(lines(21), CHAT).await;
    for key in ["input_file_id", "output_file_id", "error_file_id"] {
        let file = server
            .get(&format!("/v1/files/{}", id_of(&silent.json, key)))
            .await;
        assert_eq!(file["expires_at"], Value::Null, "{file}");
    }
    server.clock.advance_ms(3650 * DAY_MS);
    for key in ["output_file_id", "error_file_id"] {
        assert_gone(&server, id_of(&asked.json, key)).await;
        server.content(id_of(&silent.json, key)).await;
    }
    server.content(id_of(&silent.json, "input_file_id")).await;
}

async fn processes_that_remove_the_same_leave_nothing() {
    let server = Server::start().await;
    let stores = [
        store_of(&server).await,
        store_of(&server).await,
        store_of(&server).await,
    ];
    let batch = server.run(lines(2000), CHAT).await;
    for key in ["output_file_id", "error_file_id"] {
        delete(&server, id_of(&batch.json, key)).await;
    }
    for _ in 0..3 {
        let input = server.upload_batch(lines(1)).await;
        delete(&server, &input).await;
        // Many more chunks than go at once.
        let more = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)
             INSERT INTO chunks SELECT file_id, n, 0, n, 1, 1, 0, data FROM chunks, n
             WHERE file_id = '{input}'"
        );
        engines::execute(&server.database, &more).await;
        let mut purges = JoinSet::new();
        for store in stores.clone() {
            purges.spawn(async move { store.purge(i64::MAX).await });
        }
        // All but the first to be through die at once: what it has called removed is.
        let first = purges.join_next().await.expect("there are three");
        first.expect("does not panic").expect("purges");
        purges.shutdown().await;
        assert_well(&stores[0]).await;
    }
    assert_eq!(engines::rows(&server.database, "segments").await, 0);
}

/// Bytes that nothing compresses.
pub(super) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect()
}

async fn space_comes_back() {
    const BYTES: usize = 24 << 20;
    let mut server = Server::start().await;
    let store = store_of(&server).await;
    let kept = server.run(lines(40), CHAT).await;
    let mut files = BTreeSet::new();
    for _ in 0..2 {
        let response = server.upload(noise(BYTES), "noise", "user_data").await;
        let file: Value = response.json().await.expect("is JSON");
        files.insert(id_of(&file, "id").to_owned());
    }
    let full = audit(&store).await.audited;
    assert!(full.database_bytes > 2 * BYTES as u64, "{full:?}");
    for file in &files {
        delete(&server, file).await;
    }
    assert_eq!(purge(&store).await, 2);
    store.give_back_space().await.expect("gives back");
    let found = audit(&store).await;
    assert!(found.faults.is_empty(), "{found:?}");
    assert_eq!(found.audited.files, 1, "the one that is kept");
    assert!(
        found.audited.file_bytes_stored < BYTES as u64 / 4,
        "{found:?}"
    );
    server.content(id_of(&kept.json, "output_file_id")).await;
    server.stop().await;
    store.close().await;
    if store.engine() == Engine::Sqlite {
        let pages = found.audited.database_bytes;
        assert!(pages < BYTES as u64 / 4, "{found:?}");
        assert!(found.audited.free_bytes < BYTES as u64 / 4, "{found:?}");
        let path = server.database.trim_start_matches("sqlite://");
        let size = std::fs::metadata(path).expect("is there").len();
        assert_eq!(size, pages, "the file itself has shrunk");
    }
}

on_every_engine![
    an_input_that_is_deleted_while_its_batch_is_validating_is_run_all_the_same,
    an_input_that_is_deleted_while_its_batch_runs_is_read_to_the_end,
    many_small_files_are_removed_at_once_but_for_one_that_a_batch_reads,
    one_of_a_batchs_two_files_goes_without_the_other,
    each_file_expires_by_itself,
    never_is_never_but_for_who_asks,
    processes_that_remove_the_same_leave_nothing,
    space_comes_back,
];
