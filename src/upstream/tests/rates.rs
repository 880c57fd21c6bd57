//! Rate limits on calls, with the books of the store in memory.

use futures::FutureExt as _;

use super::*;
use crate::domain::json;

/// Between two turns, by the clock of the books.
const PAUSE_MS: i64 = 5_000;
const VALID: Duration = Duration::from_secs(10);

fn limited(base_url: &str, limits: &[(RateKind, u64)]) -> Arc<Pool> {
    let mut one = upstream("one", base_url);
    let limits = limits.iter().map(|&(kind, limit)| RateLimit {
        kind,
        limit,
        period: Duration::from_mins(1),
    });
    one.rate_limits = limits.collect();
    pool(&settings(
        vec![one],
        vec![model("m", vec![route("one", None)])],
    ))
}

/// What the store has, and its time.
struct Books {
    all: Vec<RateBook>,
    now_ms: i64,
}

fn books() -> Books {
    Books {
        all: Vec::new(),
        now_ms: 1_800_000_000_000,
    }
}

fn limits(pool: &Pool) -> &RateLimits {
    pool.rate_limits()
}

/// A turn of the process at its books.
fn exchange(pool: &Pool, books: &mut Books) {
    books.now_ms += PAUSE_MS;
    for resource in limits(pool).resources() {
        if books.all.iter().all(|book| book.resource != resource) {
            books.all.push(RateBook {
                resource,
                ..RateBook::default()
            });
        }
    }
    let turns = limits(pool).take_turn("me", books.now_ms, VALID, &books.all, false);
    for turn in &turns {
        let at = books
            .all
            .iter()
            .position(|book| book.resource == turn.resource);
        let at = at.unwrap_or_else(|| {
            books.all.push(RateBook {
                resource: turn.resource.clone(),
                ..RateBook::default()
            });
            books.all.len() - 1
        });
        if turn.book.is_some() {
            books.all[at].book.clone_from(&turn.book);
        }
        if let Some(grant) = &turn.grant {
            books.all[at].grants = vec![grant.clone()];
        }
    }
    limits(pool).end_turn(turns, books.now_ms, VALID);
}

