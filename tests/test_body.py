"""Request bodies: bounded, decoded, and parsed as the most lenient of applications would."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.body import (
    BodyTooLargeError,
    ClientLeftError,
    UnreadableBodyError,
    decoded,
    form_names,
    parse_body,
    read_body,
)

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
        (b"identity", bytes),
        (b" , Identity,", bytes),
        (b"identity, gzip", gzip.compress),
        (b"", bytes),
    ],
)
def test_a_known_encoding_is_undone(encoding: bytes, encode: Any) -> None:
    assert decoded(encode(b"hello"), encoding, LIMIT) == b"hello"


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"nonsense", b"\xff\xfe", b"gzip;q=1"])
def test_another_encoding_is_named_in_the_error(encoding: bytes) -> None:
    with pytest.raises(UnreadableBodyError, match="not supported; send gzip, deflate or none"):
        decoded(b"x", encoding, LIMIT)


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
    ],
)
def test_a_broken_encoding_says_what_is_wrong(body: bytes, encoding: bytes, said: str) -> None:
    with pytest.raises(UnreadableBodyError, match=said):
        decoded(body, encoding, LIMIT)


def test_a_bomb_is_too_large_and_takes_no_memory() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(BodyTooLargeError):
        decoded(bomb, b"gzip", 1 << 20)
    assert decoded(gzip.compress(b"\0" * LIMIT), b"gzip", LIMIT) == b"\0" * LIMIT


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br", b""]))
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
