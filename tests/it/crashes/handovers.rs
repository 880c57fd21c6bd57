//! Work that changes hands: given back at a stop, or let go because it is somebody else's.

use std::collections::BTreeSet;
use std::time::Instant;

use nightshift::internals::store::Engine;
use serde_json::json;

use crate::support::binary::Launch;
use crate::support::engines::rows;
use crate::support::metrics::{Metrics, operator};
use crate::support::session::Session;
use crate::support::{Batch, CHAT, Server, chat, eventually, ids, on, on_every_engine};

/// A batch of five lines that hang at the first call, and are answered at the second; their first
/// calls are in flight.
async fn hanging(server: &Server) -> (Batch, Vec<String>) {
    let ids = ids(5);
    let jsonl: String = ids
        .iter()
        .map(|id| chat(id, json!({"hang": true, "times": 1})))
        .collect();
    let batch = server.create_batch(jsonl, CHAT).await;
    eventually("calls are in flight", async || {
        server.simulator.stats().total.in_flight == 5
    })
    .await;
    (batch, ids)
}

async fn what_cannot_finish_in_time_is_handed_back_at_a_stop() {
    let mut server = Server::with("[worker]\nshutdown_grace = \"100ms\"")
        .binary()
        .await;
    let (batch, ids) = hanging(&server).await;
    server.stop().await;
    let mut session = Session::open(&server.database).await;
    for (what, sql) in [
        ("a lease", "SELECT count(*) FROM replicas"),
        (
            "a leased unit",
            "SELECT count(*) FROM units WHERE state = 'leased'",
        ),
        (
            "a take-over",
            "SELECT count(*) FROM units WHERE takeovers > 0",
        ),
    ] {
        assert_eq!(session.number(sql).await, 0, "{what} is left");
    }
    let waiting = "SELECT CAST(SUM(waiting) AS BIGINT) FROM backlog";
    assert_eq!(session.number(waiting).await, 1);
    server.start_process(Launch::new()).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 5);
    server.exactly_once(&batch, &ids).await;
}

/// What a process holds, as tables and their conditions.
const HELD: [&str; 4] = [
    "replicas",
    "units WHERE state = 'leased'",
    "share_holders",
    "tasks",
];

/// A batch's file cannot be written while somebody holds anything.
fn refuses_while_anything_is_held(engine: Engine) -> String {
    let held = HELD.map(|held| format!("EXISTS (SELECT 1 FROM {held})"));
    let held = held.join(" OR ");
    match engine {
        Engine::Sqlite => format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON files
             WHEN NEW.batch_id IS NOT NULL AND ({held})
             BEGIN SELECT RAISE(ABORT, 'something is held'); END"
        ),
        Engine::Postgres => format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF {held} THEN
                     RAISE EXCEPTION 'something is held';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON files FOR EACH ROW
             WHEN (NEW.batch_id IS NOT NULL) EXECUTE FUNCTION refuse()"
        ),
    }
}

async fn what_is_held_is_given_back_at_a_stop_before_drained_batches_are_ended() {
    let mut server = Server::with("[worker]\nshutdown_grace = \"100ms\"")
        .binary()
        .await;
    let (batch, ids) = hanging(&server).await;
    let mut session = Session::open(&server.database).await;
    let refuses = refuses_while_anything_is_held(session.engine());
    session.execute(&refuses).await;
    let drained = server.create_batch(chat("one", json!(null)), CHAT).await;
    server
        .until_rows("segments", |segments| segments == 1)
        .await;
    server.stop().await;
    // By the process that has stopped, for there was no other.
    let ended = rows(&server.database, "batches WHERE status = 'completed'").await;
    assert_eq!(ended, 1, "what is held was given back first");
    let allows = match session.engine() {
        Engine::Sqlite => "DROP TRIGGER refuse",
        Engine::Postgres => "DROP TRIGGER refuse ON files",
    };
    session.execute(allows).await;
    server.start_process(Launch::new()).await;
    assert_eq!(server.ended(&drained).await["status"], "completed");
    let batch = server.ended(&batch).await;
    server.exactly_once(&batch, &ids).await;
}

/// A batch's file takes longer to write than anything is waited for.
const HANGS: &str = "
    CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(3600);
        RETURN NEW;
    END $$;
    CREATE TRIGGER hang BEFORE INSERT ON files FOR EACH ROW
    WHEN (NEW.batch_id IS NOT NULL) EXECUTE FUNCTION hang()";
const HANGS_NO_MORE: &str = "
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    DROP TRIGGER hang ON files";

