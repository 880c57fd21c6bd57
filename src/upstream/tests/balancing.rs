//! Which of a model's routes takes a line: strategies, tiers, limits of routes.

use super::super::target::Ended;
use super::*;

const NOWHERE: &str = "http://127.0.0.1:1/v1";

fn upstreams(names: &[&str], places: usize) -> Vec<UpstreamSettings> {
    let one = |name: &&str| {
        let mut upstream = upstream(name, NOWHERE);
        upstream.concurrency = places;
        upstream
    };
    names.iter().map(one).collect()
}

/// Routes to these upstreams, each a tier of its own where they are to be tiers.
fn routes_to(names: &[&str], are_tiers: bool) -> Vec<RouteSettings> {
    let one = |(place, name): (usize, &&str)| {
        let mut route = route(name, None);
        route.tier = if are_tiers { place as u32 } else { 0 };
        route
    };
    names.iter().enumerate().map(one).collect()
}

/// The upstream that takes a line; `None` where it must wait for a place.
fn take(pool: &Arc<Pool>, held: &mut Vec<Permit>) -> Option<usize> {
    let routes = pool.resolve("m").expect("is served");
    match pool.try_acquire(&routes, &History::default(), 0, None) {
        Acquired::Permit(permit) => {
            let upstream = permit.upstream();
            held.push(permit);
            Some(upstream)
        }
        Acquired::Full => None,
        other => panic!("neither sent nor kept: {other:?}"),
    }
}

/// The call finds nobody.
fn fails(permit: Permit) {
    let ended = Ended {
        result: CallResult::Unreachable,
        status: None,
        retry_after: None,
        used: None,
        remaining: Vec::new(),
        cause: "no connection".to_owned(),
    };
    permit.finish(&mut History::default(), &ended);
}

fn skipped(pool: &Arc<Pool>) -> Vec<Option<&'static str>> {
    let lanes = pool.lanes();
    let routes = lanes[0].routes.iter();
    routes
        .map(|route| route.skipped.map(Skipped::as_str))
        .collect()
}

#[test]
fn row_09_thirty_lines_at_once_over_three_upstreams_are_ten_each() {
    for balance in [
        Strategy::LeastBusy,
        Strategy::Weighted,
        Strategy::RoundRobin,
        Strategy::LeastRecentlyUsed,
    ] {
        let names = ["a", "b", "c"];
        let mut model = model("m", routes_to(&names, false));
        model.balance = balance;
        let pool = pool(&settings(upstreams(&names, 100), vec![model]));
        let mut held = Vec::new();
        for _ in 0..30 {
            take(&pool, &mut held).expect("a place");
        }
        assert_eq!(pool.targets().in_flight(), [10, 10, 10], "{balance:?}");
    }
}

#[test]
fn each_strategy_finds_the_last_place() {
    for balance in Strategy::ALL {
        let names = ["a", "b", "c"];
        let mut model = model("m", routes_to(&names, false));
        model.balance = balance;
        model.routes[1].weight = 50;
        let pool = pool(&settings(upstreams(&names, 7), vec![model]));
        let mut held = Vec::new();
        for _ in 0..21 {
            take(&pool, &mut held).expect("a place");
        }
        assert_eq!(take(&pool, &mut held), None, "{balance:?}");
        let freed = held.remove(11).upstream();
        assert_eq!(take(&pool, &mut held), Some(freed), "{balance:?}");
    }
}

#[tokio::test]
async fn a_higher_tier_waits_until_no_lower_one_is_open() {
    let names = ["own", "rented", "paid"];
    let model = model("m", routes_to(&names, true));
    let pool = pool(&settings(upstreams(&names, 2), vec![model]));
    let mut held = Vec::new();
    assert_eq!(skipped(&pool), [None, Some("tier"), Some("tier")]);
    let taken = [(); 3].map(|()| take(&pool, &mut held));
    assert_eq!(taken, [Some(0), Some(0), None], "full is not closed");
    assert_eq!(skipped(&pool), [Some("full"), Some("tier"), Some("tier")]);

    fails(held.remove(0));
    let taken = [(); 3].map(|()| take(&pool, &mut held));
    assert_eq!(taken, [Some(1), Some(1), None]);
    assert_eq!(skipped(&pool), [Some("down"), Some("full"), Some("tier")]);

    assert!(pool.targets().reset("own"));
    assert_eq!(take(&pool, &mut held), Some(0), "it is back");
    assert_eq!(skipped(&pool), [Some("full"), Some("tier"), Some("tier")]);
}

