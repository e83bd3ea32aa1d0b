"""What the totals of an Anthropic usage leave out: compactions, advisers, and attempts that a fallback replaced."""

from __future__ import annotations

from typing import Any

import pytest

from askii_middleware.providers import find_apis
from askii_middleware.usage import Report, TokenUsage

from .support import event, feed, parse

API = find_apis("/v1/messages")[0]


def entry(kind: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "input_tokens": tokens, "output_tokens": 1} | more


def read(model: str, iterations: list[Any]) -> Report:
    report = Report()
    usage = {"input_tokens": 10, "output_tokens": 5, "iterations": iterations}
    API.absorb(report, {"type": "message", "model": model, "stop_reason": "end_turn", "usage": usage})
    return report


def test_a_compaction_is_billed_beside_the_totals_for_the_same_model() -> None:
    report = read("claude-opus-5", [entry("compaction", 180_000), entry("message", 10)])
    assert report.usage == TokenUsage(input=10, output=5)
    assert report.other_usage == (("claude-opus-5", TokenUsage(input=180_000, output=1)),)


def test_an_attempt_that_declined_is_billed_for_its_own_model_and_the_fallback_s_turns_once() -> None:
    iterations = [
        entry("message", 408, model="claude-fable-5"),
        entry("message", 4, model="claude-opus-5"),
        entry("fallback_message", 6, model="claude-opus-5"),
    ]
    report = read("claude-opus-5", iterations)
    assert report.model == "claude-opus-5"
    assert report.other_usage == (("claude-fable-5", TokenUsage(input=408, output=1)),)


def test_in_a_stream_the_fallback_s_model_replaces_the_one_that_began() -> None:
    reader = API.stream_reader(hide_usage=False)
    start = {"id": "m", "model": "claude-fable-5", "usage": {"input_tokens": 408, "output_tokens": 0}}
    iterations = [entry("message", 408, model="claude-fable-5"), entry("fallback_message", 412, model="claude-opus-5")]
    usage = {"input_tokens": 412, "output_tokens": 264, "iterations": iterations}
    feed(
        reader,
        [
            event({"type": "message_start", "message": start}, name="message_start"),
            event(
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}, name="message_delta"
            ),
        ],
    )
    assert reader.report.model == "claude-opus-5"
    assert reader.report.usage == TokenUsage(input=412, output=264)
    assert reader.report.other_usage == (("claude-fable-5", TokenUsage(input=408, output=1)),)


def test_messages_of_a_tool_loop_are_inside_the_totals() -> None:
    assert read("m", [entry("message", 4, model="other"), entry("message", 6)]).other_usage == ()


@pytest.mark.parametrize("iterations", [None, 5, [None, 5, []], [{"type": ["x"]}], [entry("compaction", -1)]])
def test_odd_iterations_are_survived(iterations: Any) -> None:
    report = read("m", iterations)
    assert report.usage == TokenUsage(input=10, output=5)
    assert all(usage.input_tokens >= 0 for _, usage in report.other_usage)


def test_a_fallback_may_have_a_larger_limit_and_its_model_is_known() -> None:
    body = {"model": "claude-fable-5", "max_tokens": 10, "messages": [], "fallbacks": [{"model": "claude-opus-5"}]}
    request = parse("anthropic.messages", body)
    assert (request.output_limit, request.other_models) == (10, ("claude-opus-5",))
    body["fallbacks"] = [{"model": "claude-opus-5", "max_tokens": 99}, {"model": "x", "max_tokens": None}]
    request = parse("anthropic.messages", body)
    assert (request.output_limit, request.other_models) == (99, ("claude-opus-5", "x"))
    assert parse("anthropic.messages", body | {"fallbacks": "default"}).output_limit == 10
