//! Lines that a provider translates: what is sent, and where a line goes that a provider cannot
//! take. The numbers in the names are those of rows that each provider must pass.

use serde_json::{Value, json};

use super::*;
use crate::domain::asked::{Gatherer, Shape};
use crate::domain::endpoint;
use crate::domain::findings::Findings;
use crate::upstream::settings::UnsupportedParams;

fn anthropic(name: &str, server: &Server) -> UpstreamSettings {
    UpstreamSettings {
        provider: ProviderKind::Anthropic,
        ..upstream(name, &server.base_url)
    }
}

fn hello(more: &str) -> String {
    format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}]{more}}}")
}

fn message() -> Reply {
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "Yes"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 2, "output_tokens": 1},
    });
    reply(200, &message.to_string()).header("content-type", "application/json")
}

fn error(status: u16, kind: &str) -> Reply {
    let error = json!({"type": "error", "error": {"type": kind, "message": "no"}});
    reply(status, &error.to_string()).header("content-type", "application/json")
}

/// Calls until the line ends.
async fn to_its_end(pool: &Arc<Pool>, body: &str) -> (Attempt, u32) {
    let (mut history, mut timer) = (History::default(), Timer::default());
    for calls in 1.. {
        let routes = pool.resolve("m").expect("is served");
        let permit = loop {
            match pool.try_acquire(&routes, &history, 0, None) {
                Acquired::Permit(permit) => break permit,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let call = Call {
            path: CHAT,
            body: Bytes::copy_from_slice(body.as_bytes()),
            reservation: pool.budget().reserve(),
            traceparent: None,
        };
        let attempt = pool.call(permit, call, &mut history, &mut timer).await;
        match attempt.next {
            Next::End => return (attempt, calls),
            Next::Again { after, .. } => tokio::time::sleep(after).await,
        }
    }
    panic!("a line ends some time");
}

#[tokio::test]
async fn a_line_is_translated_with_what_its_route_changes_and_its_answer_back() {
    let server = Server::start(|_| message().header("request-id", "req_9")).await;
    let mut upstream = anthropic("claude", &server);
    upstream.keys = vec![key("KEY", "sk-ant")];
    let mut model = model("m", vec![route("claude", Some("claude-haiku-4-5"))]);
    model.defaults.insert("max_tokens".to_owned(), 77.into());
    let pool = pool(&settings(vec![upstream], vec![model]));
    let attempt = send(&pool, permit(&pool, "m"), &hello("")).await;
    let answer = answer(attempt);
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["choices"][0]["message"]["content"], "Yes");
    assert_eq!(answer.request_id.as_deref(), Some("req_9"));
    assert_eq!(answer.usage.map(|usage| usage.total_tokens), Some(3));
    let seen = server.seen("POST").remove(0);
    assert_eq!(seen.path, "/v1/messages");
    assert_eq!(seen.headers["x-api-key"], "sk-ant");
    assert_eq!(seen.headers["anthropic-version"], "2023-06-01");
    assert_eq!(seen.headers.get("authorization"), None);
    let sent: Value = serde_json::from_slice(&seen.body).expect("JSON");
    assert_eq!(
        (&sent["model"], &sent["max_tokens"]),
        (&json!("claude-haiku-4-5"), &json!(77))
    );
    drop(answer);
    assert_eq!(
        pool.budget().used(),
        0,
        "what was reserved for the translation is given back"
    );
}

#[tokio::test]
async fn row_06_a_rate_limit_delays_the_line_and_fails_it_not() {
    let server = Server::start(|seen| match (seen.is_get(), seen.nth) {
        (false, 0..3) => error(429, "rate_limit_error").header("retry-after", "0.02"),
        _ => message(),
    })
    .await;
    let pool = pool(&settings(vec![anthropic("claude", &server)], vec![]));
    let (attempt, calls) = to_its_end(&pool, &hello("")).await;
    assert_eq!((attempt.result, calls), (CallResult::Succeeded, 4));
}

#[tokio::test]
async fn row_07_a_request_that_is_refused_is_sent_once() {
    let server = Server::start(|_| error(400, "invalid_request_error")).await;
    let pool = pool(&settings(vec![anthropic("claude", &server)], vec![]));
    let (attempt, calls) = to_its_end(&pool, &hello("")).await;
    assert_eq!((attempt.result, calls), (CallResult::Rejected, 1));
    assert_eq!(answer(attempt).status, 400);
}

#[tokio::test]
async fn row_08_the_only_upstream_may_fail_twice() {
    let server = Server::start(|seen| match (seen.is_get(), seen.nth) {
        (false, 0..2) => error(500, "api_error"),
        _ => message(),
    })
    .await;
    let pool = pool(&settings(vec![anthropic("claude", &server)], vec![]));
    let (attempt, calls) = to_its_end(&pool, &hello("")).await;
    assert_eq!((attempt.result, calls), (CallResult::Succeeded, 3));
}

#[tokio::test]
async fn row_20_a_spend_limit_pauses_the_upstream_and_the_line_waits() {
    let server = Server::start(|_| error(402, "billing_error")).await;
    let pool = pool(&settings(vec![anthropic("claude", &server)], vec![]));
    let attempt = retried(send(&pool, permit(&pool, "m"), &hello("")).await);
    assert_eq!(attempt.result, CallResult::Unpaid);
    let routes = pool.resolve("m").expect("is served");
    let next = pool.try_acquire(&routes, &History::default(), 0, None);
    assert!(matches!(next, Acquired::Closed { .. }), "{next:?}");
}

#[tokio::test]
async fn a_line_that_one_provider_cannot_take_goes_to_another_and_is_not_sent_to_the_first() {
    let claude = Server::start(|_| message()).await;
    let gpu = Server::start(|_| reply(200, "{\"ok\":1}")).await;
    let upstreams = vec![anthropic("claude", &claude), upstream("gpu", &gpu.base_url)];
    let mut second = route("gpu", None);
    second.tier = 1;
    let model = model("m", vec![route("claude", None), second]);
    let pool = pool(&settings(upstreams, vec![model]));
    let (attempt, calls) = to_its_end(&pool, &hello(",\"seed\":7")).await;
    assert_eq!((attempt.target.upstream_name(), calls), ("gpu", 2));
    assert!(claude.seen("POST").is_empty());
    let (attempt, calls) = to_its_end(&pool, &hello("")).await;
    assert_eq!(
        (attempt.target.upstream_name(), calls),
        ("claude", 1),
        "it is not blamed"
    );
}

#[tokio::test]
async fn a_line_that_no_provider_can_take_ends_at_once_and_says_why() {
    let server = Server::start(|_| message()).await;
    let upstreams = ["one", "two"].map(|name| anthropic(name, &server)).to_vec();
    let model = model("m", vec![route("one", None), route("two", None)]);
    let pool = pool(&settings(upstreams, vec![model]));
    let (attempt, calls) = to_its_end(&pool, &hello(",\"n\":2")).await;
    assert_eq!((attempt.result, calls), (CallResult::Unsupported, 2));
    assert_eq!(attempt.result.error_code(), ErrorCode::UnsupportedParameter);
    assert!(
        attempt.cause.contains("cannot take `n`"),
        "{}",
        attempt.cause
    );
    assert!(attempt.answer.is_none());
    assert!(server.seen("POST").is_empty());
    assert_eq!(pool.budget().used(), 0);
}

#[tokio::test]
async fn what_is_left_out_is_told_beside_the_answer() {
    let server = Server::start(|_| message()).await;
    let mut upstream = anthropic("claude", &server);
    upstream.unsupported_params = UnsupportedParams::Drop;
    let pool = pool(&settings(vec![upstream], vec![]));
    let answer = answer(send(&pool, permit(&pool, "m"), &hello(",\"seed\":7")).await);
    let params = answer.warnings.iter().map(|warning| &*warning.param);
    // Nobody knows how much a model of this name may write.
    assert_eq!(
        params.collect::<Vec<_>>(),
        ["seed", "max_completion_tokens"]
    );
}

#[tokio::test]
async fn all_pages_of_a_list_of_models_are_read() {
    let server = Server::start(|seen| {
        let page = |ids: &[&str], more: bool| {
            let data: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
            let last = ids.last();
            reply(
                200,
                &json!({"data": data, "has_more": more, "last_id": last}).to_string(),
            )
        };
        if seen.path.contains("after_id=b") {
            page(&["c"], false)
        } else {
            page(&["a", "b"], true)
        }
    })
    .await;
    let pool = pool(&settings(vec![anthropic("claude", &server)], vec![]));
    let tried = pool.try_upstreams().await;
    let listed = tried[0].models.as_ref().expect("a list");
    let ids: Vec<_> = listed.iter().map(|model| &*model.id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[test]
fn lines_need_not_say_how_much_is_written_where_every_route_does() {
    let upstreams = ["one", "two"]
        .map(|name| upstream(name, "http://h"))
        .to_vec();
    let filled = |upstream: &str| {
        let mut route = route(upstream, None);
        route.defaults.insert("max_tokens".to_owned(), 9.into());
        route
    };
    let models = vec![
        model("all", vec![filled("one"), filled("two")]),
        model("some", vec![filled("one"), route("two", None)]),
    ];
    let pool = pool(&settings(upstreams, models));
    let fills_in = |models: &[&str], path: &str| {
        let mut asked = Gatherer::default();
        let endpoint = endpoint::find(path).expect("an endpoint");
        for (number, model) in (0..).zip(models) {
            let model = (number, *model);
            asked.line(
                u64::from(number) + 1,
                model,
                endpoint,
                Shape::default(),
                "{}",
            );
        }
        let mut found = Findings::default();
        found.asked = asked.finish();
        pool.fills_in_limits(&found, "/v1/messages", None)
    };
    assert!(fills_in(&["all"], "/v1/messages"));
    assert!(!fills_in(&["all", "some"], "/v1/messages"));
    assert!(!fills_in(&["nobody-has-it"], "/v1/messages"));
    assert!(fills_in(&["some"], CHAT), "which says nothing of its lines");
}
