//! Upstreams in trouble: down, refused, limited, and back again.

use tokio::time::Instant;

use super::*;

#[expect(
    clippy::option_option,
    reason = "closed or not, and until when if that is known"
)]
fn closed(pool: &Arc<Pool>) -> Option<Option<Instant>> {
    let routes = pool.resolve("m").expect("is served");
    match pool.try_acquire(&routes, &History::default(), 0, None) {
        Acquired::Closed { until } => Some(until),
        _ => None,
    }
}

fn state(pool: &Pool) -> UpstreamState {
    pool.snapshot()[0].state
}

#[tokio::test]
async fn an_upstream_that_nobody_answers_for_is_down_until_a_probe_is_answered() {
    let base_url = nobody().await;
    let (pool, _guard) = running(&settings(
        vec![upstream("gpu", &base_url)],
        vec![model("m", vec![route("gpu", None)])],
    ));
    let retry = retried(line(&pool).await);
    assert!(retry.answer.is_none());
    assert_eq!(retry.result, CallResult::Unreachable);
    assert!(retry.cause.contains("refused"), "{:?}", retry.cause);
    assert_eq!(closed(&pool), Some(None));
    let status = pool.snapshot().remove(0);
    assert_eq!(
        (status.state, status.answered),
        (UpstreamState::Down, false)
    );
    assert!(status.cause.expect("a cause").contains("refused"));

    let address = base_url
        .trim_start_matches("http://")
        .trim_end_matches("/v1");
    let listener = TcpListener::bind(address).await.expect("still free");
    let server = Server::on(listener, |seen| {
        if seen.is_get() && seen.nth < 2 {
            reply(502, "nobody here")
        } else {
            reply(200, "{}")
        }
    });
    tokio::time::timeout(Duration::from_mins(1), pool.changed().notified())
        .await
        .expect("the dispatcher is woken");
    assert_eq!(state(&pool), UpstreamState::Up);
    assert_eq!(server.seen("GET").len(), 3);
    assert!(
        server.seen("POST").is_empty(),
        "no line was used as a probe"
    );
    answer(line(&pool).await);
    assert_eq!(pool.snapshot()[0].cause, None);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_an_outage() {
    // Longer than a part of a name can be: nobody need be asked.
    let nowhere = format!("http://{}.invalid/v1", "a".repeat(64));
    let pool = pool(&settings(vec![upstream("gpu", &nowhere)], vec![]));
    let retry = retried(line(&pool).await);
    assert!(
        retry.cause.contains("cannot be resolved"),
        "{:?}",
        retry.cause
    );
    assert_eq!(state(&pool), UpstreamState::Down);
}

#[tokio::test]
async fn tls_that_fails_is_an_outage() {
    let base_url = raw(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    let base_url = base_url.replace("http:", "https:");
    let pool = pool(&settings(vec![upstream("gpu", &base_url)], vec![]));
    retried(line(&pool).await);
    assert_eq!(state(&pool), UpstreamState::Down);
}

#[tokio::test]
async fn a_server_that_is_loading_loses_no_line() {
    let server = Server::start(|seen| match seen.nth {
        0 if !seen.is_get() => reply(503, "loading").header("retry-after-ms", "100"),
        _ => models(&["m"]),
    })
    .await;
    let (pool, _guard) = running(&settings(
        vec![upstream("gpu", &server.base_url)],
        vec![model("*", vec![route("gpu", None)])],
    ));
    let began = Instant::now();
    let retry = retried(line(&pool).await);
    assert_eq!(retry.cause, "the model server answered 503");
    assert_eq!(state(&pool), UpstreamState::Down);
    until("a line may be tried", || closed(&pool).is_none()).await;
    assert!(
        began.elapsed() >= Duration::from_millis(100),
        "it asked for that"
    );
    answer(line(&pool).await);
    assert_eq!(state(&pool), UpstreamState::Up);
}

#[tokio::test]
async fn lines_go_to_another_upstream_while_one_is_down() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let pool = pool(&settings(
        vec![
            upstream("a", &nobody().await),
            upstream("b", &server.base_url),
        ],
        vec![model("m", vec![route("a", None), route("b", None)])],
    ));
    let mut failures = 0;
    for _ in 0..6 {
        let attempt = line(&pool).await;
        if attempt.next == Next::End {
            assert_eq!(answer(attempt).status, 200);
        } else {
            assert_eq!(attempt.target.upstream(), 0);
            failures += 1;
        }
    }
    assert_eq!(failures, 1);
}

#[tokio::test]
async fn the_upstream_of_the_last_failure_is_avoided_while_another_has_a_place() {
    let mut small = upstream("b", "http://127.0.0.1:1/v1");
    small.concurrency = 1;
    let pool = pool(&settings(
        vec![upstream("a", "http://127.0.0.1:1/v1"), small],
        vec![model("m", vec![route("a", None), route("b", None)])],
    ));
    let routes = pool.resolve("m").expect("is served");
    assert_eq!(pool.limits().lane(routes.lane), 5);
    let acquire = || match pool.try_acquire(&routes, &failed_at(&routes, 0), 0, None) {
        Acquired::Permit(permit) => permit,
        other => panic!("no permit: {other:?}"),
    };
    let (first, second) = (acquire(), acquire());
    assert_eq!((first.upstream(), second.upstream()), (1, 0));
}

#[tokio::test]
async fn a_429_closes_the_gate_of_one_model_at_one_upstream() {
    let server = Server::start(|seen| match seen.nth {
        0 => reply(429, "slow down").header("retry-after-ms", "200"),
        _ => reply(200, "{}"),
    })
    .await;
    let (pool, _guard) = running(&settings(
        vec![upstream("gpu", &server.base_url)],
        vec![
            model("m", vec![route("gpu", None)]),
            model("alias", vec![route("gpu", Some("m"))]),
            model("other", vec![route("gpu", None)]),
        ],
    ));
    let began = Instant::now();
    let retry = retried(line(&pool).await);
    assert_eq!(retry.cause, "the model server answered 429");
    let until = closed(&pool).expect("closed").expect("known");
    assert!(until > began + Duration::from_millis(150));
    let alias = pool.resolve("alias").expect("is served");
    assert!(
        matches!(
            pool.try_acquire(&alias, &History::default(), 0, None),
            Acquired::Closed { .. }
        ),
        "the same model"
    );
    drop(permit(&pool, "other"));
    assert_eq!(state(&pool), UpstreamState::Up);
    pool.changed().notified().await;
    assert!(
        began.elapsed() >= Duration::from_millis(200),
        "woken when it opened"
    );
    answer(line(&pool).await);
}

#[tokio::test]
async fn an_upstream_that_refuses_the_key_is_ejected_until_a_line_passes() {
    let server = Server::start(|seen| match seen.nth {
        0 | 1 => reply(401, "who are you"),
        _ => reply(400, "bad"),
    })
    .await;
    let (pool, _guard) = running(&settings(
        vec![upstream("gpu", &server.base_url)],
        vec![
            model("m", vec![route("gpu", None)]),
            model("other", vec![route("gpu", None)]),
        ],
    ));
    let (first, second) = (permit(&pool, "m"), permit(&pool, "m"));
    let retry = retried(send(&pool, first, "{}").await);
    let kept = retry.answer.expect("given along for the end of the window");
    assert_eq!((kept.status, &kept.body[..]), (401, &b"who are you"[..]));
    assert_eq!(state(&pool), UpstreamState::Up, "another is on its way");
    retried(send(&pool, second, "{}").await);
    assert_eq!(state(&pool), UpstreamState::Ejected);
    assert!(
        closed(&pool).expect("closed").is_some(),
        "it is known when it is tried again"
    );
    let other = pool.resolve("other").expect("is served");
    assert!(
        !pool.targets().is_open(&other),
        "the key is that of all models"
    );

    pool.changed().notified().await;
    until("a line may be tried", || closed(&pool).is_none()).await;
    let trial = permit(&pool, "m");
    assert!(!matches!(
        pool.try_acquire(&other, &History::default(), 0, None),
        Acquired::Permit(_)
    ));
    assert_eq!(answer(send(&pool, trial, "{}").await).status, 400);
    assert_eq!(state(&pool), UpstreamState::Up);
    assert_eq!(server.seen("POST").len(), 3);
}

#[tokio::test]
async fn an_answer_that_was_on_its_way_does_not_hide_that_the_key_is_refused() {
    let server = Server::start(|seen| match &seen.body[..] {
        b"slow" => reply(200, "{}").after(150),
        _ => reply(401, "no"),
    })
    .await;
    let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
    let [slow, first, second] = [(); 3].map(|()| permit(&pool, "m"));
    let slow = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { send(&pool, slow, "slow").await }
    });
    retried(send(&pool, first, "{}").await);
    retried(send(&pool, second, "{}").await);
    answer(slow.await.expect("does not panic"));
    let status = pool.snapshot().remove(0);
    assert_eq!(status.state, UpstreamState::Ejected);
    assert_eq!(
        status.cause.as_deref(),
        Some("the model server answered 401")
    );
}

