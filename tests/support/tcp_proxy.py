"""A wire to a server on which a test does harm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Harm = Literal["none", "before", "inside", "after", "half-close", "swallow", "stall"]
"""What becomes of the next commands:

- `before`: the connection is reset, and nothing of the command arrives;
- `inside`: half of what was sent arrives, then the connection is reset;
- `after`: the server gets it and answers; the answer is thrown away and the connection reset;
- `half-close`: the server gets it and answers; the client sees the end of the stream in place of the answer;
- `swallow`: the server gets it and answers; from then on nothing arrives over this connection, and nobody hangs up;
- `stall`: nothing goes on in either direction, as long as this lasts.
"""


class TcpProxy:
    """Passes on what comes, with its harm, to `target` (a port on loopback), which may be changed for new connections.

    Attributes:
        latency_s: added in each direction to each piece.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.latency_s = 0.0
        self._harm: Harm = "none"
        self._going = asyncio.Event()
        self._going.set()
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def harm(self) -> Harm:
        return self._harm

    @harm.setter
    def harm(self, harm: Harm) -> None:
        self._harm = harm
        (self._going.clear if harm == "stall" else self._going.set)()

    def reset(self) -> None:
        """All connections that there are."""
        for link in tuple(self._links):
            self._cut(*link)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TcpProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.harm = "none"
            self.reset()
            while self._tasks:
                await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._going.wait()
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(client)
            return
        link = client, server
        self._links.add(link)
        try:
            await asyncio.gather(self._pass_commands(reader, link), self._pass_answers(answers, link))
        finally:
            self._links.discard(link)
            for writer in link:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _pass_commands(
        self, reader: asyncio.StreamReader, link: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    ) -> None:
        client, server = link
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._wait()
                if self._harm in ("before", "inside"):
                    if self._harm == "inside":
                        server.write(data[: len(data) // 2])
                        await server.drain()
                    self._cut(client, server, gently=True)
                    break
                server.write(data)
                await server.drain()
        if not server.is_closing():
            with contextlib.suppress(OSError):
                server.write_eof()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, link: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    ) -> None:
        client, server = link
        deaf = False
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._wait()
                if deaf:
                    continue
                if self._harm in ("after", "half-close", "swallow"):
                    if self._harm == "after":
                        self._cut(client, server)
                        return
                    if self._harm == "half-close":
                        break
                    deaf = True
                    continue
                client.write(data)
                await client.drain()
        if not client.is_closing():
            with contextlib.suppress(OSError):
                client.write_eof()

    async def _wait(self) -> None:
        await self._going.wait()
        if self.latency_s:
            await asyncio.sleep(self.latency_s)

    def _cut(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, *, gently: bool = False) -> None:
        """`gently`: the server still reads what it was sent."""
        _reset(client)
        if gently:
            server.close()
        else:
            _reset(server)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    wire = writer.get_extra_info("socket")
    if wire is not None and not writer.is_closing():
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
