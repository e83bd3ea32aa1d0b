"""The client gets, byte for byte, what it would have got without the middleware: headers of ours aside, and a usage
chunk it did not ask for. The same application is asked once bare and once wrapped.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askii_middleware import CostTracker
from askii_middleware.records import decode_record

from .support.asgi import (
    CHAT,
    DONE,
    JSON,
    SSE,
    Client,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    event,
    piece,
    start,
)
from .support.ledgers import PRICES, Clock, Ledger

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ASKING = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
NOT_ASKING = {**CHAT, "stream": True}


class Loop:
    """A ledger on an event loop of its own, for tests that run many requests each."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.tracker = CostTracker(store="memory://", prices=PRICES, clock=self.clock)
        self.runner.run(self.tracker.start())
        self.book = Ledger(self.tracker, self.clock)
        self.seen = 0

    def both(self, app: Any, body: Any, **request: Any) -> tuple[Any, Any]:
        """The answers of the bare and of the wrapped application."""

        async def run() -> tuple[Any, Any]:
            bare = await ask(app, body, **request)
            wrapped = await ask(self.book.around(app), body, **request)
            await self.book.idle()
            self.book.check_once()
            totals = await self.book.totals()
            assert totals.held_nano_usd == 0
            assert all(decode_record(record).cost_nano_usd >= 0 for _, record in await self.fresh())
            return bare, wrapped

        return self.runner.run(run())

    async def fresh(self) -> list[tuple[int, bytes]]:
        """The records since the last look."""
        records = await self.tracker.store.records(self.seen)
        self.seen = max([self.seen, *(seq for seq, _ in records)])
        return records

    def charged(self) -> int:
        return self.runner.run(self.book.spent())


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.runner.run(found.tracker.stop())
    found.runner.close()


def same(bare: Any, wrapped: Any) -> None:
    """The same status, bytes, end and error; and of the headers, ours besides."""
    assert type(bare.error) is type(wrapped.error)
    assert [m for m in wrapped.messages if m["type"] == "http.response.start"] != [] or bare.messages == []
    if bare.messages:
        assert wrapped.status == bare.status
        assert wrapped.body == bare.body
        assert wrapped.complete == bare.complete
        theirs = [h for h in wrapped.start["headers"] if not h[0].startswith(b"x-askii-")]
        assert theirs == bare.start["headers"]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Pieces of the data, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def messages(head: Any, pieces: list[bytes], *, ends: bool = True) -> list[Any]:
    return [head, *(piece(part) for part in pieces), *([piece(b"", more=False)] if ends else [])]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
noise = st.binary(max_size=12)
stream_parts = st.lists(
    st.one_of(
        st.text(max_size=20).map(chat_chunk),
        st.text(max_size=20).map(lambda text: chat_chunk(text, usage=None)),
        st.sampled_from(
            [
                chat_usage(),
                DONE,
                b": keep-alive\n\n",
                b"\n\n",
                b"data: \n\n",
                b"data: {\r\n\r\n",
                b"event: ping\ndata: {}\n\n",
                b'data: {"choices":[],"usage":null}\n\n',
                b'data: {"usage":{"prompt_tokens":-5,"completion_tokens":1e99}}\n\n',
                b'data: {"usage":"lots","choices":7}\n\n',
                b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n',
                event({"type": "message_start", "message": {"usage": {"input_tokens": 3}}}, "message_start"),
                event({"type": "message_delta", "usage": {"output_tokens": -1}}, "message_delta"),
                event({"type": "response.completed", "response": {"usage": {"input_tokens": 3}}}),
                b"\xff\xfe\x00",
                b"data: " + b"[" * 5000 + b"\n\n",
            ]
        ),
        noise,
    ),
    max_size=8,
)
STREAM_CALLS = {
    "chat": ("/v1/chat/completions", ASKING),
    "completions": (
        "/v1/completions",
        {"model": "big", "prompt": "hi", "stream": True, "stream_options": {"include_usage": True}},
    ),
    "responses": ("/v1/responses", {"model": "big", "input": "hi", "stream": True, "max_output_tokens": 5}),
    "messages": ("/v1/messages", {**CHAT, "stream": True}),
}


