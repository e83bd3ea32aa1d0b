"""Plain answers that are too large to collect give the same account as small ones, in bounded memory."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.base import StreamReader
from askii_middleware.usage import Report, TokenUsage

from .support import USAGE, api, cut, cut_at, feed


def embeddings(count: int) -> bytes:
    rows = [{"object": "embedding", "index": i, "embedding": [0.25] * 1500} for i in range(count)]
    return json.dumps(
        {
            "object": "list",
            "data": rows,
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 9, "total_tokens": 9},
        }
    ).encode()


def logprobs() -> bytes:
    token = {"token": '"usage":', "logprob": -1.5, "bytes": [1], "top_logprobs": [{"token": "\\", "logprob": -2}] * 5}
    message = {"role": "assistant", "content": '{"usage":{"prompt_tokens":999}}\\' * 500, "usage": {"prompt_tokens": 1}}
    choice = {"index": 0, "message": message, "logprobs": {"content": [token] * 400}, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o", "choices": [choice]}
    return json.dumps({**answer, "usage": USAGE, "service_tier": "flex"}).encode()


@pytest.mark.parametrize("size", [1000, 16_384, 10_000_000])
def test_usage_is_found_behind_a_large_answer(size: int) -> None:
    reader = api("openai.embeddings").body_reader()
    body = embeddings(40)
    for chunk in cut(body, size):
        assert reader.feed(chunk) is chunk
    assert reader.finish() == b""
    assert reader.report == Report(usage=TokenUsage(input=9), model="text-embedding-3-small", finished=True)


@given(st.lists(st.integers(0, 200_000), max_size=12))
def test_nothing_inside_the_answer_passes_for_its_usage(places: list[int]) -> None:
    reader = api("openai.chat").body_reader()
    feed(reader, cut_at(logprobs(), places))
    assert reader.report == Report(
        usage=TokenUsage(input=10, output=4),
        model="gpt-4o",
        service_tier="flex",
        provider_request_id="chatcmpl-1",
        finished=True,
    )


def test_an_answer_that_breaks_off_is_not_finished_but_keeps_what_came() -> None:
    whole = b'{"id":"chatcmpl-1","usage":{"prompt_tokens":10,"completion_tokens":4},"choices":[{"mess'
    for report in (_passed(api("openai.chat").body_reader(), whole), api("openai.chat").read_body(whole)):
        assert report.usage == TokenUsage(input=10, output=4)
        assert report.provider_request_id == "chatcmpl-1"
        assert not report.finished
    assert api("openai.chat").read_body(whole[:40]) == Report(provider_request_id="chatcmpl-1")


def test_memory_does_not_grow_with_the_answer() -> None:
    reader = api("openai.chat").body_reader()
    reader.feed(b'{"id":"' + b"x" * 100_000)  # even a wanted member may be endless
    for _ in range(50):
        reader.feed(b"y" * 100_000)
    assert _held(reader) < 5_000
    reader.feed(b'","choices":[{"message":{"content":"')
    for _ in range(50):
        reader.feed(b'\\"z' * 30_000)
    assert _held(reader) < 5_000
    reader.feed(b'"}}],"usage":{"prompt_tokens":10,"completion_tokens":4}}')
    assert reader.report.usage == TokenUsage(input=10, output=4)


@pytest.mark.parametrize(
    "name", ["openai.chat", "openai.completions", "openai.responses", "openai.embeddings", "anthropic.messages"]
)
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>502</html>", b"null", b"[1]", b'"usage"', b"\xff\xfe{\0", b"[" * 100_000, b'{"usage":' + b"[" * 3000],
)
def test_bodies_without_an_account_say_nothing(name: str, body: bytes) -> None:
    for report in (api(name).read_body(body), _passed(api(name).body_reader(), body)):
        assert report.usage is None
        assert not report.failed
        assert report.model is None


def test_what_only_the_standard_library_parses_is_read_all_the_same() -> None:
    body = b'{"model":"m","score":NaN,"text":"\\ud800","usage":{"prompt_tokens":10,"completion_tokens":4}}'
    for report in (api("openai.chat").read_body(body), _passed(api("openai.chat").body_reader(), body)):
        assert report == Report(usage=TokenUsage(input=10, output=4), model="m", finished=True)


def _passed(reader: StreamReader, body: bytes) -> Report:
    feed(reader, cut(body, 1000))
    return reader.report


def _held(reader: Any) -> int:
    scanner = reader._scanner
    return sum(sys.getsizeof(value) for value in (*vars(scanner).values(), *reader._answer.values()))
