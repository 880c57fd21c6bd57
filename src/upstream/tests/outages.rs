//! Upstreams in trouble: down, refused, limited, and back again.

use tokio::time::Instant;

use super::*;

fn closed(pool: &Arc<Pool>) -> Option<Option<Instant>> {
    let routes = pool.resolve("m").expect("is served");
    match pool.try_acquire(&routes, None) {
        Acquired::Closed { until } => Some(until),
        _ => None,
    }
}

fn state(pool: &Pool) -> UpstreamState {
    pool.status()[0].state
}

#[tokio::test]
async fn an_upstream_that_nobody_answers_for_is_down_until_a_probe_is_answered() {
    let base_url = nobody().await;
    let (pool, _guard) = running(&config(
        vec![upstream("gpu", &base_url)],
        vec![model("m", vec![route("gpu", None)])],
    ));
    let retry = retried(line(&pool).await);
    assert!(!retry.costs_attempt && retry.answer.is_none());
    assert_eq!(retry.cause.kind, CauseKind::Unavailable);
    assert!(retry.cause.message.contains("refused"), "{:?}", retry.cause);
    assert_eq!(closed(&pool), Some(None));
    let status = pool.status().remove(0);
    assert_eq!(
        (status.state, status.answered),
        (UpstreamState::Down, false)
    );
    assert!(status.cause.expect("a cause").contains("refused"));

    let address = base_url
        .trim_start_matches("http://")
        .trim_end_matches("/v1");
    let listener = TcpListener::bind(address).await.expect("still free");
    let server = Server::on(listener, |seen| match seen.is_get() {
        true if seen.nth < 2 => reply(502, "nobody here"),
        _ => reply(200, "{}"),
    });
    tokio::time::timeout(Duration::from_secs(60), pool.changed().notified())
        .await
        .expect("the dispatcher is woken");
    assert_eq!(state(&pool), UpstreamState::Up);
    assert_eq!(server.seen("GET").len(), 3);
    assert!(
        server.seen("POST").is_empty(),
        "no line was used as a probe"
    );
    answer(line(&pool).await);
    assert_eq!(pool.status()[0].cause, None);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_an_outage() {
    // Longer than a part of a name can be: nobody need be asked.
    let nowhere = format!("http://{}.invalid/v1", "a".repeat(64));
    let pool = pool(&config(vec![upstream("gpu", &nowhere)], vec![]));
    let retry = retried(line(&pool).await);
    assert!(!retry.costs_attempt);
    assert!(
        retry.cause.message.contains("cannot be resolved"),
        "{:?}",
        retry.cause
    );
    assert_eq!(state(&pool), UpstreamState::Down);
}

#[tokio::test]
async fn tls_that_fails_is_an_outage() {
    let base_url = raw(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    let base_url = base_url.replace("http:", "https:");
    let pool = pool(&config(vec![upstream("gpu", &base_url)], vec![]));
    assert!(!retried(line(&pool).await).costs_attempt);
    assert_eq!(state(&pool), UpstreamState::Down);
}

#[tokio::test]
async fn a_server_that_is_loading_loses_no_line() {
    let server = Server::start(|seen| match seen.nth {
        0 if !seen.is_get() => reply(503, "loading").header("retry-after-ms", "100"),
        _ => models(&["m"]),
    })
    .await;
    let (pool, _guard) = running(&config(
        vec![upstream("gpu", &server.base_url)],
        vec![model("*", vec![route("gpu", None)])],
    ));
    let began = Instant::now();
    let retry = retried(line(&pool).await);
    assert!(!retry.costs_attempt);
    assert_eq!(retry.answer.map(|answer| answer.status), Some(503));
    assert_eq!(state(&pool), UpstreamState::Down);
    until("it is up", || state(&pool) == UpstreamState::Up).await;
    assert!(
        began.elapsed() >= Duration::from_millis(100),
        "it asked for that"
    );
    answer(line(&pool).await);
}

#[tokio::test]
async fn lines_go_to_another_upstream_while_one_is_down() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let pool = pool(&config(
        vec![
            upstream("a", &nobody().await),
            upstream("b", &server.base_url),
        ],
        vec![model("m", vec![route("a", None), route("b", None)])],
    ));
    let mut failures = 0;
    for _ in 0..6 {
        match line(&pool).await {
            Verdict::Answer(answer) => assert_eq!(answer.status, 200),
            Verdict::Retry(retry) => {
                assert_eq!(retry.upstream, 0);
                failures += 1;
            }
        }
    }
    assert_eq!(failures, 1);
}

#[tokio::test]
async fn the_upstream_of_the_last_failure_is_avoided_while_another_has_a_place() {
    let mut small = upstream("b", "http://127.0.0.1:1/v1");
    small.concurrency = 1;
    let pool = pool(&config(
        vec![upstream("a", "http://127.0.0.1:1/v1"), small],
        vec![model("m", vec![route("a", None), route("b", None)])],
    ));
    let routes = pool.resolve("m").expect("is served");
    assert_eq!(pool.limits().lane(routes.lane), 5);
    let acquire = || match pool.try_acquire(&routes, Some(0)) {
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
    let (pool, _guard) = running(&config(
        vec![upstream("gpu", &server.base_url)],
        vec![
            model("m", vec![route("gpu", None)]),
            model("alias", vec![route("gpu", Some("m"))]),
            model("other", vec![route("gpu", None)]),
        ],
    ));
    let began = Instant::now();
    let retry = retried(line(&pool).await);
    assert!(!retry.costs_attempt);
    assert_eq!(retry.answer.map(|answer| answer.status), Some(429));
    let until = closed(&pool).expect("closed").expect("known");
    assert!(until > began + Duration::from_millis(150));
    let alias = pool.resolve("alias").expect("is served");
    assert!(
        matches!(pool.try_acquire(&alias, None), Acquired::Closed { .. }),
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
async fn an_upstream_that_refuses_the_key_is_set_aside_until_a_line_passes() {
    let server = Server::start(|seen| match seen.nth {
        0 | 1 => reply(401, "who are you"),
        _ => reply(404, "no such model"),
    })
    .await;
    let (pool, _guard) = running(&config(
        vec![upstream("gpu", &server.base_url)],
        vec![model("m", vec![route("gpu", None)])],
    ));
    let (first, second) = (permit(&pool, "m"), permit(&pool, "m"));
    let retry = retried(send(&pool, first, "{}").await);
    assert!(!retry.costs_attempt);
    let kept = retry.answer.expect("given along for the end of the window");
    assert_eq!((kept.status, &kept.body[..]), (401, &b"who are you"[..]));
    assert_eq!(state(&pool), UpstreamState::Aside);
    assert!(
        closed(&pool).expect("closed").is_some(),
        "it is known when it is tried again"
    );
    assert!(!retried(send(&pool, second, "{}").await).costs_attempt);

    pool.changed().notified().await;
    let trial = permit(&pool, "m");
    assert!(closed(&pool).is_some(), "one line at a time");
    assert_eq!(answer(send(&pool, trial, "{}").await).status, 404);
    assert_eq!(state(&pool), UpstreamState::Up);
    assert_eq!(server.seen("POST").len(), 3);
}

#[tokio::test]
async fn where_somebody_waits_a_refusal_is_the_answer_until_a_call_has_succeeded() {
    let server = Server::start(|seen| match seen.nth {
        0 | 1 | 3 => reply(402, "pay first"),
        _ => reply(200, "{}"),
    })
    .await;
    let settings = PoolSettings {
        final_auth_errors: true,
        ..hasty()
    };
    let config = config(vec![upstream("gpu", &server.base_url)], vec![]);
    let pool = Pool::new(&config, settings).expect("a good configuration");
    for status in [402, 402, 200] {
        assert_eq!(answer(line(&pool).await).status, status);
        assert_eq!(state(&pool), UpstreamState::Up);
    }
    assert!(!retried(line(&pool).await).costs_attempt);
    assert_eq!(state(&pool), UpstreamState::Aside);
}

#[tokio::test]
async fn a_trial_that_is_broken_off_lets_another_line_try() {
    let server = Server::start(|_| reply(403, "no").after(20)).await;
    let pool = pool(&config(vec![upstream("gpu", &server.base_url)], vec![]));
    retried(line(&pool).await);
    until("a line may be tried", || closed(&pool).is_none()).await;
    let trial = permit(&pool, "m");
    assert!(closed(&pool).is_some());
    drop(trial);
    assert!(closed(&pool).is_none());
}
