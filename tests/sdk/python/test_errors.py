"""Each class of error that the SDK makes of an answer."""

import uuid

import openai
import pytest

from helpers import CHAT, assert_error, chat_line, jsonl

MAX_FILE_BYTES = 20_000_000
ENDPOINTS = [
    *("/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"),
    *("/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos"),
]


@pytest.fixture
def create(client):
    """Creates a batch, with some arguments replaced."""
    arguments = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    return lambda **replaced: client.batches.create(**{**arguments, **replaced})


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.files.list(),
        lambda client: client.files.retrieve("file-x"),
        lambda client: client.files.content("file-x"),
        lambda client: client.files.delete("file-x"),
        lambda client: client.files.create(file=jsonl([chat_line("one")]), purpose="batch"),
        lambda client: client.batches.list(),
        lambda client: client.batches.retrieve("batch_x"),
        lambda client: client.batches.cancel("batch_x"),
        lambda client: client.batches.create(
            input_file_id="file-x", endpoint=CHAT, completion_window="24h"
        ),
        lambda client: client.models.list(),
        lambda client: client.models.retrieve("sim-small"),
    ],
)
@pytest.mark.parametrize(
    ("key", "code", "message"),
    [
        (None, None, "You didn't provide an API key."),
        ("sk-ns-not-a-key", "invalid_api_key", "Incorrect API key provided: "),
    ],
    ids=["no-key", "bad-key"],
)
def test_nothing_is_done_without_a_good_key(client_with_key, call, key, code, message):
    with pytest.raises(openai.AuthenticationError) as caught:
        call(client_with_key(key))
    assert_error(caught.value, 401, code=code, param=None)
    assert caught.value.body["message"].startswith(message)
    assert key is None or key not in caught.value.body["message"]


def test_an_unsupported_endpoint_is_a_bad_request(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(endpoint="/v1/invalid/endpoint")
    assert_error(caught.value, 400, code="invalid_value", param="endpoint")
    message = caught.value.body["message"]
    assert message.startswith("Invalid value: '/v1/invalid/endpoint'. Supported values are: ")
    assert all(f"'{endpoint}'" in message for endpoint in ENDPOINTS)


@pytest.mark.parametrize("window", ["59s", "0m", "31d", "24", "1h30m", ""])
def test_a_bad_completion_window_is_a_bad_request(create, window):
    with pytest.raises(openai.BadRequestError) as caught:
        create(completion_window=window)
    assert_error(caught.value, 400, code="invalid_value", param="completion_window")


def test_metadata_of_the_wrong_type_is_a_bad_request(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(metadata={"tags": ["a", "b"]})
    message = "Invalid type for 'metadata.tags': expected a string, but got an array instead."
    assert_error(caught.value, 400, code="invalid_type", param="metadata.tags", message=message)


def test_an_unknown_field_is_a_bad_request(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(extra_body={"colour": "blue"})
    assert_error(caught.value, 400, code="unknown_parameter", param="colour")


def test_a_missing_field_is_a_bad_request(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(input_file_id=openai.omit)
    message = "Missing required parameter: 'input_file_id'."
    assert_error(
        caught.value,
        400,
        code="missing_required_parameter",
        param="input_file_id",
        message=message,
    )


def test_an_empty_batch_file_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("empty.jsonl", b""), purpose="batch")
    message = (
        "Invalid file format for Batch API. Must be .jsonl. "
        "The file is empty: write one request on each line."
    )
    assert_error(caught.value, 400, code=None, param=None, message=message)


@pytest.mark.parametrize("limit", [0, 10_001])
def test_a_limit_out_of_range_is_a_bad_request(client, limit):
    with pytest.raises(openai.BadRequestError):
        client.files.list(limit=limit)


def test_an_unknown_file_is_not_found(client):
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call("file-unknown")
        message = "No such File object: file-unknown"
        assert_error(caught.value, 404, code=None, param="id", message=message)


def test_an_unknown_batch_is_not_found(client):
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            call("batch_unknown")
        message = "No batch found with id 'batch_unknown'."
        assert_error(caught.value, 404, code=None, param=None, message=message)


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "path"])
def test_a_file_over_the_limit_is_too_large(counted_client, sent, tmp_path, streamed):
    line = jsonl([chat_line("x" * 1000)])
    content = line * (MAX_FILE_BYTES // len(line) + 1000)
    assert len(content) > MAX_FILE_BYTES
    path = tmp_path / f"{uuid.uuid4()}.jsonl"
    path.write_bytes(content)
    with pytest.raises(openai.APIStatusError) as caught:
        file = path if streamed else (path.name, content)
        counted_client.files.create(file=file, purpose="batch")
    assert caught.value.status_code == 413
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert len(sent) == 1, "the answer arrives, and the SDK does not try again"
    assert path.name not in [file.filename for file in counted_client.files.list()]
