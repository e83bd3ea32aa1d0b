"""Answers that tell an operation's state are read as they pass, and change nothing of what the client gets."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from typing import Any, Self

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, Budget, CostTracker, Identity
from askii_middleware.calls import CallSpec
from askii_middleware.operations import DEFERRED_S
from askii_middleware.polling import watched
from askii_middleware.records import UsageRecord, decode_record
from askii_middleware.settling import DEFERRED, Conclusion

from .support.service import Clock

USAGE = {"input_tokens": 40, "output_tokens": 10, "total_tokens": 50}
COST_NANO_USD = 40 * 2500 + 10 * 10_000
"""40 tokens at 2.50 USD and 10 at 10 USD per million."""


def operation(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "model": "gpt-4o", "background": True, "status": status, **fields}


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


def streamed(*events: bytes, size: int = 50) -> list[bytes]:
    data = b"".join(events)
    return [data[i : i + size] for i in range(0, len(data), size)]


class Upstream:
    """Answers a background response at once, and its state when asked or told to cancel."""

    def __init__(self) -> None:
        self.state: Any = operation("in_progress", usage=None)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: Iterable[bytes] | None = None
        """Sent in these pieces instead of the state."""
        self.first: Iterable[bytes] | None = None
        """What the POST streams."""

    async def create(self, _request: Request) -> Response:
        if self.first is not None:
            return StreamingResponse(_pieces(self.first), media_type="text/event-stream")
        return JSONResponse(operation("queued", usage=None))

    async def show(self, _request: Request) -> Response:
        if self.body is not None:
            return StreamingResponse(_pieces(self.body), status_code=self.status, headers=self.headers)
        return JSONResponse(self.state, status_code=self.status)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/responses", self.create, methods=["POST"]),
                Route("/v1/responses/{id}", self.show, methods=["GET"]),
                Route("/v1/responses/{id}/cancel", self.show, methods=["POST"]),
            ]
        )


async def _pieces(pieces: Iterable[bytes]) -> Any:
    for piece in pieces:
        yield piece


async def records(tracker: CostTracker) -> list[UsageRecord]:
    return [decode_record(body) for _, body in await tracker.store.records()]


async def held_usd(tracker: CostTracker) -> Any:
    (line,) = await tracker.budget_enforcer.status("tenant=acme")
    return line.held_usd


class Gateway:
    """A tracker, the middleware and a client around an upstream."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        self.clock = Clock()
        self.tracker = CostTracker(
            store="memory://", budgets=[Budget(scope="tenant=*", limit_usd=10)], clock=self.clock
        )
        app = AskiiMiddleware(self.upstream.app(), tracker=self.tracker, identify=lambda _scope: "acme")
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    async def __aenter__(self) -> Self:
        await self.tracker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.tracker.stop()

    async def begin(self, **fields: Any) -> httpx.Response:
        body = {"model": "gpt-4o", "input": "hello", "max_output_tokens": 20, "background": True, **fields}
        answer = await self.client.post("/v1/responses", json=body)
        assert answer.status_code == 200
        assert await records(self.tracker) == []
        return answer

    async def poll(self, path: str = "/v1/responses/resp_1") -> httpx.Response:
        return await self.client.get(path)


@pytest.fixture
async def gateway() -> Any:
    async with Gateway() as gateway:
        yield gateway


async def test_the_first_complete_sight_settles_and_further_ones_do_not(gateway: Gateway) -> None:
    await gateway.begin()
    assert await held_usd(gateway.tracker) > 0
    assert (await gateway.poll()).json() == gateway.upstream.state
    assert await records(gateway.tracker) == []

    gateway.upstream.state = operation("completed", usage=USAGE)
    for _ in range(3):
        assert (await gateway.poll()).json() == gateway.upstream.state
    (record,) = await records(gateway.tracker)
    assert record.cost_nano_usd == COST_NANO_USD
    assert (record.outcome, record.estimated, record.late) == ("completed", False, False)
    assert (record.api, record.provider_request_id) == ("openai.responses", "resp_1")
    assert await held_usd(gateway.tracker) == 0


async def test_without_a_sight_the_hold_is_charged_as_an_estimate_at_the_end(gateway: Gateway) -> None:
    await gateway.begin()
    held = await held_usd(gateway.tracker)
    gateway.clock.advance(DEFERRED_S - 1)
    await gateway.tracker.operations.tend()
    assert await records(gateway.tracker) == []
    gateway.clock.advance(1)
    for _ in range(2):
        await gateway.tracker.operations.tend()
    (record,) = await records(gateway.tracker)
    assert (record.outcome, record.estimated, record.late) == ("deferred_estimate", True, False)
    assert record.cost_nano_usd == int(held * 10**9)
    assert record.provider_request_id == "resp_1"
    assert record.timestamp.startswith("2026-01-01T00:00:00")


