"""The records of a ledger in memory, and how far each sink has come with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from ..errors import StoreError
from .base import DeadLetter, Entry, Lease, Outcome
from .rules import check_outcomes

KEPT_RECORDS = 100_000
"""How many records stay readable once every sink has passed them."""


class _Stored(msgspec.Struct, frozen=True, gc=False):
    """A record and what it takes to send it. Many live long, so the garbage collector is not to walk them."""

    call_id: str
    tenant: str
    record: bytes


@dataclass(slots=True)
class _Aside:
    """An entry that left the order of first deliveries: it must not hold back those behind it."""

    stored: _Stored
    state: str
    due_s: float
    attempts: int
    reason: str
    first_attempt_s: float
    last_attempt_s: float


@dataclass(slots=True)
class _Sink:
    position: int
    """Every entry up to here was delivered or is set aside."""
    token: int = 0
    owner: str | None = None
    lease_until_s: float = 0.0
    retry_at_s: float = 0.0
    failures: int = 0
    aside: dict[int, _Aside] = field(default_factory=dict)
    ahead: set[int] = field(default_factory=set)
    """Delivered beyond `position`, because an entry before them has no outcome yet."""


class _Cost(msgspec.Struct):
    cost_nano_usd: int = 0


_cost = msgspec.json.Decoder(_Cost).decode


class MemoryOutbox:
    """Not a store: its methods are the synchronous halves of those of `MemoryStore`."""

    def __init__(self) -> None:
        self._stored: dict[int, _Stored] = {}
        self._first = 1
        self._last = 0
        self._sinks: dict[str, _Sink] = {}
        self._forgotten = (0, 0)
        """Number and sum of the records that are no longer kept."""

    def append(self, call_id: str, tenant: str, record: bytes) -> None:
        self._last += 1
        self._stored[self._last] = _Stored(call_id, tenant, record)
        if len(self._stored) > KEPT_RECORDS:
            self._forget()

    def _forget(self) -> None:
        passed = min((sink.position for sink in self._sinks.values()), default=self._last)
        count, total = self._forgotten
        while len(self._stored) > KEPT_RECORDS and self._first <= passed:
            total += _cost(self._stored.pop(self._first).record).cost_nano_usd
            count += 1
            self._first += 1
        self._forgotten = (count, total)

    def totals(self) -> tuple[int, int]:
        """Number of records ever written, and the sum of their costs in nano-USD as they say themselves."""
        count, total = self._forgotten
        return count + len(self._stored), total + sum(_cost(e.record).cost_nano_usd for e in self._stored.values())

    def records(self, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        seqs = range(max(after_seq + 1, self._first), self._last + 1)
        return [(seq, self._stored[seq].record) for seq in islice(seqs, max(limit, 0))]

    def _sink(self, name: str) -> _Sink:
        sink = self._sinks.get(name)
        if sink is None:
            raise StoreError(f"sink {name!r} is not registered: call register_sinks first")
        return sink

    def register(self, names: Sequence[str]) -> None:
        for name in names:
            self._sinks.setdefault(name, _Sink(self._last))

    def lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> Lease | None:
        sink = self._sink(name)
        if sink.owner != owner:
            if sink.lease_until_s > now_s:
                return None
            sink.owner = owner
            sink.token += 1
        sink.lease_until_s = now_s + ttl_s
        return Lease(sink.token, sink.retry_at_s, sink.failures)

    def fetch(self, name: str, limit: int, now_s: float) -> list[Entry]:
        sink = self._sink(name)
        due = sorted((a.due_s, seq) for seq, a in sink.aside.items() if a.state == "again" and a.due_s <= now_s)
        found = [_entry(seq, sink.aside[seq].stored, sink.aside[seq].attempts) for _, seq in due[: max(limit, 0)]]
        fresh = (
            _entry(seq, self._stored[seq], 0)
            for seq in range(sink.position + 1, self._last + 1)
            if seq not in sink.aside and seq not in sink.ahead
        )
        return [*found, *islice(fresh, max(limit, 0) - len(found))]

    def acknowledge(
        self, name: str, token: int, outcomes: Sequence[Outcome], *, retry_at_s: float, failures: int, now_s: float
    ) -> bool:
        sink = self._sink(name)
        if token != sink.token:
            return False
        check_outcomes(outcomes)
        for outcome in outcomes:
            self._apply(sink, outcome, now_s)
        while sink.position + 1 in sink.ahead or sink.position + 1 in sink.aside:
            sink.position += 1
            sink.ahead.discard(sink.position)
        sink.retry_at_s, sink.failures = retry_at_s, failures
        return True

    def _apply(self, sink: _Sink, outcome: Outcome, now_s: float) -> None:
        seq = outcome.seq
        known = sink.aside.get(seq)
        if known is None and (seq <= sink.position or seq > self._last or seq in sink.ahead):
            return
        if outcome.result == "delivered":
            sink.aside.pop(seq, None)
            if seq > sink.position:
                sink.ahead.add(seq)
            return
        sink.aside[seq] = _Aside(
            stored=known.stored if known else self._stored[seq],
            state=outcome.result,
            due_s=now_s + outcome.after_s,
            attempts=known.attempts + 1 if known else 1,
            reason=outcome.reason,
            first_attempt_s=known.first_attempt_s if known else now_s,
            last_attempt_s=now_s,
        )

    def pending(self) -> dict[str, int]:
        return {name: self._pending(sink) for name, sink in self._sinks.items()}

    def _pending(self, sink: _Sink) -> int:
        aside_ahead = sum(seq > sink.position for seq in sink.aside)
        again = sum(a.state == "again" for a in sink.aside.values())
        return self._last - sink.position - len(sink.ahead) - aside_ahead + again

    def dead_letters(self, name: str, limit: int) -> list[DeadLetter]:
        dead = sorted((seq, a) for seq, a in self._sink(name).aside.items() if a.state == "dead")
        return [
            DeadLetter(
                seq,
                a.stored.call_id,
                a.stored.tenant,
                a.reason,
                a.attempts,
                a.first_attempt_s,
                a.last_attempt_s,
                a.stored.record,
            )
            for seq, a in dead[: max(limit, 0)]
        ]

    def retry_dead(self, name: str, now_s: float) -> int:
        dead = [a for a in self._sink(name).aside.values() if a.state == "dead"]
        for aside in dead:
            aside.state, aside.due_s = "again", now_s
        return len(dead)


def _entry(seq: int, stored: _Stored, attempts: int) -> Entry:
    return Entry(seq, stored.call_id, stored.tenant, stored.record, attempts)
