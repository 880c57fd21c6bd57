//! Providers that do not speak OpenAI's API, each against a server that answers as its
//! documentation says.

mod anthropic;
mod endpoints;
mod gemini;

use axum::http::StatusCode;
use nightshift::internals::simulate::Simulator;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use self::anthropic::{Claude, KEY};
use crate::support::{CHAT, Server, chat, eventually, granting, ids, on_every_engine, request};

/// An upstream of Anthropic's. The file with its key must outlive the server's start.
fn claude(name: &str, server: &Claude, key: &tempfile::NamedTempFile, more: &str) -> String {
    std::fs::write(key.path(), KEY).expect("writes the key");
    format!(
        "[[upstreams]]\nname = \"{name}\"\nprovider = \"anthropic\"\nbase_url = \"{}\"\n\
         api_key_file = \"{}\"\nconcurrency = 4\n{more}\n",
        server.origin(),
        key.path().display(),
    )
}

fn content(line: &Value) -> &str {
    let content = &line["response"]["body"]["choices"][0]["message"]["content"];
    content
        .as_str()
        .unwrap_or_else(|| panic!("no content: {line}"))
}

async fn a_batch_fails_over_to_anthropic_and_back_with_every_line_once_and_in_order() {
    let own = Simulator::start("127.0.0.1:0", granting(100)).await;
    let own = own.expect("starts");
    let (address, base_url) = (own.address(), own.base_url());
    // Every tenth call is turned away in one of the ways in which the API does that.
    let other = Claude::start(10).await;
    other.answer_at_most(150);
    let key = tempfile::NamedTempFile::new().expect("makes a file");
    let toml = format!(
        "[retry]\ninitial_backoff = \"5ms\"\nmax_backoff = \"50ms\"\n\
         [[upstreams]]\nname = \"own\"\nbase_url = \"{base_url}\"\nconcurrency = 4\n{}\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"own\" }}, \
         {{ upstream = \"claude\", tier = 1, model = \"claude-haiku-4-5\" }}]\n",
        claude("claude", &other, &key, "")
    );
    let server = Server::with(&toml).binary().await;
    let ids = ids(600);
    let lines: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch(lines, CHAT).await;
    eventually("the own upstream has answered what it may", async || {
        let total = own.stats().total;
        match (total.answered, total.in_flight) {
            (100, 4) => Ok(()),
            _ => Err(format!("{total:?}")),
        }
    })
    .await;
    assert_eq!(other.answered(), 0, "full is not closed");
    own.stop().await;
    eventually("the other one answers", async || match other.answered() {
        150.. => Ok(()),
        answered => Err(answered),
    })
    .await;
    let own = Simulator::start(address, granting(600))
        .await
        .expect("starts again");
    eventually("it has come back", async || own.stats().total.answered > 0).await;
    other.answer_at_most(usize::MAX);
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 600, "{ended}");
    let output = server.output(&ended).await;
    let answered: Vec<&str> = output
        .iter()
        .map(|line| line["custom_id"].as_str().expect("has one"))
        .collect();
    assert_eq!(answered, ids, "every line once, in order");
    let of_claude = output
        .iter()
        .filter(|line| line["response"]["body"]["model"] == "claude-haiku-4-5");
    let mut by_claude = 0;
    for line in of_claude {
        by_claude += 1;
        let id = line["custom_id"].as_str().expect("has one");
        assert_eq!(content(line), format!("You said: This is {id}."));
        assert_eq!(line["response"]["body"]["object"], "chat.completion");
        let request_id = line["response"]["request_id"].as_str();
        assert!(
            request_id.is_some_and(|id| id.starts_with("req_0")),
            "{line}"
        );
    }
    assert_eq!(by_claude, other.answered(), "none was paid for twice");
    let of_own = own.stats().total.answered;
    assert!(of_own > 0, "it has come back");
    assert_eq!(
        100 + by_claude + usize::try_from(of_own).expect("fits"),
        600
    );
    assert!(other.turned_away() >= 10, "it did turn calls away");
}

async fn what_a_provider_cannot_do_is_told_by_line_and_never_sent() {
    let other = Claude::start(0).await;
    let key = tempfile::NamedTempFile::new().expect("makes a file");
    let toml = format!(
        "{}{}[[models]]\nname = \"strict\"\n\
         routes = [{{ upstream = \"rejects\", model = \"claude-opus-5-5\" }}]\n\
         [[models]]\nname = \"lenient\"\n\
         routes = [{{ upstream = \"drops\", model = \"claude-opus-5-5\" }}]\n\
         [[models]]\nname = \"both\"\n\
         routes = [{{ upstream = \"rejects\", model = \"claude-opus-5-5\" }}, \
         {{ upstream = \"drops\", tier = 1, model = \"claude-opus-5-5\" }}]\n",
        claude("rejects", &other, &key, ""),
        claude("drops", &other, &key, "unsupported_params = \"drop\""),
    );
    let server = Server::with(&toml).await;
    let line = |id: &str, model: &str| {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        request(
            id,
            json!({"model": model, "messages": messages, "temperature": 0.5}),
        )
    };
    let lines = line("a", "strict") + &line("b", "lenient") + &line("c", "both");
    let batch = server.run(lines, CHAT).await;
    assert_eq!(
        (batch.counts.completed, batch.counts.failed),
        (2, 1),
        "{batch}"
    );
    let [failed] = server.errors(&batch).await.try_into().expect("one line");
    assert_eq!(failed["custom_id"], "a");
    assert_eq!(failed["response"], Value::Null);
    assert_eq!(failed["error"]["code"], "unsupported_parameter");
    let message = failed["error"]["message"].as_str().expect("is text");
    assert!(
        message.contains("rejects cannot take `temperature`"),
        "{message}"
    );
    for line in server.output(&batch).await {
        let warning = json!({
            "code": "parameter_dropped",
            "param": "temperature",
            "message": "the model does not take it",
        });
        assert_eq!(line["nightshift"], json!({"warnings": [warning]}), "{line}");
        assert_eq!(content(&line), "You said: Hi");
    }
    assert_eq!(other.calls(), 2, "what cannot be taken is not sent");
    assert_eq!(
        other.refused(),
        Vec::<String>::new(),
        "what is sent is as the API has it"
    );
}

