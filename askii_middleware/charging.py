"""From a finished call to its charge in the ledger, and charges for calls that were made elsewhere."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from .admitting import Admitter
from .calls import Call, CallSpec, new_call_id
from .counting import check_model, check_name, check_usage, checked_metadata, whole_count
from .currency import MAX_NANO_USD, NANO, PICO, RateSource
from .errors import StoreError, UnknownModelError
from .identity import Identity
from .log_fields import fields, shown
from .logs import log_charge
from .operations import Operations
from .options import Option
from .records import EXTERNAL, decode_record, external_id
from .settling import Billed, Conclusion, Verdict, build
from .usage import TokenUsage

if TYPE_CHECKING:
    from .budgets import BudgetIndex
    from .concluding import Concluder
    from .deferrals import Deferrals
    from .expectations import Expectations
    from .metrics import Metrics
    from .pricing import Price, PriceBook
    from .records import UsageRecord
    from .session import Session
    from .stores.base import Settled, Store
    from .tracing import Tracing
    from .writer import LedgerWriter

logger = logging.getLogger(__name__)


class Charging(ABC):
    """Mixed into `CostTracker`."""

    store: Store
    prices: PriceBook
    index: BudgetIndex
    rates: RateSource
    metrics: Metrics
    concluder: Concluder
    deferrals: Deferrals
    expectations: Expectations
    operations: Operations
    tracing: Tracing
    unknown_price: str
    clock: Callable[[], float]
    _admitter: Admitter
    _session: Session
    _writer: LedgerWriter
    _subscription_of: Callable[[Identity], str | None] | Mapping[str, str] | None

    @abstractmethod
    def price_of(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or the configured default; None where there is neither."""

    def _new_operations(self, timeout_s: float) -> Operations:
        return Operations(
            self.store,
            self._writer,
            self.concluder,
            self.price_of,
            charge=self._charge,
            released=self.metrics.released,
            timeout_s=timeout_s,
            clock=self.clock,
        )

    # Calls that were admitted ----------------------------------------------------------------------------------------

    async def close_call(self, call: Call, conclusion: Conclusion, *, status: int | None = None) -> UsageRecord | None:
        """Write the end of a call: once, whatever happens to the caller. Returns the record, or None where there is
        nothing to charge (yet).
        """
        if call.closed:
            return None
        call.closed = True
        self.tracing.concluded(call, conclusion)
        verdict = conclusion.verdict
        if verdict.deferred:
            self.metrics.deferred(call.spec.api)
            await self.operations.defer(call, conclusion.provider_request_id, seen_output=conclusion.seen_output)
            return None
        if verdict.usage is None:
            if call.held:
                await self._writer.release(call.id)
            self.metrics.released(call.spec.api)
            return None
        return (await self._charge(call, conclusion, status))[0]

    async def charge_hold(self, call: Call) -> None:
        """Close a call of which nothing is known but that it ran: it costs what was held for, as an estimate."""
        if call.closed:
            return
        call.closed = True
        logger.warning(
            "call %s: it ended without counts; its hold is charged",
            call.id,
            extra=fields("hold_charged", call_id=call.id, tenant=call.identity.tenant, cause="no_counts"),
        )
        whole = TokenUsage(input=call.input_bound, output=call.covered_tokens)
        verdict = Verdict(usage=whole, outcome="deferred_estimate", estimated=True)
        conclusion = self.concluder.priced(call, [(None, whole)], verdict)
        self.tracing.concluded(call, conclusion)
        await self._charge(call, conclusion, None)

    async def close_late(
        self, call: Call, payer: Identity, conclusion: Conclusion, *, status: int | None = None
    ) -> UsageRecord | None:
        """Like `close_call`, for a call whose payer became known only after it was admitted for somebody else.

        The payer is charged under the id `<id>.late`, unheld, and then the hold is released: a process that dies in
        between leaves a hold to expire, never a second charge.
        """
        if call.closed or (conclusion.verdict.usage is None and not conclusion.verdict.deferred):
            return await self.close_call(call, conclusion, status=status)
        call.closed = True
        option = Option(call.model, call.price, call.input_bound, call.output_bound, None, 0)
        moved = replace(
            call,
            id=f"{call.id}.late",
            identity=payer,
            held=False,
            held_nano_usd=0,
            matches=self.index.matches(self._admitter.dimensions(payer, call.spec, option)),
            closed=False,
        )
        try:
            return await self.close_call(moved, conclusion, status=status)
        finally:
            if call.held:
                await self._writer.release(call.id)

    async def _charge(
        self, call: Call, conclusion: Conclusion, status: int | None
    ) -> tuple[UsageRecord, Settled | None]:
        started_s = time.perf_counter()
        verdict = conclusion.verdict
        record, settlement = build(
            call,
            conclusion.parts,
            conclusion.billed,
            subscription=self.subscription(call.identity),
            price_version=self.prices.version,
            ending_status=status,
            outcome=verdict.outcome,
            estimated=verdict.estimated,
            flagged=conclusion.flagged,
            service_tier=conclusion.service_tier,
            provider_request_id=conclusion.provider_request_id,
            provider_cost_nano_usd=conclusion.provider_cost_nano_usd,
            duration_ms=round((started_s - call.started_s) * 1000, 1),
            provider=(conclusion.parts[0].price.provider if conclusion.parts and conclusion.parts[0].price else None)
            or call.spec.provider
            or "",
        )
        self.expectations.learn_from(call.model, record)
        log_charge(call, record.cost_nano_usd)
        # Counted with the write, which goes on where the caller is cancelled.
        settled = await self._writer.settle(settlement, lambda settled: self._booked(record, settled, started_s))
        return record, settled

    def _booked(self, record: UsageRecord, settled: Settled | None, started_s: float) -> None:
        self.metrics.settled(record, settled, time.perf_counter() - started_s)
        self._session.wake()

    def subscription(self, identity: Identity) -> str:
        """The external subscription an identity is billed to; empty where it has none."""
        mapping = self._subscription_of
        if mapping is None:
            return identity.tenant
        try:
            found: Any = mapping(identity) if callable(mapping) else mapping.get(identity.tenant)
            return "" if found is None else check_name("subscription_of", found)
        except Exception:
            # The charge must not be lost with it; sinks that bill put the record aside.
            logger.exception(
                "subscription_of failed for the tenant %s",
                shown(identity.tenant),
                extra=fields("subscription_failed", tenant=identity.tenant),
            )
            return ""

    # Calls that were made elsewhere -----------------------------------------------------------------------------------

    async def record_usage(
        self,
        tenant_id: str | Identity,
        model: str,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        usage: TokenUsage | None = None,
        call_id: str | None = None,
        provider: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> UsageRecord:
        """Charge a call that has already happened, and tell it on the current span. No budget can refuse it. The same
        `call_id` charges once.

        Where the ledger is away the charge waits in the journal; the record then has no `askii_coins` yet. Raises
        UnknownModelError, ValueError for counts that are none, and StoreError where the charge would find no place.
        """
        identity = tenant_id if isinstance(tenant_id, Identity) else Identity(tenant=tenant_id)
        counted = TokenUsage.from_totals(
            whole_count("input_tokens", input_tokens), whole_count("output_tokens", output_tokens)
        )
        if usage is not None:
            counted = check_usage(usage)
        spec = CallSpec(model=check_model(model), provider=provider, metadata=checked_metadata(metadata))
        if call_id is not None:
            check_name("call_id", call_id)
        await self._ready_to_charge()
        if call_id is not None:
            subscription = self.subscription(identity)
            await self._check_is_free(external_id(subscription, call_id), subscription, call_id)
        call = self._unheld(identity, spec, call_id)
        conclusion = self.concluder.priced(call, [(model, counted)], Verdict(usage=counted))
        if conclusion.billed.nano_usd > MAX_NANO_USD:
            raise ValueError(f"{conclusion.billed.nano_usd} nano-USD are more than a charge can be ({MAX_NANO_USD})")
        record, settled = await self._charge(call, conclusion, None)
        if settled is None or not settled.duplicate:
            self.tracing.admitted(call)
            self.tracing.concluded(call, conclusion)
        if settled is None:
            return record
        return msgspec.structs.replace(record, late=settled.late, askii_coins=settled.coins)

    async def record_external(self, subscription: str, coins: int, call_id: str, *, pico_coins: int = 0) -> None:
        """Charge and bill coins that were computed elsewhere, once for each `call_id` of a subscription; `pico_coins`,
        below 10¹², go into the subscription's carry. Raises ValueError for ids that are too long or another charge's,
        and for an amount beyond what a charge can be.
        """
        identity = Identity(tenant=subscription)
        check_name("call_id", call_id)
        await self._ready_to_charge()
        await self._check_is_free(call_id, subscription, call_id)
        call = self._unheld(identity, CallSpec(model="external", api=EXTERNAL), call_id, priced=False)
        numerator, denominator = call.rate.ratio
        exact, unit = (coins * PICO + pico_coins) * NANO * denominator, numerator * PICO
        nano, rest = divmod(exact, unit)
        nano += 2 * rest > unit or (2 * rest == unit and nano % 2)
        if not 0 <= nano <= MAX_NANO_USD:
            raise ValueError(f"{coins} coins are not 0 to {MAX_NANO_USD} nano-USD at the current rate")
        record, settlement = build(
            call, (), Billed(nano, (), False), subscription=subscription, price_version=self.prices.version
        )
        # The ledger knows calls by one id for all tenants; callers' own ids are unique for a subscription only.
        own = external_id(subscription, call_id)
        await self._writer.settle(
            msgspec.structs.replace(settlement, call_id=own, coins=coins, pico_coins=pico_coins),
            lambda settled: self._booked(record, settled, call.started_s),
        )

    async def _check_is_free(self, ledger_id: str, subscription: str, call_id: str) -> None:
        """Raise ValueError where a charge of the other kind has this id: to the ledger they are two, to a receiver that
        knows events by subscription and call id one. Of two made at the same moment neither may see the other, nor
        while the ledger is away: reconciliation names such a pair `doubled`.
        """
        try:
            found = await self.store.record(ledger_id)
        except StoreError:
            return
        if found is not None and decode_record(found).subscription == subscription:
            raise ValueError(f"the call_id {call_id!r} is taken by another charge of {subscription!r}: choose another")

    async def _ready_to_charge(self) -> None:
        try:
            await self._session.ready()
        except StoreError:
            if self._writer.refuses:
                raise

    def _unheld(self, identity: Identity, spec: CallSpec, call_id: str | None, *, priced: bool = True) -> Call:
        price = self.price_of(spec.model, provider=spec.provider) if priced else None
        if priced and price is None and self.unknown_price != "allow":
            raise UnknownModelError(spec.model)
        option = Option(spec.model, price, 0, 0, None, 0)
        now_s = self.clock()
        return Call(
            id=call_id or new_call_id(now_s),
            spec=spec,
            identity=identity,
            model=spec.model,
            price=price,
            held_nano_usd=0,
            held=False,
            input_bound=0,
            output_bound=0,
            covered_tokens=0,
            write_output_limit=None,
            clamped=False,
            matches=self.index.matches(self._admitter.dimensions(identity, spec, option)),
            windows=self.index.windows(now_s),
            rate=self.rates.current(),
            admitted_at_s=now_s,
            started_s=time.perf_counter(),
        )