@pytest.mark.parametrize("kind", STREAM_CALLS)
@QUICK
@given(parts=stream_parts, places=cuts, ends=st.booleans())
def test_a_stream_passes_byte_for_byte_however_it_is_split(
    loop: Loop, kind: str, parts: list[bytes], places: list[int], *, ends: bool
) -> None:
    path, body = STREAM_CALLS[kind]
    app = Scripted(messages(start(SSE), split(b"".join(parts), places), ends=ends))
    same(*loop.both(app, body, path=path))


PLAIN_BODIES = st.one_of(
    st.sampled_from(
        [
            json.dumps(chat_answer()).encode(),
            json.dumps({**chat_answer(), "usage": None}).encode(),
            json.dumps({"error": {"message": "no"}}).encode(),
            b'{"usage":{"prompt_tokens":-1,"completion_tokens":true,"total_tokens":"9"}}',
            b'{"usage":{"input_tokens":1e308,"output_tokens":99999999999999999999}}',
            b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":99}},"service_tier":["x"]}',
            b'{"id":5,"model":{},"choices":"x","usage":[]}',
            b'{"model":"\\ud800","id":"\\udfff","usage":{"prompt_tokens":1,"completion_tokens":1}}',
            b'{"object":"response","status":"queued"}',
            b"[" * 2000,
            b"<html>502 Bad Gateway</html>",
            b"",
            b" " * 70_000 + json.dumps(chat_answer()).encode(),
        ]
    ),
    noise,
)
PATHS = ["/v1/chat/completions", "/v1/messages"]


@QUICK
@given(
    body=PLAIN_BODIES,
    places=cuts,
    mutation=st.none() | st.tuples(st.integers(0, 10_000), noise),
    status=st.sampled_from([200, 201, 301, 400, 402, 500, 503]),
    kind=st.sampled_from([JSON, SSE, (b"content-type", b"text/plain"), (b"Content-Type", b"Application/JSON")]),
    path=st.sampled_from(PATHS),
    ends=st.booleans(),
)
def test_an_answer_of_any_bytes_passes_and_never_raises(
    loop: Loop, body: bytes, places: list[int], mutation: Any, status: int, kind: Any, path: str, *, ends: bool
) -> None:
    if mutation is not None:
        place = mutation[0] % (len(body) + 1)
        body = body[:place] + mutation[1] + body[place + 1 :]
    app = Scripted(messages(start(kind, status=status), split(body, places), ends=ends))
    same(*loop.both(app, CHAT, path=path))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODERS: dict[bytes, Any] = {b"gzip": gzip.compress, b"deflate": zlib.compress, b"Deflate": raw_deflate}
WHOLE_STREAM = chat_chunk("hello") + chat_chunk(reason="stop") + chat_usage() + DONE


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("size", [0, 70_000])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=cuts, streamed=st.booleans())
def test_an_encoded_answer_passes_byte_for_byte_and_is_charged_exactly(
    loop: Loop, encoding: bytes, size: int, places: list[int], *, streamed: bool
) -> None:
    padding = bytes(range(33, 127)) * (size // 94)
    plain_body = json.dumps({**chat_answer(), "padding": padding.decode()}).encode()
    packed = ENCODERS[encoding](WHOLE_STREAM if streamed else plain_body)
    header = (b"content-encoding", encoding)
    app = Scripted(messages(start(SSE if streamed else JSON, header), split(packed, places)))
    before = loop.charged()
    same(*loop.both(app, ASKING if streamed else CHAT))
    assert loop.charged() - before == 60_000


@QUICK
@given(
    encoding=st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"nonsense", b""]),
    packed=st.one_of(noise, st.just(gzip.compress(WHOLE_STREAM)), st.just(gzip.compress(b"\0" * 9_000_000))),
    keep=st.integers(1, 10_000),
    places=cuts,
    head=st.sampled_from([SSE, JSON]),
)
def test_an_encoding_that_cannot_be_read_passes_and_is_estimated_never_0(
    loop: Loop, encoding: bytes, packed: bytes, keep: int, places: list[int], head: Any
) -> None:
    app = Scripted(messages(start(head, (b"content-encoding", encoding)), split(packed[:keep], places)))
    before = loop.charged()
    same(*loop.both(app, ASKING))
    assert loop.charged() > before


