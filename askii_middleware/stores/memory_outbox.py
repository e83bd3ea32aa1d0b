"""The records of a ledger in memory, and how far each sink has come with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice, takewhile

import msgspec

from ..errors import StoreError
from .forgetting import DELETED, anonymous, waiting_error
from .rows import PARTITIONS, DeadLetter, Entry, Lease, Outcome, Place, partition_of
from .rules import check_outcomes, due_again
from .sharing import hand_of, share_of

KEPT_RECORDS = 100_000
"""How many records stay readable once every sink has passed them."""


class _Stored(msgspec.Struct, frozen=True, gc=False):
    """A record and what it takes to send it. Many live long, so the garbage collector is not to walk them."""

    number: int
    """Its place in the order of settlement."""
    partition: int
    seq: int
    call_id: str
    tenant: str
    record: bytes
    at_s: float
    """When it was settled."""


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
class _Place:
    """How far a sink has come in one partition."""

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


@dataclass(slots=True)
class _Sink:
    places: tuple[_Place, ...]
    askers: dict[str, float] = field(default_factory=dict)
    """Until when each owner counts."""

    def aside(self) -> Iterator[_Aside]:
        return (aside for place in self.places for aside in place.aside.values())


class _Cost(msgspec.Struct):
    cost_nano_usd: int = 0


_cost = msgspec.json.Decoder(_Cost).decode


class MemoryOutbox:
    """Not a store: its methods are the synchronous halves of those of `MemoryStore`."""

    def __init__(self) -> None:
        self._stored: dict[int, _Stored] = {}
        """In the order of settlement, by number."""
        self._last = 0
        self._partitions: tuple[dict[int, _Stored], ...] = tuple({} for _ in range(PARTITIONS))
        self._lasts = [0] * PARTITIONS
        self._calls: dict[str, _Stored] = {}
        self._sinks: dict[str, _Sink] = {}
        self._forgotten = (0, 0)
        """Number and sum of the records that are no longer kept."""

    def append(self, call_id: str, tenant: str, record: bytes, now_s: float) -> None:
        partition = partition_of(tenant)
        self._last += 1
        self._lasts[partition] += 1
        stored = _Stored(self._last, partition, self._lasts[partition], call_id, tenant, record, now_s)
        self._keep(stored)
        while len(self._stored) > KEPT_RECORDS and self._forget_oldest():
            pass

    def _keep(self, stored: _Stored) -> None:
        self._stored[stored.number] = self._partitions[stored.partition][stored.seq] = stored
        self._calls[stored.call_id] = stored

    def _forget_oldest(self) -> bool:
        oldest = next(iter(self._stored.values()))
        if any(sink.places[oldest.partition].position < oldest.seq for sink in self._sinks.values()):
            return False  # an entry that is set aside has its record with it
        self._drop(oldest)
        return True

    def _drop(self, stored: _Stored) -> None:
        del self._stored[stored.number], self._partitions[stored.partition][stored.seq], self._calls[stored.call_id]
        count, total = self._forgotten
        self._forgotten = count + 1, total + _cost(stored.record).cost_nano_usd

    def prune(self, before_s: float, limit: int) -> int:
        """Drop records that were settled before, but none that a sink needs, and no partition's newest. How many."""
        old = takewhile(lambda stored: stored.at_s < before_s, self._stored.values())
        free = (s for s in old if self._is_passed(s) and s.seq != self._lasts[s.partition])
        found = list(islice(free, max(limit, 0)))
        for stored in found:
            self._drop(stored)
        return len(found)

    def _is_passed(self, stored: _Stored) -> bool:
        places = [sink.places[stored.partition] for sink in self._sinks.values()]
        return all(stored.seq <= place.position and stored.seq not in place.aside for place in places)

    def _waits_for(self, stored: _Stored) -> str | None:
        """A sink that has not got a record, be it for good."""
        for name, sink in self._sinks.items():
            place = sink.places[stored.partition]
            if stored.seq in place.aside or (stored.seq > place.position and stored.seq not in place.ahead):
                return name
        return None

    def erase(self, tenant: str) -> int:
        """Make a tenant's records anonymous. How many. Raises StoreError, and changes nothing, if a sink needs one."""
        found = [stored for stored in self._stored.values() if stored.tenant == tenant]
        for stored in found:
            sink = self._waits_for(stored)
            if sink is not None:
                raise waiting_error(tenant, sink)
        for stored in found:
            self._keep(msgspec.structs.replace(stored, tenant=DELETED, record=anonymous(stored.record)))
        return len(found)

    def totals(self) -> tuple[int, int]:
        """Number of records ever written, and the sum of their costs in nano-USD as they say themselves."""
        count, total = self._forgotten
        return count + len(self._stored), total + sum(_cost(e.record).cost_nano_usd for e in self._stored.values())

    def records(self, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        first = next(iter(self._stored), self._last + 1)
        numbers = (n for n in range(max(after_seq + 1, first), self._last + 1) if n in self._stored)
        return [(number, self._stored[number].record) for number in islice(numbers, max(limit, 0))]

    def latest(self, tenant: str | None, limit: int, before_seq: int | None) -> list[tuple[int, bytes]]:
        """See `Store.latest`."""
        before = self._last + 1 if before_seq is None else before_seq
        found = (s for s in reversed(self._stored.values()) if s.number < before and tenant in (None, s.tenant))
        return [(stored.number, stored.record) for stored in islice(found, max(limit, 0))]

    def record(self, call_id: str) -> bytes | None:
        stored = self._calls.get(call_id)
        return None if stored is None else stored.record

    # Sinks ----------------------------------------------------------------------------------------------------------

    def _sink(self, name: str) -> _Sink:
        sink = self._sinks.get(name)
        if sink is None:
            raise StoreError(f"sink {name!r} is not registered: call register_sinks first")
        return sink

    def register(self, names: Sequence[str]) -> None:
        for name in names:
            self._sinks.setdefault(name, _Sink(tuple(_Place(last) for last in self._lasts)))

    def forget(self, name: str) -> bool:
        return self._sinks.pop(name, None) is not None

    def lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> list[Lease]:
        sink = self._sink(name)
        askers = {asker: until_s for asker, until_s in sink.askers.items() if until_s > now_s and asker != owner}
        sink.askers, share = askers, 0
        if ttl_s > 0:
            askers[owner] = now_s + ttl_s
            share = share_of(owner, askers)
        hand = hand_of(owner, share, [(place.owner, place.lease_until_s) for place in sink.places], now_s)
        for partition, place in enumerate(sink.places):
            if partition in hand:
                place.token += place.owner != owner
                place.owner, place.lease_until_s = owner, now_s + ttl_s
            elif place.owner == owner:
                place.lease_until_s = min(place.lease_until_s, now_s)
        places = [(partition, sink.places[partition]) for partition in hand]
        return [Lease(partition, p.token, p.retry_at_s, p.failures) for partition, p in places]

    # Entries --------------------------------------------------------------------------------------------------------

    def fetch(self, name: str, partitions: Sequence[int], limit: int, now_s: float) -> list[Entry]:
        sink, limit = self._sink(name), max(limit, 0)
        asked = [partition for partition in range(PARTITIONS) if partition in partitions]
        aside = (a for partition in asked for a in sink.places[partition].aside.values())
        due = sorted(
            (a for a in aside if a.state == "again" and a.due_s <= now_s), key=lambda a: (a.due_s, a.stored.number)
        )
        merged = merge(*(self._fresh(sink, partition) for partition in asked), key=lambda stored: stored.number)
        fresh = list(islice(merged, limit))
        found = [_entry(a.stored, a.attempts) for a in due[: due_again(len(due), len(fresh), limit)]]
        return found + [_entry(stored, 0) for stored in fresh[: limit - len(found)]]

    def _fresh(self, sink: _Sink, partition: int) -> Iterator[_Stored]:
        place, stored = sink.places[partition], self._partitions[partition]
        for seq in range(place.position + 1, self._lasts[partition] + 1):
            if seq not in place.aside and seq not in place.ahead:
                yield stored[seq]

    def acknowledge(
        self,
        name: str,
        leases: Sequence[Lease],
        outcomes: Sequence[Outcome],
        *,
        retry_at_s: float,
        failures: int,
        now_s: float,
    ) -> list[int]:
        sink = self._sink(name)
        check_outcomes(outcomes)
        newest = {(partition, place.token) for partition, place in enumerate(sink.places) if place.token}
        held = {lease.partition for lease in leases if (lease.partition, lease.token) in newest}
        for outcome in outcomes:
            if outcome.partition in held:
                self._apply(sink.places[outcome.partition], outcome, now_s)
        for partition in held:
            place = sink.places[partition]
            while place.position + 1 in place.ahead or place.position + 1 in place.aside:
                place.position += 1
                place.ahead.discard(place.position)
            place.retry_at_s, place.failures = retry_at_s, failures
        return sorted({lease.partition for lease in leases} - held)

    def _apply(self, place: _Place, outcome: Outcome, now_s: float) -> None:
        partition, seq = outcome.partition, outcome.seq
        known = place.aside.get(seq)
        if known is None and (seq <= place.position or seq > self._lasts[partition] or seq in place.ahead):
            return
        if outcome.result == "delivered":
            place.aside.pop(seq, None)
            if seq > place.position:
                place.ahead.add(seq)
            return
        place.aside[seq] = _Aside(
            stored=known.stored if known else self._partitions[partition][seq],
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
        waiting = sum(self._lasts) + sum(aside.state == "again" for aside in sink.aside())
        for place in sink.places:
            waiting -= place.position + len(place.ahead) + sum(seq > place.position for seq in place.aside)
        return waiting

    def dead_letters(self, name: str, limit: int) -> list[DeadLetter]:
        dead = [aside for aside in self._sink(name).aside() if aside.state == "dead"]
        dead.sort(key=lambda aside: (aside.last_attempt_s, aside.stored.number))
        return [_letter(aside) for aside in dead[: max(limit, 0)]]

    def retry_dead(self, name: str, now_s: float) -> int:
        dead = [aside for aside in self._sink(name).aside() if aside.state == "dead"]
        for aside in dead:
            aside.state, aside.due_s = "again", now_s
        return len(dead)

    def places(self, name: str) -> list[Place]:
        return [
            Place(partition, place.owner, place.lease_until_s, place.retry_at_s, place.failures)
            for partition, place in enumerate(self._sink(name).places)
        ]


def _entry(stored: _Stored, attempts: int) -> Entry:
    return Entry(stored.partition, stored.seq, stored.call_id, stored.tenant, stored.record, attempts)


def _letter(aside: _Aside) -> DeadLetter:
    stored = aside.stored
    return DeadLetter(
        stored.partition,
        stored.seq,
        stored.call_id,
        stored.tenant,
        aside.reason,
        aside.attempts,
        aside.first_attempt_s,
        aside.last_attempt_s,
        stored.record,
    )
