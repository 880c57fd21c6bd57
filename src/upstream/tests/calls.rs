//! Single calls: what is sent, and what each kind of outcome means.

use std::io::Write;

use super::*;
use crate::domain::tenant::ModelPattern;

#[tokio::test]
async fn row_13_a_call_is_sent_as_it_is_and_its_answer_comes_back_charged() {
    let server = Server::start(|_| reply(200, r#"{"ok":1}"#).header("x-request-id", "req_7")).await;
    let mut upstream = upstream("gpu", &server.base_url);
    upstream.keys = vec![key("KEY", "sk-secret")];
    upstream.headers.insert("x-team".to_owned(), "batch".into());
    let pool = pool(&settings(vec![upstream], vec![]));
    // With a key that nobody knows, an old and a new name of one thing, and no temperature.
    let body = "{ \"model\" : \"m\",\t\"x\": {\"y\" :[1.0e2]}, \"max_tokens\":7,\
                \"max_completion_tokens\": 9 }";
    let attempt = send(&pool, permit(&pool, "m"), body).await;
    let target = &attempt.target;
    assert_eq!((target.upstream_name(), target.model()), ("gpu", "m"));
    assert_eq!(attempt.calls, 1);
    assert!(attempt.took > Duration::ZERO);
    let answer = answer(attempt);
    assert_eq!((answer.status, &answer.body[..]), (200, &b"{\"ok\":1}"[..]));
    assert_eq!(answer.request_id.as_deref(), Some("req_7"));
    assert_eq!((answer.reservation.bytes(), pool.budget().used()), (8, 8));
    drop(answer);
    assert_eq!(pool.budget().used(), 0);
    let seen = server.seen("POST").remove(0);
    assert_eq!(seen.path, "/v1/chat/completions");
    assert_eq!(seen.body, body);
    let header = |name: &str| seen.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("authorization"), Some("Bearer sk-secret"));
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("x-team"), Some("batch"));
    assert_eq!(
        header("user-agent"),
        Some(concat!("nightshift/", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(header("accept-encoding"), None);
    assert!(!format!("{pool:?}").contains("sk-secret"));
}

#[tokio::test]
async fn the_query_of_a_base_url_is_sent_with_every_call() {
    let server = Server::start(|_| models(&["m"])).await;
    let base_url = format!("{}?api-version=2024-10-21", server.base_url);
    let pool = pool(&settings(vec![upstream("azure", &base_url)], vec![]));
    answer(line(&pool).await);
    pool.try_upstreams().await;
    let query = "?api-version=2024-10-21";
    assert_eq!(server.seen("POST")[0].path, format!("{CHAT}{query}"));
    assert_eq!(server.seen("GET")[0].path, format!("/v1/models{query}"));
}

#[tokio::test]
async fn a_route_renames_the_model_and_fills_in_defaults() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let mut model = model("m", vec![route("gpu", Some("org/M"))]);
    model.defaults.insert("seed".to_owned(), 7.into());
    let pool = pool(&settings(
        vec![upstream("gpu", &server.base_url)],
        vec![model],
    ));
    answer(send(&pool, permit(&pool, "m"), r#"{"model": "m"}"#).await);
    assert_eq!(
        server.seen("POST")[0].body,
        r#"{"model": "org/M","seed":7}"#
    );
}

#[tokio::test]
async fn a_changed_copy_is_charged_for_as_long_as_its_call_lasts() {
    let (answered, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |_| {
        answered.send(()).expect("is awaited");
        reply(200, "{}").after(50)
    })
    .await;
    let pool = pool(&settings(
        vec![upstream("gpu", &server.base_url)],
        vec![model("m", vec![route("gpu", Some("longer"))])],
    ));
    let body = format!(r#"{{"model":"m","input":"{}"}}"#, "x".repeat(100_000));
    let copy = body.len() + "longer".len() - "m".len();
    let call = send(&pool, permit(&pool, "m"), &body);
    let during = async {
        asked.recv().await.expect("is called");
        pool.budget().used()
    };
    let (attempt, during) = tokio::join!(call, during);
    assert_eq!(during, copy);
    let answer = answer(attempt);
    assert_eq!((answer.reservation.bytes(), pool.budget().used()), (2, 2));

    let call = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { send(&pool, permit(&pool, "m"), &body).await }
    });
    asked.recv().await.expect("is called");
    call.abort();
    drop(answer);
    until("the copy is given back", || pool.budget().used() == 0).await;
}

#[tokio::test]
async fn the_place_is_free_again_when_the_answer_is_read() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let mut upstream = upstream("gpu", &server.base_url);
    upstream.concurrency = 1;
    let pool = pool(&settings(vec![upstream], vec![]));
    let routes = pool.resolve("m").expect("is served");
    assert_eq!(pool.limits().lane(routes.lane), 1);
    let permit = permit(&pool, "m");
    assert!(matches!(
        pool.try_acquire(&routes, &History::default(), 0, None),
        Acquired::Full
    ));
    let _kept = answer(send(&pool, permit, "{}").await);
    assert!(matches!(
        pool.try_acquire(&routes, &History::default(), 0, None),
        Acquired::Permit(_)
    ));
    pool.changed().notified().await;
}

#[tokio::test]
async fn a_call_that_is_broken_off_frees_its_place_and_its_bytes() {
    let pool = pool(&settings(vec![upstream("gpu", &raw(None).await)], vec![]));
    let call = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { line(&pool).await }
    });
    until("it is in flight", || pool.snapshot()[0].in_flight == 1).await;
    call.abort();
    until("its place is free", || pool.snapshot()[0].in_flight == 0).await;
    assert_eq!(pool.budget().used(), 0);
}

