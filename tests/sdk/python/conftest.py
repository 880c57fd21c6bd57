import os

import openai
import pytest

import helpers

URL = os.environ["NIGHTSHIFT_TEST_URL"]
KEY = os.environ["NIGHTSHIFT_TEST_KEY"]
OTHER_KEY = os.environ["NIGHTSHIFT_TEST_OTHER_KEY"]


def make(key=KEY, **options):
    """A client that also checks every answer against the SDK's types."""
    options.setdefault("_strict_response_validation", True)
    return openai.OpenAI(base_url=URL, api_key=key, timeout=60, **options)


@pytest.fixture(scope="session")
def client():
    with make() as client:
        yield client


@pytest.fixture(scope="session")
def lenient_client():
    """For `purpose="evals"`, which the SDK sends but does not expect back."""
    with make(_strict_response_validation=False) as client:
        yield client


@pytest.fixture(scope="session")
def other_client():
    """A client of another tenant."""
    with make(OTHER_KEY) as client:
        yield client


@pytest.fixture
def client_with_key():
    """Makes clients with any key, or with none."""
    clients = []

    def with_key(key):
        hooks = {"request": [lambda request: request.headers.pop("Authorization")]}
        http_client = openai.DefaultHttpxClient(event_hooks={} if key else hooks)
        clients.append(make(key or "unused", http_client=http_client))
        return clients[-1]

    yield with_key
    for client in clients:
        client.close()


@pytest.fixture
def sent():
    """The requests that `counted_client` has sent, retries included."""
    return []


@pytest.fixture
def counted_client(sent):
    http_client = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with make(http_client=http_client) as client:
        yield client


@pytest.fixture
def async_client():
    """Makes an asynchronous client inside the event loop that uses it."""
    return lambda: openai.AsyncOpenAI(
        base_url=URL, api_key=KEY, timeout=60, _strict_response_validation=True
    )


@pytest.fixture(scope="session")
def completed_batch(client):
    batch = helpers.run(client, [helpers.chat_line("one")])
    assert batch.status == "completed"
    return batch
