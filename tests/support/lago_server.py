"""A stand-in for Lago on a loopback socket, in this process or as one of its own that may be killed at any moment.

In a test: `async with LagoServer(path, api_key=KEY) as lago:`. As a process: see `main`. It answers on the paths of
Lago's API under `/api/v1`; what it knows is in `Books`, and what goes wrong on demand, or at random, in `Faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from random import Random
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from .lago_books import Books, DatabaseError, InvalidError, LagoEvent, shown

KEY = "lago-key-for-tests-7d1f"
_JSON = {"content-type": "application/json; charset=utf-8"}
_HTML = {"content-type": "text/html"}
_MAX_REQUEST_BYTES = 16 << 20


class Faults(msgspec.Struct):
    """What goes wrong. A fault is a status (`500`, `429`, `502` in HTML) or `reset`, `hang`, `half` (an answer that
    breaks off) or `web` (200 from something that is not Lago); with ` after`, what was sent is taken first.

    Attributes:
        script: one for each coming POST, the first first; `ok` is none.
        always: for every POST for which the script has none.
        chances: faults at random, each with its probability.
        poison: transaction ids; a batch that has one of them is answered 500.
        max_body_bytes: larger requests are answered 413 in HTML, as a proxy does.
        hang_s: how long `hang` lasts, unless the client leaves before.
        reset_s: `X-RateLimit-Reset` of a 429.
        delay_s: before every answer.
    """

    script: list[str] = []
    always: str = "ok"
    chances: dict[str, float] = {}
    seed: int = 0
    poison: list[str] = []
    max_body_bytes: int = _MAX_REQUEST_BYTES
    hang_s: float = 60.0
    reset_s: float = 1.0
    delay_s: float = 0.0


class Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class LagoServer:
    """Serves `Books`.

    Args:
        path: the file of the books.
        listener: a bound socket; None: a port of its own on loopback.
    """

    def __init__(
        self,
        path: str,
        *,
        api_key: str = KEY,
        faults: Faults | None = None,
        listener: socket.socket | None = None,
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        self.books = Books(path, clock=clock, **options)
        self.faults = faults or Faults()
        self.posts: list[list[str]] = []
        """The transaction ids of each POST that came, in order."""
        self._bearer = f"Bearer {api_key}".encode()
        self._chance = Random(self.faults.seed)
        self._listener = listener or bound()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, sock=self._listener, limit=1 << 16)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections)
        await self._server.wait_closed()
        self.books.close()

    # HTTP ------------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while (request := await _read(reader)) is not None:
                if not await self._answer(request, reader, writer):
                    break
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.transport.abort()
        finally:
            del self._connections[task]

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False: the connection is done with."""
        fault, _, after = self._fault(request).partition(" ")
        answer = self._respond(request) if fault == "ok" or after else None
        if fault == "hang":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.faults.hang_s):
                    await reader.read(1)
            fault = "reset"
        if fault == "reset":
            writer.transport.abort()
            return False
        if answer is None or fault not in ("ok", "half"):
            answer = self._broken(fault)
        if self.faults.delay_s:
            await asyncio.sleep(self.faults.delay_s)
        headers = {**answer.headers, "content-length": str(len(answer.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        text = f"HTTP/1.1 {answer.status} -\r\n{head}\r\n".encode() + answer.body
        writer.write(text[: len(text) // 2] if fault == "half" else text)
        await writer.drain()
        return fault != "half"

    def _fault(self, request: Request) -> str:
        if request.method != "POST":
            return "ok"
        self.posts.append(_note(self.books, request.body))
        if len(request.body) > self.faults.max_body_bytes:
            return "413"
        if self.faults.script:
            return self.faults.script.pop(0)
        if any(msgspec.json.encode(transaction_id) in request.body for transaction_id in self.faults.poison):
            return "500"
        drawn = self._chance.random()
        for fault, chance in self.faults.chances.items():
            drawn -= chance
            if drawn < 0:
                # What is too large alone is too large for good, which is no matter of chance.
                return fault if fault != "413" or len(self.posts[-1]) > 1 else "ok"
        return self.faults.always

    def _broken(self, fault: str) -> Answer:
        if fault == "half":
            return _json(200, {"events": ["x" * 200]})
        if fault == "web":
            return Answer(200, _HTML, b"<html>Lago</html>")
        status = int(fault)
        if status == 429:
            return _json(
                429, {"status": 429, "error": "Too Many Requests"}, {"x-ratelimit-reset": f"{self.faults.reset_s:g}"}
            )
        if status in (413, 502, 503, 504):
            return Answer(status, _HTML, f"<html><head><title>{status}</title></head></html>".encode())
        return _error(status, {401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}.get(status, "Internal Error"))

    # The API ---------------------------------------------------------------------------------------------------------

    def _respond(self, request: Request) -> Answer:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), self._bearer):
            return _error(401, "Unauthorized")
        parts = urlsplit(request.target)
        path = parts.path.removeprefix("/api/v1/").split("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if not parts.path.startswith("/api/v1/"):
            return _error(404, "Not Found")
        match request.method, [unquote(part) for part in path]:
            case "POST", ["events", "batch"]:
                return self._take(request.body, "events", self.books.take_batch)
            case "POST", ["events"]:
                return self._take(request.body, "event", self.books.take_single)
            case "GET", ["events"]:
                return self._events(query)
            case "GET", ["events", *rest]:
                event = self.books.event("/".join(rest))
                return _one("event", None if event is None else shown(event))
            case "GET", ["subscriptions"]:
                return _page("subscriptions", [_subscription(name) for name in self.books.subscriptions or ()], query)
            case "GET", ["subscriptions", name]:
                subscriptions = self.books.subscriptions
                known = bool(name) if subscriptions is None else name in subscriptions
                return _one("subscription", _subscription(name) if known else None)
            case "GET", ["billable_metrics"]:
                metrics = [_metric(code, field) for code, field in self.books.metrics.items()]
                return _page("billable_metrics", metrics, query)
            case "GET", ["billable_metrics", code]:
                field = self.books.metrics.get(code)
                return _one("billable_metric", None if field is None else _metric(code, field))
            case "GET", ["customers", _, "current_usage"]:
                return self._current_usage(query.get("external_subscription_id", ""))
        return _error(404, "Not Found")

    def _take(self, body: bytes, member: str, take: Callable[[Any], list[LagoEvent]]) -> Answer:
        try:
            sent = msgspec.json.decode(body)[member]
        except (msgspec.DecodeError, KeyError, TypeError):
            return _error(400, "BadRequest: malformed body")
        if member == "events" and not isinstance(sent, list):
            return _error(400, "BadRequest: malformed body")
        try:
            taken = [shown(event) for event in take(sent)]
        except InvalidError as error:
            return _error(422, "Unprocessable Entity", code="validation_errors", error_details=error.details)
        except DatabaseError as error:
            return _error(500, f"Internal Server Error: {error}")
        return _json(200, {member: taken if member == "events" else taken[0]})

    def _events(self, query: dict[str, str]) -> Answer:
        """The newest timestamp first."""
        try:
            bounds = [datetime.fromisoformat(query[name]).timestamp() if name in query else None for name in _BOUNDS]
        except ValueError:
            return _error(
                422, "Unprocessable Entity", code="validation_errors", error_details={"timestamp": ["invalid"]}
            )
        from_s = -math.inf if bounds[0] is None else bounds[0]
        to_s = math.inf if bounds[1] is None else bounds[1]
        found = self.books.events(query.get("external_subscription_id"), query.get("code"), from_s=from_s, to_s=to_s)
        found.sort(key=lambda event: -event.timestamp_s)
        return _page("events", [shown(event) for event in found], query)

    def _current_usage(self, subscription: str) -> Answer:
        if self.books.subscriptions is not None and subscription not in self.books.subscriptions:
            return _error(404, "Not Found", code="subscription_not_found")
        charges = []
        for code in self.books.metrics:
            events = self.books.events(subscription, code)
            charges.append(
                {
                    "units": str(self.books.billed(code).get(subscription, 0)),
                    "events_count": len(events),
                    "billable_metric": {"lago_id": None, "name": code, "code": code, "aggregation_type": "sum_agg"},
                }
            )
        return _json(200, {"customer_usage": {"currency": "USD", "charges_usage": charges}})


_BOUNDS = ("timestamp_from", "timestamp_to")


def bound(port: int = 0) -> socket.socket:
    """A listener on loopback. With the protocol named, asyncio switches Nagle's algorithm off."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """The next request; None where the client has left."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        body = await reader.readexactly(min(int(headers.get("content-length", "0")), _MAX_REQUEST_BYTES))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    method, target, _ = line.split(" ")
    return Request(method, target, headers, body)


def _note(books: Books, body: bytes) -> list[str]:
    try:
        sent = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        events = msgspec.json.decode(sent["events"], type=list[msgspec.Raw]) if "events" in sent else [sent["event"]]
        books.note(events)
        return [str(msgspec.json.decode(raw).get("transaction_id")) for raw in events]
    except (msgspec.MsgspecError, KeyError, AttributeError):
        return []


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {**_JSON, **(headers or {})}, msgspec.json.encode(value))


def _error(status: int, error: str, **more: Any) -> Answer:
    return _json(status, {"status": status, "error": error, **more})


def _one(name: str, value: Any) -> Answer:
    return _json(200, {name: value}) if value is not None else _error(404, "Not Found", code=f"{name}_not_found")


def _page(name: str, values: Sequence[Any], query: dict[str, str]) -> Answer:
    try:
        page, size = max(int(query.get("page", "1")), 1), min(max(int(query.get("per_page", "25")), 1), 100)
    except ValueError:
        return _error(400, "BadRequest: page and per_page are numbers")
    pages = math.ceil(len(values) / size)
    meta = {
        "current_page": page,
        "next_page": page + 1 if page < pages else None,
        "prev_page": page - 1 if page > 1 else None,
        "total_pages": pages,
        "total_count": len(values),
    }
    return _json(200, {name: values[(page - 1) * size : page * size], "meta": meta})


def _subscription(name: str) -> dict[str, Any]:
    return {"lago_id": None, "external_id": name, "external_customer_id": name, "plan_code": "plan", "status": "active"}


def _metric(code: str, field: str) -> dict[str, Any]:
    return {"lago_id": None, "name": code, "code": code, "aggregation_type": "sum_agg", "field_name": field}


async def _serve(server: LagoServer) -> None:
    async with server:
        await asyncio.Event().wait()


def main() -> None:
    """`python -m tests.support.lago_server PATH [FAULTS AS JSON]` prints its URL, then serves in a child process.
    Each line on the standard input kills that child with SIGKILL and starts the next on the same port and file;
    `dead` is printed when it is gone. Ends with its standard input.
    """
    path, faults = sys.argv[1], msgspec.json.decode(sys.argv[2] if len(sys.argv) > 2 else "{}", type=Faults)
    listener = bound()
    listener.listen(100)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1", flush=True)
    for life in range(10**6):
        child = os.fork()
        if child == 0:
            try:
                faults.seed += life
                asyncio.run(_serve(LagoServer(path, faults=faults, listener=listener)))
            finally:
                os._exit(1)
        line = sys.stdin.readline()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not line:
            return
        print("dead", flush=True)


if __name__ == "__main__":
    main()
