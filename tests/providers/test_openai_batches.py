"""Batches: nothing is known at first, and everything once they are over; moderations, which cost nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.pricing import ModelPrice, Price
from askii_middleware.providers import find_apis, find_sights
from askii_middleware.providers.base import BatchItems
from askii_middleware.providers.openai_batches import BatchesApi
from askii_middleware.providers.openai_moderations import ModerationsApi
from askii_middleware.usage import Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, feed, raw_fields

API = BatchesApi()
USAGE = {
    "input_tokens": 36,
    "output_tokens": 224,
    "total_tokens": 260,
    "input_tokens_details": {"cached_tokens": 6},
    "output_tokens_details": {"reasoning_tokens": 128},
}
USED = TokenUsage(input=30, cache_read=6, output=96, reasoning=128, largest_prompt=36)


def batch(status: str, **members: Any) -> dict[str, Any]:
    return {"id": "batch_1", "object": "batch", "model": "gpt-5-nano", "status": status, **members}


def states(answer: dict[str, Any]) -> list[Report]:
    """Read whole, and at two splits."""
    body = json.dumps(answer).encode()
    reports = [API.read_body(body)]
    for size in (1, 64):
        reader = API.body_reader()
        feed(reader, cut(body, size))
        reports.append(reader.report)
    return reports


def test_creating_a_batch_says_nothing_about_its_calls() -> None:
    body = {"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h"}
    assert API.owns(raw_fields(body))
    request = API.parse(raw_fields(body), 90)
    assert request.model is None
    assert request.items == ()
    assert request.background
    assert request.remote_input
    assert request.service_tier == "batch"


def test_mistrals_jobs_name_their_model() -> None:
    body = {"input_files": ["f"], "endpoint": "/v1/chat/completions", "model": "mistral-small-latest"}
    assert API.owns(raw_fields(body))
    assert API.parse(raw_fields(body), 90).model == "mistral-small-latest"


def test_calls_in_the_request_itself_are_added_up() -> None:
    calls: list[Any] = [
        {"custom_id": "0", "body": {"messages": [], "max_tokens": 100, "n": 2}},
        {"custom_id": "1", "body": {"messages": []}},
        {"custom_id": "2", "body": {"messages": [], "max_tokens": "lots", "n": -1}},
        "odd",
    ]
    body = {"requests": calls, "endpoint": "/v1/chat/completions", "model": "mistral-small-latest"}
    request = API.parse(raw_fields(body), 1000)
    assert request.items == (BatchItems("mistral-small-latest", 1000 + 4 * 256, 200, 3),)
    assert not request.remote_input
    embedded = API.parse(raw_fields({**body, "endpoint": "/v1/embeddings"}), 1000)
    assert embedded.items == (BatchItems("mistral-small-latest", 1000 + 4 * 256, 0, 0),)
    both = API.parse(raw_fields({**body, "input_files": ["f"]}), 1000)
    assert (both.items, both.remote_input) == ((), True)


@pytest.mark.parametrize("body", [{"requests": []}, {"endpoint": "/v1/responses"}, {"input_file_id": "f"}])
def test_other_bodies_are_no_batches(body: dict[str, Any]) -> None:
    assert not API.owns(raw_fields(body))


@pytest.mark.parametrize("path", ["/v1/batches", "/openai/batches", "/v1/batch/jobs"])
def test_batch_paths_are_metered(path: str) -> None:
    assert "openai.batches" in [api.name for api in find_apis(path)]


@pytest.mark.parametrize("path", ["/v1/batches/batch_1", "/openai/v1/batches/batch_1/", "/v1/batch/jobs/batch_1"])
def test_a_batch_is_looked_at_by_its_id(path: str) -> None:
    assert ("openai.batches", "batch_1") in [(api.name, operation) for api, operation in find_sights(path)]


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/batches/batch_1/cancel", "/v1/files/batch_1"])
def test_other_paths_look_at_no_batch(path: str) -> None:
    assert "openai.batches" not in [api.name for api, _ in find_sights(path)]


def test_the_recorded_batch_yields_its_usage_at_any_split() -> None:
    file = CORPUS / "openai_batches" / "batch_completed.json"
    if not file.exists():
        pytest.skip(NO_CORPUS)
    body = file.read_bytes()
    expected = API.read_body(body)
    for size in (1, 7, 64, 1000, len(body)):
        reader = API.body_reader()
        assert feed(reader, cut(body, size)) == body
        assert reader.report == expected
    assert expected.usage == TokenUsage(input=36, output=96, reasoning=128, largest_prompt=18)
    assert expected.model == "gpt-5-nano-2025-08-07"
    assert expected.service_tier == "batch"
    assert expected.provider_request_id == "batch_6a85c08a63188190982c56b42faa4ff5"
    assert (expected.finished, expected.deferred, expected.failed) == (True, False, False)


@pytest.mark.parametrize(
    "status", ["validating", "in_progress", "finalizing", "cancelling", "QUEUED", "RUNNING", "CANCELLATION_REQUESTED"]
)
def test_a_batch_that_goes_on_is_deferred_whatever_it_counts_so_far(status: str) -> None:
    for report in states(batch(status, usage=USAGE)):
        assert report.deferred
        assert report.usage is None
        assert report.provider_request_id == "batch_1"
        assert not report.failed


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled", "failed", "SUCCESS", "TIMEOUT_EXCEEDED"])
def test_a_batch_that_is_over_tells_what_it_used(status: str) -> None:
    for report in states(batch(status, usage=USAGE)):
        assert report.usage == USED
        assert (report.finished, report.deferred, report.failed) == (True, False, False)
        assert report.service_tier == "batch"


@pytest.mark.parametrize("status", ["failed", "cancelled", "FAILED"])
def test_a_batch_that_did_nothing_has_failed(status: str) -> None:
    for report in states(batch(status, usage=None, errors={"data": []}, request_counts={"completed": 0, "total": 0})):
        assert (report.usage, report.failed, report.finished, report.deferred) == (None, True, True, False)


@pytest.mark.parametrize(
    "answer",
    [
        batch("completed"),
        batch("expired"),
        batch("cancelled", request_counts={"completed": 2}),
        batch("CANCELLED", completed_requests=2),
    ],
)
def test_a_batch_that_did_something_untold_has_not_failed(answer: dict[str, Any]) -> None:
    for report in states(answer):
        assert (report.usage, report.failed, report.finished, report.deferred) == (None, False, True, False)


def test_a_refused_batch_has_failed() -> None:
    report = API.read_body(b'{"error": {"message": "no such file"}}')
    assert report.failed
    assert not report.deferred


@given(st.recursive(st.none() | st.integers() | st.text(max_size=9) | st.floats(), st.lists), st.text(max_size=9))
def test_odd_members_are_survived(value: object, status: str) -> None:
    for name in ("usage", "status", "request_counts", "id", "model"):
        for report in states(batch(status) | {name: value}):
            assert not (report.deferred and report.usage is not None)


MODERATIONS = ModerationsApi()


def test_a_moderation_is_one_request_of_the_documented_model() -> None:
    request = MODERATIONS.parse(raw_fields({"input": "x"}), 13)
    assert request.model == "omni-moderation-latest"
    assert MODERATIONS.parse(raw_fields({"input": "x", "model": "text-moderation-stable"}), 13).model != request.model
    assert request.billed_by_request == request.units == TokenUsage(request=1)
    assert request.output_limit == 0
    answer = {"id": "modr-1", "model": "omni-moderation-latest", "results": [{"flagged": False, "categories": {}}]}
    assert MODERATIONS.recognises(answer)
    report = MODERATIONS.read_body(json.dumps(answer).encode())
    assert (report.usage, report.finished, report.model) == (None, True, "omni-moderation-latest")


def test_a_free_moderation_is_charged_nothing_and_is_not_unpriced() -> None:
    price = Price("omni-moderation-latest", ModelPrice(request_usd=0, input_usd_per_mtok=0))
    bill = price.charge(TokenUsage(request=1))
    assert (bill.nano_usd, bill.unpriced, price.free) == (0, False, True)


def test_mistrals_moderations_tell_their_tokens() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}
    body = json.dumps({"id": "m", "model": "mistral-moderation-2411", "results": [{}], "usage": usage}).encode()
    assert MODERATIONS.read_body(body).usage == TokenUsage(input=12)


def test_a_batch_that_is_over_and_has_only_zeros_was_not_counted() -> None:
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    for report in states(batch("completed", usage=zeros, request_counts={"total": 2, "completed": 2, "failed": 0})):
        assert (report.usage, report.finished, report.deferred) == (None, True, False)
    for report in states(batch("cancelled", usage=zeros, request_counts={"total": 2, "completed": 0, "failed": 0})):
        assert report.usage == TokenUsage()
