"""`client.batches`, but for a batch's whole way, which `test_end_to_end.py` goes."""

import uuid

import openai
import pytest

from helpers import (
    CHAT,
    THIRTY_DAYS,
    assert_error,
    chat_line,
    jsonl,
    records,
    run,
    start,
    upload,
    wait,
)

ALL_KEYS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window"),
    *("status", "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at"),
    *("finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at"),
    *("cancelled_at", "request_counts", "usage", "metadata"),
}
# More lines than the upstream takes at once, and slower than these tests cancel.
SLOW = [chat_line(f"slow-{number:02}", latency_ms=3000) for number in range(40)]


def test_a_batch_is_created_with_every_key(client):
    file = upload(client, [chat_line("one")])
    raw = client.batches.with_raw_response.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"a": "b"}
    )
    assert set(raw.http_response.json()) == ALL_KEYS
    batch = raw.parse()
    assert batch.id.startswith("batch_")
    assert (batch.object, batch.endpoint, batch.status) == ("batch", CHAT, "validating")
    assert (batch.input_file_id, batch.metadata) == (file.id, {"a": "b"})
    assert (batch.completion_window, batch.expires_at) == ("24h", batch.created_at + 86400)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (0, 0, 0)
    assert (batch.errors, batch.output_file_id, batch.error_file_id) == (None, None, None)
    retrieved = client.batches.with_raw_response.retrieve(batch.id)
    assert set(retrieved.http_response.json()) == ALL_KEYS
    assert retrieved.parse().created_at == batch.created_at


@pytest.mark.parametrize(
    "optional",
    [
        {},
        {"metadata": None},
        {"metadata": None, "extra_body": {"output_expires_after": None}},
        {"metadata": {}},
        {"metadata": {f"key {number}" + "k" * 55: "v" * 512 for number in range(16)}},
    ],
    ids=["absent", "null", "nulls", "empty", "largest"],
)
def test_metadata_is_echoed(client, optional):
    batch = start(client, [chat_line("one")], **optional)
    expected = optional.get("metadata")
    # OpenAI does not say whether no pairs come back as null or as an empty object.
    assert batch.metadata == expected or not (batch.metadata or expected)
    assert client.batches.retrieve(batch.id).metadata == batch.metadata


@pytest.mark.parametrize(("window", "seconds"), [("90m", 5400), ("24h", 86400), ("7d", 604800)])
def test_a_completion_window_is_echoed(client, window, seconds):
    file = upload(client, [chat_line("one")])
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window=window
    )
    assert batch.completion_window == window
    assert batch.expires_at == batch.created_at + seconds


@pytest.mark.parametrize(
    ("optional", "seconds"),
    [
        ({}, THIRTY_DAYS),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, 3600),
    ],
    ids=["default", "an-hour"],
)
def test_output_files_expire_when_asked_to(client, optional, seconds):
    batch = run(client, [chat_line("good"), chat_line("bad", status=400)], **optional)
    for file_id in (batch.output_file_id, batch.error_file_id):
        file = client.files.retrieve(file_id)
        assert file.expires_at == file.created_at + seconds


def test_a_batch_is_created_once_with_an_idempotency_key(client):
    file = upload(client, [chat_line("one")])
    key = str(uuid.uuid4())

    def create(**more):
        return client.batches.create(
            input_file_id=file.id,
            endpoint=CHAT,
            completion_window="24h",
            extra_headers={"Idempotency-Key": key},
            **more,
        )

    first = create()
    assert create() == first
    with pytest.raises(openai.BadRequestError) as caught:
        create(metadata={"another": "body"})
    assert caught.value.code == "idempotency_key_reused"


def test_a_batch_of_an_unknown_file_fails(client):
    batch = client.batches.create(
        input_file_id="file-unknown", endpoint=CHAT, completion_window="24h"
    )
    assert batch.status == "validating"
    batch = wait(client, batch.id)
    assert (batch.status, batch.usage) == ("failed", None)
    assert batch.failed_at >= batch.created_at
    assert batch.errors.object == "list"
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    assert "file-unknown" in error.message


