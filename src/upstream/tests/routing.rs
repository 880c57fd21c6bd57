//! Which upstreams serve a model, by configuration and by what upstreams report.

use super::*;

const NOWHERE: &str = "http://127.0.0.1:1/v1";

/// The upstreams that a model's lines can go to.
fn served_by(pool: &Arc<Pool>, model: &str) -> Option<Vec<usize>> {
    let routes = pool.resolve(model)?;
    let mut targets: Vec<_> = routes
        .targets
        .iter()
        .map(|target| target.upstream)
        .collect();
    targets.sort_unstable();
    Some(targets)
}

#[tokio::test]
async fn without_upstreams_no_model_is_served() {
    let pool = pool(&settings(vec![], vec![]));
    assert!(pool.resolve("m").is_none() && pool.resolve("").is_none());
    assert!(pool.models().is_empty() && pool.snapshot().is_empty());
    pool.discovered().await;
}

#[tokio::test]
async fn configured_names_are_served_and_the_star_serves_the_rest() {
    let upstreams = || vec![upstream("a", NOWHERE), upstream("b", NOWHERE)];
    let mut named = model("m", vec![route("b", None)]);
    named.concurrency = Some(3);
    let without_star = pool(&settings(upstreams(), vec![named.clone()]));
    assert_eq!(served_by(&without_star, "m"), Some(vec![1]));
    assert_eq!(served_by(&without_star, "x"), None);
    assert_eq!(served_by(&without_star, ""), None);

    let star = model("*", vec![route("a", Some("base")), route("b", None)]);
    let pool = pool(&settings(upstreams(), vec![named, star]));
    assert_eq!(served_by(&pool, "m"), Some(vec![1]));
    for name in ["x", ""] {
        assert_eq!(served_by(&pool, name), Some(vec![0, 1]));
    }
    let (m, x, y) = (pool.resolve("m"), pool.resolve("x"), pool.resolve("y"));
    let [m, x, y] = [m, x, y].map(|routes| routes.expect("is served"));
    let lane = |routes: &Routes| pool.limits().lane(routes.lane);
    assert_eq!((lane(&m), lane(&x)), (3, 8));
    assert!(m.lane != x.lane && x.lane == y.lane);
    assert!(
        Arc::ptr_eq(&x, &pool.resolve("x").expect("is served")),
        "made once"
    );
    let backend =
        |routes: &Arc<Routes>, index: usize| Arc::as_ptr(&routes.targets[index].by_key[0].backend);
    assert_eq!(
        backend(&x, 0),
        backend(&y, 0),
        "both are the same model there"
    );
    assert_ne!(backend(&x, 1), backend(&y, 1));

    let ids: Vec<_> = pool.models().into_iter().map(|model| model.id).collect();
    assert_eq!(ids, ["m"]);
    assert!(pool.models()[0].created > 1_700_000_000);
    pool.discovered().await;
}

#[tokio::test]
async fn the_most_exact_of_the_names_that_fit_counts() {
    let names = ["exact", "long", "short", "rest"];
    let upstreams = names.map(|name| upstream(name, NOWHERE));
    let models = [
        model("*", vec![route("rest", None)]),
        model("llama-*", vec![route("short", Some("renamed"))]),
        model("llama-3.1-*", vec![route("long", None)]),
        model("llama-3.1-8b", vec![route("exact", None)]),
    ];
    let pool = pool(&settings(upstreams.into(), models.into()));
    for (name, upstream, sent_as, label) in [
        ("llama-3.1-8b", 0, "llama-3.1-8b", "llama-3.1-8b"),
        ("llama-3.1-70b", 1, "llama-3.1-70b", "llama-3.1-*"),
        ("llama-3.1-", 1, "llama-3.1-", "llama-3.1-*"),
        ("llama-3.1", 2, "renamed", "llama-*"),
        ("llama", 3, "llama", "other"),
        ("x-llama-3.1-8b", 3, "x-llama-3.1-8b", "other"),
    ] {
        assert_eq!(served_by(&pool, name), Some(vec![upstream]), "{name}");
        let routes = pool.resolve(name).expect("is served");
        assert_eq!(
            routes.targets[0].by_key[0].backend.model(),
            sent_as,
            "{name}"
        );
        assert_eq!(pool.label(name), label, "{name}");
    }
    assert_eq!(
        served_by(&pool, ""),
        Some(vec![3]),
        "a line without a model"
    );
    let [one, other] = ["llama-3.1-70b", "llama-3.1-405b"].map(|name| pool.resolve(name));
    let lane = |routes: Option<Arc<Routes>>| routes.map(|routes| routes.lane);
    assert_eq!(lane(one), lane(other), "one limit for all");
    let ids: Vec<_> = pool.models().into_iter().map(|model| model.id).collect();
    assert_eq!(ids, ["llama-3.1-8b"]);
}

