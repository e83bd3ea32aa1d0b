"""Calls that were charged at a wrong price, charged at the right one: an adjustment for each that differs.

The price book of the present is asked, with the catalogue's dated and hourly prices as they were at the call's moment.
What is adjusted is the difference to what the call has come to by its charge and earlier repricing; corrections by hand
stay. So whatever was cut short is finished by doing it again, and doing it once more changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from .adjusting import ATTEMPTS, Adjusting
from .corrections import AdjustmentError, Correction, bucket_of
from .counting import check_name
from .errors import StoreError
from .price_again import PriceAt, PricesAt, Unpriceable, difference, price_again
from .records import UsageRecord, decode_record
from .settling import timestamp_text
from .stores.base import UnwritableError
from .stores.forgetting import DELETED

if TYPE_CHECKING:
    from .names import ModelNames

PAGE = 1000
AT_ONCE = 100
"""Calls whose adjustments are read, and written, together."""
MAX_SUMS = 10_000
MAX_EXAMPLES = 5
OTHERS = "(others)"


@dataclass(slots=True, kw_only=True)
class Skipped:
    """How many records could not be priced again for one reason, and the ids of the first ones."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Sum:
    """The adjustments of one tenant's calls of one model."""

    calls: int = 0
    nano_usd: int = 0


class Planned(NamedTuple):
    """A call, what it costs at today's price, and the adjustment that is missing."""

    call: UsageRecord
    price_nano_usd: int
    correction: Correction
    capped: bool


@dataclass(slots=True, kw_only=True)
class Repriced:
    """What a repricing did, or in a dry run would do.

    Attributes:
        read: records looked at.
        found: of these, the ones of this model, tenant and span.
        unchanged: calls that have come to the right price already.
        capped: calls of which less was credited, because corrections by hand had left no more of their charge.
        sums: by tenant and model. Beyond 10,000 of them, all further ones are one.
        skipped: by reason.
    """

    dry_run: bool
    read: int = 0
    found: int = 0
    unchanged: int = 0
    capped: int = 0
    sums: dict[tuple[str, str], Sum] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)

    @property
    def adjusted(self) -> int:
        """Calls that got an adjustment."""
        return sum(each.calls for each in self.sums.values())

    @property
    def nano_usd(self) -> int:
        """All adjustments together."""
        return sum(each.nano_usd for each in self.sums.values())

    def count(self, planned: Planned) -> None:
        key = planned.call.tenant, planned.call.served_model
        if key not in self.sums and len(self.sums) >= MAX_SUMS:
            key = OTHERS, OTHERS
        found = self.sums.setdefault(key, Sum())
        found.calls += 1
        found.nano_usd += planned.correction.record.cost_nano_usd
        self.capped += planned.capped

    def skip(self, call_id: str, why: str) -> None:
        found = self.skipped.setdefault(why, Skipped())
        found.count += 1
        if len(found.examples) < MAX_EXAMPLES:
            found.examples.append(call_id)


class Wanted:
    """Which records are to be priced again: calls of one model in a span."""

    def __init__(
        self, names: ModelNames, model: str, since: datetime, until: datetime | None, tenant: str | None
    ) -> None:
        self._names = names
        self._model = names.of(model)
        self._since, self._until = _text(since), None if until is None else _text(until)
        if self._until is not None and self._until <= self._since:
            raise AdjustmentError("reprice: the span ends before it begins")
        self._tenant = tenant

    def __contains__(self, record: UsageRecord) -> bool:
        # Timestamps of one form, in UTC: as texts they are in the order of time.
        return (
            record.timestamp >= self._since
            and (self._until is None or record.timestamp < self._until)
            and self._tenant in (None, record.tenant)
            and any(self._names.of(model) == self._model for model in _models(record))
        )


def _models(record: UsageRecord) -> Iterator[str]:
    yield record.served_model
    yield record.requested_model
    for charge in record.charges:
        model, colon, _ = charge.bucket.rpartition(":")
        if colon:
            yield model


