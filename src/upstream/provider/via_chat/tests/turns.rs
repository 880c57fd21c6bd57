//! The messages of a conversation, in the order and the form that servers of OpenAI's API want.

use super::*;

fn direct() -> UpstreamSettings {
    settings(ProviderKind::OpenAi, UnsupportedParams::Reject)
}

fn roles(sent: &Value) -> Vec<&str> {
    let messages = sent["messages"].as_array().expect("a list").iter();
    messages
        .map(|message| message["role"].as_str().expect("a role"))
        .collect()
}

fn call(id: &str) -> Value {
    json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"})
}

fn output(id: &str) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": id})
}

fn says(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

#[test]
fn what_stands_between_calls_and_their_outputs_comes_behind_the_outputs() {
    let body = json!({"model": "m", "input": [
        says("user", "Hi"), call("a"), call("b"), output("a"), says("assistant", "one"),
        says("developer", "Go on."), output("b"), says("user", "Well?"),
    ]});
    let (sent, _) = sent_to(&direct(), RESPONSES, &body).expect("encoded");
    assert_eq!(
        roles(&sent),
        [
            "user",
            "assistant",
            "tool",
            "tool",
            "assistant",
            "system",
            "user"
        ]
    );
    assert_eq!(sent["messages"][2]["content"], "a");
    assert_eq!(sent["messages"][3]["content"], "b");
    assert_eq!(sent["messages"][4]["content"], "one");
    assert_eq!(sent["messages"][6]["content"], "Well?");
}

#[test]
fn a_call_that_is_made_while_an_output_is_awaited_is_of_the_same_message() {
    let body = json!({"model": "m", "input": [
        says("user", "Hi"), call("a"), call("b"), output("a"), call("c"), output("b"),
        output("c"), call("d"), output("d"),
    ]});
    let (sent, _) = sent_to(&direct(), RESPONSES, &body).expect("encoded");
    assert_eq!(
        roles(&sent),
        [
            "user",
            "assistant",
            "tool",
            "tool",
            "tool",
            "assistant",
            "tool"
        ]
    );
    let calls = sent["messages"][1]["tool_calls"].as_array().expect("calls");
    let ids: Vec<_> = calls.iter().map(|call| &call["id"]).collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[test]
fn a_call_without_an_output_holds_nothing_back() {
    let body = json!({"model": "m", "input": [
        says("user", "Hi"), call("a"), says("user", "Stop."), says("assistant", "I do."),
        call("b"), output("b"),
    ]});
    let (sent, _) = sent_to(&direct(), RESPONSES, &body).expect("encoded");
    assert_eq!(
        roles(&sent),
        ["user", "assistant", "user", "assistant", "tool"]
    );
}

#[test]
fn what_a_tool_returns_beside_texts_is_said_by_a_user_behind_all_outputs() {
    let image = json!({"type": "input_image", "image_url": "data:image/png;base64,AA"});
    let text = json!({"type": "input_text", "text": "a cat"});
    let seen = json!({"type": "function_call_output", "call_id": "a", "output": [text, image]});
    let input = [says("user", "Hi"), call("a"), call("b"), seen, output("b")];
    let body = |end: &[Value]| {
        let items: Vec<_> = input.iter().chain(end).collect();
        json!({"model": "m", "input": items})
    };
    let (sent, warnings) = sent_to(&direct(), RESPONSES, &body(&[])).expect("encoded");
    assert_eq!(roles(&sent), ["user", "assistant", "tool", "tool", "user"]);
    let part = |text: &str| json!({"type": "text", "text": text});
    let shown = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}});
    let output = json!([part("a cat"), part("See Attachment 1.")]);
    assert_eq!(sent["messages"][2]["content"], output);
    let behind = json!([part("Attachment 1:"), shown]);
    assert_eq!(sent["messages"][4]["content"], behind);
    assert_eq!(warnings, ["input[3]"]);

    // What the user says then stands in the same message.
    let (sent, _) =
        sent_to(&direct(), RESPONSES, &body(&[says("user", "Well?")])).expect("encoded");
    assert_eq!(roles(&sent), ["user", "assistant", "tool", "tool", "user"]);
    let behind = json!([part("Attachment 1:"), shown, part("Well?")]);
    assert_eq!(sent["messages"][4]["content"], behind);

    // A provider that takes images from tools gets them there.
    let kind = ProviderKind::Anthropic;
    let (sent, warnings) = sent_to(
        &settings(kind, UnsupportedParams::Reject),
        RESPONSES,
        &body(&[]),
    )
    .expect("encoded");
    let result = &sent["messages"][2]["content"][0];
    assert_eq!(result["content"][1]["type"], "image", "{sent}");
    assert!(!warnings.contains(&"input[3]".to_owned()), "{warnings:?}");
}

