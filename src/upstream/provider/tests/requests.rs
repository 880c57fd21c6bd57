//! Requests for chat completions as OpenAI's schema allows them.

use proptest::prelude::*;
use proptest::strategy::Union;
use serde_json::{Map, Value, json};

/// Stands for a text that no other member has.
const TEXT: &str = "§";

fn one_of(values: &[Value]) -> BoxedStrategy<Value> {
    prop::sample::select(values.to_vec()).boxed()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"a": {"type": "string", "description": TEXT}},
        "required": ["a"],
        "additionalProperties": false,
    })
}

fn text_parts() -> BoxedStrategy<Value> {
    let part = json!({"type": "text", "text": TEXT});
    one_of(&[
        json!(TEXT),
        json!([part.clone()]),
        json!([part.clone(), part]),
    ])
}

fn user_content() -> BoxedStrategy<Value> {
    let parts = [
        json!({"type": "text", "text": TEXT}),
        json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,§"}}),
        json!({"type": "image_url", "image_url": {"url": "https://h/§", "detail": "high"}}),
        json!({"type": "file", "file": {"file_data": "data:application/pdf;base64,§", "filename": TEXT}}),
        json!({"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}}),
    ];
    let parts = prop::collection::vec(one_of(&parts), 1..3).prop_map(Value::from);
    prop_oneof![Just(json!(TEXT)), parts].boxed()
}

/// Messages that follow each other: results of tools are behind their calls.
fn exchange() -> BoxedStrategy<Vec<Value>> {
    let name = prop::option::of(Just(json!(TEXT)));
    let of_role = |role: &'static str, content: BoxedStrategy<Value>| {
        (content, name.clone()).prop_map(move |(content, name)| {
            let mut message = json!({"role": role, "content": content});
            if let Some(name) = name {
                message["name"] = name;
            }
            vec![message]
        })
    };
    let refusal = json!([{"type": "text", "text": TEXT}, {"type": "refusal", "refusal": TEXT}]);
    let said = one_of(&[json!(TEXT), refusal]);
    let tools = (
        one_of(&[json!(null), json!(""), json!(TEXT)]),
        1..3_usize,
        text_parts(),
    );
    let tools = tools.prop_map(|(said, count, result)| {
        let calls = (0..count).map(|place| {
            let function = json!({"name": format!("tool.{place}"), "arguments": "{\"a\": \"§\"}"});
            json!({"id": format!("call {place}"), "type": "function", "function": function})
        });
        let calls: Value = calls.collect();
        let mut all = vec![json!({"role": "assistant", "content": said, "tool_calls": calls})];
        all.extend((0..count).map(|place| {
            json!({"role": "tool", "tool_call_id": format!("call {place}"), "content": result})
        }));
        all
    });
    prop_oneof![
        2 => of_role("system", text_parts()),
        2 => of_role("developer", text_parts()),
        4 => of_role("user", user_content()),
        2 => of_role("assistant", said),
        2 => tools,
        1 => Just(vec![json!({"role": "assistant", "content": null, "refusal": TEXT})]),
        1 => Just(vec![json!({"role": "assistant", "audio": {"id": TEXT}})]),
    ]
    .boxed()
}

/// The values that members of a request may have, but for the model, messages and tools.
pub(super) fn members() -> Vec<(&'static str, BoxedStrategy<Value>)> {
    let flag = || one_of(&[json!(true), json!(false)]);
    let penalty = || one_of(&[json!(0), json!(0.5), json!(-1.5), json!(2)]);
    let function = json!({"type": "function", "function": {"name": "tool.0"}});
    let described = json!({"type": "json_schema", "json_schema": {
        "name": TEXT, "description": TEXT, "schema": schema(), "strict": true,
    }});
    vec![
        ("audio", one_of(&[json!({"voice": TEXT, "format": "mp3"})])),
        ("frequency_penalty", penalty()),
        (
            "function_call",
            one_of(&[json!("auto"), json!({"name": TEXT})]),
        ),
        ("functions", one_of(&[json!([{"name": TEXT}])])),
        ("logit_bias", one_of(&[json!({"50256": -100})])),
        ("logprobs", flag()),
        ("max_completion_tokens", one_of(&[json!(1), json!(4_000)])),
        ("max_tokens", one_of(&[json!(2), json!(3_000)])),
        ("metadata", one_of(&[json!({"a": TEXT}), json!({})])),
        (
            "modalities",
            one_of(&[json!(["text"]), json!(["text", "audio"])]),
        ),
        ("moderation", one_of(&[json!({"model": TEXT})])),
        ("n", one_of(&[json!(1), json!(2)])),
        ("parallel_tool_calls", flag()),
        (
            "prediction",
            one_of(&[json!({"type": "content", "content": TEXT})]),
        ),
        ("presence_penalty", penalty()),
        ("prompt_cache_key", one_of(&[json!(TEXT)])),
        ("prompt_cache_options", one_of(&[json!({"mode": TEXT})])),
        (
            "prompt_cache_retention",
            one_of(&[json!("24h"), json!("in_memory")]),
        ),
        (
            "reasoning_effort",
            one_of(&["none", "minimal", "low", "medium", "high", "xhigh", "max"].map(Value::from)),
        ),
        (
            "response_format",
            one_of(&[
                json!({"type": "text"}),
                json!({"type": "json_object"}),
                described,
            ]),
        ),
        ("safety_identifier", one_of(&[json!(TEXT)])),
        (
            "seed",
            one_of(&[json!(-7), json!(9_007_199_254_740_993_i64)]),
        ),
        (
            "service_tier",
            one_of(&["auto", "default", "flex", "priority", "scale", "fast"].map(Value::from)),
        ),
        ("stop", one_of(&[json!(TEXT), json!([TEXT, TEXT])])),
        ("store", flag()),
        ("stream", flag()),
        ("stream_options", one_of(&[json!({"include_usage": true})])),
        (
            "temperature",
            one_of(&[json!(0), json!(0.7), json!(1), json!(1.5)]),
        ),
        (
            "tool_choice",
            one_of(&[json!("auto"), json!("none"), json!("required"), function]),
        ),
        ("top_logprobs", one_of(&[json!(0), json!(5)])),
        ("top_p", one_of(&[json!(0), json!(0.5), json!(1)])),
        ("user", one_of(&[json!(TEXT)])),
        (
            "verbosity",
            one_of(&["low", "medium", "high"].map(Value::from)),
        ),
        (
            "web_search_options",
            one_of(&[json!({"search_context_size": "low"})]),
        ),
    ]
}

fn tools() -> BoxedStrategy<Value> {
    let tool = |place: usize| {
        let function = json!({"name": format!("tool.{place}"), "parameters": schema()});
        let more = (any::<bool>(), prop::option::of(any::<bool>()));
        more.prop_map(move |(is_described, strict)| {
            let mut function = function.clone();
            if is_described {
                function["description"] = json!(TEXT);
            }
            if let Some(strict) = strict {
                function["strict"] = json!(strict);
            }
            json!({"type": "function", "function": function})
        })
    };
    (tool(0), tool(1))
        .prop_map(|(one, two)| json!([one, two]))
        .boxed()
}

/// A request with up to six members beside its messages and its tools.
pub(super) fn request() -> impl Strategy<Value = Value> {
    let member = members().into_iter().map(|(key, value)| {
        let value = prop_oneof![9 => value, 1 => Just(Value::Null)];
        value.prop_map(move |value| (key, value)).boxed()
    });
    let members = prop::collection::vec(Union::new(member), 0..6);
    let messages = prop::collection::vec(exchange(), 1..5);
    (messages, prop::option::of(tools()), members).prop_map(|(messages, tools, members)| {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!("m"));
        body.insert("messages".to_owned(), messages.concat().into());
        body.extend(tools.map(|tools| ("tools".to_owned(), tools)));
        body.extend(
            members
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value)),
        );
        let mut body = Value::Object(body);
        tell_apart(&mut body, &mut 0);
        body
    })
}

/// Writes another text for each [`TEXT`]. It is base64, too.
fn tell_apart(value: &mut Value, count: &mut u32) {
    match value {
        Value::String(text) if text.contains(TEXT) => {
            *count += 1;
            *text = text.replace(TEXT, &format!("text{count:04}"));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| tell_apart(item, count)),
        Value::Object(members) => members.values_mut().for_each(|one| tell_apart(one, count)),
        _ => {}
    }
}
