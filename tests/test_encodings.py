"""Encoded answers, read along in bounded pieces."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import encodings
from askii_middleware.encodings import PIECE_BYTES, AnswerDecoder


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"deflate without its header": raw_deflate,
}


@given(
    st.binary(max_size=300).map(lambda data: data * 50), st.sampled_from(sorted(ENCODERS)), st.lists(st.integers(1, 40))
)
def test_any_split_reads_the_same(data: bytes, kind: bytes, steps: list[int]) -> None:
    packed = ENCODERS[kind](data)
    decoder = AnswerDecoder(kind.split()[0])
    out = b""
    for step in (*steps, len(packed)):
        out += b"".join(decoder.feed(packed[:step]))
        packed = packed[step:]
    assert out == data


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 1_000_000])
def test_pieces_are_bounded_and_nothing_stays_inside(size: int) -> None:
    data = b"ab" * (size // 2) + b"c" * (size % 2)
    pieces = list(AnswerDecoder(b"gzip").feed(gzip.compress(data)))
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert b"".join(pieces) == data


def test_a_bomb_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MAX_DECODED_BYTES", 4 * PIECE_BYTES)
    decoder = AnswerDecoder(b"gzip")
    bomb = gzip.compress(b"\0" * (16 << 20))
    assert sum(len(piece) for piece in decoder.feed(bomb)) <= 5 * PIECE_BYTES
    assert list(decoder.feed(bomb)) == []


def test_bytes_that_do_not_decode_end_the_reading() -> None:
    packed = gzip.compress(b"hello" * 1000)
    decoder = AnswerDecoder(b"gzip")
    assert b"hello".startswith(b"".join(decoder.feed(packed[:12]))[:5])
    assert list(decoder.feed(b"\xff" * 100)) == []
    assert list(decoder.feed(packed)) == []


def test_what_follows_the_end_is_not_read() -> None:
    decoder = AnswerDecoder(b"gzip")
    assert b"".join(decoder.feed(gzip.compress(b"a") + b"garbage")) == b"a"
    for _ in range(3):
        assert list(decoder.feed(b"x" * 100_000)) == []


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, br", b"nonsense", b"\xff"])
def test_of_an_unknown_encoding_nothing_is_read(encoding: bytes) -> None:
    assert list(AnswerDecoder(encoding).feed(gzip.compress(b"hello"))) == []


@given(st.lists(st.binary(max_size=50), max_size=5), st.sampled_from([b"gzip", b"deflate", b"br"]))
def test_no_bytes_raise(chunks: list[bytes], encoding: bytes) -> None:
    decoder = AnswerDecoder(encoding)
    for chunk in chunks:
        list(decoder.feed(chunk))
