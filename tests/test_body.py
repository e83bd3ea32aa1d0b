"""Request bodies: bounded, decoded, and parsed as the most lenient of applications would."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import encodings
from askii_middleware.body import (
    BodyTooLargeError,
    ClientLeftError,
    UnreadableBodyError,
    decoded,
    form_names,
    parse_body,
    read_body,
)

from .support.codings import br_bomb, zstd, zstd_bomb, zstd_wide

LIMIT = 1000


def read(*messages: dict[str, Any], limit: int = LIMIT) -> bytes:
    pending = list(messages)

    async def receive() -> dict[str, Any]:
        return pending.pop(0)

    async def run() -> bytes:
        body = await read_body(receive, limit)
        assert not pending
        return body

    return asyncio.run(run())


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_body_is_joined_from_its_chunks() -> None:
    assert read(part(b"ab"), part(b""), part(b"c"), part(b"", more=False)) == b"abc"
    assert read(part(b"ab"), part(b"c", more=False)) == b"abc"
    assert read({"type": "http.request"}) == b""


def test_a_body_in_one_message_is_not_copied() -> None:
    whole = b"x" * 100
    assert read(part(whole, more=False)) is whole


def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    assert len(read(part(b"x" * 600), part(b"x" * 400, more=False))) == LIMIT
    with pytest.raises(BodyTooLargeError):
        read(part(b"x" * 600), part(b"x" * 401, more=False))
    with pytest.raises(BodyTooLargeError):
        read(part(b"x" * 1001, more=False))


def test_a_body_that_is_too_large_is_not_read_to_its_end() -> None:
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return part(b"x" * 100)

    with pytest.raises(BodyTooLargeError):
        asyncio.run(read_body(receive, LIMIT))
    assert taken == 11


def test_a_client_that_leaves_is_told_from_an_empty_body() -> None:
    for before in ([], [part(b"ab")]):
        with pytest.raises(ClientLeftError):
            read(*before, {"type": "http.disconnect"})


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        (b"gzip", gzip.compress),
        (b"GZIP ", gzip.compress),
        (b"x-gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"br", brotli.compress),
        (b"zstd", zstd.compress),
        (b"identity", bytes),
        (b" , Identity,", bytes),
        (b"identity, gzip", gzip.compress),
        (b"", bytes),
    ],
)
def test_a_known_encoding_is_undone(encoding: bytes, encode: Any) -> None:
    assert decoded(encode(b"hello"), encoding, LIMIT) == b"hello"


@pytest.mark.parametrize("encoding", [b"compress", b"nonsense", b"\xff\xfe", b"gzip;q=1"])
def test_another_encoding_is_named_in_the_error(encoding: bytes) -> None:
    with pytest.raises(UnreadableBodyError, match="not supported; send gzip, deflate, br, zstd or none"):
        decoded(b"x", encoding, LIMIT)


@pytest.mark.parametrize("encoding", [b"gzip, gzip", b"gzip, br", b"nonsense,identity,gzip", b"gzip,gzip,gzip"])
def test_encodings_over_each_other_are_refused(encoding: bytes) -> None:
    with pytest.raises(UnreadableBodyError, match="not supported: send one encoding, or none"):
        decoded(gzip.compress(gzip.compress(b"{}")), encoding, LIMIT)


@pytest.mark.parametrize("encoding", [b"br", b"zstd"])
def test_an_encoding_that_needs_the_extra_names_it(encoding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_brotli", lambda: None)
    monkeypatch.setattr(encodings, "_zstd", lambda: None)
    with pytest.raises(UnreadableBodyError, match=r"pip install 'askii-middleware\[compression\]'"):
        decoded(b"x", encoding, LIMIT)
    assert decoded(gzip.compress(b"x"), b"gzip", LIMIT) == b"x"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (b"{}", b"gzip", "not valid gzip"),
        (b"", b"gzip", "cut off"),
        (gzip.compress(b"hello")[:-1], b"gzip", "cut off"),
        (gzip.compress(b"hello")[:8], b"gzip", "cut off"),
        (gzip.compress(b"{}") + b"x", b"gzip", "goes on behind its end"),
        (gzip.compress(b"1") + gzip.compress(b"2"), b"gzip", "goes on behind its end"),
        (gzip.compress(b"hello")[:-8] + b"\0" * 8, b"gzip", "not valid gzip"),
        (raw_deflate(b"hello"), b"deflate", "not valid deflate"),
        (zlib.compress(b"hello")[:-1], b"deflate", "cut off"),
        (b"{}", b"zstd", "not valid zstd"),
        (b"", b"zstd", "cut off"),
        (zstd.compress(b"hello")[:-1], b"zstd", "cut off"),
        (zstd.compress(b"1") + zstd.compress(b"2"), b"zstd", "goes on behind its end"),
        (zstd.compress(b"1") + b"x", b"zstd", "goes on behind its end"),
        (b"\x50\x2a\x4d\x18\x01\0\0\0x" + zstd.compress(b"2"), b"zstd", "goes on behind its end"),
        (zstd_wide(), b"zstd", "not valid zstd"),
        (b"\xff" * 9, b"br", "not valid br"),
        (b"", b"br", "cut off"),
        (brotli.compress(b"hello")[:-1], b"br", "cut off"),
        (brotli.compress(b"1") + b"x", b"br", "not valid br"),
        (brotli.compress(b"1") + brotli.compress(b"2"), b"br", "not valid br"),
    ],
)
def test_a_broken_encoding_says_what_is_wrong(body: bytes, encoding: bytes, said: str) -> None:
    with pytest.raises(UnreadableBodyError, match=said):
        decoded(body, encoding, LIMIT)


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_a_second_member_is_found_wherever_a_piece_ends(kind: str, pack: Any) -> None:
    first = pack(bytes(range(256)) * 1000)
    for size in (encodings.PIECE_BYTES - len(first) % encodings.PIECE_BYTES, 10):
        with pytest.raises(UnreadableBodyError, match="goes on behind its end"):
            decoded(first + b"\0" * size, kind.encode(), 1 << 20)


@pytest.mark.parametrize("both", [b"3", b"5", b"7", b"9"])
def test_br_that_is_json_as_well_is_refused_because_an_application_may_not_decode_it(both: bytes) -> None:
    assert brotli.decompress(both) == b""
    json.loads(both)
    with pytest.raises(UnreadableBodyError, match="JSON as it stands: send it without content-encoding"):
        decoded(both, b"br", LIMIT)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        (b"gzip", lambda: gzip.compress(b"\0" * (16 << 20))),
        (b"deflate", lambda: zlib.compress(b"\0" * (16 << 20))),
        (b"br", br_bomb),
        (b"zstd", zstd_bomb),
    ],
)
@pytest.mark.parametrize("limit", [LIMIT, 1 << 20])
def test_a_bomb_is_too_large_and_takes_no_more_memory_than_the_limit(encoding: bytes, pack: Any, limit: int) -> None:
    bomb = pack()
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            decoded(bomb, encoding, limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The bound, the piece that passes it, and the library's own blocks.
    assert peak < limit + 4 * encodings.PIECE_BYTES


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, brotli.compress, zstd.compress])
def test_a_body_of_exactly_the_limit_is_unpacked(pack: Any) -> None:
    encoding = {gzip.compress: b"gzip", zlib.compress: b"deflate", brotli.compress: b"br"}.get(pack, b"zstd")
    assert decoded(pack(b"\0" * LIMIT), encoding, LIMIT) == b"\0" * LIMIT
    with pytest.raises(BodyTooLargeError):
        decoded(pack(b"\0" * (LIMIT + 1)), encoding, LIMIT)


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b""]))
def test_no_bytes_raise_anything_but_what_is_announced(body: bytes, encoding: bytes) -> None:
    try:
        plain = decoded(body, encoding, LIMIT)
    except (UnreadableBodyError, BodyTooLargeError):
        return
    assert len(plain) <= LIMIT


# Parsing --------------------------------------------------------------------------------------------------------------

LENIENT = {
    "a byte order mark": b'\xef\xbb\xbf{"messages":[]}',
    "UTF-16 with a mark": '{"messages":[]}'.encode("utf-16"),
    "UTF-16, little end first": '{"messages":[]}'.encode("utf-16-le"),
    "UTF-16, big end first": '{"messages":[]}'.encode("utf-16-be"),
    "UTF-32": '{"messages":[]}'.encode("utf-32"),
    "NaN": b'{"messages":[],"temperature":NaN}',
    "Infinity": b'{"messages":[],"temperature":-Infinity}',
    "a lone surrogate": b'{"messages":["\\ud800"]}',
    "a lone surrogate in a name": b'{"\\udfff":1,"messages":[]}',
    "a lone surrogate as raw bytes": b'{"messages":["\xed\xa0\x80"]}',
    "an escaped name": b'{"\\u006dessages":[]}',
    "spaces around": b' \r\n\t{"messages":[]}\n ',
    "a number beyond floats": b'{"messages":[],"top_p":1e999}',
}


@pytest.mark.parametrize("body", LENIENT.values(), ids=LENIENT)
def test_what_an_application_reads_is_read(body: bytes) -> None:
    parsed = parse_body(body)
    assert parsed.fields is not None
    assert set(parsed.fields) == set(json.loads(body))
    for name, raw in parsed.fields.items():
        assert repr(json.loads(bytes(raw))) == repr(json.loads(body)[name])


BROKEN = {
    "nothing": b"",
    "cut off": b'{"messages":[',
    "something behind it": b'{"messages":[]} x',
    "a comment": b'{/**/"messages":[]}',
    "a comma too many": b'{"messages":[],}',
    "single quotes": b"{'messages':[]}",
    "a line end in a string": b'{"messages":"\n"}',
    "a NUL": b'{"messages":[]}\0',
    "a form": b"messages=x&model=y",
    "100,000 brackets": b"[" * 100_000,
    "100,000 brackets in a member": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "half an array": b"[1,2",
    "bytes that are no UTF-8 in a name": b'{"\xff":1}',
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_what_nobody_reads_is_an_error(body: bytes) -> None:
    with pytest.raises(UnreadableBodyError, match="not valid JSON"):
        parse_body(body)


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"messages"', b"true", b"NaN", '"x"'.encode("utf-16")])
def test_json_that_is_no_object_has_no_fields(body: bytes) -> None:
    assert parse_body(body).fields is None


def test_values_keep_their_bytes_and_the_last_of_equal_names_counts() -> None:
    body = b'{"a": 1.50, "n" :12345678901234567890123 , "s":"\\u0041","a":  {"x" : [1 ,2]}}'
    parsed = parse_body(body)
    assert parsed.fields is not None
    assert {name: bytes(raw) for name, raw in parsed.fields.items()} == {
        "a": b'{"x" : [1 ,2]}',
        "n": b"12345678901234567890123",
        "s": b'"\\u0041"',
    }
    assert parsed.size == len(body)


def test_the_size_of_a_body_in_utf16_bounds_its_length_in_utf8() -> None:
    text = json.dumps({"messages": "漢字" * 100}, ensure_ascii=False)
    body = text.encode("utf-16-le")
    assert len(body) < len(text.encode())
    assert parse_body(body).size >= len(text.encode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]),
    st.data(),
)
def test_whatever_json_loads_takes_is_taken_and_nothing_raises(value: Any, encoding: str, data: st.DataObject) -> None:
    body = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode(encoding, "surrogatepass")
    if data.draw(st.booleans()) and body:
        place = data.draw(st.integers(0, len(body) - 1))
        body = body[:place] + data.draw(st.binary(max_size=2)) + body[place + 1 :]
    try:
        expected = json.loads(body)
    except (ValueError, RecursionError):
        expected = None
    try:
        fields = parse_body(body).fields
    except UnreadableBodyError:
        assert expected is None
        return
    if isinstance(expected, dict):
        assert fields is not None
        assert set(fields) == set(expected)


# Forms ----------------------------------------------------------------------------------------------------------------


def test_the_names_of_a_form_are_found() -> None:
    assert form_names(b"application/x-www-form-urlencoded", b"model=a&pr%6fmpt=b&x=") == {"model", "prompt", "x"}
    multipart = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig\r\n'
        b"--b\r\nContent-Disposition: form-data; name=prompt\r\n\r\nhi\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhi\r\n--b--\r\n'
    )
    names = form_names(b"Multipart/Form-Data; boundary=b", multipart)
    assert names is not None
    assert names >= {"model", "prompt", "file"}


def test_what_is_no_form_has_no_names() -> None:
    for kind in (b"", b"application/json", b"text/plain"):
        assert form_names(kind, b"a=b") is None


def test_a_form_with_too_many_fields_is_refused() -> None:
    with pytest.raises(UnreadableBodyError, match="more than 1000 fields"):
        form_names(b"application/x-www-form-urlencoded", b"a=1&" * 1001)
    with pytest.raises(UnreadableBodyError, match="more than 1000 fields"):
        form_names(b"multipart/form-data", b'name="a"' * 1001)
