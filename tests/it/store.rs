//! What the store promises the worker, on both engines.

mod clocks;
mod ends;
mod leases;
mod races;
mod small;
mod tails;
mod usage;
mod validating;
mod waiting;
mod wakeups;

use bytes::Bytes;
use nightshift::internals::codec::segment::{self, Line};
use nightshift::internals::domain::batch::{EndReason, Status};
use nightshift::internals::domain::clock::Clock;
use nightshift::internals::domain::endpoint::Endpoints;
use nightshift::internals::domain::file::{Kind, MODELS_MAX, Purpose};
use nightshift::internals::domain::id;
use nightshift::internals::domain::unit::Bitmap;
use nightshift::internals::domain::usage::Usage;
use nightshift::internals::intake::{Contents, Limits};
use nightshift::internals::store::{
    Cancel, CountsDelta, Error, LeasedUnit, NewBatch, NewUpload, PublishedUpload, Replica, Rest,
    Store, StoredFile, UnitFlush,
};
use nightshift::internals::transfer::{Finish, Ingest, UploadBudget};
use tempfile::TempDir;

use crate::support::{CHAT, chat, engines, ids, on_every_engine, request};

const TENANT: &str = "tenant-a";
const LEASE_MS: i64 = 60_000;

struct Fixture {
    store: Store,
    url: String,
    clock: Clock,
    _directory: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("makes a directory");
        let clock = Clock::default();
        let url = engines::database(directory.path()).await;
        let store = Store::open(&url, 4, clock.clone()).await.expect("opens");
        Fixture {
            store,
            url,
            clock,
            _directory: directory,
        }
    }

    async fn file(&self, lines: usize) -> StoredFile {
        let line = |id: &String| chat(id, serde_json::Value::Null);
        self.file_of(ids(lines).iter().map(line)).await
    }

    async fn file_of(&self, lines: impl Iterator<Item = String>) -> StoredFile {
        let limits = Limits {
            max_line_bytes: 1 << 20,
            max_models: MODELS_MAX,
            endpoints: Endpoints::USUAL,
        };
        let budget = UploadBudget::new(limits.max_line_bytes);
        let mut ingest = Ingest::begin(&self.store, TENANT, limits, Contents::Requests, &budget);
        for line in lines {
            ingest.write(Bytes::from(line)).await.expect("writes");
        }
        let finish = Finish {
            purpose: Purpose::Batch,
            filename: "in.jsonl".to_owned(),
            created_at: self.clock.now_ms(),
            expires_at: None,
        };
        ingest.finish(finish, None).await.expect("finishes")
    }

    /// A batch of so many lines, in `validating`.
    async fn created(&self, lines: usize) -> String {
        let file = self.file(lines).await;
        self.created_from(file).await
    }

    async fn created_from(&self, file: StoredFile) -> String {
        let created_at = self.clock.now_ms();
        let batch = NewBatch {
            id: id::batch(),
            tenant: TENANT.to_owned(),
            key_id: None,
            endpoint: CHAT.to_owned(),
            input_file_id: file.id,
            task: None,
            reuse: None,
            details: false,
            completion_window: "1h".to_owned(),
            output_expires_seconds: 3600,
            metadata: None,
            created_at,
            expires_at: Some(created_at + 3_600_000),
            steering: nightshift::internals::store::Steering::default(),
        };
        self.store
            .create_batch(&batch, None)
            .await
            .expect("creates");
        batch.id
    }

    /// A batch of so many lines, in `in_progress`.
    async fn running(&self, lines: usize) -> String {
        let id = self.created(lines).await;
        self.accepted(id).await
    }

    async fn accepted(&self, id: String) -> String {
        let found = self.store.unvalidated().await.expect("lists");
        let batch = found
            .iter()
            .find(|batch| batch.batch_id == id)
            .expect("is there");
        assert!(
            self.store
                .accept_batch(batch, Some("sim-small"))
                .await
                .expect("accepts")
        );
        id
    }

    async fn replica(&self) -> String {
        self.replica_for(LEASE_MS).await
    }

    async fn replica_for(&self, lease_ms: i64) -> String {
        let replica = Replica {
            token: id::incarnation(),
            name: id::incarnation(),
            lease_ms,
            beat_ms: 100,
        };
        let incumbent = self.store.join(&replica, None).await.expect("joins");
        assert_eq!(incumbent, None);
        replica.token
    }

    async fn lease(&self, owner: &str, batch: &str, units: i64) -> Vec<LeasedUnit> {
        self.store
            .lease_units(owner, batch, 0, units)
            .await
            .expect("leases")
    }

    async fn waiting(&self, batch: &str) -> i64 {
        let backlog = self.store.backlog(0).await.expect("lists");
        backlog
            .iter()
            .filter(|row| row.batch_id == batch)
            .map(|row| row.waiting)
            .sum()
    }

    async fn counts(&self, batch: &str) -> (i64, i64) {
        let batch = self
            .store
            .batch(TENANT, batch)
            .await
            .expect("finds")
            .expect("is there");
        (batch.counts.completed, batch.counts.failed)
    }
}

