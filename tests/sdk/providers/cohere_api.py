"""A stand-in for Cohere's API, version 2."""

import inspect
import re
import typing

import cohere
from cohere.v2.client import V2Client
from cohere.v2.types import V2ChatResponse

import model
import openai_api
from strict import check

CHAT, EMBEDDINGS = "/v2/chat", "/v2/embed"
ANSWERS = {CHAT: V2ChatResponse, EMBEDDINGS: cohere.EmbedByTypeResponse}
MODEL, EMBEDDER = "command-a-03-2025", "embed-v4.0"
key = openai_api.key


def parameters(method):
    """The type of a request. The SDK has none: its members are the parameters of the method."""
    hints = typing.get_type_hints(method)
    members = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if name not in ("self", "request_options"):
            is_required = parameter.default is inspect.Parameter.empty
            members[name] = hints[name] if is_required else typing.NotRequired[hints[name]]
    return members


# The client says so itself.
STREAM = {"stream": typing.NotRequired[typing.Literal[False]]}
REQUESTS = {CHAT: {**parameters(V2Client.chat), **STREAM}, EMBEDDINGS: parameters(V2Client.embed)}


def problems(path, body):
    members = REQUESTS[path]
    found = [f"unknown field: parameter '{name}'" for name in body if name not in members]
    for name, hint in members.items():
        if name in body:
            found += [f"{name} {one}" for one in check(body[name], hint)]
        elif typing.get_origin(hint) is not typing.NotRequired:
            found.append(f"{name} is missing")
    return found or rules(path, body)


def rules(path, body):
    """What the types do not say, but the documentation."""
    found = []
    if path == EMBEDDINGS:
        return ["too many texts"] if len(body["texts"]) > 96 else []
    if not 0.01 <= body.get("p", 0.5) <= 0.99:
        found.append("p must be between 0.01 and 0.99 inclusive")
    if len(body.get("stop_sequences", [])) > 5:
        found.append("too many stop sequences")
    if body.get("response_format", {}).get("type") == "json_object" and body.get("tools"):
        found.append("response_format is not supported with tools")
    if body.get("tool_choice") and not body.get("tools"):
        found.append("tool_choice needs tools")
    for tool in body.get("tools", []):
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", tool["function"]["name"]):
            found.append(f"invalid name of a tool: {tool['function']['name']}")
    return found


def hear(path, body):
    heard = model.Heard(
        most=body.get("max_tokens"),
        temperature=body.get("temperature"),
        stops=body.get("stop_sequences", []),
        thinks=body.get("thinking", {}).get("type") == "enabled",
    )
    tools = [tool["function"] for tool in body.get("tools", [])]
    names, ids = [tool["name"] for tool in tools], []
    heard.tools = [[tool.get("description"), tool["parameters"]] for tool in tools]
    for message in body["messages"]:
        openai_api.turns(heard, message, names, ids)
    heard.choice = body.get("tool_choice", "auto").lower()
    form = body.get("response_format", {})
    heard.is_json = form.get("type") == "json_object"
    heard.schema = form.get("json_schema")
    return heard


REASONS = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL"}


def say(path, body, said):
    content = [{"type": "text", "text": said.text}] if said.text else []
    message = {"role": "assistant", "content": content}
    if said.calls:
        message["tool_calls"] = openai_api.calls(said, body, lambda number: f"tool_{number}")
        if said.thought:
            message["tool_plan"] = said.thought
    elif said.thought:
        message["content"] = [{"type": "thinking", "thinking": said.thought}, *content]
    usage = {
        "billed_units": {"input_tokens": 7.0, "output_tokens": 7.0},
        "tokens": {"input_tokens": float(model.INPUT), "output_tokens": float(model.OUTPUT)},
        "cached_tokens": float(model.CACHED),
    }
    reason = REASONS[said.finish]
    return {"id": "c-1", "finish_reason": reason, "message": message, "usage": usage}


def embed(body):
    vectors = [model.vector(text, body.get("output_dimension")) for text in body["texts"]]
    meta = {"billed_units": {"input_tokens": float(sum(len(text) for text in body["texts"]))}}
    answer = {"id": "c-2", "texts": body["texts"], "embeddings": {"float": vectors}}
    return {**answer, "response_type": "embeddings_by_type", "meta": meta}


def error(status, message, headers=None):
    return status, headers or {}, {"id": "c-3", "message": message}


def refusal(path, problem):
    return error(422, problem)


def unknown_key():
    return error(401, "invalid api token")


ERRORS = {
    "bad": error(400, "invalid request: all elements in history must have a message."),
    "invalid": error(422, "unknown field: parameter 'x' is not a valid field"),
    "blocked": error(498, "blocked input: the input contains blocked text"),
    "limited": error(429, "You are past the per minute request limit", {"retry-after": "1"}),
    "overloaded": error(503, "service unavailable"),
    "broken": error(500, "internal server error"),
    "dropped": error(499, "request cancelled"),
}


MONTH = "You are using a Trial key, which is limited to 1000 API calls / month."
# What is the account's, and not a model's.
ACCOUNT = {"spent": error(429, MONTH)}


def models(query):
    names = [MODEL, "command-r-08-2024", EMBEDDER]
    first = int(query.get("page_token") or 0)
    last = first + min(int(query.get("page_size", 20)), 2)
    page = {"models": [{"name": name, "endpoints": ["chat"]} for name in names[first:last]]}
    return {**page, "next_page_token": str(last)} if last < len(names) else page
