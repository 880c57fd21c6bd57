//! Lines of very many items: what is made of them takes work in proportion to their length. With
//! work that grows by its square these tests would take minutes.

use super::*;

const MANY: usize = 10_000;

/// The line is brought to each provider.
fn to_each(path: &'static str, body: &Value) {
    let body = body.to_string();
    for kind in KINDS {
        if path == MESSAGES && kind == ProviderKind::Anthropic {
            continue;
        }
        let provider = provider(kind, UnsupportedParams::Drop);
        let (_, asked) = encoded(&*provider, kind, path, &body).expect("encoded");
        let through = asked.0.through.as_ref().expect("it was asked as a chat");
        assert!(through.warnings.len() + asked.0.warnings.len() < 300);
    }
}

#[test]
fn many_messages_behind_a_call() {
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
    let said = json!({"role": "assistant", "content": "a"});
    let result = json!({"type": "function_call_output", "call_id": "c", "output": "1"});
    let items = [json!({"role": "user", "content": "Hi"}), call].into_iter();
    let items = items.chain(std::iter::repeat_n(said, MANY)).chain([result]);
    to_each(
        RESPONSES,
        &json!({"model": "m", "input": items.collect::<Value>()}),
    );
}

#[test]
fn many_thoughts() {
    let thought = json!({"type": "reasoning", "summary": [],
                         "content": [{"type": "reasoning_text", "text": "a".repeat(100)}]});
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
    let hi = json!({"role": "user", "content": "Hi"});
    for between in [&[][..], &[call]] {
        let one = [std::slice::from_ref(&thought), between].concat();
        let items = [hi.clone()]
            .into_iter()
            .chain(one.into_iter().cycle().take(MANY));
        let result = json!({"type": "function_call_output", "call_id": "c", "output": "1"});
        let end = (!between.is_empty()).then_some(result);
        let items = items.chain(end).chain([hi.clone()]);
        to_each(
            RESPONSES,
            &json!({"model": "m", "input": items.collect::<Value>()}),
        );
    }
}

#[test]
fn many_results_of_tools_with_the_same_id_and_others() {
    for id in ["c", "an id"] {
        let calls = (0..MANY).map(|_| {
            json!({"type": "function_call", "call_id": id, "name": "a tool", "arguments": "{}"})
        });
        let results = (0..MANY)
            .map(|_| json!({"type": "function_call_output", "call_id": id, "output": "1"}));
        let hi = json!({"role": "user", "content": "Hi"});
        let items = [hi].into_iter().chain(calls).chain(results);
        to_each(
            RESPONSES,
            &json!({"model": "m", "input": items.collect::<Value>()}),
        );
    }
    let calls = (0..MANY).map(|number| {
        json!({"type": "function_call", "call_id": format!("c-{number}"), "name": "f",
               "arguments": "{}"})
    });
    let results = (0..MANY).map(|number| {
        json!({"type": "function_call_output", "call_id": format!("c-{number}"), "output": "1"})
    });
    let hi = json!({"role": "user", "content": "Hi"});
    let items = [hi].into_iter().chain(calls).chain(results);
    to_each(
        RESPONSES,
        &json!({"model": "m", "input": items.collect::<Value>()}),
    );
}

#[test]
fn many_keys_that_nobody_knows() {
    let mut body = json!({"model": "m", "max_tokens": 9,
                          "messages": [{"role": "user", "content": "Hi"}]});
    for number in 0..MANY {
        body[format!("key_{number}")] = json!(1);
    }
    to_each(MESSAGES, &body);
}

#[test]
fn what_an_answer_is_to_include_is_checked_and_told_once_a_word() {
    let body = |include: Value| json!({"model": "m", "input": "Hi", "include": include});
    assert_eq!(rejected(RESPONSES, &body(json!([0, 0]))), "include[0]");
    let many = json!(vec!["reasoning.encrypted_content"; MANY]);
    let kind = ProviderKind::OpenAi;
    let provider = provider(kind, UnsupportedParams::Reject);
    let encoded = encoded(&*provider, kind, RESPONSES, &body(many).to_string());
    let (_, asked) = encoded.expect("encoded");
    assert_eq!(warnings(&asked), ["include[0]"]);
}
