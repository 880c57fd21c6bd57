//! No request is answered as if it had asked for less, and none makes a translation panic.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::requests::{members, request};
use super::*;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::provider::chat::{KEYS, asks_for_nothing};
use crate::upstream::provider::tree::Tree;

/// A member of an object within a value, by the keys and places that lead to it.
type Path = Vec<String>;

fn paths(value: &Value, before: &[String], found: &mut Vec<Path>) {
    let behind = |key: String| [before, &[key]].concat();
    match value {
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                paths(item, &behind(place.to_string()), found);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                found.push(behind(key.clone()));
                paths(member, &behind(key.clone()), found);
            }
        }
        _ => {}
    }
}

fn pointer(path: &[String]) -> String {
    path.iter().map(|key| format!("/{key}")).collect()
}

fn without(body: &Value, path: &[String]) -> Value {
    let (key, parent) = path.split_last().expect("leads somewhere");
    let mut body = body.clone();
    let parent = body
        .pointer_mut(&pointer(parent))
        .and_then(Value::as_object_mut);
    parent.expect("is an object").remove(key);
    body
}

/// As warnings write a path: `messages[0].content`.
fn dotted(path: &[String]) -> String {
    let keys = path.iter().map(|key| match key.parse::<usize>() {
        Ok(place) => format!("[{place}]"),
        Err(_) => format!(".{key}"),
    });
    keys.collect::<String>().trim_start_matches('.').to_owned()
}

