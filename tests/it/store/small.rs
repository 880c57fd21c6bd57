//! Batches of one unit: leased by the transaction that makes the unit, and ended by the flush that
//! writes its last line.

use std::collections::HashSet;

use nightshift::internals::domain::batch::Status;
use nightshift::internals::domain::unit::UnitLease;
use nightshift::internals::store::{Cancel, DirectLease, Engine, LeasedUnit, UnitFlush, Verdict};

use super::{Fixture, TENANT, flush};
use crate::support::session::Session;
use crate::support::{engines, eventually, on, on_every_engine};

impl Fixture {
    /// A batch of three lines whose unit was leased directly.
    async fn leased_directly(&self, owner: &str) -> LeasedUnit {
        let id = self.created(3).await;
        let found = self.store.unvalidated().await.expect("lists");
        let batch = found.iter().find(|batch| batch.batch_id == id);
        let verdict = Verdict::Accepted {
            model: Some("sim-small".to_owned()),
        };
        let direct = DirectLease {
            owner,
            batches: &HashSet::from([id.clone()]),
        };
        let judged = [(batch.expect("is there"), &verdict)];
        let settled = self.store.settle_batches(&judged, Some(direct)).await;
        let mut settled = settled.expect("settles");
        assert_eq!((settled.settled, settled.leased.len()), (1, 1));
        assert_eq!(settled.waiting, Vec::<String>::new());
        settled.leased.remove(0)
    }

    async fn status_of(&self, unit: &LeasedUnit) -> Status {
        let batch = self.store.batch(TENANT, &unit.lease.key.batch_id).await;
        batch.expect("finds").expect("is there").state.status
    }
}

/// The flush of all that a batch has.
fn last(unit: &LeasedUnit) -> UnitFlush {
    UnitFlush {
        ends_batch: true,
        ..flush(unit, &[0, 1, 2], true)
    }
}

async fn a_flush_of_all_that_a_batch_has_ends_the_batch() {
    let fixture = Fixture::new().await;
    let owner = fixture.replica().await;
    let units = [
        fixture.leased_directly(&owner).await,
        fixture.leased_directly(&owner).await,
    ];
    let long = fixture.running(1500).await;
    let other = fixture.lease(&owner, &long, 1).await.remove(0);
    let flushes = [last(&units[0]), flush(&other, &[0], false), last(&units[1])];
    let flushes: Vec<&UnitFlush> = flushes.iter().collect();
    let reply = fixture.store.flush(&owner, 0, &flushes).await;
    let accepted: HashSet<UnitLease> = flushes.iter().map(|flush| flush.lease.clone()).collect();
    assert_eq!(reply.expect("flushes").accepted, accepted);
    for unit in &units {
        let id = &unit.lease.key.batch_id;
        let batch = fixture.store.batch(TENANT, id).await.expect("finds");
        let batch = batch.expect("is there");
        assert_eq!(batch.state.status, Status::Completed);
        assert_eq!((batch.counts.completed, batch.counts.open()), (3, 0));
        assert_eq!(batch.usage.total_tokens, 1);
        let row = batch.row;
        let times = [row.in_progress_at, row.finalizing_at, row.completed_at];
        assert!(times[0].is_some() && times.is_sorted(), "{times:?}");
        let output = row.output_file_id.expect("has an output file");
        let file = fixture.store.file(TENANT, &output).await.expect("finds");
        assert_eq!(file.expect("is there").bytes, 6);
        assert_eq!(row.error_file_id, None);
    }
    // Of the batches that ended, nothing else is left; of the other, its units.
    for (table, rows) in [("batch_counts", 1), ("backlog", 1), ("units", 3)] {
        assert_eq!(engines::rows(&fixture.url, table).await, rows, "{table}");
    }
}

