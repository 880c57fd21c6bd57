//! Whom an error concerns: the line, or who answers, and who else is told.

use super::*;

const TOO_LONG: &str = r#"{"error":{"message":"x","code":"context_length_exceeded"}}"#;

/// A model with a route to each of these, the first one in the lowest tier.
fn in_tiers(servers: &[&Server]) -> Arc<Pool> {
    let names: Vec<String> = (0..servers.len()).map(|n| format!("u{n}")).collect();
    let named = || names.iter().zip(servers);
    let upstreams = named().map(|(name, server)| upstream(name, &server.base_url));
    let routes = names.iter().zip(0..).map(|(name, tier)| RouteSettings {
        tier,
        ..route(name, None)
    });
    pool(&settings(
        upstreams.collect(),
        vec![model("m", routes.collect())],
    ))
}

#[tokio::test]
async fn an_error_of_the_line_is_its_answer_and_is_tried_nowhere_else() {
    for status in [400, 404, 413, 422] {
        let body = r#"{"error":{"message":"wrong","code":"invalid_value"}}"#;
        let first = Server::start(move |_| reply(status, body)).await;
        let second = Server::start(|_| reply(200, "{}")).await;
        let pool = in_tiers(&[&first, &second]);
        let answer = to_its_end(&pool).await;
        assert_eq!((answer.status, &answer.body[..]), (status, body.as_bytes()));
        let calls = [&first, &second].map(|one| one.seen("POST").len());
        assert_eq!(calls, [1, 0], "{status}");
        assert_eq!(pool.snapshot()[0].state, UpstreamState::Up, "{status}");
    }
}

#[tokio::test]
async fn a_line_that_is_too_long_goes_to_a_route_that_takes_more() {
    let short = Server::start(|_| reply(400, TOO_LONG)).await;
    let long = Server::start(|_| reply(200, "{}")).await;
    let pool = in_tiers(&[&short, &long]);
    for _ in 0..3 {
        assert_eq!(to_its_end(&pool).await.status, 200);
    }
    let calls = [&short, &long].map(|one| one.seen("POST").len());
    assert_eq!(calls, [3, 3], "each line asks where it should go first");
    assert_eq!(pool.snapshot()[0].state, UpstreamState::Up);
}

#[tokio::test]
async fn a_line_that_is_too_long_everywhere_ends_with_what_was_said_last() {
    let one = Server::start(|_| reply(400, TOO_LONG)).await;
    let last = r#"{"error":{"message":"This model's maximum context length is 8 tokens."}}"#;
    let two = Server::start(move |_| reply(400, last)).await;
    let pool = in_tiers(&[&one, &two]);
    let answer = to_its_end(&pool).await;
    assert_eq!((answer.status, &answer.body[..]), (400, last.as_bytes()));
    let calls = [&one, &two].map(|one| one.seen("POST").len());
    assert_eq!(calls, [1, 1]);
}

#[tokio::test]
async fn a_line_that_is_too_long_waits_for_a_route_that_is_full() {
    let short = Server::start(|seen| match &seen.body[..] {
        b"long" => reply(400, TOO_LONG),
        _ => reply(200, "{}"),
    })
    .await;
    let long = Server::start(|_| reply(200, "{}")).await;
    let upstreams = vec![
        upstream("short", &short.base_url),
        UpstreamSettings {
            concurrency: 1,
            ..upstream("long", &long.base_url)
        },
    ];
    let routes = ["short", "long"].map(|name| route(name, None)).to_vec();
    let pool = pool(&settings(upstreams, vec![model("m", routes)]));
    // The first line goes to the first route, the second one to the other, and stays there.
    let (first, held) = (permit(&pool, "m"), permit(&pool, "m"));
    assert_eq!([first.upstream(), held.upstream()], [0, 1]);
    drop(first);
    let mut history = History::default();
    let said = retried(send_again(&pool, &mut history, "long").await).answer;
    assert_eq!(said.expect("is kept").status, 400);
    for _ in 0..20 {
        retried(send_again(&pool, &mut history, "long").await);
        for _ in 0..10 {
            answer(line(&pool).await);
        }
    }
    let is_long = |seen: &&Seen| &seen.body[..] == b"long";
    let calls = short.seen("POST").iter().filter(is_long).count();
    assert_eq!(calls, 1, "what it would say is known");
    drop(held);
    let last = send_again(&pool, &mut history, "long").await;
    assert_eq!(last.target.upstream_name(), "long");
    assert_eq!(answer(last).status, 200);
}

/// A model whose lines go to `long` first, which takes two at once and any line, and to `short`
/// while `long` is full.
fn long_before_short(long: &Server, short: &Server) -> Arc<Pool> {
    let upstreams = vec![
        UpstreamSettings {
            concurrency: 2,
            ..upstream("long", &long.base_url)
        },
        upstream("short", &short.base_url),
    ];
    let mut routes = ["long", "short"].map(|name| route(name, None)).to_vec();
    routes[1].tier = 1;
    let mut model = model("m", routes);
    model.spill = Spill::Full;
    let mut settings = settings(upstreams, vec![model]);
    // No place is kept so short that a busy machine could miss it.
    settings.retry.initial_backoff = Duration::from_mins(1);
    settings.retry.max_backoff = Duration::from_mins(1);
    pool(&settings)
}