#[tokio::test(start_paused = true)]
async fn lines_do_not_wait_for_a_lower_tier_that_is_only_tried() {
    let names = ["own", "paid"];
    let pool = pool(&settings(
        upstreams(&names, 2),
        vec![model("m", routes_to(&names, true))],
    ));
    let mut held = Vec::new();
    take(&pool, &mut held);
    let ended = Ended {
        result: CallResult::Unavailable,
        status: Some(503),
        retry_after: Some(Duration::from_secs(5)),
        used: None,
        remaining: Vec::new(),
        cause: "it is overloaded".to_owned(),
    };
    let permit = held.remove(0);
    permit.finish(&mut History::default(), &ended);
    assert_eq!(take(&pool, &mut held), Some(1));
    assert_eq!(skipped(&pool), [Some("down"), None]);

    tokio::time::advance(Duration::from_secs(6)).await;
    let taken = [(); 2].map(|()| take(&pool, &mut held));
    assert_eq!(taken, [Some(0), Some(1)], "one line tries");
    assert_eq!(skipped(&pool), [Some("down"), Some("full")]);
}

#[tokio::test]
async fn a_higher_tier_takes_what_the_lower_ones_have_no_place_for() {
    let names = ["own", "paid"];
    let mut model = model("m", routes_to(&names, true));
    model.spill = Spill::Full;
    let pool = pool(&settings(upstreams(&names, 2), vec![model]));
    let mut held = Vec::new();
    assert_eq!(skipped(&pool), [None, Some("tier")]);
    let taken = [(); 5].map(|()| take(&pool, &mut held));
    assert_eq!(taken, [Some(0), Some(0), Some(1), Some(1), None]);
    assert_eq!(skipped(&pool), [Some("full"), Some("full")]);
    drop(held.remove(0));
    assert_eq!(take(&pool, &mut held), Some(0));
}

#[tokio::test(start_paused = true)]
async fn where_lines_spill_late_only_those_that_may_spill_go_to_the_next_tier() {
    let names = ["own", "paid"];
    let mut model = model("m", routes_to(&names, true));
    model.spill = Spill::Late;
    let pool = pool(&settings(upstreams(&names, 2), vec![model]));
    let routes = pool.resolve("m").expect("is served");
    assert!(routes.spill_late() && pool.spills_late());
    let mut held = Vec::new();
    let taken = [(); 3].map(|()| take(&pool, &mut held));
    assert_eq!(taken, [Some(0), Some(0), None]);
    assert_eq!(skipped(&pool), [Some("full"), Some("tier")]);
    let spill = |history: &History| match pool.try_spill(&routes, history, 0, None) {
        Acquired::Permit(permit) => Some(permit),
        _ => None,
    };
    let late = spill(&History::default()).expect("the paid upstream has a place");
    assert_eq!(late.upstream(), 1);
    assert!(late.is_above_lowest_tier() && !held[0].is_above_lowest_tier());
    // A place of the lowest tier comes first, and a tier that is down is waited for.
    held.clear();
    let late = spill(&History::default()).expect("the own upstream has a place");
    assert_eq!(late.upstream(), 0);
    fails(late);
    assert_eq!(take(&pool, &mut held), None);
}

#[tokio::test]
async fn a_line_that_failed_stays_in_its_tier_while_that_is_open() {
    let names = ["own", "other", "paid"];
    let mut routes = routes_to(&names, false);
    routes[2].tier = 1;
    let pool = pool(&settings(upstreams(&names, 1), vec![model("m", routes)]));
    let routes = pool.resolve("m").expect("is served");
    let again = |avoid| match pool.try_acquire(&routes, &failed_at(&routes, avoid), 0, None) {
        Acquired::Permit(permit) => permit,
        other => panic!("no permit: {other:?}"),
    };
    for avoid in [0, 1, 0, 1] {
        let first = again(avoid);
        assert_eq!(first.upstream(), 1 - avoid);
        assert_eq!(again(avoid).upstream(), avoid, "no other has a place");
    }
}

#[test]
fn the_target_of_the_last_failure_comes_after_all_others_whatever_the_strategy() {
    for balance in Strategy::ALL {
        let mut routes = routes_to(&["a", "a", "b"], false);
        routes[1].model = Some("other".to_owned());
        let mut model = model("m", routes);
        model.balance = balance;
        let mut both = upstreams(&["a", "b"], 2);
        both[1].concurrency = 1;
        let pool = pool(&settings(both, vec![model]));
        let routes = pool.resolve("m").expect("is served");
        let mut held = Vec::new();
        let mut next = || {
            let history = failed_at(&routes, 0);
            let Acquired::Permit(permit) = pool.try_acquire(&routes, &history, 0, None) else {
                panic!("no place");
            };
            let model = permit.backend().model().to_owned();
            held.push(permit);
            (held[held.len() - 1].upstream(), model)
        };
        let expected = [(1, "m"), (0, "other"), (0, "other")];
        let expected = expected.map(|(upstream, model)| (upstream, model.to_owned()));
        assert_eq!([next(), next(), next()], expected, "{balance:?}");
    }
}

