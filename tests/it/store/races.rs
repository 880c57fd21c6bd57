//! Two things at once: deletion and creation, flushes and the end of their batch.

use nightshift::internals::domain::batch::EndReason;
use nightshift::internals::domain::id;
use nightshift::internals::store::{Cancel, Engine, NewBatch};

use super::{Fixture, TENANT, flush};
use crate::support::session::Session;
use crate::support::{CHAT, eventually, on, on_every_engine};

async fn a_batch_that_is_created_during_a_deletion_keeps_its_input() {
    let fixture = Fixture::new().await;
    for _ in 0..10 {
        let file = fixture.file(3).await.id;
        let created_at = fixture.clock.now_ms();
        let batch = NewBatch {
            id: id::batch(),
            tenant: TENANT.to_owned(),
            key_id: None,
            endpoint: CHAT.to_owned(),
            input_file_id: file.clone(),
            task: None,
            reuse: None,
            details: false,
            completion_window: "1h".to_owned(),
            output_expires_seconds: 3600,
            metadata: None,
            created_at,
            expires_at: None,
            steering: nightshift::internals::store::Steering::default(),
        };
        let (created, deleted) = tokio::join!(
            fixture.store.create_batch(&batch, None),
            fixture.store.delete_file(TENANT, &file)
        );
        created.expect("creates");
        assert!(deleted.expect("deletes"));
        let purged = fixture.store.purge(i64::MAX).await.expect("purges");
        assert_eq!(purged.removed, 0, "a live batch reads it");
        let found = fixture.store.unvalidated().await.expect("lists");
        let [waiting] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(
            waiting.input.as_ref().map(|input| input.requests),
            Some(3),
            "it was there when the batch was created"
        );
        assert!(
            fixture
                .store
                .accept_batch(waiting, None)
                .await
                .expect("accepts")
        );
        let chunk = fixture.store.chunk(&file, 0).await.expect("reads");
        assert!(chunk.is_some());
        end(&fixture, &batch.id).await;
        let purged = fixture.store.purge(i64::MAX).await.expect("purges");
        assert!(purged.removed >= 1, "nobody needs it any more");
    }
}

/// The statement that notes uses waits for a lock.
const NOTE_WAITS: &str = "
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
       AND wait_event_type = 'Lock' AND query LIKE '%-- note_use_of_keys%'";

/// Two processes that note uses of the same keys would otherwise each have what the other waits
/// for.
#[tokio::test]
async fn the_rows_of_keys_are_locked_in_the_order_of_their_ids() {
    let test = async {
        let fixture = Fixture::new().await;
        let mut other = Session::open(&fixture.url).await;
        let mut looking = Session::open(&fixture.url).await;
        let ids = ["key_c", "key_b", "key_a"];
        for id in ids {
            let insert = format!(
                "INSERT INTO api_keys (id, tenant, name, hash, hint, scopes, created_at)
                 VALUES ('{id}', 'a', 'a', '{id}', 'a', 'api', 0)"
            );
            other.execute(&insert).await;
        }
        let held = "BEGIN; SELECT id FROM api_keys WHERE id = 'key_a' FOR UPDATE";
        other.execute(held).await;
        let uses = ids.map(|id| (id.to_owned(), 1));
        let notes = fixture.store.note_use_of_keys(&uses);
        let looks = async {
            eventually("it waits for the first", async || {
                looking.number(NOTE_WAITS).await == 1
            })
            .await;
            let others = "SELECT count(*) FROM
                (SELECT id FROM api_keys FOR UPDATE SKIP LOCKED) AS free";
            assert_eq!(looking.number(others).await, 2, "it has no other row yet");
            other.execute("COMMIT").await;
        };
        let (noted, ()) = tokio::join!(notes, looks);
        noted.expect("notes");
        let noted = "SELECT count(*) FROM api_keys WHERE last_used_at = 1";
        assert_eq!(looking.number(noted).await, 3);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// Runs a batch's three lines to its end.
async fn end(fixture: &Fixture, batch: &str) {
    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, batch, 1).await.remove(0);
    let last = flush(&unit, &[0, 1, 2], true);
    fixture
        .store
        .flush(&owner, 0, &[&last])
        .await
        .expect("flushes");
    fixture.store.finalize_batch(batch).await.expect("finishes");
}

/// A batch ends while flushes are on their way, by `end`: all are written, and once the end is
/// written each of them says so.
async fn ends_during_flushes(ending: EndReason, end: impl AsyncFn(&Fixture, &str)) {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    let owner = fixture.replica().await;
    let units = fixture.lease(&owner, &batch, 3).await;
    let flushes = async {
        let mut told = Vec::new();
        for (number, unit) in units.iter().enumerate() {
            let flush = flush(unit, &[0, 1], false);
            let reply = fixture.store.flush(&owner, number as i64, &[&flush]).await;
            let reply = reply.expect("flushes");
            assert_eq!(reply.accepted.len(), 1, "what has run counts");
            told.push(reply.states[0].1.end_reason);
        }
        told
    };
    let (told, ()) = tokio::join!(flushes, end(&fixture, &batch));
    assert!(told.is_sorted_by_key(Option::is_some), "{told:?}");
    assert_eq!(fixture.counts(&batch).await, (6, 0));
    let after = flush(&units[0], &[0, 1, 2], false);
    let after = nightshift::internals::store::UnitFlush {
        flush_no: after.flush_no + 1,
        ..after
    };
    let reply = fixture.store.flush(&owner, 0, &[&after]).await;
    assert_eq!(reply.expect("flushes").states[0].1.end_reason, Some(ending));
}

async fn cancelling_during_flushes_loses_none() {
    ends_during_flushes(EndReason::Cancelled, async |fixture, batch| {
        let cancelled = fixture.store.cancel_batch(TENANT, batch).await;
        assert!(matches!(cancelled.expect("answers"), Cancel::Granted(_)));
    })
    .await;
}

async fn a_windows_end_during_flushes_loses_none() {
    ends_during_flushes(EndReason::Expired, async |fixture, _| {
        fixture.clock.advance_ms(2 * 3_600_000);
        assert_eq!(fixture.store.expire_batches().await.expect("ends"), 1);
    })
    .await;
}

on_every_engine![
    a_batch_that_is_created_during_a_deletion_keeps_its_input,
    cancelling_during_flushes_loses_none,
    a_windows_end_during_flushes_loses_none,
];