/// A flush of some lines of a unit, by index.
fn flush(unit: &LeasedUnit, lines: &[u32], finished: bool) -> UnitFlush {
    let mut done: Bitmap = unit.done.clone();
    let lines: Vec<Line> = lines
        .iter()
        .map(|&line| {
            done.insert(line);
            Line {
                line,
                kind: Kind::Output,
                bytes: format!("{line}\n").into_bytes(),
            }
        })
        .collect();
    UnitFlush {
        lease: unit.lease.clone(),
        flush_no: unit.flush_no,
        done,
        finished,
        ends_batch: false,
        cleared: true,
        tail: None,
        segment: Some(segment::encode(&lines).expect("encodes")),
        closed_tail: None,
        output_bytes: lines.iter().map(|line| line.bytes.len() as i64).sum(),
        error_bytes: 0,
        counts: CountsDelta {
            completed: lines.len() as i64,
            usage: Usage {
                total_tokens: 1,
                ..Usage::default()
            },
            ..CountsDelta::default()
        },
        usage: Vec::new(),
    }
}

async fn a_flush_whose_reply_was_lost_is_not_written_twice() {
    let fixture = Fixture::new().await;
    let (batch, owner) = (fixture.running(10).await, fixture.replica().await);
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    let first = flush(&unit, &[0, 1, 2], false);
    for try_no in 1..=3 {
        let reply = fixture
            .store
            .flush(&owner, 0, &[&first])
            .await
            .expect("flushes");
        let accepted = reply.accepted.contains(&unit.lease);
        assert!(accepted, "try {try_no} succeeds");
        assert_eq!(
            fixture.counts(&batch).await,
            (3, 0),
            "try {try_no} counts nothing twice"
        );
    }
    let segments = fixture
        .store
        .segments(&batch, unit.lease.key.chunk_no..=unit.lease.key.chunk_no, 0)
        .await
        .expect("reads");
    assert_eq!(segments.len(), 1);
}

async fn a_stale_unit_costs_only_itself() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1200).await;
    let (dead, alive) = (fixture.replica().await, fixture.replica().await);
    let units = fixture.lease(&dead, &batch, 3).await;
    assert_eq!(units.len(), 3);
    // One of the three is given back and leased by somebody else meanwhile.
    let stale = &units[1];
    let back = [stale.lease.clone()];
    fixture
        .store
        .release_units(&dead, &back)
        .await
        .expect("releases");
    let taken = fixture.lease(&alive, &batch, 1).await.remove(0);
    assert_eq!(taken.lease.key, stale.lease.key);
    assert_eq!(taken.lease.epoch, stale.lease.epoch + 1);

    let flushes: Vec<UnitFlush> = units
        .iter()
        .map(|unit| flush(unit, &[0, 1], false))
        .collect();
    let flushes: Vec<&UnitFlush> = flushes.iter().collect();
    let reply = fixture
        .store
        .flush(&dead, 0, &flushes)
        .await
        .expect("flushes");
    assert_eq!(reply.accepted.len(), 2);
    assert!(!reply.accepted.contains(&stale.lease));
    assert_eq!(
        fixture.counts(&batch).await,
        (4, 0),
        "nothing of the stale unit is counted"
    );
    let written = fixture
        .store
        .segments(
            &batch,
            stale.lease.key.chunk_no..=stale.lease.key.chunk_no,
            0,
        )
        .await
        .expect("reads");
    assert!(written.is_empty(), "nothing of the stale unit is written");
    // Who took it over starts from what the store knows: nothing.
    assert_eq!(taken.done.count(), 0);
}