fn size(max_output: u64) -> LineSize {
    let body = format!(r#"{{"model":"m","max_tokens":{max_output}}}"#);
    size_of(&body)
}

fn size_of(body: &str) -> LineSize {
    let mut size = LineSize::new();
    let read = json::members(body, |key, value| size.note(key, value));
    assert!(read.is_some(), "{body}");
    size.of(CHAT, body.as_bytes())
}

fn acquire(pool: &Arc<Pool>, size: LineSize) -> Acquired {
    let routes = pool.resolve("m").expect("is served");
    assert!(routes.are_rate_limited());
    pool.try_acquire(&routes, &History::default(), 0, Some(size.into()))
}

/// A permit, for which as many turns are taken as are needed.
fn granted(pool: &Arc<Pool>, books: &mut Books, size: LineSize) -> Permit {
    for _ in 0..3 {
        match acquire(pool, size) {
            Acquired::Permit(permit) => return permit,
            Acquired::Limited { .. } => exchange(pool, books),
            other => panic!("neither sent nor kept: {other:?}"),
        }
    }
    panic!("nothing is granted");
}

/// By limit: what calls have reserved.
fn reserved(pool: &Pool) -> Vec<u64> {
    let status = limits(pool).status();
    status.iter().map(|limit| limit.reserved).collect()
}

/// By limit: what of it is used.
fn used(pool: &Pool, books: &mut Books) -> Vec<u64> {
    exchange(pool, books);
    let status = limits(pool).status();
    let used = |limit: &RateStatus| (limit.saturation * limit.limit as f64).round() as u64;
    status.iter().map(used).collect()
}

#[tokio::test]
async fn a_limit_that_is_spent_keeps_no_other_from_asking_for_a_turn() {
    let limited = |name: &str, limit: u64| {
        let mut one = upstream(name, "http://127.0.0.1:1/v1");
        one.rate_limits = vec![RateLimit {
            kind: RateKind::Requests,
            limit,
            period: Duration::from_mins(1),
        }];
        one
    };
    let pool = pool(&settings(
        vec![limited("small", 1), limited("large", 1_000)],
        vec![
            model("m", vec![route("small", None)]),
            model("n", vec![route("large", None)]),
        ],
    ));
    let (mut books, limits) = (books(), limits(&pool));
    exchange(&pool, &mut books);
    let _all = granted(&pool, &mut books, size(1));
    let refused = |model: &str| {
        let routes = pool.resolve(model).expect("is served");
        let request = Some(size(1).into());
        let acquired = pool.try_acquire(&routes, &History::default(), 0, request);
        matches!(acquired, Acquired::Limited { .. })
    };
    assert!(refused("m"), "it is spent");
    let after = limits.exchange_in().expect("there is something to tell");
    while limits.asked().now_or_never().is_some() {}
    assert!(refused("n"), "nothing is granted yet");
    assert!(limits.asked().now_or_never().is_some(), "it asks aloud");
    assert!(limits.exchange_in() < Some(after), "its turn is sooner");
}

const BOTH: [(RateKind, u64); 2] = [(RateKind::Requests, 60), (RateKind::Tokens, 60_000)];

#[tokio::test]
async fn a_line_is_sent_once_it_is_granted_what_it_needs() {
    let (pool, mut books) = (limited("http://127.0.0.1:1/v1", &BOTH), books());
    exchange(&pool, &mut books);
    assert!(matches!(
        acquire(&pool, size(100)),
        Acquired::Limited { .. }
    ));
    assert!(limits(&pool).exchange_in().is_some(), "it asks");
    exchange(&pool, &mut books);
    let Acquired::Permit(permit) = acquire(&pool, size(100)) else {
        panic!("it was granted");
    };
    assert_eq!(reserved(&pool), [1, 100 + 8]);
    drop(permit);
}

#[tokio::test]
async fn a_call_that_was_never_sent_is_given_back_whole() {
    let (pool, mut books) = (limited(&nobody().await, &BOTH), books());
    exchange(&pool, &mut books);
    drop(granted(&pool, &mut books, size(100)));
    assert_eq!(reserved(&pool), [0, 0]);
    assert_eq!(used(&pool, &mut books), [0, 0], "cut before it was sent");
    let permit = granted(&pool, &mut books, size(100));
    retried(send(&pool, permit, "{}").await);
    assert_eq!(reserved(&pool), [0, 0]);
    assert_eq!(used(&pool, &mut books), [0, 0], "no connection");
}

#[tokio::test]
async fn the_usage_of_an_answer_settles_what_was_reserved() {
    let server = Server::start(|seen| match seen.nth {
        0 => reply(
            200,
            r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":20}}"#,
        ),
        1 => reply(500, "{}"),
        _ => reply(
            200,
            r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":300}}"#,
        ),
    })
    .await;
    let (pool, mut books) = (limited(&server.base_url, &BOTH), books());
    exchange(&pool, &mut books);
    let permit = granted(&pool, &mut books, size(100));
    answer(send(&pool, permit, "{}").await);
    assert_eq!(used(&pool, &mut books), [1, 25], "less: it goes back");
    let permit = granted(&pool, &mut books, size(100));
    retried(send(&pool, permit, "{}").await);
    assert_eq!(used(&pool, &mut books), [2, 25 + 108], "a failure pays");
    let permit = granted(&pool, &mut books, size(100));
    answer(send(&pool, permit, "{}").await);
    // What is owed is paid in the turn after the one in which it was told.
    used(&pool, &mut books);
    assert_eq!(
        used(&pool, &mut books),
        [3, 25 + 108 + 305],
        "more: it is owed"
    );
    assert_eq!(reserved(&pool), [0, 0]);
}

#[tokio::test]
async fn what_the_provider_says_is_left_holds_at_once() {
    let server = Server::start(|_| {
        reply(200, r#"{"choices":[]}"#)
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "10m")
    })
    .await;
    let one = [(RateKind::Requests, 60)];
    let (pool, mut books) = (limited(&server.base_url, &one), books());
    exchange(&pool, &mut books);
    let permit = granted(&pool, &mut books, size(1));
    answer(send(&pool, permit, "{}").await);
    exchange(&pool, &mut books);
    let Acquired::Limited { until: Some(_) } = acquire(&pool, size(1)) else {
        panic!("it would be refused");
    };
    assert!(pool.targets().rate_limits_due().is_some(), "one timer");
}

#[tokio::test]
async fn what_needs_more_than_a_limit_is_said_to_be_too_large() {
    let (pool, mut books) = (limited("http://127.0.0.1:1/v1", &BOTH), books());
    exchange(&pool, &mut books);
    let Acquired::TooLarge(cause) = acquire(&pool, size(60_001)) else {
        panic!("it can never be sent");
    };
    assert!(cause.contains("60000 tokens"), "{cause}");
}

/// Of a model with two tiers: only the route of the lower one has limits.
fn tiered(base_url: &str, spill: Spill) -> Arc<Pool> {
    let limits = BOTH.map(|(kind, limit)| RateLimit {
        kind,
        limit,
        period: Duration::from_mins(1),
    });
    let (mut own, mut next) = (route("own", None), route("vendor", None));
    own.rate_limits = limits.to_vec();
    next.tier = 1;
    // The configuration has the higher tier first: limits are a route's, wherever it comes to
    // stand.
    let mut model = model("m", vec![next, own]);
    model.spill = spill;
    let upstreams = vec![
        upstream("vendor", "http://127.0.0.1:1/v1"),
        upstream("own", base_url),
    ];
    pool(&settings(upstreams, vec![model]))
}

fn reasons(pool: &Pool) -> Vec<Option<&'static str>> {
    let lanes = pool.lanes();
    let routes = lanes[0].routes.iter();
    let reasons = routes.map(|route| route.skipped.map(Skipped::as_str));
    reasons.collect()
}

