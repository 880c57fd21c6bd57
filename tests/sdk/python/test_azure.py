"""Azure's client: paths under /openai, an api-version, the key in `api-key`, urls without /v1."""

import openai
import pytest

from conftest import KEY, URL
from helpers import chat_line, jsonl, records, wait

CHAT = "/chat/completions"


def make(key=KEY):
    return openai.AzureOpenAI(
        azure_endpoint=URL.removesuffix("/v1"),
        api_key=key,
        api_version="2024-10-21",
        timeout=60,
        _strict_response_validation=True,
    )


@pytest.fixture(scope="module")
def azure():
    with make() as client:
        yield client


def test_a_batch_goes_all_its_way(azure, client):
    lines = [chat_line(id) | {"url": CHAT} for id in ("one", "two")]
    file = azure.files.create(file=("input.jsonl", jsonl(lines)), purpose="batch")
    batch = azure.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h"
    )
    assert batch.endpoint == "/v1/chat/completions"
    batch = wait(azure, batch.id)
    assert (batch.status, batch.errors) == ("completed", None)
    output = records(azure, batch.output_file_id)
    assert [record["custom_id"] for record in output] == ["one", "two"]
    assert all(record["response"]["status_code"] == 200 for record in output)
    # It is the same batch for everybody who has the key.
    assert client.batches.retrieve(batch.id).to_dict() == batch.to_dict()
    assert batch.id in [each.id for each in azure.batches.list(limit=100)]
    assert azure.files.delete(file.id).deleted


def test_a_finished_batch_cannot_be_cancelled(azure, completed_batch):
    with pytest.raises(openai.ConflictError):
        azure.batches.cancel(completed_batch.id)


def test_models_are_listed(azure):
    assert "sim-small" in [model.id for model in azure.models.list()]
    assert azure.models.retrieve("org/model:tag").id == "org/model:tag"


def test_a_wrong_key_is_refused():
    with make("sk-ns-wrong") as azure, pytest.raises(openai.AuthenticationError) as caught:
        azure.batches.list()
    assert caught.value.code == "invalid_api_key"