async fn two_leases_of_one_unit_in_one_flush_are_told_apart() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(5).await;
    let owner = fixture.replica().await;
    let old = fixture.lease(&owner, &batch, 1).await.remove(0);
    fixture
        .store
        .release_units(&owner, std::slice::from_ref(&old.lease))
        .await
        .expect("releases");
    let new = fixture.lease(&owner, &batch, 1).await.remove(0);
    let (stale, fresh) = (flush(&old, &[0, 1], false), flush(&new, &[2], false));
    let reply = fixture
        .store
        .flush(&owner, 0, &[&stale, &fresh])
        .await
        .expect("flushes");
    assert!(reply.accepted.contains(&new.lease));
    assert!(!reply.accepted.contains(&old.lease));
    assert_eq!(fixture.counts(&batch).await, (1, 0));
}

async fn what_is_done_is_known_to_who_leases_next() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(20).await;
    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    fixture
        .store
        .flush(&owner, 0, &[&flush(&unit, &[3, 7], false)])
        .await
        .expect("flushes");
    fixture.store.leave(&owner).await.expect("leaves");
    assert_eq!(
        fixture.waiting(&batch).await,
        1,
        "its units wait again at once"
    );
    let heir = fixture.replica().await;
    let unit = fixture.lease(&heir, &batch, 1).await.remove(0);
    assert!(unit.done.contains(3) && unit.done.contains(7) && unit.done.count() == 2);
    assert_eq!(
        (unit.flush_no, unit.deaths.owners),
        (1, 0),
        "a polite hand-back is no take-over"
    );
    let late = fixture
        .store
        .flush(&owner, 0, &[&flush(&unit, &[8], false)])
        .await;
    assert!(
        late.expect("answers").accepted.is_empty(),
        "the dead write nothing any more"
    );
}

async fn units_of_a_lapsed_lease_are_taken_over_and_others_are_not() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    // A lease that is over as soon as it is made.
    let (lapsed, alive) = (fixture.replica_for(-1).await, fixture.replica().await);
    assert_eq!(fixture.lease(&lapsed, &batch, 2).await.len(), 2);
    assert_eq!(fixture.lease(&alive, &batch, 1).await.len(), 1);
    assert_eq!(fixture.waiting(&batch).await, 0);
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 2);
    assert_eq!(fixture.waiting(&batch).await, 2);
    assert!(
        !fixture
            .store
            .renew(&lapsed, LEASE_MS)
            .await
            .expect("answers"),
        "it is told"
    );
    assert!(
        fixture
            .store
            .renew(&alive, LEASE_MS)
            .await
            .expect("answers")
    );
    assert_eq!(
        fixture
            .store
            .leased_units(&alive)
            .await
            .expect("lists")
            .len(),
        1
    );
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 0);
}

async fn no_unit_is_leased_twice_however_many_ask() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(6000).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (store, batch, owner) = (
            fixture.store.clone(),
            batch.clone(),
            fixture.replica().await,
        );
        tasks.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let units = store
                    .lease_units(&owner, &batch, 0, 2)
                    .await
                    .expect("leases");
                if units.is_empty() {
                    return mine;
                }
                mine.extend(units.into_iter().map(|unit| unit.lease.key.chunk_no));
            }
        });
    }
    let mut chunks: Vec<i64> = tasks.join_all().await.into_iter().flatten().collect();
    chunks.sort_unstable();
    let count = chunks.len();
    chunks.dedup();
    assert_eq!(chunks.len(), count, "none is there twice");
    assert_eq!(count, 12);
    assert_eq!(fixture.waiting(&batch).await, 0);
}

async fn a_batch_is_finished_once_and_only_when_nothing_is_open() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(3).await;
    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    assert!(fixture.store.drained().await.expect("lists").is_empty());
    fixture
        .store
        .finalize_batch(&batch)
        .await
        .expect("does nothing");
    let status = |batch: &nightshift::internals::store::Batch| batch.state.status;
    let found = fixture
        .store
        .batch(TENANT, &batch)
        .await
        .expect("finds")
        .expect("is there");
    assert_eq!(status(&found), Status::InProgress, "a unit is open");

    fixture
        .store
        .flush(&owner, 0, &[&flush(&unit, &[0, 1, 2], true)])
        .await
        .expect("flushes");
    let drained = fixture.store.drained().await.expect("lists");
    assert_eq!(drained.len(), 1);
    assert_eq!((&*drained[0].id, drained[0].total), (&*batch, 3));
    for _ in 0..3 {
        fixture
            .store
            .finalize_batch(&batch)
            .await
            .expect("finishes");
    }
    let found = fixture
        .store
        .batch(TENANT, &batch)
        .await
        .expect("finds")
        .expect("is there");
    assert_eq!(status(&found), Status::Completed);
    assert_eq!(found.usage.total_tokens, 1);
    let output = found.row.output_file_id.expect("has an output");
    assert!(
        found.row.error_file_id.is_none(),
        "no file is made for nothing"
    );
    let file = fixture
        .store
        .file(TENANT, &output)
        .await
        .expect("finds")
        .expect("is there");
    assert_eq!(file.bytes, 6);
    assert!(fixture.store.backlog(0).await.expect("lists").is_empty());
    let late = fixture
        .store
        .flush(&owner, 0, &[&flush(&unit, &[0], true)])
        .await;
    assert!(
        late.expect("answers").accepted.is_empty(),
        "its units are gone"
    );
}