@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_an_operation_that_ended_without_counts_releases_its_hold(gateway: Gateway, status: str) -> None:
    await gateway.begin()
    gateway.upstream.state = operation(status, usage=None)
    await gateway.poll()
    assert await records(gateway.tracker) == []
    assert await held_usd(gateway.tracker) == 0
    gateway.clock.advance(DEFERRED_S)
    await gateway.tracker.operations.tend()
    assert await records(gateway.tracker) == []


@pytest.mark.parametrize("status", ["incomplete", "failed", "cancelled"])
async def test_counts_are_charged_however_the_operation_ended(gateway: Gateway, status: str) -> None:
    await gateway.begin()
    gateway.upstream.state = operation(status, usage=USAGE)
    await gateway.poll()
    (record,) = await records(gateway.tracker)
    assert record.cost_nano_usd == COST_NANO_USD


async def test_the_answer_to_a_cancellation_tells_the_state_too(gateway: Gateway) -> None:
    await gateway.begin()
    gateway.upstream.state = operation("cancelled", usage=USAGE)
    answer = await gateway.client.post("/v1/responses/resp_1/cancel")
    assert answer.json() == gateway.upstream.state
    (record,) = await records(gateway.tracker)
    assert record.cost_nano_usd == COST_NANO_USD


@pytest.mark.parametrize("size", [0, 100_000])
async def test_the_ledger_knows_an_operation_before_the_client_has_its_whole_answer(
    gateway: Gateway, size: int
) -> None:
    answer = json.dumps(operation("queued", usage=None, instructions="x" * size)).encode()
    known: list[bool] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def receive() -> Any:
        body = json.dumps({"model": "gpt-4o", "input": "hello", "background": True}).encode()
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            known.append(await gateway.tracker.store.operation("openai:resp_1") is not None)

    scope = {"type": "http", "method": "POST", "path": "/v1/responses", "query_string": b"", "headers": []}
    await AskiiMiddleware(app, tracker=gateway.tracker, identify=lambda _scope: "acme")(scope, receive, send)
    assert known == [True]


async def test_output_that_was_streamed_is_charged_though_the_rest_is_cancelled(gateway: Gateway) -> None:
    gateway.upstream.first = streamed(
        event("response.created", response=operation("in_progress", usage=None)),
        *[event("response.output_text.delta", delta="four")] * 100,
    )
    await gateway.begin(stream=True)
    gateway.upstream.state = operation("cancelled", usage=None)
    for _ in range(2):
        await gateway.client.post("/v1/responses/resp_1/cancel")
    (record,) = await records(gateway.tracker)
    assert (record.usage.output_tokens, record.estimated, record.outcome) == (100, True, "upstream_error")
    assert record.cost_nano_usd >= 100 * 10_000
    assert await held_usd(gateway.tracker) == 0


async def test_a_resumed_stream_tells_the_end(gateway: Gateway) -> None:
    await gateway.begin()
    gateway.upstream.body = streamed(
        event("response.output_text.delta", delta="later", sequence_number=7),
        event("response.completed", response=operation("completed", usage=USAGE)),
    )
    gateway.upstream.headers = {"content-type": "text/event-stream; charset=utf-8"}
    answer = await gateway.poll("/v1/responses/resp_1?stream=true&starting_after=6")
    assert answer.content == b"".join(gateway.upstream.body)
    (record,) = await records(gateway.tracker)
    assert record.cost_nano_usd == COST_NANO_USD


async def test_a_resumed_stream_that_breaks_off_decides_nothing(gateway: Gateway) -> None:
    await gateway.begin()
    gateway.upstream.body = streamed(
        event("response.created", response=operation("in_progress", usage=None)),
        event("response.output_text.delta", delta="some"),
    )
    gateway.upstream.headers = {"content-type": "text/event-stream"}
    await gateway.poll()
    assert await records(gateway.tracker) == []
    assert await held_usd(gateway.tracker) > 0


async def test_a_background_stream_that_ends_early_is_settled_by_a_later_poll(gateway: Gateway) -> None:
    gateway.upstream.first = streamed(event("response.created", response=operation("in_progress", usage=None)))
    await gateway.begin(stream=True)
    assert await held_usd(gateway.tracker) > 0
    gateway.upstream.state = operation("completed", usage=USAGE)
    await gateway.poll()
    (record,) = await records(gateway.tracker)
    assert (record.cost_nano_usd, record.stream, record.estimated) == (COST_NANO_USD, True, False)


