"""How the tables of a Redis ledger are read for a copy: each as a walk that gives its rows in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ..copying import (
    AlertRow,
    AsideRow,
    CarryRow,
    ChannelRow,
    CounterRow,
    CreditRow,
    EndRow,
    HoldRow,
    HourRow,
    ItemRow,
    RecordRow,
    Row,
    SeatRow,
    SinkRow,
    WorkerRow,
)
from ..rows import PARTITIONS, Alert
from .answers import Marker, admission, operation
from .copy_rows import END_FIELDS
from .reading import names_of
from .wire import text

if TYPE_CHECKING:
    from .copy import Server

Walk = AsyncGenerator[list[Row], None]
_decode_alert = msgspec.json.Decoder(Alert).decode
_decode_counters = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...]).decode


async def _budgets(server: Server, _limit: int) -> Walk:
    yield list(await server.budgets())


async def _keys(server: Server, limit: int) -> Walk:
    after = ""
    while rows := await server.keys(after=after, limit=limit):
        yield rows
        after = rows[-1].id


async def _members(server: Server, key: str, limit: int) -> AsyncGenerator[list[tuple[str, float]], None]:
    """A sorted set with its scores, in pieces."""
    start = 0
    while flat := await server.on("ZRANGE", key, start, start + limit - 1, "WITHSCORES"):
        yield [(text(member), float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)]
        start += limit


async def _hashes(server: Server, keys: list[str]) -> list[dict[str, bytes]]:
    flat = await server.all([("HGETALL", key) for key in keys])
    return [{text(name): value for name, value in zip(one[::2], one[1::2], strict=True)} for one in flat]


async def _items(server: Server, _limit: int) -> Walk:
    for kind in await server.item_versions():
        lengths = f"{len(kind.encode('utf-8', 'surrogatepass'))}:{kind}"
        async for piece in server.fields_of(f"items:{kind}"):
            names = [text(name) for name in piece]
            ends = await server.all([("ZSCORE", "item_ends", f"{lengths}{name}") for name in names])
            yield [
                ItemRow(kind, name, value, None if end is None else float(end))
                for name, value, end in zip(names, piece.values(), ends, strict=True)
            ]


async def _workers(server: Server, limit: int) -> Walk:
    async for living in _members(server, "workers", limit):
        drawn = await server.all([("HGET", "drawn", worker) for worker, _ in living])
        buried = await server.all([("ZSCORE", "buried", worker) for worker, _ in living])
        yield [
            WorkerRow(worker, until_s, None, int(number or 0))
            for (worker, until_s), number, dead in zip(living, drawn, buried, strict=True)
            if dead is None
        ]
    async for buried in _members(server, "buried", limit):
        yield [WorkerRow(worker, 0.0, at_s, 0) for worker, at_s in buried]


async def _counters(server: Server, limit: int) -> Walk:
    async for piece in _members(server, "ending", limit):
        names = [name for name, _ in piece]
        for name, found in zip(names, await _hashes(server, [f"c:{name}" for name in names]), strict=True):
            if "s" in found:
                yield [CounterRow(name, int(float(found["e"])), int(found["s"]))]


async def _credit(server: Server, limit: int) -> Walk:
    async for piece in _members(server, "ending", limit):
        names = [name for name, _ in piece]
        for name, found in zip(names, await _hashes(server, [f"c:{name}" for name in names]), strict=True):
            yield [
                CreditRow(name, field[2:], int(float(found["e"])), int(granted), int(found.get(f"u:{field[2:]}", 0)))
                for field, granted in found.items()
                if field.startswith("g:")
            ]


async def _seats(server: Server, limit: int) -> Walk:
    async for piece in _members(server, "ending", limit):
        names = [name for name, _ in piece]
        members = await server.all([("SMEMBERS", f"p:{name}") for name in names])
        ends = await server.all([("HGET", f"c:{name}", "e") for name in names])
        for name, found, end in zip(names, members, ends, strict=True):
            counters = sorted(map(text, found))
            yield [SeatRow(name, counter, number + 1, int(float(end))) for number, counter in enumerate(counters)]


async def _holds(server: Server, limit: int) -> Walk:
    for key in ("deadlines", "fading"):
        async for piece in _members(server, key, limit):
            found = await _hashes(server, [f"h:{call_id}" for call_id, _ in piece])
            yield [_hold(call_id, fields) for (call_id, _), fields in zip(piece, found, strict=True) if fields]


def _hold(call_id: str, found: dict[str, bytes]) -> HoldRow:
    return HoldRow(
        call_id,
        text(found["s"]),
        float(found["u"]),
        text(found["w"]),
        int(found["n"]),
        _decode_counters(found["c"]),
        int(found["k"]),
        float(found["a"]),
        int(found["q"]),
        admission(found["r"]),
        found["b"],
    )


async def _operations(server: Server, limit: int) -> Walk:
    async for piece in _members(server, "operations", limit):
        names = [call_id for call_id, _ in piece]
        found = await _hashes(server, [f"op:{call_id}" for call_id in names])
        yield [
            operation(
                [one["key"], call_id.encode("utf-8", "surrogatepass"), one["tenant"], one["until"], one["payload"]]
            )
            for call_id, one in zip(names, found, strict=True)
        ]


async def _carries(server: Server, _limit: int) -> Walk:
    async for piece in server.fields_of("carries"):
        yield [CarryRow(text(name), *map(int, value.split())) for name, value in piece.items()]


async def _aggregates(server: Server, _limit: int) -> Walk:
    async for keys in server.keys_like("ad:"):
        for key in keys:
            scope = key.removeprefix("ad:")
            for day in await server.on("ZRANGE", key, 0, -1):
                flat = await server.on("HGETALL", f"a:{text(day)}:{scope}")
                yield list(_hours(scope, dict(zip(flat[::2], flat[1::2], strict=True))))


def _hours(scope: str, day: dict[bytes, bytes]) -> list[HourRow]:
    """See `lua/sums.lua`."""
    rows = []
    for field in sorted(field for field in day if field.startswith(b"h")):
        hour, _, place = text(field)[1:].partition(":")
        rows.append(HourRow(int(hour), scope, *names_of(place), *map(int, day[field].split())))
    return rows


async def _records(server: Server, limit: int) -> Walk:
    for partition in range(PARTITIONS):
        trimmed = await server.run("copy_trimmed", partition)
        yield await _with_markers(
            server,
            [
                RecordRow(partition, int(place), int(number), text(call_id), text(tenant), 0, 0.0, record)
                for place, call_id, tenant, record, number in trimmed
            ],
        )
        start = "-"
        while found := await server.on("XRANGE", f"o:{partition}", start, "+", "COUNT", limit):
            yield await _with_markers(server, [_record(partition, *raw) for raw in found])
            start = f"({text(found[-1][0])}"


def _record(partition: int, id_: bytes, flat: list[bytes]) -> RecordRow:
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    place = int(id_.partition(b"-")[0])
    return RecordRow(partition, place, int(found[b"n"]), text(found[b"c"]), text(found[b"t"]), 0, 0.0, found[b"r"])


async def _with_markers(server: Server, rows: list[RecordRow]) -> list[RecordRow]:
    markers = await server.all([("GET", f"d:{row.call_id}") for row in rows])
    known = [None if marker is None else Marker(marker) for marker in markers]
    return [
        row if marker is None else row._replace(candidate=marker.candidate, admitted_at_s=marker.admitted_at_s)
        for row, marker in zip(rows, known, strict=True)
    ]


async def _ends(server: Server, _limit: int) -> Walk:
    fields = END_FIELDS | {str(n): f"o{n}" for n in range(PARTITIONS)}
    found = await server.on("HMGET", "meta", *fields.values())
    yield [EndRow(name, int(last)) for name, last in zip(fields, found, strict=True) if last]


async def _sinks(server: Server, _limit: int) -> Walk:
    ends = await server.on("HMGET", "meta", *(f"o{n}" for n in range(PARTITIONS)))
    for sink in sorted(map(text, await server.on("SMEMBERS", "sinks"))):
        (found,) = await _hashes(server, [f"k:{sink}"])
        yield [
            SinkRow(
                sink,
                n,
                int(ends[n] or 0) - int(found[f"p{n}"]),
                int(found.get(f"t{n}", 0)),
                float(found.get(f"r{n}", 0)),
                int(found.get(f"f{n}", 0)),
            )
            for n in range(PARTITIONS)
        ]


async def _aside(server: Server, _limit: int) -> Walk:
    for sink in sorted(map(text, await server.on("SMEMBERS", "sinks"))):
        async for piece in server.fields_of(f"x:{sink}"):
            told = await server.run("copy_aside", sink, *piece) if piece else []
            yield [
                AsideRow(sink, int(p), int(s), text(state), float(due), int(n), text(why), float(first), float(last))
                for p, s, state, due, n, why, first, last in told
            ]
        for partition in range(PARTITIONS):
            ahead = await server.on("SMEMBERS", f"xh:{sink}:{partition}")
            known = await server.all([("HEXISTS", f"x:{sink}", f"{partition}:{text(place)}") for place in ahead])
            yield [
                AsideRow(sink, partition, int(place), "delivered", 0.0, 1, "", 0.0, 0.0)
                for place, is_kept in zip(ahead, known, strict=True)
                if not is_kept
            ]


async def _alerts(server: Server, limit: int) -> Walk:
    start = "-"
    while found := await server.on("XRANGE", "alerts", start, "+", "COUNT", limit):
        numbers = [text(id_).partition("-")[0] for id_, _ in found]
        ends = await server.on("ZMSCORE", "alert_ends", *numbers)
        yield [
            AlertRow(
                int(number),
                text(flat[3]),
                int(float(end)),
                _decode_alert(b'{"seq":%b,%b' % (number.encode(), flat[1][1:])),
            )
            for number, end, (_, flat) in zip(numbers, ends, found, strict=True)
        ]
        start = f"({text(found[-1][0])}"


async def _channels(server: Server, _limit: int) -> Walk:
    names = sorted(map(text, await server.on("SMEMBERS", "channels")))
    found = await _hashes(server, [f"n:{name}" for name in names])
    yield [
        ChannelRow(name, int(one["p"]), int(one["t"]), float(one["u"])) for name, one in zip(names, found, strict=True)
    ]


WALKS: dict[str, Callable[[Any, int], Walk]] = {
    "budgets": _budgets,
    "keys": _keys,
    "items": _items,
    "workers": _workers,
    "counters": _counters,
    "credit": _credit,
    "holds": _holds,
    "seats": _seats,
    "operations": _operations,
    "carries": _carries,
    "aggregates": _aggregates,
    "records": _records,
    "ends": _ends,
    "sinks": _sinks,
    "aside": _aside,
    "alerts": _alerts,
    "channels": _channels,
}
