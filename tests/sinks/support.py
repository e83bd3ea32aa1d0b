"""What the tests of delivery share: records, a clock, servers on real sockets, a way into a store's outbox."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.delivery_rounds import Rounds
from askii_middleware.delivery_worker import SinkWorker
from askii_middleware.demo.lago import LagoFaults, LagoLedger, lago_app
from askii_middleware.records import UsageCounts, UsageRecord, encode_settled_part
from askii_middleware.sinks.base import DELIVERED, Delivery, Sink
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores.base import Settlement, Store

API_KEY = "lago-key-for-tests-7d1f"
SPEC = Path(__file__).parents[2] / ".." / "shared" / "lago" / "lago-openapi-events.json"


def record(
    number: int = 0,
    *,
    coins: int = 1_500_000,
    subscription: str = "acme",
    timestamp: str = "2026-01-01T00:00:00.123Z",
    call_id: str | None = None,
    model: str = "gpt-4o",
    input_tokens: int = 812,
    output_tokens: int = 95,
) -> UsageRecord:
    return UsageRecord(
        call_id=f"call-{number:05d}" if call_id is None else call_id,
        timestamp=timestamp,
        tenant=subscription or "nobody",
        subscription=subscription,
        api="openai.chat",
        provider="openai",
        requested_model=model,
        served_model=model,
        usage=UsageCounts(input_tokens=input_tokens, output_tokens=output_tokens),
        cost_nano_usd=coins * 1000,
        price_version="test",
        exchange_rate=1e6,
        askii_coins=coins,
    )


async def put(store: Store, *records: UsageRecord) -> None:
    """Settle each record as a call of its own, so that it reaches the outbox as in production."""
    for each in records:
        await store.settle(
            Settlement(
                call_id=each.call_id,
                admitted_at_s=1_767_225_600.0,
                cost_nano_usd=each.cost_nano_usd,
                matches=(),
                windows={},
                rate=(1_000_000, 1),
                subscription=each.subscription,
                coins=each.askii_coins,
                pico_coins=0,
                tenant=each.tenant,
                aggregates=(),
                record=encode_settled_part(msgspec.structs.replace(each, askii_coins=0)),
            )
        )


class FakeClock:
    def __init__(self, now_s: float = 1_767_225_600.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class ScriptedSink:
    """Answers as told: each item of `script` is a Delivery, an exception, or a callable; then everything is
    delivered. Remembers the call ids of each send.
    """

    def __init__(
        self, name: str = "sink", script: Sequence[Any] = (), *, max_batch: int = 100, poison: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.script = list(script)
        self.poison = set(poison)
        self.sent: list[list[str]] = []
        self.delivered: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = 0

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        ids = [each.call_id for each in records]
        self.sent.append(ids)
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await asyncio.sleep(0)
            answer: Any = self.script.pop(0) if self.script else None
            if callable(answer):
                answer = await answer(records)
            if isinstance(answer, BaseException):
                raise answer
            if self.poison.intersection(ids):
                raise RuntimeError("poison")
        finally:
            self.in_flight -= 1
        if answer is not None:
            assert isinstance(answer, Delivery)
            return answer
        self.delivered += ids
        return Delivery((DELIVERED,) * len(records))

    async def close(self) -> None:
        self.closed += 1


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Recorder:
    """An ASGI app around another that keeps the path and headers of each request, and its body if that came whole."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        self.paths.append(scope["path"])
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})

        async def copying() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    self.bodies.append(bytes(body))
            return message

        await self.app(scope, copying, send)

    @property
    def events(self) -> list[list[dict[str, Any]]]:
        return [json.loads(body)["events"] for body in self.bodies]

    @property
    def ids(self) -> list[list[str]]:
        return [[event["transaction_id"] for event in batch] for batch in self.events]


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an app with uvicorn on a loopback port of its own; gives the URL without a path."""
    # With the protocol named, asyncio switches Nagle's algorithm off; without, each answer waits 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # Without `serve` and `shutdown`, which wait for a tenth of a second where nothing is to be waited for.
        await server.startup([listener])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for each in server.servers:
                each.close()
            for connection in list(server.server_state.connections):
                connection.shutdown()
            for task in server.server_state.tasks:
                task.cancel()
            await asyncio.gather(*server.server_state.tasks, return_exceptions=True)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Lago:
    """The stand-in behind a real socket, everything it was sent, and a sink that talks to it."""

    def __init__(self, app: Any, recorder: Recorder, url: str, sink: LagoSink) -> None:
        self.ledger: LagoLedger = app.state.ledger
        self.faults: LagoFaults = app.state.faults
        self.recorder = recorder
        self.url = url
        self.sink = sink


@asynccontextmanager
async def running_lago(**options: Any) -> AsyncIterator[Lago]:
    app = lago_app(api_key=API_KEY)
    recorder = Recorder(app)
    async with serving(recorder) as url:
        sink = LagoSink(f"{url}/api/v1", API_KEY, **options)
        yield Lago(app, recorder, url, sink)
        await sink.close()


async def worker_for(store: Store, sink: Sink, clock: FakeClock, **options: Any) -> SinkWorker:
    options.setdefault("random", random.Random(7))
    options.setdefault("owner", "w1")
    options.setdefault("lease_s", 30.0)
    await store.register_sinks([sink.name])
    return DeliveryLoop(store, [sink], clock=clock, **options).workers[0]


async def drain(worker: Rounds, clock: Any, *, rounds: int = 500) -> list[float]:
    """Rounds until nothing due is left, moving the clock over every pause; the pauses."""
    pauses: list[float] = []
    for _ in range(rounds):
        wait_s = await worker.round()
        if worker._drained:
            return pauses
        if wait_s:
            pauses.append(wait_s)
            clock.advance(wait_s)
    raise AssertionError("never drained")
