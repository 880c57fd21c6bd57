//! Statements that hang, because somebody else holds a lock.

use std::time::Duration;

use nightshift::internals::store::Engine;

use super::{CONFIG, LINES, Midway, get, is_unavailable, start};
use crate::support::session::Session;
use crate::support::{eventually, on};

/// Holds whole tables until it is dropped.
struct Hold(Session);

impl Hold {
    async fn of(database: &str, tables: &str) -> Hold {
        let mut session = Session::open(database).await;
        // Whoever waits for one table while holding another may be in somebody's way.
        let lock = format!("BEGIN; LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE NOWAIT");
        eventually("the tables are locked", async || {
            let is_locked = session.try_execute(&lock).await;
            if !is_locked {
                session.execute("ROLLBACK").await;
            }
            is_locked
        })
        .await;
        Hold(session)
    }

    async fn end(mut self) {
        self.0.execute("ROLLBACK").await;
    }
}

#[tokio::test]
async fn a_statement_that_hangs_is_given_up_and_tried_again() {
    let test = async {
        let mut server = start(CONFIG).await;
        let midway = Midway::begin(&server).await;

        let hold = Hold::of(&server.database, "batches, units, chunks").await;
        is_unavailable(get(&server, "/v1/batches").await).await;
        let file = b"{}\n".to_vec();
        is_unavailable(server.upload(file, "in.jsonl", "batch").await).await;
        hold.end().await;
        midway.goes_on(&server).await;

        // What was half uploaded is seen by nobody.
        let files = server.get("/v1/files").await;
        assert_eq!(files["data"].as_array().map(Vec::len), Some(1), "{files}");

        // Leases, too, can be kept from being renewed.
        let hold = Hold::of(&server.database, "replicas, segments, batch_counts").await;
        is_unavailable(get(&server, "/v1/batches").await).await;
        hold.end().await;
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// Of its connections half are HTTP's and half the work's: neither waits for the other's. What
/// hangs is not given up soon.
fn halves() -> String {
    CONFIG.replace(
        "statement_timeout = \"3s\"",
        "statement_timeout = \"60s\"\nmax_connections = 4",
    )
}

#[tokio::test]
async fn requests_that_hang_do_not_hold_up_the_work() {
    let test = async {
        let mut server = start(&halves()).await;
        let midway = Midway::begin(&server).await;
        let mut session = Session::open(&server.database).await;
        let hold = Hold::of(&server.database, "files").await;
        let lists: Vec<_> = (0..10)
            .map(|_| tokio::spawn(server.client().get(server.url("/v1/files")).send()))
            .collect();
        let done = "SELECT CAST(sum(completed) AS BIGINT) FROM batch_counts";
        server.simulator.grant(LINES);
        until_number(&mut session, done, LINES as i64).await;
        assert!(lists.iter().any(|list| !list.is_finished()));

        hold.end().await;
        for list in lists {
            let response = list.await.expect("does not panic").expect("answers");
            // Some may have waited for a connection for too long.
            if response.status() != 200 {
                is_unavailable(response).await;
            }
        }
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn work_that_hangs_does_not_hold_up_requests() {
    let test = async {
        let mut server = start(&halves()).await;
        let midway = Midway::begin(&server).await;
        let mut session = Session::open(&server.database).await;
        let hold = Hold::of(&server.database, "units, segments, chunks, batches").await;
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until_number(&mut session, waiting, 2).await;
        // Long enough for the work to take more connections, if it could.
        for _ in 0..50 {
            server.get("/v1/files").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        hold.end().await;
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// Waits until a query gives that number, or more.
async fn until_number(session: &mut Session, query: &str, number: i64) {
    eventually(query, async || session.number(query).await >= number).await;
}
