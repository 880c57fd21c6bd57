"""Batches by the official SDK: what goes in, and what comes out."""

import json
import time

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
ENDED = {"completed", "failed", "expired", "cancelled"}


def start(client, bodies, endpoint=CHAT):
    """A batch of requests by their ids."""
    lines = [
        {"custom_id": id, "method": "POST", "url": endpoint, "body": body}
        for id, body in bodies.items()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file = client.files.create(file=("input.jsonl", text.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h"
    )
    return batch.id


def ended(client, id, seconds=300):
    until = time.monotonic() + seconds
    while (batch := client.batches.retrieve(id)).status not in ENDED:
        assert time.monotonic() < until, f"still not ended: {batch}"
        time.sleep(0.1)
    assert batch.status == "completed", batch
    return batch


def run(client, bodies, endpoint=CHAT):
    """The output lines and the error lines of a batch, by their ids."""
    batch = ended(client, start(client, bodies, endpoint))
    output, errors = (lines(client, id) for id in (batch.output_file_id, batch.error_file_id))
    assert output.keys() | errors.keys() == bodies.keys()
    assert not output.keys() & errors.keys()
    return output, errors


def lines(client, file_id):
    if file_id is None:
        return {}
    text = client.files.content(file_id).content.decode()
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return {line["custom_id"]: line for line in lines}
