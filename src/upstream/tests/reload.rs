//! Other settings in the place of those before, while calls are in flight.

use std::sync::Weak;

use tokio::time::Instant;

use super::*;
use crate::upstream::attempt::client::Client;
use crate::upstream::testing::answered;

const NOWHERE: &str = "http://127.0.0.1:1/v1";

fn one(name: &str, concurrency: usize) -> UpstreamSettings {
    UpstreamSettings {
        concurrency,
        ..upstream(name, NOWHERE)
    }
}

/// One model `m`, over these upstreams by turns.
fn by_turns(upstreams: Vec<UpstreamSettings>) -> Settings {
    let routes = upstreams.iter().map(|one| route(&one.name, None));
    let mut model = model("m", routes.collect());
    model.balance = Strategy::RoundRobin;
    settings(upstreams, vec![model])
}

fn routes(pool: &Pool) -> Arc<Routes> {
    pool.resolve("m").expect("is served")
}

fn take_by(pool: &Arc<Pool>, routes: &Arc<Routes>) -> Option<Permit> {
    match pool.try_acquire(routes, &History::default(), 0, None) {
        Acquired::Permit(permit) => Some(permit),
        _ => None,
    }
}

fn take(pool: &Arc<Pool>) -> Option<Permit> {
    take_by(pool, &routes(pool))
}

/// The names of the upstreams that take the next lines, until none does.
fn taken(pool: &Arc<Pool>, held: &mut Vec<Permit>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(permit) = take(pool) {
        names.push(permit.backend().upstream_name().to_owned());
        held.push(permit);
    }
    names
}

fn client(pool: &Pool, place: usize) -> Weak<Client> {
    Arc::downgrade(&routes(pool).targets[place].client)
}

#[tokio::test]
async fn what_keeps_its_name_keeps_its_state() {
    let pool = pool(&by_turns(vec![one("a", 9), one("b", 9), one("c", 9)]));
    let mut held = vec![take(&pool).expect("a place"), take(&pool).expect("a place")];
    let clients = [client(&pool, 0), client(&pool, 1)];
    // Others stand before them now, and one of their limits is another one.
    pool.reload(&by_turns(vec![one("c", 9), one("a", 1), one("b", 2)]))
        .expect("good settings");
    let all = pool.snapshot().into_iter();
    let all = all.map(|one| (one.name, one.in_flight, one.share, one.limit));
    let expected = [("c", 0, 9, 9), ("a", 1, 1, 1), ("b", 1, 2, 2)];
    let expected =
        expected.map(|(name, in_flight, share, limit)| (name.to_owned(), in_flight, share, limit));
    assert_eq!(all.collect::<Vec<_>>(), expected);
    let now = [client(&pool, 1), client(&pool, 2)];
    for (before, now) in clients.iter().zip(&now) {
        assert!(Weak::ptr_eq(before, now), "its connections are kept");
    }
    let taken = taken(&pool, &mut held);
    assert_eq!(taken.iter().filter(|name| *name == "a").count(), 0);
    assert_eq!(taken.iter().filter(|name| *name == "b").count(), 1);
    drop(held);
    assert!(pool.targets().in_flight().iter().all(|calls| *calls == 0));
}

#[tokio::test]
async fn a_strategy_remembers_as_long_as_its_routes_are_the_same() {
    let three = || vec![one("a", 9), one("b", 9), one("c", 9)];
    let pool = pool(&by_turns(three()));
    let mut names = Vec::new();
    for turn in 0..6 {
        if turn % 2 == 0 {
            pool.reload(&by_turns(three())).expect("good settings");
        }
        let permit = take(&pool).expect("a place");
        names.push(permit.backend().upstream_name().to_owned());
    }
    assert_eq!(names, ["a", "b", "c", "a", "b", "c"]);
}

