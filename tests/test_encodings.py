"""Encoded answers, read along in bounded pieces."""

from __future__ import annotations

import gzip
import logging
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import encodings
from askii_middleware.encodings import PIECE_BYTES, AnswerDecoder, readable_accept_encoding
from askii_middleware.errors import MissingExtraError

from .support.codings import br_bomb, zstd, zstd_bomb, zstd_wide


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"deflate without its header": raw_deflate,
    b"br": brotli.compress,
    b"zstd": zstd.compress,
}


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    encodings._tell_unread.cache_clear()
    yield
    encodings._readable.cache_clear()


@pytest.fixture
def _no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `compression` is not installed."""
    monkeypatch.setattr(encodings, "_brotli", lambda: None)
    monkeypatch.setattr(encodings, "_zstd", lambda: None)
    monkeypatch.setattr(encodings, "_LIBRARIES", {b"br": lambda: None, b"zstd": lambda: None})
    encodings._readable.cache_clear()


def unpack(encoding: bytes, packed: bytes) -> bytes:
    return b"".join(AnswerDecoder(encoding).feed(packed))


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
@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_pieces_are_bounded_and_nothing_stays_inside(kind: bytes, size: int) -> None:
    data = b"ab" * (size // 2) + b"c" * (size % 2)
    pieces = list(AnswerDecoder(kind.split()[0]).feed(ENCODERS[kind](data)))
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert b"".join(pieces) == data


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"zstd"])
def test_a_bomb_ends_the_reading(encoding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MAX_DECODED_BYTES", 4 * PIECE_BYTES)
    decoder = AnswerDecoder(encoding)
    bomb = BOMBS[encoding]()
    assert 3 * PIECE_BYTES <= sum(len(piece) for piece in decoder.feed(bomb)) <= 4 * PIECE_BYTES
    assert list(decoder.feed(bomb)) == []


BOMBS: dict[bytes, Callable[[], bytes]] = {
    b"gzip": lambda: gzip.compress(b"\0" * (16 << 20)),
    b"deflate": lambda: zlib.compress(b"\0" * (16 << 20)),
    b"br": br_bomb,
    b"zstd": zstd_bomb,
    b"gzip, gzip": lambda: gzip.compress(gzip.compress(b"\0" * (64 << 20))),
    b"zstd, br": lambda: brotli.compress(zstd_bomb()),
}


@pytest.mark.parametrize("encoding", sorted(BOMBS))
def test_a_bomb_never_unpacks_more_at_a_time_than_a_few_pieces(encoding: bytes) -> None:
    decoder = AnswerDecoder(encoding)
    bomb = BOMBS[encoding]()
    assert len(bomb) < 70_000
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in decoder.feed(bomb))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total >= 16 << 20 or total == 0
    # The layers' pieces, a copy of what a layer has not taken yet, and the libraries' own blocks.
    assert peak < 8 * PIECE_BYTES


def test_a_decoder_of_its_own_limit_reads_no_further() -> None:
    decoder = AnswerDecoder(b"gzip", limit=10)
    assert list(decoder.feed(gzip.compress(b"x" * 11))) == []
    assert b"".join(AnswerDecoder(b"gzip", limit=10).feed(gzip.compress(b"x" * 10))) == b"x" * 10


def test_a_zstd_frame_that_wants_a_larger_window_than_8_mb_is_not_read() -> None:
    assert unpack(b"zstd", zstd_wide()) == b""


# Members and layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"zstd"])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_members_that_follow_each_other_are_one_answer(encoding: bytes, step: int) -> None:
    packed = b"".join(ENCODERS[encoding](text) for text in (b"one ", b"", b"two ", b"three"))
    decoder = AnswerDecoder(encoding)
    out = [piece for at in range(0, len(packed), step) for piece in decoder.feed(packed[at : at + step])]
    assert b"".join(out) == b"one two three"


def test_a_frame_of_zstd_that_readers_skip_is_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    assert unpack(b"zstd", skipped + zstd.compress(b"hello")) == b"hello"


@pytest.mark.parametrize("encoding", [b"gzip", b"zstd"])
def test_thousands_of_empty_members_come_to_an_end(encoding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MAX_DECODED_BYTES", 100 * encodings.MEMBER_BYTES)
    empty, decoder = ENCODERS[encoding](b""), AnswerDecoder(encoding)
    assert list(decoder.feed(empty * 90)) == []
    assert b"".join(decoder.feed(ENCODERS[encoding](b"a"))) == b"a"
    assert list(decoder.feed(empty * 20)) == []
    assert list(decoder.feed(ENCODERS[encoding](b"a"))) == []


@pytest.mark.parametrize("outer", [b"gzip", b"br", b"zstd", b"deflate"])
@pytest.mark.parametrize("inner", [b"gzip", b"br", b"zstd", b"deflate"])
@pytest.mark.parametrize("step", [1, 100_000])
def test_two_codings_are_undone_in_the_reverse_order(inner: bytes, outer: bytes, step: int) -> None:
    data = b"the ledger holds " * 20
    packed = ENCODERS[outer](ENCODERS[inner](data))
    decoder = AnswerDecoder(b" %s,identity, %s" % (inner.upper(), outer))
    assert b"".join(p for at in range(0, len(packed), step) for p in decoder.feed(packed[at : at + step])) == data


def test_identity_is_no_encoding() -> None:
    assert unpack(b"identity", b"abc") == b"abc"
    assert unpack(b" Identity , identity", b"abc") == b"abc"


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


@pytest.mark.parametrize("encoding", [b"gzip, gzip, gzip", b"nonsense", b"gzip, nonsense", b"compress", b"\xff"])
def test_of_an_unknown_encoding_nothing_is_read_and_that_is_said_once(
    encoding: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert list(AnswerDecoder(encoding).feed(gzip.compress(b"hello"))) == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be read, so their cost is an estimate: let the application send gzip" in record.message


@pytest.mark.usefixtures("_no_extra")
@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, br"])
def test_without_the_extra_the_log_names_it(encoding: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert list(AnswerDecoder(encoding).feed(brotli.compress(b"hello"))) == []
    (record,) = caplog.records
    assert "install askii-middleware[compression]" in record.message
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[compression\]"):
        encodings.unpacker(encoding.rpartition(b" ")[2])


def test_a_brotli_that_cannot_bound_what_it_gives_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        class Decompressor:
            pass

    encodings._brotli.cache_clear()
    monkeypatch.setattr(encodings, "import_module", lambda _name: Older)
    try:
        assert not encodings.is_readable(b"br")
    finally:
        encodings._brotli.cache_clear()


@given(
    st.lists(st.binary(max_size=50), max_size=5), st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"gzip, zstd"])
)
def test_no_bytes_raise(chunks: list[bytes], encoding: bytes) -> None:
    decoder = AnswerDecoder(encoding)
    for chunk in chunks:
        list(decoder.feed(chunk))


# What the application is asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [b"gzip, deflate, br, zstd", b"gzip;q=1.0, *;q=0", b"identity", b"", b"br;q=0.5", b"identity;q=0, br"]
)
def test_what_can_be_read_here_stays_as_the_client_asked(value: bytes) -> None:
    assert readable_accept_encoding(value) is value


@pytest.mark.usefixtures("_no_extra")
@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (b"gzip, deflate, br, zstd", b"gzip, deflate"),
        (b"gzip, deflate", b"gzip, deflate"),
        (b"br", b"identity"),
        (b"BR;q=1.0, gzip;q=0.8, *;q=0.1", b"gzip;q=0.8"),
        (b"br, *", b"gzip"),
        (b"*;q=0.5", b"gzip;q=0.5"),
        (b"br;q=0, gzip", b"br;q=0, gzip"),
        (b"zstd;q=1, gzip; q=0.5 , br;q=0", b"gzip; q=0.5 , br;q=0"),
        (b"br, identity;q=0.2", b"identity;q=0.2"),
        # Nothing else would do for this client, so it gets what it asked for.
        (b"br, identity;q=0", b"br, identity;q=0"),
        (b"zstd, *;q=0", b"zstd, *;q=0"),
        (b"br, " + b"x" * 300, b"identity"),
    ],
)
def test_what_cannot_be_read_here_is_not_asked_for(value: bytes, asked: bytes) -> None:
    assert readable_accept_encoding(value) == asked
    assert readable_accept_encoding(asked) == asked


@given(st.binary(max_size=60))
def test_no_accept_encoding_raises(value: bytes) -> None:
    assert isinstance(readable_accept_encoding(value), bytes)
