"""Answers that were damaged on their way never raise and never give negative counts."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS
from askii_middleware.usage import Report

from .support import USAGE, chat_chunk, cut, event, feed

ANTHROPIC_USAGE = {
    "input_tokens": 10,
    "output_tokens": 4,
    "cache_creation_input_tokens": 3,
    "cache_creation": {"ephemeral_1h_input_tokens": 1},
    "output_tokens_details": {"thinking_tokens": 2},
    "server_tool_use": {"web_search_requests": 1},
    "iterations": [{"type": "advisor_message", "model": "m", "input_tokens": 1, "output_tokens": 1}],
}
ANSWERS: list[dict[str, Any]] = [
    {**chat_chunk("x"), "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 2}}, "x_groq": {"usage": USAGE}},
    {
        "id": "c",
        "choices": [{"message": {"content": [{"type": "text", "text": "x"}], "tool_calls": [{}]}}],
        "error": {},
    },
    {"object": "list", "data": [], "model": "m", "usage": {"total_tokens": 3}},
    {
        "object": "response",
        "status": "completed",
        "output": [{"content": [{"text": "a"}]}],
        "usage": {"input_tokens": 1},
        "tool_usage": {"web_search": {"num_requests": 1}, "image_gen": {"input_tokens": 1, "output_tokens": 2}},
        "tools": [{}],
    },
    {"type": "response.completed", "response": {"status": "failed", "error": {}, "usage": {"input_tokens": 1}}},
    {"type": "response.output_text.delta", "delta": "x"},
    {"type": "message", "content": [{"type": "text", "text": "x"}], "model": "m", "usage": ANTHROPIC_USAGE},
    {"type": "message_start", "message": {"id": "m", "model": "m", "usage": ANTHROPIC_USAGE}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ANTHROPIC_USAGE},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}},
]
ODD = st.sampled_from(
    [None, True, -1, 0, 10**30, -(10**30), 1.5, float("nan"), "", "12", "\ud800", [], [None], {}, {"a": 1}]
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, ...]] = []
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            inner += paths(child, (*at, key))
    return [at, *inner] if at else inner


def check(report: Report) -> None:
    for usage in (report.usage, *(extra for _, extra in report.other_usage)):
        if usage is not None:
            assert all(getattr(usage, name) >= 0 for name in usage.__struct_fields__)
    assert report.visible_bytes >= 0
    assert report.model is None or (isinstance(report.model, str) and report.model)


@given(st.data())
def test_a_member_of_another_type_is_survived_everywhere(data: st.DataObject) -> None:
    answer = copy.deepcopy(data.draw(st.sampled_from(ANSWERS)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths(answer)))
        holder: Any = answer
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = copy.deepcopy(data.draw(ODD))
    text = json.dumps(answer).encode()
    for api in APIS:
        check(api.read_body(text))
        for hide in (False, True):
            reader = api.stream_reader(hide_usage=hide)
            feed(reader, [event(chat_chunk("first")), b"data: " + text + b"\n\n", b"data: " + text + b"\n\n"])
            check(reader.report)
        body = api.body_reader()
        feed(body, cut(text, 13))
        check(body.report)


@given(st.data())
def test_a_damaged_byte_is_survived(data: st.DataObject) -> None:
    text = bytearray(json.dumps(data.draw(st.sampled_from(ANSWERS))).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    for api in APIS:
        check(api.read_body(bytes(text)))
        reader = api.stream_reader(hide_usage=True)
        stream = b"event: x\ndata: " + bytes(text) + b"\n\n"
        feed(reader, [stream, stream])
        check(reader.report)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: str(a.get("type") or a.get("object")))
def test_each_answer_belongs_to_at_most_one_api(answer: dict[str, Any]) -> None:
    assert sum(api.recognises(answer) for api in APIS) == 1
