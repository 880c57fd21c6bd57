"""The content of a file, by every accessor that the SDK has."""

import json

import openai
import pytest

from helpers import assert_error, chat_line, jsonl

# Line ends, characters of two to four bytes, and no final line end.
TEXT = "\n".join(json.dumps(chat_line(id), ensure_ascii=False) for id in ["a", "é", "夜", "𝄞"])
CONTENT = TEXT.encode()


@pytest.fixture(scope="module")
def file(client):
    return client.files.create(file=("input.jsonl", CONTENT), purpose="batch")


@pytest.fixture
def response(client, file):
    return client.files.content(file.id)


def test_content_is_read_whole(response):
    assert response.content == response.read() == CONTENT
    assert response.text == TEXT
    assert response.response.headers["content-length"] == str(len(CONTENT))
    assert response.response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("iterate", "joined"),
    [
        (lambda response: response.iter_bytes(), CONTENT),
        (lambda response: response.iter_bytes(chunk_size=7), CONTENT),
        (lambda response: response.iter_text(), TEXT),
        (lambda response: response.iter_lines(), TEXT.replace("\n", "")),
    ],
    ids=["bytes", "bytes-of-7", "text", "lines"],
)
def test_content_is_iterated_over(response, iterate, joined):
    assert type(joined)().join(iterate(response)) == joined


def test_content_is_one_line_for_each_request(response):
    assert [json.loads(line)["custom_id"] for line in response.iter_lines()] == list("aé夜𝄞")


def test_content_of_one_json_value_is_parsed(client):
    line = chat_line("only")
    file = client.files.create(file=("one.jsonl", jsonl([line])), purpose="batch")
    assert client.files.content(file.id).json() == line


def test_content_is_written_to_a_file(response, tmp_path):
    response.write_to_file(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == CONTENT


def test_content_is_written_by_the_deprecated_method(response, tmp_path):
    with pytest.deprecated_call():
        response.stream_to_file(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == CONTENT


def test_content_is_retrieved_by_the_deprecated_method(client, file):
    with pytest.deprecated_call():
        assert client.files.retrieve_content(file.id) == TEXT


def test_content_is_streamed(client, file, tmp_path):
    streaming = client.files.with_streaming_response
    with streaming.content(file.id) as response:
        assert response.status_code == 200
        assert list(response.iter_lines()) == TEXT.split("\n")
    with streaming.content(file.id) as response:
        assert b"".join(response.iter_bytes(chunk_size=11)) == CONTENT
    with streaming.content(file.id) as response:
        assert "".join(response.iter_text()) == TEXT
    with streaming.content(file.id) as response:
        assert response.read() == CONTENT
    with streaming.content(file.id) as response:
        response.stream_to_file(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == CONTENT


def test_content_has_a_raw_response(client, file):
    raw = client.files.with_raw_response.content(file.id)
    assert raw.http_response.status_code == 200
    assert raw.headers["content-length"] == str(len(CONTENT))
    assert raw.request_id == raw.headers["x-request-id"]
    assert raw.content == CONTENT
    assert raw.parse().text == TEXT


def test_a_part_of_the_content_is_asked_for(client, file):
    part = client.files.content(file.id, extra_headers={"Range": "bytes=10-19"})
    assert part.response.status_code == 206
    assert part.response.headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
    assert part.content == CONTENT[10:20]


@pytest.mark.parametrize("purpose", ["assistants", "user_data", "vision"])
def test_files_of_some_purposes_are_not_given_back(client, purpose):
    file = client.files.create(file=("a.txt", b"text"), purpose=purpose)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.content(file.id)
    message = f"Not allowed to download files of purpose: {purpose}"
    assert_error(caught.value, 400, code=None, param=None, message=message)


@pytest.mark.parametrize("purpose", ["fine-tune", "evals"])
def test_files_of_the_other_purposes_are(lenient_client, purpose):
    file = lenient_client.files.create(file=("a.bin", bytes(range(256))), purpose=purpose)
    assert lenient_client.files.content(file.id).content == bytes(range(256))
    lenient_client.files.delete(file.id)
