//! What a request says beside its messages: tools, thinking, and what a model does not take.

use super::*;
use crate::domain::tenant::ModelPattern;

fn direct() -> UpstreamSettings {
    settings(ProviderKind::OpenAi, UnsupportedParams::Reject)
}

/// A request of either endpoint.
fn hello(path: &str, more: Value) -> Value {
    let mut body = if path == RESPONSES {
        json!({"model": "m", "input": "Hi"})
    } else {
        json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]})
    };
    let more = more.as_object().cloned().unwrap_or_default();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// The upstream, with what the configuration says of its models.
fn saying(says: Capabilities) -> UpstreamSettings {
    let mut settings = direct();
    settings.capabilities = vec![CapabilitySettings {
        model: ModelPattern::new("*"),
        upstream: None,
        says,
    }];
    settings
}

#[test]
fn how_tools_are_called_is_said_only_where_there_are_tools() {
    for (path, more) in [
        (
            RESPONSES,
            json!({"tool_choice": "auto", "parallel_tool_calls": false}),
        ),
        (RESPONSES, json!({"tool_choice": "none", "tools": []})),
        (
            MESSAGES,
            json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
        ),
        (MESSAGES, json!({"tool_choice": {"type": "none"}})),
    ] {
        let (sent, _) = sent_to(&direct(), path, &hello(path, more)).expect("encoded");
        let keys: Vec<_> = sent.as_object().expect("an object").keys().collect();
        assert!(!keys.iter().any(|key| key.contains("tool")), "{keys:?}");
    }
    for (path, more) in [
        (RESPONSES, json!({"tool_choice": "required"})),
        (
            RESPONSES,
            json!({"tool_choice": {"type": "function", "name": "f"}}),
        ),
        (MESSAGES, json!({"tool_choice": {"type": "any"}})),
        (
            MESSAGES,
            json!({"tool_choice": {"type": "tool", "name": "f"}}),
        ),
    ] {
        assert_eq!(rejected(path, &hello(path, more)), "tool_choice");
    }
}

