//! Wake-ups between processes that share a Postgres.

use std::time::Duration;

use nightshift::internals::store::{Cancel, Engine, Store, Who};
use sqlx::postgres::PgListener;
use tokio::sync::watch;

use super::{Fixture, TENANT, flush};
use crate::support::on;
use crate::support::session::Session;

/// Connections of this database that listen.
const LISTENERS: &str = "pg_stat_activity WHERE datname = current_database() \
                         AND pid <> pg_backend_pid() \
                         AND (query ILIKE 'LISTEN%' OR query LIKE '-- ping%')";

async fn until(wakeups: &mut watch::Receiver<u64>, count: u64, what: &str) {
    let woken = wakeups.wait_for(|seen| *seen >= count);
    let woken = tokio::time::timeout(Duration::from_mins(1), woken).await;
    drop(woken.unwrap_or_else(|_| panic!("{what}")).expect("goes on"));
}

#[tokio::test]
async fn a_wake_up_reaches_other_processes_and_again_after_their_connection_was_lost() {
    let test = async {
        let fixture = Fixture::new().await;
        let here = &fixture.store;
        let mut wakeups = here.wakeups(Who::Supplies);
        until(&mut wakeups, 1, "the first does not listen").await;
        let there = Store::open(&fixture.url, 4, fixture.clock.clone())
            .await
            .expect("opens");
        let mut wakeups = there.wakeups(Who::Supplies);
        let mut validators = there.wakeups(Who::Validators);
        // Nobody wakes anybody else here: one is for having begun to listen.
        until(&mut wakeups, 1, "the other does not listen").await;
        here.wake_all(Who::Supplies);
        until(&mut wakeups, 2, "the other is not woken").await;

        let mut database = Session::open(&fixture.url).await;
        let terminated = format!(
            "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) AS done FROM {LISTENERS}) AS t \
             WHERE done"
        );
        assert_eq!(database.number(&terminated).await, 2);
        until(&mut wakeups, 3, "the other does not listen again").await;
        here.wake_all(Who::Supplies);
        until(&mut wakeups, 4, "the other is not woken any more").await;
        // Both times it began to listen, and nothing was for them.
        assert_eq!(*validators.borrow_and_update(), 2);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// Hears what the processes of a store tell each other.
struct Ear(PgListener);

impl Ear {
    async fn open(url: &str) -> Ear {
        let mut listener = PgListener::connect(url).await.expect("connects");
        let channels = ["validators", "supplies", "finishers", "shares"];
        let channels = channels.map(|who| format!("nightshift_{who}"));
        let channels = channels.iter().map(String::as_str);
        listener.listen_all(channels).await.expect("listens");
        Ear(listener)
    }

    async fn next(&mut self) -> String {
        let told = tokio::time::timeout(Duration::from_mins(1), self.0.recv()).await;
        let told = told.expect("nothing is told").expect("listens");
        told.channel().to_owned()
    }
}

#[tokio::test]
async fn who_did_nothing_or_can_go_on_alone_tells_nobody() {
    let test = async {
        let fixture = Fixture::new().await;
        let store = &fixture.store;
        // As in a process that does all.
        let doing = [Who::Validators, Who::Supplies, Who::Finishers];
        let doing = doing.map(|who| store.wakeups(who));
        let mut ear = Ear::open(&fixture.url).await;

        let batch = fixture.running(3).await;
        let owner = fixture.replica().await;
        let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
        assert_eq!(store.expire_batches().await.expect("looks"), 0);
        assert_eq!(store.take_over().await.expect("looks"), 0);
        store.finalize_batch(&batch).await.expect("does nothing");
        let last = flush(&unit, &[0, 1, 2], true);
        store.flush(&owner, 0, &[&last]).await.expect("flushes");
        assert!(store.take_finished().contains(&batch));
        store.finalize_batch(&batch).await.expect("finishes");
        let waiting = fixture.created(3).await;
        let cancelled = store.cancel_batch(TENANT, &waiting).await;
        assert!(matches!(cancelled.expect("answers"), Cancel::Granted(_)));
        store.wake_others(Who::Sharers);
        assert_eq!(ear.next().await, "nightshift_shares", "the first of all");

        // Others hear of what they have to do with.
        let running = fixture.running(3).await;
        let cancelled = store.cancel_batch(TENANT, &running).await;
        assert!(matches!(cancelled.expect("answers"), Cancel::Granted(_)));
        assert_eq!(ear.next().await, "nightshift_supplies");
        drop(doing);
        fixture.created(3).await;
        assert_eq!(ear.next().await, "nightshift_validators");
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn one_process_has_a_task_and_another_when_it_is_gone() {
    let test = async {
        let fixture = Fixture::new().await;
        let (first, second) = (fixture.replica().await, fixture.replica().await);
        let hold = async |who: &str| {
            let held = fixture.store.hold_task("a", who).await;
            held.expect("answers")
        };
        assert!(hold(&first).await);
        assert!(!hold(&second).await);
        // Holding is no write: its lease says that it has the task.
        let mut database = Session::open(&fixture.url).await;
        let version = "SELECT CAST(CAST(xmin AS TEXT) AS BIGINT) FROM tasks";
        let written = database.number(version).await;
        assert!(hold(&first).await);
        assert_eq!(database.number(version).await, written);
        let lapse = format!("UPDATE replicas SET lease_until = 0 WHERE token = '{first}'");
        database.execute(&lapse).await;
        assert!(hold(&second).await, "whose holder is gone");
        assert!(!hold(&first).await, "also if it comes back");
        fixture.store.leave(&second).await.expect("leaves");
        assert!(hold(&first).await, "whose holder has left");
        // A process that stops has its lease until its last call has ended.
        let (third, fourth) = (fixture.replica().await, fixture.replica().await);
        assert!(hold(&third).await);
        let given_up = async |who: &str| fixture.store.give_up_task("a", who).await;
        given_up(&fourth).await.expect("answers");
        assert!(!hold(&fourth).await, "it was not its own to give up");
        given_up(&third).await.expect("answers");
        assert!(hold(&fourth).await, "whose holder stops");
    };
    on(Engine::Postgres, Box::pin(test)).await;
}
