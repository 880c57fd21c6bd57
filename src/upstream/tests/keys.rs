//! Several keys of one upstream.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Which key a call came with.
fn bearer(seen: &Seen) -> String {
    let header = seen.headers.get("authorization").expect("a key");
    let text = header.to_str().expect("is text");
    text.strip_prefix("Bearer ").expect("a token").to_owned()
}

/// A pool of one upstream with these keys, called like their secrets in capitals.
fn with_keys(base_url: &str, keys: &[&str]) -> Settings {
    let mut one = upstream("one", base_url);
    one.keys = keys.iter().map(|k| key(&k.to_uppercase(), k)).collect();
    settings(vec![one], vec![model("m", vec![route("one", None)])])
}

/// Sends lines until something is so.
async fn lines_until(pool: &Arc<Pool>, is_so: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        to_its_end(pool).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came true: {:?}", keys_of(pool));
}

fn keys_of(pool: &Pool) -> Vec<(String, UpstreamState)> {
    let keys = pool.snapshot().remove(0).keys.into_iter();
    keys.map(|key| (key.name, key.state)).collect()
}

#[tokio::test]
async fn calls_are_spread_over_the_keys_and_concurrency_is_their_total() {
    let server = Server::start(|_| reply(200, "{}").after(300)).await;
    let pool = pool(&with_keys(&server.base_url, &["a", "b"]));
    let routes = pool.resolve("m").expect("is served");
    let permits: Vec<Permit> = (0..4).map(|_| permit(&pool, "m")).collect();
    let full = pool.try_acquire(&routes, &History::default(), 0, None);
    assert!(matches!(full, Acquired::Full), "{full:?}");
    let in_flight: Vec<usize> = pool.snapshot()[0]
        .keys
        .iter()
        .map(|k| k.in_flight)
        .collect();
    assert_eq!(in_flight, [2, 2]);
    for permit in permits {
        answer(send(&pool, permit, r#"{"model":"m"}"#).await);
    }
    let mut used: Vec<String> = server.seen("POST").iter().map(bearer).collect();
    used.sort();
    assert_eq!(used, ["a", "a", "b", "b"]);
    assert!(pool.snapshot()[0].keys.iter().all(|key| key.in_flight == 0));
}

#[tokio::test]
async fn one_after_the_other_goes_by_each_key_in_turn() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let pool = pool(&with_keys(&server.base_url, &["a", "b", "c"]));
    for _ in 0..9 {
        answer(line(&pool).await);
    }
    let used: Vec<String> = server.seen("POST").iter().map(bearer).collect();
    assert_eq!(used, ["a", "b", "c"].repeat(3));
}

#[tokio::test]
async fn a_refused_key_is_set_aside_and_fails_no_line() {
    let bodies = [
        (401, r#"{"error":{"message":"no such key"}}"#),
        (402, r#"{"error":{"message":"pay"}}"#),
        (403, r#"{"error":{"message":"not with this key"}}"#),
        (
            429,
            r#"{"error":{"message":"quota","code":"insufficient_quota"}}"#,
        ),
    ];
    for (status, body) in bodies {
        let server = Server::start(move |seen| match bearer(seen).as_str() {
            "bad" => reply(status, body),
            _ => reply(200, "{}"),
        })
        .await;
        let pool = pool(&with_keys(&server.base_url, &["bad", "good"]));
        for _ in 0..40 {
            assert_eq!(to_its_end(&pool).await.status, 200, "{status}");
        }
        let calls = server.seen("POST");
        let refused = calls.iter().filter(|seen| bearer(seen) == "bad").count();
        assert!((1..=8).contains(&refused), "{status}: {refused} calls");
        let keys = keys_of(&pool);
        let expected = [
            ("BAD".to_owned(), UpstreamState::Ejected),
            ("GOOD".to_owned(), UpstreamState::Up),
        ];
        assert_eq!(keys, expected, "{status}");
        assert_eq!(pool.snapshot()[0].state, UpstreamState::Up, "{status}");
        assert_eq!(pool.lanes()[0].routes[0].skipped, None, "{status}");
    }
}

#[tokio::test]
async fn a_key_whose_account_is_to_be_paid_is_set_aside_for_all_models() {
    let server = Server::start(|seen| match bearer(seen).as_str() {
        "unpaid" => reply(402, "pay"),
        _ => reply(200, "{}"),
    })
    .await;
    let mut settings = with_keys(&server.base_url, &["unpaid", "good"]);
    settings.models.push(model("n", vec![route("one", None)]));
    let mut options = hasty();
    options.pace.trial_first = Duration::from_hours(1);
    options.pace.trial_longest = Duration::from_hours(1);
    let pool = Pool::new(&settings, options).expect("a good configuration");
    lines_until(&pool, || keys_of(&pool)[0].1 == UpstreamState::Ejected).await;
    let tried = server.seen("POST").len();
    for model in ["m", "n", "n", "m"] {
        answer(send(&pool, permit(&pool, model), "{}").await);
    }
    let since = server.seen("POST").split_off(tried);
    assert!(since.iter().all(|seen| bearer(seen) == "good"), "{since:?}");
}

#[tokio::test]
async fn a_refused_key_comes_back_by_itself_when_it_is_mended() {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let server = Server::start(move |seen| match bearer(seen).as_str() {
        "b" if !is_mended.load(Ordering::Relaxed) => reply(401, "{}"),
        _ => reply(200, "{}"),
    })
    .await;
    let pool = pool(&with_keys(&server.base_url, &["a", "b"]));
    lines_until(&pool, || keys_of(&pool)[1].1 == UpstreamState::Ejected).await;
    mended.store(true, Ordering::Relaxed);
    lines_until(&pool, || keys_of(&pool)[1].1 == UpstreamState::Up).await;
}

#[tokio::test]
async fn lines_wait_where_no_key_is_left() {
    let server = Server::start(|_| reply(401, "{}")).await;
    let pool = pool(&with_keys(&server.base_url, &["a", "b"]));
    let routes = pool.resolve("m").expect("is served");
    let mut waits = false;
    for _ in 0..20 {
        let mut history = History::default();
        let Acquired::Permit(permit) = pool.try_acquire(&routes, &history, 0, None) else {
            waits = true;
            break;
        };
        let call = Call {
            path: CHAT,
            body: Bytes::from_static(br#"{"model":"m"}"#),
            reservation: pool.budget().reserve(),
            traceparent: None,
        };
        let attempt = pool
            .call(permit, call, &mut history, &mut Timer::default())
            .await;
        retried(attempt);
    }
    assert!(waits, "both keys are set aside");
    let status = pool.snapshot().remove(0);
    assert_eq!(status.state, UpstreamState::Ejected, "{status:?}");
    let skipped = pool.lanes()[0].routes[0].skipped;
    assert!(
        matches!(skipped, Some(Skipped::Ejected { .. })),
        "{skipped:?}"
    );
    assert!(pool.targets().reset("one"));
    assert!(pool.targets().is_open(&routes));
}

#[tokio::test]
async fn a_429_cools_down_the_model_for_that_key_alone_and_others_are_told_so() {
    let server = Server::start(|seen| match bearer(seen).as_str() {
        "a" => reply(429, "{}").header("retry-after", "60"),
        _ => reply(200, "{}"),
    })
    .await;
    let pool = pool(&with_keys(&server.base_url, &["a", "b"]));
    for _ in 0..20 {
        assert_eq!(to_its_end(&pool).await.status, 200);
    }
    let calls = server.seen("POST");
    let limited = calls.iter().filter(|seen| bearer(seen) == "a").count();
    assert_eq!(limited, 1, "it said when to come back");
    let told = pool.targets().cooldowns_to_share();
    let [told] = &told[..] else {
        panic!("one is told: {told:?}");
    };
    assert_eq!((told.key.as_deref(), &*told.model), (Some("A"), "m"));

    let other = super::pool(&with_keys(&server.base_url, &["a", "b"]));
    other.targets().follow_cooldown(told);
    for _ in 0..5 {
        answer(line(&other).await);
    }
    let by_a = server
        .seen("POST")
        .iter()
        .filter(|seen| bearer(seen) == "a")
        .count();
    assert_eq!(by_a, 1, "the other process leaves the key alone, too");
}

#[tokio::test]
async fn the_models_are_asked_for_with_a_key_that_works() {
    let server = Server::start(|seen| match (bearer(seen).as_str(), seen.is_get()) {
        ("a", _) => reply(401, "{}"),
        (_, true) => models(&["m"]),
        _ => reply(200, "{}"),
    })
    .await;
    let mut settings = with_keys(&server.base_url, &["a", "b"]);
    settings.models.clear();
    let (pool, _guard) = running(&settings);
    lines_until(&pool, || keys_of(&pool)[0].1 == UpstreamState::Ejected).await;
    until("the models are listed", || {
        pool.models().iter().any(|model| model.id == "m")
    })
    .await;
    let tried = pool.try_upstreams().await;
    let outcomes: Vec<_> = tried
        .iter()
        .map(|one| (one.subject(), one.models.is_ok()))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("one by A".to_owned(), false),
            ("one by B".to_owned(), true)
        ]
    );
}

/// A pool of one upstream with these keys, where somebody waits.
fn failing_fast(base_url: &str, keys: &[&str], calls: usize, has_succeeded: bool) -> Arc<Pool> {
    let options = Options {
        fail_fast: Some(FailFast {
            calls,
            has_succeeded,
        }),
        ..hasty()
    };
    Pool::new(&with_keys(base_url, keys), options).expect("a good configuration")
}

async fn one_bad_key() -> Server {
    Server::start(|seen| match bearer(seen).as_str() {
        "good" => reply(200, "{}"),
        "limited" => reply(429, "{}").header("retry-after", "60"),
        _ => reply(401, "{}"),
    })
    .await
}

#[tokio::test]
async fn where_somebody_waits_a_line_is_tried_by_each_key() {
    let server = one_bad_key().await;
    let pool = failing_fast(&server.base_url, &["bad", "good"], 20, false);
    pool.targets().has_lines(1);
    let mut history = History::default();
    retried(send_again(&pool, &mut history, "{}").await);
    assert_eq!(pool.targets().hopeless(), None);
    let last = send_again(&pool, &mut history, "{}").await;
    assert_eq!(answer(last).status, 200);

    let pool = failing_fast(&server.base_url, &["bad", "worse"], 20, false);
    pool.targets().has_lines(1);
    let mut history = History::default();
    retried(send_again(&pool, &mut history, "{}").await);
    retried(send_again(&pool, &mut history, "{}").await);
    let cause = pool.targets().hopeless().expect("no key is left");
    assert!(cause.contains("api_key_env"), "{cause}");
}

#[tokio::test]
async fn where_somebody_waits_refusals_of_one_key_say_nothing_of_a_slower_one() {
    let server = one_bad_key().await;
    let pool = failing_fast(&server.base_url, &["bad", "good"], 5, false);
    retried(line(&pool).await);
    let slow = permit(&pool, "m");
    assert_eq!(slow.key(), 1);
    for _ in 0..10 {
        retried(line(&pool).await);
    }
    assert_eq!(pool.targets().hopeless(), None);
    answer(send(&pool, slow, "{}").await);
    for _ in 0..40 {
        assert_eq!(to_its_end(&pool).await.status, 200);
    }
    assert_eq!(pool.targets().hopeless(), None);
}

#[tokio::test]
async fn where_somebody_waits_a_key_that_is_limited_is_waited_for() {
    let server = one_bad_key().await;
    let pool = failing_fast(&server.base_url, &["limited", "bad"], 20, true);
    let routes = pool.resolve("m").expect("is served");
    for _ in 0..100 {
        match pool.try_acquire(&routes, &History::default(), 0, None) {
            Acquired::Permit(permit) => retried(send(&pool, permit, "{}").await),
            _ => break,
        };
    }
    let expected = ["LIMITED", "BAD"].map(|name| (name.to_owned(), UpstreamState::Ejected));
    assert_eq!(keys_of(&pool)[1], expected[1]);
    assert!(!pool.targets().is_open(&routes));
    assert_eq!(pool.targets().hopeless(), None);
}

#[tokio::test]
async fn a_route_that_has_embeddings_alone_works() {
    let missing = r#"{"error":{"message":"x","code":"model_not_found"}}"#;
    for (status, body) in [
        (400, missing),
        (404, missing),
        (404, "no such path"),
        (403, "no"),
    ] {
        let server = Server::start(move |seen| match &*seen.path {
            "/v1/embeddings" => reply(200, "{}"),
            _ => reply(status, body),
        })
        .await;
        let trials = pool(&with_keys(&server.base_url, &["a"]))
            .try_routes(None)
            .await;
        let [trial] = &trials[..] else {
            panic!("one route: {trials:?}");
        };
        let answer = trial.outcome.as_ref().expect("an answer");
        assert_eq!(
            (answer.status, &answer.problem),
            (200, &None),
            "{status} {body}"
        );
    }
}