async fn cancelling_goes_through_its_states() {
    let fixture = Fixture::new().await;
    let waiting = fixture.created(5).await;
    let cancelled = fixture
        .store
        .cancel_batch(TENANT, &waiting)
        .await
        .expect("answers");
    let Cancel::Granted(batch) = cancelled else {
        panic!("{cancelled:?}")
    };
    assert_eq!(
        batch.state.status,
        Status::Cancelled,
        "nothing has run: there is nothing to settle"
    );
    assert!(batch.row.cancelling_at.is_some() && batch.row.cancelled_at.is_some());

    let running = fixture.running(5).await;
    let foreign = fixture
        .store
        .cancel_batch("tenant-b", &running)
        .await
        .expect("answers");
    assert!(
        matches!(foreign, Cancel::NotFound),
        "another tenant's batch is not there"
    );
    let cancelled = fixture
        .store
        .cancel_batch(TENANT, &running)
        .await
        .expect("answers");
    let Cancel::Granted(batch) = cancelled else {
        panic!("{cancelled:?}")
    };
    assert_eq!(batch.state.status, Status::Cancelling);
    assert_eq!(batch.state.end_reason, Some(EndReason::Cancelled));
    // The window may end meanwhile: it is cancelled all the same.
    fixture.clock.advance_ms(2 * 3_600_000);
    assert_eq!(fixture.store.expire_batches().await.expect("looks"), 0);
}

async fn a_swept_upload_cannot_be_published() {
    let fixture = Fixture::new().await;
    let upload = NewUpload {
        file_id: id::file(),
        tenant: TENANT.to_owned(),
        max_stored: None,
    };
    let begun = fixture.store.begin_upload(&upload, &[]).await;
    begun.expect("begins");
    let later = fixture.clock.now_ms() + 1;
    assert_eq!(fixture.store.sweep_uploads(later).await.expect("sweeps"), 1);
    let published = PublishedUpload {
        purpose: Purpose::Batch,
        filename: "in.jsonl".to_owned(),
        bytes: 0,
        created_at: later,
        expires_at: None,
        requests: 0,
        findings: None,
        models: Vec::new(),
    };
    let rest = Rest {
        has_begun: true,
        pieces: Vec::new(),
    };
    let publish = fixture
        .store
        .publish_upload(&upload, &published, &rest, None);
    assert!(matches!(publish.await, Err(Error::Stale(_))));
    assert_eq!(
        fixture.store.sweep_uploads(i64::MAX).await.expect("sweeps"),
        0
    );
}

async fn what_is_deleted_is_purged_but_not_under_a_running_batch() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(3).await;
    let found = fixture
        .store
        .batch(TENANT, &batch)
        .await
        .expect("finds")
        .expect("is there");
    let file = found.row.input_file_id;
    assert!(
        fixture
            .store
            .delete_file(TENANT, &file)
            .await
            .expect("deletes")
    );
    assert!(
        !fixture
            .store
            .delete_file(TENANT, &file)
            .await
            .expect("answers"),
        "it is gone"
    );
    let purged = fixture.store.purge(i64::MAX).await.expect("purges");
    assert_eq!(purged.removed, 0, "its batch still reads it");
    assert!(
        fixture
            .store
            .chunk(&file, 0)
            .await
            .expect("reads")
            .is_some()
    );

    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    fixture
        .store
        .flush(&owner, 0, &[&flush(&unit, &[0, 1, 2], true)])
        .await
        .expect("flushes");
    fixture
        .store
        .finalize_batch(&batch)
        .await
        .expect("finishes");
    assert_eq!(
        fixture.store.purge(i64::MAX).await.expect("purges").removed,
        1
    );
    assert!(
        fixture
            .store
            .chunk(&file, 0)
            .await
            .expect("reads")
            .is_none()
    );
    let position = fixture
        .store
        .file_position(TENANT, &file)
        .await
        .expect("finds");
    assert!(position.is_some(), "its place in the list stays");

    // The output expires, and its bytes go.
    fixture.clock.advance_ms(2 * 3_600_000);
    assert_eq!(fixture.store.purge(0).await.expect("purges").expired, 1);
    assert_eq!(
        fixture.store.purge(i64::MAX).await.expect("purges").removed,
        1
    );
    assert!(
        fixture
            .store
            .segments(&batch, 0..=0, 0)
            .await
            .expect("reads")
            .is_empty()
    );
}

