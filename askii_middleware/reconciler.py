"""Reconciliation: reads the ledger, its records, the outbox and what receivers have, and names every difference.

Everything is read in pages, and nothing is stopped for it: calls that are settled and records that are delivered in the
meantime are told apart from what is wrong by the order of reading. Records are read first, then the outbox, then the
receiver, and then what was settled since.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from .budgets import scope_text
from .errors import SinkError
from .reconciling import (
    CallId,
    Difference,
    Findings,
    Fold,
    Key,
    Kind,
    Ours,
    Running,
    SinkAccount,
    Waiting,
    bucket_of,
    compare,
    key_of,
    ledger_differences,
    rounds,
    unlike,
)
from .records import UsageRecord, decode_record
from .registrations import registered_after
from .sinks.auditing import Audited, Line
from .stores.base import PARTITIONS, DeadLetter, Entry

if TYPE_CHECKING:
    from .sinks.base import Sink
    from .stores.base import Store

MAX_HELD: Final = 100_000
"""Lines, entries and dead letters in memory at one time, of each."""
MAX_TENANTS: Final = 1_000_000
LEDGER_READS: Final = 3
"""How often the ledger's sums are read while calls are settled in between."""
HOUR_S: Final = 3600
E = TypeVar("E", Entry, DeadLetter)
_END_S: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What was found. `records` were looked at; `ledger` says where the ledger's own sums differ from them."""

    since_s: int
    to_s: float
    records: int
    ledger: Findings
    sinks: tuple[SinkAccount, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but what is still on its way, or never was to be sent."""
        return self.ledger.agrees and all(sink.findings.agrees for sink in self.sinks)

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "reconciled": self.agrees,
            "since_s": self.since_s,
            "to_s": self.to_s,
            "records": self.records,
            "ledger": [difference._asdict() for difference in self.ledger.listed],
            "sinks": [sink.table() for sink in self.sinks],
        }


class Reconciler:
    """One comparison.

    Args:
        since_s: calls admitted before this moment, rounded down to its hour, are left out; 0: none are.
        tenant: only this one, with all whose usage goes to the same subscriptions; None: all.
        now_s: what was used later is left out.
        on_progress: told how many records were read so far.
    """

    def __init__(
        self,
        store: Store,
        sinks: Iterable[Sink],
        *,
        now_s: float,
        since_s: float = 0.0,
        tenant: str | None = None,
        max_held: int = MAX_HELD,
        on_progress: Callable[[int], None] = lambda _read: None,
    ) -> None:
        self._store = store
        self._on_progress = on_progress
        self._sinks = tuple(sinks)
        self._since_s = int(since_s) // HOUR_S * HOUR_S
        self._to_s = int(now_s * 1000) / 1000  # receivers know no more than milliseconds
        self._until = _text(self._to_s)
        self._tenant = tenant
        self._max_held = max_held
        self._subscriptions: set[str] | None = None
        """Of the tenant; None: all."""

    async def run(self) -> Reconciliation:
        """Compare all sides. Raises StoreError, SinkError where a receiver cannot be asked."""
        if self._tenant is not None:
            found = {record.subscription async for _, record in self._records() if record.tenant == self._tenant}
            self._subscriptions = found - {""}
        count, last, running = 0, 0, Running()
        folds: dict[str, Fold] = {sink.name: Fold() for sink in self._sinks if isinstance(sink, Audited)}
        unbillable = dict.fromkeys(folds, 0)
        async for place, record in self._records():
            last = place
            count += self._is_asked(record)
            self._book(running, record)
            for sink in self._sinks:
                if isinstance(sink, Audited):
                    lines = self._lines(sink, record)
                    unbillable[sink.name] += lines is None
                    for line in lines or ():
                        folds[sink.name].add(line)
        ledger = await self._ledger(running, last)
        accounts = [
            await self._account(sink, folds.get(sink.name), unbillable.get(sink.name, 0)) for sink in self._sinks
        ]
        return Reconciliation(
            since_s=self._since_s, to_s=self._to_s, records=count, ledger=ledger, sinks=tuple(accounts)
        )

    # Records ----------------------------------------------------------------------------------------------------------

    async def _records(self, after: int = 0) -> AsyncIterator[tuple[int, UsageRecord]]:
        """Records of the time that is asked about, with their places in the order of settlement."""
        since, read = _text(self._since_s), 0
        while page := await self._store.records(after):
            for place, body in page:
                record = decode_record(body)
                if record.timestamp >= since:  # all have the same form, which sorts as time does
                    yield place, record
            after = page[-1][0]
            read += len(page)
            self._on_progress(read)

    def _is_asked(self, record: UsageRecord) -> bool:
        return self._tenant is None or record.tenant == self._tenant

    def _book(self, running: Running, record: UsageRecord) -> None:
        if self._is_asked(record):
            running.add(record.tenant, record.cost_nano_usd)

    def _lines(self, sink: Audited, record: UsageRecord) -> list[Line] | None:
        """None: it can never be billed."""
        if record.timestamp > self._until:
            return []
        whose = self._subscriptions
        if (
            whose is not None
            and record.subscription not in whose
            and (record.subscription or not self._is_asked(record))
        ):
            return []
        try:
            return sink.lines_of(record)
        except SinkError:
            return None

    async def _ledger(self, running: Running, last: int) -> Findings:
        """The ledger's sums by tenant against those of its records."""
        booked: dict[str, int] = {}
        for _ in range(LEDGER_READS):
            running.mark()
            booked = await self._booked()
            async for place, record in self._records(last):
                last = place
                self._book(running, record)
            if not running.moved:
                break
        found = Findings()
        found.add(ledger_differences(booked, running))
        return found

    async def _booked(self) -> dict[str, int]:
        if self._tenant is None:
            sums = await self._store.top_spend("tenant=", self._since_s, _END_S, MAX_TENANTS)
            return {row.value: row.cost_nano_usd for row in sums}
        rows = await self._store.spend(scope_text({"tenant": self._tenant}), self._since_s, _END_S)
        return {self._tenant: sum(row.cost_nano_usd for row in rows)}

    # Sinks ------------------------------------------------------------------------------------------------------------

    async def _account(self, sink: Sink, ours: Fold | None, unbillable: int) -> SinkAccount:
        findings, theirs, more = Findings(), Fold(), 0
        audited = isinstance(sink, Audited) and ours is not None
        if isinstance(sink, Audited) and ours is not None:
            async for line in self._received(sink):
                theirs.add(line)
            for buckets in rounds(ours.differing(theirs), ours, theirs, self._max_held):
                more = max(more, await self._name(sink, buckets, findings))
            if unbillable:
                await self._name_unbillable(sink, findings)
        waiting = await self._waiting(sink.name)
        if audited and self._tenant is None:  # with a tenant, nobody knows whose they are
            findings.forgive(more)
        if not audited:
            findings.add(Difference("dead letter", *id_, "", None, None, why) for id_, why in waiting.dead.items())
        return SinkAccount(
            sink=sink.name,
            audited=audited,
            lines=sum(ours.counts) if ours is not None else 0,
            pending=len(waiting.pending) + waiting.more,
            dead=len(waiting.dead),
            totals={} if ours is None else unlike(ours, theirs),
            findings=findings,
        )

    async def _name(self, sink: Audited, buckets: set[int], findings: Findings) -> int:
        """Name the differences of some buckets. Returns how many entries of the outbox were not looked at."""
        ours: dict[Key, list[Ours]] = {}
        last, begins = 0, await registered_after(self._store, sink.name)
        async for place, record in self._records():
            last = place
            for line in self._lines(sink, record) or ():
                if bucket_of(line) in buckets:
                    mine = Ours(line, (record.subscription, record.call_id), place <= begins)
                    ours.setdefault(key_of(line), []).append(mine)
        waiting = await self._waiting(sink.name, {mine.call for same in ours.values() for mine in same})
        theirs: dict[Key, list[Line]] = {}
        async for line in self._received(sink):
            if bucket_of(line) in buckets:
                theirs.setdefault(key_of(line), []).append(line)
        # What was settled since, and perhaps delivered, is no news from elsewhere.
        async for _, record in self._records(last):
            for line in self._lines(sink, record) or ():
                if key_of(line) not in ours:
                    theirs.pop(key_of(line), None)
        findings.add(compare(ours, theirs, waiting))
        return waiting.more

    async def _name_unbillable(self, sink: Audited, findings: Findings) -> None:
        """Records that come to nothing a receiver could take: given up, on their way there, or forgotten."""
        waiting, begins = await self._waiting(sink.name), await registered_after(self._store, sink.name)
        async for place, record in self._records():
            if self._lines(sink, record) is None:
                id_ = record.subscription, record.call_id
                kind: Kind = "pending" if id_ in waiting.pending else "unbillable"
                kind = "earlier" if kind == "unbillable" and place <= begins else kind
                kind = "dead letter" if id_ in waiting.dead else kind
                findings.add([Difference(kind, *id_, "", str(record.askii_coins), None, waiting.dead.get(id_, ""))])

    async def _received(self, sink: Audited) -> AsyncIterator[Line]:
        from_s = float(self._since_s) if self._since_s else None
        for subscription in [None] if self._subscriptions is None else sorted(self._subscriptions):
            async for line in sink.lines(subscription, from_s=from_s, to_s=self._to_s):
                yield line

    async def _waiting(self, sink: str, wanted: AbstractSet[CallId] | None = None) -> Waiting:
        """What the outbox has, of these calls or, as far as may be held, of all that are asked about."""
        count = (await self._store.pending()).get(sink)
        if count is None:
            return Waiting(frozenset(), 0, {})  # not registered yet: nothing was ever recorded for it
        pending, looked_at = set[CallId](), 0
        for partition in range(PARTITIONS) if count else ():
            room = self._max_held - (len(pending) if wanted is None else 0)
            entries = await self._store.fetch(sink, [partition], room, early=True)
            looked_at += len(entries)
            pending |= self._ids(entries, wanted).keys()
        letters = self._ids(await self._store.dead_letters(sink, self._max_held), wanted)
        dead = {id_: letter.reason for id_, letter in letters.items()}
        return Waiting(pending, max(count - looked_at, 0), dead)

    def _ids(self, found: Iterable[E], wanted: AbstractSet[CallId] | None) -> dict[CallId, E]:
        """Those of `wanted`, or that are asked about."""
        ids = ((_id(each.record), each) for each in found)
        if wanted is not None:
            return {id_: each for id_, each in ids if id_ in wanted}
        return {id_: each for id_, each in ids if self._tenant in (None, each.tenant) or self._is_shared(id_[0])}

    def _is_shared(self, subscription: str) -> bool:
        return self._subscriptions is not None and subscription in self._subscriptions


class _Ids(msgspec.Struct):
    subscription: str
    call_id: str


_ids = msgspec.json.Decoder(_Ids).decode


def _id(record: bytes) -> CallId:
    found = _ids(record)
    return found.subscription, found.call_id


def _text(at_s: float) -> str:
    """As records have it: RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