#[tokio::test]
async fn a_line_goes_to_the_next_tier_if_its_model_is_in_none_of_the_lower() {
    let missing = r#"{"error":{"message":"no such model","code":"model_not_found"}}"#;
    let servers = [
        Server::start(move |_| reply(404, missing)).await,
        Server::start(move |_| reply(404, missing)).await,
        Server::start(|_| reply(200, "{}")).await,
    ];
    let names = ["own", "other", "paid"];
    let mut routes = routes_to(&names, false);
    routes[2].tier = 1;
    let all = names.iter().zip(&servers);
    let all = all.map(|(name, server)| upstream(name, &server.base_url));
    let pool = pool(&settings(all.collect(), vec![model("m", routes)]));
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
    assert_eq!(last.status, 200);
    assert_eq!(servers.map(|server| server.seen("POST").len()), [1, 1, 1]);
}

#[test]
fn a_route_takes_no_more_calls_than_its_own_limit() {
    let names = ["a", "b"];
    let mut small = model("m", routes_to(&names, false));
    small.routes[0].concurrency = Some(2);
    let other = model("other", routes_to(&names, false));
    let pool = pool(&settings(upstreams(&names, 5), vec![small, other]));
    let routes = pool.resolve("m").expect("is served");
    assert_eq!(pool.limits().lane(routes.lane), 7);
    let other = pool.resolve("other").expect("is served");
    assert_eq!(pool.limits().lane(other.lane), 10);

    let mut held = Vec::new();
    for _ in 0..7 {
        take(&pool, &mut held).expect("a place");
    }
    assert_eq!(take(&pool, &mut held), None);
    assert_eq!(pool.targets().in_flight(), [2, 5]);
    assert_eq!(skipped(&pool), [Some("full"), Some("full")]);
    let calls = pool.lanes()[0].routes[0].calls.expect("a limit");
    assert_eq!((calls.in_flight, calls.share, calls.limit), (2, 2, 2));
    // The upstream's other places are for others.
    let Acquired::Permit(_other) = pool.try_acquire(&other, &History::default(), 0, None) else {
        panic!("no place");
    };
    let place = held.iter().position(|permit| permit.upstream() == 0);
    drop(held.remove(place.expect("one is at it")));
    assert_eq!(take(&pool, &mut held), Some(0));
}

#[test]
fn the_limit_of_a_route_is_shared_as_others_are() {
    let names = ["a", "b"];
    let mut model = model("m", routes_to(&names, false));
    model.concurrency = Some(9);
    model.routes[1].concurrency = Some(4);
    let pool = pool(&settings(upstreams(&names, 5), vec![model]));
    let limits = pool.limits();
    let all: Vec<_> = limits.all().collect();
    let expected = [
        (0, "upstream:a", 5),
        (1, "upstream:b", 5),
        (2, "model:m", 9),
        (3, "route:m > b", 4),
    ];
    assert_eq!(all, expected);
    limits.share_out();
    let mut held = Vec::new();
    assert_eq!(take(&pool, &mut held), None);
    limits.grant(&[(0, 5), (1, 5), (2, 9), (3, 1)], false);
    for _ in 0..6 {
        take(&pool, &mut held).expect("a place");
    }
    assert_eq!(take(&pool, &mut held), None);
    assert_eq!(pool.targets().in_flight(), [5, 1]);
    assert_eq!(pool.targets().in_flight_by_route(), [1]);
}

/// A model whose own upstream has a window, which comes after the limits of the upstreams.
fn with_window(names: &[&str]) -> Arc<Pool> {
    let mut upstreams = upstreams(names, 2);
    upstreams[0].is_auto = true;
    let mut model = model("m", routes_to(names, true));
    model.spill = Spill::Late;
    pool(&settings(upstreams, vec![model]))
}

#[test]
fn where_the_own_tier_has_a_place_for_nobody_lines_are_leased_for_the_paid_tier() {
    let pool = with_window(&["own", "paid"]);
    let routes = pool.resolve("m").expect("is served");
    let (targets, limits) = (pool.targets(), pool.limits());
    limits.share_out();
    limits.grant(&[(0, 2), (1, 2), (2, 0)], false);
    assert!(targets.lacks_share(&routes), "another process has them");
    limits.resize_window(0, 0);
    assert!(targets.has_share(&routes) && !targets.lacks_share(&routes));
    limits.grant(&[(0, 2), (1, 0), (2, 0)], false);
    assert!(targets.lacks_share(&routes));
}

#[test]
fn lines_stay_in_hand_while_no_process_has_a_place() {
    let pool = with_window(&["own"]);
    let routes = pool.resolve("m").expect("is served");
    let (targets, limits) = (pool.targets(), pool.limits());
    limits.share_out();
    limits.grant(&[(0, 2), (1, 0)], false);
    assert!(targets.lacks_share(&routes));
    limits.resize_window(0, 0);
    assert!(!targets.has_share(&routes) && !targets.lacks_share(&routes));
}

