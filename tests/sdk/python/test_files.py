"""`client.files`, but for the content of files."""

import io
import uuid

import openai
import pytest

from helpers import THIRTY_DAYS, assert_error, chat_line, jsonl

CONTENT = jsonl([chat_line("one"), chat_line("two")])
PURPOSES = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "in put é.jsonl"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_created_from_a_path(client, path):
    file = client.files.create(file=path, purpose="batch")
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename) == ("file", len(CONTENT), path.name)
    assert (file.purpose, file.status, file.status_details) == ("batch", "processed", None)
    assert file.expires_at == file.created_at + THIRTY_DAYS


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (CONTENT, "upload"),
        (io.BytesIO(CONTENT), "upload"),
        (("two.jsonl", CONTENT), "two.jsonl"),
        (("no-suffix", io.BytesIO(CONTENT)), "no-suffix"),
        (("three.jsonl", CONTENT, "application/jsonl"), "three.jsonl"),
        (("four.jsonl", CONTENT, "text/plain; charset=utf-8", {"x-more": "1"}), "four.jsonl"),
        (("夜 𝄞.jsonl", CONTENT), "夜 𝄞.jsonl"),
    ],
    ids=["bytes", "BytesIO", "pair", "pair-no-suffix", "triple", "quadruple", "unicode-name"],
)
def test_a_file_is_created_from_everything_the_sdk_takes(client, file, name):
    file = client.files.create(file=file, purpose="batch")
    assert (file.filename, file.bytes) == (name, len(CONTENT))
    assert client.files.content(file.id).content == CONTENT


def test_a_file_is_created_from_an_open_file(client, path):
    with path.open("rb") as opened:
        file = client.files.create(file=opened, purpose="batch")
    assert (file.filename, file.bytes) == (path.name, len(CONTENT))


def test_a_file_part_with_no_name_is_a_file_all_the_same(client):
    # For an empty name the SDK leaves out `filename`, and with it the part's content type.
    file = client.files.create(file=("", CONTENT), purpose="batch")
    assert file.bytes == len(CONTENT)
    assert client.files.content(file.id).content == CONTENT


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_file_of_every_purpose_is_kept(lenient_client, purpose):
    file = lenient_client.files.create(file=("some.jsonl", CONTENT), purpose=purpose)
    assert (file.purpose, file.status) == (purpose, "processed")
    expected = file.created_at + THIRTY_DAYS if purpose == "batch" else None
    assert file.expires_at == expected
    assert lenient_client.files.retrieve(file.id) == file
    # A strict client could not list a file whose purpose is `evals`.
    lenient_client.files.delete(file.id)


