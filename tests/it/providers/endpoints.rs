//! Lines of the Responses API and of the Messages API, which no two providers have in common.

use nightshift::internals::simulate::Simulator;
use serde_json::{Value, json};

use super::anthropic::Claude;
use super::claude;
use crate::support::{Server, eventually, granting, ids, on_every_engine};

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn line(id: &str, url: &str, body: &Value) -> String {
    let line = json!({"custom_id": id, "method": "POST", "url": url, "body": body});
    format!("{line}\n")
}

async fn responses_fail_over_to_anthropic_and_back_with_every_line_once_and_in_order() {
    let own = Simulator::start("127.0.0.1:0", granting(50)).await;
    let own = own.expect("starts");
    let (address, base_url) = (own.address(), own.base_url());
    // Every tenth call is turned away in one of the ways in which the API does that.
    let other = Claude::start(10).await;
    other.answer_at_most(50);
    let key = tempfile::NamedTempFile::new().expect("makes a file");
    let toml = format!(
        "[retry]\ninitial_backoff = \"5ms\"\nmax_backoff = \"50ms\"\n\
         [[upstreams]]\nname = \"own\"\nbase_url = \"{base_url}\"\nconcurrency = 4\n{}\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"own\" }}, \
         {{ upstream = \"claude\", tier = 1, model = \"claude-haiku-4-5\" }}]\n",
        claude("claude", &other, &key, "")
    );
    let server = Server::with(&toml).binary().await;
    let ids = ids(300);
    let ask = |id: &String| {
        let body = json!({"model": "sim-small", "input": format!("This is {id}."),
                          "instructions": "Be brief.", "max_output_tokens": 64});
        line(id, RESPONSES, &body)
    };
    let batch = server
        .create_batch(ids.iter().map(ask).collect::<String>(), RESPONSES)
        .await;
    eventually("the own upstream has answered what it may", async || {
        let total = own.stats().total;
        match (total.answered, total.in_flight) {
            (50, 4) => Ok(()),
            _ => Err(format!("{total:?}")),
        }
    })
    .await;
    own.stop().await;
    eventually("the other one answers", async || match other.answered() {
        50.. => Ok(()),
        answered => Err(answered),
    })
    .await;
    let own = Simulator::start(address, granting(300))
        .await
        .expect("starts again");
    eventually("it has come back", async || own.stats().total.answered > 0).await;
    other.answer_at_most(usize::MAX);
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 300, "{ended}");
    let output = server.output(&ended).await;
    let answered = output.iter().map(|line| line["custom_id"].as_str());
    assert!(
        answered.eq(ids.iter().map(|id| Some(id.as_str()))),
        "every line once, in order"
    );
    let mut by_claude = 0;
    for line in &output {
        let body = &line["response"]["body"];
        assert_eq!(body["object"], "response", "{line}");
        assert_eq!(body["output"][0]["type"], "message", "{line}");
        if body["model"] == "claude-haiku-4-5" {
            by_claude += 1;
            let id = line["custom_id"].as_str().expect("has one");
            let said = &body["output"][0]["content"][0]["text"];
            assert_eq!(*said, format!("You said: This is {id}."));
            assert_eq!(body["instructions"], "Be brief.");
        }
    }
    assert_eq!(by_claude, other.answered(), "none was paid for twice");
    assert_eq!(other.refused(), Vec::<String>::new());
    let usage = &ended["usage"];
    assert!(usage["input_tokens"].as_u64() > Some(300), "{usage}");
}

async fn messages_are_answered_as_messages_by_whichever_provider() {
    let own = Simulator::start("127.0.0.1:0", granting(10)).await;
    let own = own.expect("starts");
    let other = Claude::start(0).await;
    let key = tempfile::NamedTempFile::new().expect("makes a file");
    let toml = format!(
        "[[upstreams]]\nname = \"own\"\nbase_url = \"{}\"\n{}\
         [[models]]\nname = \"claude\"\n\
         routes = [{{ upstream = \"claude\", model = \"claude-haiku-4-5\" }}]\n\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"own\" }}]\n",
        own.base_url(),
        claude("claude", &other, &key, "")
    );
    let server = Server::with(&toml).await;
    let ask = |model: &str, more: Value| {
        let said = json!([{"type": "text", "text": "Hi"}]);
        let mut body = json!({"model": model, "max_tokens": 9,
                              "messages": [{"role": "user", "content": said}]});
        let more = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    // Of keys that Anthropic's own API alone knows there, the first line has one.
    let lines = line("a", MESSAGES, &ask("claude", json!({"later": true})))
        + &line("b", MESSAGES, &ask("claude", json!({})))
        + &line("c", MESSAGES, &ask("sim-small", json!({})));
    let batch = server.run(lines, MESSAGES).await;
    assert_eq!(
        (batch.counts.completed, batch.counts.failed),
        (2, 1),
        "{batch}"
    );
    let [native, translated] = server.output(&batch).await.try_into().expect("two lines");
    let body = &native["response"]["body"];
    assert_eq!(body["content"][1]["text"], "Hi");
    assert_eq!(body["stop_sequence"], Value::Null, "nothing is left out");
    let body = &translated["response"]["body"];
    assert_eq!(body["type"], "message", "{translated}");
    assert_eq!(body["content"][0]["type"], "text");
    let [refused] = server.errors(&batch).await.try_into().expect("one line");
    assert_eq!(refused["custom_id"], "a");
    let error = &refused["response"]["body"]["error"];
    assert_eq!(error["type"], "invalid_request_error", "{refused}");
    assert_eq!(error["message"], "later: Extra inputs are not permitted");
    let sent = &batch["usage"];
    assert!(sent["output_tokens"].as_u64() > Some(4), "{sent}");
}

on_every_engine!(
    responses_fail_over_to_anthropic_and_back_with_every_line_once_and_in_order,
    messages_are_answered_as_messages_by_whichever_provider,
);
