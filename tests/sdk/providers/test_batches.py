"""One batch, sent by the official OpenAI SDK to each provider: the answers say the same
everywhere, and are of the SDK's types."""

import base64
import json
import struct

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

import model
import openai_api
from batches import EMBEDDINGS, run
from strict import check

PROVIDERS = ["openai", "anthropic", "gemini", "mistral", "cohere"]
TRANSLATED = PROVIDERS[1:]

# What answers may have beside what OpenAI's have: as docs/providers.md says.
OF_PROVIDERS = {"reasoning_content", "citations", "extra_content"}

IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
WEATHER = {
    "type": "object",
    "properties": {
        "zone": {"type": "string", "description": "Where."},
        "a_day": {"type": "integer"},
        "kinds": {"type": "array", "items": {"type": "string", "enum": ["rain", "wind"]}},
    },
    "required": ["zone", "a_day"],
    "additionalProperties": False,
}


def function(name, description, schema):
    described = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": described}


# The second name is in letters that not every provider takes.
TOOLS = [
    function("weather", "The weather of a day.", WEATHER),
    function("books.find-1", "Finds \"books\".\nAll of them.", WEATHER),
]


def call(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(*texts):
    return {"role": "user", "content": texts[0] if len(texts) == 1 else parts(texts)}


def parts(texts):
    return [{"type": "text", "text": text} for text in texts]


def image(data):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


CALLS = [
    call("call-of.another/provider 1", "weather", '{"zone": "a", "a_day": 12345678901234567890}'),
    call("2", "books.find-1", "{}"),
]
RESULTS = [
    {"role": "tool", "tool_call_id": CALLS[1]["id"], "content": "None.\n"},
    {"role": "tool", "tool_call_id": CALLS[0]["id"], "content": parts(["It ", "rains."])},
]
HISTORY = [user("Hi"), {"role": "assistant", "content": None, "tool_calls": CALLS}, *RESULTS]
SYSTEM = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": parts(["Be \"kind\".", "Be 夜."])},
]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "day", "strict": True, "schema": WEATHER}}

# A request for each thing that can be asked for everywhere.
REQUESTS = {
    "plain": {"messages": [user("Hello, \\u0041 \\ \"é夜𝄞\u2028\"")]},
    "system": {"messages": [*SYSTEM, user("One", "two"), user("three")]},
    "limits": {
        "messages": [user("Hi")],
        "max_completion_tokens": 4000,
        "temperature": 0.5,
        "stop": ["END", "\"É\""],
    },
    "says nothing": {
        "messages": [user("Hi")],
        "n": 1,
        "store": False,
        "stream": False,
        "presence_penalty": 0,
        "logprobs": False,
        "tools": [],
        "user": "",
        "seed": None,
    },
    "conversation": {
        "messages": [user("Hi"), {"role": "assistant", "content": "Hello."}, user("And now?")]
    },
    "images": {
        "messages": [
            {"role": "user", "content": [*parts(["What is it?"]), image(IMAGE), image("AAAA")]}
        ]
    },
    "tools": {"messages": [user("/call")], "tools": TOOLS, "tool_choice": "auto"},
    "required": {"messages": [user("Hi")], "tools": TOOLS, "tool_choice": "required"},
    "one tool": {
        "messages": [user("/call")],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "books.find-1"}},
    },
    "results": {"messages": [*SYSTEM, *HISTORY], "tools": TOOLS},
    "structured": {"messages": [user("/structured")], "response_format": SCHEMA},
    "structured, told": {"messages": [user("Hi")], "response_format": SCHEMA},
    "json": {
        "messages": [user("/json please, as JSON")],
        "response_format": {"type": "json_object"},
    },
    "thinks": {
        "messages": [user("Think.")],
        "reasoning_effort": "low",
        "max_completion_tokens": 8000,
    },
    "thinks and calls": {
        "messages": [user("/call")],
        "reasoning_effort": "low",
        "max_completion_tokens": 8000,
        "tools": TOOLS,
    },
    "long": {"messages": [user("/long")]},
    "cut": {"messages": [user("/cut")], "max_tokens": 5000},
}


def expected(body):
    return model.answer(openai_api.hear(openai_api.CHAT, body))


def heard(text, body):
    """What the model heard of a request, as it says. Anthropic must be told how much it may write,
    so only what the request says of that counts."""
    told = json.loads(text)
    if "max_completion_tokens" not in body:
        del told["most"]
    return told


