"""What a transaction on SQLite sees of counters, holds and budgets. Each function runs inside one that the caller
opened.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ..admission import BudgetState, BudgetTerms, Match, Window
from .lines import Amounts, Crowding, Line, lines_of, state_of
from .sqlite_sql import SQL

decode_counters = msgspec.json.Decoder(list[tuple[str, int]]).decode
_decode_shares = msgspec.json.Decoder(tuple[int, ...]).decode

_HOLD = SQL["hold"]
_AMOUNTS = SQL["amounts"]
_AMOUNTS_OF = SQL["amounts_of"]
_LAPSED = SQL["lapsed"]
_SOME_LAPSED = SQL["some_lapsed"]
_TERMS = SQL["terms"]
_TERMS_OF = SQL["terms_of"]
_CROWDING = SQL["crowding"]
_SEAT = SQL["seat"]
_SPENT = SQL["spent"]
_TAKE = SQL["take"]

FEW = 20
"""Up to so many budgets are looked up one by one, which is faster then."""


class Hold(NamedTuple):
    """A row of `holds`, with its worker's lease."""

    state: str
    until_s: float
    worker: str
    nano_usd: int
    counters: str
    candidate: int
    admitted_at_s: float
    sequence: int
    alive_until_s: float | None

    def is_live(self, now_s: float) -> bool:
        return (
            self.state == "held"
            and self.until_s > now_s
            and self.alive_until_s is not None
            and self.alive_until_s > now_s
        )


def find_hold(db: sqlite3.Connection, call_id: str) -> Hold | None:
    row = db.execute(_HOLD, (call_id,)).fetchone()
    return None if row is None else Hold(*row)


def status_of(
    db: sqlite3.Connection,
    asked: Sequence[tuple[Match, ...]],
    windows: Mapping[str, tuple[Window, Window]],
    rate: tuple[int, int],
    now_s: float,
) -> list[list[BudgetState]]:
    """See `Store.status_of`."""
    stored, places = terms(db, asked), crowding(db)
    told = [lines_of(matches, stored, windows, now_s, rate, places, compute=True) for matches in asked]
    counters = dict.fromkeys(line.counter for lines in told for line in lines)
    away = _away(db, now_s)
    read = {
        counter: (spent, held - away.get(counter, 0))
        for counter, spent, held in db.execute(_AMOUNTS_OF, (json.dumps(list(counters)), now_s))
    }
    return [[state_of(line, read[line.counter]) for line in lines] for lines in told]


def reader(db: sqlite3.Connection, now_s: float, away: Mapping[str, int]) -> Callable[[str], Amounts]:
    """Reads counters as if what `away` holds on them were not there."""

    def read(counter: str) -> Amounts:
        spent, held = db.execute(_AMOUNTS, (counter, now_s)).fetchone()
        return spent, held - away.get(counter, 0)

    return read


def present_reader(db: sqlite3.Connection, now_s: float) -> Callable[[str], Amounts]:
    """Reads counters without the holds that lapsed."""
    return reader(db, now_s, _away(db, now_s))


def _away(db: sqlite3.Connection, now_s: float) -> dict[str, int]:
    """What the holds that lapsed come to on each counter."""
    some = db.execute(_SOME_LAPSED, (now_s,)).fetchone()[0]
    return on_counters((row[2], row[3]) for row in db.execute(_LAPSED, (now_s,))) if some else {}


def terms(db: sqlite3.Connection, matched: Iterable[tuple[Match, ...]]) -> dict[str, BudgetTerms]:
    """The stored budgets among those that may govern the matches."""
    keys = {ref.key for matches in matched for match in matches for level in match.levels for ref in level}
    if len(keys) > FEW:
        return {row[0]: _terms(row) for row in db.execute(_TERMS_OF, (json.dumps(list(keys)),))}
    found = (db.execute(_TERMS, (key,)).fetchone() for key in keys)
    return {row[0]: _terms(row) for row in found if row is not None}


def _terms(row: tuple[Any, ...]) -> BudgetTerms:
    _, nano_usd, coins, zone, enabled, soft, shares, max_values = row
    return BudgetTerms(
        limit_nano_usd=nano_usd,
        limit_coins=coins,
        zone=zone,
        enabled=bool(enabled),
        soft=bool(soft),
        alert_at_ppm=() if shares is None else _decode_shares(shares),
        max_values=max_values,
    )


def crowding(db: sqlite3.Connection) -> Crowding:
    def crowding(shared: str, own: str) -> int | None:
        is_own, taken = db.execute(_CROWDING, (shared, own)).fetchone()
        return None if is_own else taken

    return crowding


def seat(db: sqlite3.Connection, lines: Sequence[Line]) -> None:
    """Write which values have got counters of their own."""
    for line in lines:
        for shared in line.seats:
            db.execute(_SEAT, (shared, line.counter, line.end_s))


def spent(db: sqlite3.Connection, counter: str) -> int:
    row = db.execute(_SPENT, (counter,)).fetchone()
    return 0 if row is None else row[0]


def on_counters(holds: Iterable[tuple[int, str]]) -> dict[str, int]:
    """What holds, given as amount and counters, come to on each counter."""
    sums: dict[str, int] = {}
    for nano_usd, counters in holds:
        for counter, _ in decode_counters(counters):
            sums[counter] = sums.get(counter, 0) + nano_usd
    return sums


def lift(db: sqlite3.Connection, worker: str, nano_usd: int, counters: str) -> None:
    """Take a hold off its counters."""
    if nano_usd:
        db.executemany(_TAKE, [(counter, worker, nano_usd) for counter, _ in decode_counters(counters)])
