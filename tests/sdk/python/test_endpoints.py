"""An endpoint that the server's operator has added: to the SDK it is a string like any other."""

import json

from helpers import upload, wait

RERANK = "/v1/rerank"


def test_a_line_of_an_added_endpoint_is_answered(client):
    body = {"model": "sim-small", "query": "night", "documents": ["day", "night"]}
    line = {"custom_id": "a", "method": "POST", "url": RERANK, "body": body}
    file = upload(client, [line])
    batch = client.batches.create(
        input_file_id=file.id, endpoint=RERANK, completion_window="24h"
    )
    batch = wait(client, batch.id)
    assert (batch.status, batch.endpoint) == ("completed", RERANK)
    content = client.files.content(batch.output_file_id).text
    response = json.loads(content)["response"]
    assert response["status_code"] == 200
    results = response["body"]["results"]
    assert sorted(result["index"] for result in results) == [0, 1]