#[test]
fn a_function_that_does_not_say_whether_it_is_strict_is_named() {
    let tool = |strict: Value| json!({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": strict});
    let body = |strict| hello(RESPONSES, json!({"tools": [tool(strict)]}));
    for (strict, expected) in [
        (json!(true), &[][..]),
        (json!(false), &[]),
        (json!(null), &["tools[0].strict"]),
    ] {
        let (_, warnings) = sent_to(&direct(), RESPONSES, &body(strict)).expect("encoded");
        assert_eq!(warnings, expected);
    }
}

#[test]
fn a_model_is_told_not_to_think_where_it_is_known_to_think() {
    let body = |more: Value| {
        let mut body = hello(MESSAGES, json!({"thinking": {"type": "disabled"}}));
        let more = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    for (reasoning, effort, expected) in [
        (None, Value::Null, &["thinking"][..]),
        (Some(false), Value::Null, &[]),
        (Some(true), json!("none"), &[]),
    ] {
        let settings = saying(Capabilities {
            reasoning,
            ..Capabilities::default()
        });
        let (sent, warnings) = sent_to(&settings, MESSAGES, &body(json!({}))).expect("encoded");
        assert_eq!(sent["reasoning_effort"], effort, "{reasoning:?}");
        assert_eq!(warnings, expected);
    }
    // What is known of a vendor's model counts, too.
    let mut openai = direct();
    openai.base_url = "https://api.openai.com/v1".to_owned();
    let provider = of(&openai);
    for (model, effort) in [("gpt-5.1", Some("none")), ("gpt-4o", None)] {
        let line = body(json!({})).to_string();
        let line = Line {
            path: MESSAGES,
            model,
            body: line.as_bytes(),
            edit: None,
            clock: &Clock::default(),
        };
        let Ok(Encoded::Translated { body, .. }) = provider.encode(&line) else {
            panic!("encoded");
        };
        let sent: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(sent["reasoning_effort"].as_str(), effort, "{model}");
    }
    let effort = body(json!({"output_config": {"effort": "low"}}));
    let (sent, warnings) = sent_to(&direct(), MESSAGES, &effort).expect("encoded");
    assert_eq!(sent["reasoning_effort"], Value::Null);
    assert_eq!(warnings, ["output_config.effort", "thinking"]);
}

#[test]
fn a_budget_beside_an_effort_is_named() {
    let more = json!({"thinking": {"type": "enabled", "budget_tokens": 2_000},
                      "output_config": {"effort": "high"}});
    let (sent, warnings) = sent_to(&direct(), MESSAGES, &hello(MESSAGES, more)).expect("encoded");
    assert_eq!(sent["reasoning_effort"], "high");
    assert_eq!(warnings, ["thinking.budget_tokens"]);
}

#[test]
fn what_a_model_does_not_take_is_found_under_the_names_of_the_endpoint() {
    let thinks_not = saying(Capabilities {
        reasoning: Some(false),
        ..Capabilities::default()
    });
    let refuses = saying(Capabilities {
        refuses: vec!["stop".to_owned(), "verbosity".to_owned()],
        ..Capabilities::default()
    });
    for (settings, path, more, param) in [
        (
            &thinks_not,
            RESPONSES,
            json!({"reasoning": {"effort": "low"}}),
            "reasoning.effort",
        ),
        (
            &thinks_not,
            MESSAGES,
            json!({"output_config": {"effort": "low"}}),
            "thinking",
        ),
        (
            &refuses,
            MESSAGES,
            json!({"stop_sequences": ["END"]}),
            "stop_sequences",
        ),
        (
            &refuses,
            RESPONSES,
            json!({"text": {"verbosity": "low"}}),
            "text.verbosity",
        ),
    ] {
        let body = hello(path, more);
        let sent = sent_to(settings, path, &body);
        assert_eq!(sent.expect_err("rejected").param, param);
        let mut drops = settings.clone();
        drops.unsupported_params = UnsupportedParams::Drop;
        let (_, warnings) = sent_to(&drops, path, &body).expect("encoded");
        assert_eq!(warnings, [param]);
    }
    let off = hello(RESPONSES, json!({"reasoning": {"effort": "none"}}));
    sent_to(&thinks_not, RESPONSES, &off).expect("encoded");
}

#[test]
fn the_usual_verbosity_is_not_sent() {
    let body = hello(RESPONSES, json!({"text": {"verbosity": "medium"}}));
    let (sent, warnings) = sent_to(&direct(), RESPONSES, &body).expect("encoded");
    assert_eq!((&sent["verbosity"], warnings.len()), (&Value::Null, 0));
}

#[test]
fn members_within_others_are_read_or_named() {
    let user = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    for (path, more, param) in [
        (
            RESPONSES,
            json!({"tools": [{"type": "custom", "name": "f"}],
                   "tool_choice": {"type": "custom", "name": "f", "later": 1}}),
            "tool_choice.later",
        ),
        (
            RESPONSES,
            json!({"tools": [{"type": "custom", "name": "f"}],
                   "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                   "tools": [{"type": "custom", "name": "f", "later": 1}]}}),
            "tool_choice.tools[0].later",
        ),
        (
            MESSAGES,
            user(json!({"type": "image", "source": {"type": "url", "url": "u", "later": 1}})),
            "messages[0].content[0].source.later",
        ),
        (
            MESSAGES,
            user(json!({"type": "document", "source": {
                "type": "base64", "media_type": "text/html", "data": "AA"}})),
            "messages[0].content[0].source.media_type",
        ),
    ] {
        assert_eq!(rejected(path, &hello(path, more)), param);
    }
    let call = json!({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x",
                      "extra_content": {"a": 1}});
    let output = json!({"type": "custom_tool_call_output", "call_id": "c", "output": "1"});
    let body = json!({"model": "m", "input": [call, output]});
    let (sent, _) = sent_to(&direct(), RESPONSES, &body).expect("encoded");
    let call = &sent["messages"][0]["tool_calls"][0];
    assert_eq!(call["extra_content"], json!({"a": 1}));
}

#[test]
fn a_response_says_again_what_was_sent_and_not_what_was_left_out() {
    let kind = ProviderKind::Gemini;
    let body = hello(
        RESPONSES,
        json!({"text": {"verbosity": "low"}, "top_logprobs": 2, "temperature": 0.5}),
    );
    let said = json!({"candidates": [{"content": {"parts": [{"text": "Ho"}]},
                                      "finishReason": "STOP"}]});
    let (_, answer, decoded) = answered(kind, (RESPONSES, &body), 200, &said);
    assert!(decoded.warnings.len() >= 2, "{:?}", decoded.warnings);
    assert_eq!(answer["temperature"], 0.5);
    assert_eq!(answer["text"], json!({}));
    assert_eq!(answer.get("top_logprobs"), None, "{answer}");
}

#[test]
fn a_schema_of_a_tool_is_named_as_the_endpoint_names_it() {
    let names = super::super::request::Places {
        messages: Vec::new(),
        names: &[(".parameters", ".input_schema"), ("stop", "stop_sequences")],
    };
    for (param, own) in [
        ("tools[0].function.parameters", "tools[0].input_schema"),
        ("stop", "stop_sequences"),
        ("seed", "seed"),
    ] {
        assert_eq!(names.own(param), own);
    }
}
