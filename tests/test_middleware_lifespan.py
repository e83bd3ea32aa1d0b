"""The tracker lives as long as the application does, whatever that knows of lifespans."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from askii_middleware import AskiiMiddleware, CostTracker
from askii_middleware.sinks.memory import MemorySink

from .support.asgi import Scripted, ask, chat_answer, plain
from .support.ledgers import PRICES, Clock

SCOPE = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}


class Server:
    """The server's side of a lifespan."""

    def __init__(self, app: Any) -> None:
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.heard: list[str] = []
        self.states: list[bool] = []
        self._app = app
        self._task: asyncio.Task[None] | None = None

    async def say(self, kind: str) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._app(SCOPE, self.told.get, self._send))
        self.told.put_nowait({"type": f"lifespan.{kind}"})
        before = len(self.heard)
        while len(self.heard) == before and not self._task.done():
            await asyncio.sleep(0)

    async def _send(self, message: dict[str, Any]) -> None:
        self.heard.append(message["type"])

    async def end(self) -> BaseException | None:
        assert self._task is not None
        await asyncio.wait([self._task])
        return self._task.exception()


@pytest.fixture
async def tracker() -> AsyncIterator[CostTracker]:
    found = CostTracker(store="memory://", prices=PRICES, clock=Clock(), sinks=[MemorySink()])
    yield found
    if running(found):
        await found.stop()


def running(tracker: CostTracker) -> bool:
    return tracker.loop is not None


def around(app: Any, tracker: CostTracker) -> AskiiMiddleware:
    return AskiiMiddleware(app, tracker=tracker, identify=lambda _scope: "acme")


async def test_the_tracker_starts_before_the_application_and_stops_after_it(tracker: CostTracker) -> None:
    seen: list[tuple[str, bool]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope is SCOPE
        while True:
            kind = (await receive())["type"]
            seen.append((kind, running(tracker)))
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    server = Server(around(app, tracker))
    await server.say("startup")
    assert running(tracker)
    await server.say("shutdown")
    assert await server.end() is None
    assert not running(tracker)
    assert seen == [("lifespan.startup", True), ("lifespan.shutdown", True)]
    assert server.heard == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("reads", [False, True])
async def test_an_application_without_lifespans_works_and_the_first_request_starts_the_tracker(
    tracker: CostTracker, *, reads: bool
) -> None:
    answers = Scripted(plain(chat_answer()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            if reads:
                await receive()
            raise NotImplementedError("no lifespans here")
        await answers(scope, receive, send)

    middleware = around(app, tracker)
    server = Server(middleware)
    await server.say("startup")
    assert isinstance(await server.end(), NotImplementedError)
    assert not running(tracker)
    assert (await ask(middleware)).status == 200
    assert running(tracker)
    (sink,) = tracker.sinks
    assert isinstance(sink, MemorySink)
    await tracker.flush()
    assert len(sink.records) == 1


async def test_a_request_before_any_lifespan_starts_the_tracker(tracker: CostTracker) -> None:
    assert (await ask(around(Scripted(plain(chat_answer())), tracker))).status == 200
    assert running(tracker)


@pytest.mark.parametrize("returns", [False, True])
async def test_a_start_that_fails_stops_the_tracker(tracker: CostTracker, *, returns: bool) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert running(tracker)
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        if not returns:
            await receive()

    server = Server(around(app, tracker))
    await server.say("startup")
    assert server.heard == ["lifespan.startup.failed"]
    assert not running(tracker)
    server.told.put_nowait({"type": "lifespan.shutdown"})
    assert await server.end() is None


async def test_an_application_that_raises_while_it_runs_stops_the_tracker(tracker: CostTracker) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("no")

    server = Server(around(app, tracker))
    await server.say("startup")
    await server.say("shutdown")
    assert isinstance(await server.end(), RuntimeError)
    assert not running(tracker)


async def test_two_lifespans_over_one_tracker_end_it_with_the_second(tracker: CostTracker) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    first, second = Server(around(app, tracker)), Server(around(app, tracker))
    await first.say("startup")
    await second.say("startup")
    await first.say("shutdown")
    assert running(tracker)
    await second.say("shutdown")
    assert not running(tracker)
    assert (await first.end(), await second.end()) == (None, None)


def test_it_takes_an_application_and_nothing_else() -> None:
    """`--middleware askii_middleware.AskiiMiddleware` builds it from the environment."""
    required = [
        parameter.name
        for parameter in inspect.signature(AskiiMiddleware).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    assert required == ["app"]