#[tokio::test]
async fn what_a_server_says_is_the_lines_answer_or_costs_an_attempt() {
    let server = Server::start(|seen| {
        let status = std::str::from_utf8(&seen.body).expect("UTF-8");
        // What is no answer with a success is one with these.
        let body = match status {
            "200" => r#"{"error":{"message":"no"},"output":[{}]}"#,
            _ => r#"{"error":{"message":"no"}}"#,
        };
        reply(status.parse().expect("a status"), body)
    })
    .await;
    let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
    for status in ["200", "400", "404", "422"] {
        let answer = answer(send(&pool, permit(&pool, "m"), status).await);
        assert_eq!(answer.status.to_string(), status);
        assert!(answer.body.starts_with(br#"{"error":{"message":"no"}"#));
    }
    for status in ["408", "409", "498", "500"] {
        let mut history = History::default();
        for attempt in 1..5 {
            let again = retried(send_again(&pool, &mut history, status).await);
            assert_eq!(
                (history.attempts(), again.calls),
                (attempt, attempt),
                "{status}"
            );
            let words = format!("the model server answered {status}");
            assert_eq!(again.cause, words);
            assert!(again.answer.is_none());
        }
        let last = answer(send_again(&pool, &mut history, status).await);
        assert_eq!(last.status.to_string(), status, "no attempt is left");
    }
    assert_eq!(pool.snapshot()[0].state, UpstreamState::Up);
}

#[tokio::test]
async fn what_is_no_fault_of_a_line_costs_it_nothing() {
    let server = Server::start(|seen| {
        let status = std::str::from_utf8(&seen.body).expect("UTF-8");
        let reply = reply(status.parse().expect("a status"), "no");
        match status {
            "500" => reply.header("retry-after-ms", "30"),
            _ => reply,
        }
    })
    .await;
    for status in [
        "307", "401", "402", "403", "404", "429", "502", "503", "504", "529",
    ] {
        let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
        let mut history = History::default();
        let again = retried(send_again(&pool, &mut history, status).await);
        assert_eq!(history.attempts(), 0, "{status}");
        let is_refusal = ["307", "401", "402", "403", "404"].contains(&status);
        assert_eq!(again.answer.is_some(), is_refusal, "{status}");
        let routes = pool.resolve("m").expect("is served");
        assert!(
            !pool.targets().is_open(&routes),
            "{status}: it is left alone"
        );
    }
    // Whatever the status, a server that names a time is left alone.
    let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
    retried(send(&pool, permit(&pool, "m"), "500").await);
    let routes = pool.resolve("m").expect("is served");
    assert!(!pool.targets().is_open(&routes));
    assert_eq!(pool.snapshot()[0].models[0].reason, Reason::Limited);
}

#[tokio::test]
async fn a_success_that_is_no_json_costs_an_attempt_and_is_no_answer() {
    let page = format!("<html>{}</html>", "é".repeat(200));
    let shown = format!("<html>{}…", "é".repeat(94));
    for (body, words) in [
        (page.as_str(), shown.as_str()),
        (
            r#"{"id":"c-1","error":{"message":"no GPU is left"},"choices":null}"#,
            " with an error and no answer: no GPU is left",
        ),
        (r#"{"error":true}"#, r#"and no answer: {"error":true}"#),
        ("", "is empty"),
        (r#"{"a":"#, r#"{"a":"#),
    ] {
        let body = body.to_owned();
        let server = Server::start(move |_| reply(200, &body)).await;
        let pool = pool(&settings(vec![upstream("gpu", &server.base_url)], vec![]));
        let retry = retried(line(&pool).await);
        assert!(retry.answer.is_none());
        assert!(retry.cause.ends_with(words), "{:?}", retry.cause);
        assert_eq!(pool.snapshot()[0].state, UpstreamState::Up);
        assert_eq!(pool.budget().used(), 0);
    }
}

#[tokio::test]
async fn lost_connections_and_timeouts_cost_an_attempt() {
    let cases: [(Option<&'static [u8]>, ErrorCode, &str); 5] = [
        (
            Some(b""),
            ErrorCode::UpstreamUnavailable,
            "connection was lost",
        ),
        (
            Some(b"HTTP/1.1 200 OK\r\nconte"),
            ErrorCode::UpstreamUnavailable,
            "connection was lost",
        ),
        (
            Some(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"a\":"),
            ErrorCode::UpstreamUnavailable,
            "connection was lost",
        ),
        (
            Some(b"SSH-2.0-OpenSSH_9.6\r\n"),
            ErrorCode::UpstreamUnavailable,
            "connection was lost",
        ),
        (
            None,
            ErrorCode::RequestTimeout,
            "no whole answer within 300ms",
        ),
    ];
    for (bytes, code, words) in cases {
        let mut upstream = upstream("gpu", &raw(bytes).await);
        if bytes.is_none() {
            upstream.timeout = Duration::from_millis(300);
        }
        let pool = pool(&settings(vec![upstream], vec![]));
        let retry = retried(line(&pool).await);
        assert!(retry.answer.is_none());
        assert_eq!(retry.result.error_code(), code, "{:?}", retry.cause);
        assert!(retry.cause.contains(words), "{:?}", retry.cause);
        assert!(!retry.cause.contains("127.0.0.1"), "{:?}", retry.cause);
        let status = pool.snapshot().remove(0);
        assert_eq!((status.state, status.in_flight), (UpstreamState::Up, 0));
        assert_eq!(pool.budget().used(), 0);
    }
}

#[tokio::test]
async fn the_timeout_covers_the_body_too() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{";
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base_url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let mut upstream = upstream("gpu", &base_url);
    upstream.timeout = Duration::from_millis(200);
    let pool = pool(&settings(vec![upstream], vec![]));
    let serve = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        stream.write_all(head).await.expect("is read");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        attempt = line(&pool) => {
            assert_eq!(retried(attempt).result, CallResult::TimedOut);
        }
        () = serve => {}
    }
}

#[tokio::test]
async fn a_call_whose_time_goes_by_while_it_connects_was_not_sent() {
    // It takes connections, and says nothing: TLS never begins.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base_url = format!("https://{}/v1", listener.local_addr().expect("an address"));
    let mut upstream = upstream("gpu", &base_url);
    upstream.timeout = Duration::from_millis(500);
    upstream.connect_timeout = Duration::from_secs(5);
    let pool = pool(&settings(vec![upstream], vec![]));
    let again = retried(line(&pool).await);
    assert_eq!(again.result, CallResult::Unreachable);
    assert_eq!(again.cause, "no connection within 450ms");
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_its_line() {
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
        6\r\n123456\r\n6\r\n123456\r\n0\r\n\r\n";
    let announced = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n123456";
    for (bytes, limit) in [(&chunked[..], 11), (announced, 1 << 20)] {
        let mut upstream = upstream("gpu", &raw(Some(bytes)).await);
        upstream.max_response_bytes = limit;
        let pool = pool(&settings(vec![upstream], vec![]));
        let attempt = line(&pool).await;
        assert_eq!(attempt.next, Next::End, "it would be as large again");
        assert!(attempt.answer.is_none());
        let words = format!("larger than {limit} bytes (max_response_bytes)");
        assert!(attempt.cause.contains(&words), "{}", attempt.cause);
        assert_eq!(attempt.result.error_code(), ErrorCode::ResponseTooLarge);
        assert_eq!(pool.budget().used(), 0);
    }
}

#[tokio::test]
async fn an_error_whose_text_cannot_be_had_is_judged_by_its_status() {
    for header in [
        "content-encoding: zstd",
        "content-encoding: gzip",
        "content-length: 99999999999",
    ] {
        let error = |status: &str| -> &'static str {
            format!("HTTP/1.1 {status}\r\n{header}\r\n\r\nno").leak()
        };
        let busy = error("503 Service Unavailable");
        let upstream_of = async |bytes: &'static str| {
            let upstream = upstream("gpu", &raw(Some(bytes.as_bytes())).await);
            pool(&settings(vec![upstream], vec![]))
        };
        let again = retried(line(&upstream_of(busy).await).await);
        assert_eq!(again.cause, "the model server answered 503");
        let wrong = error("422 Unprocessable Content");
        let answer = answer(line(&upstream_of(wrong).await).await);
        assert_eq!((answer.status, answer.body.len()), (422, 0));
    }
}

#[tokio::test]
async fn many_answers_together_larger_than_the_budget_all_arrive() {
    const ANSWER: usize = 300_000;
    let server = Server::start(|_| reply(200, &format!("\"{}\"", "x".repeat(ANSWER - 2)))).await;
    let mut upstream = upstream("gpu", &server.base_url);
    upstream.concurrency = 32;
    let mut settings = settings(vec![upstream], vec![]);
    settings.max_in_flight_bytes = ANSWER;
    let pool = pool(&settings);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let pool = Arc::clone(&pool);
        calls.spawn(async move {
            let answer = answer(line(&pool).await);
            let used = pool.budget().used();
            assert!(
                used <= 2 * ANSWER,
                "overdrawn by more than one answer: {used}"
            );
            answer.body.len()
        });
    }
    assert_eq!(calls.join_all().await, [ANSWER; 32]);
    assert_eq!(pool.budget().used(), 0);
}

#[tokio::test]
async fn many_changed_copies_together_larger_than_the_budget_all_arrive() {
    const SIZE: usize = 300_000;
    let server = Server::start(|_| reply(200, &format!("\"{}\"", "x".repeat(SIZE - 2)))).await;
    let mut upstream = upstream("gpu", &server.base_url);
    upstream.concurrency = 16;
    let mut settings = settings(
        vec![upstream],
        vec![model("m", vec![route("gpu", Some("M"))])],
    );
    settings.max_in_flight_bytes = SIZE;
    let pool = pool(&settings);
    let body = format!(r#"{{"model":"m","input":"{}"}}"#, "x".repeat(SIZE));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (pool, body) = (Arc::clone(&pool), body.clone());
        calls.spawn(async move {
            let answer = answer(send(&pool, permit(&pool, "m"), &body).await);
            let used = pool.budget().used();
            let most = SIZE + SIZE + body.len();
            assert!(used <= most, "overdrawn by more than one call: {used}");
            answer.body.len()
        });
    }
    assert_eq!(calls.join_all().await, [SIZE; 16]);
    assert_eq!(pool.budget().used(), 0);
}

#[tokio::test]
async fn calls_go_through_the_configured_proxy() {
    let proxy = Server::start(|_| reply(200, "{}")).await;
    let mut upstream = upstream("far", "http://model.invalid/v1");
    upstream.proxy = Some(proxy.base_url.trim_end_matches("/v1").into());
    let pool = pool(&settings(vec![upstream], vec![]));
    answer(line(&pool).await);
    assert_eq!(
        proxy.seen("POST")[0].path,
        "http://model.invalid/v1/chat/completions"
    );
}

#[tokio::test]
async fn an_upstream_that_cannot_work_is_named() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"no certificate").expect("is written");
    let good = || upstream("gpu", "http://127.0.0.1:1/v1");
    let with = |change: &dyn Fn(&mut UpstreamSettings)| {
        let mut upstream = good();
        change(&mut upstream);
        upstream
    };
    let cases = [
        (with(&|u| u.base_url = "nonsense".to_owned()), "no URL"),
        (with(&|u| u.base_url = "ftp://h/v1".to_owned()), "http://"),
        (
            with(&|u| u.base_url = "http://me:hunter2@h/v1".to_owned()),
            "api_key_env",
        ),
        (
            with(&|u| u.proxy = Some("http://:hunter2@".into())),
            "proxy",
        ),
        (
            with(&|u| u.ca_file = Some("/nowhere/ca.pem".into())),
            "cannot be read",
        ),
        (
            with(&|u| u.ca_file = Some(file.path().to_owned())),
            "no certificate",
        ),
        (with(&|u| u.keys = vec![key("KEY", "sk\n")]), "API key"),
        (
            with(&|u| drop(u.headers.insert("a b".to_owned(), "x".into()))),
            "`a b`",
        ),
    ];
    for (upstream, words) in cases {
        let error = Pool::new(&settings(vec![upstream], vec![]), hasty()).expect_err(words);
        assert_eq!(error.upstream, "gpu");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let model = model("m", vec![route("gone", None)]);
    let error = Pool::new(&settings(vec![good()], vec![model]), hasty()).expect_err("no upstream");
    assert_eq!(error.upstream, "gone");
}

#[tokio::test]
async fn a_key_goes_as_it_is_where_a_gateway_wants_it() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let mut one = upstream("one", &server.base_url);
    one.keys = vec![key("KEY", "sk-secret")];
    one.auth_header = Some("api-key".to_owned());
    let pool = pool(&settings(
        vec![one],
        vec![model("m", vec![route("one", None)])],
    ));
    answer(line(&pool).await);
    let seen = &server.seen("POST")[0];
    assert_eq!(seen.headers["api-key"], "sk-secret");
    assert!(!seen.headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_key_goes_where_the_provider_has_it() {
    for provider in ProviderKind::ALL {
        let server = Server::start(|_| reply(200, "{}")).await;
        let mut one = upstream("one", &server.base_url);
        one.provider = provider;
        one.keys = vec![key("KEY", "sk-secret")];
        let pool = pool(&settings(vec![one], vec![]));
        pool.try_upstreams().await;
        let seen = &server.seen("GET")[0];
        let sent = seen.headers[provider.key_header()].to_str();
        assert!(
            sent.is_ok_and(|sent| sent.ends_with("sk-secret")),
            "{provider:?}"
        );
    }
}

#[tokio::test]
async fn a_line_is_not_sent_to_an_upstream_whose_model_does_not_take_a_key() {
    let server = Server::start(|_| reply(200, "{}")).await;
    let mut small = upstream("small", &server.base_url);
    small.capabilities = vec![CapabilitySettings {
        model: ModelPattern::new("*"),
        upstream: None,
        says: Capabilities {
            tools: Some(false),
            refuses: vec!["seed".to_owned()],
            ..Capabilities::default()
        },
    }];
    let pool = pool(&settings(vec![small], vec![]));
    for (key, value) in [("seed", "1"), ("tools", "[{}]")] {
        let body = format!(r#"{{"model":"m","{key}":{value}}}"#);
        let attempt = send(&pool, permit(&pool, "m"), &body).await;
        assert_eq!(attempt.result, CallResult::Unsupported);
        let cause = format!("The upstream small cannot take `{key}`: the model does not take it.");
        assert_eq!(attempt.cause, cause);
    }
    assert_eq!(server.seen("POST").len(), 0);
    let off = r#"{"model":"m","seed":null,"tools":[],"tool_choice":"none"}"#;
    let attempt = send(&pool, permit(&pool, "m"), off).await;
    assert_eq!(attempt.result, CallResult::Succeeded);
}

#[tokio::test]
async fn what_a_model_does_not_take_is_left_out_and_named_where_the_upstream_drops_it() {
    let server = Server::start(|_| reply(200, "{\"choices\":[1]}")).await;
    let mut small = upstream("small", &server.base_url);
    small.unsupported_params = UnsupportedParams::Drop;
    small.capabilities = vec![CapabilitySettings {
        model: ModelPattern::new("*"),
        upstream: None,
        says: Capabilities {
            tools: Some(false),
            refuses: ["seed", "n", "response_format"].map(str::to_owned).to_vec(),
            ..Capabilities::default()
        },
    }];
    let pool = pool(&settings(vec![small], vec![]));
    let body = "{\"model\":\"m\", \"seed\" : 7,\"x\\\"\": [1.0e2 ],\"tools\":[{}],\"seed\":8,\
                \"tool_choice\":\"auto\",\"n\":1,\"response_format\":{\"type\":\"text\"}}";
    let answered = answer(send(&pool, permit(&pool, "m"), body).await);
    let seen = server.seen("POST").remove(0);
    assert_eq!(seen.body, "{\"model\":\"m\",\"x\\\"\":[1.0e2 ],\"n\":1}");
    let left_out = answered.warnings.iter().map(|warning| &*warning.param);
    let left_out: Vec<&str> = left_out.collect();
    assert_eq!(
        left_out,
        ["seed", "tools", "tool_choice", "response_format"]
    );
    assert_eq!(answered.reservation.bytes(), answered.body.len());
    // Without these the answer would be one to another request.
    for (key, value) in [
        ("n", "2"),
        ("tool_choice", "\"required\""),
        ("response_format", "{\"type\":\"json_object\"}"),
    ] {
        let body = format!(r#"{{"model":"m","{key}":{value}}}"#);
        let attempt = send(&pool, permit(&pool, "m"), &body).await;
        assert_eq!(attempt.result, CallResult::Unsupported, "{key}");
    }
    assert_eq!(server.seen("POST").len(), 1);
}
