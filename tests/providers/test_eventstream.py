"""AWS event streams: read at any split, never trusted with a wrong CRC, and never touched on their way."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from struct import pack
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import eventstream
from askii_middleware.providers.eventstream import EventStreamReader, FrameReader, encode_frame
from askii_middleware.usage import Report

from .support import cut, cut_at

HEADERS = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}


@pytest.fixture(autouse=True)
def _fresh_decoder() -> Iterator[None]:
    eventstream._decoder.cache_clear()
    yield
    eventstream._decoder.cache_clear()


def built(payload: bytes, headers: Mapping[str, str] = HEADERS) -> bytes:
    """A frame put together by hand, apart from the encoder under test."""
    head = b"".join(
        pack(">B", len(name.encode())) + name.encode() + pack(">BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = pack(">II", 16 + len(head) + len(payload), len(head))
    body = prelude + pack(">I", crc32(prelude)) + head + payload
    return body + pack(">I", crc32(body))


def event(kind: str, payload: Any) -> bytes:
    return built(json.dumps(payload).encode(), {**HEADERS, ":event-type": kind})


def payloads(chunks: list[bytes], limit: int = 10_000) -> list[bytes]:
    reader = FrameReader(limit)
    return [frame.payload for chunk in chunks for frame in reader.push(chunk)]


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(0, 500), max_size=20))
def test_any_split_gives_the_same_frames(contents: list[bytes], places: list[int]) -> None:
    stream = b"".join(built(content) for content in contents)
    assert payloads(cut_at(stream, places)) == contents


@given(st.binary(max_size=60), st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4))
def test_what_we_encode_is_what_a_hand_made_frame_is(payload: bytes, headers: dict[str, str]) -> None:
    assert encode_frame(headers, payload) == built(payload, headers)


def test_a_header_that_does_not_fit_a_frame_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="too long"):
        encode_frame({":error-message": "x" * 40_000}, b"")


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from([1, 5, 1000]))
def test_a_damaged_byte_ends_the_reading_with_the_frames_before_it(place: int, flip: int, size: int) -> None:
    frames = [built(b"one"), built(b"two"), built(b"three")]
    stream = bytearray(b"".join(frames))
    place %= len(stream)
    stream[place] ^= flip
    whole = 0 if place < len(frames[0]) else 1 if place < len(frames[0] + frames[1]) else 2
    assert payloads(list(cut(bytes(stream), size)), 1 << 33) == [b"one", b"two"][:whole]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
def test_no_bytes_raise_or_are_changed(stream: bytes, places: list[int]) -> None:
    reports = []
    for chunks in ([stream], cut_at(stream, places)):
        reader = EventStreamReader(lambda report, answer: None)
        for chunk in chunks:
            assert reader.feed(chunk) is chunk
        assert reader.finish() == b""
        reports.append(reader.report)
    assert reports[0] == reports[1] == Report()


@pytest.mark.parametrize("size", [1, 64, 5000])
def test_a_frame_that_is_too_long_passes_unread_and_the_next_one_is_read(size: int) -> None:
    stream = built(b"a") + built(b"x" * 5000) + built(b"b")
    assert payloads(list(cut(stream, size)), 1000) == [b"a", b"b"]


def test_a_frame_with_too_many_headers_passes_unread() -> None:
    odd = built(b"x", {f"h{n}": "v" * 100 for n in range(100)})
    assert payloads([odd + built(b"b")], 1 << 20) == [b"b"]


def test_a_length_that_is_not_vouched_for_skips_nothing() -> None:
    reader = FrameReader(1000)
    lie = pack(">III", 1 << 31, 0, 12345)
    assert reader.push(lie + built(b"a")) == []
    assert reader.broken


@pytest.mark.parametrize("lengths", [(0, 0), (15, 0), (20, 100)])
def test_a_frame_shorter_than_its_parts_ends_the_reading(lengths: tuple[int, int]) -> None:
    reader = FrameReader(1000)
    prelude = pack(">II", *lengths)
    reader.push(prelude + pack(">I", crc32(prelude)) + bytes(100))
    assert reader.broken


def test_memory_stays_bounded_in_a_frame_that_never_ends() -> None:
    reader = FrameReader(1000)
    prelude = pack(">II", 0xFFFF_FFFF, 0)
    reader.push(prelude + pack(">I", crc32(prelude)))
    for _ in range(1000):
        reader.push(b"x" * 1000)
        assert len(reader._held) <= 1000
    assert not reader.broken


def test_events_come_as_objects_of_one_member_and_errors_are_noted() -> None:
    seen: list[Mapping[str, Any]] = []
    reader = EventStreamReader(lambda report, answer: seen.append(answer))
    reader.feed(event("metadata", {"usage": {}}) + event("x", [1]) + built(b"no json"))
    assert seen == [{"metadata": {"usage": {}}}]
    assert not reader.report.failed
    reader.feed(built(b'{"message":"m"}', {":message-type": "exception", ":exception-type": "throttlingException"}))
    assert reader.report.failed
    assert len(seen) == 1


def test_without_botocore_the_stream_passes_unread_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.eventstream", None)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            reader = EventStreamReader(lambda report, answer: pytest.fail("read"))
            chunk = event("metadata", {})
            assert reader.feed(chunk) is chunk
    (record,) = caplog.records
    assert "askii-middleware[bedrock]" in record.getMessage()