async fn a_batch_that_is_being_cancelled_is_not_ended_by_its_flush() {
    let fixture = Fixture::new().await;
    let owner = fixture.replica().await;
    let unit = fixture.leased_directly(&owner).await;
    let id = &unit.lease.key.batch_id;
    let cancelled = fixture.store.cancel_batch(TENANT, id).await;
    assert!(matches!(cancelled.expect("answers"), Cancel::Granted(_)));
    let reply = fixture.store.flush(&owner, 0, &[&last(&unit)]).await;
    assert!(reply.expect("flushes").accepted.contains(&unit.lease));
    assert_eq!(fixture.status_of(&unit).await, Status::Cancelling);
    assert_eq!(fixture.counts(id).await, (3, 0), "no line is lost");
    fixture.store.finalize_batch(id).await.expect("ends");
    assert_eq!(fixture.status_of(&unit).await, Status::Cancelled);
}

async fn a_unit_that_was_lost_keeps_no_other_batch_from_its_end() {
    let fixture = Fixture::new().await;
    let owner = fixture.replica().await;
    let lost = fixture.leased_directly(&owner).await;
    let kept = fixture.leased_directly(&owner).await;
    let (unit, batch) = (&lost.lease.key, &lost.lease.key.batch_id);
    fixture
        .store
        .release_units(&owner, std::slice::from_ref(&lost.lease))
        .await
        .expect("releases");
    let other = fixture.replica().await;
    let again = fixture.lease(&other, batch, 1).await.remove(0);
    assert_eq!(&again.lease.key, unit);
    let both = [last(&lost), last(&kept)];
    let reply = fixture.store.flush(&owner, 0, &[&both[0], &both[1]]).await;
    let accepted = reply.expect("flushes").accepted;
    assert_eq!(accepted, HashSet::from([kept.lease.clone()]));
    assert_eq!(fixture.status_of(&kept).await, Status::Completed);
    assert_eq!(fixture.status_of(&lost).await, Status::InProgress);
    assert_eq!(fixture.counts(batch).await, (0, 0));
    // Who has it now ends it.
    let reply = fixture.store.flush(&other, 0, &[&last(&again)]).await;
    assert!(reply.expect("flushes").accepted.contains(&again.lease));
    assert_eq!(fixture.status_of(&lost).await, Status::Completed);
}

/// The statement that ends whole batches waits for a lock.
const WHOLE_WAITS: &str = "
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
       AND wait_event_type = 'Lock' AND query LIKE '%-- flush_whole_units%'";

