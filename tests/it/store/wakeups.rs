//! Wake-ups between processes that share a Postgres.

use std::time::Duration;

use nightshift::store::{Engine, Store};
use tokio::sync::watch;

use super::Fixture;
use crate::support::on;
use crate::support::session::Session;

/// Connections of this database that listen.
const LISTENERS: &str = "pg_stat_activity WHERE datname = current_database() \
                         AND pid <> pg_backend_pid() \
                         AND (query ILIKE 'LISTEN%' OR query LIKE '-- ping%')";

async fn until(wakeups: &mut watch::Receiver<u64>, count: u64, what: &str) {
    let woken = wakeups.wait_for(|seen| *seen >= count);
    let woken = tokio::time::timeout(Duration::from_secs(60), woken).await;
    drop(woken.unwrap_or_else(|_| panic!("{what}")).expect("goes on"));
}

#[tokio::test]
async fn a_wake_up_reaches_other_processes_and_again_after_their_connection_was_lost() {
    let test = async {
        let fixture = Fixture::new().await;
        let here = &fixture.store;
        let mut wakeups = here.wakeups();
        until(&mut wakeups, 1, "the first does not listen").await;
        let there = Store::open(&fixture.url, 4, fixture.clock.clone())
            .await
            .expect("opens");
        let mut wakeups = there.wakeups();
        // Nobody wakes anybody else here: one is for having begun to listen.
        until(&mut wakeups, 1, "the other does not listen").await;
        here.wake();
        until(&mut wakeups, 2, "the other is not woken").await;

        let mut database = Session::open(&fixture.url).await;
        let terminated = format!(
            "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) AS done FROM {LISTENERS}) AS t \
             WHERE done"
        );
        assert_eq!(database.number(&terminated).await, 2);
        until(&mut wakeups, 3, "the other does not listen again").await;
        here.wake();
        until(&mut wakeups, 4, "the other is not woken any more").await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}