#[test]
fn images_in_results_of_tools_of_the_messages_api_are_said_by_the_user() {
    let image = json!({"type": "image", "source": {
        "type": "base64", "media_type": "image/png", "data": "AA"}});
    let body = json!({"model": "m", "max_tokens": 9, "messages": [
        says("user", "Hi"),
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [image]}]},
    ]});
    let (sent, warnings) = sent_to(&direct(), MESSAGES, &body).expect("encoded");
    assert_eq!(roles(&sent), ["user", "assistant", "tool", "user"]);
    assert_eq!(sent["messages"][2]["content"], "See Attachment 1.");
    assert_eq!(sent["messages"][3]["content"][1]["type"], "image_url");
    assert_eq!(warnings, ["messages[2].content[0]"]);
}

#[test]
fn a_last_message_of_the_assistant_is_gone_on_with_or_rejected() {
    let mut body = json!({"model": "m", "max_tokens": 9, "messages": [
        says("user", "Count."), says("assistant", "1, 2,")]});
    assert_eq!(rejected(MESSAGES, &body), "messages[1]");
    // Mistral's API goes on with it.
    let sent = sent(ProviderKind::Mistral, MESSAGES, &body).expect("encoded");
    assert_eq!(sent["messages"][1]["prefix"], true);
    // So do vLLM and SGLang, where the request asks their way.
    body["continue_final_message"] = json!(true);
    let (sent, _) = sent_to(&direct(), MESSAGES, &body).expect("encoded");
    assert_eq!(sent["continue_final_message"], true);
    // Of a Response's input it is a part of what was said before.
    let body = json!({"model": "m", "input": [says("user", "Hi"), says("assistant", "Ho")]});
    sent_to(&direct(), RESPONSES, &body).expect("encoded");
}

#[test]
fn thoughts_are_sent_back_under_the_key_that_the_server_has_or_left_out() {
    let responses = json!({"model": "m", "input": [
        says("user", "Hi"),
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Short."}],
         "content": [{"type": "reasoning_text", "text": "Hm."}]},
        says("assistant", "Ho"), says("user", "Well?")]});
    let messages = json!({"model": "m", "max_tokens": 9, "messages": [
        says("user", "Hi"),
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Ho"}]},
        says("user", "Well?")]});
    for (path, body, place) in [
        (RESPONSES, &responses, "input[1]"),
        (MESSAGES, &messages, "messages[1].content[0]"),
    ] {
        let mut settings = direct();
        for key in ReasoningKey::ALL {
            settings.reasoning_key = Some(key);
            let (sent, warnings) = sent_to(&settings, path, body).expect("encoded");
            assert_eq!(sent["messages"][1][key.as_str()], "Hm.", "{path}");
            assert!(!warnings.contains(&place.to_owned()));
        }
        settings.reasoning_key = None;
        let (sent, warnings) = sent_to(&settings, path, body).expect("encoded");
        let ho = json!({"role": "assistant", "content": "Ho"});
        assert_eq!(sent["messages"][1], ho, "{path}");
        assert!(warnings.contains(&place.to_owned()), "{warnings:?}");
    }
    let (_, warnings) = sent_to(&direct(), RESPONSES, &responses).expect("encoded");
    assert_eq!(warnings, ["input[1].summary"]);
}

#[test]
fn a_message_that_says_nothing_is_not_sent() {
    for system in [json!([]), json!("")] {
        let body = json!({"model": "m", "max_tokens": 9, "system": system, "messages": [
            says("user", "Hi"), {"role": "assistant", "content": []}]});
        let (sent, _) = sent_to(&direct(), MESSAGES, &body).expect("encoded");
        assert_eq!(sent["messages"], json!([says("user", "Hi")]));
    }
    let body = json!({"model": "m", "instructions": "", "input": "Hi"});
    let (sent, _) = sent_to(&direct(), RESPONSES, &body).expect("encoded");
    assert_eq!(sent["messages"], json!([says("user", "Hi")]));
}
