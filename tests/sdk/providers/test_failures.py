"""What the providers' failures come to: whose they are, and what becomes of the lines."""

import importlib
import os
import subprocess
import time

import pytest

from batches import ended, lines, run, start
from test_batches import PROVIDERS, TRANSLATED, user



APIS = {name: importlib.import_module(f"{name}_api") for name in PROVIDERS}


# What may pass is asked for again.
PASSING = {408, 409, 429, 499}


def is_of_the_line(status):
    return status < 500 and status not in PASSING


@pytest.fixture(scope="session", params=PROVIDERS)
def failures(request, client, stand_in):
    """A provider, and a batch with a line for each of its errors and some without. The stand-in
    answers a line's own error for good, and any other twice."""
    provider = request.param
    bodies = {
        kind: {"model": provider, "messages": [user(f"/error {kind}")]}
        for kind in APIS[provider].ERRORS
    }
    bodies |= {f"good-{n}": {"model": provider, "messages": [user("Hi")]} for n in range(200)}
    output, failed = run(client, bodies)
    calls = {
        kind: stand_in.tell(f"/asked/{provider}/{kind}")["calls"] for kind in APIS[provider].ERRORS
    }
    return provider, output, failed, calls


def test_row_06_a_rate_limit_delays_a_line_and_does_not_fail_it(failures):
    provider, output, _, calls = failures
    assert APIS[provider].ERRORS["limited"][0] == 429
    assert calls["limited"] == 3
    assert output["limited"]["response"]["status_code"] == 200


def test_row_07_an_error_of_the_line_is_asked_for_once(failures):
    provider, _, failed, calls = failures
    for kind, (status, _, said) in APIS[provider].ERRORS.items():
        if not is_of_the_line(status):
            continue
        assert calls[kind] == 1, kind
        response = failed[kind]["response"]
        assert (response["status_code"], failed[kind]["error"]) == (status, None)
        error = response["body"]["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and error["message"]
        assert error["type"] == "invalid_request_error"
        if provider in TRANSLATED:
            assert response["body"]["provider"] == said, "what the provider said stands beside"


def test_row_08_what_fails_twice_and_then_answers_is_answered(failures):
    provider, output, _, calls = failures
    passing = {
        kind
        for kind, (status, _, _) in APIS[provider].ERRORS.items()
        if not is_of_the_line(status)
    }
    assert passing >= {"limited", "overloaded", "broken"}
    for kind in passing:
        assert calls[kind] == 3, kind
        assert output[kind]["response"]["status_code"] == 200


def test_row_14_row_15_row_16_failing_lines_leave_others_and_every_line_ends_once(failures):
    provider, output, failed, _ = failures
    for number in range(200):
        line = output[f"good-{number}"]
        assert line["error"] is None and line["response"]["status_code"] == 200
    own = {kind for kind, error in APIS[provider].ERRORS.items() if is_of_the_line(error[0])}
    assert set(failed) == own
    assert len(output) + len(failed) == 200 + len(APIS[provider].ERRORS)
    assert all(line["response"]["status_code"] == 200 for line in output.values())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_key_is_set_aside_and_fails_no_line(client, stand_in, provider):
    body = {"model": f"{provider}-keys", "messages": [user("Hi")]}
    output, errors = run(client, {str(number): body for number in range(40)})
    assert (len(output), errors) == (40, {})
    strangers = stand_in.counts(provider)["strangers"]
    # It was tried, by no more calls than went at once, and by the probes of its own since then.
    assert 0 < strangers < 20, strangers


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_overloaded_model_cools_down_alone(client, stand_in, status, provider):
    second = {"model": f"{provider}-second", "messages": [user("Hi")]}
    first = {"model": provider, "messages": [user("Hi")]}
    stand_in.tell(f"/fails/{provider}/overloaded")
    try:
        waiting = start(client, {str(number): second for number in range(10)})
        until(lambda: skipped(status(), f"{provider}-second"), "the model is left alone")
        output, errors = run(client, {str(number): first for number in range(20)})
        assert (len(output), errors) == (20, {}), "the other model of the upstream goes on"
        assert skipped(status(), provider) is None
        assert client.batches.retrieve(waiting).request_counts.failed == 0
    finally:
        stand_in.tell(f"/works/{provider}")
    batch = ended(client, waiting)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (10, 0)
    assert len(lines(client, batch.output_file_id)) == 10
    assert stand_in.counts(provider)["turned_away"] > 0


@pytest.mark.parametrize("provider", PROVIDERS)
def test_row_20_a_spend_limit_leaves_lines_waiting(client, stand_in, status, provider):
    # Nothing has been answered for this model yet. A batch that alone fails is what is at fault.
    body = {"model": f"{provider}-third", "messages": [user("Hi")]}
    stand_in.tell(f"/fails/{provider}/spent")
    try:
        waiting = start(client, {str(number): body for number in range(5)})
        until(lambda: skipped(status(), f"{provider}-third"), "nothing more is sent")
        assert client.batches.retrieve(waiting).request_counts.failed == 0
    finally:
        stand_in.tell(f"/works/{provider}")
    counts = ended(client, waiting).request_counts
    assert (counts.completed, counts.failed) == (5, 0)


def skipped(status, model):
    """Why the route of a model gets no lines; `None` where it does."""
    (model,) = [one for one in status["models"] if one["model"] == model]
    (route,) = model["routes"]
    reason = route.get("skipped")
    return None if reason == "full" else reason


def until(is_so, what, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_models_of_a_provider_are_listed_page_by_page(provider):
    binary, config = os.environ["NIGHTSHIFT_TEST_BINARY"], os.environ["NIGHTSHIFT_TEST_CONFIG"]
    command = [binary, "upstreams", "models", provider, "--config", config]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines() if line}
    assert names >= every_model(APIS[provider]), listed.stdout


def every_model(api):
    """All that a stand-in has, when asked with each word for "more" that APIs have."""
    names, query = set(), {}
    while True:
        page = api.models(query)
        entries = page.get("data") or page["models"]
        names |= {(one.get("id") or one["name"]).removeprefix("models/") for one in entries}
        next = page.get("nextPageToken") or page.get("next_page_token")
        if next:
            query = {"pageToken": next, "page_token": next}
        elif page.get("has_more"):
            query = {"after_id": page["last_id"]}
        else:
            return names