def deflated(data: bytes) -> bytes:
    return zlib.compress(data)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", deflated)])
async def test_an_encoded_answer_is_read_and_passes_as_it_is(gateway: Gateway, encoding: str, pack: Any) -> None:
    await gateway.begin()
    state = operation("completed", usage=USAGE, output=[{"content": "x" * 5000}])
    packed = pack(json.dumps(state).encode())
    gateway.upstream.body = [packed[i : i + 7] for i in range(0, len(packed), 7)]
    gateway.upstream.headers = {"content-type": "application/json", "content-encoding": encoding}
    async with gateway.client.stream("GET", "/v1/responses/resp_1") as answer:
        assert b"".join([piece async for piece in answer.aiter_raw()]) == packed
    (record,) = await records(gateway.tracker)
    assert record.cost_nano_usd == COST_NANO_USD


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"id":5,"status":{}}', b"not json"])
async def test_an_answer_that_says_nothing_decides_nothing(gateway: Gateway, body: bytes) -> None:
    await gateway.begin()
    gateway.upstream.body = [body]
    assert (await gateway.poll()).content == body
    assert await records(gateway.tracker) == []
    assert await held_usd(gateway.tracker) > 0


async def test_an_answer_that_is_cut_off_decides_nothing(gateway: Gateway) -> None:
    await gateway.begin()
    gateway.upstream.body = [json.dumps(operation("completed", usage=USAGE)).encode()[:-1]]
    await gateway.poll()
    assert await records(gateway.tracker) == []


async def test_an_error_decides_nothing(gateway: Gateway) -> None:
    await gateway.begin()
    gateway.upstream.state, gateway.upstream.status = operation("completed", usage=USAGE), 404
    await gateway.poll()
    assert await records(gateway.tracker) == []
    assert await held_usd(gateway.tracker) > 0


async def test_an_answer_about_somebody_elses_operation_changes_nothing(gateway: Gateway) -> None:
    await gateway.begin()
    gateway.upstream.state = {**operation("completed", usage=USAGE), "id": "resp_2"}
    await gateway.poll("/v1/responses/resp_2")
    assert await records(gateway.tracker) == []
    assert await held_usd(gateway.tracker) > 0


async def test_of_the_apis_that_share_a_path_the_one_that_began_the_operation_reads_it(gateway: Gateway) -> None:
    tracker = gateway.tracker
    for api, provider in (("openai.batches", "openai"), ("gemini.batches", "google")):
        spec = CallSpec(model="gpt-4o", api=api, provider=provider, kind="batch", background=True)
        call = await tracker.admit(Identity(tenant="acme"), spec)
        await tracker.close_call(call, Conclusion(DEFERRED, provider_request_id="batch_1"))
    state = {"id": "batch_1", "object": "batch", "model": "gpt-4o", "status": "completed", "usage": USAGE}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    reading = watched(tracker, "GET", "/v1/batches/batch_1", send)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"application/json")]}
    body = {"type": "http.response.body", "body": json.dumps(state).encode()}
    for message in (start, body):
        await reading(message)
    assert sent == [start, body]
    assert sent[1] is body
    (record,) = await records(tracker)
    assert (record.api, record.usage.input_tokens, record.usage.output_tokens) == ("openai.batches", 40, 10)
    assert await tracker.store.operation("google:batch_1") is not None


async def test_an_end_that_the_client_did_not_wait_for_is_settled(gateway: Gateway) -> None:
    await gateway.begin()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has left")

    reading = watched(gateway.tracker, "GET", "/v1/responses/resp_1", send)
    await reading({"type": "http.response.start", "status": 200, "headers": []})
    with pytest.raises(OSError, match="left"):
        await reading({"type": "http.response.body", "body": json.dumps(operation("completed", usage=USAGE)).encode()})
    (record,) = await records(gateway.tracker)
    assert record.cost_nano_usd == COST_NANO_USD


