//! Leases: who may write, who may take over, and under which name.

use nightshift::internals::domain::clock::Clock;
use nightshift::internals::domain::id;
use nightshift::internals::domain::unit::UnitLease;
use nightshift::internals::store::{Deaths, Incumbent, LeasedUnit, Replica, Store, UnitFlush};

use super::{Fixture, LEASE_MS, flush};
use crate::support::on_every_engine;

fn lease_of(unit: &LeasedUnit) -> UnitLease {
    unit.lease.clone()
}

/// The lease before this one.
fn before(lease: &UnitLease) -> UnitLease {
    UnitLease {
        key: lease.key.clone(),
        epoch: lease.epoch - 1,
    }
}

fn replica(name: &str, lease_ms: i64) -> Replica {
    Replica {
        token: id::incarnation(),
        name: name.to_owned(),
        lease_ms,
        beat_ms: 100,
    }
}

impl Fixture {
    async fn join(&self, replica: &Replica, dead: Option<&Incumbent>) -> Option<Incumbent> {
        self.store.join(replica, dead).await.expect("answers")
    }

    /// Notes that a line is about to be sent.
    async fn record(&self, owner: &str, unit: &LeasedUnit, line: u32) {
        let recorded = self.store.record_sending(owner, &unit.lease, line);
        assert!(recorded.await.expect("answers"));
    }

    /// Units that an owner leased, and lost to a take-over when it fell silent.
    async fn lost(&self, batch: &str, units: i64) -> (String, Vec<LeasedUnit>) {
        let silent = self.replica_for(-1).await;
        let leased = self.lease(&silent, batch, units).await;
        let taken = self.store.take_over().await.expect("takes over");
        assert_eq!(taken, units as u64);
        (silent, leased)
    }
}

async fn what_was_taken_over_is_written_late_where_nobody_has_leased_it() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    let (silent, units) = fixture.lost(&batch, 2).await;
    let other = fixture.replica().await;
    let leased = fixture.lease(&other, &batch, 1).await.remove(0);
    assert_eq!(leased.lease.key, units[0].lease.key);
    let (theirs, ours) = (
        flush(&units[0], &[0], false),
        flush(&units[1], &[0, 1], false),
    );
    for try_no in 1..=2 {
        let reply = fixture.store.flush(&silent, 0, &[&theirs, &ours]).await;
        let accepted = reply.expect("flushes").accepted;
        assert_eq!(
            accepted,
            [lease_of(&units[1])].into(),
            "try {try_no}: the other one is another's"
        );
        assert_eq!(fixture.counts(&batch).await, (2, 0), "try {try_no}");
    }
    // It is leased again, to whom it was.
    assert_eq!(fixture.waiting(&batch).await, 1);
    let back = fixture.store.leased_units(&silent).await.expect("lists");
    assert_eq!(back, [lease_of(&units[1])]);
}

async fn a_late_flush_that_ends_a_unit_ends_it() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(2).await;
    let (silent, units) = fixture.lost(&batch, 1).await;
    let last = flush(&units[0], &[0, 1], true);
    let reply = fixture.store.flush(&silent, 0, &[&last]).await;
    assert_eq!(reply.expect("flushes").accepted.len(), 1);
    assert_eq!(fixture.waiting(&batch).await, 0);
    let drained = fixture.store.drained().await.expect("lists");
    assert_eq!(drained.len(), 1);
    assert_eq!(drained[0].id, batch);
}

async fn who_comes_back_keeps_what_nobody_has_leased() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    let mut silent = replica("silent", -1);
    assert_eq!(fixture.join(&silent, None).await, None);
    let units = fixture.lease(&silent.token, &batch, 3).await;
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 3);
    let other = fixture.replica().await;
    let theirs = fixture.lease(&other, &batch, 1).await.remove(0);

    assert!(
        !fixture
            .store
            .renew(&silent.token, LEASE_MS)
            .await
            .expect("answers"),
        "a renewal tells it that it was silent for too long"
    );
    silent.lease_ms = LEASE_MS;
    let held: Vec<_> = units.iter().map(lease_of).collect();
    for _ in 0..2 {
        let lost = fixture.store.rejoin(&silent, &held).await.expect("rejoins");
        assert_eq!(lost, [before(&theirs.lease)]);
        assert_eq!(fixture.waiting(&batch).await, 0);
        assert_eq!(fixture.store.take_over().await.expect("looks"), 0);
    }
    let late = [flush(&units[1], &[0], false), flush(&units[2], &[0], false)];
    let reply = fixture
        .store
        .flush(&silent.token, 0, &[&late[0], &late[1]])
        .await;
    assert_eq!(reply.expect("flushes").accepted.len(), 2);
    // It lives: what it was suspected of does not count against its units.
    fixture
        .store
        .release_units(&silent.token, &held)
        .await
        .expect("releases");
    let again = fixture.lease(&other, &batch, 2).await;
    assert!(
        again.iter().all(|unit| unit.deaths.owners == 0),
        "{:?}",
        again
            .iter()
            .map(|unit| unit.deaths.owners)
            .collect::<Vec<_>>()
    );
}