@QUICK
@given(
    texts=st.lists(st.text(max_size=10), max_size=6),
    places=cuts,
    spaced=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_usage_that_was_asked_for_on_the_clients_behalf_is_all_that_is_missing(
    loop: Loop, texts: list[str], places: list[int], newline: str, *, spaced: bool
) -> None:
    def write(chunk: dict[str, Any]) -> bytes:
        separators = None if spaced else (",", ":")
        return f"data: {json.dumps(chunk, separators=separators)}{newline}{newline}".encode()

    def chunks(*, with_usage: bool) -> bytes:
        extra: dict[str, Any] = {"usage": None} if with_usage else {}
        out = b""
        for text in texts:
            out += write({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}], **extra})
        out += write({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **extra})
        if with_usage:
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            out += write({"id": "c", "choices": [], "usage": usage})
        return out + f"data: [DONE]{newline}{newline}".encode()

    async def provider(scope: Any, receive: Any, send: Any) -> None:
        """Sends usage where it is asked for."""
        asked = json.loads((await receive())["body"])
        usage = asked.get("stream_options", {}).get("include_usage", False)
        await Scripted(messages(start(SSE), split(chunks(with_usage=usage), places)), reads=False)(scope, receive, send)

    before = loop.charged()
    same(*loop.both(provider, NOT_ASKING))
    assert loop.charged() - before == 60_000


# Requests -------------------------------------------------------------------------------------------------------------

SEEDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**NOT_ASKING, "tools": [{"type": "function"}], "n": 2, "user": "u"}),
    ("/v1/completions", {"model": "big", "prompt": ["a", "b"], "best_of": 2}),
    ("/v1/responses", {"model": "big", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}),
    ("/v1/embeddings", {"model": "big", "input": ["a", [1, 2]]}),
    ("/v1/messages", {**CHAT, "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 5}}),
]
odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "a\0b", 10**30, -1, "big", "free", [], {}, 5.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(
    [
        *("model", "messages", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "stream"),
        *("stream_options", "prompt", "input", "tools", "functions", "user", "metadata", "service_tier", "background"),
        *("conversation", "previous_response_id", "fallbacks", "audio", "modalities", "data_sources", "x"),
    ]
)


def read(body: bytes) -> dict[str, Any]:
    """Bytes that are no UTF-8 may stand in values that nobody here looks at."""
    try:
        found: dict[str, Any] = json.loads(body)
    except UnicodeDecodeError:
        found = json.loads(body.decode(errors="replace"))
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.dictionaries(members, odd_values, max_size=3),
    mutation=st.none() | st.tuples(st.integers(0, 10_000), noise),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-8-sig"]),
    places=st.lists(st.integers(0, 10_000), max_size=3),
)
def test_no_request_raises_and_what_passes_keeps_its_values(
    loop: Loop, seed: Any, changes: dict[str, Any], mutation: Any, encoding: str, places: list[int]
) -> None:
    path, body = seed
    raw = json.dumps({**body, **changes}).encode(encoding, "surrogatepass")
    if mutation is not None:
        place = mutation[0] % (len(raw) + 1)
        raw = raw[:place] + mutation[1] + raw[place + 1 :]
    app = Scripted(messages(start(JSON), [json.dumps(chat_answer()).encode()]))

    async def run() -> Any:
        got = await ask(loop.book.around(app), client=Client(split(raw, places)), path=path)
        await loop.tracker.deferrals.finish_all(1)
        await loop.book.idle()
        assert (await loop.book.totals()).held_nano_usd == 0
        return got

    got = loop.runner.run(run())
    assert got.error is None
    assert got.status in (200, 400, 402)
    if got.status != 200:
        assert app.bodies == []
        return
    (sent,) = app.bodies
    assert sent is not None
    if sent != raw:
        before, after = read(raw), read(sent)
        for name in before.keys() | after.keys():
            if name not in ("model", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options"):
                assert repr(after[name]) == repr(before[name])
        assert dict(app.scopes[0]["headers"])[b"content-length"] == str(len(sent)).encode()