#[tokio::test]
async fn a_model_that_the_key_may_not_use_does_not_keep_others_from_it() {
    let server = Server::start(|seen| match &seen.body[..] {
        b"other" => reply(200, "{}"),
        _ => reply(403, "no"),
    })
    .await;
    let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
    retried(send(&pool, permit(&pool, "m"), "{}").await);
    assert!(closed(&pool).is_some());
    answer(send(&pool, permit(&pool, "other"), "other").await);
    let status = pool.snapshot().remove(0);
    assert_eq!(
        status.state,
        UpstreamState::Up,
        "of all models one is closed"
    );
    assert_eq!(status.models.len(), 1);
    assert_eq!(status.models[0].model, "m");
}

/// What providers say of an account that has nothing left to spend.
const UNPAID: [(ProviderKind, u16, &str); 6] = [
    (ProviderKind::OpenAi, 402, "pay"),
    (
        ProviderKind::OpenAi,
        429,
        r#"{"error":{"message":"x","type":"insufficient_quota"}}"#,
    ),
    (
        ProviderKind::Anthropic,
        400,
        r#"{"type":"error","error":{"type":"invalid_request_error",
            "message":"Your credit balance is too low to access the Anthropic API."}}"#,
    ),
    (
        ProviderKind::Gemini,
        400,
        r#"{"error":{"status":"FAILED_PRECONDITION","message":"Enable billing."}}"#,
    ),
    (ProviderKind::Mistral, 402, r#"{"message":"pay"}"#),
    (
        ProviderKind::Cohere,
        429,
        r#"{"message":"limited to 1000 API calls / month"}"#,
    ),
];

