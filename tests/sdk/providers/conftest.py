import json
import os
import urllib.request

import openai
import pytest

URL = os.environ["NIGHTSHIFT_TEST_URL"]
ORIGIN = os.environ["NIGHTSHIFT_TEST_STAND_IN"]
# Where Anthropic's API is of the version 2026-10-21.
ORIGIN_2026 = os.environ["NIGHTSHIFT_TEST_STAND_IN_2026"]


@pytest.fixture(scope="session")
def client():
    """A client that also checks every answer against the SDK's types."""
    key = os.environ["NIGHTSHIFT_TEST_KEY"]
    with openai.OpenAI(
        base_url=URL, api_key=key, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="session")
def status():
    """What the server tells its operator of the routes."""
    key = os.environ["NIGHTSHIFT_TEST_OPERATOR_KEY"]
    headers = {"authorization": f"Bearer {key}"}
    request = urllib.request.Request(URL.removesuffix("/v1") + "/admin/status", headers=headers)

    def ask():
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return ask


class StandIn:
    """What the stand-ins have seen, and what they are told."""

    def problems(self, provider):
        """What was not as the provider's API has it, since it was asked last."""
        return self.tell(f"/problems/{provider}")

    def counts(self, provider):
        """How many calls had a wrong key, and how many the other models turned away."""
        return self.tell(f"/counts/{provider}")

    def tell(self, path):
        origin = ORIGIN_2026 if path.endswith("-2026") else ORIGIN
        request = urllib.request.Request(origin + path.removesuffix("-2026"), b"{}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def stand_in():
    return StandIn()
