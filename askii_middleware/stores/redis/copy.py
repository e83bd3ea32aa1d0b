"""A whole Redis ledger as rows, for `askii migrate` and `askii copy-store`. `lua/*.lua` say how they lie there.

Hashes and keys are walked with SCAN, which may meet one twice: the names that were met are kept until the walk is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import chain
from typing import Any

from ..copying import Copier, Page, Row
from ..rows import PARTITIONS
from .copy_rows import AGGREGATES_S, Command, aggregate_args, commands, sink_commands
from .copy_walks import WALKS
from .store import SCHEMA, UNFINISHED, RedisStore
from .wire import Part, text

SCANNED = 500
"""Keys or fields that one step of a walk looks at."""


class Server(RedisStore):
    """The store with its plain commands. Keys are given without the ledger's prefix."""

    for_copy = True

    async def command(self, *parts: Part) -> Any:
        """A command that is not about a key of the ledger."""
        return await self._link.call(*parts)

    async def on(self, command: str, key: str, *rest: Part) -> Any:
        return await self._call(command, key, *rest)

    async def run(self, script: str, *args: Part) -> Any:
        return await self._run(script, args)

    async def all(self, sent: Sequence[Command]) -> list[Any]:
        """Many commands at once, carried out in this order."""
        return await asyncio.gather(*(self._call(str(name), str(key), *rest) for name, key, *rest in sent))

    async def keys_like(self, start: str) -> AsyncGenerator[list[str], None]:
        """The names, without the ledger's prefix, of its keys that begin like this, each once."""
        seen: set[bytes] = set()
        cursor = b"0"
        while True:
            pattern = f"{self._prefix}{start}*"
            cursor, found = await self._link.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED)
            new = set(found) - seen
            seen |= new
            yield [text(key)[len(self._prefix) :] for key in new]
            if cursor == b"0":
                return

    async def fields_of(self, key: str) -> AsyncGenerator[dict[bytes, bytes], None]:
        """A hash in pieces, each field once."""
        seen: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, flat = await self._call("HSCAN", key, cursor, "COUNT", SCANNED)
            found = dict(zip(flat[::2], flat[1::2], strict=True))
            yield {name: value for name, value in found.items() if name not in seen}
            seen |= found.keys()
            if cursor == b"0":
                return


class RedisCopier(Copier):
    """See `Copier`."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self._server = Server(url, clock=clock, timeout_s=60.0)
        self._clock = clock
        self._walk: AsyncGenerator[list[Row], None] | None = None
        self.url = self._server.url

    async def versions(self) -> tuple[int, int]:
        try:
            return int(await self._server.on("HGET", "meta", "schema") or 0), SCHEMA
        finally:
            await self._server.close()

    async def migrate(self) -> None:
        await self.open()
        await self.close()

    async def open(self) -> None:
        await self._server.open()

    async def close(self) -> None:
        await self._end_walk()
        await self._server.close()

    async def now_s(self) -> float:
        if self._clock is not None:
            return self._clock()
        seconds, micros = await self._server.command("TIME")
        return int(seconds) + int(micros) / 1e6

    def keeps(self, table: str, row: Row, soon_s: float) -> bool:
        return table != "aggregates" or (row.hour // 24 + 1) * 86_400 + AGGREGATES_S > soon_s

    async def unfinished(self) -> bool:
        return await self._server.on("HGET", "meta", UNFINISHED) is not None

    async def begin(self) -> None:
        await self._server.on("HSET", "meta", UNFINISHED, 1, "schema", SCHEMA)
        async for keys in self._server.keys_like(""):
            await self._server.all([("UNLINK", key) for key in keys if key != "meta"])
        fields = [
            field for field in await self._server.on("HKEYS", "meta") if text(field) not in (UNFINISHED, "schema")
        ]
        await self._server.all([("HDEL", "meta", field) for field in fields])

    async def complete(self) -> None:
        await self._server.on("HDEL", "meta", UNFINISHED)

    async def load(self, table: str, rows: Sequence[Row]) -> None:
        server = self._server
        if table == "budgets":
            for row in rows:
                await server.set_budget(row)
        elif table == "keys":
            for row in rows:
                await server.put_key(row)
        elif table == "sinks":
            ends = await server.on("HMGET", "meta", *(f"o{n}" for n in range(PARTITIONS)))
            await server.all(sink_commands(rows, {n: int(end or 0) for n, end in enumerate(ends)}))
        elif table == "aggregates":
            await server.run("load_aggregates", *chain.from_iterable(map(aggregate_args, rows)))
        elif table == "aside":
            for row in rows:
                await server.run("load_aside", *row)
        else:
            await server.all(commands(table, rows, await self.now_s()))
        if table == "records":
            newest = ((row.tenant, row.partition, row.position, row.seq) for row in rows)
            await server.run("list_records", *chain.from_iterable(newest))

    async def export(self, table: str, after: str | None, limit: int) -> Page:
        """A walk goes on where it stands: `after` only tells its beginning."""
        if after is None:
            await self._end_walk()
            self._walk = WALKS[table](self._server, limit)
        assert self._walk is not None
        rows = await anext(self._walk, None)
        return Page([], None) if rows is None else Page(rows, "on")

    async def _end_walk(self) -> None:
        walk, self._walk = self._walk, None
        if walk is not None:
            await walk.aclose()