#[tokio::test]
async fn an_account_that_is_to_be_paid_keeps_all_models_from_the_upstream() {
    for (provider, status, body) in UNPAID {
        let server = Server::start(move |_| reply(status, body)).await;
        let mut vendor = upstream("vendor", &server.base_url);
        vendor.provider = provider;
        let pool = pool(&settings(vec![vendor], vec![]));
        let hello = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
        let attempt = retried(send(&pool, permit(&pool, "m"), hello).await);
        assert_eq!(attempt.result, CallResult::Unpaid, "{provider:?} {status}");
        let kept = attempt
            .answer
            .expect("given along for the end of the window");
        assert_eq!(kept.status, status);
        let other = pool.resolve("other").expect("is served");
        assert!(!pool.targets().is_open(&other), "{provider:?} {status}");
        let upstream = pool.snapshot().remove(0);
        assert_eq!(upstream.state, UpstreamState::Ejected);
        let cause = upstream.cause.expect("is said");
        assert!(cause.contains("to be paid"), "{cause}");
    }
}

#[tokio::test]
async fn a_model_that_may_be_used_for_nothing_goes_on_where_another_is_to_be_paid() {
    let server = Server::start(|seen| match &seen.body[..] {
        b"free" => reply(200, "{}"),
        _ => reply(402, "pay"),
    })
    .await;
    let pool = pool(&settings(
        vec![upstream("vendor", &server.base_url)],
        vec![],
    ));
    retried(send(&pool, permit(&pool, "m"), "{}").await);
    assert_eq!(
        state(&pool),
        UpstreamState::Ejected,
        "nothing else is known"
    );
    until("a line may be tried", || closed(&pool).is_none()).await;
    answer(send(&pool, permit(&pool, "free"), "free").await);
    assert_eq!(state(&pool), UpstreamState::Up);
    // From now on it is known that the account is good for something.
    for _ in 0..5 {
        until("a line may be tried", || closed(&pool).is_none()).await;
        retried(send(&pool, permit(&pool, "m"), "{}").await);
        assert_eq!(state(&pool), UpstreamState::Up);
        answer(send(&pool, permit(&pool, "free"), "free").await);
    }
}

