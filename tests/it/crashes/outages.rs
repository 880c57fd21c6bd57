//! The database goes away for longer than leases last, with answers on their way.

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::json;

use crate::support::binary::Launch;
use crate::support::metrics::{Metrics, operator};
use crate::support::proxy::Proxy;
use crate::support::session::Session;
use crate::support::{Batch, CHAT, Server, chat, eventually, ids, on, on_every_engine};

const LINES: usize = 32;

/// A batch whose lines are all in flight at once.
async fn in_flight(server: &Server, latency_ms: u64) -> Batch {
    let jsonl: String = ids(LINES)
        .iter()
        .map(|id| chat(id, json!({"latency_ms": latency_ms})))
        .collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    eventually("all lines are in flight", async || {
        server.simulator.stats().total.in_flight == LINES as u64
    })
    .await;
    batch
}

async fn all_are_answered(server: &Server) {
    eventually("all lines are answered", async || {
        server.simulator.stats().total.answered == LINES as u64
    })
    .await;
}

/// All answers are there, and nothing was sent again for them.
async fn nothing_was_sent_twice(server: &Server, batch: &Batch) {
    let batch = server.ended(batch).await;
    assert_eq!(batch.counts.completed, LINES);
    server.exactly_once(&batch, &ids(LINES)).await;
    assert_eq!(server.simulator.stats().total.calls, LINES as u64);
}

/// Keeps a server's statements waiting, from now on.
pub(crate) async fn block(database: &str) -> Session {
    let mut session = Session::open(database).await;
    let lock = match session.engine() {
        Engine::Sqlite => "BEGIN IMMEDIATE",
        // Whoever waits for one table while holding another may be in somebody's way.
        Engine::Postgres => {
            "BEGIN; LOCK TABLE replicas, units, backlog IN ACCESS EXCLUSIVE MODE NOWAIT"
        }
    };
    eventually("it is locked", async || {
        let locked = session.try_execute(lock).await;
        if !locked && session.engine() == Engine::Postgres {
            session.execute("ROLLBACK").await;
        }
        locked
    })
    .await;
    session
}

async fn answers_outlast_an_outage_that_is_longer_than_the_lease() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let batch = in_flight(&server, 4000).await;
    let mut database = block(&server.database).await;
    all_are_answered(&server).await;
    eventually("the lease has run out", async || {
        database.live_replicas().await == 0
    })
    .await;
    database.execute("COMMIT").await;
    nothing_was_sent_twice(&server, &batch).await;
}

async fn answers_are_written_where_a_take_over_was_not_followed_by_a_lease() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let batch = in_flight(&server, 4000).await;
    let mut database = block(&server.database).await;
    all_are_answered(&server).await;
    eventually("the lease has run out", async || {
        database.live_replicas().await == 0
    })
    .await;
    // As another replica would do it.
    database
        .execute(
            "DELETE FROM replicas;
             UPDATE units SET state = 'waiting', takeovers = takeovers + 1
                WHERE state = 'leased';
             INSERT INTO backlog SELECT batch_id, model_no, 'sim-small', 1 FROM units WHERE TRUE
                ON CONFLICT (batch_id, model_no) DO UPDATE SET waiting = backlog.waiting + 1;
             COMMIT",
        )
        .await;
    nothing_was_sent_twice(&server, &batch).await;
    let mut database = Session::open(&server.database).await;
    eventually("it has a lease again", async || {
        database.live_replicas().await == 1
    })
    .await;
}

/// More lines than places: what is not sent yet stays so, and nothing that was sent is lost.
#[tokio::test]
async fn no_line_is_sent_while_there_is_no_lease() {
    on(
        Engine::Postgres,
        Box::pin(nothing_is_sent_without_a_lease()),
    )
    .await;
}

