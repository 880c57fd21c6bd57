//! The database goes away for longer than leases last, with answers on their way.

use nightshift::store::Engine;
use serde_json::{Value, json};

use super::until;
use crate::support::proxy::Proxy;
use crate::support::session::Session;
use crate::support::{CHAT, Server, chat, ids, on, on_every_engine};

const LINES: usize = 32;

/// A batch whose lines are all in flight at once.
async fn in_flight(server: &Server, latency_ms: u64) -> Value {
    let jsonl: String = ids(LINES)
        .iter()
        .map(|id| chat(id, json!({"latency_ms": latency_ms})))
        .collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    until("all lines are in flight", async || {
        server.simulator.stats().total.in_flight == LINES as u64
    })
    .await;
    batch
}

async fn all_are_answered(server: &Server) {
    until("all lines are answered", async || {
        server.simulator.stats().total.answered == LINES as u64
    })
    .await;
}

/// All answers are there, and nothing was sent again for them.
async fn nothing_was_sent_twice(server: &Server, batch: &Value) {
    let batch = server.ended(batch).await;
    assert_eq!(batch["request_counts"]["completed"], LINES as i64);
    server.exactly_once(&batch, &ids(LINES)).await;
    assert_eq!(server.simulator.stats().total.calls, LINES as u64);
}

/// Keeps a server's statements waiting, from now on.
async fn block(database: &str) -> Session {
    let mut session = Session::open(database).await;
    let lock = match session.engine() {
        Engine::Sqlite => "BEGIN IMMEDIATE",
        Engine::Postgres => "BEGIN; LOCK TABLE replicas, units, backlog IN ACCESS EXCLUSIVE MODE",
    };
    session.execute(lock).await;
    session
}

async fn answers_outlast_an_outage_that_is_longer_than_the_lease() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let batch = in_flight(&server, 1500).await;
    let mut database = block(&server.database).await;
    all_are_answered(&server).await;
    until("the lease has run out", async || {
        database.live_replicas().await == 0
    })
    .await;
    database.execute("COMMIT").await;
    nothing_was_sent_twice(&server, &batch).await;
}

async fn answers_are_written_where_a_take_over_was_not_followed_by_a_lease() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let batch = in_flight(&server, 1500).await;
    let mut database = block(&server.database).await;
    all_are_answered(&server).await;
    until("the lease has run out", async || {
        database.live_replicas().await == 0
    })
    .await;
    // As another replica would do it.
    database
        .execute(
            "DELETE FROM replicas;
             UPDATE units SET state = 'waiting', takeovers = takeovers + 1;
             UPDATE backlog SET waiting = waiting + 1;
             COMMIT",
        )
        .await;
    nothing_was_sent_twice(&server, &batch).await;
    let mut database = Session::open(&server.database).await;
    until("it has a lease again", async || {
        database.live_replicas().await == 1
    })
    .await;
}

#[tokio::test]
async fn who_is_back_first_waits_for_those_who_live() {
    let test = async {
        let mut server = Server::with("[worker]\nlease = \"5s\"").await;
        server.stop().await;
        let (to_one, to_other) = (
            Proxy::to(&server.database).await,
            Proxy::to(&server.database).await,
        );
        server.serve_as(&[("DATABASE_URL", to_one.url())]).await;
        let batch = in_flight(&server, 4000).await;
        let _other = server.another(&[("DATABASE_URL", to_other.url())]).await;
        let mut database = Session::open(&server.database).await;
        until("both have a lease", async || {
            database.live_replicas().await == 2
        })
        .await;
        to_one.refuse();
        to_other.refuse();
        all_are_answered(&server).await;
        until("both leases have run out", async || {
            database.live_replicas().await == 0
        })
        .await;
        to_other.restore();
        until("the other has its lease again", async || {
            database.live_replicas().await == 1
        })
        .await;
        to_one.restore();
        nothing_was_sent_twice(&server, &batch).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

on_every_engine![
    answers_outlast_an_outage_that_is_longer_than_the_lease,
    answers_are_written_where_a_take_over_was_not_followed_by_a_lease,
];