#[tokio::test]
async fn a_single_upstream_serves_every_model_and_lists_its_own() {
    let server = Server::start(|_| models(&["b", "a"])).await;
    let (pool, _guard) = running(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
    pool.discovered().await;
    assert_eq!(served_by(&pool, "anything"), Some(vec![0]));
    assert_eq!(served_by(&pool, ""), Some(vec![0]));
    until("its models are listed", || pool.models().len() == 2).await;
    assert_eq!(pool.models()[0].id, "a");
    assert_eq!(server.seen("GET")[0].path, "/v1/models");
}

#[tokio::test]
async fn with_several_upstreams_a_model_goes_to_those_that_report_it() {
    let a = Server::start(|_| models(&["m", "only-a"]).after(50)).await;
    let b = Server::start(|seen| match seen.nth {
        0 => models(&["m"]),
        _ => models(&["m", "new"]),
    })
    .await;
    let mute = Server::start(|_| reply(404, "no list here")).await;
    let upstreams = vec![
        upstream("a", &a.base_url),
        upstream("b", &b.base_url),
        upstream("mute", &mute.base_url),
    ];
    let (pool, _guard) = running(&settings(upstreams, vec![]));
    assert_eq!(
        served_by(&pool, "m"),
        Some(vec![0, 1, 2]),
        "nobody has told yet"
    );
    pool.discovered().await;
    assert_eq!(served_by(&pool, "m"), Some(vec![0, 1]));
    assert_eq!(served_by(&pool, "only-a"), Some(vec![0]));
    assert_eq!(
        served_by(&pool, "x"),
        Some(vec![2]),
        "the mute one may have it"
    );
    assert_eq!(served_by(&pool, ""), Some(vec![0, 1, 2]));
    until("the new model is served", || {
        served_by(&pool, "new") == Some(vec![1])
    })
    .await;
    pool.changed().notified().await;
    let ids: Vec<_> = pool.models().into_iter().map(|model| model.id).collect();
    assert_eq!(ids, ["m", "new", "only-a"]);
}

#[tokio::test]
async fn a_model_that_nobody_reports_is_not_served_once_all_have_told() {
    let a = Server::start(|_| models(&["a"])).await;
    let b = Server::start(|_| models(&[])).await;
    let upstreams = vec![upstream("a", &a.base_url), upstream("b", &b.base_url)];
    let (pool, _guard) = running(&settings(upstreams, vec![]));
    pool.discovered().await;
    assert_eq!(served_by(&pool, "x"), None);
    assert_eq!(served_by(&pool, "a"), Some(vec![0]));
}

#[tokio::test]
async fn a_name_without_a_tag_is_the_latest_where_no_other_model_has_that_name() {
    let ollama = Server::start(|_| models(&["llama:latest", "qwen:latest", "qwen:7b"])).await;
    let vllm = Server::start(|_| models(&["qwen"])).await;
    let upstreams = vec![
        upstream("ollama", &ollama.base_url),
        upstream("vllm", &vllm.base_url),
    ];
    let (pool, _guard) = running(&settings(upstreams, vec![]));
    pool.discovered().await;
    for (name, upstreams, label) in [
        ("llama", Some(vec![0]), "llama:latest"),
        ("llama:latest", Some(vec![0]), "llama:latest"),
        ("qwen", Some(vec![1]), "qwen"),
        ("qwen:latest", Some(vec![0]), "qwen:latest"),
        ("llama:7b", None, "other"),
    ] {
        assert_eq!(served_by(&pool, name), upstreams, "{name}");
        assert_eq!(pool.label(name), label);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_first_reports_has_an_end() {
    let upstreams = vec![upstream("a", NOWHERE), upstream("b", NOWHERE)];
    let pool = pool(&settings(upstreams, vec![]));
    let began = tokio::time::Instant::now();
    pool.discovered().await;
    pool.discovered().await;
    assert_eq!(began.elapsed(), hasty().pace.first_discovery_max);
    assert_eq!(served_by(&pool, "m"), Some(vec![0, 1]));
}

#[tokio::test]
async fn discovery_finds_out_that_an_upstream_is_down_before_a_line_does() {
    let (pool, _guard) = running(&settings(vec![upstream("gpu", &nobody().await)], vec![]));
    until("it is down", || {
        pool.snapshot()[0].state == UpstreamState::Down
    })
    .await;
}

#[tokio::test]
async fn trying_the_upstreams_says_what_is_wrong_with_each() {
    let good = Server::start(|_| models(&["a", "b"])).await;
    let locked = Server::start(|_| reply(401, "{}")).await;
    let web = Server::start(|_| reply(200, "<html>")).await;
    let pool = pool(&settings(
        vec![
            upstream("good", &good.base_url),
            upstream("locked", &locked.base_url),
            upstream("web", &web.base_url),
            upstream("gone", &nobody().await),
        ],
        vec![],
    ));
    let results = pool.try_upstreams().await;
    let result = |name: &str| {
        let found = results.iter().find(|tried| tried.name == name);
        found.expect("was tried").models.clone()
    };
    let models = result("good").expect("lists its models");
    assert_eq!(
        models.iter().map(|one| &one.id).collect::<Vec<_>>(),
        ["a", "b"]
    );
    for (name, words) in [("locked", "key"), ("web", "base_url"), ("gone", "refused")] {
        let problem = result(name).expect_err(name);
        assert!(problem.contains(words), "{problem}");
    }
}