/// Who names many models makes nobody else wait for a long list; and none of them is left out for
/// good.
async fn of_a_batch_with_many_models_a_few_are_listed_in_turn() {
    const MODELS: usize = 100;
    let fixture = Fixture::new().await;
    let lines = (0..MODELS).map(|number| {
        let body = serde_json::json!({"model": format!("model-{number}"), "messages": []});
        request(&format!("line-{number}"), body)
    });
    let file = fixture.file_of(lines).await;
    let many = fixture.created_from(file).await;
    fixture.accepted(many.clone()).await;
    let one = fixture.running(10).await;
    let mut seen = std::collections::BTreeSet::new();
    for turn in 0..60 {
        let backlog = fixture.store.backlog(turn).await.expect("lists");
        assert_eq!(backlog.iter().filter(|row| row.batch_id == one).count(), 1);
        let of_many = backlog.iter().filter(|row| row.batch_id == many);
        let models: Vec<String> = of_many.map(|row| row.model.clone()).collect();
        assert_eq!(models.len(), 16);
        seen.extend(models);
    }
    assert_eq!(seen.len(), MODELS);
}

/// However many models there are, and whichever of them wait: each is listed after about as many
/// turns as there are lists.
async fn every_model_of_a_batch_is_listed_in_its_turn() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1).await;
    let waiting: [fn(i64) -> bool; 5] = [
        |model_no| [5, 1008].contains(&(model_no % 1009)),
        |model_no| model_no % 101 == 0,
        |model_no| model_no % 64 == 7,
        |model_no| model_no < 20,
        |model_no| model_no >= 9_900,
    ];
    for (case, waits) in waiting.into_iter().enumerate() {
        engines::execute(&fixture.url, "DELETE FROM backlog").await;
        let rows: Vec<String> = (0..MODELS_MAX as i64)
            .filter(|model_no| waits(*model_no))
            .map(|model_no| format!("('{batch}', {model_no}, 'a model', 1)"))
            .collect();
        let models = rows.len();
        let insert = format!(
            "INSERT INTO backlog (batch_id, model_no, model, waiting) VALUES {}",
            rows.join(", ")
        );
        engines::execute(&fixture.url, &insert).await;
        let mut seen = std::collections::BTreeSet::new();
        let turns = 2 * models.div_ceil(16) + 2;
        for turn in 0..turns as i64 {
            let backlog = fixture.store.backlog(turn).await.expect("lists");
            assert_eq!(backlog.len(), 16);
            seen.extend(backlog.iter().map(|row| row.model_no));
        }
        assert_eq!(seen.len(), models, "case {case}");
    }
}

async fn a_batch_runs_whose_file_names_as_many_models_as_a_file_may() {
    let fixture = Fixture::new().await;
    let lines = (0..MODELS_MAX).map(|number| {
        let body = serde_json::json!({"model": format!("model-{number}"), "messages": []});
        request(&format!("line-{number}"), body)
    });
    let file = fixture.file_of(lines).await;
    let batch = fixture.created_from(file).await;
    fixture.accepted(batch.clone()).await;
    assert_eq!(engines::rows(&fixture.url, "backlog").await, 10_000);
}

on_every_engine![
    every_model_of_a_batch_is_listed_in_its_turn,
    a_batch_runs_whose_file_names_as_many_models_as_a_file_may,
    of_a_batch_with_many_models_a_few_are_listed_in_turn,
    a_flush_whose_reply_was_lost_is_not_written_twice,
    a_stale_unit_costs_only_itself,
    two_leases_of_one_unit_in_one_flush_are_told_apart,
    what_is_done_is_known_to_who_leases_next,
    units_of_a_lapsed_lease_are_taken_over_and_others_are_not,
    no_unit_is_leased_twice_however_many_ask,
    a_batch_is_finished_once_and_only_when_nothing_is_open,
    cancelling_goes_through_its_states,
    a_swept_upload_cannot_be_published,
    what_is_deleted_is_purged_but_not_under_a_running_batch,
];