#[tokio::test]
async fn an_account_that_is_filled_up_now_and_then_fails_no_line() {
    let server = Server::start(|seen| match seen.nth {
        1 | 3 | 5 | 7 => reply(402, "pay"),
        _ => reply(200, "{}"),
    })
    .await;
    let pool = pool(&settings(
        vec![upstream("vendor", &server.base_url)],
        vec![],
    ));
    let mut unlucky = History::default();
    for _ in 0..4 {
        answer(line(&pool).await);
        retried(send_again(&pool, &mut unlucky, "{}").await);
    }
    answer(line(&pool).await);
    answer(send_again(&pool, &mut unlucky, "{}").await);
}

#[tokio::test]
async fn a_refusal_is_a_lines_own_answer_once_another_has_succeeded_since() {
    for status in [401, 403] {
        let server = Server::start(move |seen| match &seen.body[..] {
            b"bad" => reply(status, "no"),
            _ => reply(200, "{}"),
        })
        .await;
        let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
        answer(line(&pool).await);
        let mut bad = History::default();
        retried(send_again(&pool, &mut bad, "bad").await);
        assert_eq!(closed(&pool), None, "{status} closes nothing by itself");
        answer(line(&pool).await);
        let own = answer(send_again(&pool, &mut bad, "bad").await);
        assert_eq!(own.status, status);
    }
}

fn failing_fast(calls: usize, has_succeeded: bool) -> Options {
    Options {
        fail_fast: Some(FailFast {
            calls,
            has_succeeded,
        }),
        ..hasty()
    }
}

#[tokio::test]
async fn where_somebody_waits_it_is_said_when_all_calls_fail_alike() {
    for (status, body, words) in [
        (401, "no", "api_key_env"),
        (404, "nothing here", "base_url"),
        (307, "", "base_url"),
        (
            404,
            r#"{"error":{"message":"x","code":"model_not_found"}}"#,
            "name of the model",
        ),
    ] {
        let server = Server::start(move |_| reply(status, body)).await;
        let settings = settings(vec![upstream("gpu", &server.base_url)], vec![]);
        let pool = Pool::new(&settings, failing_fast(3, false)).expect("a good configuration");
        for _ in 0..3 {
            assert_eq!(pool.targets().hopeless(), None);
            retried(line(&pool).await);
        }
        let cause = pool.targets().hopeless().expect("it is hopeless");
        assert!(cause.contains(words), "{cause}");
        assert_eq!(closed(&pool), Some(None), "nothing more is sent");
    }
}

#[tokio::test]
async fn where_somebody_waits_a_line_is_tried_at_each_upstream_of_its_tier() {
    let bad = Server::start(|_| reply(401, "no")).await;
    let good = Server::start(|_| reply(200, "{}")).await;
    let upstreams = vec![upstream("a", &bad.base_url), upstream("b", &good.base_url)];
    let model = model("m", vec![route("a", None), route("b", None)]);
    let settings = settings(upstreams, vec![model]);
    let pool = Pool::new(&settings, failing_fast(20, false)).expect("a good configuration");
    pool.targets().has_lines(1);
    let mut history = History::default();
    let first = retried(send_again(&pool, &mut history, "{}").await);
    assert_eq!(first.target.upstream_name(), "a");
    assert_eq!(pool.targets().hopeless(), None);
    let last = send_again(&pool, &mut history, "{}").await;
    assert_eq!(answer(last).status, 200);
}

