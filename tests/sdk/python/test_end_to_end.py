"""A batch's whole way: upload, create, poll, and read both files."""

import json

import openai
import pytest

from helpers import chat_line, records, run, start, upload, wait

# A line separator, a paragraph separator and a next-line character are legal in JSON strings,
# and `iter_lines` takes each for a line end.
IDS = ["first", "with space", "é夜𝄞", "a\u2028b", "a\u2029b", "a\u0085b", "007", "last"]


def assert_succeeded(record, custom_id):
    assert list(record) == ["id", "custom_id", "response", "error"]
    assert record["id"].startswith("batch_req_")
    assert (record["custom_id"], record["error"]) == (custom_id, None)
    response = record["response"]
    assert set(response) == {"status_code", "request_id", "body"}
    assert response["status_code"] == 200
    assert isinstance(response["request_id"], str) and response["request_id"]
    assert isinstance(response["body"]["choices"][0]["message"]["content"], str)


def test_every_line_is_answered_in_input_order(client):
    batch = start(client, [chat_line(id) for id in IDS], metadata={"night": "1"})
    batch = wait(client, batch.id)
    assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
    assert (batch.model, batch.metadata) == ("sim-small", {"night": "1"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (len(IDS), len(IDS), 0)
    steps = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert steps == sorted(steps)
    assert (batch.failed_at, batch.expired_at, batch.cancelling_at) == (None, None, None)

    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.status) == ("batch_output", "processed")
    assert output.filename == f"{batch.id}_output.jsonl"
    assert output.id in [file.id for file in client.files.list(purpose="batch_output")]
    content = client.files.content(output.id)
    assert len(content.content) == output.bytes
    lines = list(content.iter_lines())
    assert lines == content.text.splitlines()
    for line, custom_id in zip(lines, IDS, strict=True):
        assert_succeeded(json.loads(line), custom_id)

    usage = batch.usage
    bodies = [json.loads(line)["response"]["body"] for line in lines]
    assert usage.input_tokens == sum(body["usage"]["prompt_tokens"] for body in bodies)
    assert usage.output_tokens == sum(body["usage"]["completion_tokens"] for body in bodies)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0
    assert usage.input_tokens_details.cached_tokens >= 0
    assert usage.output_tokens_details.reasoning_tokens >= 0


def test_refused_lines_go_to_the_error_file(client):
    lines = [
        chat_line("good-1", latency_ms=300),
        chat_line("bad-1", status=400),
        chat_line("good-2"),
        chat_line("bad-2", status=404, latency_ms=200),
        chat_line("good-3"),
    ]
    batch = run(client, lines)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 5, 3, 2)
    output = records(client, batch.output_file_id)
    for record, number in zip(output, "123", strict=True):
        assert_succeeded(record, f"good-{number}")
    errors = records(client, batch.error_file_id)
    file = client.files.retrieve(batch.error_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_error.jsonl")
    for record, number, status in zip(errors, "12", (400, 404), strict=True):
        assert list(record) == ["id", "custom_id", "response", "error"]
        assert (record["custom_id"], record["error"]) == (f"bad-{number}", None)
        assert record["response"]["status_code"] == status
        assert isinstance(record["response"]["body"]["error"]["message"], str)


def test_a_batch_whose_lines_all_fail_is_completed(client):
    batch = run(client, [chat_line(f"bad-{number}", status=400) for number in range(3)])
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 0, 3)
    assert batch.output_file_id is None
    assert len(records(client, batch.error_file_id)) == 3
    assert batch.usage.total_tokens >= 0, "usage is there even so"


def test_one_batch_may_ask_several_models(client):
    models = ["sim-small", "org/model:tag", "sim-large"] * 4
    lines = [chat_line(f"line-{n}", model=model) for n, model in enumerate(models)]
    batch = run(client, lines)
    assert (batch.status, batch.model) == ("completed", None)
    output = records(client, batch.output_file_id)
    assert [record["custom_id"] for record in output] == [line["custom_id"] for line in lines]
    assert [record["response"]["body"]["model"] for record in output] == models


def test_counts_move_while_a_batch_runs(client):
    lines = [chat_line(f"fast-{n}") for n in range(4)]
    lines += [chat_line(f"slow-{n}", latency_ms=8000) for n in range(4)]
    batch = start(client, lines)
    seen = set()
    while (batch := client.batches.retrieve(batch.id)).status != "completed":
        assert batch.status in {"validating", "in_progress", "finalizing"}, batch
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        if batch.status == "in_progress":
            assert batch.request_counts.total == 8
            assert batch.usage is not None
            seen.add(batch.request_counts.completed)
    assert 4 in seen, f"after the fast lines and before the slow ones, not only {seen}"


@pytest.mark.parametrize("which", ["output_file_id", "error_file_id"])
def test_output_files_are_the_tenant_s_alone_and_can_be_deleted(client, other_client, which):
    batch = run(client, [chat_line("good"), chat_line("bad", status=400)])
    file_id = getattr(batch, which)
    for call in (other_client.files.content, other_client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file_id)
    assert client.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file_id)


def test_a_file_serves_several_batches(client):
    file = upload(client, [chat_line("one"), chat_line("two")])
    batches = [
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for _ in range(3)
    ]
    assert [wait(client, batch.id).status for batch in batches] == ["completed"] * 3
