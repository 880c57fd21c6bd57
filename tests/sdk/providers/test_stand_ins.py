"""The stand-ins are as the providers' own clients expect: what they answer, how they list models,
and how they say no."""

import os

import anthropic
import cohere
import google.genai
import mistralai.client
import pytest
from cohere.core.api_error import ApiError
from google.genai.errors import APIError
from mistralai.client.errors import MistralError, SDKError

import anthropic_api
import cohere_api
import gemini_api
import mistral_api
import model
from stand_in import KEY
from strict import check

ORIGIN = os.environ["NIGHTSHIFT_TEST_STAND_IN"]
HELLO = [{"role": "user", "content": "/cut"}]


def by_anthropic(key):
    url = f"{ORIGIN}/anthropic"
    client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
    answer = client.messages.create(model=anthropic_api.MODEL, max_tokens=9, messages=HELLO)
    with client.messages.stream(model=anthropic_api.MODEL, max_tokens=9, messages=HELLO) as stream:
        streamed = stream.get_final_message()
    assert [block.text for block in streamed.content] == [block.text for block in answer.content]
    assert (streamed.stop_reason, streamed.usage) == (answer.stop_reason, answer.usage)
    models = [one.id for one in client.models.list(limit=1)]
    return "".join(block.text for block in answer.content), answer.stop_reason, models


def by_gemini(key):
    options = {"base_url": f"{ORIGIN}/gemini", "api_version": "v1beta"}
    client = google.genai.Client(api_key=key, http_options=options, vertexai=False)
    answer = client.models.generate_content(model=gemini_api.MODEL, contents="/cut")
    models = [one.name.removeprefix("models/") for one in client.models.list()]
    return answer.text, answer.candidates[0].finish_reason.name.lower(), models


def by_mistral(key):
    client = mistralai.client.Mistral(api_key=key, server_url=f"{ORIGIN}/mistral")
    answer = client.chat.complete(model=mistral_api.MODEL, messages=HELLO)
    return answer.choices[0].message.content, answer.choices[0].finish_reason, None


def by_cohere(key):
    client = cohere.ClientV2(api_key=key, base_url=f"{ORIGIN}/cohere")
    answer = client.chat(model=cohere_api.MODEL, messages=HELLO)
    return answer.message.content[0].text, answer.finish_reason.lower(), None


CLIENTS = {
    "anthropic": (by_anthropic, anthropic_api, anthropic.AuthenticationError, 401),
    "gemini": (by_gemini, gemini_api, APIError, 400),
    "mistral": (by_mistral, mistral_api, (SDKError, MistralError), 401),
    "cohere": (by_cohere, cohere_api, ApiError, 401),
}


@pytest.mark.parametrize("provider", CLIENTS)
def test_a_client_reads_what_its_stand_in_answers(provider):
    ask, api, error, status = CLIENTS[provider]
    text, reason, models = ask(KEY)
    assert text == model.answer(model.Heard(turns=[["user", "/cut"]])).text
    assert reason in ("length", "max_tokens")
    if models is not None:
        assert len(models) == 3 and api.MODEL in models
    with pytest.raises(error) as refused:
        ask("a-key-that-nobody-knows")
    code = getattr(refused.value, "status_code", None) or getattr(refused.value, "code", None)
    assert code == status


def test_the_check_of_types_is_strict():
    kind = anthropic.types.message_create_params.MessageCreateParamsNonStreaming
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    blocks = [{"type": "text", "text": "a"}, {"type": "image", "source": image}]
    whole = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": blocks}]}
    assert check(whole, kind) == []
    image["alt"] = "a"
    assert check(whole, kind) == ["$.messages[0].content[1].source.alt: is not known"]
    del image["alt"], whole["max_tokens"]
    assert check(whole, kind) == ["$.max_tokens: is missing"]
    assert check({**whole, "max_tokens": True}, kind) == ["$.max_tokens: True is no <class 'int'>"]