#[tokio::test]
async fn lines_wait_for_a_lower_tier_whose_limit_is_spent() {
    let server = Server::start(|_| {
        reply(200, r#"{"choices":[]}"#)
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "10m")
    })
    .await;
    let (pool, mut books) = (tiered(&server.base_url, Spill::Closed), books());
    exchange(&pool, &mut books);
    let permit = granted(&pool, &mut books, size(100));
    assert_eq!(permit.upstream(), 1);
    answer(send(&pool, permit, "{}").await);
    exchange(&pool, &mut books);
    let Acquired::Limited { until: Some(_) } = acquire(&pool, size(100)) else {
        panic!("the next tier is not for lines that can wait");
    };
    assert_eq!(reasons(&pool), [Some("limit"), Some("tier")]);
    let routes = pool.resolve("m").expect("is served");
    assert!(
        !pool.targets().was_open(&routes),
        "no units are leased for it"
    );
    let Acquired::Permit(permit) = acquire(&pool, size(60_001)) else {
        panic!("the lower tier can never take it");
    };
    assert_eq!(permit.upstream(), 0);
}

#[tokio::test]
async fn a_tier_whose_limit_is_spent_is_full() {
    let (pool, mut books) = (tiered("http://127.0.0.1:2/v1", Spill::Full), books());
    exchange(&pool, &mut books);
    let Acquired::Permit(permit) = acquire(&pool, size(10)) else {
        panic!("the next tier takes it");
    };
    assert_eq!(permit.upstream(), 0, "nothing is granted yet");
}

#[tokio::test]
async fn how_long_an_answer_may_be_is_what_the_line_is_sent_with() {
    let server = "http://127.0.0.1:1/v1";
    let reserved_for = async |defaults: &[(&str, u64)], overrides: &[(&str, u64)], body: &str| {
        let mut one = upstream("one", server);
        one.rate_limits = vec![RateLimit {
            kind: RateKind::OutputTokens,
            limit: 60_000,
            period: Duration::from_mins(1),
        }];
        let map = |members: &[(&str, u64)]| {
            let members = members.iter();
            members
                .map(|&(key, value)| (key.to_owned(), value.into()))
                .collect()
        };
        let mut model = model("m", vec![route("one", None)]);
        model.defaults = map(defaults);
        model.overrides = map(overrides);
        let (pool, mut books) = (pool(&settings(vec![one], vec![model])), books());
        exchange(&pool, &mut books);
        let _permit = granted(&pool, &mut books, size_of(body));
        reserved(&pool)[0]
    };
    let (default, over) = ([("max_tokens", 40)], [("max_tokens", 30)]);
    assert_eq!(reserved_for(&default, &[], r#"{"n":2}"#).await, 80);
    let stated = r#"{"max_tokens":50}"#;
    assert_eq!(reserved_for(&default, &[], stated).await, 50);
    assert_eq!(reserved_for(&default, &over, stated).await, 30);
}

#[tokio::test]
async fn lines_that_share_a_call_count_as_one_request_and_with_the_tokens_of_all() {
    let limits = [
        (RateKind::Requests, 600),
        (RateKind::InputTokens, 60_000),
        (RateKind::OutputTokens, 60_000),
    ];
    let (pool, mut books) = (limited("http://127.0.0.1:1/v1", &limits), books());
    let line = LineSize {
        bytes: 400,
        is_input_only: true,
        ..LineSize::default()
    };
    let mut permit = granted(&pool, &mut books, line);
    assert!(!permit.extend(40), "no more is granted than was asked for");
    drop(permit);
    exchange(&pool, &mut books);
    let mut permit = granted(&pool, &mut books, line);
    assert_eq!(reserved(&pool), [1, 100, 0]);
    assert!(permit.extend(40), "that was asked for");
    assert_eq!(reserved(&pool), [1, 110, 0]);
    assert!(!permit.extend(4 * 60_000), "more than there is");
    assert_eq!(reserved(&pool), [1, 110, 0]);
    // A call that is never sent gives back all of it.
    drop(permit);
    assert_eq!(reserved(&pool), [0, 0, 0]);
    assert_eq!(used(&pool, &mut books), [0, 0, 0]);
}
