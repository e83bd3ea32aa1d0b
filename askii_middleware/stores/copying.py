"""Moving a whole ledger from one engine to another, and the proof that nothing was lost or added.

Every engine reads and writes its ledger as the rows below; how they lie in it is its own affair. A copy goes table by
table in pages, so memory stays bounded. What each side holds is then counted: rows, money, and a digest of every row
that does not depend on the order. Until both sides agree the target is marked, and nobody else can open it; a copy that
was cut short begins anew.

Amounts are integer nano-USD, times Unix seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from ..errors import StoreError
from .copied_rows import (
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
from .rules import COUNTER_S

MARGIN_S = 3600.0
"""What will expire within so long is left behind: it might be gone from one side before it is counted there."""
PAGE = 500


class Page(NamedTuple):
    """Some rows of a table. An engine may give fewer than it was asked for, even none, before the end."""

    rows: Sequence[Row]
    next: str | None
    """Where to go on, opaque; None at the end."""


class Copier(ABC):
    """A ledger as a whole: its schema, and all that is in it as rows. Raises StoreError."""

    url: str
    """Without secrets."""

    @abstractmethod
    async def versions(self) -> tuple[int, int]:
        """The schema that is there (0: none) and the one this release needs. Changes nothing."""

    @abstractmethod
    async def migrate(self) -> None:
        """Bring the schema up to date."""

    @abstractmethod
    async def open(self) -> None:
        """Connect for the methods below, and make the schema where there is none."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def now_s(self) -> float:
        """The engine's clock."""

    @abstractmethod
    async def unfinished(self) -> bool:
        """Whether it is marked as the target of a copy that has not come to its end."""

    @abstractmethod
    async def begin(self) -> None:
        """Mark it as a target, and empty it."""

    @abstractmethod
    async def complete(self) -> None:
        """Take the mark away."""

    def keeps(self, table: str, row: Row, soon_s: float) -> bool:
        """Whether this engine would still have the row a while from now."""
        del table, row, soon_s
        return True

    @abstractmethod
    async def export(self, table: str, after: str | None, limit: int) -> Page:
        """The next rows of a table, each exactly once while nobody writes. `after`: a `Page.next`."""

    @abstractmethod
    async def load(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows of a table, those before it in `TABLES` being complete. A hold adds to what its worker holds."""


# What is compared ----------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    name: str
    money: Callable[[Row], int] | None = None
    """What a row adds to the table's sum, in nano-USD."""
    lasts: Callable[[Row, float], bool] = lambda _row, _soon_s: True
    """Whether a row still counts a while from now; others are left behind."""
    told: Callable[[Row], Any] = lambda row: row
    """What has to be equal; None: the row is not counted."""


def _until_window_ends(row: Row, soon_s: float) -> bool:
    return bool(row.end_s + COUNTER_S > soon_s)


def _worker_lasts(row: WorkerRow, soon_s: float) -> bool:
    return row.buried_s is None or row.buried_s + COUNTER_S > soon_s


def _is_open(row: CreditRow, soon_s: float) -> bool:
    return row.granted_nano_usd > 0 and _until_window_ends(row, soon_s)


def _cost(row: RecordRow) -> int:
    return _read_cost(row.record).cost_nano_usd


class _Cost(msgspec.Struct):
    cost_nano_usd: int = 0


_read_cost = msgspec.json.Decoder(_Cost).decode
_encode = msgspec.msgpack.Encoder().encode

TABLES = (
    Table("budgets", told=repr),
    Table("keys"),
    Table("items", lasts=lambda row, soon_s: row.until_s is None or row.until_s > soon_s),
    Table("workers", lasts=_worker_lasts, told=lambda row: row if row.buried_s is None else (row.worker, row.buried_s)),
    Table(
        "counters",
        lambda row: row.spent_nano_usd,
        lambda row, soon_s: row.spent_nano_usd != 0 and _until_window_ends(row, soon_s),
    ),
    Table("credit", lambda row: row.granted_nano_usd - row.used_nano_usd, _is_open),
    Table(
        "holds",
        lambda row: row.nano_usd if row.state == "held" else 0,
        lambda row, soon_s: row.state == "held" or row.until_s > soon_s,
        lambda row: (*row[:5], sorted(row.counters), *row[6:10], msgspec.json.decode(row.about)),
    ),
    Table("seats", None, _until_window_ends, lambda row: (row.shared, row.counter, row.end_s)),
    Table("operations"),
    Table("carries"),
    Table("aggregates", lambda row: row.cost_nano_usd),
    Table("records", _cost, told=lambda row: (*row[:5], row.record)),
    Table("ends", told=lambda row: row if row.name == "alerts" else None),
    Table("sinks"),
    Table("aside", told=lambda row: row[:4] if row.state == "delivered" else row),
    Table("alerts"),
    Table("channels"),
)
"""In the order in which they are written."""


class Tally:
    """What one side has of one table."""

    def __init__(self, table: Table, lasts: Callable[[Row], bool]) -> None:
        self._table = table
        self._lasts = lasts
        self.rows = 0
        self.nano_usd = 0
        self.digest = 0
        """The sum of the rows' hashes, modulo 2**128: the same in every order, and a row that is there twice shows."""

    def take(self, rows: Sequence[Row]) -> list[Row]:
        """Count those that last, and return them."""
        table = self._table
        kept = [row for row in rows if self._lasts(row)]
        for row in kept:
            told = table.told(row)
            if told is None:
                continue
            digest = blake2b(_encode(_rounded(told)), digest_size=16).digest()
            self.digest = (self.digest + int.from_bytes(digest)) % (1 << 128)
            self.rows += 1
            if table.money is not None:
                self.nano_usd += table.money(row)
        return kept


def _rounded(value: Any) -> Any:
    """Times to the microsecond, which all engines keep."""
    if isinstance(value, float):
        return round(value * 1e6)
    if isinstance(value, dict):
        return sorted((name, _rounded(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, msgspec.Struct):
        return _rounded(msgspec.structs.astuple(value))
    return value


class Compared(NamedTuple):
    """One table on both sides."""

    table: str
    rows_from: int
    rows_to: int
    nano_usd_from: int | None
    """None: the table holds no money."""
    nano_usd_to: int | None
    equal: bool
    """Every row, not only the sums."""


# The copy ------------------------------------------------------------------------------------------------------------

Progress = Callable[[str, str, int], None]
"""Called with `copied` or `checked`, a table and how many of its rows so far."""


def unfinished_error(url: str) -> StoreError:
    """What `Store.open` raises for a marked ledger."""
    return StoreError(
        f"the ledger {url} is the target of a copy that has not come to its end, so it may lack a part: run askii "
        "copy-store again (it begins anew), or name another ledger"
    )


async def alive_workers(ledger: Copier) -> dict[str, float]:
    """The workers whose heartbeat lasts, and for how many seconds."""
    now_s = await ledger.now_s()
    found: dict[str, float] = {}
    after: str | None = None
    while True:
        page = await ledger.export("workers", after, PAGE)
        found |= {row.worker: row.alive_until_s - now_s for row in page.rows if row.alive_until_s > now_s}
        after = page.next
        if after is None:
            return found


async def check_target(target: Copier) -> None:
    """Raise StoreError unless a copy may begin: the ledger is empty, or what is in it is an unfinished copy."""
    if await target.unfinished():
        return
    for table in TABLES:
        after: str | None = None
        while True:
            page = await target.export(table.name, after, 1)
            if page.rows:
                raise StoreError(
                    f"{target.url} is not empty (it has {table.name}): a copy needs a ledger of its own; name another "
                    "file, namespace or database"
                )
            after = page.next
            if after is None:
                break


async def copy_ledger(source: Copier, target: Copier, progress: Progress = lambda *_: None) -> list[Compared]:
    """Copy, count both sides, and release the target if every table is equal. Nobody may write to either meanwhile."""
    soon_s = await source.now_s() + MARGIN_S
    await target.begin()

    def lasting(table: Table) -> Callable[[Row], bool]:
        return lambda row: (
            table.lasts(row, soon_s) and source.keeps(table.name, row, soon_s) and target.keeps(table.name, row, soon_s)
        )

    read = [await _walk(source, Tally(table, lasting(table)), table, progress, target) for table in TABLES]
    written = [await _walk(target, Tally(table, lasting(table)), table, progress) for table in TABLES]
    found = [_compared(*sides) for sides in zip(TABLES, read, written, strict=True)]
    if all(table.equal for table in found):
        await target.complete()
    return found


async def _walk(ledger: Copier, tally: Tally, table: Table, progress: Progress, target: Copier | None = None) -> Tally:
    after: str | None = None
    while True:
        page = await ledger.export(table.name, after, PAGE)
        rows = tally.take(page.rows)
        if target is not None and rows:
            await target.load(table.name, rows)
        progress("checked" if target is None else "copied", table.name, tally.rows)
        after = page.next
        if after is None:
            return tally


def _compared(table: Table, one: Tally, other: Tally) -> Compared:
    has_money = table.money is not None
    return Compared(
        table.name,
        one.rows,
        other.rows,
        one.nano_usd if has_money else None,
        other.nano_usd if has_money else None,
        (one.rows, one.nano_usd, one.digest) == (other.rows, other.nano_usd, other.digest),
    )


__all__ = [
    "TABLES",
    "AlertRow",
    "AsideRow",
    "CarryRow",
    "ChannelRow",
    "Compared",
    "Copier",
    "CounterRow",
    "CreditRow",
    "EndRow",
    "HoldRow",
    "HourRow",
    "ItemRow",
    "Page",
    "RecordRow",
    "Row",
    "SeatRow",
    "SinkRow",
    "WorkerRow",
    "alive_workers",
    "check_target",
    "copy_ledger",
    "unfinished_error",
]
