"""What the tests share: lines to send, and ways to wait for a batch and to read its files."""

import json
import time

CHAT = "/v1/chat/completions"
TERMINAL = {"completed", "failed", "expired", "cancelled"}
THIRTY_DAYS = 30 * 24 * 3600


def chat_line(custom_id, model="sim-small", **simulate):
    """One request. The keyword arguments steer the simulated upstream: `status`, `latency_ms`."""
    body = {"model": model, "messages": [{"role": "user", "content": f"Say {custom_id}"}]}
    if simulate:
        body["simulate"] = simulate
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def jsonl(lines):
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def upload(client, lines):
    return client.files.create(file=("input.jsonl", jsonl(lines)), purpose="batch")


def start(client, lines, **arguments):
    """Uploads the lines and creates a batch of them."""
    return client.batches.create(
        input_file_id=upload(client, lines).id,
        endpoint=CHAT,
        completion_window="24h",
        **arguments,
    )


def wait(client, batch_id, until=TERMINAL, seconds=60):
    """Polls the batch until its status is one of `until`."""
    deadline = time.monotonic() + seconds
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in until:
            return batch
        assert batch.status not in TERMINAL, f"{batch.status}, not {until}: {batch}"
        assert time.monotonic() < deadline, f"still {batch.status} after {seconds} s: {batch}"
        time.sleep(0.05)


def run(client, lines, **arguments):
    """A batch of the lines, ended."""
    return wait(client, start(client, lines, **arguments).id)


def records(client, file_id):
    """The lines of an output or error file; none where there is no file."""
    if file_id is None:
        return []
    content = client.files.content(file_id).content
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content[:-1].split(b"\n")]


def assert_error(error, status, *, code, param, message=None, type="invalid_request_error"):
    """Asserts all that the SDK shows of an error answer."""
    assert (error.status_code, error.type, error.code, error.param) == (status, type, code, param)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.request_id == error.response.headers["x-request-id"]
    if message is not None:
        assert error.body["message"] == message