def _text(moment: datetime) -> str:
    return timestamp_text((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


# The service ----------------------------------------------------------------------------------------------------------


class Repricing(Adjusting):
    """Mixed into `CostTracker`."""

    async def reprice(
        self,
        model: str,
        *,
        since: datetime,
        until: datetime | None = None,
        tenant: str | None = None,
        dry_run: bool = False,
        on_progress: Callable[[int], None] = lambda _read: None,
    ) -> Repriced:
        """Charge the calls of a model again at today's prices, by one adjustment for each that differs. Any number of
        times, by any number of processes: the ledger ends the same.

        Args:
            model: calls it served, or that asked for it.
            since: from this moment of admission on; naive datetimes are in UTC.
            until: before this moment.
            tenant: only this tenant's.
            dry_run: write nothing.
            on_progress: called now and then with the number of records read.

        Raises AdjustmentError for a span that is none, and StoreError: then do it again.
        """
        await self.ready()
        return await self.write_repricing(
            model, since=since, until=until, tenant=tenant, dry_run=dry_run, on_progress=on_progress
        )

    async def write_repricing(
        self,
        model: str,
        *,
        since: datetime,
        until: datetime | None = None,
        tenant: str | None = None,
        dry_run: bool = False,
        on_progress: Callable[[int], None] = lambda _read: None,
    ) -> Repriced:
        """`reprice` on a store that is open, without starting anything."""
        try:
            wanted = Wanted(self.names, check_name("model", model), since, until, tenant)
        except ValueError as error:
            raise AdjustmentError(str(error)) from None
        self.index.update(*await self.store.forms())
        done = Repriced(dry_run=dry_run)
        price_at = PricesAt(self.price_of, self.clock)
        after = 0
        while page := await self.store.records(after, PAGE):
            found = [record for _, raw in page if (record := _readable(raw, done)) is not None and record in wanted]
            done.found += len(found)
            calls = list(_priceable(found, price_at, done))
            for start in range(0, len(calls), AT_ONCE):
                await self._reprice_some(calls[start : start + AT_ONCE], done, f"reprice {model[:256]}")
            after = page[-1][0]
            done.read += len(page)
            on_progress(done.read)
        return done

    async def _reprice_some(self, calls: Sequence[tuple[UsageRecord, int]], done: Repriced, reason: str) -> None:
        """Adjust these calls to their prices. Where somebody else adjusts one at the same time, look again."""
        for _ in range(ATTEMPTS):
            planned = await self._plan(calls, done, reason)
            if not planned:
                return
            if done.dry_run:
                for each in planned:
                    done.count(each)
                return
            answers = await self.store.settle_many([each.correction.settlement for each in planned])
            calls = []
            for each, answer in zip(planned, answers, strict=True):
                if isinstance(answer, UnwritableError):
                    done.skip(each.call.call_id, "the ledger cannot hold the adjustment")
                elif answer.duplicate:
                    calls.append((each.call, each.price_nano_usd))
                else:
                    done.count(each)
            self._session.wake()
            if not calls:
                return
        raise StoreError(f"others keep adjusting the call {calls[0][0].call_id!r}; do it again")

    async def _plan(self, calls: Sequence[tuple[UsageRecord, int]], done: Repriced, reason: str) -> list[Planned]:
        """The adjustments that are missing."""
        histories = await asyncio.gather(
            *(self.read_history(call.call_id, call) for call, _ in calls), return_exceptions=True
        )
        planned = []
        for (call, price_nano_usd), history in zip(calls, histories, strict=True):
            if isinstance(history, AdjustmentError):
                done.skip(call.call_id, "it has as many adjustments as a call can have")
                continue
            if isinstance(history, BaseException):
                raise history
            nano_usd, capped = difference(history, price_nano_usd)
            if nano_usd:
                correction = self.correct(history, nano_usd, reason=reason)
                planned.append(Planned(call, price_nano_usd, correction, capped))
            else:
                done.unchanged += 1
                done.capped += capped
        return planned


def _readable(raw: bytes, done: Repriced) -> UsageRecord | None:
    try:
        return decode_record(raw)
    except msgspec.MsgspecError:
        done.skip("?", "the record cannot be read")
        return None


def _priceable(records: Sequence[UsageRecord], price_at: PriceAt, done: Repriced) -> Iterator[tuple[UsageRecord, int]]:
    """The calls among these with what they cost today; what cannot be told is counted."""
    for record in records:
        if record.kind == "adjustment":
            if bucket_of(record) != "reprice":
                done.skip(record.call_id, "an adjustment by hand, which stays as it is")
            continue
        if record.tenant == DELETED:
            done.skip(record.call_id, "its tenant was deleted: nobody is left to bill or to credit")
            continue
        try:
            yield record, price_again(record, price_at)
        except Unpriceable as why:
            done.skip(record.call_id, str(why))
