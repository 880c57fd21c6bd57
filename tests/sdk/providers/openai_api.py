"""OpenAI's API: what a request says, and the stand-in for it."""

import base64
import json
import struct

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams

import model
from strict import check

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
ANSWERS = {CHAT: ChatCompletion, EMBEDDINGS: CreateEmbeddingResponse}
MODEL, EMBEDDER = "gpt-5.5", "text-embedding-3-small"


def key(headers):
    return headers.get("authorization", "").removeprefix("Bearer ")


REQUESTS = {CHAT: CompletionCreateParamsNonStreaming, EMBEDDINGS: EmbeddingCreateParams}


def problems(path, body):
    return check(body, REQUESTS[path])


def texts(content):
    """The texts of a content, which is one string or parts."""
    if isinstance(content, str):
        return [content] if content.strip() else []
    return [part["text"] for part in content or [] if part["text"].strip()]


def hear(path, body):
    heard = model.Heard(
        most=body.get("max_completion_tokens", body.get("max_tokens")),
        temperature=body.get("temperature"),
        stops=[body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or [],
        thinks=body.get("reasoning_effort", "none") != "none",
    )
    names, ids = [], []
    for tool in body.get("tools") or []:
        names.append(tool["function"]["name"])
        heard.tools.append([tool["function"].get("description"), tool["function"]["parameters"]])
    for message in body["messages"]:
        turns(heard, message, names, ids)
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        choice = names.index(choice["function"]["name"])
    heard.choice = "required" if choice == "any" else choice
    form = body.get("response_format") or {}
    heard.is_json = form.get("type") in ("json_object", "json_schema")
    if form.get("type") == "json_schema":
        heard.schema = form["json_schema"]["schema"]
    return heard


def turns(heard, message, names, ids):
    """Adds what a message says. `names` and `ids`: of the tools and of the calls so far."""
    match message["role"]:
        case "system" | "developer":
            heard.system += texts(message["content"])
        case "user":
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            for part in content:
                if part["type"] == "text":
                    heard.turns.append(["user", part["text"]])
                else:
                    head, data = part["image_url"]["url"].split(",", 1)
                    heard.turns.append(["image", head.removeprefix("data:").split(";")[0], data])
        case "assistant":
            heard.turns += [["assistant", text] for text in texts(message.get("content"))]
            for call in message.get("tool_calls") or []:
                arguments = json.loads(call["function"]["arguments"])
                ids.append(call["id"])
                heard.turns.append(["call", names.index(call["function"]["name"]), arguments])
        case "tool":
            text = "".join(texts(message["content"]))
            heard.turns.append(["result", ids.index(message["tool_call_id"]), text])


def calls(said, body, ids):
    names = [tool["function"]["name"] for tool in body.get("tools") or []]
    return [
        {
            "id": ids(number),
            "type": "function",
            "function": {
                "name": names[tool],
                "arguments": json.dumps(arguments, ensure_ascii=False),
            },
        }
        for number, (tool, arguments) in enumerate(said.calls)
    ]


def say(path, body, said):
    message = {"role": "assistant", "content": said.text, "refusal": None}
    if said.calls:
        message["tool_calls"] = calls(said, body, lambda number: f"call_{number}")
    reasoning = model.REASONING if said.thought else 0
    usage = {
        "prompt_tokens": model.INPUT,
        "completion_tokens": model.OUTPUT,
        "total_tokens": model.INPUT + model.OUTPUT,
        "prompt_tokens_details": {"cached_tokens": model.CACHED},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


def embed(body):
    inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
    dimensions = body.get("dimensions") or body.get("output_dimension")
    vectors = [model.vector(text, dimensions) for text in inputs]
    if body.get("encoding_format") == "base64":
        packed = [struct.pack(f"<{len(one)}f", *one) for one in vectors]
        vectors = [base64.b64encode(one).decode() for one in packed]
    data = [
        {"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(vectors)
    ]
    tokens = sum(len(text) for text in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def error(status, message, kind):
    return status, {}, {"error": {"message": message, "type": kind, "param": None, "code": None}}


def refusal(path, problem):
    return error(400, problem, "invalid_request_error")


def unknown_key():
    return error(401, "Incorrect API key provided.", "invalid_request_error")


ERRORS = {
    "bad": error(400, "Invalid value.", "invalid_request_error"),
    "limited": (429, {"retry-after": "1"}, error(429, "Rate limit reached.", "requests")[2]),
    "overloaded": error(503, "The engine is overloaded.", "server_error"),
    "broken": error(500, "The server had an error.", "server_error"),
}


# What is the account's, and not a model's.
ACCOUNT = {"spent": error(429, "You exceeded your current quota.", "insufficient_quota")}


def models(query):
    names = [MODEL, EMBEDDER]
    data = [{"id": n, "object": "model", "created": 1, "owned_by": "openai"} for n in names]
    return {"object": "list", "data": data}