#[tokio::test]
async fn where_somebody_waits_one_success_shows_that_the_others_are_lines_of_their_own() {
    let server = Server::start(|seen| match seen.nth {
        1 => reply(200, "{}"),
        _ => reply(403, "no"),
    })
    .await;
    let settings = settings(vec![upstream("gpu", &server.base_url)], vec![]);
    let pool = Pool::new(&settings, failing_fast(3, false)).expect("a good configuration");
    let mut bad = History::default();
    retried(send_again(&pool, &mut bad, "{}").await);
    answer(line(&pool).await);
    assert_eq!(answer(send_again(&pool, &mut bad, "{}").await).status, 403);
    assert_eq!(pool.targets().hopeless(), None);
}

#[tokio::test]
async fn where_somebody_waits_a_spent_quota_is_said_at_once() {
    let server = Server::start(|seen| match seen.nth {
        0 => reply(200, "{}"),
        _ => reply(
            429,
            r#"{"error":{"message":"x","code":"insufficient_quota"}}"#,
        ),
    })
    .await;
    let settings = settings(vec![upstream("gpu", &server.base_url)], vec![]);
    let pool = Pool::new(&settings, failing_fast(20, false)).expect("a good configuration");
    answer(line(&pool).await);
    retried(line(&pool).await);
    retried(line(&pool).await);
    let cause = pool.targets().hopeless().expect("it is hopeless");
    assert!(cause.contains("quota is spent"), "{cause}");
}

#[tokio::test]
async fn a_model_that_one_upstream_does_not_have_may_be_at_another() {
    let missing = r#"{"error":{"message":"x","code":"model_not_found"}}"#;
    let without = Server::start(move |_| reply(404, missing)).await;
    let with = Server::start(|_| reply(200, "{}")).await;
    let two = |second: &str| {
        settings(
            vec![upstream("a", &without.base_url), upstream("b", second)],
            vec![model("m", vec![route("a", None), route("b", None)])],
        )
    };
    let pool = pool(&two(&with.base_url));
    for _ in 0..4 {
        let mut history = History::default();
        let attempt = send_again(&pool, &mut history, "{}").await;
        if attempt.next != Next::End {
            assert_eq!(attempt.target.upstream(), 0);
        }
    }
    let neither = Server::start(move |_| reply(404, missing)).await;
    let pool = super::pool(&two(&neither.base_url));
    let mut history = History::default();
    let last = loop {
        let routes = pool.resolve("m").expect("is served");
        let Acquired::Permit(permit) = pool.try_acquire(&routes, &history, 0, None) else {
            panic!("no permit");
        };
        let call = Call {
            path: CHAT,
            body: Bytes::from_static(b"{}"),
            reservation: pool.budget().reserve(),
            traceparent: None,
        };
        let mut timer = Timer::default();
        let attempt = pool.call(permit, call, &mut history, &mut timer).await;
        if attempt.next == Next::End {
            break answer(attempt);
        }
    };
    assert!(last.is_model_missing);
    assert_eq!(
        (!without.seen("POST").is_empty(), neither.seen("POST").len()),
        (true, 1)
    );
}

#[tokio::test]
async fn a_server_that_asks_for_a_day_is_tried_after_the_longest_wait() {
    let server = Server::start(|_| reply(429, "no").header("retry-after", "86400")).await;
    let mut settings = settings(vec![upstream("gpu", &server.base_url)], vec![]);
    settings.retry.longest_wait = Duration::from_millis(50);
    let pool = pool(&settings);
    let Next::Again { after, .. } = line(&pool).await.next else {
        panic!("it is sent again");
    };
    assert!(after <= Duration::from_millis(50), "{after:?}");
    until("a line may be tried", || closed(&pool).is_none()).await;
    let trial = permit(&pool, "m");
    let routes = pool.resolve("m").expect("is served");
    assert!(
        matches!(
            pool.try_acquire(&routes, &History::default(), 0, None),
            Acquired::Full
        ),
        "one line tries"
    );
    drop(trial);
    assert!(pool.targets().reset("gpu") && !pool.targets().reset("other"));
    assert!(pool.snapshot()[0].models.is_empty());
}
