//! Batches of one unit: leased by the transaction that makes the unit, and ended by the flush that
//! writes its last line.

use std::collections::HashSet;

use nightshift::internals::domain::batch::Status;
use nightshift::internals::domain::unit::UnitLease;
use nightshift::internals::store::{Cancel, DirectLease, Error, LeasedUnit, UnitFlush, Verdict};

use super::{Fixture, TENANT, flush};
use crate::support::{engines, on_every_engine};

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

async fn a_flush_that_lost_a_units_lease_ends_no_batch() {
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
    let refused = fixture.store.flush(&owner, 0, &[&both[0], &both[1]]).await;
    assert!(matches!(refused, Err(Error::Stale(_))));
    assert_eq!(fixture.status_of(&lost).await, Status::InProgress);
    assert_eq!(fixture.status_of(&kept).await, Status::InProgress);
    // The next try writes the lines alone.
    let both = both.map(|flush| UnitFlush {
        ends_batch: false,
        ..flush
    });
    let reply = fixture.store.flush(&owner, 0, &[&both[0], &both[1]]).await;
    let accepted = reply.expect("flushes").accepted;
    assert_eq!(accepted, HashSet::from([kept.lease.clone()]));
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
    a_flush_that_lost_a_units_lease_ends_no_batch,
    a_unit_that_was_leased_directly_waits_again_when_its_owner_has_died,
];