async fn what_was_given_back_is_not_written_any_more() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(3).await;
    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    fixture
        .store
        .release_units(&owner, &[lease_of(&unit)])
        .await
        .expect("releases");
    let late = flush(&unit, &[0], false);
    let reply = fixture.store.flush(&owner, 0, &[&late]).await;
    assert!(reply.expect("answers").accepted.is_empty());
    let lost = fixture
        .store
        .reclaim_units(&owner, &[lease_of(&unit)])
        .await;
    assert_eq!(lost.expect("answers"), [lease_of(&unit)]);
    assert_eq!(fixture.waiting(&batch).await, 1);
}

async fn clocks_twenty_seconds_apart_change_nothing() {
    let fixture = Fixture::new().await;
    let store_at = async |offset: i64| {
        let clock = Clock::default();
        clock.advance_ms(offset);
        Store::open(&fixture.url, 2, clock).await.expect("opens")
    };
    let (fast, slow) = (store_at(20_000).await, store_at(-20_000).await);
    let batch = fixture.running(2000).await;
    // Thirty seconds are less than the clocks are apart.
    let (early, late) = (replica("early", 30_000), replica("late", 30_000));
    assert_eq!(slow.join(&early, None).await.expect("joins"), None);
    assert_eq!(fast.join(&late, None).await.expect("joins"), None);
    let units = [
        slow.lease_units(&early.token, &batch, 0, 1).await,
        fast.lease_units(&late.token, &batch, 0, 1).await,
    ];
    for store in [&fast, &slow] {
        assert_eq!(store.take_over().await.expect("looks"), 0, "both live");
    }
    for (store, owner) in [(&fast, &late), (&slow, &early)] {
        let renewed = store.renew(&owner.token, 30_000).await.expect("renews");
        assert!(renewed);
    }
    let [early_units, late_units] = units.map(|units| units.expect("leases"));
    for (store, owner, units) in [(&slow, &early, early_units), (&fast, &late, late_units)] {
        let flush = flush(&units[0], &[0], false);
        let reply = store.flush(&owner.token, 0, &[&flush]).await;
        assert_eq!(reply.expect("flushes").accepted.len(), 1);
    }
    // One whose lease has run out is taken over by either, whatever it believes the time to be.
    let (silent, ()) = (replica("silent", -1), ());
    assert_eq!(fast.join(&silent, None).await.expect("joins"), None);
    fast.lease_units(&silent.token, &batch, 0, 1)
        .await
        .expect("leases");
    assert_eq!(slow.take_over().await.expect("takes over"), 1);
    for store in [fast, slow] {
        store.close().await;
    }
}

async fn a_name_belongs_to_one_replica_that_lives() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    let first = replica("worker-1", LEASE_MS);
    assert_eq!(fixture.join(&first, None).await, None);
    fixture.lease(&first.token, &batch, 2).await;

    let second = replica("worker-1", LEASE_MS);
    let incumbent = fixture.join(&second, None).await.expect("has the name");
    assert_eq!((&incumbent.token, incumbent.beat_ms), (&first.token, 100));
    // It was taken for dead, and then it moved.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert!(
        fixture
            .store
            .renew(&first.token, LEASE_MS)
            .await
            .expect("renews")
    );
    let moved = fixture.join(&second, Some(&incumbent)).await;
    let moved = moved.expect("still has the name");
    assert_ne!(moved.lease_until, incumbent.lease_until);
    assert_eq!(fixture.waiting(&batch).await, 1);

    // It does not move any more: its units wait at once, although its lease has not run out.
    assert_eq!(fixture.join(&second, Some(&moved)).await, None);
    assert_eq!(fixture.waiting(&batch).await, 3);
    // Should it live after all, it is told to go.
    let refused = fixture.store.rejoin(&first, &[]).await;
    let message = refused.expect_err("is refused").to_string();
    assert!(message.contains("worker-1"), "{message}");
}