/// Whether a warning names a member, or what it is part of.
fn is_named(warnings: &[Warning], path: &[String]) -> bool {
    let path = dotted(path);
    warnings.iter().any(|warning| {
        let rest = path.strip_prefix(&warning.param);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// Where a request says what is so anyway, or what another member says better.
fn says_nothing(kind: ProviderKind, body: &Value, path: &[String]) -> bool {
    let value = body.pointer(&pointer(path)).expect("is there");
    let key = path.last().expect("leads somewhere");
    let written = value.to_string();
    let is_empty = Tree::read(&written).is_some_and(|value| asks_for_nothing(key, &value));
    let at = dotted(path);
    let choice = &body["tool_choice"];
    let has_tools = body["tools"]
        .as_array()
        .is_some_and(|tools| !tools.is_empty());
    is_empty
        || match &*at {
            "max_tokens" => !body["max_completion_tokens"].is_null(),
            "temperature" | "top_p" => value == 1,
            "tool_choice" => !has_tools || value == "auto",
            "tool_choice.function" | "tool_choice.function.name" => !has_tools,
            "parallel_tool_calls" => !has_tools || choice == "none",
            "reasoning_effort" => value == "none",
            "response_format" => value == &json!({"type": "text"}),
            // The model is the route's. The others are a label, and that the schema is kept to,
            // which goes without saying.
            "model" | "response_format.json_schema.name" | "response_format.json_schema.strict" => {
                true
            }
            // Every object of an answer is closed there.
            "response_format.json_schema.schema.additionalProperties" => {
                kind == ProviderKind::Anthropic
            }
            // What is no text and no function is rejected.
            _ if key == "type" => true,
            // A warning names the choice, which leaves the one tool.
            _ if at.starts_with("tools[") => kind == ProviderKind::Cohere && choice.is_object(),
            // Earlier Geminis know calls by their names alone: two calls of one id are then alike.
            _ if key == "id" && at.contains(".tool_calls[") => {
                let id = format!("\"id\":{written}");
                kind == ProviderKind::Gemini && body.to_string().matches(&id).count() > 1
            }
            // The sound itself tells of its format.
            _ => kind == ProviderKind::Mistral && at.ends_with(".input_audio.format"),
        }
}

/// A member of a request of which nothing is seen at a provider: the request without it is the
/// same to the model server, and gives the same warnings. `None` where there is no such member, or
/// the request is rejected with a reason.
fn unseen(
    kind: ProviderKind,
    model: &str,
    policy: UnsupportedParams,
    body: &Value,
) -> Option<Path> {
    let provider = provider(kind, policy);
    let whole = match sent(&*provider, model, body) {
        Ok(whole) => whole,
        Err(unsupported) => {
            assert!(!unsupported.param.is_empty() && !unsupported.reason.is_empty());
            return None;
        }
    };
    let mut all = Vec::new();
    paths(body, &[], &mut all);
    all.into_iter().find(|path| {
        let Ok(less) = sent(&*provider, model, &without(body, path)) else {
            return false;
        };
        let is_seen = less.body != whole.body
            || less.warnings != whole.warnings
            || is_named(&whole.warnings, path);
        !is_seen && !says_nothing(kind, body, path)
    })
}

/// The table of keys, walked: each with values that OpenAI's schema allows, at each provider.
#[test]
fn each_key_of_the_table_is_seen_at_each_provider() {
    let tool = json!({"type": "function", "function": {"name": "tool.0"}});
    let hello = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}],
        "tools": [tool, {"type": "function", "function": {"name": "tool.1"}}]});
    let mut keys: Vec<&str> = hello
        .as_object()
        .expect("an object")
        .keys()
        .map(|key| &**key)
        .collect();
    let mut runner = TestRunner::deterministic();
    for (key, values) in members() {
        keys.push(key);
        for _ in 0..12 {
            let value = values.new_tree(&mut runner).expect("a value").current();
            let mut body = hello.clone();
            body[key] = value;
            for (kind, models) in TRANSLATED {
                for (model, policy) in models
                    .iter()
                    .flat_map(|model| UnsupportedParams::ALL.map(|policy| (model, policy)))
                {
                    let unseen = unseen(kind, model, policy, &body);
                    assert_eq!(unseen, None, "{kind:?} {model} {policy:?}: {body}");
                }
            }
        }
    }
    keys.sort_unstable();
    assert_eq!(keys, KEYS, "each key has values");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Each member of a request is seen: without it another request is sent, or another warning
    /// is given, or the request is rejected with a reason.
    #[test]
    fn each_member_of_a_request_is_sent_named_in_a_warning_or_a_reason_to_reject_it(
        body in request(),
        kind in prop::sample::select(TRANSLATED.to_vec()),
        generation in any::<prop::sample::Index>(),
        drops in any::<bool>(),
    ) {
        let (kind, models) = kind;
        let model = models[generation.index(models.len())];
        let policy = UnsupportedParams::ALL[usize::from(drops)];
        let unseen = unseen(kind, model, policy, &body);
        prop_assert_eq!(unseen, None, "{:?} {}: {}", kind, model, body);
    }

    /// Names of tools, and which result is of which call, survive the way there and back.
    #[test]
    fn names_and_ids_of_calls_survive_the_way_there_and_back(
        names in prop::collection::btree_set(".{1,140}", 1..5),
        ids in prop::collection::btree_set(".{1,40}", 1..5),
        kind in prop::sample::select(TRANSLATED.to_vec()),
    ) {
        let (kind, models) = kind;
        let model = models[models.len() - 1];
        let provider = provider(kind, UnsupportedParams::Reject);
        let names: Vec<String> = names.into_iter().collect();
        let ids: Vec<String> = ids.into_iter().collect();
        let tools = names.iter().map(|name| {
            json!({"type": "function", "function": {"name": name, "parameters":
                {"type": "object", "properties": {"a": {"type": "string"}}}}})
        });
        let name = |place: usize| &names[place % names.len()];
        let calls = ids.iter().enumerate().map(|(place, id)| {
            json!({"id": id, "type": "function",
                "function": {"name": name(place), "arguments": "{}"}})
        });
        // The results come in another order than the calls.
        let results = ids.iter().rev().map(|id| {
            json!({"role": "tool", "tool_call_id": id, "content": format!("of {id}")})
        });
        let mut messages = vec![
            json!({"role": "user", "content": "Hi"}),
            json!({"role": "assistant", "content": null, "tool_calls": calls.collect::<Value>()}),
        ];
        messages.extend(results);
        let tools = tools.collect::<Value>();
        let body = json!({"model": "m", "messages": messages, "tools": tools});
        let sent = sent(&*provider, model, &body).expect("encoded");

        let form = Form::of(kind);
        let declared = (form.tools)(&sent.body);
        prop_assert_eq!(declared.len(), names.len());
        let distinct: BTreeSet<&String> = declared.iter().collect();
        prop_assert_eq!(distinct.len(), names.len(), "each under its own name");
        let calls = (form.calls)(&sent.body);
        prop_assert_eq!(calls.len(), ids.len());
        let results = (form.results)(&sent.body);
        prop_assert_eq!(results.len(), ids.len());
        for (place, (id, called)) in calls.iter().enumerate() {
            prop_assert_eq!(called, &declared[place % names.len()]);
            let own = results.iter().find(|(of, _)| of == id).map(|(_, text)| text);
            let expected = format!("of {}", ids[place]);
            prop_assert_eq!(own, Some(&expected), "{}", id);
        }

        let answer = (form.answer)(&declared);
        let decoded = decoded(&*provider, &head(200, &[]), &answer.to_string(), Some(sent.asked));
        let answer: Value = serde_json::from_slice(&decoded.body).expect("JSON");
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().cloned();
        let back = calls.unwrap_or_default();
        let back: Vec<_> = back.iter().map(|call| call["function"]["name"].as_str()).collect();
        let own: Vec<_> = names.iter().map(|name| Some(name.as_str())).collect();
        prop_assert_eq!(back, own);
    }

    /// Whatever a provider says, its line gets something, and only answers count as such.
    #[test]
    fn whatever_a_provider_says_is_read_without_a_panic(
        said in crate::domain::json::tests::texts(),
        status in prop::sample::select(vec![200_u16, 302, 400, 404, 429, 500, 529]),
        kind in prop::sample::select(TRANSLATED.to_vec()),
    ) {
        let provider = provider(kind.0, UnsupportedParams::Reject);
        let head = head(status, &[]);
        let decoded = decoded(&*provider, &head, &said, None);
        let result = provider.classify(&head, &decoded);
        prop_assert!(!provider.explain(result, &head, &decoded).is_empty());
        let _ = provider.retry_after(&head, &decoded, SystemTime::UNIX_EPOCH);
        let _ = provider.models(said.as_bytes());
        prop_assert!(head.is_success() || result != CallResult::Succeeded);
    }
}

