//! What processes tell each other by the store: turns, shares and cooldowns.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use nightshift::internals::domain::clock::Clock;
use nightshift::internals::domain::share::Share;
use nightshift::internals::store::{CooldownRow, Engine, Replica, ShareBook, ShareEntry, Store};

use crate::support::session::Session;
use crate::support::{engines, on, on_every_engine};

const TERM_MS: i64 = 60_000;
const LIMIT: &str = "model:m";

async fn stores(count: usize) -> (Vec<Store>, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let mut stores = Vec::new();
    for _ in 0..count {
        stores.push(Store::open(&url, 4, Clock::default()).await.expect("opens"));
    }
    (stores, directory)
}

fn share(held: u64) -> Share {
    Share {
        allowed: 10,
        wants: 10,
        held,
    }
}

fn holds(held: u64) -> ShareEntry {
    ShareEntry {
        shares: BTreeMap::from([(LIMIT.to_owned(), share(held))]),
        ..ShareEntry::default()
    }
}

/// What a process reads that then writes this.
async fn turn(store: &Store, token: &str, entry: ShareEntry) -> ShareBook {
    let decide = |book: &ShareBook| {
        let read = ShareBook {
            holders: book.holders.clone(),
            cooldowns: book.cooldowns.clone(),
            resets: book.resets.clone(),
            windows: book.windows.clone(),
        };
        (entry, read)
    };
    let book = store.exchange_shares(token, TERM_MS, &[], decide).await;
    book.expect("has its turn")
}

fn by_token(book: &ShareBook) -> BTreeMap<&str, u64> {
    let holders = book.holders.iter();
    holders
        .map(|holder| {
            let share = holder.shares.get(LIMIT).copied().unwrap_or_default();
            (holder.token.as_str(), share.held)
        })
        .collect()
}

async fn what_a_process_writes_the_next_one_reads() {
    let (stores, _directory) = stores(1).await;
    let store = &stores[0];
    assert!(turn(store, "a", holds(7)).await.holders.is_empty());
    let book = turn(store, "b", holds(3)).await;
    let a = &book.holders[0];
    assert_eq!((a.token.as_str(), a.shares[LIMIT]), ("a", share(7)));
    assert!(a.left_ms > 0 && a.left_ms <= TERM_MS, "{}", a.left_ms);
    turn(store, "a", holds(5)).await;
    let book = turn(store, "b", ShareEntry::default()).await;
    assert_eq!(by_token(&book), BTreeMap::from([("a", 5), ("b", 3)]));
    assert_eq!(book.holders[0].joined_at, a.joined_at, "it joined once");

    let forgets = ShareEntry {
        forgotten: vec![(LIMIT.to_owned(), "a".to_owned())],
        ..ShareEntry::default()
    };
    turn(store, "c", forgets).await;
    store.forget_shares("b").await.expect("forgets");
    let book = turn(store, "c", ShareEntry::default()).await;
    assert_eq!(by_token(&book), BTreeMap::from([("c", 0)]));
}

async fn a_cooldown_lasts_until_the_latest_time_that_any_process_gave() {
    let (stores, _directory) = stores(1).await;
    let store = &stores[0];
    let closes = |closed_ms| ShareEntry {
        cooldowns: vec![CooldownRow {
            upstream: "gpu".to_owned(),
            key: String::new(),
            model: "m".to_owned(),
            closed_ms,
        }],
        ..ShareEntry::default()
    };
    turn(store, "a", closes(50_000)).await;
    turn(store, "b", closes(10_000)).await;
    let cooldowns = turn(store, "b", closes(90_000)).await.cooldowns;
    assert_eq!(
        (cooldowns[0].upstream.as_str(), cooldowns[0].model.as_str()),
        ("gpu", "m")
    );
    assert!(
        (10_001..=50_000).contains(&cooldowns[0].closed_ms),
        "{cooldowns:?}"
    );
    let cooldowns = turn(store, "a", ShareEntry::default()).await.cooldowns;
    assert!(
        (50_001..=90_000).contains(&cooldowns[0].closed_ms),
        "{cooldowns:?}"
    );

    let mut opens = closes(1);
    opens.cooldowns[0].model = "other".to_owned();
    turn(store, "a", opens).await;
    let opened = async {
        let is_other = |cooldown: &CooldownRow| cooldown.model == "other";
        while turn(store, "a", ShareEntry::default())
            .await
            .cooldowns
            .iter()
            .any(is_other)
        {}
    };
    let opened = tokio::time::timeout(Duration::from_mins(1), opened).await;
    opened.expect("it opens");
}