async fn takes_no_long_ones() -> Server {
    Server::start(|seen| match &seen.body[..] {
        b"long" => reply(400, TOO_LONG),
        _ => reply(200, "{}"),
    })
    .await
}

#[tokio::test]
async fn a_line_that_one_route_alone_takes_gets_the_next_place_there_however_full_it_is_kept() {
    let (long, short) = (
        Server::start(|_| reply(200, "{}")).await,
        takes_no_long_ones().await,
    );
    let pool = long_before_short(&long, &short);
    let mut at_long = [permit(&pool, "m"), permit(&pool, "m")];
    assert!(at_long.iter().all(|permit| permit.upstream() == 0));
    let mut history = History::default();
    let mut others = 0;
    loop {
        let attempt = send_again(&pool, &mut history, "long").await;
        if attempt.target.upstream_name() == "long" {
            assert_eq!(answer(attempt).status, 200);
            break;
        }
        retried(attempt);
        assert!(others < 20, "others have had every place that became free");
        // A call ends, and the next line of others is there at once.
        let [first, second] = at_long;
        drop(first);
        let next = permit(&pool, "m");
        others += usize::from(next.upstream() == 0);
        at_long = [second, next];
    }
    assert!(
        others <= 1,
        "{others}: the place is kept from the first pause on"
    );
    drop(at_long);
    let after = [permit(&pool, "m"), permit(&pool, "m")];
    assert!(
        after.iter().all(|permit| permit.upstream() == 0),
        "{after:?}"
    );
}

#[tokio::test]
async fn a_place_that_nobody_comes_for_is_not_kept_for_ever() {
    let (long, short) = (
        Server::start(|_| reply(200, "{}")).await,
        takes_no_long_ones().await,
    );
    let pool = long_before_short(&long, &short);
    let [first, _second] = [permit(&pool, "m"), permit(&pool, "m")];
    let mut history = History::default();
    retried(send_again(&pool, &mut history, "long").await);
    retried(send_again(&pool, &mut history, "long").await);
    drop(first);
    assert_eq!(permit(&pool, "m").upstream(), 1, "the place is kept");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(permit(&pool, "m").upstream(), 0);
}

#[tokio::test]
async fn a_line_comes_back_soon_for_the_place_that_is_kept_for_it_however_long_others_pause() {
    let (long, short) = (
        Server::start(|_| reply(200, "{}")).await,
        takes_no_long_ones().await,
    );
    let pool = long_before_short(&long, &short);
    let _held = [permit(&pool, "m"), permit(&pool, "m")];
    let mut pauses = Vec::new();
    for _ in 0..2 {
        let mut history = History::default();
        retried(send_again(&pool, &mut history, "long").await);
        let paused = send_again(&pool, &mut history, "long").await;
        let Next::Again { after, .. } = paused.next else {
            panic!("it has ended: {paused:?}");
        };
        pauses.push(after);
    }
    assert!(pauses[0] < Duration::from_secs(5), "{pauses:?}");
    assert!(pauses[1] > Duration::from_secs(5), "{pauses:?}");
}

#[tokio::test]
async fn a_line_that_is_too_long_by_one_key_is_so_by_the_others() {
    for spill in [Spill::Full, Spill::Closed, Spill::Late] {
        let short = Server::start(|_| reply(400, TOO_LONG)).await;
        let long = Server::start(|_| reply(200, "{}")).await;
        let mut first = upstream("short", &short.base_url);
        first.keys = ["a", "b", "c"].map(|name| key(name, name)).to_vec();
        let upstreams = vec![first, upstream("long", &long.base_url)];
        let mut routes = ["short", "long"].map(|name| route(name, None)).to_vec();
        routes[1].tier = 1;
        let mut model = model("m", routes);
        model.spill = spill;
        let pool = pool(&settings(upstreams, vec![model]));
        assert_eq!(to_its_end(&pool).await.status, 200);
        let calls = [&short, &long].map(|one| one.seen("POST").len());
        assert_eq!(calls, [1, 1], "{spill:?}");
    }
}

#[tokio::test]
async fn what_a_server_asks_for_is_told_to_other_processes_whatever_its_status() {
    for (status, is_told) in [
        (429, true),
        (503, true),
        (529, true),
        (500, true),
        (400, false),
    ] {
        let server = Server::start(move |_| reply(status, "{}").header("retry-after", "30")).await;
        let pool = in_tiers(&[&server]);
        line(&pool).await;
        let told = pool.targets().cooldowns_to_share();
        assert_eq!(told.len(), usize::from(is_told), "{status}: {told:?}");
        let other = in_tiers(&[&server]);
        for cooldown in &told {
            other.targets().follow_cooldown(cooldown);
        }
        let routes = other.resolve("m").expect("is served");
        assert_eq!(other.targets().is_open(&routes), !is_told, "{status}");
    }
    // Without a time, each finds out for itself.
    let server = Server::start(|_| reply(503, "{}")).await;
    let pool = in_tiers(&[&server]);
    line(&pool).await;
    assert!(pool.targets().cooldowns_to_share().is_empty());
}
