"""Those who speak OpenAI's formats in their own way."""

from __future__ import annotations

from typing import Any

import pytest

from askii_middleware.providers import dialects, find_apis
from askii_middleware.providers.base import Rewrite
from askii_middleware.providers.openai_common import openai_usage
from askii_middleware.usage import Report, TokenUsage

from .support import USAGE, chat_chunk, cut, event, feed, parse

CHAT = find_apis("/v1/chat/completions")[0]


def usage(**members: Any) -> dict[str, Any]:
    return {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, **members}


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (
            usage(prompt_cache_hit_tokens=60, prompt_cache_miss_tokens=40),
            TokenUsage(input=40, cache_read=60, output=10),
        ),
        (
            # DeepSeek says it twice: once is enough.
            usage(prompt_cache_hit_tokens=60, prompt_tokens_details={"cached_tokens": 60}),
            TokenUsage(input=40, cache_read=60, output=10),
        ),
        (usage(cached_tokens=60), TokenUsage(input=40, cache_read=60, output=10)),
        (usage(num_cached_tokens=60), TokenUsage(input=40, cache_read=60, output=10)),
        (usage(prompt_token_details={"cached_tokens": 60}), TokenUsage(input=40, cache_read=60, output=10)),
        (
            # OpenRouter's server tools; two names for the same searches count once.
            usage(cost=0.0133176, is_byok=False, server_tool_use_details={"web_search_requests": 2}),
            TokenUsage(input=100, output=10, web_search=2),
        ),
        (
            usage(
                server_tool_use={"web_search_requests": 2},
                server_tool_use_details={"web_search_requests": 2, "tool_calls_executed": 3},
            ),
            TokenUsage(input=100, output=10, web_search=2),
        ),
        (
            # DashScope's explicit cache.
            usage(
                prompt_tokens_details={
                    "cached_tokens": 5,
                    "cache_creation": {"ephemeral_5m_input_tokens": 7},
                    "cache_creation_input_tokens": 7,
                    "cache_type": "ephemeral",
                }
            ),
            TokenUsage(input=88, cache_read=5, cache_write=7, output=10),
        ),
        (usage(reasoning_tokens=4), TokenUsage(input=100, output=6, reasoning=4)),
        (
            usage(prompt_tokens_details={"cached_tokens": 5, "cache_creation_tokens": 7}),
            TokenUsage(input=88, cache_read=5, cache_write=7, output=10),
        ),
        (
            usage(
                cache_read_input_tokens=5,
                cache_creation_input_tokens=7,
                prompt_tokens_details={"cache_creation_token_details": {"ephemeral_1h_input_tokens": 3}},
                server_tool_use={"web_search_requests": 2},
            ),
            TokenUsage(input=88, cache_read=5, cache_write=4, cache_write_1h=3, output=10, web_search=2),
        ),
        (
            # What deep research read and thought, where the total leaves it out and where it does not.
            usage(citation_tokens=200, num_search_queries=21, reasoning_tokens=900),
            TokenUsage(input=300, output=10, reasoning=900, web_search=21),
        ),
        (
            usage(citation_tokens=200, num_search_queries=21, reasoning_tokens=900, total_tokens=1210),
            TokenUsage(input=300, output=10, reasoning=900, web_search=21),
        ),
        (
            {"prompt_tokens": 188, "completion_tokens": 55, "total_tokens": 7355, "connector_tokens": 7112}
            | {"connectors": {"web_search": 1, "web_search_premium": 2, "code_interpreter": 4}},
            TokenUsage(input=7300, output=55, web_search=3),
        ),
        (
            {"prompt_audio_seconds": 3, "prompt_tokens": 9, "total_tokens": 632, "completion_tokens": 248}
            | {"prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 375}, "service_tier": "standard"},
            TokenUsage(input=9, input_audio=375, output=248, second=3),
        ),
        (usage(prompt_audio_seconds={}, connectors=None, connector_tokens=None), TokenUsage(input=100, output=10)),
        (usage(num_sources_used=7), TokenUsage(input=100, output=10, web_search=7)),
        (
            usage(num_sources_used=7, num_server_side_tools_used=2),
            TokenUsage(input=100, output=10, web_search=2),
        ),
        (
            usage(
                num_sources_used=7,
                num_server_side_tools_used=6,
                server_side_tool_usage_details={
                    "web_search_calls": 2,
                    "x_search_calls": 1,
                    "code_interpreter_calls": 3,
                },
            ),
            TokenUsage(input=100, output=10, web_search=3),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 119, "num_sources_used": 0}
            | {"completion_tokens_details": {"reasoning_tokens": 100}, "cost_in_usd_ticks": 5},
            TokenUsage(input=9, output=10, reasoning=100),
        ),
        (
            # Azure's Grok: more cached than there was.
            usage(prompt_tokens=7, total_tokens=17, prompt_tokens_details={"cached_tokens": 163}),
            TokenUsage(cache_read=7, output=10, anomalous=True),
        ),
        (
            usage(prompt_tokens_details={"audio_tokens": 30, "image_tokens": 20, "cache_write_tokens": 10}),
            TokenUsage(input=40, input_audio=30, input_image=20, cache_write=10, output=10),
        ),
    ],
)
def test_a_dialects_own_members_are_read(reported: dict[str, Any], expected: TokenUsage) -> None:
    assert openai_usage(reported) == expected


