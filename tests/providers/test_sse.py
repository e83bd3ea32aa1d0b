"""Framing of server-sent events, whatever the split and the line ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.sse import Block, Framer, SseReader
from askii_middleware.usage import Report

from .support import cut, cut_at, event, feed


def blocks(chunks: list[bytes], limit: int = 1 << 20) -> list[Block]:
    framer = Framer(limit)
    found = [block for chunk in chunks for block in framer.push(chunk)]
    return [*found, *framer.finish()]


def data(chunks: list[bytes]) -> list[bytes]:
    return [block.data for block in blocks(chunks) if block.data is not None]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_kind_of_line_end_ends_events(end: bytes) -> None:
    stream = end.join([b"event: a", b"data: 1", b"", b": comment", b"", b"data:2", b"data: 3", b"id: x", b"", b""])
    for size in (1, 2, 3, 1000):
        assert data(list(cut(stream, size))) == [b"1", b"2\n3"]


def test_line_ends_may_be_mixed_within_one_event() -> None:
    assert data([b"data: 1\r\ndata: 2\n\rdata: 3\r\r\ndata: 4\r\n\ndata: 5\n\r\n"]) == [b"1\n2", b"3", b"4", b"5"]


def test_an_event_without_its_blank_line_counts_at_the_end_of_the_stream() -> None:
    assert data([b"data: 1\n\ndata: 2"]) == [b"1", b"2"]
    assert data([b"data: 1\n\ndata: 2\n"]) == [b"1", b"2"]
    assert data([b"data: 1\r\n\r\ndata: 2\r"]) == [b"1", b"2"]


def test_a_byte_order_mark_before_the_first_event_is_not_part_of_it() -> None:
    assert data([b"\xef\xbb\xbfdata: 1\n\n"]) == [b"1"]
    assert data(list(cut(b"\xef\xbb\xbfdata: 1\n\n", 1))) == [b"1"]


def test_only_one_space_after_the_colon_is_dropped_and_other_fields_are_not_data() -> None:
    assert data([b"data:  1 \n\ndatabase: 2\n\ndata\n\n"]) == [b" 1 "]


def test_the_end_of_a_crlf_stays_with_its_event_when_the_split_is_between_cr_and_lf() -> None:
    assert blocks([b"data: 1\r\n\r", b"\ndata: 2\r\n\r\n"]) == [
        Block(b"data: 1\r\n\r\n", b"1"),
        Block(b"data: 2\r\n\r\n", b"2"),
    ]


def test_an_event_that_is_too_long_passes_in_parts_and_the_next_one_is_read_again() -> None:
    framer = Framer(16)
    chunks = [b"data: 1\n\nda", b"ta: 0123456789", b"0123\nid: 1\n", b"more", b"\n\ndata: 2\n\n"]
    pushed = [framer.push(chunk) for chunk in chunks]
    assert pushed[2] == [Block(b"data: 01234567890123\nid: 1\n", None)]
    assert b"".join(block.raw for found in pushed for block in found) == b"".join(chunks)
    assert [block.data for found in pushed for block in found if block.data is not None] == [b"1", b"2"]
    assert framer.idle


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 5, 17, 64])
def test_no_more_than_the_limit_is_held_back_of_a_long_event(end: bytes, size: int) -> None:
    stream = b"data: 1" + end * 2 + b"data: " + b"x" * 500 + end + b"data: y" + end * 2 + b"data: 2" + end * 2
    framer = Framer(64)
    held = 0
    found = []
    for chunk in cut(stream, size):
        new = framer.push(chunk)
        held += len(chunk) - sum(len(block.raw) for block in new)
        assert 0 <= held <= 64
        found += new
    found += framer.finish()
    assert b"".join(block.raw for block in found) == stream
    assert [block.data for block in found if block.data is not None] == [b"1", b"2"]


LINES = st.sampled_from([b"data: 1", b"data:2", b"data: " + "ü€😀".encode(), b": c", b"event: e", b"id", b"", b"data"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.lists(st.integers(0, 200), max_size=6))
def test_the_split_never_changes_the_blocks_and_no_byte_is_lost(
    lines: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    stream = b"".join(line + end for line, end in lines)
    whole = blocks([stream])
    pieces = blocks(cut_at(stream, places))
    assert b"".join(block.raw for block in pieces) == stream
    assert [b.data for b in pieces if b.data is not None] == [b.data for b in whole if b.data is not None]


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4), st.integers(1, 40))
def test_any_bytes_pass_unchanged_under_any_limit(stream: bytes, places: list[int], limit: int) -> None:
    assert b"".join(block.raw for block in blocks(cut_at(stream, places), limit)) == stream


def test_a_reader_returns_the_very_object_it_was_fed() -> None:
    seen = []
    reader = SseReader(lambda _, answer: seen.append(answer))
    for chunk in (b'data: {"a":', b"1}\n\n", b"data: [DONE]\n\n", b"data: no json\n\n", b"data: [1]\n\n"):
        assert reader.feed(chunk) is chunk
    assert seen == [{"a": 1}]
    assert reader.report == Report(finished=True)


def test_a_reader_keeps_nothing_of_a_long_stream() -> None:
    reader = SseReader(lambda _, __: None)
    feed(reader, (b"data: {}\n" for _ in range(300_000)))  # one event that never ends
    framer = reader._framer
    assert (framer._line, framer._raw, framer._data) == (bytearray(), [], [])


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_the_size_of_an_event_alone_decides_whether_it_is_read(size: int) -> None:
    short, long = event("a" * 300), event("b" * 500)
    found = blocks(list(cut(short + long + short, size)), 400)
    assert b"".join(block.raw for block in found) == short + long + short
    assert [block.data for block in found if block.data is not None] == [b"a" * 300] * 2
