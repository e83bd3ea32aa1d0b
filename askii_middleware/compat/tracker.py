"""One `CostTracker` for both kinds of guide: synchronous about keys, asynchronous about tenants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from ..budgets import Budget, Scope
from ..counting import whole_count
from ..currency import NANO
from ..errors import UnknownModelError
from ..identity import Identity
from ..portal import run_across, run_sync
from ..pricing import PricingConfig
from ..usage import TokenUsage
from . import homes, keys
from .handles import Block, BudgetEnforcer, CostCalculator
from .shapes import BudgetPeriod, KeyBudget

if TYPE_CHECKING:
    from ..records import UsageRecord
    from ..reports import SpendSummary
    from ..tracker import CostTracker as CoreTracker

T = TypeVar("T")
Work = Callable[["CoreTracker"], Coroutine[Any, Any, T]]


class CostTracker:
    """The guides' tracker over ours. Making one opens and reads nothing.

    Args:
        pricing: prices of one's own, USD per 1,000 tokens. Without them it is the process's tracker under another
            name; with them a tracker of its own over the same ledger.
        tracker: one of ours to use instead. Its synchronous methods then need a thread other than its event loop's.
        tenant: who pays for keys that nobody has declared or created.
    """

    def __init__(
        self, pricing: PricingConfig | None = None, *, tracker: CoreTracker | None = None, tenant: str = "default"
    ) -> None:
        if pricing is not None and tracker is not None:
            raise TypeError("give pricing or a tracker, which has its prices")
        self.pricing = pricing
        self._own = tracker
        self._making = threading.Lock()
        self._tenant = tenant
        self.budget_enforcer = BudgetEnforcer(self)
        self.cost_calculator = CostCalculator(self)

    @property
    def tracker(self) -> CoreTracker:
        """Ours behind it. Raises ConfigurationError where the settings are wrong."""
        if self._own is None and self.pricing is not None:
            with self._making:
                if self._own is None:
                    self._own = homes.made(self.pricing)
        return self._own or homes.default()

    @property
    def trackers(self) -> list[CoreTracker]:
        """All of this process that it stands for: what is set for one of them is set for all."""
        return homes.both() if self._is_default else [self.tracker]

    @property
    def _is_default(self) -> bool:
        return self._own is None and self.pricing is None

    def run(self, work: Work[T]) -> T:
        """Do something with the tracker and wait for it, from synchronous code."""
        tracker = self.tracker
        return run_sync(tracker, lambda: work(tracker))

    async def act(self, work: Work[T]) -> T:
        """Do something with the tracker, from a coroutine on any event loop."""
        tracker = self.tracker
        return await run_across(tracker, lambda: work(tracker))

    async def near(self) -> CoreTracker:
        """Ours for a block."""
        return await homes.near() if self._is_default else self.tracker

    def close(self) -> None:
        """Settle and deliver what waits, and let go of the ledger; the next use opens it again. The end of the process
        does the same.
        """
        self.run(lambda tracker: tracker.stop())

    # Keys, synchronous -----------------------------------------------------------------------------------------------

    def calculate_cost(self, model: str, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, in USD. Raises UnknownModelError, and ValueError for counts that are none."""
        tracker = self.tracker
        price = tracker.price_of(model)
        if price is None:
            raise UnknownModelError(model)
        usage = TokenUsage.from_totals(
            whole_count("input_tokens", input_tokens), whole_count("output_tokens", output_tokens)
        )
        return price.charge(usage).nano_usd / NANO

    def check_budget(self, key_id: str, estimated_cost: float = 0.0) -> bool:
        """Whether a call of the key that costs so many USD would be admitted now. Holds nothing, so that of two calls
        both may be told yes. Raises ValueError for what is no amount.
        """
        return self.run(lambda tracker: keys.fits(tracker, key_id, self._tenant, estimated_cost))

    def record_usage(
        self,
        key_id: str,
        model: str,
        provider: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        request_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> UsageRecord:
        """Charge a key for a call that has happened. Each call of this is one charge: `request_id` and `session_id` go
        into the record's metadata, since what callers make up as an id may repeat.
        """
        more = {
            name: value for name, value in (("request_id", request_id), ("session_id", session_id)) if value is not None
        }

        async def charge(tracker: CoreTracker) -> UsageRecord:
            return await tracker.record_usage(
                await keys.identity(tracker, key_id, self._tenant),
                model,
                provider=provider,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                metadata={**(metadata or {}), **more},
            )

        return self.run(charge)

    def get_budget_status(self, key_id: str) -> KeyBudget:
        """How a key stands."""
        return self.run(lambda tracker: keys.standing(tracker, key_id, self._tenant))

    def get_spend(
        self,
        key_id: str,
        period: BudgetPeriod | str = BudgetPeriod.MONTHLY,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> SpendSummary:
        """What a key has spent in the current `period`, or, where dates are given, between them: naive ones are UTC,
        and the hour in which the span begins counts whole. In USD, with the same in coins.
        """
        if start_date is None and end_date is None:
            return self.run(lambda tracker: tracker.get_spend(Scope(key=key_id), str(period)))
        start = None if start_date is None else _aware(start_date).replace(minute=0, second=0, microsecond=0)
        start = start or datetime.fromtimestamp(0, UTC)
        return self.run(lambda tracker: tracker.get_spend(Scope(key=key_id), start=start, end=end_date))

    def set_budget(
        self,
        key_id: str,
        max_budget: float | None,
        *,
        period: BudgetPeriod | str = BudgetPeriod.MONTHLY,
        alert_threshold: float = keys.ALERT_AT,
        enabled: bool = True,
    ) -> None:
        """Limit a key to so many USD in each period; None: no limit. Spend is kept. `*` stands for each key. Raises
        ConfigurationError.
        """
        budget = Budget(
            scope=Scope(key=key_id),
            limit_usd=max_budget,
            period=str(period),
            alert_at=(alert_threshold,),
            enabled=enabled,
        )
        self.run(lambda tracker: tracker.budget_enforcer.set_budget(budget))

    # Tenants, asynchronous -------------------------------------------------------------------------------------------

    def track_tokens(
        self,
        tenant_id: str | Identity | None = None,
        model: str | None = None,
        expected_input_tokens: int | None = None,
        **options: Any,
    ) -> Block:
        """A block around one model call; `options` are those of `askii_middleware.CostTracker.track_tokens`. Counts
        that are set within a minute of its end are charged.
        """
        return Block(
            self,
            lambda tracker: tracker.track_tokens(
                tenant_id, model, expected_input_tokens=expected_input_tokens, **options
            ),
        )

    async def get_tenant_stats(self, tenant_id: str) -> dict[str, Any]:
        """A tenant's day so far."""
        return await self.act(lambda tracker: tracker.get_tenant_stats(tenant_id))


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


cost_tracker = CostTracker()
"""The process's own, as the settings describe it."""


def get_cost_tracker() -> CostTracker:
    """The process's own."""
    return cost_tracker