/// Who takes a unit over locks the unit, and then the row of the backlog. Otherwise each would have
/// what the other waits for.
#[tokio::test]
async fn a_flush_that_ends_a_batch_locks_its_unit_before_the_backlog() {
    let test = async {
        let fixture = Fixture::new().await;
        let (batch, owner) = (fixture.running(3).await, fixture.replica().await);
        let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
        let mut other = Session::open(&fixture.url).await;
        let mut looking = Session::open(&fixture.url).await;
        let lock = format!("BEGIN; SELECT 1 FROM units WHERE batch_id = '{batch}' FOR UPDATE");
        other.execute(&lock).await;
        let flush = last(&unit);
        let flushes = [&flush];
        let flushed = fixture.store.flush(&owner, 0, &flushes);
        let backlog = async {
            eventually("the flush waits for the unit", async || {
                match looking.number(WHOLE_WAITS).await {
                    1 => Ok(()),
                    waiting => Err(waiting),
                }
            })
            .await;
            let count = format!(
                "SET LOCAL lock_timeout = '2s';
                 UPDATE backlog SET waiting = waiting + 1 WHERE batch_id = '{batch}'"
            );
            assert!(other.try_execute(&count).await, "the row is free");
            other.execute("ROLLBACK").await;
        };
        let (flushed, ()) = tokio::join!(flushed, backlog);
        assert!(flushed.expect("flushes").accepted.contains(&unit.lease));
        assert_eq!(fixture.status_of(&unit).await, Status::Completed);
        assert_eq!(engines::rows(&fixture.url, "backlog").await, 0);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// A batch whose row somebody has locked is written like any other, and ended later.
#[tokio::test]
async fn a_batch_whose_row_is_locked_is_not_ended_by_its_flush() {
    let test = async {
        let fixture = Fixture::new().await;
        let owner = fixture.replica().await;
        let locked = fixture.leased_directly(&owner).await;
        let free = fixture.leased_directly(&owner).await;
        let id = &locked.lease.key.batch_id;
        let mut other = Session::open(&fixture.url).await;
        let lock = format!("BEGIN; SELECT 1 FROM batches WHERE id = '{id}' FOR UPDATE");
        other.execute(&lock).await;
        let both = [last(&locked), last(&free)];
        let reply = fixture.store.flush(&owner, 0, &[&both[0], &both[1]]).await;
        assert_eq!(reply.expect("flushes").accepted.len(), 2);
        assert_eq!(fixture.status_of(&free).await, Status::Completed);
        assert_eq!(fixture.status_of(&locked).await, Status::InProgress);
        assert_eq!(fixture.counts(id).await, (3, 0), "no line is lost");
        other.execute("ROLLBACK").await;
        fixture.store.finalize_batch(id).await.expect("ends");
        assert_eq!(fixture.status_of(&locked).await, Status::Completed);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

async fn a_flush_whose_reply_was_lost_is_known_after_its_batch_has_ended() {
    let fixture = Fixture::new().await;
    let owner = fixture.replica().await;
    let unit = fixture.leased_directly(&owner).await;
    let first = fixture.store.flush(&owner, 0, &[&last(&unit)]).await;
    assert!(first.expect("flushes").accepted.contains(&unit.lease));
    assert_eq!(fixture.status_of(&unit).await, Status::Completed);
    // The next try writes the lines alone.
    let again = flush(&unit, &[0, 1, 2], true);
    let reply = fixture.store.flush(&owner, 0, &[&again]).await;
    assert!(reply.expect("flushes").accepted.contains(&unit.lease));
    assert_eq!(fixture.counts(&unit.lease.key.batch_id).await, (3, 0));
    assert_eq!(engines::rows(&fixture.url, "segments").await, 1);
    // Another replica's answers are not this one's.
    let others = UnitFlush {
        segment: flush(&unit, &[0, 1], true).segment,
        ..again
    };
    let reply = fixture.store.flush(&owner, 0, &[&others]).await;
    assert_eq!(reply.expect("flushes").accepted, HashSet::new());
}

/// A process of an earlier version takes units over that were leased directly, and writes no row of
/// the backlog. If the owner comes back meanwhile, the row says less than none.
async fn units_that_wait_and_are_in_no_backlog_are_put_there() {
    let fixture = Fixture::new().await;
    let owner = fixture.replica().await;
    let units = [
        fixture.leased_directly(&owner).await,
        fixture.leased_directly(&owner).await,
    ];
    let [without, less] = units.each_ref().map(|unit| &unit.lease.key.batch_id);
    let taken = format!(
        "UPDATE units SET state = 'waiting';
         INSERT INTO backlog (batch_id, model_no, model, waiting)
            VALUES ('{less}', 0, 'sim-small', -1)"
    );
    engines::execute(&fixture.url, &taken).await;
    let other = fixture.running(3).await;
    assert_eq!(fixture.waiting(without).await, 0);
    assert_eq!(fixture.store.repair_backlog().await.expect("writes"), 2);
    assert_eq!(fixture.store.repair_backlog().await.expect("writes"), 0);
    for batch in [without, less, &other] {
        assert_eq!(fixture.waiting(batch).await, 1);
    }
    let backlog = fixture.store.backlog(0).await.expect("lists");
    assert!(
        backlog.iter().all(|row| row.model == "sim-small"),
        "{backlog:?}"
    );
    let again = fixture.lease(&owner, without, 1).await.remove(0);
    let reply = fixture.store.flush(&owner, 0, &[&last(&again)]).await;
    assert!(reply.expect("flushes").accepted.contains(&again.lease));
    assert_eq!(fixture.status_of(&again).await, Status::Completed);
}

/// A process of an earlier version leaves them in their slots.
async fn counts_of_ended_batches_move_into_their_rows() {
    let fixture = Fixture::new().await;
    let owner = fixture.replica().await;
    let mut ended = Vec::new();
    for _ in 0..3 {
        let unit = fixture.leased_directly(&owner).await;
        let reply = fixture.store.flush(&owner, 0, &[&last(&unit)]).await;
        reply.expect("flushes");
        ended.push(unit);
    }
    // The last one has counts in both places.
    let left = format!(
        "INSERT INTO batch_counts SELECT id, 0, completed - 1, failed, cancelled, input_tokens,
            cached_tokens, output_tokens, reasoning_tokens, total_tokens FROM batches;
         INSERT INTO batch_counts SELECT id, 1, 1, 0, 0, 0, 0, 0, 0, 0 FROM batches;
         UPDATE batches SET completed = 0, total_tokens = 0;
         DELETE FROM batch_counts WHERE slot = 1 AND batch_id = '{last}';
         UPDATE batches SET completed = 1 WHERE id = '{last}'",
        last = ended[2].lease.key.batch_id
    );
    engines::execute(&fixture.url, &left).await;
    // Those of a batch that runs stay where they are.
    let running = fixture.running(5).await;
    let unit = fixture.lease(&owner, &running, 1).await.remove(0);
    let reply = fixture
        .store
        .flush(&owner, 0, &[&flush(&unit, &[0], false)])
        .await;
    reply.expect("flushes");

    assert_eq!(fixture.store.settle_counts().await.expect("settles"), 3);
    assert_eq!(fixture.store.settle_counts().await.expect("settles"), 0);
    assert_eq!(engines::rows(&fixture.url, "batch_counts").await, 1);
    assert_eq!(fixture.counts(&running).await, (1, 0));
    for unit in &ended {
        let batch = fixture.store.batch(TENANT, &unit.lease.key.batch_id).await;
        let batch = batch.expect("finds").expect("is there");
        assert_eq!((batch.counts.completed, batch.counts.open()), (3, 0));
        assert_eq!(batch.usage.total_tokens, 1);
    }
}

async fn a_unit_that_was_leased_directly_waits_again_when_its_owner_has_died() {
    let fixture = Fixture::new().await;
    let silent = fixture.replica_for(-1).await;
    let unit = fixture.leased_directly(&silent).await;
    let batch = &unit.lease.key.batch_id;
    assert_eq!(fixture.waiting(batch).await, 0);
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 1);
    assert_eq!(fixture.waiting(batch).await, 1);
    let backlog = fixture.store.backlog(0).await.expect("lists");
    assert_eq!(backlog[0].model, "sim-small");

    let owner = fixture.replica().await;
    let again = fixture.lease(&owner, batch, 1).await.remove(0);
    assert_eq!(again.lease.epoch, unit.lease.epoch + 1);
    assert_eq!(fixture.waiting(batch).await, 0);
    let reply = fixture.store.flush(&owner, 0, &[&last(&again)]).await;
    assert!(reply.expect("flushes").accepted.contains(&again.lease));
    assert_eq!(fixture.status_of(&again).await, Status::Completed);
}

on_every_engine![
    a_flush_of_all_that_a_batch_has_ends_the_batch,
    a_batch_that_is_being_cancelled_is_not_ended_by_its_flush,
    a_unit_that_was_lost_keeps_no_other_batch_from_its_end,
    counts_of_ended_batches_move_into_their_rows,
    a_flush_whose_reply_was_lost_is_known_after_its_batch_has_ended,
    units_that_wait_and_are_in_no_backlog_are_put_there,
    a_unit_that_was_leased_directly_waits_again_when_its_owner_has_died,
];