async fn what_no_route_takes_is_found_when_the_batch_is_made() {
    let other = Claude::start(0).await;
    let key = tempfile::NamedTempFile::new().expect("makes a file");
    let toml = format!(
        "{}{}[[models]]\nname = \"strict\"\nroutes = [{{ upstream = \"rejects\", model = \"claude-haiku-4-5\" }}]\n\
         [[models]]\nname = \"both\"\n\
         routes = [{{ upstream = \"rejects\", model = \"claude-haiku-4-5\" }}, {{ upstream = \"drops\", tier = 1, model = \"claude-haiku-4-5\" }}]\n\
         [[models]]\nname = \"fixed\"\noverrides = {{ seed = \"\" }}\n\
         routes = [{{ upstream = \"rejects\", model = \"claude-haiku-4-5\" }}]\n",
        claude("rejects", &other, &key, ""),
        claude("drops", &other, &key, "unsupported_params = \"drop\""),
    );
    let server = Server::with(&toml).await;
    let line = |id: &str, model: &str, seed: Value| {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        request(
            id,
            json!({"model": model, "messages": messages, "seed": seed}),
        )
    };
    // A value that asks for nothing, one that some route takes, and one that is written over.
    let good = line("a", "strict", Value::Null)
        + &line("b", "both", json!(7))
        + &line("c", "fixed", json!(7));
    let bad = good.clone() + &line("d", "strict", json!(7)) + &line("e", "strict", json!(8));
    let batch = server.run(bad, CHAT).await;
    assert_eq!(batch.status, "failed", "{batch}");
    let finding = |line| {
        json!({
            "code": "unsupported_parameter",
            "line": line,
            "message": "Unsupported parameter: 'seed' is not supported with the model 'strict': \
                        Anthropic's API has nothing like it.",
            "param": "body.seed",
        })
    };
    assert_eq!(
        batch.json["errors"]["data"],
        json!([finding(4), finding(5)])
    );
    assert_eq!(
        other.calls(),
        0,
        "nothing is sent of a batch that is refused"
    );

    let batch = server.run(good, CHAT).await;
    assert_eq!(
        (batch.counts.completed, batch.counts.failed),
        (3, 0),
        "{batch}"
    );

    let body = json!({"model": "strict", "input": "Hi"});
    let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body});
    let batch = server.run(format!("{line}\n"), "/v1/embeddings").await;
    let found = &batch.json["errors"]["data"][0];
    assert_eq!(
        (&found["line"], &found["param"]),
        (&json!(1), &json!("url"))
    );
}

async fn what_a_server_has_said_of_a_line_comes_before_what_a_provider_cannot_take() {
    let too_long = json!({"error": {"message": "x", "code": "context_length_exceeded"}});
    let body = too_long.to_string();
    let answer = move || std::future::ready((StatusCode::BAD_REQUEST, body.clone()));
    let router = axum::Router::new().fallback(answer);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serves = tokio::spawn(async move { axum::serve(listener, router).await });
    let _serves = AbortOnDropHandle::new(serves);
    let other = Claude::start(0).await;
    let key = tempfile::NamedTempFile::new().expect("makes a file");
    let toml = format!(
        "[[upstreams]]\nname = \"short\"\nbase_url = \"http://{address}/v1\"\n{}\
         [[models]]\nname = \"m\"\nroutes = [{{ upstream = \"short\" }}, \
         {{ upstream = \"rejects\", tier = 1, model = \"claude-opus-5-5\" }}]\n",
        claude("rejects", &other, &key, ""),
    );
    let server = Server::with(&toml).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let line = json!({"model": "m", "messages": messages, "temperature": 0.5});
    let batch = server.run(request("a", line), CHAT).await;
    let [failed] = server.errors(&batch).await.try_into().expect("one line");
    assert_eq!(failed["response"]["status_code"], 400, "{failed}");
    assert_eq!(failed["response"]["body"], too_long, "{failed}");
    assert_eq!(other.calls(), 0);
}

on_every_engine!(
    a_batch_fails_over_to_anthropic_and_back_with_every_line_once_and_in_order,
    what_a_provider_cannot_do_is_told_by_line_and_never_sent,
    what_no_route_takes_is_found_when_the_batch_is_made,
    what_a_server_has_said_of_a_line_comes_before_what_a_provider_cannot_take,
);