#[test]
fn each_member_of_a_request_for_embeddings_is_sent_named_in_a_warning_or_changes_the_answer() {
    let body = json!({
        "model": "m", "input": ["a", "b"], "dimensions": 2, "encoding_format": "base64",
        "user": "u", "a_later_key": 1,
    });
    for kind in [
        ProviderKind::Gemini,
        ProviderKind::Mistral,
        ProviderKind::Cohere,
    ] {
        let drops = provider(kind, UnsupportedParams::Drop);
        let whole = sent_to(&*drops, EMBEDDINGS, "m", &body).expect("encoded");
        let mut all = Vec::new();
        paths(&body, &[], &mut all);
        for path in all.into_iter().filter(|path| path != &["model"]) {
            let Ok(less) = sent_to(&*drops, EMBEDDINGS, "m", &without(&body, &path)) else {
                continue;
            };
            let is_seen = less.body != whole.body
                || less.asked.0.wants_base64 != whole.asked.0.wants_base64
                || is_named(&whole.warnings, &path);
            assert!(is_seen, "{kind:?} says nothing of {path:?}");
        }
        let rejects = provider(kind, UnsupportedParams::Reject);
        let rejected = sent_to(&*rejects, EMBEDDINGS, "m", &body).expect_err("rejected");
        assert_eq!(rejected.param, "a_later_key");
    }
}

