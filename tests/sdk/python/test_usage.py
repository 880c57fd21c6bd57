"""What was used and what it cost, as the SDK reads it with an operator's key."""

import os
import time

import openai
import pytest

import helpers
from conftest import KEY, URL

DAY = 86400
TODAY = int(time.time()) // DAY * DAY
MONTH_AGO = TODAY - 31 * DAY
# Of those who have used something on each of the 31 days before today.
TENANTS = ["month-a", "month-b"]


@pytest.fixture(scope="module")
def usage():
    key = os.environ["NIGHTSHIFT_TEST_OPERATOR_KEY"]
    client = openai.OpenAI(
        base_url=URL,
        api_key="unused",
        admin_api_key=key,
        timeout=60,
        _strict_response_validation=True,
    )
    with client:
        yield client.admin.organization.usage


def pages(read, **arguments):
    """All buckets, and how many pages they came in."""
    buckets, page, count = [], openai.omit, 0
    while True:
        answer = read(page=page, **arguments)
        buckets += answer.data
        count += 1
        if not answer.has_more:
            assert answer.next_page is None
            return buckets, count
        page = answer.next_page


@pytest.mark.parametrize(("limit", "expected"), [(openai.omit, 5), (31, 1), (10, 4)])
def test_a_month_is_read_page_by_page(usage, limit, expected):
    buckets, count = pages(
        usage.completions,
        start_time=MONTH_AGO,
        end_time=TODAY,
        limit=limit,
        group_by=["model", "project_id"],
        project_ids=TENANTS,
    )
    assert count == expected
    assert [bucket.start_time for bucket in buckets] == list(range(MONTH_AGO, TODAY, DAY))
    for bucket in buckets:
        assert bucket.end_time == bucket.start_time + DAY
        a, b = bucket.results
        assert a.object == "organization.usage.completions.result"
        assert (a.model, a.project_id, a.api_key_id) == ("model-of-month-a", "month-a", None)
        assert (a.input_tokens, a.output_tokens, a.num_model_requests) == (100, 3, 1)
        assert (a.input_cached_tokens, a.input_cache_write_tokens) == (5, 1)
        assert (b.model, b.input_tokens) == ("model-of-month-b", 7)


def test_costs_are_by_the_day(usage):
    buckets, count = pages(
        usage.costs,
        start_time=MONTH_AGO,
        end_time=TODAY,
        group_by=["line_item", "api_key_id"],
        project_ids=["month-b"],
    )
    assert (len(buckets), count) == (31, 5)
    for bucket in buckets:
        (result,) = bucket.results
        assert result.object == "organization.costs.result"
        assert (result.amount.value, result.amount.currency) == (0.2500005, "usd")
        assert (result.line_item, result.api_key_id) == ("model-of-month-b", "key_month-b")


def test_a_batch_is_counted_as_soon_as_it_has_ended(usage, client):
    def used():
        answer = usage.completions(
            start_time=int(time.time()) - 600, bucket_width="1h", models=["sim-large"]
        )
        results = [result for bucket in answer.data for result in bucket.results]
        return sum(result.num_model_requests for result in results), results

    before, _ = used()
    batch = helpers.run(client, [helpers.chat_line(f"u-{n}", "sim-large") for n in range(3)])
    assert batch.status == "completed"
    after, results = used()
    assert after == before + 3
    assert results[-1].batch is None
    assert batch.usage.input_tokens <= sum(result.input_tokens for result in results)


def test_other_endpoints_have_their_own(usage):
    for read in (usage.embeddings, usage.moderations, usage.images):
        answer = read(start_time=MONTH_AGO, end_time=TODAY)
        assert len(answer.data) == 7
        assert answer.has_more
        assert all(not bucket.results for bucket in answer.data)


def test_a_tenants_key_reads_its_own_and_a_wrong_one_nothing():
    def reads(key):
        with openai.OpenAI(base_url=URL, api_key="unused", admin_api_key=key) as client:
            answer = client.admin.organization.usage.completions(
                start_time=MONTH_AGO, end_time=TODAY, limit=31, project_ids=TENANTS
            )
        return [result for bucket in answer.data for result in bucket.results]

    assert reads(KEY) == []
    with pytest.raises(openai.AuthenticationError):
        reads("sk-wrong")


def test_what_is_wrong_is_said(usage):
    with pytest.raises(openai.BadRequestError) as error:
        usage.costs(start_time=MONTH_AGO, extra_query={"bucket_width": "1h"})
    assert error.value.param == "bucket_width"