#[tokio::test]
async fn what_is_held_is_given_back_at_a_stop_although_a_batch_cannot_be_ended() {
    let test = async {
        let mut server = Server::with("[worker]\nshutdown_grace = \"3s\"")
            .binary()
            .await;
        let (batch, ids) = hanging(&server).await;
        let mut session = Session::open(&server.database).await;
        session.execute(HANGS).await;
        // Its only line is answered while the server stops.
        let line = chat("one", json!({"latency_ms": 1_000}));
        let drained = server.create_batch(line, CHAT).await;
        eventually("its line is in flight", async || {
            server.simulator.stats().total.in_flight == 6
        })
        .await;
        server.stop().await;
        for held in HELD {
            assert_eq!(rows(&server.database, held).await, 0, "{held}");
        }
        session.execute(HANGS_NO_MORE).await;
        server.start_process(Launch::new()).await;
        assert_eq!(server.ended(&drained).await["status"], "completed");
        let batch = server.ended(&batch).await;
        server.exactly_once(&batch, &ids).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn the_work_of_a_killed_replica_is_taken_over_by_another() {
    let test = async {
        let mut server = Server::with("[worker]\nlease = \"1s\"").binary().await;
        let (batch, ids) = hanging(&server).await;
        let killed = server.binary_process();
        server.start_process(Launch::new()).await;
        killed.signal("KILL");
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 5);
        server.exactly_once(&batch, &ids).await;
        assert_eq!(server.simulator.stats().total.calls, 10);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// The database's time at which the youngest transaction began that waits for a lock in order to
/// take over; 0 where there is none.
const TAKING_OVER: &str = "
    SELECT COALESCE(MAX(CAST(EXTRACT(EPOCH FROM xact_start) * 1000000 AS BIGINT)), 0)
    FROM pg_stat_activity WHERE datname = current_database()
       AND wait_event_type = 'Lock' AND query LIKE '%-- take_over%'";

#[tokio::test]
async fn a_replica_renews_its_lease_while_it_waits_to_take_over() {
    let test = async {
        let mut server = Server::with("[worker]\nlease = \"1s\"").binary().await;
        let (batch, ids) = hanging(&server).await;
        let mut lock = Session::open(&server.database).await;
        lock.execute("BEGIN; SELECT * FROM units FOR UPDATE").await;
        server.kill().await;
        server.start_process(Launch::new()).await;
        let mut database = Session::open(&server.database).await;
        let renewed = "SELECT MAX(lease_until) FROM replicas";
        let (mut waiter, mut seen) = (0, BTreeSet::new());
        // One renewal may have been committed just before it was seen to wait.
        eventually("renewals go on beside one take-over", async || {
            let renewal = database.number(renewed).await;
            let waits = database.number(TAKING_OVER).await;
            if waits != waiter {
                (waiter, seen) = (waits, BTreeSet::new());
            } else if waits > 0 {
                seen.insert(renewal);
            }
            seen.len() > 2
        })
        .await;
        lock.execute("COMMIT").await;
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 5);
        server.exactly_once(&batch, &ids).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// With the lease and all else of `[worker]` as it is where nobody has said otherwise.
#[tokio::test]
async fn a_killed_replica_is_followed_by_another_with_the_default_lease() {
    let test = async {
        let mut server = Server::with("").binary().await;
        let (batch, ids) = hanging(&server).await;
        let key = operator(&server.database).await;
        let killed = server.binary_process();
        server.start_process(Launch::new()).await;
        server
            .until_rows("replicas", |replicas| replicas == 2)
            .await;
        let takeovers = |metrics: &Metrics| metrics.sum("nightshift_lease_takeovers_total", &[]);
        let before = Metrics::of(&server.url(""), Some(&key)).await;
        assert_eq!(takeovers(&before), 0.0);

        killed.signal("KILL");
        let begun = Instant::now();
        eventually("its lines are sent again", async || {
            server.simulator.stats().total.calls == 10
        })
        .await;
        println!(
            "taken over {:.1} s after the kill",
            begun.elapsed().as_secs_f64()
        );
        let batch = server.ended(&batch).await;
        println!(
            "ended {:.1} s after the kill",
            begun.elapsed().as_secs_f64()
        );
        assert_eq!(batch.status, "completed", "{batch}");
        assert_eq!(batch.counts.completed, 5);
        server.exactly_once(&batch, &ids).await;
        assert_eq!(server.simulator.stats().total.calls, 10);
        let after = Metrics::of(&server.url(""), Some(&key)).await;
        assert_eq!(takeovers(&after), 1.0, "one unit");
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

async fn a_unit_is_let_go_and_given_back_where_the_store_says_otherwise() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let (batch, _) = hanging(&server).await;
    // What it holds is not what it has leased; and what it has leased it does not hold.
    let mut session = Session::open(&server.database).await;
    session
        .execute("UPDATE units SET epoch = epoch + 1 WHERE state = 'leased'")
        .await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 5);
    let stats = server.simulator.stats();
    assert_eq!(stats.total.abandoned, 5, "its calls are cut");
    assert_eq!(stats.total.calls, 10);
}

async fn a_unit_that_is_another_replicas_is_let_go() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let (batch, ids) = hanging(&server).await;
    let mut session = Session::open(&server.database).await;
    session
        .execute(
            "INSERT INTO replicas (token, name, started_at, lease_until)
                VALUES ('another', 'another', 0, 9000000000000);
             UPDATE units SET epoch = epoch + 1, owner = 'another'",
        )
        .await;
    eventually("its calls are cut", async || {
        server.simulator.stats().total.abandoned == 5
    })
    .await;
    assert_eq!(
        server.simulator.stats().total.calls,
        5,
        "it is not sent again by who does not have it"
    );
    // The other gives it back.
    session
        .execute(
            "UPDATE units SET state = 'waiting', owner = NULL;
             INSERT INTO backlog SELECT batch_id, model_no, 'sim-small', 1 FROM units WHERE TRUE
                ON CONFLICT (batch_id, model_no) DO UPDATE SET waiting = backlog.waiting + 1",
        )
        .await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 5);
    server.exactly_once(&batch, &ids).await;
}

on_every_engine![
    what_is_held_is_given_back_at_a_stop_before_drained_batches_are_ended,
    what_cannot_finish_in_time_is_handed_back_at_a_stop,
    a_unit_is_let_go_and_given_back_where_the_store_says_otherwise,
    a_unit_that_is_another_replicas_is_let_go,
];
