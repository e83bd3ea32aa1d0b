"""ASGI without a server: scripted applications and scripted clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
RawHeaders = Sequence[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream; charset=utf-8")
CHAT = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}


# The server's side ---------------------------------------------------------------------------------------------------


def http_scope(
    path: str = "/v1/chat/completions", method: str = "POST", headers: RawHeaders = (JSON,)
) -> dict[str, Any]:
    """A request as uvicorn hands it over."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


class Client:
    """A client and the server in front of it: gives the request, takes the answer.

    `leaves_after` messages of the answer the connection is gone: `receive` then says so, and `send` does nothing, as
    under uvicorn, or raises OSError where `raises`. `leaves_after=0` is a client that is gone before any answer.
    """

    def __init__(
        self, chunks: Iterable[bytes] = (b"",), *, leaves_after: int | None = None, raises: bool = False
    ) -> None:
        pieces = list(chunks)
        self._requests: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": place < len(pieces) - 1}
            for place, piece in enumerate(pieces)
        ]
        self._leaves_after = leaves_after
        self._raises = raises
        self.messages: list[Message] = []
        self.gone = asyncio.Event()
        self.taken = 0
        """How many messages of the request were taken."""

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        if self.taken < len(self._requests):
            self.taken += 1
            return self._requests[self.taken - 1]
        if self._leaves_after == 0:
            self.gone.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if self._leaves_after is not None and len(self.messages) >= self._leaves_after:
            self.gone.set()
            if self._raises:
                raise OSError("the client is gone")
            return
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.gone.set()


@dataclass
class Answer:
    """What came back."""

    messages: list[Message]
    error: BaseException | None = None

    @property
    def start(self) -> Message:
        return next(m for m in self.messages if m["type"] == "http.response.start")

    @property
    def status(self) -> int:
        return int(self.start["status"])

    @property
    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in self.start["headers"]:
            assert name == name.lower() or not name.startswith(b"X-Askii")
            key = name.decode("latin-1").lower()
            assert not key.startswith("x-askii-") or key not in found, f"{key} twice"
            found[key] = value.decode("latin-1")
        return found

    @property
    def own_headers(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.startswith("x-askii-")}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def complete(self) -> bool:
        ends = [m for m in self.messages if m["type"] == "http.response.body" and not m.get("more_body", False)]
        return len(ends) == 1


async def ask(
    app: App,
    body: bytes | Iterable[bytes] | dict[str, Any] = CHAT,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: RawHeaders = (),
    client: Client | None = None,
    scope: dict[str, Any] | None = None,
    **more: Any,
) -> Answer:
    """One request. The application's exception comes back in the answer; `more` goes into the scope."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    if client is None:
        client = Client([body] if isinstance(body, bytes) else body)
    typed = any(name.lower() == b"content-type" for name, _ in headers)
    scope = {**(scope or http_scope(path, method, [*headers] if typed else [JSON, *headers])), **more}
    try:
        await app(scope, client.receive, client.send)
    except Exception as error:  # what a server would log
        return Answer(client.messages, error)
    return Answer(client.messages)


# The application's side ----------------------------------------------------------------------------------------------


async def read_all(receive: Callable[[], Awaitable[Message]]) -> bytes | None:
    """The request's body; None if the client left before its end."""
    body = b""
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return body


@dataclass
class Scripted:
    """An application that reads the request and then does what its script says: a message is sent, an exception
    raised, anything callable called with `(scope, receive, send)` and awaited.
    """

    script: Sequence[Any]
    reads: bool = True
    scopes: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes | None] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if self.reads:
            self.bodies.append(await read_all(receive))
        for step in self.script:
            if isinstance(step, dict):
                await send(step)
            elif isinstance(step, BaseException):
                raise step
            else:
                await step(scope, receive, send)

    @property
    def sent_json(self) -> Any:
        """The last request's body as the application read it."""
        body = self.bodies[-1]
        assert body is not None
        return json.loads(body)

    @property
    def sent_headers(self) -> dict[bytes, bytes]:
        return dict(self.scopes[-1]["headers"])


def start(*headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def plain(body: bytes | dict[str, Any], *headers: tuple[bytes, bytes], status: int = 200) -> list[Message]:
    """A JSON answer in one piece, with its length."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    length = (b"content-length", str(len(body)).encode())
    return [start(JSON, length, *headers, status=status), {"type": "http.response.body", "body": body}]


def stream(*events: bytes, headers: RawHeaders = ()) -> list[Message]:
    """A stream of these pieces that comes to its end."""
    return [start(SSE, *headers), *(piece(event) for event in events), piece(b"", more=False)]


def chat_answer(entering: int = 10, leaving: int = 5, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": entering, "completion_tokens": leaving, "total_tokens": entering + leaving}
    message = {"role": "assistant", "content": "hello you"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c1", "object": "chat.completion", "model": "big", "choices": [choice], "usage": usage, **more}


def chat_chunk(text: str | None = None, *, reason: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "model": "big"}
    return event({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more})


def chat_usage(entering: int = 10, leaving: int = 5) -> bytes:
    usage = {"prompt_tokens": entering, "completion_tokens": leaving, "total_tokens": entering + leaving}
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "big", "choices": [], "usage": usage})


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


# Cancellation --------------------------------------------------------------------------------------------------------


class Interrupted:
    """Drives a coroutine and cancels it where it waits for the `at`-th time, as `Task.cancel` does."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._at = at
        self.reached = False
        """It waited that often."""

    def __await__(self) -> Any:
        inner = self._work.__await__()
        waits = 0
        while True:
            try:
                waiting = inner.send(None)
                waits += 1
                if waits == self._at:
                    self.reached = True
                    if waiting is not None:
                        waiting.cancel()
                    waiting = inner.throw(asyncio.CancelledError())
            except StopIteration as done:
                return done.value
            yield waiting
