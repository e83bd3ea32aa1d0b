"""The way to the server: one connection that is made when it is needed and made again when it breaks.

Every wait ends within the time-out. A command whose reply was lost may have been carried out or not, so it is not sent
again from here: the store's operations are idempotent, and their callers know whether they want to repeat them. Only
what the server refused to look at (a script it does not know, a slot that moved) is.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ...errors import StoreError
from .places import Address, Place
from .scripts import Script
from .wire import Part, Refused, Reply, Wire, pack

MOST_WAITING = 50_000
"""Commands without a reply. Beyond, callers are told that the server does not keep up."""
_HINTS = {
    "TIMEOUT": "is it overloaded or paused, or timeout_s too short?",
    "LOST": "it may have restarted; the next call connects again",
    "NOAUTH": "the URL needs a password",
    "WRONGPASS": "check user and password in the URL",
    "NOPERM": "give the user the rights the guide lists",
    "NOSCRIPT": "it does not take this release's scripts: Redis 7 or Valkey 7.2 is the least",
    "LOADING": "it reads its data after a start: try again soon",
    "BUSY": "another client's script blocks it",
    "READONLY": "it became a replica: the next call looks for its successor",
    "MASTERDOWN": "a failover is under way: try again soon",
    "CLUSTERDOWN": "the cluster lacks a majority or a shard: try again soon",
    "TRYAGAIN": "the ledger's slot is being moved: try again when that is done",
    "ASK": "the ledger's slot is being moved: try again when that is done",
    "MOVED": "the cluster is being rearranged: try again soon",
    "OOM": "it has reached maxmemory: give it more",
    "MISCONF": "it cannot write its snapshot: look at its log",
    "NOREPLICAS": "too few replicas are in sync, or it has been replaced: the next call looks for its successor",
}
_TRIES = 3
_WAITING = 0.3
"""The share of the time-out that replicas have to confirm a write, which may be sent twice (with its script)."""
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "MOVED", "ASK", "CLUSTERDOWN", "LOADING", "NOREPLICAS"})
"""After these the server is looked for anew."""
_abandoned: list[Any] = []
"""Connections of the process this one was forked from. They are its parent's: not even closed here."""


