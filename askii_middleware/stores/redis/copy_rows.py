"""Rows of a copied ledger as they are written to Redis: plain commands, because nobody else uses it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..copying import (
    AlertRow,
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
from ..rows import Alert, Operation
from ..rules import COUNTER_S, ELSEWHERE
from .answers import told_admission
from .requests import place_of
from .wire import Part

Command = tuple[Part, ...]
"""A command, and its key without the ledger's prefix."""

AGGREGATES_S = 400 * 86_400.0
MARKER_TTL_S = 90_000
MARKED_S = 3 * 86_400.0
"""Calls admitted longer ago were settled more than a marker's life ago."""
END_FIELDS = {"alerts": "alert_seq", "records": "seq"} | {
    name: name for name in ("calls", "cost_nano_usd", "records_nano_usd")
}
"""The members of `meta` that a copy takes along, those of the partitions aside. What is summed up there is of all calls
ever made, also of those whose rows have gone.
"""
_FOREVER_S = 1e11
_pack = msgspec.msgpack.Encoder().encode


class _Ending(msgspec.Struct):
    """The members of a record that the store has written."""

    cost_nano_usd: int = 0
    late: bool = False
    askii_coins: int = 0


_decode_ending = msgspec.json.Decoder(_Ending).decode


def commands(table: str, rows: Sequence[Row], now_s: float) -> list[Command]:
    """What writes these rows."""
    write = _WRITERS[table]
    return [command for row in rows for command in write(row, now_s)]


def _begin(counter: str, end_s: int, now_s: float) -> Iterator[Command]:
    key = f"c:{counter}"
    yield "HSET", key, "e", end_s
    yield "ZADD", "ending", end_s + COUNTER_S, counter
    if end_s < _FOREVER_S:
        yield "PEXPIRE", key, int((max(end_s - now_s, 0) + COUNTER_S) * 1000)


def _worker(row: WorkerRow, _now_s: float) -> Iterator[Command]:
    if row.buried_s is not None:
        yield "ZADD", "buried", row.buried_s, row.worker
        return
    yield "ZADD", "workers", row.alive_until_s, row.worker
    if row.drawn:
        yield "HSET", "drawn", row.worker, row.drawn


def _counter(row: CounterRow, now_s: float) -> Iterator[Command]:
    yield from _begin(row.counter, row.end_s, now_s)
    yield "HINCRBY", f"c:{row.counter}", "s", row.spent_nano_usd


def _credit(row: CreditRow, now_s: float) -> Iterator[Command]:
    key, left = f"c:{row.counter}", row.granted_nano_usd - row.used_nano_usd
    yield from _begin(row.counter, row.end_s, now_s)
    yield "HSET", key, f"g:{row.holder}", row.granted_nano_usd, f"u:{row.holder}", row.used_nano_usd
    if left:
        yield "HINCRBY", key, "k", left
        yield "SADD", "credits", row.counter


def _hold(row: HoldRow, now_s: float) -> Iterator[Command]:
    counters = [list(counter) for counter in row.counters]
    fields: tuple[Part, ...] = (
        *("s", row.state, "u", row.until_s, "w", row.worker, "n", row.nano_usd, "c", _pack(counters)),
        *("k", row.candidate, "a", row.admitted_at_s, "q", row.sequence),
        *("r", told_admission(row.answer), "b", row.about, "o", 1),  # it may have an operation: those come later
    )
    yield "HSET", f"h:{row.call_id}", *fields
    yield "ZADD", "deadlines" if row.state == "held" else "fading", row.until_s, row.call_id
    if row.state == "lost":
        yield "SADD", "lost", row.call_id
    if row.state in ("held", "expired") and row.worker != ELSEWHERE:
        yield "SADD", f"w:{row.worker}", row.call_id
    if row.state == "held" and row.nano_usd:
        for counter, end_s in row.counters:
            yield from _begin(counter, end_s, now_s)
            yield "HINCRBY", f"c:{counter}", "h", row.nano_usd
            yield "HINCRBY", f"c:{counter}", f"h:{row.worker}", row.nano_usd


def _seat(row: SeatRow, now_s: float) -> Iterator[Command]:
    yield from _begin(row.shared, row.end_s, now_s)
    yield "SADD", f"p:{row.shared}", row.counter