async fn a_name_is_not_free_while_its_shares_are_held() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let store = &Store::open(&url, 4, Clock::default()).await.expect("opens");
    let replica = |token: &str, lease_ms| Replica {
        token: token.to_owned(),
        name: "worker-1".to_owned(),
        lease_ms,
        beat_ms: 100,
    };
    let second = replica("second", TERM_MS);
    let join = async |dead| store.join(&second, dead).await.expect("answers");

    // Its lease has run out, but not that of its shares; and a turn is a sign of life.
    let first = replica("first", -1);
    assert_eq!(store.join(&first, None).await.expect("answers"), None);
    turn(store, "first", holds(7)).await;
    let seen = join(None).await.expect("has the name");
    tokio::time::sleep(Duration::from_millis(5)).await;
    turn(store, "first", holds(7)).await;
    let moved = join(Some(&seen)).await.expect("has the name");
    assert_ne!(moved.shares_until, seen.shares_until);
    assert_eq!(moved.lease_until, seen.lease_until);
    // What it may still use is kept, even if it gives no more signs of life…
    assert_eq!(join(Some(&moved)).await, None);
    let book = turn(store, "second", ShareEntry::default()).await;
    assert_eq!(by_token(&book), BTreeMap::from([("first", 7)]));

    // …and what it may not use any more is not.
    let third = replica("third", TERM_MS);
    turn(store, "second", holds(3)).await;
    let lapse = "UPDATE share_holders SET held_until = 0 WHERE token = 'second'";
    engines::execute(&url, lapse).await;
    let seen = store.join(&third, None).await.expect("answers");
    let joined = store.join(&third, seen.as_ref()).await.expect("answers");
    assert_eq!(joined, None);
    let book = turn(store, "third", ShareEntry::default()).await;
    assert_eq!(by_token(&book), BTreeMap::from([("first", 7)]));
}

async fn an_exchange_that_keeps_its_lease_writes_what_has_changed_alone() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let store = &Store::open(&url, 4, Clock::default()).await.expect("opens");
    let lasts = |held| ShareEntry {
        lease_lasts: true,
        ..holds(held)
    };
    let mut database = Session::open(&url).await;
    let mut until = async || {
        database
            .number("SELECT held_until FROM share_holders")
            .await
    };
    turn(store, "a", holds(7)).await;
    let begun = until().await;
    for held in [7, 3] {
        tokio::time::sleep(Duration::from_millis(5)).await;
        turn(store, "a", lasts(held)).await;
        assert_eq!(until().await, begun);
    }
    let book = turn(store, "a", holds(3)).await;
    assert_eq!(by_token(&book), BTreeMap::from([("a", 3)]));
    assert!(until().await > begun);
}

/// Each takes one as long as there is one: if two turns ran at once, both would take the last.
async fn turns_never_overlap() {
    let (stores, _directory) = stores(4).await;
    let tasks = stores.into_iter().enumerate().map(|(number, store)| {
        tokio::spawn(async move {
            let token = number.to_string();
            let mut mine = 0;
            for _ in 0..10 {
                let decide = |book: &ShareBook| {
                    let sum: u64 = by_token(book).into_values().sum();
                    let more = u64::from(sum < 10);
                    (holds(mine + more), mine + more)
                };
                let taken = store.exchange_shares(&token, TERM_MS, &[], decide).await;
                mine = taken.expect("has its turn");
            }
            mine
        })
    });
    let taken = futures::future::join_all(tasks).await;
    let sum: u64 = taken.into_iter().map(|mine| mine.expect("ends")).sum();
    assert_eq!(sum, 10);
}

on_every_engine![
    what_a_process_writes_the_next_one_reads,
    a_cooldown_lasts_until_the_latest_time_that_any_process_gave,
    a_name_is_not_free_while_its_shares_are_held,
    an_exchange_that_keeps_its_lease_writes_what_has_changed_alone,
    turns_never_overlap,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_in_its_turn_does_not_hold_up_the_others() {
    on(Engine::Postgres, async {
        let (stores, _directory) = stores(2).await;
        let (is_in_turn, in_turn) = tokio::sync::oneshot::channel();
        let (goes_on, may_go_on) = mpsc::channel::<()>();
        let stopped = stores[0].clone();
        let stopped = tokio::spawn(async move {
            let decide = move |_: &ShareBook| {
                is_in_turn.send(()).expect("is waited for");
                let waits = || may_go_on.recv_timeout(Duration::from_mins(1));
                tokio::task::block_in_place(waits).expect("the other had its turn");
                (holds(10), ())
            };
            stopped.exchange_shares("stopped", 1_000, &[], decide).await
        });
        in_turn.await.expect("has its turn");
        turn(&stores[1], "other", holds(10)).await;
        goes_on.send(()).expect("waits");
        stopped.await.expect("ends").expect_err("its turn was over");
        let book = turn(&stores[1], "other", holds(10)).await;
        assert_eq!(by_token(&book), BTreeMap::from([("other", 10)]));
    })
    .await;
}