MARKS = sorted({mark for dialect in dialects.DIALECTS for mark in dialect.marks})


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("value", [None, True, -5, 10**30, 1.5, "12", [], {}, {"a": 1}, [1]])
def test_a_mark_of_any_type_never_raises_nor_counts_below_zero(mark: str, value: object) -> None:
    for reported in (usage(**{mark: value}), usage(prompt_tokens_details={mark: value})):
        found = openai_usage(reported)
        assert found is not None
        assert all(getattr(found, name) >= 0 for name in found.__struct_fields__)
        assert found.input_tokens >= 100
        dialects.reported_cost(reported)


def test_each_dialect_has_a_name_of_its_own_and_says_something() -> None:
    assert len({dialect.name for dialect in dialects.DIALECTS}) == len(dialects.DIALECTS)
    for dialect in dialects.DIALECTS:
        assert (dialect.correct is None and dialect.cost_usd is None) or dialect.marks
        assert dialect.correct or dialect.cost_usd or dialect.absorb or dialect.refusing_members


def test_groqs_usage_is_read_beside_the_choices_and_only_where_there_is_no_other() -> None:
    report = Report()
    CHAT.absorb(report, chat_chunk("a", x_groq={"id": "req_1"}))
    assert report.usage is None
    CHAT.absorb(report, chat_chunk("", x_groq={"id": "req_1", "usage": {**USAGE, "queue_time": 0.1}}))
    assert report.usage == TokenUsage(input=10, output=4)
    CHAT.absorb(report, chat_chunk("", usage=usage(), x_groq={"usage": USAGE}))
    assert report.usage == TokenUsage(input=100, output=10)
    assert not report.failed


@pytest.mark.parametrize("own", [None, 3, [], "x", {"usage": 3}, {"usage": {"prompt_tokens": "x"}}, {"error": None}])
def test_an_odd_x_groq_says_nothing(own: object) -> None:
    report = Report()
    CHAT.absorb(report, chat_chunk("", x_groq=own))
    assert (report.usage, report.failed) == (None, False)


def test_a_stream_that_groq_broke_off_has_failed() -> None:
    reader = CHAT.stream_reader(hide_usage=False)
    feed(reader, [event(chat_chunk("first")), event(chat_chunk("", x_groq={"error": "over capacity"}))])
    assert reader.report.failed


def test_an_error_at_the_top_level_is_one_too() -> None:
    body = b'{"object": "error", "message": "no", "type": "invalid_request_error", "param": null, "code": 3}'
    assert CHAT.read_body(body).failed
    assert find_apis("/v1/embeddings")[0].read_body(body).failed


def test_the_tier_in_the_usage_is_the_one_that_was_served() -> None:
    report = Report()
    CHAT.absorb(report, {"choices": [], "usage": usage(service_tier="priority")})
    assert report.service_tier == "priority"
    CHAT.absorb(report, {"choices": [], "usage": usage(service_tier="auto")})
    assert report.service_tier == "priority"


@pytest.mark.parametrize(
    ("model", "more", "asked"),
    [
        ("gpt-4o", {}, True),
        ("Mistral-small-latest", {}, False),
        ("codestral-2508", {}, False),
        ("mistralai/mistral-small", {}, True),
        ("gpt-4o", {"data_sources": [{"type": "azure_search"}]}, False),
        ("gpt-4o", {"data_sources": None}, True),
    ],
)
def test_usage_is_not_asked_for_where_that_is_refused(model: str, more: dict[str, Any], asked: bool) -> None:
    request = parse("openai.chat", {"model": model, "messages": [], "stream": True, **more})
    assert CHAT.injects_usage(request, model) is asked
    assert b'"include_usage":true' in CHAT.rewrite(request, Rewrite(inject_usage=True))


def test_usage_may_stand_in_the_last_choice_of_a_stream_that_was_not_asked_for_any() -> None:
    text = chat_chunk("ab")
    last = chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage(cached_tokens=60)}])
    stream = b"".join(map(event, (text, last, "[DONE]")))
    for size in (1, 64, len(stream)):
        reader = CHAT.stream_reader(hide_usage=False)
        assert feed(reader, cut(stream, size)) == stream
        assert reader.report.usage == TokenUsage(input=40, cache_read=60, output=10)
        assert (reader.report.finished, reader.report.visible_bytes) == (True, 2)