@pytest.mark.parametrize(
    ("method", "path", "reads"),
    [
        ("GET", "/v1/responses/resp_1", True),
        ("GET", "/openai/v1/responses/resp_1/", True),
        ("GET", "//v1//responses/resp_1", True),
        ("POST", "/v1/responses/resp_1/cancel", True),
        ("POST", "/v1/responses/resp_1/cancel/", True),
        ("GET", "/v1/responses/resp_1/cancel", False),
        ("POST", "/v1/responses/resp_1", False),
        ("DELETE", "/v1/responses/resp_1", False),
        ("HEAD", "/v1/responses/resp_1", False),
        ("GET", "/v1/responses", False),
        ("GET", "/v1/responses/", False),
        ("GET", "/v1/responses/resp_1/input_items", False),
        ("POST", "/cancel", False),
        ("GET", "/", False),
        ("GET", "/v1/batches", True),
        ("GET", "/v1/batches/", True),
        ("GET", "/v1/batch/jobs", True),
        ("GET", "/v1/messages/batches", True),
        ("POST", "/v1/batches", False),
        # What stands behind may be read as another's name:
        ("GET", "/v1/messages/batches/cheap/results?/messages/batches/dear/results", False),
        ("GET", "/v1/responses/cheap%3F/responses/dear", False),
        ("GET", "/v1/responses/dear;x", False),
    ],
)
async def test_only_an_operations_own_path_is_watched(method: str, path: str, reads: bool) -> None:
    async def send(_message: Any) -> None:
        pass

    tracker = CostTracker(store="memory://")
    assert (watched(tracker, method, path, send) is not send) is reads


async def test_a_state_that_decides_nothing_asks_no_store(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def operation_of(key: str) -> None:
        asked.append(key)

    monkeypatch.setattr(gateway.tracker.store, "operation", operation_of)
    await gateway.poll()
    gateway.upstream.state = {"ok": True}
    await gateway.poll()
    assert asked == []
    gateway.upstream.state = operation("completed", usage=USAGE)
    await gateway.poll()
    assert asked == ["openai:resp_1"]


# Lists ---------------------------------------------------------------------------------------------------------------


def batch(name: str, status: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "object": "batch", "model": "gpt-4o", "status": status, **fields}


async def defer_batches(tracker: CostTracker, *names: str) -> None:
    for name in names:
        spec = CallSpec(model="gpt-4o", api="openai.batches", provider="openai", kind="batch", background=True)
        call = await tracker.admit(Identity(tenant="acme"), spec)
        await tracker.close_call(call, Conclusion(DEFERRED, provider_request_id=name))


@pytest.mark.parametrize("size", [7, 100_000])
@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_a_list_tells_the_end_of_each_batch_in_it(gateway: Gateway, size: int, encoding: str) -> None:
    tracker = gateway.tracker
    await defer_batches(tracker, "batch_1", "batch_2", "batch_3")
    odd = batch("\ud800", "completed", usage=USAGE, metadata={"of": [10**30, float("nan")]})
    listed = [odd, batch("batch_1", "completed", usage=USAGE), batch("batch_2", "in_progress"), None, batch("b9", "?")]
    body = json.dumps({"object": "list", "data": listed, "has_more": False}).encode()
    headers = [(b"Content-Type", b"application/json")]
    if encoding:
        body = gzip.compress(body)
        headers.append((b"Content-Encoding", encoding.encode()))
    messages: list[Any] = [{"type": "http.response.start", "status": 200, "headers": headers}]
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        messages.append({"type": "http.response.body", "body": piece, "more_body": start + size < len(body)})
    for _ in range(2):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        reading = watched(tracker, "GET", "/v1/batches", send)
        for message in messages:
            await reading(message)
        assert sent == messages
    (record,) = await records(tracker)
    assert (record.provider_request_id, record.usage.input_tokens, record.estimated) == ("batch_1", 40, False)
    for name in ("batch_2", "batch_3"):
        assert await tracker.store.operation(f"openai:{name}") is not None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"data":{"data":[]}}', b'{"data":[[{}]]}', b"x" * 200])
async def test_a_list_that_cannot_be_read_passes(
    gateway: Gateway, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.polling.MAX_LIST_BYTES", 100)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    reading = watched(gateway.tracker, "GET", "/v1/batches", send)
    messages: list[Any] = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": body, "more_body": True},
        {"type": "http.response.body"},
    ]
    for message in messages:
        await reading(message)
    assert sent == messages
    assert await records(gateway.tracker) == []


async def test_a_process_whose_first_request_is_a_poll_settles_it(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with CostTracker(store=url) as first:
        call = await first.admit(
            Identity(tenant="acme"), CallSpec(model="gpt-4o", api="openai.responses", provider="openai")
        )
        await first.close_call(call, Conclusion(DEFERRED, provider_request_id="resp_1"))
    upstream = Upstream()
    upstream.state = operation("completed", usage=USAGE)
    second = CostTracker(store=url)
    app = AskiiMiddleware(upstream.app(), tracker=second, identify=lambda _scope: "acme")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/v1/responses/resp_1")
    (record,) = await records(second)
    assert record.cost_nano_usd == COST_NANO_USD
    await second.stop()