/// Where a provider's form has what a test looks for.
struct Form {
    /// The names of the tools that are declared.
    tools: fn(&Value) -> Vec<String>,
    /// The ids of the calls, and the names of what they call.
    calls: fn(&Value) -> Vec<(String, String)>,
    /// Of each result: the id of its call, and its text.
    results: fn(&Value) -> Vec<(String, String)>,
    /// An answer that calls functions of these names.
    answer: fn(&[String]) -> Value,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn items(value: &Value) -> std::slice::Iter<'_, Value> {
    value
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}

impl Form {
    fn of(kind: ProviderKind) -> Self {
        match kind {
            ProviderKind::Anthropic => Self {
                tools: |body| {
                    items(&body["tools"])
                        .map(|tool| text(&tool["name"]))
                        .collect()
                },
                calls: |body| {
                    let blocks = items(&body["messages"]).flat_map(|one| items(&one["content"]));
                    let calls = blocks.filter(|block| block["type"] == "tool_use");
                    calls
                        .map(|one| (text(&one["id"]), text(&one["name"])))
                        .collect()
                },
                results: |body| {
                    let blocks = items(&body["messages"]).flat_map(|one| items(&one["content"]));
                    let results = blocks.filter(|block| block["type"] == "tool_result");
                    results
                        .map(|one| (text(&one["tool_use_id"]), text(&one["content"][0]["text"])))
                        .collect()
                },
                answer: |names| {
                    let calls = names.iter().map(|name| {
                        json!({"type": "tool_use", "id": "toolu_1", "name": name, "input": {}})
                    });
                    json!({"type": "message", "content": calls.collect::<Value>(),
                        "stop_reason": "tool_use"})
                },
            },
            ProviderKind::Gemini => Self {
                tools: |body| {
                    let declared = items(&body["tools"][0]["functionDeclarations"]);
                    declared.map(|tool| text(&tool["name"])).collect()
                },
                calls: |body| {
                    let parts = items(&body["contents"]).flat_map(|one| items(&one["parts"]));
                    let calls = parts.filter_map(|part| part.get("functionCall"));
                    calls
                        .map(|one| (text(&one["id"]), text(&one["name"])))
                        .collect()
                },
                results: |body| {
                    let parts = items(&body["contents"]).flat_map(|one| items(&one["parts"]));
                    let results = parts.filter_map(|part| part.get("functionResponse"));
                    results
                        .map(|one| (text(&one["id"]), text(&one["response"]["output"])))
                        .collect()
                },
                answer: |names| {
                    let parts = names
                        .iter()
                        .map(|name| json!({"functionCall": {"name": name, "args": {}}}));
                    json!({"candidates": [{"content": {"parts": parts.collect::<Value>()},
                        "finishReason": "STOP"}]})
                },
            },
            _ => Self {
                tools: |body| {
                    let tools = items(&body["tools"]);
                    tools.map(|tool| text(&tool["function"]["name"])).collect()
                },
                calls: |body| {
                    let calls = items(&body["messages"]).flat_map(|one| items(&one["tool_calls"]));
                    calls
                        .map(|one| (text(&one["id"]), text(&one["function"]["name"])))
                        .collect()
                },
                results: |body| {
                    let results = items(&body["messages"]).filter(|one| one["role"] == "tool");
                    results
                        .map(|one| (text(&one["tool_call_id"]), text(&one["content"])))
                        .collect()
                },
                answer: |names| {
                    let calls = names.iter().map(
                        |name| json!({"id": "1", "function": {"name": name, "arguments": "{}"}}),
                    );
                    let message = json!({"role": "assistant",
                        "tool_calls": calls.collect::<Value>()});
                    // Mistral's answer has choices; Cohere's is one.
                    json!({"message": message, "finish_reason": "TOOL_CALL",
                        "choices": [{"message": message, "finish_reason": "tool_calls"}]})
                },
            },
        }
    }
}
