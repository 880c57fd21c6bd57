"""Lines of the Responses API and of Anthropic's Messages API, at each provider: what is asked says
the same everywhere, and the answers are of the types of the SDKs whose APIs these are."""

import json

import pytest
from anthropic.types import Message
from openai.types.responses import Response

import model
from batches import run
from strict import check
from test_batches import IMAGE, WEATHER

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
# At "openai-translates" the Responses API is translated, too.
PROVIDERS = ["openai-translates", "anthropic", "gemini", "mistral", "cohere"]

TOOL = {"name": "weather", "description": "The weather of a day."}
URL = f"data:image/png;base64,{IMAGE}"

ASKED = {
    "plain": {"input": "Hello, \"é夜𝄞\""},
    "system": {
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        ],
        "max_output_tokens": 4000,
    },
    "image": {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": URL, "detail": "auto"},
                ],
            }
        ]
    },
    "tools": {
        "input": "/call",
        "tools": [{"type": "function", **TOOL, "parameters": WEATHER}],
    },
    "results": {
        "input": [
            {"role": "user", "content": "Hi"},
            {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "It rains."},
        ],
        "tools": [{"type": "function", **TOOL, "parameters": WEATHER}],
    },
    "structured": {
        "input": "/structured",
        "text": {
            "format": {"type": "json_schema", "name": "day", "strict": True, "schema": WEATHER}
        },
    },
    "thinks": {"input": "Think.", "reasoning": {"effort": "low"}, "max_output_tokens": 8000},
    "cut": {"input": "/cut"},
}

TOLD = {
    "plain": {"messages": [{"role": "user", "content": "Hello, \"é夜𝄞\""}]},
    "system": {
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    },
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": IMAGE},
                    },
                ],
            }
        ]
    },
    "tools": {
        "messages": [{"role": "user", "content": "/call"}],
        "tools": [{**TOOL, "input_schema": WEATHER}],
    },
    "results": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "It rains."}
                ],
            },
        ],
        "tools": [{**TOOL, "input_schema": WEATHER}],
    },
    "structured": {
        "messages": [{"role": "user", "content": "/structured"}],
        "output_config": {"format": {"type": "json_schema", "schema": WEATHER}},
    },
    "cut": {"messages": [{"role": "user", "content": "/cut"}]},
}

# What the model hears of each, whichever API it came by.
TURNS = {
    "plain": [["user", "Hello, \"é夜𝄞\""]],
    "system": [["user", "Hi"]],
    "image": [["user", "What is it?"], ["image", "image/png", IMAGE]],
    "results": [["user", "Hi"], ["call", 0, {}], ["result", 0, "It rains."]],
    "thinks": [["user", "Think."]],
}
CALL = {"a_day": 9007199254740993, "kinds": ["rain"], "zone": "Zürich \"夜\""}


def say_the_same(id, text, calls):
    """Whether the model has heard all, and its answer has come back whole."""
    if id == "tools":
        assert [json.loads(one) if isinstance(one, str) else one for one in calls] == [CALL]
    elif id == "structured":
        assert json.loads(text) == CALL
    elif id == "cut":
        assert text == "It ends in the mid"
    else:
        heard = json.loads(text)
        assert heard["turns"] == TURNS[id]
        assert heard["system"] == (["Be brief.", "Be kind."] if id == "system" else [])
        assert [name for name, _ in heard["tools"]] == (
            [TOOL["description"]] if id == "results" else []
        )


@pytest.mark.parametrize("provider", PROVIDERS)
def test_responses_are_answered_as_responses_everywhere(client, stand_in, provider):
    bodies = {id: {"model": provider, **body} for id, body in ASKED.items()}
    output, errors = run(client, bodies, RESPONSES)
    assert stand_in.problems(provider.removesuffix("-translates")) == []
    assert errors == {}
    for id, line in output.items():
        body = line["response"]["body"]
        unknown = {problem.removesuffix(": is not known") for problem in check(body, Response)}
        unknown = {problem.split(".")[-1] for problem in unknown}
        assert unknown <= {"citations", "extra_content"}, (id, unknown)
        answer = Response.model_validate_json(json.dumps(body), strict=True)
        calls = [item.arguments for item in answer.output if item.type == "function_call"]
        say_the_same(id, answer.output_text, calls)
        assert answer.status == ("incomplete" if id == "cut" else "completed")
        if id == "cut":
            assert answer.incomplete_details.reason == "max_output_tokens"
        if id == "thinks" and provider != "openai-translates":
            (thought,) = (item for item in answer.output if item.type == "reasoning")
            assert thought.content[0].text == "Let me see."
        usage = answer.usage
        assert (usage.input_tokens, usage.output_tokens) == (model.INPUT, model.OUTPUT)
        if provider != "mistral":
            assert usage.input_tokens_details.cached_tokens == model.CACHED
        assert answer.instructions == bodies[id].get("instructions")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_messages_are_answered_as_messages_everywhere(client, stand_in, provider):
    bodies = {id: {"model": provider, "max_tokens": 4000, **body} for id, body in TOLD.items()}
    output, errors = run(client, bodies, MESSAGES)
    assert stand_in.problems(provider.removesuffix("-translates")) == []
    assert errors == {}
    for id, line in output.items():
        body = line["response"]["body"]
        unknown = {problem.removesuffix(": is not known") for problem in check(body, Message)}
        unknown = {problem.split(".")[-1] for problem in unknown}
        assert unknown <= {"extra_content"}, (id, unknown)
        answer = Message.model_validate_json(json.dumps(body), strict=True)
        text = "".join(block.text for block in answer.content if block.type == "text")
        calls = [block.input for block in answer.content if block.type == "tool_use"]
        say_the_same(id, text, calls)
        stop = {"tools": "tool_use", "cut": "max_tokens"}.get(id, "end_turn")
        assert answer.stop_reason == stop, id
        usage = answer.usage
        read = usage.cache_read_input_tokens or 0
        written = usage.cache_creation_input_tokens or 0
        assert usage.input_tokens + read + written == model.INPUT
        assert usage.output_tokens == model.OUTPUT


def test_what_needs_a_state_is_found_when_the_batch_is_made(client):
    body = {"model": "gemini", "input": "Hi", "previous_response_id": "resp_1"}
    line = {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": body}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=RESPONSES, completion_window="24h"
    )
    while batch.status in ("validating", "in_progress"):
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.line, error.param) == (1, "body.previous_response_id")
