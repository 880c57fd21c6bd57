"""A stand-in for Gemini's API."""

import google.genai
import pydantic
from google.genai import models as sdk
from google.genai import types

import model
from strict import check

MODEL, EMBEDDER = "gemini-3-flash", "gemini-embedding-001"
CHAT = f"/v1beta/models/{MODEL}:generateContent"
EMBEDDINGS = f"/v1beta/models/{EMBEDDER}:batchEmbedContents"


class Request(pydantic.BaseModel):
    """A request on the wire. The SDK has types for its members, and none for the whole."""

    contents: list[types.Content]
    systemInstruction: types.Content = None
    tools: list[types.Tool] = None
    toolConfig: types.ToolConfig = None
    generationConfig: types.GenerationConfig = None


class EmbedRequest(pydantic.BaseModel):
    model: str
    content: types.Content
    outputDimensionality: int = None


class BatchEmbedRequest(pydantic.BaseModel):
    requests: list[EmbedRequest]


class BatchEmbedAnswer(pydantic.BaseModel):
    embeddings: list[types.ContentEmbedding]


ANSWERS = {CHAT: types.GenerateContentResponse, EMBEDDINGS: BatchEmbedAnswer}
CLIENT = google.genai.Client(api_key="unused", vertexai=False)


def key(headers):
    return headers.get("x-goog-api-key", "")


def problems(path, body):
    if path == EMBEDDINGS:
        found = check(body, BatchEmbedRequest)
        wrong = [one for one in body["requests"] if one["model"] != f"models/{EMBEDDER}"]
        return found + [f"requests: {one['model']} is not that of the URL" for one in wrong]
    return check(body, Request) or as_the_sdk_sends_it(body) or order(body)


def as_the_sdk_sends_it(body):
    """What the SDK would send otherwise: it refuses what this API does not take."""
    config = {**body.get("generationConfig", {})}
    for key in ("systemInstruction", "tools", "toolConfig"):
        if key in body:
            config[key] = body[key]
    parameters = types._GenerateContentParameters(
        model=MODEL,
        contents=body["contents"],
        config=types.GenerateContentConfig.model_validate(config),
    )
    sent = sdk._GenerateContentParameters_to_mldev(CLIENT._api_client, parameters)
    sent.pop("_url", None)
    sent = google.genai._common.convert_to_dict(sent)
    sent = google.genai._common.encode_unserializable_types(sent)
    return [] if plain(sent) == plain(body) else [f"the SDK sends {sent}"]


def plain(value):
    """Without what says nothing, and with keys and bytes in one spelling."""
    if isinstance(value, dict):
        members = {key.replace("_", "").lower(): plain(one) for key, one in value.items()}
        for key in {"data", "thoughtsignature"} & members.keys():
            members[key] = members[key].replace("-", "+").replace("_", "/")
        return {key: one for key, one in members.items() if one not in ({}, [], None)}
    return [plain(one) for one in value] if isinstance(value, list) else value


def order(body):
    """What the types do not say, but the documentation."""
    found = []
    roles = [content["role"] for content in body["contents"]]
    if roles[0] != "user" or roles[-1] != "user":
        found.append("contents: the first and the last turn are a user's")
    if any(one == two for one, two in zip(roles, roles[1:])):
        found.append("contents: turns of one role in a row")
    for content, following in zip(body["contents"], body["contents"][1:]):
        calls = [part["functionCall"] for part in content["parts"] if "functionCall" in part]
        results = [p["functionResponse"] for p in following["parts"] if "functionResponse" in p]
        if len(calls) != len(results):
            found.append("contents: as many function responses as function calls are expected")
        first = next((part for part in content["parts"] if "functionCall" in part), {})
        if first and "thoughtSignature" not in first:
            found.append("contents: Function call is missing a thought_signature")
    return found


