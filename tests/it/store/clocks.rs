//! Machines whose clock is wrong.

use nightshift::internals::domain::batch::Status;
use nightshift::internals::domain::clock::Clock;
use nightshift::internals::store::{Claim, Claimed, NewUpload, Store};

use serde_json::{Value, json};

use super::{Fixture, TENANT};
use crate::support::{CHAT, Server, chat, engines, on_every_engine};

const DAY_MS: i64 = 24 * 3_600_000;

async fn open(fixture: &Fixture, clock: &Clock) -> Store {
    let opened = Store::open(&fixture.url, 4, clock.clone()).await;
    opened.expect("opens")
}

async fn who_has_a_wrong_clock_ends_hides_and_takes_nothing() {
    let fixture = Fixture::new().await;
    let clock = Clock::default();
    let other = open(&fixture, &clock).await;
    let batch = fixture.running(3).await;
    let found = fixture.store.batch(TENANT, &batch).await.expect("finds");
    let file = found.expect("is there").row.input_file_id;
    let tomorrow = fixture.clock.now_ms() + DAY_MS / 2;
    let expires = format!("UPDATE files SET expires_at = {tomorrow} WHERE id = '{file}'");
    engines::execute(&fixture.url, &expires).await;
    let upload = NewUpload {
        file_id: "file-new".to_owned(),
        tenant: TENANT.to_owned(),
        max_stored: None,
    };
    let begun = fixture.store.begin_upload(&upload, &[]).await;
    begun.expect("begins");
    let claim = |token: &str| Claim {
        tenant: TENANT.to_owned(),
        route: "route".to_owned(),
        key: "key".to_owned(),
        token: token.to_owned(),
        fingerprint: String::new(),
    };
    let first = fixture.store.claim(&claim("first")).await.expect("claims");
    assert!(matches!(first, Claimed::Fresh));

    // After it was opened, so that nobody has noticed yet.
    clock.mistake_ms(2 * DAY_MS);
    assert_eq!(other.expire_batches().await.expect("looks"), 0);
    assert_eq!(other.purge(0).await.expect("purges").expired, 0);
    assert_eq!(other.forget_claims().await.expect("looks"), 0);
    let second = other.claim(&claim("second")).await.expect("answers");
    assert!(matches!(second, Claimed::Running));
    assert!(other.delete_file(TENANT, &file).await.expect("deletes"));
    let now = other.now().await.expect("tells the time");
    assert_eq!(other.sweep_uploads(now - 60_000).await.expect("sweeps"), 0);
    let purged = other.purge(now - 60_000).await.expect("purges");
    assert_eq!(purged.removed, 0);

    // What passes for all does pass.
    clock.advance_ms(2 * DAY_MS);
    assert_eq!(other.expire_batches().await.expect("ends"), 1);
    assert_eq!(other.forget_claims().await.expect("looks"), 1);
}

async fn a_wrong_clock_is_set_by_the_databases() {
    let fixture = Fixture::new().await;
    for by in [-365 * DAY_MS, 365 * DAY_MS] {
        let clock = Clock::default();
        clock.mistake_ms(by);
        let _store = open(&fixture, &clock).await;
        let ahead = clock.now_ms() - fixture.clock.now_ms();
        assert!(ahead.abs() < DAY_MS, "{ahead}");
    }
}

async fn a_batch_that_is_created_by_a_wrong_clock_has_its_whole_window() {
    let server = Server::start().await;
    let file = server.upload_batch(chat("a", Value::Null)).await;
    server.clock.mistake_ms(-2 * DAY_MS);
    let body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
    });
    let created = server.create(&body).await;
    let batch = server.ended(&created).await;
    assert_eq!(batch.status, Status::Completed.as_str(), "{batch}");
    let [created, expires] = ["created_at", "expires_at"].map(|at| batch[at].as_i64());
    assert_eq!(expires, created.map(|created| created + DAY_MS / 1000));
    let right = Clock::default().now_ms() / 1000;
    assert!(expires > Some(right), "{batch}");
}

on_every_engine![
    who_has_a_wrong_clock_ends_hides_and_takes_nothing,
    a_wrong_clock_is_set_by_the_databases,
    a_batch_that_is_created_by_a_wrong_clock_has_its_whole_window,
];
