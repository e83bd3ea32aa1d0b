"""Compressed requests and answers through the wrapped application, on real servers with real clients: the ledger is
the same as without compression, and the client gets the bytes that the application sent.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import brotli
import httpx
import httpx2
import pytest

from askii_middleware.records import UsageRecord

from .support.asgi import CHAT, DONE, JSON, SSE, chat_answer, chat_chunk, chat_usage, piece, read_all, start
from .support.codings import br_bomb, zstd, zstd_bomb
from .support.ledgers import Ledger, ledger
from .support.servers import serving

Pack = Callable[[bytes], bytes]
PATH = "/v1/chat/completions"
ASKING = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
CODINGS: dict[str, tuple[Pack, Pack]] = {
    "gzip": (gzip.compress, gzip.decompress),
    "deflate": (zlib.compress, zlib.decompress),
    "br": (brotli.compress, brotli.decompress),
    "zstd": (zstd.compress, zstd.decompress),
}


def packed(coding: str, data: bytes) -> bytes:
    """The data in codings applied from left to right."""
    for name in coding.split(", "):
        if name:
            data = CODINGS[name][0](data)
    return data


class Application:
    """Answers as the query asks: `coding`, `stream`, `large`, and the body split into pieces of `step` bytes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.sent: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        headers = dict(scope["headers"])
        body = await read_all(receive) or b""
        self.bodies.append(body)
        coding = headers.get(b"content-encoding", b"").decode()
        asked = json.loads(CODINGS[coding][1](body) if coding in CODINGS else body)
        assert asked["messages"] == CHAT["messages"]
        if "stream" in query:
            text = b"".join([*(chat_chunk(f"word {n} ") for n in range(200)), chat_usage(70, 30), DONE])
        else:
            filler = {"filler": "a hold is replaced by the charge " * 5000} if "large" in query else {}
            text = json.dumps(chat_answer(70, 30, **filler)).encode()
        answer = text if query.get("raw") else packed(query.get("coding", ""), text)
        self.sent.append(answer)
        more = [(b"content-encoding", query["coding"].encode())] if "coding" in query else []
        if "stream" not in query:
            more.append((b"content-length", str(len(answer)).encode()))
        await send(start(SSE if "stream" in query else JSON, *more))
        step = int(query.get("step", 1000))
        for at in range(0, len(answer), step):
            await send(piece(answer[at : at + step]))
        await send(piece(b"", more=False))


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger() as open_ledger:
        yield open_ledger


async def by_httpx(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, bytes]:
    """Status, body as it came, and body as the client decodes it."""
    async with httpx.AsyncClient() as client, client.stream("POST", url, content=body, headers=headers) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
        return answer.status_code, raw, httpx.Response(200, headers=answer.headers, content=raw).content


async def by_httpx2(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, bytes]:
    async with httpx2.AsyncClient() as client, client.stream("POST", url, content=body, headers=headers) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
        return answer.status_code, raw, httpx2.Response(200, headers=answer.headers, content=raw).content


async def by_aiohttp(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, bytes]:
    found = []
    for decompress in (False, True):
        async with (
            aiohttp.ClientSession(auto_decompress=decompress) as client,
            client.post(url, data=body, headers=headers, compress=None) as answer,
        ):
            found.append(await answer.read())
            status = answer.status
    return status, found[0], found[1]


CLIENTS: dict[str, Callable[..., Awaitable[tuple[int, bytes, bytes]]]] = {
    "httpx": by_httpx,
    "httpx2": by_httpx2,
    "aiohttp": by_aiohttp,
}


def money(record: UsageRecord) -> dict[str, Any]:
    """What a record says, but for what every call has of its own."""
    names = ("tenant", "api", "served_model", "usage", "charges", "cost_nano_usd", "outcome", "estimated", "anomalous")
    return {name: getattr(record, name) for name in names}


async def expected(book: Ledger) -> dict[str, Any]:
    """The record of the same call without any compression."""
    first = (await book.records())[0]
    assert (first.cost_nano_usd, first.estimated) == (70 * 1000 + 30 * 10_000, False)
    return money(first)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_every_coding_in_both_directions_gives_the_ledger_of_none(
    book: Ledger, client: str, stream: bool
) -> None:
    app = Application()
    flag = "&stream=1" if stream else ""
    body = json.dumps(ASKING if stream else CHAT).encode()
    plain: bytes | None = None
    async with serving(book.around(app)) as base:
        for coding in ("", *CODINGS):
            query = f"?{f'coding={coding}' if coding else ''}{flag}"
            headers = {"content-type": "application/json", "accept-encoding": coding or "identity"}
            for sent_as in ("", *CODINGS):
                if sent_as:
                    headers["content-encoding"] = sent_as
                content = packed(sent_as, body)
                status, raw, read = await CLIENTS[client](base + PATH + query, content, headers)
                assert (status, raw, app.bodies[-1]) == (200, app.sent[-1], content)
                # httpx decodes zstd by another library, which the tests do without.
                if (client, coding) != ("httpx", "zstd"):
                    plain = plain or read
                    assert read == plain
    records = await book.records()
    assert len(records) == 25 * (2 if client == "aiohttp" else 1)
    same = await expected(book)
    assert all(money(record) == same for record in records)
    book.check_once()