#[tokio::test]
async fn an_upstream_that_is_gone_takes_nothing_and_ends_what_is_in_flight() {
    let pool = pool(&by_turns(vec![one("gone", 9), one("stays", 9)]));
    let (before, mut history) = (routes(&pool), History::default());
    let permit = take(&pool).expect("a place");
    assert_eq!(permit.backend().upstream_name(), "gone");
    pool.reload(&by_turns(vec![one("stays", 9)]))
        .expect("good settings");
    assert!(!pool.has(&before));
    // Whoever has not looked yet leads no line there.
    for _ in 0..4 {
        let permit = take_by(&pool, &before).expect("a place");
        assert_eq!(permit.backend().upstream_name(), "stays");
    }
    let now = pool.renewed(&before, None, "m").expect("is served");
    assert_eq!(now.targets.len(), 1);
    assert!(Arc::ptr_eq(
        &now,
        &pool.renewed(&now, None, "m").expect("is served")
    ));
    let gone = Arc::downgrade(&before.targets[0].client);
    drop(before);
    assert!(gone.upgrade().is_some(), "its call goes on");
    assert_eq!(answered(permit, &mut history, 200), None, "and ends");
    assert!(gone.upgrade().is_none(), "then nothing of it stays");
    assert!(pool.targets().in_flight().iter().all(|calls| *calls == 0));
    assert_eq!(pool.snapshot().len(), 1);
}

#[tokio::test]
async fn a_model_that_is_gone_is_served_by_nobody() {
    let both = vec![
        model("m", vec![route("a", None)]),
        model("n", vec![route("a", None)]),
    ];
    let pool = pool(&settings(vec![one("a", 1)], both.clone()));
    let before = routes(&pool);
    pool.reload(&settings(vec![one("a", 1)], both[1..].to_vec()))
        .expect("good settings");
    assert!(pool.resolve("m").is_none() && pool.renewed(&before, None, "m").is_none());
    assert!(pool.resolve("n").is_some());
    assert_eq!(pool.limits().lane(before.lane), 0, "nothing may be sent");
    pool.reload(&settings(vec![one("a", 1)], both))
        .expect("good settings");
    assert_eq!(routes(&pool).lane, before.lane, "it is known again");
}

#[tokio::test]
async fn a_model_whose_own_limit_is_taken_away_has_that_of_its_upstream() {
    let limited = |concurrency| {
        let mut settings = by_turns(vec![one("a", 4)]);
        settings.models[0].concurrency = concurrency;
        settings
    };
    let pool = pool(&limited(Some(1)));
    let mut held = Vec::new();
    assert_eq!(taken(&pool, &mut held).len(), 1);
    pool.reload(&limited(None)).expect("good settings");
    assert_eq!(taken(&pool, &mut held).len(), 3);
    pool.reload(&limited(Some(3))).expect("good settings");
    held.truncate(1);
    assert_eq!(taken(&pool, &mut held).len(), 2, "what is in flight counts");
}

#[tokio::test]
async fn the_lines_of_a_task_count_for_its_models_wherever_these_stand() {
    let limited = |name: &str, concurrency| ModelSettings {
        concurrency,
        ..model(name, vec![route("a", None)])
    };
    let task = |name: &str, models: &[&str]| TaskSettings {
        name: name.to_owned(),
        models: models.iter().map(|&model| model.to_owned()).collect(),
        balance: Strategy::default(),
        defaults: serde_json::Map::new(),
        overrides: serde_json::Map::new(),
    };
    let with = |models: Vec<ModelSettings>, tasks: Vec<TaskSettings>| Settings {
        tasks,
        ..settings(vec![one("a", 9)], models)
    };
    let pool = pool(&with(vec![limited("m", Some(1))], vec![task("t", &["m"])]));
    let before = pool.resolve_for(Some("t"), "").expect("is served");
    let permit = take_by(&pool, &before).expect("a place");
    assert!(take(&pool).is_none(), "the task has the model's place");
    let others = vec![
        limited("x", None),
        limited("n", None),
        limited("m", Some(1)),
    ];
    let tasks = vec![task("u", &["x"]), task("t", &["m", "n"])];
    pool.reload(&with(others, tasks)).expect("good settings");
    assert!(take(&pool).is_none(), "and keeps it");
    let now = pool.renewed(&before, Some("t"), "").expect("is served");
    assert_eq!(now.lane, before.lane);
    let by_other = take_by(&pool, &now).expect("a place");
    assert_eq!(by_other.backend().model(), "n");
    drop(permit);
    assert!(take(&pool).is_some(), "until its call has ended");
    pool.reload(&with(vec![limited("m", Some(1))], Vec::new()))
        .expect("good settings");
    assert!(pool.renewed(&now, Some("t"), "").is_none(), "it is gone");
    drop(by_other);
    assert!(
        pool.targets()
            .in_flight_by_lane()
            .iter()
            .all(|calls| *calls == 0)
    );
}

