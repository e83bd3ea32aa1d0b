"""Request bodies by their size and their wrapping: what is too large, compressed, or no JSON at all but a form."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from .support.asgi import CHAT, DONE, JSON, Client, Scripted, ask, chat_answer, chat_usage, plain, stream
from .support.ledgers import Ledger, ledger

GZIP = (b"content-encoding", b"gzip")
DEFLATE = (b"content-encoding", b"deflate")
STREAM = {**CHAT, "stream": True}

packed = partial(gzip.compress, mtime=0)
"""The same bytes whenever the tests are collected."""


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger() as open_ledger:
        yield open_ledger


def answers() -> Scripted:
    return Scripted(plain(chat_answer()))


async def refused(book: Ledger, body: Any, status: int, **request: Any) -> str:
    """The message of a refusal that held nothing and called nobody."""
    options = request.pop("options", {})
    app = answers()
    got = await ask(book.around(app, **options), body, **request)
    assert got.status == status, got.body
    assert app.scopes == []
    assert book.held == []
    error = got.json["error"]
    assert error["code"] == {400: "invalid_request", 413: "request_too_large"}[status]
    assert got.headers["x-should-retry"] == "false"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["content-length"] == str(len(got.body))
    assert got.headers["x-askii-call-id"]
    return str(error["message"])


# Size -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [b"100000000", b"9" * 5000, b"32769"])
async def test_a_length_beyond_the_limit_is_413_before_the_body_is_read(book: Ledger, length: bytes) -> None:
    app = answers()

    async def receive() -> Any:
        pytest.fail("the body was asked for")

    client = Client()
    client.receive = receive  # type: ignore[method-assign]
    middleware = book.around(app, max_body_bytes=32_768)
    got = await ask(middleware, client=client, headers=[(b"content-length", length)])
    assert (got.status, got.json["error"]["code"]) == (413, "request_too_large")
    assert app.scopes == []
    assert book.held == []


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"5")], [(b"transfer-encoding", b"chunked")]])
async def test_a_body_beyond_the_limit_is_413_whatever_length_it_claims(
    book: Ledger, headers: list[tuple[bytes, bytes]]
) -> None:
    said = await refused(
        book, (b"x" * 1000 for _ in range(200)), 413, headers=headers, options={"max_body_bytes": 100_000}
    )
    assert "100000 bytes" in said


@pytest.mark.parametrize("length", [b"-5", b"abc", b"", b"1e9", "٣".encode()])
async def test_a_length_that_is_no_number_is_the_servers_business(book: Ledger, length: bytes) -> None:
    assert (await ask(book.around(answers()), headers=[(b"content-length", length)])).status == 200


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "encode"), [(GZIP, gzip.compress), (DEFLATE, zlib.compress)])
async def test_a_compressed_request_is_metered_and_passes_as_it_came(book: Ledger, header: Any, encode: Any) -> None:
    app = answers()
    packed = encode(json.dumps(CHAT).encode())
    got = await ask(book.around(app), packed, headers=[header, (b"content-length", str(len(packed)).encode())])
    assert (got.status, app.bodies) == (200, [packed])
    assert header in app.scopes[0]["headers"]
    assert (await book.record()).cost_nano_usd == 60_000


@pytest.mark.parametrize(("header", "encode"), [(GZIP, gzip.compress), (DEFLATE, zlib.compress)])
async def test_a_compressed_request_that_is_changed_goes_on_plain(book: Ledger, header: Any, encode: Any) -> None:
    app = Scripted(stream(chat_usage(), DONE))
    packed = encode(json.dumps(STREAM).encode())
    sizes = [(b"content-length", str(len(packed)).encode()), (b"transfer-encoding", b"chunked")]
    await ask(book.around(app), packed, headers=[header, *sizes])
    sent = app.bodies[0] or b""
    assert app.sent_json == {**STREAM, "stream_options": {"include_usage": True}}
    assert app.sent_headers[b"content-length"] == str(len(sent)).encode()
    assert {b"content-encoding", b"transfer-encoding"}.isdisjoint(app.sent_headers)


async def test_a_bomb_is_413(book: Ledger) -> None:
    await refused(book, gzip.compress(b" " * (64 << 20)), 413, headers=[GZIP])


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (packed(json.dumps(CHAT).encode())[:-4], b"gzip"),
        (json.dumps(CHAT).encode(), b"gzip"),
        (json.dumps(CHAT).encode(), b"br"),
        (json.dumps(CHAT).encode(), b"gzip, br"),
        (packed(packed(json.dumps(CHAT).encode())), b"gzip, gzip"),
        (packed(b"{}") + packed(json.dumps(CHAT).encode()), b"gzip"),
        (packed(b""), b"gzip"),
    ],
)
async def test_a_broken_or_unknown_encoding_is_400(book: Ledger, body: bytes, encoding: bytes) -> None:
    await refused(book, body, 400, headers=[(b"content-encoding", encoding)])


async def test_encodings_in_several_headers_are_several_encodings(book: Ledger) -> None:
    body = gzip.compress(json.dumps(CHAT).encode())
    await refused(book, body, 400, headers=[GZIP, GZIP])


async def test_identity_is_no_encoding(book: Ledger) -> None:
    got = await ask(book.around(answers()), headers=[(b"Content-Encoding", b"Identity")])
    assert got.status == 200


# Forms ----------------------------------------------------------------------------------------------------------------

MULTIPART = (b"content-type", b"multipart/form-data; boundary=b")
FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nhi\r\n--b--\r\n'


async def test_a_form_of_the_applications_own_passes_untouched(book: Ledger) -> None:
    app = answers()
    got = await ask(book.around(app), FIELD % b"comment", path="/guestbook/messages", headers=[MULTIPART])
    assert (got.status, app.bodies, got.own_headers) == (200, [FIELD % b"comment"], {})
    assert book.held == []


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/chat/completions", MULTIPART, FIELD % b"messages"),
        ("/v1/completions", (b"content-type", b"application/x-www-form-urlencoded"), b"model=big&prompt=hi"),
        ("/v1/completions", (b"content-type", b"application/x-www-form-urlencoded"), b"model=big&%70rompt=hi"),
    ],
)
async def test_a_form_that_some_application_takes_for_a_call_is_400(
    book: Ledger, path: str, content_type: tuple[bytes, bytes], body: bytes
) -> None:
    assert "as JSON, not as a form" in await refused(book, body, 400, path=path, headers=[content_type])


async def test_json_that_claims_to_be_a_form_is_metered(book: Ledger) -> None:
    await ask(book.around(answers()), CHAT, headers=[MULTIPART])
    assert (await book.record()).cost_nano_usd == 60_000


@pytest.mark.parametrize("kind", [MULTIPART[1], b"application/x-www-form-urlencoded"])
@pytest.mark.parametrize("body", [b"%sx", b" \n%s{}", b"\xef\xbb\xbf%s\0"], ids=["text", "two", "mark"])
async def test_what_only_lenient_servers_read_as_json_is_no_form(book: Ledger, kind: bytes, body: bytes) -> None:
    message = await refused(book, body % json.dumps(CHAT).encode(), 400, headers=[(b"content-type", kind)])
    assert "not valid JSON" in message


async def test_two_content_types_that_differ_are_400(book: Ledger) -> None:
    message = await refused(book, FIELD % b"messages", 400, headers=[JSON, MULTIPART])
    assert "one content-type" in message