#[test]
fn a_process_without_a_share_of_the_model_leases_no_lines_of_its_task() {
    let mut model = model("m", routes_to(&["own"], false));
    model.concurrency = Some(1);
    let mut settings = settings(upstreams(&["own"], 2), vec![model]);
    settings.tasks.push(TaskSettings {
        name: "t".to_owned(),
        models: vec!["m".to_owned()],
        balance: Strategy::default(),
        defaults: serde_json::Map::new(),
        overrides: serde_json::Map::new(),
    });
    let pool = pool(&settings);
    let (targets, limits) = (pool.targets(), pool.limits());
    let names = [(None, "m"), (Some("t"), ""), (Some("t"), "m")];
    let all = names.map(|(task, model)| pool.resolve_for(task, model).expect("is served"));
    limits.share_out();
    for (shares, is_mine) in [([(0, 2), (1, 0)], false), ([(0, 1), (1, 1)], true)] {
        limits.grant(&shares, false);
        for routes in &all {
            assert_eq!(targets.has_share(routes), is_mine);
            assert_eq!(targets.lacks_share(routes), !is_mine);
            assert_eq!(limits.lane(routes.lane), usize::from(is_mine));
            assert_eq!(limits.lane_allowed(routes.lane), 1);
        }
    }
}

#[tokio::test]
async fn shares_are_wanted_of_the_tiers_that_lines_may_go_to() {
    let names = ["own", "paid"];
    let mut tiers = model("m", routes_to(&names, true));
    tiers.routes[1].concurrency = Some(3);
    let wanted = |pool: &Arc<Pool>| {
        let routes = pool.resolve("m").expect("is served");
        let all = pool.limits();
        let limits = pool.targets().limits_in_reach(&all, &routes);
        limits.collect::<Vec<_>>()
    };
    let closed = pool(&settings(upstreams(&names, 2), vec![tiers.clone()]));
    assert_eq!(wanted(&closed), [0]);
    let mut held = Vec::new();
    take(&closed, &mut held);
    fails(held.remove(0));
    assert_eq!(wanted(&closed), [0, 2, 1]);
    tiers.spill = Spill::Full;
    let full = pool(&settings(upstreams(&names, 2), vec![tiers]));
    assert_eq!(wanted(&full), [0, 2, 1]);
}

#[tokio::test]
async fn the_fastest_target_is_found_from_what_answers_report() {
    let answer = |tokens: usize| {
        let body = format!(r#"{{"choices":[],"usage":{{"completion_tokens":{tokens}}}}}"#);
        reply(200, &body)
    };
    // The slow call writes so much more that it is the faster one.
    let eager = Server::start(move |_| answer(1_000).after(20)).await;
    let lazy = Server::start(move |_| answer(1).after(5)).await;
    let both = vec![
        upstream("lazy", &lazy.base_url),
        upstream("eager", &eager.base_url),
    ];
    let mut model = model("m", routes_to(&["lazy", "eager"], false));
    model.balance = Strategy::Fastest;
    let pool = pool(&settings(both, vec![model]));
    // One line after the other, until both are known.
    while eager.seen("POST").len() < 5 || lazy.seen("POST").len() < 5 {
        super::answer(line(&pool).await);
    }
    let before = lazy.seen("POST").len();
    for _ in 0..40 {
        super::answer(line(&pool).await);
    }
    let more = lazy.seen("POST").len() - before;
    assert!(more <= 2, "{more} of 40 explored");
}

#[tokio::test]
async fn what_routes_and_models_set_is_merged_into_the_body() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let object = |value: serde_json::Value| match value {
        serde_json::Value::Object(object) => object,
        other => panic!("no object: {other}"),
    };
    let mut route = route("gpu", Some("there"));
    route.defaults = object(serde_json::json!({"a": "route", "b": "route", "c": "route"}));
    route.overrides = object(serde_json::json!({"d": "route"}));
    let mut model = model("m", vec![route]);
    model.defaults = object(serde_json::json!({"a": "model", "b": "model"}));
    model.overrides = object(serde_json::json!({"d": "model", "e": "model"}));
    let pool = pool(&settings(
        vec![upstream("gpu", &server.base_url)],
        vec![model],
    ));
    let body = r#"{ "model": "m", "a":"line", "d" : "line","e":  "line", "f": 1.50 }"#;
    answer(send(&pool, permit(&pool, "m"), body).await);
    let sent = &server.seen("POST")[0].body;
    let expected = concat!(
        r#"{ "model": "there", "a":"line", "d" : "route","e":  "model", "f": 1.50 "#,
        r#","b":"model","c":"route"}"#
    );
    assert_eq!(std::str::from_utf8(sent).expect("text"), expected);
}
