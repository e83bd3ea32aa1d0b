"""One connection to a server that speaks RESP2: commands out, replies in, in the same order.

Commands of one event-loop tick leave in one write, and no command waits for the reply to another. A reply that is an
error is a value here, so that it concerns nobody but its caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

Part = bytes | str | int | float
"""What a command is made of."""
Reply = Any
"""bytes, int, None, a list of replies, or Refused."""


class Refused:
    """The server's error, or (`LOST`, `TIMEOUT`) ours, in the server's form: a word in capitals, then the text."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    @property
    def kind(self) -> str:
        return self.text.partition(" ")[0]


def bulk(part: Part) -> bytes:
    if isinstance(part, str):
        part = part.encode("utf-8", "surrogatepass")
    elif isinstance(part, int):
        part = b"%d" % part
    elif isinstance(part, float):
        part = repr(part).encode()
    return b"$%d\r\n%b\r\n" % (len(part), part)


def text(part: bytes) -> str:
    """The inverse of what becomes of a string."""
    return part.decode("utf-8", "surrogatepass")


def pack(parts: Sequence[Part]) -> bytes:
    """A command as it stands on the wire."""
    return b"*%d\r\n%b" % (len(parts), b"".join(map(bulk, parts)))


class _IncompleteError(Exception):
    """Not all of a reply is there."""

    def __init__(self, size: int) -> None:
        self.size = size
        """So many bytes the buffer needs at least."""


def parse(buffer: bytes, at: int) -> tuple[Reply, int]:
    """The reply that begins at `at`, and where it ends."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        raise _IncompleteError(len(buffer) + 1)
    kind, after = buffer[at], end + 2
    if kind == 0x24:  # $
        size = int(buffer[at + 1 : end])
        if size < 0:
            return None, after
        last = after + size
        if len(buffer) < last + 2:
            raise _IncompleteError(last + 2)
        return buffer[after:last], last + 2
    if kind == 0x3A:  # :
        return int(buffer[at + 1 : end]), after
    if kind == 0x2A:  # *
        count = int(buffer[at + 1 : end])
        found = []
        for _ in range(count):
            reply, after = parse(buffer, after)
            found.append(reply)
        return (None if count < 0 else found), after
    if kind == 0x2B:  # +
        return buffer[at + 1 : end], after
    if kind == 0x2D:  # -
        return Refused(buffer[at + 1 : end].decode("utf-8", "replace")), after
    raise ValueError(f"a reply begins with {kind:#x}")


class Wire(asyncio.Protocol):
    """See the module. Whatever ends a connection answers all that wait with `Refused`.

    Args:
        barrier: two commands, packed, the second of which tells how many replicas have what was sent before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, barrier: bytes) -> None:
        self.loop = loop
        self._barrier = barrier
        self._confirming: asyncio.Future[Reply] | None = None
        self._confirm_by = 0.0
        self.lost = False
        """No command can be sent any more."""
        self.closed: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._out: list[bytes] = []
        self._loading: set[str] = set()
        self._retiring = False
        self._buffer = b""
        self._needed = 0
        self._watch: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, data: bytes, deadline: float) -> asyncio.Future[Reply]:
        """Send a packed command. If its reply is not there at the loop's time `deadline`, the connection ends: behind
        a reply that does not come, no other can.
        """
        future = self.loop.create_future()
        if self.lost:
            future.set_result(Refused("LOST the connection was closed"))
            return future
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(data)
        self._waiting.append((future, deadline))
        if self._watch is None or deadline < self._watch.when():
            self._watch_until(deadline)
        return future

    def confirm(self, deadline: float) -> asyncio.Future[Reply]:
        """The barrier's answer for all that is sent in this tick of the loop."""
        if self._confirming is None:
            self._confirming = self.loop.create_future()
            self._confirm_by = deadline
        return self._confirming

    def load(self, digest: str, data: bytes, deadline: float) -> None:
        """Send a script, unless it is on its way: what is sent from now on comes after it."""
        if digest not in self._loading:
            self._loading.add(digest)
            self.send(data, deadline).add_done_callback(lambda _: self._loading.discard(digest))

    def _flush(self) -> None:
        if self._confirming is not None and not self.lost:
            self._out.append(self._barrier)
            self._waiting.append((self.loop.create_future(), self._confirm_by))
            self._waiting.append((self._confirming, self._confirm_by))
            self._confirming = None
        if self._transport is not None and not self.lost:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _watch_until(self, deadline: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        first = min(deadline for _, deadline in self._waiting)
        if first <= self.loop.time():
            self.end("TIMEOUT the server did not answer in time")
        else:
            self._watch_until(first)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        if size >= self._needed:
            self._needed = 0
            try:
                while at < size:
                    reply, at = parse(buffer, at)
                    self._answer(reply)
            except _IncompleteError as more:
                self._needed = more.size - at
            except (ValueError, IndexError) as error:
                self.end(f"LOST the server does not speak the Redis protocol: {error}")
                return
        self._buffer = buffer[at:]

    def _answer(self, reply: Reply) -> None:
        future, _ = self._waiting.popleft()
        if not future.done():  # its caller may have gone
            future.set_result(reply)
        if self._retiring and not self._waiting:
            self.end("LOST the connection was closed")

    def retire(self) -> None:
        """Close once the last reply is there."""
        self._retiring = True
        if not self._waiting:
            self.end("LOST the connection was closed")

    def connection_lost(self, error: Exception | None) -> None:
        self.end(f"LOST the connection broke: {error or 'the server closed it'}")
        if not self.closed.done():
            self.closed.set_result(None)

    def end(self, why: str) -> None:
        """Close at once; what waits is answered with `why`."""
        if self.lost:
            return
        self.lost = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            self._answer(Refused(why))
        if self._confirming is not None and not self._confirming.done():
            self._confirming.set_result(Refused(why))
        if self._transport is not None:
            self._transport.abort()
