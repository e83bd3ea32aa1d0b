"""A provider that gives recorded answers again, in pieces of any size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from .asgi import read_all
from .recordings import Recording

TAIL_BYTES = 20_000
"""In pieces of one byte go the last so many of an answer; what stands before them goes in one piece."""

NO_CHANGES: Mapping[str, str] = MappingProxyType({})


class Played(NamedTuple):
    """An answer to give."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    streamed: bool = False
    """Streams are sent without their length."""
    endless: bool = False
    """The answer begins and goes on until the client leaves."""
    frames: Sequence[tuple[str, str]] = ()
    """What passes over a WebSocket instead: who speaks, `sent` (the client) or `received`, and the text."""

    @classmethod
    def of(cls, recording: Recording, other: Mapping[str, str] = NO_CHANGES) -> Played:
        """A recorded answer, with other names in it."""
        body = _renamed(recording.wire, other)
        played = cls(recording.entry["http_status"], recording.headers, body, recording.streamed)
        return played._replace(frames=recording.frames) if recording.is_socket else played

    @classmethod
    def json(cls, value: Mapping[str, Any], other: Mapping[str, str] = NO_CHANGES) -> Played:
        return cls(200, [(b"content-type", b"application/json")], _renamed(json.dumps(value).encode(), other))


def _renamed(body: bytes, other: Mapping[str, str]) -> bytes:
    for old, new in other.items():
        body = body.replace(old.encode(), new.encode())
    return body


async def play(frames: Sequence[tuple[str, str]], receive: Any, send: Any) -> None:
    """The provider's part of a recorded conversation; it goes on only when the client has said its own part."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    for speaker, text in frames:
        if speaker == "received":
            await send({"type": "websocket.send", "text": text})
        elif (await receive())["type"] == "websocket.disconnect":
            return
    assert (await receive())["type"] == "websocket.disconnect"


class Heard(NamedTuple):
    """A request as it reached the provider."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    """A body in pieces of so many bytes; see TAIL_BYTES. 0: in one."""
    start = 0
    if size == 0 or (size == 1 and len(body) > TAIL_BYTES):
        start = len(body) - (TAIL_BYTES if size else 0)
        yield body[:start]
    for at in range(start, len(body), size or 1):
        yield body[at : at + size]


@dataclass
class Replay:
    """An ASGI application. The first two segments of a path say what is answered, and in pieces of how many bytes:
    `/NAME/SIZE/v1/chat/completions`.
    """

    answers: dict[str, Played]
    heard: list[Heard] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        _, name, size, path = scope["path"].split("/", 3)
        if scope["type"] == "websocket":
            await play(self.answers[name].frames, receive, send)
            return
        self.heard.append(Heard(scope["method"], "/" + path, dict(scope["headers"]), await read_all(receive) or b""))
        status, headers, body, streamed, endless, _ = self.answers[name]
        if not streamed:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces(body, int(size)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        while endless and (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