def _operation(row: Operation, _now_s: float) -> Iterator[Command]:
    fields = "key", row.key, "tenant", row.tenant, "until", row.until_s, "payload", row.payload
    yield "HSET", f"op:{row.call_id}", *fields
    yield "HSET", "op_keys", row.key, row.call_id
    yield "ZADD", "operations", row.until_s, row.call_id


def _carry(row: CarryRow, _now_s: float) -> Iterator[Command]:
    yield "HSET", "carries", row.subscription, f"{row.coins} {row.pico_coins}"


def aggregate_args(row: HourRow) -> tuple[Part, ...]:
    """As `lua/load_aggregates.lua` takes it."""
    amounts = " ".join(map(str, row[4:]))
    place = place_of(row.model, row.provider)
    return row.scope, row.hour, row.hour // 24, place, amounts, row.requests, row.cost_nano_usd


def _record(row: RecordRow, now_s: float) -> Iterator[Command]:
    ending = _decode_ending(row.record)
    written_s = row.admitted_at_s or now_s
    entry = ("c", row.call_id, "t", row.tenant, "r", row.record, "n", row.seq, "s", written_s)
    yield "XADD", f"o:{row.partition}", f"{row.position}-0", *entry
    yield "HSET", "records", row.call_id, f"{row.partition}:{row.position}"
    yield "HINCRBY", "meta", "records_nano_usd", ending.cost_nano_usd
    if row.admitted_at_s > now_s - MARKED_S:
        marker = f"{ending.askii_coins} {int(ending.late)} {row.candidate} {row.admitted_at_s!r}"
        yield "SET", f"d:{row.call_id}", marker, "EX", MARKER_TTL_S


def _end(row: EndRow, _now_s: float) -> Iterator[Command]:
    if row.name in END_FIELDS:
        yield "HSET", "meta", END_FIELDS[row.name], row.last
    elif row.name.isdecimal():
        yield "HSET", "meta", f"o{row.name}", row.last


def _alert(row: AlertRow, _now_s: float) -> Iterator[Command]:
    yield "XADD", "alerts", f"{row.seq}-0", "b", unnumbered(row.alert), "i", row.id
    yield "HSET", "alert_ids", row.id, ""
    yield "ZADD", "alert_ends", row.end_s, row.seq


def unnumbered(alert: Alert) -> bytes:
    """As the settlement script writes it: JSON without its first member, the number."""
    return b"{" + msgspec.json.encode(alert).partition(b",")[2]


def _channel(row: ChannelRow, _now_s: float) -> Iterator[Command]:
    yield "SADD", "channels", row.channel
    yield "HSET", f"n:{row.channel}", "p", row.position, "t", row.token, "u", row.used_until_s


def _item(row: ItemRow, _now_s: float) -> Iterator[Command]:
    yield "HSET", f"items:{row.kind}", row.name, row.value
    yield "HINCRBY", "item_versions", row.kind, 1
    if row.until_s is not None:
        kind = row.kind.encode("utf-8", "surrogatepass")
        yield (
            "ZADD",
            "item_ends",
            row.until_s,
            b"%d:%b%b" % (len(kind), kind, row.name.encode("utf-8", "surrogatepass")),
        )


def sink_commands(rows: Iterable[SinkRow], ends: dict[int, int]) -> list[Command]:
    """`ends`: the last place of each partition."""
    found: list[Command] = []
    for row in rows:
        n = row.partition
        found.append(("SADD", "sinks", row.sink))
        place = (f"p{n}", ends.get(n, 0) - row.behind, f"t{n}", row.token)
        found.append(("HSET", f"k:{row.sink}", *place, f"r{n}", row.retry_at_s, f"f{n}", row.failures))
    return found


_WRITERS: dict[str, Callable[[Any, float], Iterator[Command]]] = {
    "workers": _worker,
    "counters": _counter,
    "credit": _credit,
    "holds": _hold,
    "seats": _seat,
    "operations": _operation,
    "carries": _carry,
    "records": _record,
    "ends": _end,
    "alerts": _alert,
    "channels": _channel,
    "items": _item,
}
