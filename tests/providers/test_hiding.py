"""A client that did not ask for usage sees its stream as if nobody had."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.openai_stream import HidingReader

from .support import USAGE, api, chat_chunk, cut, cut_at, event, feed

DONE = "[DONE]"
DELTAS = [
    {"role": "assistant", "content": "", "refusal": None},
    {"content": 'Hé said "}{" \n, usage: null'},
    {"content": '","usage":null'},
    {"reasoning_content": "thinking 😀"},
    {
        "tool_calls": [
            {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"usage":null}'}}
        ]
    },
    {"content": None},
]


def dump(value: object, *, spaced: bool) -> str:
    return json.dumps(value, ensure_ascii=False, separators=None if spaced else (",", ":"))


def with_null(chunk: dict[str, Any], where: str) -> dict[str, Any]:
    if where == "first":
        return {"usage": None, **chunk}
    if where == "last":
        return {**chunk, "usage": None}
    return {
        key: value
        for name, old in chunk.items()
        for key, value in ((name, old), ("usage", None))[: 1 + (name == "model")]
    }


def streams(where: str, *, spaced: bool, end: bytes, usage_at: int = -1) -> tuple[bytes, bytes]:
    """The same answer recorded without `include_usage`, and with it."""
    chunks = [chat_chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}]) for delta in DELTAS]
    chunks.append(chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    chunks.insert(0, chat_chunk(model="", id="", choices=[], prompt_filter_results=[{"usage": None}]))  # Azure's first
    plain = [event(dump(chunk, spaced=spaced), end=end) for chunk in chunks]
    asked = [event(dump(with_null(chunk, where), spaced=spaced), end=end) for chunk in chunks]
    used = dump(chat_chunk(choices=[], usage=USAGE), spaced=spaced)
    asked.insert(len(asked) if usage_at < 0 else usage_at, event(used, end=end))
    comment = b": keep-alive" + end * 2
    done = event(DONE, end=end)
    return b"".join([comment, *plain, done]), b"".join([comment, *asked, done])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_hidden_stream_equals_the_one_recorded_without_asking(where: str, spaced: bool, end: bytes) -> None:
    plain, asked = streams(where, spaced=spaced, end=end)
    for size in (1, 7, 64, 1000, len(asked)):
        reader = HidingReader()
        assert feed(reader, cut(asked, size)) == plain
        assert reader.report.usage is not None
        assert reader.report.usage.input_tokens == 10
        assert reader.report.finished


def test_chunks_that_are_whole_events_are_hidden_without_waiting() -> None:
    plain, asked = streams("last", spaced=False, end=b"\n")
    reader = HidingReader()
    pieces = [piece + b"\n\n" for piece in asked.split(b"\n\n")[:-1]]
    outs = [reader.feed(piece) for piece in pieces]
    assert b"".join(outs) == plain
    assert reader.finish() == b""
    assert outs[-2] == b""  # the usage chunk
    assert outs[0] is pieces[0]  # a comment: nothing to hide, so the same object


@given(
    st.sampled_from(["first", "middle", "last"]),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.integers(0, 9),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_no_split_changes_what_the_client_sees(
    where: str, spaced: bool, end: bytes, usage_at: int, places: list[int]
) -> None:
    plain, asked = streams(where, spaced=spaced, end=end, usage_at=usage_at)
    reader = HidingReader()
    assert feed(reader, cut_at(asked, places)) == plain
    whole = HidingReader()
    feed(whole, [asked])
    assert reader.report == whole.report


def test_usage_beside_choices_is_sent_to_everybody_and_stays() -> None:
    chunk = chat_chunk("x", usage=USAGE, choices=[{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}])
    reader = HidingReader()
    assert feed(reader, [event(chunk), event(DONE)]) == event(chunk) + event(DONE)
    assert reader.report.usage is not None


def test_only_the_usage_of_the_top_level_is_taken_out() -> None:
    nested = {"choices": [{"index": 0, "delta": {"content": "x", "usage": None}, "usage": None}], "model": "m"}
    inner = {"choices": [{"index": 0, "delta": {"content": "x"}}], "model": "m", "x": {"a": 1, "usage": None}}
    for chunk in (nested, inner):
        for asked in ({**chunk, "usage": None}, {"usage": None, **chunk}, chunk):
            reader = HidingReader()
            reader.feed(event(chat_chunk("first")))
            assert reader.feed(event(asked)) == event(chunk)


def test_x_groq_is_not_ours_to_hide() -> None:
    chunk = chat_chunk(x_groq={"id": "r", "usage": USAGE})
    reader = HidingReader()
    assert reader.feed(event(chunk)) == event(chunk)
    assert reader.report.usage is not None


def test_duplicate_usage_members_both_go_where_the_last_is_null() -> None:
    raw = '{"usage":null,"model":"m","choices":[{"delta":{"content":"x"}}],"usage":null}'
    out = feed(HidingReader(), [event(raw)])
    assert out == event('{"model":"m","choices":[{"delta":{"content":"x"}}]}')


def test_data_in_several_lines_goes_out_in_as_many() -> None:
    asked = b'event: x\ndata: {"choices": [],\ndata:  "usage": null,\ndata: "model": "m"}\n\n'
    assert feed(HidingReader(), [asked]) == b'data: {"choices": [],\ndata: "model": "m"}\nevent: x\n\n'


def test_whatever_is_not_a_chunk_passes_untouched() -> None:
    odd = b'data: {"usage"\n\ndata: [1]\n\ndata: "usage"\n\nevent: usage\n\n: "usage":null\n\nid: 7\ndata: {}\n\n'
    for size in (1, 5, 1000):
        assert feed(HidingReader(), cut(odd, size)) == odd


def test_a_stream_that_breaks_off_still_gives_the_client_its_last_bytes() -> None:
    head, tail = event(chat_chunk("a")), b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":"b'
    reader = HidingReader()
    assert reader.feed(head + tail) == head
    assert reader.finish() == tail
    assert not reader.report.finished


def test_an_endless_event_is_passed_on_after_a_mebibyte() -> None:
    reader = HidingReader()
    start = b'data: {"choices":[],"usage":{"x":"'
    out = len(reader.feed(start))
    held = len(start)
    for _ in range(40):
        sent = reader.feed(b"y" * 65_536)
        held += 65_536 - len(sent)
        out += len(sent)
        assert held <= 1_048_576
    reader.feed(b'"}}\n\n')
    assert reader.feed(event(chat_chunk("a", usage=None))) == event(chat_chunk("a"))
    assert out == len(start) + 40 * 65_536


def test_nothing_is_hidden_where_usage_comes_by_itself() -> None:
    for name in ("openai.responses", "openai.embeddings", "anthropic.messages"):
        assert not api(name).can_inject_usage
        chunk = event({"type": "response.completed", "choices": [], "usage": USAGE, "response": {"usage": USAGE}})
        assert api(name).stream_reader(hide_usage=True).feed(chunk) is chunk