def hear(path, body):
    config = body.get("generationConfig", {})
    heard = model.Heard(
        most=config.get("maxOutputTokens"),
        temperature=config.get("temperature"),
        stops=config.get("stopSequences", []),
        thinks="thinkingConfig" in config,
        schema=config.get("responseJsonSchema"),
        is_json=config.get("responseMimeType") == "application/json",
    )
    heard.system = [part["text"] for part in body.get("systemInstruction", {}).get("parts", [])]
    tools = [one for tool in body.get("tools", []) for one in tool["functionDeclarations"]]
    names, ids = [tool["name"] for tool in tools], []
    heard.tools = [[tool.get("description"), tool["parametersJsonSchema"]] for tool in tools]
    for content in body["contents"]:
        role = {"model": "assistant", "user": "user"}[content["role"]]
        for part in content["parts"]:
            if "text" in part:
                heard.turns.append([role, part["text"]])
            elif data := part.get("inlineData"):
                heard.turns.append(["image", data["mimeType"], data["data"]])
            elif call := part.get("functionCall"):
                ids.append(call["id"])
                heard.turns.append(["call", names.index(call["name"]), call["args"]])
            elif result := part.get("functionResponse"):
                text = result["response"]["output"]
                heard.turns.append(["result", ids.index(result["id"]), text])
    choice = body.get("toolConfig", {}).get("functionCallingConfig", {"mode": "AUTO"})
    heard.choice = {"AUTO": "auto", "NONE": "none", "ANY": "required"}[choice["mode"]]
    if allowed := choice.get("allowedFunctionNames"):
        heard.choice = names.index(allowed[0])
    return heard


def say(path, body, said):
    reasoning = model.REASONING if said.thought else 0
    usage = {
        "promptTokenCount": model.INPUT,
        "cachedContentTokenCount": model.CACHED,
        "candidatesTokenCount": model.OUTPUT - reasoning,
        "thoughtsTokenCount": reasoning,
        "totalTokenCount": model.INPUT + model.OUTPUT,
    }
    answer = {"usageMetadata": usage, "modelVersion": MODEL, "responseId": "r-1"}
    if said.finish == "content_filter":
        return {**answer, "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    parts = [{"text": said.thought, "thought": True}] if said.thought else []
    if said.text:
        half = len(said.text) // 2
        parts += [{"text": said.text[:half]}, {"text": said.text[half:]}]
    for number, (tool, arguments) in enumerate(said.calls):
        name = body["tools"][0]["functionDeclarations"][tool]["name"]
        part = {"functionCall": {"name": name, "args": arguments, "id": f"id-{number}"}}
        parts.append({**part, "thoughtSignature": "c2ln"} if number == 0 else part)
    reason = "MAX_TOKENS" if said.finish == "length" else "STOP"
    content = {"role": "model", "parts": parts}
    return {**answer, "candidates": [{"content": content, "finishReason": reason, "index": 0}]}


def embed(body):
    values = [
        model.vector(one["content"]["parts"][0]["text"], one.get("outputDimensionality"))
        for one in body["requests"]
    ]
    return {"embeddings": [{"values": one} for one in values]}


def error(code, status, message, details=()):
    body = {"code": code, "message": message, "status": status, "details": list(details)}
    return code, {}, {"error": body}


def refusal(path, problem):
    return error(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {problem}")


def unknown_key():
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    detail = {"@type": kind, "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
    message = "API key not valid. Please pass a valid API key."
    return error(400, "INVALID_ARGUMENT", message, [detail])


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.5s"}
QUOTA = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
}
ERRORS = {
    "bad": error(400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    "limited": error(429, "RESOURCE_EXHAUSTED", "You exceeded your quota.", [QUOTA, RETRY]),
    "overloaded": error(503, "UNAVAILABLE", "The model is overloaded."),
    "broken": error(500, "INTERNAL", "An internal error has occurred."),
    "late": error(504, "DEADLINE_EXCEEDED", "The deadline was exceeded."),
}


DAY = {**QUOTA, "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}
# What is the account's, and not a model's.
ACCOUNT = {"spent": error(429, "RESOURCE_EXHAUSTED", "You exceeded your quota.", [DAY])}


def models(query):
    names = ["gemini-3-pro", MODEL, EMBEDDER]
    first = int(query.get("pageToken") or 0)
    last = first + min(int(query.get("pageSize", 50)), 2)
    page = {"models": [{"name": f"models/{name}", "version": "1"} for name in names[first:last]]}
    return {**page, "nextPageToken": str(last)} if last < len(names) else page
