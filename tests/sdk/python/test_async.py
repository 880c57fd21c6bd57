"""The asynchronous client, once round."""

import asyncio
import json

import openai
import pytest

from helpers import CHAT, TERMINAL, chat_line, jsonl

LINES = [chat_line("one"), chat_line("two", status=400), chat_line("three")]


async def round_trip(make_client):
    async with make_client() as client:
        file = await client.files.create(file=("async.jsonl", jsonl(LINES)), purpose="batch")
        assert await client.files.retrieve(file.id) == file
        assert await client.files.wait_for_processing(file.id) == file
        assert (await client.files.content(file.id)).content == jsonl(LINES)

        batch = await client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata=None
        )
        while batch.status not in TERMINAL:
            await asyncio.sleep(0.05)
            batch = await client.batches.retrieve(batch.id)
        assert batch.status == "completed"

        content = await client.files.content(batch.output_file_id)
        ids = [json.loads(line)["custom_id"] for line in content.text.splitlines()]
        assert ids == ["one", "three"]
        streaming = client.files.with_streaming_response
        async with streaming.content(batch.error_file_id) as response:
            (line,) = [line async for line in response.iter_lines()]
        assert json.loads(line)["custom_id"] == "two"

        listed = [other.id async for other in client.batches.list(limit=3)]
        assert batch.id in listed
        purposes = {other.purpose async for other in client.files.list(purpose="batch_output")}
        assert purposes == {"batch_output"}
        models = [model.id async for model in client.models.list()]
        assert "org/model:tag" in models
        assert (await client.models.retrieve("org/model:tag")).id == "org/model:tag"

        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)


def test_the_asynchronous_client_goes_the_whole_way(async_client):
    asyncio.run(asyncio.wait_for(round_trip(async_client), timeout=60))


async def uploads_at_once(make_client):
    async with make_client() as client:
        contents = [jsonl([chat_line(f"file {n}")]) * 200 for n in range(16)]
        files = await asyncio.gather(
            *(client.files.create(file=content, purpose="batch") for content in contents)
        )
        back = await asyncio.gather(*(client.files.content(file.id) for file in files))
        assert [response.content for response in back] == contents


def test_many_uploads_run_at_once(async_client):
    asyncio.run(asyncio.wait_for(uploads_at_once(async_client), timeout=60))