@pytest.mark.parametrize("purpose", ["batch", "user_data"])
def test_a_file_expires_when_asked_to(client, purpose):
    file = client.files.create(
        file=("brief.jsonl", CONTENT),
        purpose=purpose,
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at == file.created_at + 3600


def test_an_unknown_text_part_is_ignored(client):
    file = client.files.create(
        file=("input.jsonl", CONTENT), purpose="batch", extra_body={"colour": "blue"}
    )
    assert file.bytes == len(CONTENT)


def test_an_upload_with_an_idempotency_key_happens_once(client):
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = client.files.create(
        file=("a.jsonl", CONTENT), purpose="batch", extra_headers=headers
    )
    second = client.files.create(
        file=("a.jsonl", CONTENT), purpose="batch", extra_headers=headers
    )
    assert first == second
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(
            file=("a.jsonl", CONTENT * 2), purpose="batch", extra_headers=headers
        )
    assert caught.value.code == "idempotency_key_reused"


def test_a_file_is_retrieved_as_it_was_created(client):
    created = client.files.create(file=("input.jsonl", CONTENT), purpose="batch")
    retrieved = client.files.retrieve(created.id)
    assert retrieved == created
    assert retrieved._request_id


def test_a_deleted_file_is_gone(client):
    file = client.files.create(file=("input.jsonl", CONTENT), purpose="batch")
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    assert file.id not in [other.id for other in client.files.list()]
    for call in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert_error(
            caught.value, 404, code=None, param="id", message=f"No such File object: {file.id}"
        )


def test_waiting_for_processing_needs_one_request(counted_client, sent):
    file = counted_client.files.create(file=("input.jsonl", CONTENT), purpose="batch")
    sent.clear()
    assert counted_client.files.wait_for_processing(file.id) == file
    assert len(sent) == 1


@pytest.fixture(scope="module")
def listed(client):
    """Five files that nothing else of these tests makes, in the order in which they were made."""
    return [
        client.files.create(
            file=(f"listed-{number}.jsonl", CONTENT),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        for number in range(5)
    ]


def among(listed, files):
    return [file for file in files if file in listed]


def test_the_newest_files_are_listed_first(client, listed):
    assert among(listed, client.files.list()) == listed[::-1]
    assert among(listed, client.files.list(order="desc")) == listed[::-1]
    assert among(listed, client.files.list(order="asc")) == listed


def test_a_list_goes_on_over_its_pages(counted_client, sent, listed):
    files = list(counted_client.files.list(purpose="fine-tune", limit=2, order="asc"))
    assert among(listed, files) == listed
    assert len(sent) == (len(files) + 1) // 2, "no page is asked for after the last"


def test_the_pages_of_a_list_are_cut_as_asked(client, listed):
    page = client.files.list(
        purpose="fine-tune", order="asc", after=listed[0].id, limit=2
    )
    assert page.data == listed[1:3]
    assert page.has_more and page.has_next_page()
    assert page.next_page_info().params == {"after": listed[2].id}
    page = page.get_next_page()
    assert page.data[:2] == listed[3:5]
    back = client.files.list(purpose="fine-tune", after=listed[2].id, limit=2)
    assert back.data == [listed[1], listed[0]]


def test_a_list_holds_only_the_purpose_asked_for(client, listed):
    assert {file.purpose for file in client.files.list(purpose="fine-tune")} == {"fine-tune"}


def test_a_list_has_all_five_keys(client, listed):
    raw = client.files.with_raw_response.list(purpose="fine-tune", order="asc", limit=2)
    page = raw.http_response.json()
    assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
    assert page["object"] == "list"
    assert [page["first_id"], page["last_id"]] == [file["id"] for file in page["data"]]
    assert page["has_more"] is True
    assert raw.headers["content-type"].startswith("application/json")


def test_an_empty_list_has_no_ids_and_no_more(other_client):
    page = other_client.files.with_raw_response.list(purpose="vision").http_response.json()
    assert page == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert list(other_client.files.list(purpose="vision")) == []


def test_a_file_of_another_tenant_is_not_there(client, other_client):
    file = client.files.create(file=("input.jsonl", CONTENT), purpose="batch")
    for call in (
        other_client.files.retrieve,
        other_client.files.content,
        other_client.files.delete,
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert_error(
            caught.value, 404, code=None, param="id", message=f"No such File object: {file.id}"
        )
    assert file.id not in [other.id for other in other_client.files.list()]
    assert client.files.retrieve(file.id) == file


def test_every_file_method_has_a_raw_and_a_streaming_form(client):
    raw = client.files.with_raw_response.create(file=("a.jsonl", CONTENT), purpose="batch")
    file = raw.parse()
    assert raw.http_response.status_code == 200
    assert raw.headers["x-request-id"] == raw.request_id == file._request_id
    with client.files.with_streaming_response.retrieve(file.id) as streamed:
        assert streamed.parse() == file
    assert client.files.with_raw_response.delete(file.id).parse().deleted


def test_a_large_file_is_streamed_from_disk(client, tmp_path):
    path = tmp_path / "large.jsonl"
    line = chat_line("x")
    line["body"]["messages"][0]["content"] = "y" * 1000
    with path.open("wb") as opened:
        for number in range(5000):
            opened.write(jsonl([{**line, "custom_id": f"line-{number}"}]))
    file = client.files.create(file=path, purpose="batch")
    assert file.bytes == path.stat().st_size
    assert client.files.content(file.id).content == path.read_bytes()
