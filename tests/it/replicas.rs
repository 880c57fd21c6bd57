//! Several servers on one Postgres, and one simulated upstream that counts what they send.

mod anywhere;
mod exchange;

use std::collections::BTreeSet;
use std::time::Duration;

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::{Binary, Launch};
use crate::support::session::Session;
use crate::support::{Batch, CHAT, Server, chat, eventually, ids, on, request};

/// Answers that say who asked, by a header that each replica has of its own.
const CONFIG: &str = r#"
[worker]
lease = "{lease}"
reclaim_after = "{reclaim}"

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
headers = { x-replica = "a" }

[[models]]
name = "sim-small"
concurrency = {limit}
routes = [{ upstream = "simulated" }]

[[models]]
name = "sim-other"
concurrency = {limit}
routes = [{ upstream = "simulated" }]
"#;
/// Units whose lines are being sent, by who does so.
const WORKING: &str = "(SELECT DISTINCT owner FROM units WHERE state = 'leased') AS working";

/// The same where something of it is on disk.
const WRITING: &str =
    "(SELECT DISTINCT owner FROM units WHERE state = 'leased' AND flush_no > 0) AS writing";

/// Units that wait for somebody else to take them up, or for their last owner to come back.
const ORPHANED: &str =
    "units WHERE state = 'waiting' AND owner NOT IN (SELECT token FROM replicas)";

/// How soon others take over, and how many calls are answered before more are granted.
#[derive(Clone, Copy)]
struct Terms {
    lease: &'static str,
    reclaim_after: &'static str,
    granted: Option<usize>,
}

/// What a replica had stays its own for longer than anything is waited for.
const NEVER_RECLAIMED: Terms = Terms {
    reclaim_after: "1h",
    ..SHORT
};
/// Nobody's lease runs out.
const LASTING: Terms = Terms {
    lease: "10s",
    reclaim_after: "1s",
    granted: None,
};
/// What a replica had is soon taken over.
const SHORT: Terms = Terms {
    lease: "1s",
    ..LASTING
};

/// Waits until a table has so many rows, with lines being answered: places change hands when they
/// become free.
async fn until_in_motion(server: &Server, table: &str, rows: i64) {
    let is_so = |count| {
        if count != rows {
            server.simulator.grant(2);
        }
        count == rows
    };
    server.until_rows(table, is_so).await;
}

async fn server(terms: Terms, config: &str) -> Server {
    let config = config
        .replace("{lease}", terms.lease)
        .replace("{reclaim}", terms.reclaim_after);
    let options = Options {
        track: true,
        granted: terms.granted,
        ..Options::default()
    };
    Server::with(&config).upstream(options).binary().await
}

/// A server and as many replicas of it, all of which hold a share of the model's limit.
async fn replicas(terms: Terms, limit: usize, names: &[&str]) -> (Server, Vec<Binary>) {
    let server = server(terms, &CONFIG.replace("{limit}", &limit.to_string())).await;
    let mut replicas = Vec::new();
    for name in names {
        replicas.push(replica(&server, name).await);
    }
    let all = (names.len() + 1).min(limit) as i64;
    server
        .until_rows(&held("held > 0"), |count| count == all)
        .await;
    (server, replicas)
}

/// One more replica, that calls itself so.
async fn replica(server: &Server, name: &str) -> Binary {
    let headers = format!("{{ x-replica = \"{name}\" }}");
    let variables = [("NIGHTSHIFT_UPSTREAMS__0__HEADERS", headers.as_str())];
    server.replica(Launch::new().variables(&variables)).await
}

/// Shares of the model's limit of which something holds.
fn held(what: &str) -> String {
    format!("shares WHERE resource = 'model:sim-small' AND {what}")
}

/// Lines of a few units, each of which takes so long.
fn lines(ids: &[String], latency_ms: u64) -> String {
    let padding = "x".repeat(2_000);
    let line = |id: &String| {
        let mut body = json!({
            "model": "sim-small",
            "messages": [{"role": "user", "content": format!("This is {id}.")}],
            "simulate": {"latency_ms": latency_ms, "echo": true},
        });
        body["user"] = Value::from(padding.as_str());
        request(id, body)
    };
    ids.iter().map(line).collect()
}

