"""Whether a call may run: the tracker's own part of an admission, around the one question to the store."""

from __future__ import annotations

import asyncio
import time
from abc import ABC
from collections.abc import Callable
from typing import TYPE_CHECKING

from .admitting import Admitted, Admitter, exceeded, made_call
from .calls import Call, CallSpec, new_call_id
from .errors import StoreError, UnknownModelError
from .stores.base import UnwritableError
from .writer import NoPlaceError

if TYPE_CHECKING:
    from .budgets import BudgetIndex
    from .currency import RateSource
    from .identity import Identity
    from .logs import EventLog
    from .metrics import Metrics
    from .modes import Modes
    from .options import OptionBuilder
    from .pricing import Price
    from .session import Session
    from .tenants import TenantBook
    from .tracing import Tracing
    from .writer import LedgerWriter


SUSPENDED = "denied:suspended:tenant"
"""What the record of a suspended tenant's call says in shadow."""


class Admissions(ABC):
    """Mixed into `CostTracker`."""

    index: BudgetIndex
    rates: RateSource
    metrics: Metrics
    modes: Modes
    tenants: TenantBook
    log: EventLog
    tracing: Tracing
    clock: Callable[[], float]
    _allow_unheld: bool
    _admitter: Admitter
    _builder: OptionBuilder
    _session: Session
    _writer: LedgerWriter

    def price_of(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or the configured default; None where there is neither."""
        return self._builder.price_of(model, provider=provider, service_tier=service_tier)

    async def admit(
        self, identity: Identity, spec: CallSpec, *, call_id: str | None = None, replaces: str | None = None
    ) -> Call:
        """Hold a call's worst cost on every budget it meets, for the first candidate model that fits.

        Raises TenantSuspendedError, BudgetExceededError, UnknownModelError, or StoreError where the ledger is away
        and `on_store_error` is `deny`.
        """
        started_s = time.perf_counter()
        call_id = call_id or new_call_id(self.clock())
        rate = self.rates.current()
        mode = self.modes.of(identity.tenant)
        shadow = mode == "shadow"
        away: StoreError | None = None
        try:
            await self._session.can_hold()
        except StoreError as error:
            away = error
        # Only now: the first call of a process opens the ledger, and learns from it who is suspended.
        suspended = self.tenants.find(identity.tenant)
        if suspended is not None and mode == "enforce":
            raise suspended
        self._admitter.count_early(spec, shadow=shadow)
        try:
            options = self._builder.options(spec, identity.tenant, lenient=shadow)
        except UnknownModelError:
            self.metrics.unknown_price("reject")
            raise
        admitted: Admitted | None = None
        held = False
        try:
            if away is not None:
                raise away
            if mode != "off":
                held = True  # perhaps: a store that fails to answer, or is not waited for, may hold all the same
                admitted = await self._session.as_worker(
                    lambda worker: self._admitter.reserve(
                        identity,
                        spec,
                        options,
                        call_id=call_id,
                        worker=worker,
                        rate=rate,
                        replaces=replaces,
                        shadow=shadow,
                    )
                )
        except StoreError as error:
            self.metrics.store_error("reserve")
            self.log.store_failed("reserve", error, call_id)
            refused = isinstance(error, UnwritableError | NoPlaceError)
            held = held and not refused
            if not shadow and (refused or not self._allow_unheld):
                if held:
                    self._writer.release_doubtful(call_id)
                raise
            if replaces is not None:
                await self._writer.release(replaces)
        except asyncio.CancelledError:
            if held:
                self._writer.release_soon(call_id)
            raise
        if admitted is None:
            admitted = Admitted(None, [self._admitter.candidate(options[0], identity, spec)], options)
        elif admitted.admission is not None and admitted.admission.candidate is None:
            refusal = exceeded(admitted.admission, rate)
            self.log.refused(identity.tenant, refusal, call_id)
            self.tracing.denied(call_id, identity, spec, refusal)
            raise refusal
        spec.count_input = spec.accepts = spec.shows_output = None  # they keep the request
        now_s = self.clock()
        call = made_call(
            admitted,
            identity,
            spec,
            self.index,
            call_id=call_id,
            rate=rate,
            started_s=started_s,
            held=held,
            now_s=now_s,
        )
        if suspended is not None and shadow:
            call.shadow = SUSPENDED
        self.tracing.admitted(call)
        self.metrics.admitted(call, time.perf_counter() - started_s)
        return call