def test_a_batch_with_bad_lines_fails_and_names_each(client):
    no_id = chat_line("x")
    del no_id["custom_id"]
    content = jsonl([chat_line("ok")]) + b"\n" + jsonl([no_id]) + b"{not json}\n"
    file = client.files.create(file=("bad.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h"
    )
    batch = wait(client, batch.id)
    assert batch.status == "failed"
    found = [(error.line, error.code, error.param) for error in batch.errors.data]
    assert found == [
        (3, "missing_required_parameter", "custom_id"),
        (4, "invalid_json_line", None),
    ]
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (0, 0, 0)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert client.files.retrieve(file.id).id == file.id, "the file stays beside its failed batch"


def test_a_batch_of_another_tenant_is_not_there(client, other_client, completed_batch):
    for call in (other_client.batches.retrieve, other_client.batches.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            call(completed_batch.id)
        message = f"No batch found with id '{completed_batch.id}'."
        assert_error(caught.value, 404, code=None, param=None, message=message)
    assert completed_batch.id not in [batch.id for batch in other_client.batches.list()]
    stolen = other_client.batches.create(
        input_file_id=completed_batch.input_file_id, endpoint=CHAT, completion_window="24h"
    )
    stolen = wait(other_client, stolen.id)
    assert (stolen.status, stolen.errors.data[0].param) == ("failed", "file_id")


def test_batches_are_listed_over_pages(counted_client, sent):
    made = [start(counted_client, [chat_line("one")]).id for _ in range(5)]
    sent.clear()
    ids = [batch.id for batch in counted_client.batches.list(limit=2)]
    assert ids[:5] == made[::-1], "newest first"
    assert len(ids) == len(set(ids))
    assert len(sent) == (len(ids) + 1) // 2, "no page is asked for after the last"

    page = counted_client.batches.list(after=made[4], limit=3)
    assert [batch.id for batch in page.data] == [made[3], made[2], made[1]]
    assert page.has_more and page.get_next_page().data[0].id == made[0]

    body = counted_client.batches.with_raw_response.list(limit=2).http_response.json()
    assert set(body) == {"object", "data", "first_id", "last_id", "has_more"}
    assert [body["first_id"], body["last_id"]] == made[:2:-1]


def test_twenty_batches_are_a_page_where_nobody_says(client):
    for _ in range(21):
        client.batches.create(
            input_file_id="file-unknown", endpoint=CHAT, completion_window="24h"
        )
    page = client.batches.list()
    assert (len(page.data), page.has_more) == (20, True)


def test_a_cancelled_batch_keeps_what_has_run(client):
    batch = start(client, SLOW)
    wait(client, batch.id, until={"in_progress"})
    first = client.batches.cancel(batch.id)
    assert first.status == "cancelling"
    assert first.cancelling_at >= first.in_progress_at
    assert (first.output_file_id, first.error_file_id) == (None, None)
    again = client.batches.cancel(batch.id)
    assert again.status in {"cancelling", "cancelled"}
    assert again.cancelling_at == first.cancelling_at

    ended = wait(client, batch.id)
    assert (ended.status, ended.finalizing_at) == ("cancelled", None)
    assert ended.cancelled_at >= ended.cancelling_at
    output = records(client, ended.output_file_id)
    errors = records(client, ended.error_file_id)
    ids = [record["custom_id"] for record in output + errors]
    assert sorted(ids) == [line["custom_id"] for line in SLOW]
    assert errors, "some lines never ran"
    for record in errors:
        assert record["response"] is None
        assert record["error"]["code"] == "batch_cancelled"
        assert isinstance(record["error"]["message"], str)
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (len(SLOW), len(output), 0)

    assert client.batches.cancel(ended.id) == ended, "cancelling it once more changes nothing"


def test_a_completed_batch_is_not_cancelled(counted_client, sent, completed_batch):
    with pytest.raises(openai.ConflictError) as caught:
        counted_client.batches.cancel(completed_batch.id)
    assert len(sent) == 1, "the SDK does not try again"
    assert caught.value.response.headers["x-should-retry"] == "false"
    message = "Cannot cancel a batch with status 'completed'."
    assert_error(caught.value, 409, code=None, param=None, message=message)


def test_a_failed_batch_is_not_cancelled(counted_client, sent):
    batch = counted_client.batches.create(
        input_file_id="file-unknown", endpoint=CHAT, completion_window="24h"
    )
    wait(counted_client, batch.id)
    sent.clear()
    with pytest.raises(openai.ConflictError) as caught:
        counted_client.batches.cancel(batch.id)
    assert len(sent) == 1
    message = "Cannot cancel a batch with status 'failed'."
    assert_error(caught.value, 409, code=None, param=None, message=message)


def test_every_batch_method_has_a_streaming_form(client, completed_batch):
    streaming = client.batches.with_streaming_response
    with streaming.retrieve(completed_batch.id) as response:
        assert response.parse() == completed_batch
    with streaming.list(limit=1) as response:
        assert len(response.parse().data) == 1
