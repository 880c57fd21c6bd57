//! A unit's tail: finished lines that stand in the unit's row until they are worth a segment.

use nightshift::internals::codec::segment::{self, Encoded, Line, Table};
use nightshift::internals::domain::file::Kind;
use nightshift::internals::store::{LeasedUnit, UnitFlush};

use super::{Fixture, flush};
use crate::support::on_every_engine;
use crate::support::session::Session;

/// A flush of some lines behind a unit's tail, which go to the tail, or at the unit's end to a
/// segment.
fn behind_tail(unit: &LeasedUnit, lines: &[u32], is_last: bool) -> UnitFlush {
    let new = flush(unit, lines, is_last);
    let lines: Vec<Line> = lines.iter().map(|&line| line_of(line)).collect();
    let encoded = match &unit.tail {
        None => segment::encode(&lines),
        Some(tail) => segment::merge(&tail.decode().expect("is whole"), &lines),
    };
    let encoded = Some(encoded.expect("encodes"));
    let (tail, segment) = if is_last {
        (None, encoded)
    } else {
        (encoded, None)
    };
    UnitFlush {
        tail,
        segment,
        ..new
    }
}

fn line_of(line: u32) -> Line {
    Line {
        line,
        kind: Kind::Output,
        bytes: format!("{line}\n").into_bytes(),
    }
}

/// Writes a flush.
async fn write(fixture: &Fixture, owner: &str, flush: &UnitFlush) -> bool {
    let reply = fixture.store.flush(owner, 0, &[flush]).await;
    reply.expect("flushes").accepted.contains(&flush.lease)
}

/// Each finished line of a batch's first chunk with the number of the flush that wrote it.
async fn lines(fixture: &Fixture, batch: &str) -> Vec<(u32, i64)> {
    let segments = fixture.store.segments(batch, 0..=0, 0).await;
    let mut lines = Vec::new();
    for segment in segments.expect("reads") {
        let table = Table::decode(&segment.entries).expect("is a table");
        for entry in table.entries {
            lines.push((entry.line, segment.flush_no - i64::from(entry.age)));
        }
    }
    lines.sort_unstable();
    lines
}

async fn rows(fixture: &Fixture) -> i64 {
    crate::support::engines::rows(&fixture.url, "segments").await
}

async fn a_tail_goes_with_its_unit_from_lease_to_lease() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(5).await;
    let mut written = Vec::new();
    for (number, line) in (1..).zip([3, 1, 4]) {
        let owner = fixture.replica().await;
        let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
        assert_eq!(unit.tail.is_some(), number > 1);
        assert!(write(&fixture, &owner, &behind_tail(&unit, &[line], false)).await);
        written.push((line, number));
        written.sort_unstable();
        assert_eq!(lines(&fixture, &batch).await, written);
        // One is polite, and the others are taken for dead.
        if number == 1 {
            fixture.store.leave(&owner).await.expect("leaves");
        } else {
            let renewed = fixture.store.renew(&owner, -1).await;
            assert!(renewed.expect("answers"));
            assert_eq!(fixture.store.take_over().await.expect("takes over"), 1);
        }
    }
    assert_eq!(rows(&fixture).await, 0);
    let owner = fixture.replica().await;
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    assert!(write(&fixture, &owner, &behind_tail(&unit, &[0, 2], true)).await);
    assert_eq!(
        lines(&fixture, &batch).await,
        [(0, 4), (1, 2), (2, 4), (3, 1), (4, 3)]
    );
    assert_eq!(rows(&fixture).await, 1, "the tail is in it");
}

async fn a_tail_whose_reply_was_lost_is_not_written_twice() {
    let fixture = Fixture::new().await;
    let (batch, owner) = (fixture.running(5).await, fixture.replica().await);
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    let first = behind_tail(&unit, &[0, 1], false);
    for _ in 0..3 {
        assert!(write(&fixture, &owner, &first).await);
        assert_eq!(lines(&fixture, &batch).await, [(0, 1), (1, 1)]);
    }
    assert_eq!(fixture.counts(&batch).await, (2, 0));
}

async fn who_has_lost_a_unit_changes_nothing_of_its_tail() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(5).await;
    let (old, new) = (fixture.replica_for(-1).await, fixture.replica().await);
    let lost = fixture.lease(&old, &batch, 1).await.remove(0);
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 1);
    // Until somebody leases it, it is still its own.
    assert!(write(&fixture, &old, &behind_tail(&lost, &[0], false)).await);
    assert_eq!(fixture.store.take_over().await.expect("takes over"), 1);
    let unit = fixture.lease(&new, &batch, 1).await.remove(0);
    let late = UnitFlush {
        flush_no: 1,
        ..behind_tail(&lost, &[1], false)
    };
    assert!(!write(&fixture, &old, &late).await);
    assert_eq!(lines(&fixture, &batch).await, [(0, 1)]);
    assert!(write(&fixture, &new, &behind_tail(&unit, &[2], false)).await);
    assert_eq!(lines(&fixture, &batch).await, [(0, 1), (2, 2)]);
}

async fn a_tail_that_is_closed_becomes_a_segment_as_it_is() {
    let fixture = Fixture::new().await;
    let (batch, owner) = (fixture.running(5).await, fixture.replica().await);
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    let first = behind_tail(&unit, &[0, 1], false);
    assert!(write(&fixture, &owner, &first).await);
    // Whatever it holds.
    let damaged = Encoded {
        data: vec![1],
        ..first.tail.clone().expect("is the tail")
    };
    let unit = LeasedUnit {
        flush_no: 1,
        ..unit
    };
    let second = UnitFlush {
        closed_tail: Some(damaged.clone()),
        ..flush(&unit, &[2], true)
    };
    assert!(write(&fixture, &owner, &second).await);
    let segments = fixture.store.segments(&batch, 0..=0, usize::MAX).await;
    let mut segments = segments.expect("reads");
    segments.sort_by_key(|segment| segment.flush_no);
    let numbers: Vec<i64> = segments.iter().map(|segment| segment.flush_no).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(segments[0].data, Some(damaged.data));
    assert_eq!(lines(&fixture, &batch).await, [(0, 1), (1, 1), (2, 2)]);
}

async fn no_unit_ends_with_a_tail_whoever_ends_it() {
    let fixture = Fixture::new().await;
    let (batch, owner) = (fixture.running(5).await, fixture.replica().await);
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    assert!(write(&fixture, &owner, &behind_tail(&unit, &[0], false)).await);
    let mut session = Session::open(&fixture.url).await;
    assert!(!session.try_execute("UPDATE units SET state = 'done'").await);
}

on_every_engine![
    a_tail_goes_with_its_unit_from_lease_to_lease,
    a_tail_whose_reply_was_lost_is_not_written_twice,
    who_has_lost_a_unit_changes_nothing_of_its_tail,
    a_tail_that_is_closed_becomes_a_segment_as_it_is,
    no_unit_ends_with_a_tail_whoever_ends_it,
];
