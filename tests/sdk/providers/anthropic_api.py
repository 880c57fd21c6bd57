"""A stand-in for Anthropic's Messages API."""

import json

import anthropic
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)

import model
from strict import check

MESSAGES = "/v1/messages"
ANSWERS = {MESSAGES: anthropic.types.Message}
MODEL = "claude-sonnet-4-5"
# Each version of the API has a line of the SDK.
VERSION = "2023-06-01" if anthropic.__version__.startswith("0.") else "2026-10-21"
# What the types do not say, but the documentation.
EMPTY = "text content blocks must be non-empty"


def key(headers):
    return headers.get("x-api-key", "")


def problems(path, body):
    is_streamed = body.get("stream")
    kind = MessageCreateParamsStreaming if is_streamed else MessageCreateParamsNonStreaming
    found = check(body, kind)
    if not found:
        for message in body["messages"]:
            texts = [block["text"] for block in blocks(message["content"]) if "text" in block]
            found += [f"messages: {EMPTY}" for text in texts if not text.strip()]
            if message["role"] == "system":
                found.append("messages: the model knows no role 'system'")
        budget = body.get("thinking", {}).get("budget_tokens", 0)
        if budget >= body["max_tokens"]:
            found.append("`max_tokens` must be greater than `thinking.budget_tokens`")
        if budget and body.get("temperature", 1) != 1:
            found.append("`temperature` may only be set to 1 when thinking is enabled")
    return found


def blocks(content):
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def hear(path, body):
    heard = model.Heard(
        most=body["max_tokens"],
        temperature=body.get("temperature"),
        stops=body.get("stop_sequences", []),
        thinks=body.get("thinking", {}).get("type") in ("enabled", "adaptive"),
    )
    heard.system = [block["text"] for block in blocks(body.get("system", []))]
    tools = body.get("tools", [])
    names, ids = [tool["name"] for tool in tools], []
    heard.tools = [[tool.get("description"), tool["input_schema"]] for tool in tools]
    for message in body["messages"]:
        role = message["role"]
        for block in blocks(message["content"]):
            match block["type"]:
                case "text":
                    heard.turns.append([role, block["text"]])
                case "image":
                    source = block["source"]
                    heard.turns.append(["image", source["media_type"], source["data"]])
                case "tool_use":
                    ids.append(block["id"])
                    heard.turns.append(["call", names.index(block["name"]), block["input"]])
                case "tool_result":
                    text = "".join(one["text"] for one in blocks(block["content"]))
                    heard.turns.append(["result", ids.index(block["tool_use_id"]), text])
    choice = body.get("tool_choice", {"type": "auto"})
    words = {"any": "required"}
    heard.choice = words.get(choice["type"], choice["type"])
    if choice["type"] == "tool":
        heard.choice = names.index(choice["name"])
    form = body.get("output_config", {}).get("format")
    heard.schema = form and form["schema"]
    # What it has in place of a mode for JSON is a word of the operator.
    asks_for_json = [text for text in heard.system if "JSON" in text]
    heard.system = [text for text in heard.system if text not in asks_for_json]
    heard.is_json = bool(form or asks_for_json)
    return heard


REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def say(path, body, said):
    content = []
    if said.thought:
        content.append({"type": "thinking", "thinking": said.thought, "signature": "c2ln"})
        content.append({"type": "redacted_thinking", "data": "c2VjcmV0"})
    if said.text:
        for text in halves(said.text):
            content.append({"type": "text", "text": text, "citations": None})
    for number, (tool, arguments) in enumerate(said.calls):
        block = {"type": "tool_use", "id": f"toolu_{number}", "input": arguments}
        content.append({**block, "name": body["tools"][tool]["name"], "caller": {"type": "direct"}})
    written = 50
    details = {"thinking_tokens": model.REASONING if said.thought else 0}
    usage = {
        "input_tokens": model.INPUT - model.CACHED - written,
        "cache_read_input_tokens": model.CACHED,
        "cache_creation_input_tokens": written,
        "output_tokens": model.OUTPUT,
        "output_tokens_details": details,
    }
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": REASONS[said.finish],
        "stop_sequence": None,
        "usage": usage,
    }
    if said.finish == "content_filter":
        why = {"type": "refusal", "category": None, "explanation": "It would harm."}
        answer["stop_details"] = why
    return answer


def events(answer):
    """The answer as a stream: by the kind of each event, its data."""
    usage = {**answer["usage"], "output_tokens": 1}
    unended = {"content": [], "stop_reason": None, "usage": usage}
    yield {"type": "message_start", "message": {**answer, **unended}}
    for index, block in enumerate(answer["content"]):
        empty, deltas = pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ended = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    if "stop_details" in answer:
        ended["stop_details"] = answer["stop_details"]
    usage = {key: answer["usage"][key] for key in ("output_tokens", "output_tokens_details")}
    yield {"type": "message_delta", "delta": ended, "usage": usage}
    yield {"type": "message_stop"}


def halves(text):
    return text[: len(text) // 2], text[len(text) // 2 :]


def pieces(block):
    """A block without its content, and the content in two pieces."""
    match block["type"]:
        case "text":
            deltas = [{"type": "text_delta", "text": text} for text in halves(block["text"])]
            return {**block, "text": ""}, deltas
        case "thinking":
            thought = halves(block["thinking"])
            deltas = [{"type": "thinking_delta", "thinking": text} for text in thought]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {**block, "thinking": "", "signature": ""}, deltas
        case "tool_use":
            written = halves(json.dumps(block["input"], ensure_ascii=False))
            deltas = [{"type": "input_json_delta", "partial_json": text} for text in written]
            return {**block, "input": {}}, deltas
    return block, []


def error(status, kind, message, headers=None):
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    return status, headers or {}, body


def refusal(path, problem):
    return error(400, "invalid_request_error", problem)


def unknown_key():
    return error(401, "authentication_error", "invalid x-api-key")


LIMITS = {
    "retry-after": "1",
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-11-28T12:00:00Z",
    "anthropic-ratelimit-output-tokens-remaining": "0",
    "anthropic-ratelimit-output-tokens-reset": "2026-11-28T12:00:00Z",
}
ERRORS = {
    "bad": error(400, "invalid_request_error", "messages: Input is not valid"),
    "large": error(413, "request_too_large", "Request exceeds the maximum size"),
    "limited": error(429, "rate_limit_error", "This would exceed your rate limit", LIMITS),
    "overloaded": error(529, "overloaded_error", "Overloaded"),
    "broken": error(500, "api_error", "Internal server error"),
    "late": error(504, "timeout_error", "The request timed out"),
    "conflict": error(409, "conflict_error", "Conflict"),
}


SPENT = error(429, "rate_limit_error", "You have reached your spend limit")
SPENT[2]["error"]["details"] = {"error_code": "enforced_spend_limit_reached"}
# What is the account's, and not a model's.
ACCOUNT = {"spent": SPENT}


def models(query):
    names = ["claude-opus-5-5", MODEL, "claude-haiku-4-5"]
    first = names.index(query["after_id"]) + 1 if "after_id" in query else 0
    some = names[first : first + min(int(query.get("limit", 20)), 2)]
    created = "2026-01-01T00:00:00Z"
    data = [{"type": "model", "id": n, "display_name": n, "created_at": created} for n in some]
    has_more = names[-1] not in some
    return {"data": data, "first_id": some[0], "last_id": some[-1], "has_more": has_more}
