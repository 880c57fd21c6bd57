//! What a flush of few lines leaves behind: a line more in its unit's row, and no row of its own.

use std::collections::BTreeSet;

use nightshift::internals::codec::segment::Table;
use nightshift::internals::domain::clock::Clock;
use nightshift::internals::store::{Engine, Store};
use serde_json::json;

use crate::support::binary::Launch;
use crate::support::engines::{execute, rows};
use crate::support::session::Session;
use crate::support::{Batch, CHAT, Server, chat, granting, ids, on, on_every_engine};

const LINES: usize = 20;
/// How many are answered before the others.
const FIRST: usize = 4;

/// Units that have a tail.
const TAILS: &str = "units WHERE tail_data IS NOT NULL";

/// A name, so that a process that is started again goes on at once.
const NAMED: &str = "[worker]\nname = \"it\"\nlease = \"1s\"";

/// A batch of one unit, of which some lines are done and the others are in flight.
async fn begun(server: &Server) -> (Batch, Vec<String>) {
    begun_with(server, 50).await
}

/// The same with answers of so many bytes of text.
async fn begun_with(server: &Server, bytes: usize) -> (Batch, Vec<String>) {
    let ids = ids(LINES);
    let line = |id: &String| chat(id, json!({"bytes": bytes}));
    let jsonl: String = ids.iter().map(line).collect();
    let batch = server.create_batch(jsonl, CHAT).await;
    more(server, &batch, FIRST).await;
    (batch, ids)
}

/// Has some more of a batch's lines answered, and waits until that is on disk.
async fn more(server: &Server, batch: &Batch, lines: usize) {
    let before = server.batch(batch).await.done();
    server.simulator.grant(lines);
    let is_done = |batch: &Batch| batch.done() == before + lines;
    server.until(batch, is_done).await;
}

/// Waits for a batch's end, and asserts that it has each line once.
async fn ends(server: &Server, batch: &Batch, ids: &[String]) {
    server.simulator.grant(ids.len());
    let batch = server.ended(batch).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");
    server.exactly_once(&batch, ids).await;
}

/// The number of the flush that wrote each of the lines that are finished, line by line.
async fn flushes(server: &Server, batch: &Batch) -> Vec<i64> {
    let store = Store::open(&server.database, 2, Clock::default()).await;
    let segments = store.expect("opens").segments(&batch.id, 0..=0, 0).await;
    let mut lines = Vec::new();
    for segment in segments.expect("reads") {
        let table = Table::decode(&segment.entries).expect("is a table");
        let of_segment = table.entries.into_iter();
        lines.extend(of_segment.map(|entry| (entry.line, segment.flush_no - i64::from(entry.age))));
    }
    lines.sort_unstable();
    let numbers: BTreeSet<u32> = lines.iter().map(|(line, _)| *line).collect();
    assert_eq!(numbers.len(), lines.len(), "no line is there twice");
    lines.into_iter().map(|(_, flush)| flush).collect()
}

async fn few_lines_a_flush_make_no_row_each() {
    let server = Server::with("").upstream(granting(0)).await;
    let (batch, ids) = begun(&server).await;
    for done in [2 * FIRST, 3 * FIRST] {
        more(&server, &batch, FIRST).await;
        assert_eq!(flushes(&server, &batch).await.len(), done);
        assert_eq!(rows(&server.database, "segments").await, 0);
        assert_eq!(rows(&server.database, TAILS).await, 1);
    }
    ends(&server, &batch, &ids).await;
    assert_eq!(rows(&server.database, "segments").await, 1);
    // Each line still has the number of the flush that wrote it.
    let flushes: BTreeSet<i64> = flushes(&server, &batch).await.into_iter().collect();
    let last = flushes.last().copied().expect("there are some");
    assert!(last >= 4, "{flushes:?}");
    assert_eq!(flushes, (1..=last).collect());
}

async fn what_a_flush_put_to_a_tail_survives_a_kill_and_is_not_sent_again() {
    let mut server = Server::with(NAMED).upstream(granting(0)).binary().await;
    let (batch, ids) = begun(&server).await;
    let before = flushes(&server, &batch).await;
    server.kill().await;
    assert_eq!(rows(&server.database, "segments").await, 0);
    server.start_process(Launch::new()).await;
    ends(&server, &batch, &ids).await;
    let calls = server.simulator.stats().total.calls;
    assert_eq!(calls, (LINES + LINES - FIRST) as u64);
    // The tail went on.
    assert_eq!(rows(&server.database, "segments").await, 1);
    let after = flushes(&server, &batch).await;
    let kept = after.iter().filter(|flush| before.contains(flush));
    assert_eq!(kept.count(), FIRST);
}