@pytest.mark.parametrize("provider", [*PROVIDERS, "anthropic-2026"])
def test_the_answers_say_the_same_everywhere(client, stand_in, provider):
    bodies = {id: {"model": provider, **body} for id, body in REQUESTS.items()}
    if provider == "anthropic-2026":
        # This version of the API has no temperature.
        del bodies["limits"]
    output, errors = run(client, bodies)
    assert stand_in.problems(provider) == []
    assert errors == {}
    for id, line in output.items():
        assert line["error"] is None and line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        said = expected(bodies[id])
        body = line["response"]["body"]
        assert unknown(body) <= (OF_PROVIDERS if provider != "openai" else set()), (id, body)
        answer = ChatCompletion.model_validate(body, strict=True)
        (choice,) = answer.choices
        message = choice.message
        assert choice.finish_reason == said.finish, id
        if said.text and said.text.startswith("{") and "turns" in said.text:
            assert heard(message.content, bodies[id]) == heard(said.text, bodies[id]), id
        else:
            assert message.content == said.text, id
        names = [tool["function"]["name"] for tool in bodies[id].get("tools") or []]
        calls = [
            (names.index(one.function.name), json.loads(one.function.arguments))
            for one in message.tool_calls or []
        ]
        assert calls == said.calls, id
        ids = [one.id for one in message.tool_calls or []]
        assert len(set(ids)) == len(ids) and all(ids)
        if provider != "openai":
            assert getattr(message, "reasoning_content", None) == said.thought, id
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (model.INPUT, model.OUTPUT)
        assert usage.total_tokens == model.INPUT + model.OUTPUT
        if provider != "mistral":
            assert usage.prompt_tokens_details.cached_tokens == model.CACHED
        if provider not in ("mistral", "cohere"):
            reasoning = model.REASONING if said.thought else 0
            assert usage.completion_tokens_details.reasoning_tokens == reasoning


def unknown(body):
    """The keys of an answer that the SDK's type does not know, and whatever else is wrong."""
    problems = check(body, ChatCompletion)
    return {problem.removesuffix(": is not known").split(".")[-1] for problem in problems}


# What a provider may know, or not. Whatever is left out must be named.
MORE = {
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 2,
    "max_completion_tokens": 4000,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "Hello"},
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "safety_identifier": "user-1",
    "seed": 7,
    "service_tier": "default",
    "store": True,
    "stream_options": {"include_usage": True},
    "temperature": 1.5,
    "top_p": 0.9,
    "user": "user-2",
    "verbosity": "low",
    "tools": TOOLS,
}


@pytest.mark.parametrize("provider", TRANSLATED)
def test_what_a_provider_does_not_know_is_left_out_and_named(client, stand_in, provider):
    named = {"role": "user", "content": "Hi", "name": "ann"}
    requests = {key: {key: value, "messages": [user("Hi")]} for key, value in MORE.items()}
    requests["name"] = {"messages": [named]}
    requests["all"] = {**MORE, "messages": [named]}
    bodies = {id: {"model": f"{provider}-drops", **body} for id, body in requests.items()}
    output, errors = run(client, bodies)
    assert stand_in.problems(provider) == []
    assert errors == {}
    warned = {
        id: {warning["param"] for warning in line.get("nightshift", {}).get("warnings", [])}
        for id, line in output.items()
    }
    for id in MORE:
        assert warned[id] <= {id}, "no other is named"
    assert warned["name"] == {"messages[0].name"}
    # Anthropic and Mistral take one of several that mean the same.
    assert set().union(*warned.values()) >= warned["all"] - {"top_p", "user"}
    for id in ("logit_bias", "store", "verbosity", "stream_options"):
        assert warned[id] == {id}, "none of the four has it"
    sent = {id for id in MORE if not warned[id]}
    assert sent >= {"max_completion_tokens", "tools", "top_p"}


@pytest.mark.parametrize("provider", ["openai", "gemini", "mistral", "cohere"])
def test_row_12_embeddings_say_the_same_everywhere(client, stand_in, provider):
    requests = {
        "one": {"input": "Hello"},
        "many": {"input": ["a", "", "b", "a"], "encoding_format": "float"},
        "short": {"input": ["é夜"], "dimensions": 2},
        "base64": {"input": ["abc", "d"], "encoding_format": "base64"},
    }
    more = {"input_type": "search_query"} if provider == "cohere" else {}
    bodies = {id: {"model": f"{provider}-embed", **body, **more} for id, body in requests.items()}
    output, errors = run(client, bodies, EMBEDDINGS)
    assert stand_in.problems(provider) == []
    assert errors == {}
    for id, body in requests.items():
        answer = output[id]["response"]["body"]
        if id == "base64":
            for one in answer["data"]:
                packed = base64.b64decode(one["embedding"])
                one["embedding"] = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        more = {"$.id: is not known"} if provider == "mistral" else set()
        assert set(check(answer, CreateEmbeddingResponse)) <= more
        answer = CreateEmbeddingResponse.model_validate(answer, strict=True)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [model.vector(text, body.get("dimensions")) for text in texts]
        assert [one.embedding for one in answer.data] == vectors, id
        assert [one.index for one in answer.data] == list(range(len(texts)))
        if provider != "gemini":
            assert answer.usage.prompt_tokens == sum(len(text) for text in texts)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_row_04_an_answer_that_is_withheld_is_an_answer(client, provider):
    body = {"model": provider, "messages": [user("/refuse")]}
    output, errors = run(client, {"a": body})
    assert errors == {}
    (choice,) = ChatCompletion.model_validate(output["a"]["response"]["body"]).choices
    assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
    if provider == "anthropic":
        assert choice.message.refusal == "It would harm."