@pytest.mark.parametrize("step", [1, 7, 64, 1000, 1_000_000])
@pytest.mark.parametrize("what", ["stream=1", "large=1", "x=1"])
@pytest.mark.parametrize("coding", [*CODINGS, "gzip, br", "zstd, gzip", "deflate, zstd"])
async def test_however_an_encoded_answer_is_split_it_reads_the_same(
    book: Ledger, coding: str, what: str, step: int
) -> None:
    app = Application()
    body = json.dumps(ASKING if what == "stream=1" else CHAT).encode()
    got = await in_process(book, app, f"coding={coding}&{what}&step={step}", body)
    assert got == (200, app.sent[0])
    assert (await book.record()).cost_nano_usd == 70 * 1000 + 30 * 10_000


async def in_process(
    book: Ledger, app: Any, query: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    transport = httpx.ASGITransport(book.around(app))
    headers = {"content-type": "application/json", **(headers or {})}
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        client.stream("POST", f"{PATH}?{query}", content=body, headers=headers) as answer,
    ):
        return answer.status_code, b"".join([part async for part in answer.aiter_raw()])


@pytest.mark.parametrize(
    ("coding", "body", "status", "said"),
    [
        ("gzip", gzip.compress(b" " * (64 << 20)), 413, "bytes"),
        ("deflate", zlib.compress(b" " * (64 << 20)), 413, "bytes"),
        ("br", br_bomb(64 << 20), 413, "bytes"),
        ("zstd", zstd_bomb(64 << 20), 413, "bytes"),
        ("gzip", gzip.compress(json.dumps(CHAT).encode()) + gzip.compress(b"{}"), 400, "goes on behind its end"),
        ("zstd", zstd.compress(json.dumps(CHAT).encode()) + zstd.compress(b"{}"), 400, "goes on behind its end"),
        ("br", brotli.compress(json.dumps(CHAT).encode()) + b"{}", 400, "not valid br"),
        ("gzip, br", brotli.compress(gzip.compress(json.dumps(CHAT).encode())), 400, "send one encoding"),
        ("compress", b"x", 400, "send gzip, deflate, br, zstd or none"),
    ],
)
async def test_what_must_not_be_unpacked_is_refused_with_nothing_held(
    book: Ledger, coding: str, body: bytes, status: int, said: str
) -> None:
    app = Application()
    async with (
        serving(book.around(app, max_body_bytes=1 << 20)) as base,
        httpx2.AsyncClient() as client,
    ):
        headers = {"content-type": "application/json", "content-encoding": coding}
        answer = await client.post(base + PATH, content=body, headers=headers)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert (app.bodies, book.held) == ([], [])
    assert await book.nothing_happened()


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", lambda: gzip.compress(b" " * (80 << 20))),
        ("br", lambda: br_bomb(80 << 20)),
        ("zstd", lambda: zstd_bomb(80 << 20)),
    ],
)
@pytest.mark.parametrize("kind", [JSON, SSE])
async def test_a_bomb_of_an_answer_passes_as_it_is_and_is_estimated(
    book: Ledger, coding: str, bomb: Any, kind: tuple[bytes, bytes]
) -> None:
    packed_bomb = bomb()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await send(start(kind, (b"content-encoding", coding.encode())))
        await send(piece(packed_bomb, more=False))

    assert await in_process(book, app, "", json.dumps(ASKING).encode()) == (200, packed_bomb)
    record = await book.record()
    assert record.estimated
    assert record.cost_nano_usd > 0


@pytest.mark.parametrize("coding", ["gzip, br, gzip", "nonsense"])
async def test_an_answer_that_cannot_be_read_passes_and_is_estimated(book: Ledger, coding: str) -> None:
    app = Application()
    status, raw = await in_process(book, app, f"coding={coding}&raw=1", json.dumps(CHAT).encode())
    assert (status, raw) == (200, app.sent[0])
    assert (await book.record()).estimated


async def test_an_answer_of_many_members_is_read_to_its_last(book: Ledger) -> None:
    events = [*(chat_chunk(f"word {n} ") for n in range(50)), chat_usage(70, 30), DONE]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await send(start(SSE, (b"content-encoding", b"gzip")))
        for event in events:
            await send(piece(gzip.compress(event)))
        await send(piece(b"", more=False))

    status, raw = await in_process(book, app, "", json.dumps(ASKING).encode())
    assert (status, gzip.decompress(raw)) == (200, b"".join(events))
    assert (await book.record()).cost_nano_usd == 70 * 1000 + 30 * 10_000
