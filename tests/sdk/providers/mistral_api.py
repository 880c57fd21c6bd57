"""A stand-in for Mistral's API, which has OpenAI's form, read strictly."""

import re

from mistralai.client import models as sdk

import model
import openai_api
from strict import check

CHAT, EMBEDDINGS = openai_api.CHAT, openai_api.EMBEDDINGS
ANSWERS = {CHAT: sdk.ChatCompletionResponse, EMBEDDINGS: sdk.EmbeddingResponse}
MODEL, EMBEDDER = "mistral-large-latest", "mistral-embed"
key = openai_api.key


def problems(path, body):
    if path == EMBEDDINGS:
        return check(body, sdk.EmbeddingRequest)
    return check(body, sdk.ChatCompletionRequest) or names(body) + order(body["messages"])


def names(body):
    tools = [tool["function"]["name"] for tool in body.get("tools") or []]
    wrong = [name for name in tools if not re.fullmatch("[a-zA-Z0-9_-]{1,64}", name)]
    return [f"Function name was {name} but must be a-z, A-Z, 0-9, _ or -" for name in wrong]


def order(messages):
    """What the types do not say, but the documentation."""
    found = []
    for before, after in zip(messages, messages[1:]):
        if (before["role"], after["role"]) == ("tool", "user"):
            found.append("Unexpected role 'user' after role 'tool'")
    if messages[-1]["role"] == "assistant" and not messages[-1].get("prefix"):
        found.append("Expected last role User or Tool (or Assistant with prefix True)")
    for message in messages:
        ids = [call["id"] for call in message.get("tool_calls") or []]
        ids += [message["tool_call_id"]] if "tool_call_id" in message else []
        wrong = [one for one in ids if not re.fullmatch("[a-zA-Z0-9]{9}", one)]
        found += [f"Tool call id was {one} but must be a-z, A-Z, 0-9, of 9" for one in wrong]
        if message["role"] == "assistant" and not (message.get("content") or ids):
            found.append("Assistant message must have either content or tool_calls")
    return found


def hear(path, body):
    heard = openai_api.hear(path, body)
    # What stands between a tool's result and a user's message is no word of anybody.
    messages = list(zip(body["messages"], body["messages"][1:]))
    between = [m for m, after in messages if m == FILLER and after["role"] == "user"]
    heard.turns = [t for t in heard.turns if not (between and t == ["assistant", "OK."])]
    return heard


FILLER = {"role": "assistant", "content": "OK."}


def say(path, body, said):
    message = {"role": "assistant", "content": said.text or ""}
    if said.thought:
        thought = [{"type": "text", "text": said.thought}]
        chunks = [{"type": "thinking", "thinking": thought}]
        message["content"] = chunks + ([{"type": "text", "text": said.text}] if said.text else [])
    if said.calls:
        message["tool_calls"] = openai_api.calls(said, body, lambda number: f"abcdefg0{number}")
    answer = openai_api.say(path, body, said)
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": said.finish}]
    for key in ("prompt_tokens_details", "completion_tokens_details"):
        del answer["usage"][key]
    return answer


def embed(body):
    return {"id": "e-1", **openai_api.embed(body)}


def error(status, kind, message, headers=None, code=None):
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": code}
    return status, headers or {}, body


def refusal(path, problem):
    detail = [{"type": "extra_forbidden", "loc": ["body"], "msg": problem}]
    return error(422, "invalid_request_error", {"detail": detail})


def unknown_key():
    return 401, {}, {"detail": "Unauthorized"}


ERRORS = {
    "bad": error(400, "invalid_request_error", "Bad request", code="3230"),
    "invalid": error(422, "invalid_request_error", {"detail": [{"type": "missing"}]}),
    "limited": error(429, "rate_limited", "Rate limit exceeded", {"retry-after": "1"}, "1300"),
    "overloaded": error(503, "service_unavailable", "Service unavailable.", code="3000"),
    "broken": error(500, "internal_server_error", "Service unavailable.", code="1000"),
}


# What is the account's, and not a model's.
ACCOUNT = {"spent": error(402, "payment_required", "Payment required.")}


def models(query):
    data = [{"id": name, "object": "model", "capabilities": {}} for name in (MODEL, EMBEDDER)]
    return {"object": "list", "data": data}