async fn a_name_whose_lease_has_run_out_is_free() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    let first = replica("worker-1", -1);
    assert_eq!(fixture.join(&first, None).await, None);
    fixture.lease(&first.token, &batch, 2).await;
    let second = replica("worker-1", LEASE_MS);
    assert_eq!(fixture.join(&second, None).await, None);
    assert_eq!(fixture.waiting(&batch).await, 3);
    let units = fixture.lease(&second.token, &batch, 3).await;
    let takeovers: Vec<i64> = units.iter().map(|unit| unit.deaths.owners).collect();
    assert_eq!(takeovers, [1, 1, 0]);
}

async fn of_many_newcomers_with_one_name_one_gets_in() {
    let fixture = Fixture::new().await;
    for is_first in [true, false] {
        let name = id::incarnation();
        let dead = replica(&name, -1);
        if !is_first {
            assert_eq!(fixture.join(&dead, None).await, None);
        }
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (store, newcomer) = (fixture.store.clone(), replica(&name, LEASE_MS));
            tasks.spawn(async move { store.join(&newcomer, None).await.expect("answers") });
        }
        let refused = tasks.join_all().await;
        let joined = refused.iter().filter(|incumbent| incumbent.is_none());
        assert_eq!(joined.count(), 1, "{refused:?}");
    }
}

/// Leases a batch's only unit as a process that then dies, having recorded a line of it or not.
async fn die_with_it(fixture: &Fixture, batch: &str, recorded: Option<u32>) -> LeasedUnit {
    let owner = fixture.replica_for(-1).await;
    let unit = fixture.lease(&owner, batch, 1).await.remove(0);
    if let Some(line) = recorded {
        fixture.record(&owner, &unit, line).await;
    }
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 1);
    unit
}

/// Leases a batch's only unit as a process that flushes a line of it, and leaves.
async fn flush_of_it(fixture: &Fixture, batch: &str, line: u32, cleared: bool) -> LeasedUnit {
    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, batch, 1).await.remove(0);
    let flush = UnitFlush {
        cleared,
        ..flush(&unit, &[line], false)
    };
    let reply = fixture.store.flush(&owner, 0, &[&flush]).await;
    assert_eq!(reply.expect("flushes").accepted.len(), 1);
    fixture.store.leave(&owner).await.expect("leaves");
    unit
}

/// Whether its requests are sent one at a time.
fn is_isolated(unit: &LeasedUnit) -> bool {
    unit.deaths.at_once() == Some(1)
}

async fn a_unit_runs_alone_after_three_deaths_until_a_flush_clears_it() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(10).await;
    let takeovers = async |recorded| die_with_it(&fixture, &batch, recorded).await.deaths.owners;
    // Who dies first may have sent something; later ones say so before they do.
    assert_eq!(takeovers(None).await, 0);
    assert_eq!(takeovers(None).await, 1);
    assert_eq!(takeovers(Some(9)).await, 1, "nothing had been sent");
    assert_eq!(
        flush_of_it(&fixture, &batch, 0, true).await.deaths.owners,
        2
    );

    for before in 0..3 {
        let unit = die_with_it(&fixture, &batch, (before > 0).then_some(7)).await;
        assert_eq!((unit.deaths.owners, is_isolated(&unit)), (before, false));
    }
    // What runs alone stays so until no line is left that it may be.
    for line in [1, 2] {
        let unit = flush_of_it(&fixture, &batch, line, line == 2).await;
        assert!(is_isolated(&unit));
        assert_eq!((unit.deaths.recorded_line, unit.deaths.alone), (Some(7), 0));
    }
    let unit = flush_of_it(&fixture, &batch, 3, true).await;
    assert!(!is_isolated(&unit));
    assert_eq!(unit.deaths, Deaths::default());
}

async fn deaths_count_against_the_line_that_was_alone() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(10).await;
    for death in 0..3 {
        die_with_it(&fixture, &batch, (death > 0).then_some(9)).await;
    }
    let died = async |line| {
        let unit = die_with_it(&fixture, &batch, line).await;
        (unit.deaths.recorded_line, unit.deaths.alone)
    };
    assert_eq!(died(Some(7)).await, (Some(9), 0), "it was not alone");
    assert_eq!(died(None).await, (Some(7), 1), "and not of line 7 again");
    assert_eq!(died(Some(7)).await, (Some(7), 1));
    assert_eq!(died(Some(3)).await, (Some(7), 2));
    assert_eq!(
        died(None).await,
        (Some(3), 1),
        "another line, another count"
    );

    // Nothing is recorded by who does not own the unit any more.
    let (old, new) = (fixture.replica().await, fixture.replica().await);
    let unit = fixture.lease(&old, &batch, 1).await.remove(0);
    let record = async |owner: &str, lease: &UnitLease| {
        let recorded = fixture.store.record_sending(owner, lease, 1).await;
        recorded.expect("answers")
    };
    assert!(!record(&new, &unit.lease).await);
    assert!(!record(&old, &before(&unit.lease)).await);
    fixture.store.leave(&old).await.expect("leaves");
    assert!(!record(&old, &unit.lease).await);
}

