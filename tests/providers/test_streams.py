"""Streams say the same whether an event is read the quick way or the general one, whole or in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.usage import Report, TokenUsage

from .support import USAGE, api, chat_chunk, cut, cut_at, event, feed

MODEL = "gpt-4o-2024-08-06"
TEXT = st.text(max_size=8) | st.sampled_from(["", "\n", '"', "\\", "é", "😀", '","usage":{"prompt_tokens":1}'])
MAYBE = st.none() | TEXT
FUNCTION = st.fixed_dictionaries({"name": TEXT, "arguments": MAYBE})
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": MAYBE,
        "reasoning_content": MAYBE,
        "reasoning": MAYBE,
        "refusal": MAYBE,
        "tool_calls": st.none()
        | st.lists(st.fixed_dictionaries({"index": st.just(0), "function": FUNCTION}), max_size=2),
        "function_call": st.none() | FUNCTION,
    },
)
CHOICE = st.fixed_dictionaries(
    {"index": st.just(0), "delta": DELTA}, optional={"finish_reason": st.sampled_from([None, "", "stop"])}
)
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, max_size=2)},
    optional={"usage": st.none() | st.just(USAGE), "model": st.just(MODEL), "error": st.none(), "obfuscation": TEXT},
)
CHAT = st.lists(CHUNK, max_size=6).map(lambda chunks: [event(chunk) for chunk in [chat_chunk("x"), *chunks]])
DELTAS = st.sampled_from(["text", "thinking", "partial_json", "signature"])
MESSAGES = st.lists(st.tuples(DELTAS, TEXT), max_size=6).map(
    lambda pairs: [
        event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}},
            name="content_block_delta",
        )
        for kind, text in pairs
    ]
)
KINDS = st.sampled_from(
    ["output_text", "reasoning_summary_text", "function_call_arguments", "audio", "shell_call_command"]
)
RESPONSES = st.lists(st.tuples(KINDS, TEXT), max_size=6).map(
    lambda pairs: [
        event({"type": f"response.{kind}.delta", "sequence_number": 1, "delta": text}, name=f"response.{kind}.delta")
        for kind, text in pairs
    ]
)


def data_of(raw: bytes) -> dict[str, Any]:
    decoded = json.loads(raw.partition(b"data: ")[2])
    assert isinstance(decoded, dict)
    return decoded


@pytest.mark.parametrize(
    ("name", "streams"), [("openai.chat", CHAT), ("anthropic.messages", MESSAGES), ("openai.responses", RESPONSES)]
)
@given(data=st.data())
def test_every_way_of_feeding_gives_the_same_report(
    name: str, streams: st.SearchStrategy[list[bytes]], data: st.DataObject
) -> None:
    events = data.draw(streams)
    places = data.draw(st.lists(st.integers(0, 3000), max_size=6))
    stream = b"".join(events)
    reports = []
    crlf = stream.replace(b"\n", b"\r\n")
    for chunks in (events, [stream], cut_at(stream, places), list(cut(stream, 1)), [crlf], cut_at(crlf, places)):
        reader = api(name).stream_reader(hide_usage=False)
        assert feed(reader, chunks) == b"".join(chunks)
        reports.append(reader.report)
    reference = Report()
    for raw in events:
        api(name).absorb(reference, data_of(raw))
    assert reports == [reference] * len(reports)


@pytest.mark.parametrize(
    ("delta", "size", "pieces"),
    [
        ({"content": "héllo"}, 6, 1),
        ({"content": '\n\t"\\'}, 4, 1),
        ({"content": "", "reasoning": "ab"}, 2, 1),
        ({"content": None, "reasoning_content": "abc"}, 3, 1),
        ({"refusal": "no"}, 2, 1),
        (
            {
                "tool_calls": [
                    {"index": 0, "function": {"name": "f", "arguments": '{"a'}},
                    {"index": 1, "function": {"arguments": "b"}},
                ]
            },
            4,
            2,
        ),
        ({"function_call": {"arguments": "{}"}}, 2, 1),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            3,
            1,
        ),
        ({"content": ""}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_every_kind_of_generated_text_is_counted(delta: dict[str, Any], size: int, pieces: int) -> None:
    reader = api("openai.chat").stream_reader(hide_usage=False)
    reader.feed(event(chat_chunk()))
    for _ in range(3):
        reader.feed(event(chat_chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}])))
    assert (reader.report.visible_bytes, reader.report.visible_deltas) == (3 * size, 3 * pieces)


def test_text_of_completions_is_counted() -> None:
    reader = api("openai.completions").stream_reader(hide_usage=False)
    for text in ("ab", "é", ""):
        reader.feed(
            event(
                {
                    "id": "cmpl-1",
                    "object": "text_completion",
                    "model": "m",
                    "choices": [{"index": 0, "text": text, "finish_reason": None}],
                }
            )
        )
    assert (reader.report.visible_bytes, reader.report.visible_deltas) == (4, 2)


def test_a_stream_ends_with_done_or_with_its_last_finish_reason() -> None:
    stop = event(chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    reader = api("openai.chat").stream_reader(hide_usage=False)
    reader.feed(stop)
    assert not reader.report.finished  # another choice may still be running
    reader.feed(event("[DONE]"))
    assert reader.report.finished
    without_done = api("openai.chat").stream_reader(hide_usage=False)
    feed(without_done, [stop])
    assert without_done.report.finished
    broken = api("openai.chat").stream_reader(hide_usage=False)
    feed(broken, [event(chat_chunk("a"))])
    assert not broken.report.finished


def test_the_models_name_is_looked_for_until_it_comes_but_not_for_ever() -> None:
    reader = api("openai.chat").stream_reader(hide_usage=False)
    reader.feed(event(chat_chunk(id="", model="", choices=[], prompt_filter_results=[])))
    reader.feed(event(chat_chunk("a")))
    assert (reader.report.model, reader.report.provider_request_id) == ("gpt-4o-2024-08-06", "chatcmpl-1")
    nameless = api("openai.chat").stream_reader(hide_usage=False)
    for _ in range(20):
        nameless.feed(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    assert nameless.report == Report(visible_bytes=20, visible_deltas=20)


def test_cumulative_usage_in_every_chunk_counts_once() -> None:
    reader = api("openai.chat").stream_reader(hide_usage=False)
    for tokens in range(1, 5):
        reader.feed(event(chat_chunk("a", usage={**USAGE, "completion_tokens": tokens})))
    assert reader.report.usage == TokenUsage(input=10, output=4)
    assert reader.report.visible_deltas == 4


def test_an_error_chunk_ends_in_failure_and_keeps_its_usage() -> None:
    reader = api("openai.chat").stream_reader(hide_usage=False)
    reader.feed(event(chat_chunk("a")))
    reader.feed(event(chat_chunk("", error={"code": 400, "message": "no"}, usage=USAGE)))
    assert reader.report.failed
    assert reader.report.usage == TokenUsage(input=10, output=4)


def test_anthropic_streams_may_be_padded_and_pinged() -> None:
    start = {
        "id": "msg_1",
        "model": "claude",
        "usage": {
            "input_tokens": 3,
            "output_tokens": 1,
            "cache_creation": {"ephemeral_1h_input_tokens": 2},
            "cache_creation_input_tokens": 5,
        },
    }
    stream = (
        event(json.dumps({"type": "message_start", "message": start}) + "      ", name="message_start")
        + event('{"type": "ping"}', name="ping")
        + event(
            '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"so"}}  ',
            name="content_block_start",
        )
        + event(
            '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hé"}}     ',
            name="content_block_delta",
        )
        + event(
            '{"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":9}}', name="message_delta"
        )
    )
    for size in (1, 10, 10_000):
        reader = api("anthropic.messages").stream_reader(hide_usage=False)
        feed(reader, cut(stream, size))
        assert reader.report == Report(
            usage=TokenUsage(input=3, cache_write=3, cache_write_1h=2, output=9),
            model="claude",
            provider_request_id="msg_1",
            visible_bytes=5,
            visible_deltas=2,
            open_block=0,
        )
        reader.feed(event('{"type":"message_stop"}', name="message_stop"))
        assert reader.report.finished


def test_a_last_event_without_its_blank_line_is_read() -> None:
    reader = api("anthropic.messages").stream_reader(hide_usage=False)
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": 3, "output_tokens": 9},
    }
    feed(reader, [event(delta).rstrip(b"\n")])
    assert reader.report == Report(usage=TokenUsage(input=3, output=9), finished=True)


@pytest.mark.parametrize("name", ["anthropic.messages", "openai.responses"])
def test_an_error_event_is_a_failure(name: str) -> None:
    reader = api(name).stream_reader(hide_usage=False)
    feed(reader, [event({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, name="error")])
    assert reader.report == Report(failed=True)


def test_a_failed_response_keeps_its_usage() -> None:
    reader = api("openai.responses").stream_reader(hide_usage=False)
    failed = {
        "status": "failed",
        "error": {"code": "server_error"},
        "model": "m",
        "usage": {"input_tokens": 5, "output_tokens": 1},
    }
    feed(reader, [event({"type": "response.failed", "response": failed}, name="response.failed")])
    assert reader.report == Report(usage=TokenUsage(input=5, output=1), model="m", finished=True, failed=True)


def test_spoken_audio_is_not_counted_as_text_but_its_transcript_is() -> None:
    reader = api("openai.responses").stream_reader(hide_usage=False)
    for kind in ("response.audio.delta", "response.audio.transcript.delta"):
        reader.feed(event({"type": kind, "delta": "AAAA"}, name=kind))
    assert (reader.report.visible_bytes, reader.report.visible_deltas) == (4, 1)


def test_reasoning_details_and_arguments_that_are_objects_are_output_that_passed() -> None:
    details = [{"type": "reasoning.text", "text": "abc"}, {"type": "reasoning.summary", "summary": "de"}]
    call = {"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}
    for delta, size in (
        ({"reasoning_details": details}, 5),
        ({"reasoning": "abcde", "reasoning_details": details}, 5),
        ({"tool_calls": [call]}, len('{"a":1}')),
    ):
        reader = api("openai.chat").stream_reader(hide_usage=False)
        first, chunk = chat_chunk("x"), chat_chunk()
        chunk["choices"][0]["delta"] = delta
        feed(reader, [event(first), event(chunk)])
        assert reader.report.visible_bytes == 1 + size
