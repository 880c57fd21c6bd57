"""The client's side of tests/docker.sh, with the official SDK. It reads OPENAI_BASE_URL and
OPENAI_API_KEY.

    batch.py submit LINES        uploads a file, creates its batch, and prints the batch's id
    batch.py reached ID COUNT    waits until so many lines have ended
    batch.py check ID LINES      waits for the end: every custom_id exactly once, in order
"""

import json
import sys
import time

from openai import OpenAI

TIMEOUT = 600


def ended(batch):
    return batch.request_counts.completed + batch.request_counts.failed


def watch(client, batch_id, enough):
    """Asks for the batch until it is `enough`."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        batch = client.batches.retrieve(batch_id)
        if enough(batch):
            return batch
        assert time.monotonic() < deadline, f"after {TIMEOUT} s: {batch}"
        time.sleep(0.2)


def submit(client, lines):
    def request(number):
        body = {"model": "sim", "messages": [{"role": "user", "content": f"Question {number}"}]}
        if number % 100 == 99:
            body["simulate"] = {"status": 400}  # so that there is a file of errors, too
        return {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions",
                "body": body}

    text = "".join(json.dumps(request(number)) + "\n" for number in range(int(lines)))
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    print(batch.id)


def reached(client, batch_id, count):
    batch = watch(client, batch_id, lambda batch: ended(batch) >= int(count))
    assert batch.status == "in_progress", f"too late to be on the way: {batch.status}"


def check(client, batch_id, lines):
    batch = watch(client, batch_id, lambda batch: batch.status not in (
        "validating", "in_progress", "finalizing"))
    assert batch.status == "completed", batch
    found = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        ids = [json.loads(line)["custom_id"] for line in client.files.content(file_id).text.splitlines()]
        numbers = [int(custom_id.removeprefix("request-")) for custom_id in ids]
        assert numbers == sorted(numbers), "a file is not in the input's order"
        print(f"  {file_id}: {len(ids)} lines")
        found += numbers
    assert sorted(found) == list(range(int(lines))), "not every custom_id exactly once"
    assert ended(batch) == int(lines), batch.request_counts
    print(f"  {batch.id}: every custom_id exactly once, in order; {batch.request_counts}")


if __name__ == "__main__":
    {"submit": submit, "reached": reached, "check": check}[sys.argv[1]](OpenAI(), *sys.argv[2:])