async fn nothing_is_sent_without_a_lease() {
    const PLACES: u64 = 8;
    let server = Server::with(
        "[worker]
         lease = \"1s\"
         [[upstreams]]
         name = \"simulated\"
         base_url = \"{simulated}\"
         concurrency = 8
         [[models]]
         name = \"sim-small\"
         routes = [{ upstream = \"simulated\" }]",
    )
    .await;
    let ids = ids(200);
    let slow = |id: &String| chat(id, json!({"latency_ms": 500}));
    let jsonl: String = ids.iter().map(slow).collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    let sent = || server.simulator.stats().total;
    eventually("all places are taken", async || sent().in_flight == PLACES).await;
    let mut database = block(&server.database).await;
    eventually("the lease has run out", async || {
        database.live_replicas().await == 0
    })
    .await;
    let calls = sent().calls;
    eventually("nothing is in flight", async || sent().in_flight == 0).await;
    // As long again as a few lines take.
    let end = "SELECT max(lease_until) + 4000 FROM replicas";
    let end = database.number(end).await;
    eventually("it has had time to send more", async || {
        database.now_ms().await > end
    })
    .await;
    let outlived = sent().calls;
    assert!(outlived <= calls + PLACES, "{calls} calls, then {outlived}");
    assert!(outlived < 200, "the lease ran out after all was sent");
    database.execute("COMMIT").await;

    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 200);
    server.exactly_once(&batch, &ids).await;
    assert_eq!(sent().calls, 200, "something was sent twice");
}

#[tokio::test]
async fn late_answers_are_refused_where_another_replica_has_their_unit_by_now() {
    let test = async {
        let config = "[worker]\nlease = \"1s\"\nreclaim_after = \"1s\"";
        let mut server = Server::with(config).await;
        server.stop().await;
        let proxy = Proxy::to(&server.database).await;
        server
            .start_process(Launch::new().variables(&[("DATABASE_URL", proxy.url())]))
            .await;
        let batch = in_flight(&server, 4000).await;
        let cut_off = server.binary_process();
        proxy.refuse();
        all_are_answered(&server).await;
        // It has all answers, and no way to write them, when another one sends all lines again.
        server.start_process(Launch::new()).await;
        eventually("all lines are sent again", async || {
            server.simulator.stats().total.calls == 2 * LINES as u64
        })
        .await;
        proxy.restore();
        let mut database = Session::open(&server.database).await;
        eventually("both have a lease", async || {
            database.live_replicas().await == 2
        })
        .await;
        let key = operator(&server.database).await;
        // What is refused is let go, whether its flush or the heartbeat comes to know of it first.
        let let_go = Metrics::until(&cut_off.base, &key, |metrics| {
            metrics.sum("nightshift_budget_used_bytes", &[]) == 0.0
        })
        .await;
        assert!(let_go.sum("nightshift_leases_lost_total", &[]) <= 1.0);
        let taken_over = Metrics::of(&server.url(""), Some(&key)).await;
        let takeovers = taken_over.sum("nightshift_lease_takeovers_total", &[]);
        assert_eq!(takeovers, 1.0);
        let log = cut_off.terminate().await;
        assert!(log.contains("a unit is another replica's by now"), "{log}");

        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, LINES);
        server.exactly_once(&batch, &ids(LINES)).await;
        assert_eq!(server.simulator.stats().total.calls, 2 * LINES as u64);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn who_is_back_first_waits_for_those_who_live() {
    let test = async {
        let mut server = Server::with("[worker]\nlease = \"15s\"").await;
        server.stop().await;
        let (to_one, to_other) = (
            Proxy::to(&server.database).await,
            Proxy::to(&server.database).await,
        );
        server
            .start_process(Launch::new().variables(&[("DATABASE_URL", to_one.url())]))
            .await;
        let batch = in_flight(&server, 4000).await;
        let _other = server
            .replica(Launch::new().variables(&[("DATABASE_URL", to_other.url())]))
            .await;
        let mut database = Session::open(&server.database).await;
        eventually("both have a lease", async || {
            database.live_replicas().await == 2
        })
        .await;
        to_one.refuse();
        to_other.refuse();
        all_are_answered(&server).await;
        eventually("both leases have run out", async || {
            database.live_replicas().await == 0
        })
        .await;
        to_other.restore();
        eventually("the other has its lease again", async || {
            database.live_replicas().await == 1
        })
        .await;
        to_one.restore();
        nothing_was_sent_twice(&server, &batch).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn a_server_alone_on_its_file_goes_on_sending_while_that_cannot_be_written() {
    let test = async {
        let options = Options {
            track: true,
            granted: Some(0),
            ..Options::default()
        };
        let server = Server::with("[worker]\nlease = \"1s\"")
            .upstream(options)
            .await;
        let ids = ids(300);
        let jsonl: String = ids.iter().map(|id| chat(id, json!(null))).collect();
        let batch = server.create_batch(jsonl, CHAT).await;
        eventually("all places are taken", async || {
            server.simulator.stats().total.in_flight == 64
        })
        .await;
        let mut writer = Session::open(&server.database).await;
        writer.execute("BEGIN IMMEDIATE").await;
        let mut reader = Session::open(&server.database).await;
        eventually("its lease has run out", async || {
            reader.live_replicas().await == 0
        })
        .await;
        server.simulator.grant(ids.len());
        eventually("all lines are sent", async || {
            server.simulator.stats().total.answered == 300
        })
        .await;
        assert_eq!(reader.live_replicas().await, 0);
        writer.execute("COMMIT").await;
        let batch = server.ended(&batch).await;
        server.exactly_once(&batch, &ids).await;
        assert_eq!(server.simulator.stats().total.calls, 300);
    };
    on(Engine::Sqlite, Box::pin(test)).await;
}

on_every_engine![
    answers_outlast_an_outage_that_is_longer_than_the_lease,
    answers_are_written_where_a_take_over_was_not_followed_by_a_lease,
];