#[tokio::test]
async fn another_replica_goes_on_with_a_tail() {
    let test = async {
        let mut server = Server::with("[worker]\nlease = \"1s\"")
            .upstream(granting(0))
            .binary()
            .await;
        let (batch, ids) = begun(&server).await;
        let killed = server.binary_process();
        server.start_process(Launch::new()).await;
        killed.signal("KILL");
        killed.ended().await;
        ends(&server, &batch, &ids).await;
        let calls = server.simulator.stats().total.calls;
        assert_eq!(calls, (LINES + LINES - FIRST) as u64);
        assert_eq!(rows(&server.database, "segments").await, 1);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// Elsewhere each flush would write it in several rows, and delete those before.
#[tokio::test]
async fn a_tail_of_kilobytes_stands_in_the_units_row_on_postgres() {
    let test = async {
        let server = Server::with("").upstream(granting(0)).await;
        let (batch, ids) = begun_with(&server, 700).await;
        more(&server, &batch, 1).await;
        let long = "units WHERE length(tail_data) > 2100";
        assert_eq!(rows(&server.database, long).await, 1);
        let mut session = Session::open(&server.database).await;
        let elsewhere = "SELECT pg_relation_size(reltoastrelid) FROM pg_class
            WHERE oid = 'units'::regclass";
        assert_eq!(session.number(elsewhere).await, 0);
        ends(&server, &batch, &ids).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

async fn a_unit_that_is_given_back_keeps_its_tail() {
    let config = "[worker]\nshutdown_grace = \"100ms\"";
    let mut server = Server::with(config).upstream(granting(0)).await;
    let (batch, ids) = begun(&server).await;
    server.stop().await;
    assert_eq!(rows(&server.database, TAILS).await, 1);
    server.start_again().await;
    ends(&server, &batch, &ids).await;
    assert_eq!(rows(&server.database, "segments").await, 1);
}

async fn a_batch_that_is_cancelled_leaves_no_tail() {
    let config = "[worker]\nsettle_timeout = \"100ms\"";
    let server = Server::with(config).upstream(granting(0)).await;
    let (batch, ids) = begun(&server).await;
    server.cancel(&batch).await;
    let batch = server.ended(&batch).await;
    assert_eq!(
        (batch.status.as_str(), batch.counts.completed),
        ("cancelled", FIRST)
    );
    server.exactly_once(&batch, &ids).await;
    assert_eq!(rows(&server.database, "segments").await, 1);
}

async fn the_tail_of_a_unit_whose_input_is_gone_is_kept() {
    let config = "[worker]\nshutdown_grace = \"100ms\"";
    let mut server = Server::with(config).upstream(granting(0)).await;
    let (batch, _) = begun(&server).await;
    server.stop().await;
    server.leave_broken();
    execute(&server.database, "DELETE FROM chunks").await;
    server.start_again().await;
    let batch = server.ended(&batch).await;
    assert_eq!(
        (batch.counts.completed, batch.counts.failed),
        (FIRST, LINES - FIRST)
    );
    assert_eq!(server.output(&batch).await.len(), FIRST);
}

async fn lines_behind_a_tail_that_is_damaged_are_written_all_the_same() {
    let config = "[worker]\nshutdown_grace = \"100ms\"";
    let mut server = Server::with(config).upstream(granting(0)).await;
    let (batch, _) = begun(&server).await;
    server.stop().await;
    server.leave_broken();
    let damage = "UPDATE units SET tail_data = tail_entries";
    execute(&server.database, damage).await;
    server.start_again().await;
    server.simulator.grant(LINES);
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, LINES, "{batch}");
    let calls = server.simulator.stats().total.calls;
    assert_eq!(
        calls,
        (LINES + LINES - FIRST) as u64,
        "none is sent for ever"
    );
    assert_eq!(rows(&server.database, "segments").await, 2);
}

on_every_engine![
    few_lines_a_flush_make_no_row_each,
    what_a_flush_put_to_a_tail_survives_a_kill_and_is_not_sent_again,
    a_unit_that_is_given_back_keeps_its_tail,
    a_batch_that_is_cancelled_leaves_no_tail,
    the_tail_of_a_unit_whose_input_is_gone_is_kept,
    lines_behind_a_tail_that_is_damaged_are_written_all_the_same,
];