async fn a_process_that_comes_back_has_not_died_of_its_line() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(10).await;
    for death in 0..3 {
        die_with_it(&fixture, &batch, (death > 0).then_some(9)).await;
    }
    let silent = replica("silent", -1);
    assert_eq!(fixture.join(&silent, None).await, None);
    let unit = fixture.lease(&silent.token, &batch, 1).await.remove(0);
    fixture.record(&silent.token, &unit, 7).await;
    let (held, late) = ([lease_of(&unit)], flush(&unit, &[0], false));
    let late = UnitFlush {
        cleared: false,
        ..late
    };
    // Each time it is taken for dead, and comes back in one of the three ways.
    let taken_over = async || fixture.store.take_over().await.expect("takes over");
    assert_eq!(taken_over().await, 1);
    let lost = fixture.store.rejoin(&silent, &held).await;
    assert_eq!(lost.expect("rejoins"), []);
    assert_eq!(taken_over().await, 1);
    let lost = fixture.store.reclaim_units(&silent.token, &held).await;
    assert_eq!(lost.expect("reclaims"), []);
    assert_eq!(taken_over().await, 1);
    let reply = fixture.store.flush(&silent.token, 0, &[&late]).await;
    assert_eq!(reply.expect("flushes").accepted.len(), 1);

    // Then it does not come back.
    assert_eq!(taken_over().await, 1);
    let unit = die_with_it(&fixture, &batch, None).await;
    let deaths = Deaths {
        owners: 4,
        recorded_line: Some(7),
        alone: 1,
    };
    assert_eq!(unit.deaths, deaths);
}

async fn a_flush_and_a_take_over_at_once_lose_and_double_nothing() {
    let fixture = Fixture::new().await;
    for _ in 0..15 {
        let batch = fixture.running(10).await;
        let silent = fixture.replica_for(-1).await;
        let unit = fixture.lease(&silent, &batch, 1).await.remove(0);
        let late: UnitFlush = flush(&unit, &[0, 1, 2], false);
        let other = fixture.replica().await;
        let take = async {
            // It does not wait long for a flush: the next round goes on.
            while let Err(error) = fixture.store.take_over().await {
                assert!(error.is_outage(), "{error}");
            }
            fixture.lease(&other, &batch, 1).await.pop()
        };
        let late = [&late];
        let (reply, taken) = tokio::join!(fixture.store.flush(&silent, 0, &late), take);
        let written = reply.expect("flushes").accepted.len();
        let Some(taken) = taken else {
            // The flush came between the two, and took the unit back.
            assert_eq!(written, 1);
            continue;
        };
        assert_eq!(
            taken.done.count(),
            3 * written as u32,
            "the new owner knows what is written"
        );
        let rest: Vec<u32> = (0..10).filter(|&line| !taken.done.contains(line)).collect();
        let rest = flush(&taken, &rest, true);
        let reply = fixture.store.flush(&other, 0, &[&rest]).await;
        assert_eq!(reply.expect("flushes").accepted.len(), 1);
        assert_eq!(fixture.counts(&batch).await, (10, 0));
    }
}

on_every_engine![
    what_was_taken_over_is_written_late_where_nobody_has_leased_it,
    a_late_flush_that_ends_a_unit_ends_it,
    who_comes_back_keeps_what_nobody_has_leased,
    what_was_given_back_is_not_written_any_more,
    clocks_twenty_seconds_apart_change_nothing,
    a_name_belongs_to_one_replica_that_lives,
    a_name_whose_lease_has_run_out_is_free,
    of_many_newcomers_with_one_name_one_gets_in,
    a_unit_runs_alone_after_three_deaths_until_a_flush_clears_it,
    deaths_count_against_the_line_that_was_alone,
    a_process_that_comes_back_has_not_died_of_its_line,
    a_flush_and_a_take_over_at_once_lose_and_double_nothing,
];