#[tokio::test]
async fn what_was_closed_is_open_once_it_is_called_in_another_way() {
    let closed = |pool: &Arc<Pool>| {
        let mut state = pool.snapshot().into_iter().map(|one| one.state);
        state.next().expect("one") == UpstreamState::Ejected
    };
    let with_key = |key: &str, concurrency: usize| UpstreamSettings {
        keys: vec![super::key("KEY", key)],
        ..one("a", concurrency)
    };
    let pool = pool(&by_turns(vec![with_key("sk-1", 4)]));
    let mut history = History::default();
    answered(take(&pool).expect("a place"), &mut history, 401);
    assert!(closed(&pool), "its key is refused");
    pool.reload(&by_turns(vec![with_key("sk-1", 5)]))
        .expect("good settings");
    assert!(closed(&pool), "it is called as before");
    pool.reload(&by_turns(vec![with_key("sk-2", 5)]))
        .expect("good settings");
    assert!(!closed(&pool), "it has another key");
    assert!(take(&pool).is_some());
}

#[tokio::test]
async fn a_limit_has_one_share_when_its_upstream_gets_other_keys() {
    let with_keys = |names: [&str; 2]| UpstreamSettings {
        keys: names.map(|name| super::key(name, "sk-1")).into(),
        ..one("a", 4)
    };
    let pool = pool(&by_turns(vec![with_keys(["K1", "K2"])]));
    let in_flight = take(&pool).expect("a place");
    let other_keys = by_turns(vec![with_keys(["K1", "K3"])]);
    pool.reload(&other_keys).expect("good settings");
    let limits = pool.limits();
    let named = limits.all().map(|(_, name, _)| name);
    assert_eq!(named.collect::<Vec<_>>(), ["upstream:a"]);
    let mut held = Vec::new();
    let taken_now = taken(&pool, &mut held).len();
    assert_eq!(taken_now, 3, "the call by the earlier keys has a place");
    assert_eq!(pool.targets().in_flight().iter().max(), Some(&4));
    pool.reload(&other_keys).expect("good settings");
    assert!(take(&pool).is_none(), "and keeps it");
    drop(in_flight);
    assert!(take(&pool).is_some(), "until it has ended");
}

#[tokio::test]
async fn certificates_that_are_others_in_their_file_hold() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = || {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let pem = certified.expect("a certificate").cert.pem();
        std::fs::write(file.path(), pem).expect("is written");
    };
    write();
    let trusting = by_turns(vec![UpstreamSettings {
        ca_file: Some(file.path().to_owned()),
        ..one("a", 1)
    }]);
    let pool = pool(&trusting);
    let first = client(&pool, 0);
    pool.reload(&trusting).expect("good settings");
    assert!(Weak::ptr_eq(&first, &client(&pool, 0)), "they are the same");
    write();
    pool.reload(&trusting).expect("good settings");
    let second = client(&pool, 0);
    assert!(!Weak::ptr_eq(&first, &second), "they are others");
    std::fs::remove_file(file.path()).expect("is removed");
    assert_eq!(pool.reload(&trusting).expect_err("is bad").upstream, "a");
    assert!(Weak::ptr_eq(&second, &client(&pool, 0)), "nothing changes");
}

