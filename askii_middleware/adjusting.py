"""Credits and extra charges by hand, written once each whatever is repeated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from .budgets import BudgetIndex
from .calls import new_call_id
from .corrections import (
    MAX_ADJUSTMENTS,
    AdjustmentError,
    Correction,
    History,
    UnknownCallError,
    check_reason,
    dimensions_of,
    nano_of,
    of_call,
    of_tenant,
    own_id,
    slot,
)
from .counting import check_name
from .currency import RateSource, nano_to_usd_text
from .errors import StoreError
from .identity import Identity
from .names import ModelNames
from .records import UsageRecord, decode_record, external_id
from .stores.base import Settled, Store, UnwritableError
from .stores.forgetting import DELETED

if TYPE_CHECKING:
    from .metrics import Metrics
    from .pricing import Price, PriceBook
    from .session import Session

ATTEMPTS = 10
"""How often to try again where somebody else adjusts the same call at the same time."""


class Adjusted(NamedTuple):
    """An adjustment as it stands in the ledger."""

    record: UsageRecord
    adjustment_id: str
    repeated: bool
    """It was made before: this time nothing was changed."""


class Adjusting(ABC):
    """Mixed into `CostTracker`. Nothing here goes through the journal: whoever corrects an amount is there to see an
    error, and repeats the command.
    """

    store: Store
    prices: PriceBook
    index: BudgetIndex
    names: ModelNames
    rates: RateSource
    metrics: Metrics
    clock: Callable[[], float]
    _session: Session

    @abstractmethod
    async def ready(self) -> None:
        """Open the ledger if it is not open yet. Raises StoreError."""

    @abstractmethod
    def subscription(self, identity: Identity) -> str:
        """The external subscription an identity is billed to; empty where it has none."""

    @abstractmethod
    def price_of(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or the configured default; None where there is neither."""

    async def adjust(
        self,
        tenant_or_identity: str | Identity,
        usd: Decimal | float | str,
        *,
        reason: str,
        ref: str | None = None,
        adjustment_id: str | None = None,
        allow_beyond: bool = False,
    ) -> UsageRecord:
        """Credit (below 0) or charge (above 0) an amount besides what calls cost. No budget refuses it.

        With `ref` it belongs to that call: to its windows, model, subscription and rate. Without, it belongs to the
        present and to the tenant. Coins that were billed are not taken back: a credit is used up by later charges of
        its subscription.

        Args:
            tenant_or_identity: who is charged. The call that `ref` names has to be this tenant's.
            usd: an exact amount with at most 9 digits after the point.
            reason: kept in the record; at most 500 characters.
            ref: the id of the call it corrects.
            adjustment_id: the same id adjusts a call (without `ref`: a tenant) once. Default with `ref`: made from
                amount and reason, so that repeating it changes nothing; without: a new one each time.
            allow_beyond: credit more than the call has cost, less what was credited before.

        Returns the record, of the first time where it is repeated. Raises AdjustmentError (UnknownCallError where the
        ledger does not have the call), ValueError for an impossible identity, and StoreError; repeating it with the
        same id is then safe.
        """
        await self.ready()
        adjusted = await self.write_adjustment(
            tenant_or_identity, usd, reason=reason, ref=ref, adjustment_id=adjustment_id, allow_beyond=allow_beyond
        )
        return adjusted.record

    async def write_adjustment(
        self,
        tenant_or_identity: str | Identity,
        usd: Decimal | float | str,
        *,
        reason: str,
        ref: str | None = None,
        adjustment_id: str | None = None,
        allow_beyond: bool = False,
    ) -> Adjusted:
        """`adjust` on a store that is open, without starting anything."""
        who = tenant_or_identity
        identity = who if isinstance(who, Identity) else Identity(tenant=who)
        nano_usd, reason = nano_of(usd), check_reason(reason)
        for what, name in (("ref", ref), ("adjustment_id", adjustment_id)):
            if name is not None:
                _check_name(what, name)
        self.index.update(*await self.store.forms())
        if ref is None:
            return await self._adjust_tenant(identity, nano_usd, reason, adjustment_id)
        return await self._adjust_call(identity, nano_usd, reason, ref, adjustment_id, allow_beyond=allow_beyond)

    async def _adjust_call(
        self,
        identity: Identity,
        nano_usd: int,
        reason: str,
        ref: str,
        adjustment_id: str | None,
        *,
        allow_beyond: bool,
    ) -> Adjusted:
        call_id, call = await self._find_call(identity.tenant, ref)
        adjustment_id = adjustment_id or own_id(nano_usd, reason)
        for _ in range(ATTEMPTS):
            history = await self.read_history(call_id, call)
            known = history.find(adjustment_id)
            if known is not None:
                return _repeated(known, adjustment_id, nano_usd)
            if not allow_beyond:
                history.check_credit(nano_usd)
            correction = self.correct(history, nano_usd, reason=reason, adjustment_id=adjustment_id)
            settled = await self._settle(correction, adjustment_id)
            if not settled.duplicate:
                return Adjusted(_complete(correction.record, settled), adjustment_id, repeated=False)
        raise StoreError(f"others keep adjusting the call {ref!r}; try again")

    async def _adjust_tenant(
        self, identity: Identity, nano_usd: int, reason: str, adjustment_id: str | None
    ) -> Adjusted:
        now_s = self.clock()
        adjustment_id = adjustment_id or new_call_id(now_s)
        correction = of_tenant(
            identity,
            nano_usd,
            adjustment_id=adjustment_id,
            subscription=self.subscription(identity),
            reason=reason,
            price_version=self.prices.version,
            matches=self.index.matches(identity.dimensions()),
            rate=self.rates.current(),
            now_s=now_s,
        )
        settled = await self._settle(correction, adjustment_id)
        if not settled.duplicate:
            return Adjusted(_complete(correction.record, settled), adjustment_id, repeated=False)
        found = await self.store.record(correction.record.call_id)
        known = correction.record if found is None else decode_record(found)
        if known.kind != "adjustment" or known.tenant != identity.tenant or known.reference is not None:
            raise AdjustmentError(f"the id {adjustment_id!r} is taken: choose another one")
        return _repeated(known, adjustment_id, nano_usd)

    async def _settle(self, correction: Correction, adjustment_id: str) -> Settled:
        try:
            settled = await self.store.settle(correction.settlement)
        except UnwritableError as error:
            raise AdjustmentError(f"the ledger cannot hold this adjustment: {error}") from error
        except StoreError as error:
            raise StoreError(
                f"{error}; whether the adjustment was written is not known: repeat it with the id {adjustment_id!r}, "
                "which changes nothing twice"
            ) from error
        if not settled.duplicate:
            self.metrics.adjusted(correction.settlement.cost_nano_usd)
        self._session.wake()
        return settled

    async def _find_call(self, tenant: str, ref: str) -> tuple[str, UsageRecord]:
        """A call's id in the ledger and its record."""
        # What was charged elsewhere is known there under an id of its subscription's.
        for call_id in (ref, external_id(tenant, ref)):
            found = await self.store.record(call_id)
            if found is not None:
                break
        else:
            raise UnknownCallError(ref)
        call = decode_record(found)
        if call.tenant != tenant:
            raise AdjustmentError(f"the call {ref!r} is not one of the tenant {tenant!r}")
        if tenant == DELETED:
            raise AdjustmentError(f"the tenant of the call {ref!r} was deleted: nobody is left to bill or to credit")
        if call.kind != "usage":
            raise AdjustmentError(f"{ref!r} is itself an adjustment: name the call it corrects ({call.reference!r})")
        return call_id, call

    # For every kind of correction -------------------------------------------------------------------------------------

    async def read_history(self, call_id: str, call: UsageRecord) -> History:
        """A call with the adjustments made to it so far. Raises AdjustmentError where they are too many."""
        made: list[UsageRecord] = []
        for number in range(1, MAX_ADJUSTMENTS + 1):
            next_id = slot(call_id, number)
            found = await self.store.record(next_id)
            if found is None:
                return History(call_id, call, tuple(made), next_id)
            record = decode_record(found)
            if record.reference == call_id:  # else somebody has given a call of theirs this id
                made.append(record)
        raise AdjustmentError(f"the call {call_id!r} has {MAX_ADJUSTMENTS} adjustments, which is all it can have")

    def correct(self, history: History, nano_usd: int, *, reason: str, adjustment_id: str | None = None) -> Correction:
        """The next adjustment of a call, on the budgets the call met."""
        return of_call(
            history,
            nano_usd,
            reason=reason,
            price_version=self.prices.version,
            matches=self.index.matches(dimensions_of(history.call, self.names.of)),
            now_s=self.clock(),
            adjustment_id=adjustment_id,
        )


def _check_name(what: str, name: str) -> None:
    try:
        check_name(what, name)
    except ValueError as error:
        raise AdjustmentError(str(error)) from None


def _complete(record: UsageRecord, settled: Settled) -> UsageRecord:
    return msgspec.structs.replace(record, late=settled.late, askii_coins=settled.coins)


def _repeated(known: UsageRecord, adjustment_id: str, nano_usd: int) -> Adjusted:
    if known.cost_nano_usd != nano_usd:
        raise AdjustmentError(
            f"the adjustment {adjustment_id!r} was made before, of {nano_to_usd_text(known.cost_nano_usd)} USD: "
            "another one takes another id"
        )
    return Adjusted(known, adjustment_id, repeated=True)
