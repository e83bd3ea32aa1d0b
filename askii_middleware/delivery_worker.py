"""Delivery to one sink. See `delivery` for the whole picture."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from .delivery_age import DESPITE_AGE, Ages
from .delivery_rounds import MAX_PAUSE_S, DeliveryOptions, Rounds
from .log_fields import fields
from .records import UsageRecord, decode_record
from .sinks.base import BACK_OFF, Delivery, Sink, Verdict, traits_of
from .stores.base import Entry, Outcome, Store

logger = logging.getLogger("askii_middleware.delivery")

ISOLATE_AFTER = 3
"""Failures in a row before a batch is searched for the record that causes them."""
ISOLATE_MISSES = 32
"""Failed sends one search may cost. The search after the next failure goes on where this one ended."""
MAX_ATTEMPTS = 12
"""Tries of a record that fails alone while others are delivered, before it goes to the dead letters."""
MAX_BATCH = 200
"""Records sent at once: to decode, count and acknowledge them takes about 1 ms of the event loop."""
SEARCHED = 500
"""How far a search looks ahead: fewer causes in a row never hide the healthy records behind them."""
_ALARM_EVERY_S = 60.0


class _Item(NamedTuple):
    entry: Entry
    record: UsageRecord


class _Tried(NamedTuple):
    """One send, with its verdicts sorted out."""

    delivery: Delivery
    outcomes: list[Outcome]
    left: list[_Item]
    """Those without an outcome, in order."""
    reason: str


class SinkWorker(Rounds):
    """Delivers records to one sink."""

    def __init__(self, store: Store, sink: Sink, options: DeliveryOptions) -> None:
        super().__init__(store, sink.name, f"sink {sink.name}", options)
        self.sink = sink
        self.alarm = ""
        self._alarm_logged_s = float("-inf")
        self._alive = False
        """Whether this round has delivered anything: the sink works, so what fails alone is itself the cause."""
        self._searched: dict[int, int] = {}
        """Up to here, by partition, new records have failed alone since the last delivery."""
        self._ages = Ages(traits_of(sink))
        self._behind: set[str] = set()
        """Tenants whose next record looks too old, which is not certain yet."""

    async def _deliver(self) -> bool:
        self._alive = False
        entries = await self._fetch(min(self.sink.max_batch, MAX_BATCH))
        if not entries:
            return False
        items, broken = _decode(entries)
        if broken:
            await self._write(broken, keep=True)
        items = await self._drop_old(items)
        if not items:
            return True
        await asyncio.sleep(0)  # to read a batch and to send it are two turns of the event loop, with requests between
        first = [item for item in items if item.entry.attempts == 0]
        later = [item for item in items if item.entry.attempts > 0]
        # New records first: they show whether the sink works at all, and must not wait for the troubled ones.
        moved = not first or await self._send(first, first=True)
        if moved and later:
            await self._send(later, first=False)
        return True

    async def _drop_old(self, items: list[_Item]) -> list[_Item]:
        """Those that may be sent. Others wait until it is certain that they are too old, and with them what follows of
        the same tenant; then they are dead letters. A partition with nothing else leaves the round for so long.
        """
        now_s = self._o.clock()
        reasons = {item.entry[:2]: reason for item in items if (reason := self._ages.reason(item.record, now_s))}
        old = [item for item in items if item.entry[:2] in reasons]
        if any(item.entry.attempts for item in old) and await self._despite_age():
            old = [item for item in old if item.entry.attempts == 0]
        found = {item.entry.partition for item in old}
        self._behind = {item.entry.tenant for item in old if item.entry.attempts == 0}
        left_out = {item.entry[:2] for item in old}
        free = {item.entry.partition for item in items if item.entry[:2] not in left_out and not self._is_behind(item)}
        unsure: set[int] = set()
        for n in {item.entry.partition for item in items} & self._round:
            if n not in found:
                self._ages.none(n)
            elif (until_s := self._ages.look(n, now_s)) is not None:
                self._note_alarm("records look too old to be sent: they wait, lest the clock be wrong")
                unsure.add(n)
                if n not in free:
                    self._held[n] = self._held[n]._replace(retry_at_s=until_s)
                    self._round.discard(n)
        self._behind &= {item.entry.tenant for item in old if item.entry.partition in unsure}
        dead = [_outcome(item, "dead", reasons[item.entry[:2]]) for item in old if item.entry.partition not in unsure]
        if dead:
            self._note_alarm(f"records went to the dead letters: {dead[0].reason}")
            await self._write(dead, keep=True)
        return [
            item
            for item in items
            if item.entry.partition in self._round and item.entry[:2] not in left_out and not self._is_behind(item)
        ]

    def _is_behind(self, item: _Item) -> bool:
        """Whether an earlier first delivery of its tenant waits, whose order it must keep."""
        return item.entry.attempts == 0 and item.entry.tenant in self._behind

    async def _despite_age(self) -> bool:
        """Whether somebody wants this sink's retried dead letters to be sent whatever their age."""
        return any(item.name == self.sink.name for item in await self._store.items(DESPITE_AGE))

    def _pause_left_s(self) -> float:
        now_s = self._o.clock()
        for n, lease in self._held.items():
            if self._ages.was_set_back(n, lease.retry_at_s, now_s):
                self._held[n] = lease._replace(retry_at_s=0.0)
        return super()._pause_left_s()

    async def _fetch(self, limit: int) -> list[Entry]:
        return await self._store.fetch(self.sink.name, sorted(self._round), limit)

    async def _send(self, items: list[_Item], *, first: bool) -> bool:
        """Send a batch and write down what became of it. False: the sink is paused."""
        tried = await self._try(items)
        if tried.delivery.pause_s is None:
            await self._write(tried.outcomes)
            return True
        if not tried.delivery.suspect or (first and self._failures() + 1 < ISOLATE_AFTER):
            await self._write(tried.outcomes, tried)
            return False
        return await self._isolate(tried, first=first)

    async def _isolate(self, broke: _Tried, *, first: bool) -> bool:
        """Send a batch that the sink broke on in ever smaller parts, in order, and then what stands behind it, until
        something is delivered. False: the sink is paused.
        """
        await self._write(broke.outcomes, keep=True)
        alone: list[_Item] = []
        parts = _parts(broke.left, 2)
        if first:
            alone, parts = await self._search_from()
        paused: _Tried | None = None
        misses = 0
        while parts and misses < ISOLATE_MISSES and paused is None:
            was_alive = self._alive
            tried = await self._try(parts.pop())
            await self._write(tried.outcomes, keep=True)
            if self._alive and not was_alive:
                # The sink may have come back just now: what failed alone before that gets another chance.
                parts += _parts(alone, 1)
                alone, misses = [], 0
            if tried.delivery.pause_s is None:
                continue
            misses += 1
            if not tried.delivery.suspect:
                paused = tried
            elif len(tried.left) == 1:
                alone += tried.left
            else:
                parts += _parts(tried.left, 2)
        if first and not self._alive:
            self._searched = {item.entry.partition: item.entry.seq for item in alone} if parts else {}
            await self._write([], paused or broke)
            return False
        # Records that had trouble before never stand in the way of others: all of them wait, each for itself.
        waiting = alone if first else alone + [item for part in parts for item in part]
        await self._write([self._later(item, broke.reason) for item in waiting], paused)
        return paused is None

    def _failures(self) -> int:
        """Failures in a row of the round's partitions: the highest, since all go out together."""
        return max((self._held[n].failures for n in self._round), default=0)

    async def _search_from(self) -> tuple[list[_Item], list[list[_Item]]]:
        """New records that failed alone in earlier searches, and the parts to try now, the next one last."""
        now_s = self._o.clock()
        found = [item for item in _decode(await self._fetch(SEARCHED))[0] if not self._is_behind(item)]
        items = [item for item in found if not self._ages.reason(item.record, now_s)]
        known: list[_Item] = []
        fresh: list[_Item] = []
        for item in items:
            if item.entry.attempts == 0:
                (known if item.entry.seq <= self._searched.get(item.entry.partition, 0) else fresh).append(item)
        return known, _parts(fresh, -(-2 * (len(known) + len(fresh)) // self.sink.max_batch))

    def _later(self, item: _Item, reason: str) -> Outcome:
        attempts = item.entry.attempts + 1
        if attempts >= MAX_ATTEMPTS and self._alive:
            return _outcome(item, "dead", f"failed alone {attempts} times: {reason}")
        return _outcome(item, "again", reason, self._o.back_off_s(attempts))

    async def _try(self, items: list[_Item]) -> _Tried:
        """Send once. Whatever the sink raises is a failure of this batch, not of the loop. What belongs to partitions
        that we have lost is left out, as if it had never been fetched.
        """
        await self._confirm()
        items = [item for item in items if item.entry.partition in self._round]
        if not items:
            return _Tried(Delivery(()), [], [], "")
        try:
            async with asyncio.timeout(self._o.send_timeout_s):
                delivery = await self.sink.send([item.record for item in items])
            outcomes, left = self._sort(items, delivery)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            delivery, outcomes, left = _failed("the sink cancelled itself"), [], items
        except TimeoutError:
            delivery, outcomes, left = _failed(f"no answer within {self._o.send_timeout_s:g} s"), [], items
        except Exception as error:
            logger.debug(
                "sink %s: send raised", self.sink.name, exc_info=True, extra=fields("sink_raised", sink=self.sink.name)
            )
            delivery, outcomes, left = _failed(f"{type(error).__name__}: {error}"), [], items
        self._note_alarm(delivery.alarm)
        reason = next((v.reason for v in delivery.verdicts if v.result == "again"), delivery.alarm)
        return _Tried(delivery, outcomes, left, reason)

    def _sort(self, items: list[_Item], delivery: Delivery) -> tuple[list[Outcome], list[_Item]]:
        """Outcomes, and what keeps its place. Raises ValueError on an answer that makes no sense."""
        outcomes: list[Outcome] = []
        left: list[_Item] = []
        for item, verdict in zip(items, delivery.verdicts, strict=True):
            if verdict.result == "delivered":
                outcomes.append(_outcome(item, "delivered"))
            elif verdict.result == "rejected":
                outcomes.append(_outcome(item, "dead", verdict.reason))
            elif verdict.result == "kept" or (verdict.result == "again" and delivery.pause_s is not None):
                left.append(item)
            elif verdict.result == "again":
                after_s = verdict.after_s or self._o.back_off_s(item.entry.attempts + 1)
                outcomes.append(_outcome(item, "again", verdict.reason, after_s))
            else:
                raise ValueError(f"unknown verdict {verdict.result!r}")
        if not outcomes and delivery.pause_s is None:
            raise ValueError("the sink kept every record and asked for no pause")
        self._alive = self._alive or any(outcome.result == "delivered" for outcome in outcomes)
        return outcomes, left

    async def _write(self, outcomes: list[Outcome], paused: _Tried | None = None, *, keep: bool = False) -> None:
        """Write outcomes and the round's back-off; `keep` leaves that as it is. Nothing is written for partitions that
        we have lost. Raises LeaseLostError if these are all.
        """
        leases = [self._held[n] for n in sorted(self._round)]
        failures, retry_at_s = self._failures() if keep else 0, 0.0
        if paused is not None:
            pause_s = min(paused.delivery.pause_s or BACK_OFF, MAX_PAUSE_S)
            failures = self._failures()
            if pause_s == BACK_OFF:
                failures = 1 if self._alive else failures + 1
                pause_s = self._o.back_off_s(failures)
            retry_at_s = self._o.clock() + pause_s
        changed = any((lease.retry_at_s, lease.failures) != (retry_at_s, failures) for lease in leases)
        if outcomes or (changed and not keep):
            lost = await self._store.acknowledge(
                self.sink.name, leases, outcomes, retry_at_s=retry_at_s, failures=failures
            )
            if lost:
                self._lost(lost)
                outcomes = [outcome for outcome in outcomes if outcome.partition not in lost]
        self._pause(retry_at_s, failures)
        if self._alive:
            self._searched = {}
        for result in ("delivered", "dead", "again"):
            count = sum(outcome.result == result for outcome in outcomes)
            if count:
                self._o.on_result(self.sink.name, result, count)
        if paused is not None:
            self._o.on_result(self.sink.name, "error", len(paused.left))
            logger.warning(
                "sink %s: %d records wait %.1f s: %s",
                self.sink.name,
                len(paused.left),
                pause_s,
                paused.reason,
                extra=fields("sink_waits", sink=self.sink.name, count=len(paused.left), wait_s=pause_s),
            )

    def _note_alarm(self, alarm: str) -> None:
        now_s = self._o.clock()
        if alarm and (alarm != self.alarm or now_s - self._alarm_logged_s >= _ALARM_EVERY_S):
            logger.error("sink %s: %s", self.sink.name, alarm, extra=fields("sink_alarm", sink=self.sink.name))
            self._alarm_logged_s = now_s
        if alarm or self._alive:
            self.alarm = alarm


def _outcome(item: _Item, result: str, reason: str = "", after_s: float = 0.0) -> Outcome:
    return Outcome(item.entry.partition, item.entry.seq, result, reason, after_s)


def _failed(reason: str) -> Delivery:
    return Delivery((Verdict("again", reason),), BACK_OFF, suspect=True)


def _parts(items: list[_Item], count: int) -> list[list[_Item]]:
    """About `count` parts of nearly equal size, in reverse: the first one is popped first."""
    size = max(-(-len(items) // max(count, 1)), 1)
    return [items[start : start + size] for start in range(0, len(items), size)][::-1]


def _decode(entries: Sequence[Entry]) -> tuple[list[_Item], list[Outcome]]:
    """The entries with their records, and the outcomes of those that are not records."""
    items: list[_Item] = []
    broken: list[Outcome] = []
    for entry in entries:
        try:
            items.append(_Item(entry, decode_record(entry.record)))
        except msgspec.MsgspecError as error:
            broken.append(Outcome(entry.partition, entry.seq, "dead", f"not a usage record: {error}"))
    return items, broken