#[tokio::test]
async fn bad_settings_change_nothing() {
    let pool = pool(&by_turns(vec![one("a", 1)]));
    let before = routes(&pool);
    let bad = UpstreamSettings {
        ca_file: Some("/there/is/none".into()),
        ..one("b", 1)
    };
    let fault = pool.reload(&by_turns(vec![one("a", 7), bad]));
    assert_eq!(fault.expect_err("is bad").upstream, "b");
    let elsewhere = settings(vec![one("a", 7)], vec![model("m", vec![route("x", None)])]);
    assert_eq!(pool.reload(&elsewhere).expect_err("is bad").upstream, "x");
    assert!(pool.has(&before) && pool.limits().share(0) == 1);
}

#[tokio::test]
async fn a_rate_limit_keeps_what_was_used_of_it_and_takes_another_size() {
    let limited = |limits: &[(RateKind, u64)]| UpstreamSettings {
        rate_limits: limits
            .iter()
            .map(|&(kind, limit)| RateLimit {
                kind,
                limit,
                period: Duration::from_mins(1),
            })
            .collect(),
        ..one("a", 9)
    };
    let pool = pool(&by_turns(vec![limited(&[(RateKind::Requests, 600)])]));
    let shown = |pool: &Pool| {
        let status = pool.rate_limits().status().into_iter();
        let shown = status.map(|one| (one.kind, one.limit, one.reserved));
        shown.collect::<Vec<_>>()
    };
    let request = Some(LineSize::default().into());
    let take =
        |pool: &Arc<Pool>| match pool.try_acquire(&routes(pool), &History::default(), 0, request) {
            Acquired::Permit(permit) => Some(permit),
            _ => None,
        };
    let exchange = |pool: &Pool| {
        let (limits, valid) = (pool.rate_limits(), Duration::from_mins(1));
        let books = limits.resources().into_iter().map(|resource| RateBook {
            resource,
            ..RateBook::default()
        });
        let (now_ms, books) = (1_800_000_000_000, books.collect::<Vec<_>>());
        let turns = limits.take_turn("me", now_ms, valid, &books, false);
        limits.end_turn(turns, now_ms, valid);
    };
    assert!(take(&pool).is_none(), "nothing is granted yet");
    exchange(&pool);
    let permit = take(&pool).expect("is granted");
    assert_eq!(shown(&pool), [(RateKind::Requests, 600, 1)]);
    let both = [(RateKind::Tokens, 100), (RateKind::Requests, 60)];
    pool.reload(&by_turns(vec![limited(&both)]))
        .expect("good settings");
    assert_eq!(
        shown(&pool),
        [(RateKind::Requests, 60, 1), (RateKind::Tokens, 100, 0)]
    );
    pool.reload(&by_turns(vec![one("a", 9)]))
        .expect("good settings");
    assert_eq!(shown(&pool), []);
    assert!(!routes(&pool).are_rate_limited());
    assert_eq!(
        pool.rate_limits().resources().len(),
        1,
        "what is left is given back"
    );
    drop(permit);
    exchange(&pool);
    assert_eq!(
        pool.rate_limits().resources().len(),
        0,
        "and nothing is told then"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_reloads_leave_nothing_behind() {
    let pool = pool(&by_turns(vec![one("steady", 4)]));
    let mut gone: Vec<Weak<Client>> = Vec::new();
    let mut held: Vec<Permit> = Vec::new();
    let begun = Instant::now();
    for turn in 0..1_000 {
        let name = format!("new-{turn}");
        let mut settings = by_turns(vec![one(&name, 4), one("steady", 4)]);
        settings.models[0].routes[0].concurrency = Some(2);
        settings.models[0].name = "m*".to_owned();
        settings.models.push(model(&name, vec![route(&name, None)]));
        pool.reload(&settings).expect("good settings");
        gone.push(client(&pool, 0));
        held.extend(take(&pool));
        if held.len() > 3 {
            drop(held.remove(0));
        }
    }
    assert_eq!(begun, Instant::now());
    drop(held);
    pool.reload(&by_turns(vec![one("steady", 4)]))
        .expect("good settings");
    assert!(gone.iter().all(|client| client.upgrade().is_none()));
    assert!(
        pool.targets().in_flight().len() < 10,
        "numbers are used again"
    );
    assert!(pool.limits().places() < 30);
    assert_eq!(pool.targets().backends.all(None).len(), 1);
}