/// Asserts that each line has the answer to its own request; returns who sent them.
async fn answered_by(server: &Server, batch: &Batch, ids: &[String]) -> BTreeSet<String> {
    let mut replicas = BTreeSet::new();
    for (id, line) in server.exactly_once(batch, ids).await {
        assert_eq!(line["response"]["status_code"], 200, "{line}");
        let echo = &line["response"]["body"]["echo"];
        let asked = echo["body"].as_str().expect("is text");
        assert!(asked.contains(&format!("This is {id}.")), "{id}: {asked}");
        let replica = echo["headers"]["x-replica"].as_str().expect("is text");
        replicas.insert(replica.to_owned());
    }
    replicas
}

fn most_in_flight(server: &Server) -> u64 {
    server.simulator.stats().models["sim-small"].most_in_flight
}

#[tokio::test]
async fn a_batch_is_worked_on_by_all_replicas_and_any_of_them_serves_it() {
    on(Engine::Postgres, async {
        let terms = Terms {
            granted: Some(0),
            ..LASTING
        };
        let (server, others) = replicas(terms, 6, &["b", "c"]).await;
        let ids = ids(900);
        let created = server.create_batch(lines(&ids, 10), CHAT).await;
        until_in_motion(&server, WORKING, 3).await;
        server.simulator.grant(ids.len());
        for replica in &others {
            let seen = server.at(&replica.base).batch(&created).await;
            assert_eq!(seen.id, created.id);
        }
        let batch = server.ended(&created).await;
        assert_eq!(batch.status, "completed", "{batch}");
        assert_eq!(answered_by(&server, &batch, &ids).await.len(), 3);
        for replica in &others {
            assert_eq!(server.at(&replica.base).batch(&batch).await, batch);
        }
        assert!(most_in_flight(&server) <= 6);
    })
    .await;
}

#[tokio::test]
async fn a_limit_of_the_upstream_holds_over_all_replicas() {
    on(Engine::Postgres, async {
        let upstream = "headers = { x-replica = \"a\" }\nconcurrency = 4";
        let config = CONFIG
            .replace("headers = { x-replica = \"a\" }", upstream)
            .replace("{limit}", "64");
        let terms = Terms {
            granted: Some(0),
            ..LASTING
        };
        let server = server(terms, &config).await;
        let _other = replica(&server, "b").await;
        let shared = "shares WHERE resource = 'upstream:simulated' AND held = 2";
        server.until_rows(shared, |count| count == 2).await;

        let ids = ids(900);
        let batch = server.create_batch(lines(&ids, 10), CHAT).await;
        until_in_motion(&server, WORKING, 2).await;
        server.simulator.grant(ids.len());
        let batch = server.ended(&batch).await;
        assert_eq!(batch.status, "completed", "{batch}");
        assert_eq!(answered_by(&server, &batch, &ids).await.len(), 2);
        assert!(most_in_flight(&server) <= 4);
    })
    .await;
}

/// Waits until all places are taken by calls that are not answered.
async fn nothing_is_sent_any_more(server: &Server) {
    eventually("nothing is sent any more", async || {
        let before = server.simulator.stats().total.calls;
        // Far longer than a line takes.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sent = server.simulator.stats().total;
        sent.in_flight == 6 && sent.calls == before
    })
    .await;
}