class Link:
    """Belongs to one event loop at a time: once that is closed, or in a forked process, the next call connects anew."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self._place = place
        self._timeout_s = timeout_s
        # WAIT looks back to its connection's last write, and a repetition may have nothing to write.
        mark = pack(("SET", f"{{{place.namespace}}}:waited", 1))
        wait_ms = max(int(timeout_s * _WAITING * 1000), 1)
        self._barrier = mark + pack(("WAIT", place.wait_replicas, wait_ms))
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        """Process and loop of all that follows."""
        self._wire: Wire | None = None
        self._wires: set[Wire] = set()
        """All connections that are not closed."""
        self._connecting: asyncio.Task[Wire | str] | None = None

    async def call(self, *parts: Part) -> Reply:
        """The reply to one command. Raises StoreError."""
        return await self.send(pack(parts))

    async def send(self, data: bytes, script: Script | None = None) -> Reply:
        """The reply to a packed command, or to a packed EVALSHA of this script. Raises StoreError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        reply = None
        for _ in range(_TRIES):
            wire = self._wire
            if wire is None or wire.lost or self._home != (os.getpid(), loop):
                wire = await self._connected(loop, deadline)
            if len(wire) >= MOST_WAITING:
                raise StoreError(f"{self._place.url}: {MOST_WAITING} commands wait for a reply: the server is too slow")
            sent = wire.send(data, deadline)
            confirmed = wire.confirm(deadline) if self._place.wait_replicas and script and script.writes else None
            reply = await sent
            if type(reply) is not Refused:
                if confirmed is None:
                    return reply
                replicas = await asyncio.shield(confirmed)  # others wait for it too
                if type(replicas) is int and replicas >= self._place.wait_replicas:
                    return reply
                reply = replicas if type(replicas) is Refused else Refused(f"NOREPLICAS {replicas} have confirmed it")
            if reply.kind == "NOSCRIPT" and script is not None:
                wire.load(script.digest, pack(("SCRIPT", "LOAD", script.source)), deadline)
                continue
            if reply.kind in _ELSEWHERE:
                self._leave(wire)
            if reply.kind != "MOVED":
                break
        raise self._error(reply.text if reply else "no reply")

    def _error(self, text: str) -> StoreError:
        hint = _HINTS.get(text.partition(" ")[0])
        for secret in self._place.secrets:
            text = text.replace(secret, "***")
        return StoreError(f"{self._place.url}: {text[:300]}" + (f" ({hint})" if hint else ""))

    async def close(self) -> None:
        """Wait for the replies that are due, and disconnect."""
        if self._home != (os.getpid(), asyncio.get_running_loop()):
            self._abandon()
            return
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._wire is not None:
            self._leave(self._wire)
        if self._wires:
            await asyncio.wait([wire.closed for wire in self._wires])

    def _leave(self, wire: Wire) -> None:
        """Use this connection no more; what was sent on it is still answered."""
        if self._wire is wire:
            self._wire = None
        wire.retire()

    def _abandon(self) -> None:
        """Let go of what belongs to another process or to a loop that is over."""
        if self._home is not None and self._home[0] != os.getpid():
            _abandoned.append((self._home, self._wire, self._connecting, self._wires))
        self._home, self._wire, self._connecting, self._wires = None, None, None, set()

    async def _connected(self, loop: asyncio.AbstractEventLoop, deadline: float) -> Wire:
        home = os.getpid(), loop
        if self._home != home:
            if self._home is not None and self._home[0] == home[0] and self._home[1].is_running():
                raise StoreError(f"{self._place.url}: in use by another event loop: a store belongs to one at a time")
            self._abandon()
            self._home = home
        task = self._connecting
        if task is None:
            task = self._connecting = loop.create_task(self._connect(loop))
            task.add_done_callback(self._made)
        # Whoever gives up leaves the others waiting for the same connection.
        await asyncio.wait([task], timeout=max(deadline - loop.time(), 0))
        if not task.done():
            raise self._error("TIMEOUT no connection yet")
        found = "LOST the store was closed" if task.cancelled() else task.result()
        if isinstance(found, str):
            raise self._error(found)
        return found

    def _made(self, task: asyncio.Task[Wire | str]) -> None:
        self._connecting = None
        if not task.cancelled():
            found = task.result()
            self._wire = found if isinstance(found, Wire) else None

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Wire | str:
        """A connection that is ready, or why there is none."""
        until = loop.time() + self._timeout_s
        try:
            async with asyncio.timeout_at(until):
                address = await self._place.find(self._ask)
                commands: list[tuple[Part, ...]] = [("SELECT", self._place.db)] if self._place.db else []
                wire = await self._dial(address, until, *commands)
                if self._place.kind != "sentinel":
                    return wire
                role = await self._first(wire, pack(("ROLE",)), until)
                if isinstance(role, Refused) or role[0] == b"master":
                    return wire
                wire.end("LOST")
                return f"MASTERDOWN {address} is not the master any more"
        except TimeoutError:
            return f"TIMEOUT no connection within {self._timeout_s:g} s"
        except LookupError as error:
            return f"MASTERDOWN {error}"
        except ConnectionAbortedError as error:
            return str(error)
        except OSError as error:
            return f"no connection: {error}; is the server running there?"

    async def _ask(self, address: Address, parts: tuple[Part, ...]) -> Reply:
        """See `places.Ask`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_s / (len(self._place.seeds) + 1)
        async with asyncio.timeout_at(until):
            wire = await self._dial(address, until)
            try:
                return await self._first(wire, pack(parts), until)
            finally:
                wire.end("LOST")

    async def _dial(self, address: Address, until: float, *commands: tuple[Part, ...]) -> Wire:
        """A connection that is logged in and has done these. Raises OSError; ConnectionAbortedError with what the
        server said if it refused.
        """
        place = self._place
        loop = asyncio.get_running_loop()
        host = address.host if place.tls is not None and place.tls.check_hostname else None
        _, wire = await loop.create_connection(
            lambda: Wire(loop, self._barrier), address.host, address.port, ssl=place.tls, server_hostname=host
        )
        self._wires.add(wire)
        wire.closed.add_done_callback(lambda _: self._wires.discard(wire))
        login = place.login_for(address)
        for command in (*([("AUTH", *login)] if login else []), *commands):
            reply = await self._first(wire, pack(command), until)
            if isinstance(reply, Refused):
                wire.end("LOST")
                raise ConnectionAbortedError(reply.text.partition(", with args")[0])  # a login, perhaps cut short
        return wire

    async def _first(self, wire: Wire, data: bytes, until: float) -> Reply:
        """The reply to a command on a connection that nobody else knows yet, and nobody will if this is cancelled."""
        try:
            return await wire.send(data, until)
        except BaseException:
            wire.end("LOST")
            raise
