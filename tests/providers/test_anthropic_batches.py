"""Message batches: every item bounds the hold, and the results are summed once, at their end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from askii_middleware.providers import find_apis, find_sights
from askii_middleware.providers.anthropic_batches import MessageBatchesApi, ResultsReader
from askii_middleware.providers.base import CallRequest, InvalidRequestError, Rewrite
from askii_middleware.usage import NOTHING_USED, Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, feed, raw_fields

API = MessageBatchesApi()
MESSAGES = [{"role": "user", "content": "hi"}]


def parse(*params: Any) -> CallRequest:
    body = {"requests": [{"custom_id": str(n), "params": item} for n, item in enumerate(params)]}
    return API.parse(raw_fields(body), len(json.dumps(body)))


def item(model: Any = "claude-haiku-4-5", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 10, "messages": MESSAGES} | more


def result(model: str, kind: str = "succeeded", **usage: Any) -> dict[str, Any]:
    message = {"type": "message", "model": model, "usage": {"input_tokens": 1, "output_tokens": 1} | usage}
    return {"custom_id": "c", "result": {"type": kind, "message": message} if kind == "succeeded" else {"type": kind}}


def read(*lines: Any, size: int = 7, reader: ResultsReader | None = None) -> Report:
    text = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    reader = reader or ResultsReader()
    assert feed(reader, cut(text, size)) == text
    return reader.report


def test_the_path_of_batches_is_found_and_the_body_tells_them_from_others() -> None:
    (found,) = (api for api in find_apis("/v1/messages/batches") if api.owns(raw_fields({"requests": []})))
    assert found.name == "anthropic.batches"
    for path in ("/v1/messages/batches/msgbatch_1", "/x/v1/messages/batches/msgbatch_1/results"):
        assert (found, "msgbatch_1") in find_sights(path)


def test_items_are_added_up_by_model() -> None:
    request = parse(item(), item("claude-opus-5", max_tokens=7), item(max_tokens=5))
    small, large = request.items
    assert (small.model, small.output_tokens, small.unlimited) == ("claude-haiku-4-5", 15, 0)
    assert (large.model, large.output_tokens, large.unlimited) == ("claude-opus-5", 7, 0)
    assert request.input_bound == small.input_tokens + large.input_tokens
    assert large.input_tokens >= len(json.dumps(item("claude-opus-5")))
    assert (request.model, request.output_limit, request.service_tier) == ("claude-haiku-4-5", 22, "batch")
    assert request.background


def test_an_item_without_a_limit_is_counted_apart() -> None:
    request = parse(item(max_tokens=None), item())
    assert request.items[0].unlimited == 1
    assert request.output_limit is None


def test_remote_input_advisers_and_media_of_any_item_count_for_all() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    adviser = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}
    request = parse(item(messages=[{"role": "user", "content": [image]}]), item(tools=[adviser]))
    assert request.media
    assert request.remote_input
    assert request.other_models == ("claude-opus-4-8",)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (item(max_tokens="lots"), r"requests\[1\]\.params\.max_tokens"),
        (item(model=5), r"requests\[1\]\.params\.model"),
        (item(model=None), r"requests\[1\]\.params\.model"),
        ("text", r"requests\[1\]\.params must"),
        (None, r"requests\[1\]\.params must"),
    ],
)
def test_a_wrong_member_is_named_with_its_item(params: Any, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        parse(item(), params)


def test_requests_of_another_type_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="requests must be a list"):
        API.parse(raw_fields({"requests": "x"}), 10)


def test_so_many_models_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at most 100 models"):
        parse(*(item(f"m{n}") for n in range(101)))


def test_a_batch_is_neither_rewritten_nor_given_to_another_model() -> None:
    request = parse(item())
    assert not API.accepts(request, "claude-opus-5")
    body = json.loads(API.rewrite(request, Rewrite(model="other", output_limit=1)))
    assert body["requests"][0]["params"] == item()


STATE = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": {"processing": 2, "succeeded": 0},
}


@pytest.mark.parametrize("status", ["in_progress", "canceling"])
def test_a_batch_under_way_is_deferred(status: str) -> None:
    report = API.read_body(json.dumps(STATE | {"processing_status": status}).encode())
    assert report.deferred
    assert report.usage is None
    assert report.provider_request_id == "msgbatch_1"
    assert API.recognises(STATE)


def test_a_batch_that_ended_waits_for_its_results() -> None:
    ended = STATE | {"processing_status": "ended", "request_counts": {"succeeded": 1}}
    report = API.read_body(json.dumps(ended).encode())
    assert report.deferred
    assert report.usage is None


def test_a_batch_that_ended_without_a_success_costs_nothing() -> None:
    ended = STATE | {"processing_status": "ended", "request_counts": {"succeeded": 0, "errored": 2}}
    report = API.read_body(json.dumps(ended).encode())
    assert report.usage == NOTHING_USED
    assert not report.deferred


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_results_are_summed_by_model_and_the_main_one_comes_first(size: int) -> None:
    report = read(
        result("claude-haiku-4-5"),
        result("claude-opus-5", input_tokens=100, cache_creation_input_tokens=5, output_tokens=9),
        result("claude-haiku-4-5", "errored"),
        result("claude-haiku-4-5", input_tokens=3),
        size=size,
    )
    assert report.finished
    assert report.service_tier == "batch"
    assert (report.model, report.usage) == ("claude-opus-5", TokenUsage(input=100, cache_write=5, output=9))
    assert report.other_usage == (("claude-haiku-4-5", TokenUsage(input=4, output=2, largest_prompt=3)),)


def test_nothing_is_said_before_the_last_line() -> None:
    reader = ResultsReader()
    reader.feed(json.dumps(result("m")).encode() + b"\n")
    assert reader.report == Report(service_tier="batch")


@pytest.mark.parametrize(
    "line", [b"{broken", b"[]", {"custom_id": "c"}, {"result": {"type": "succeeded", "message": {"type": "message"}}}]
)
def test_a_line_that_cannot_be_read_leaves_the_sum_open(line: Any) -> None:
    report = read(result("m"), line)
    assert report.usage is None
    assert not report.finished


def test_a_line_that_is_too_long_leaves_the_sum_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.providers.anthropic_batches.MAX_LINE_BYTES", 1000)
    report = read(result("m"), result("m" * 2000), reader=ResultsReader())
    assert report.usage is None


def test_results_without_a_success_cost_nothing() -> None:
    report = read(result("m", "errored"), result("m", "expired"), result("m", "canceled"))
    assert report.usage == NOTHING_USED
    assert report.finished


def test_an_adviser_in_a_result_is_counted_for_its_own_model() -> None:
    entry = {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 7, "output_tokens": 2}
    report = read(result("claude-sonnet-5", input_tokens=50, iterations=[entry]))
    assert report.other_usage == (("claude-opus-4-8", TokenUsage(input=7, output=2)),)


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 10_000])
def test_the_recorded_results_come_to_what_the_manifest_says(size: int) -> None:
    body = (CORPUS / "anthropic/batch_results.ndjson").read_bytes()
    reader = ResultsReader()
    assert feed(reader, cut(body, size)) == body
    assert reader.report.model == "claude-haiku-4-5-20251001"
    assert reader.report.usage == TokenUsage(input=39, output=9, largest_prompt=20)