#[tokio::test]
async fn no_line_is_lost_or_doubled_whatever_becomes_of_two_replicas_in_three() {
    on(Engine::Postgres, async {
        let terms = Terms {
            granted: Some(0),
            ..SHORT
        };
        let (mut server, mut others) = replicas(terms, 6, &["b", "c"]).await;
        let ids = ids(1_500);
        let batch = server.create_batch(lines(&ids, 100), CHAT).await;
        until_in_motion(&server, WRITING, 3).await;

        let killed = others.remove(0);
        killed.signal("KILL");
        killed.ended().await;
        // A replica's row goes in the transaction that takes over its units.
        server.until_rows("replicas", |count| count == 2).await;
        until_in_motion(&server, WORKING, 2).await;

        // Stopped on its way to send a line, it would send it on waking, beside the other's.
        nothing_is_sent_any_more(&server).await;
        server.signal("STOP");
        server.simulator.grant(10_000);
        server.until_rows("replicas", |count| count == 1).await;
        // The other one has all of the limit, and its units, before the first one goes on.
        server.until_rows(ORPHANED, |count| count == 0).await;
        server
            .until_rows(&held("held = 6"), |count| count == 1)
            .await;
        server.signal("CONT");
        server.until_rows(WORKING, |count| count == 2).await;

        others.remove(0).terminate().await;
        let batch = server.ended(&batch).await;
        assert_eq!(batch.status, "completed", "{batch}");
        assert_eq!(answered_by(&server, &batch, &ids).await.len(), 3);
        assert!(
            server.simulator.stats().total.calls > ids.len() as u64,
            "nothing was sent twice"
        );
        assert_eq!(most_in_flight(&server), 6);
        let log = server.binary_process().terminate().await;
        assert!(
            log.contains("another replica") || log.contains("other replicas"),
            "{log}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_stops_within_a_transaction_does_not_hold_up_the_others() {
    on(Engine::Postgres, async {
        let terms = Terms {
            granted: Some(200),
            ..SHORT
        };
        let (server, _) = replicas(terms, 6, &[]).await;
        let ids = ids(900);
        let batch = server.create_batch(lines(&ids, 10), CHAT).await;
        server.until_rows(WRITING, |count| count == 1).await;
        let mut database = Session::open(&server.database).await;
        database
            .execute("BEGIN; LOCK TABLE backlog IN EXCLUSIVE MODE")
            .await;
        server.simulator.grant(10_000);
        // It has units in its hand, and waits to count them as taken.
        let waits = "pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock' AND query LIKE '%add_waiting%'";
        server.until_rows(waits, |count| count == 1).await;
        server.signal("STOP");
        let _other = replica(&server, "b").await;
        database.execute("COMMIT").await;
        let completed = "batches WHERE status = 'completed'";
        server.until_rows(completed, |count| count == 1).await;
        server.signal("CONT");
        let batch = server.ended(&batch).await;
        assert_eq!(answered_by(&server, &batch, &ids).await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_joins_gets_what_the_others_let_go_of_and_not_before() {
    on(Engine::Postgres, async {
        let terms = Terms {
            granted: Some(20),
            ..LASTING
        };
        let (server, _) = replicas(terms, 6, &[]).await;
        let ids = ids(600);
        let batch = server.create_batch(lines(&ids, 100), CHAT).await;
        let is_busy = |batch: &Batch| batch.counts.completed > 0;
        server.until(&batch, is_busy).await;
        let _others = [replica(&server, "b").await, replica(&server, "c").await];
        until_in_motion(&server, WORKING, 3).await;
        server.simulator.grant(ids.len());
        let batch = server.ended(&batch).await;
        assert_eq!(answered_by(&server, &batch, &ids).await.len(), 3);
        assert_eq!(most_in_flight(&server), 6);
    })
    .await;
}

#[tokio::test]
async fn the_share_of_a_replica_that_leaves_is_given_to_the_others_at_once() {
    on(Engine::Postgres, async {
        let (server, mut others) = replicas(NEVER_RECLAIMED, 6, &["b", "c"]).await;
        server
            .until_rows(&held("held = 2"), |count| count == 3)
            .await;
        others.remove(0).terminate().await;
        server
            .until_rows(&held("held = 3"), |count| count == 2)
            .await;
        others.remove(0).terminate().await;
        server
            .until_rows(&held("held = 6"), |count| count == 1)
            .await;

        let ids = ids(100);
        let batch = server.run(lines(&ids, 200), CHAT).await;
        assert_eq!(answered_by(&server, &batch, &ids).await.len(), 1);
        assert_eq!(most_in_flight(&server), 6);
    })
    .await;
}

#[tokio::test]
async fn the_share_of_a_replica_that_vanished_is_given_to_the_others_in_the_end() {
    on(Engine::Postgres, async {
        let (server, mut others) = replicas(SHORT, 6, &["b"]).await;
        server
            .until_rows(&held("held = 3"), |count| count == 2)
            .await;
        let vanished = others.remove(0);
        vanished.signal("KILL");
        server
            .until_rows(&held("held = 6"), |count| count == 1)
            .await;
        server.until_rows("share_holders", |count| count == 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_is_started_again_under_its_name_has_its_share_again() {
    on(Engine::Postgres, async {
        let (server, _) = replicas(NEVER_RECLAIMED, 6, &[]).await;
        let named = [("NIGHTSHIFT_WORKER__NAME", "one")];
        let first = server.replica(Launch::new().variables(&named)).await;
        server
            .until_rows(&held("held = 3"), |count| count == 2)
            .await;
        first.signal("KILL");
        first.ended().await;
        let _second = server.replica(Launch::new().variables(&named)).await;
        server.until_rows("share_holders", |count| count == 2).await;
        server
            .until_rows(&held("held = 3"), |count| count == 2)
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_limit_smaller_than_the_number_of_replicas_holds_and_the_work_goes_on() {
    on(Engine::Postgres, async {
        let (server, mut others) = replicas(SHORT, 1, &["b", "c"]).await;
        let ids = ids(300);
        let batch = server.create_batch(lines(&ids, 10), CHAT).await;
        server.until_rows(WORKING, |count| count == 1).await;
        // Who has the share is killed, whoever it is: another one goes on.
        others.remove(0).signal("KILL");
        let batch = server.ended(&batch).await;
        assert_eq!(batch.status, "completed", "{batch}");
        answered_by(&server, &batch, &ids).await;
        assert_eq!(most_in_flight(&server), 1);
    })
    .await;
}

#[tokio::test]
async fn a_replica_whose_share_is_gone_gives_its_units_back() {
    on(Engine::Postgres, async {
        let terms = Terms {
            granted: Some(100),
            ..LASTING
        };
        let (server, _other) = replicas(terms, 2, &["b"]).await;
        let ids = ids(800);
        let batch = server.create_batch(lines(&ids, 20), CHAT).await;
        until_in_motion(&server, WORKING, 2).await;
        // The smallest limit holds for all.
        let limits = [("NIGHTSHIFT_MODELS__0__CONCURRENCY", "1")];
        let _third = server.replica(Launch::new().variables(&limits)).await;
        let one_works_while_there_is_more = "(SELECT 1 AS one \
             WHERE (SELECT COUNT(DISTINCT owner) FROM units WHERE state = 'leased') = 1 \
             AND EXISTS (SELECT 1 FROM units WHERE state = 'waiting')) AS so";
        until_in_motion(&server, &held("held > 0"), 1).await;
        until_in_motion(&server, one_works_while_there_is_more, 1).await;
        server.simulator.grant(ids.len());
        let batch = server.ended(&batch).await;
        assert_eq!(batch.status, "completed", "{batch}");
        answered_by(&server, &batch, &ids).await;
    })
    .await;
}

#[tokio::test]
async fn a_rate_limit_that_one_replica_meets_is_a_cooldown_for_the_other() {
    on(Engine::Postgres, async {
        let terms = Terms {
            granted: Some(1),
            ..LASTING
        };
        let (server, _other) = replicas(terms, 6, &["b"]).await;
        let limited = json!({"status": 429, "retry_after_ms": 3_600_000, "times": 1_000});
        server.create_batch(chat("limited", limited), CHAT).await;
        server.until_rows("gates", |count| count == 1).await;
        // Both have had turns since: they hold for a lease, and are a second apart at most.
        let now = Session::open(&server.database).await.now_ms().await;
        let turns = format!("share_holders WHERE held_until > {now} + 10000 + 2000");
        server.until_rows(&turns, |count| count == 2).await;

        let ids = ids(900);
        let jsonl = lines(&ids, 10).replace("sim-small", "sim-other");
        let small = chat("small", Value::Null) + &chat("another", Value::Null);
        let batch = server.create_batch(jsonl + &small, CHAT).await;
        let id = &batch.id;
        let working = format!(
            "(SELECT DISTINCT owner FROM units \
             WHERE batch_id = '{id}' AND model_no = 0 AND state = 'leased') AS working"
        );
        until_in_motion(&server, &working, 2).await;
        server.simulator.grant(10_000);
        eventually("the other model is left alone", async || {
            let models = server.simulator.stats().models;
            let answered = models.get("sim-other").map_or(0, |counts| counts.answered);
            if answered >= 900 {
                Ok(())
            } else {
                Err(answered)
            }
        })
        .await;
        server.cancel(&batch).await;
        let batch = server.ended(&batch).await;
        let lines = server.output(&batch).await;
        let senders: BTreeSet<String> = lines
            .iter()
            .map(|line| line["response"]["body"]["echo"]["headers"]["x-replica"].to_string())
            .collect();
        assert_eq!(senders.len(), 2, "both have sent something");
        assert_eq!(server.simulator.stats().models["sim-small"].calls, 1);
    })
    .await;
}
