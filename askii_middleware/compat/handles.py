"""What a `CostTracker` of the guides hands out: blocks, and its two helpers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..portal import run_across

if TYPE_CHECKING:
    from ..block import TrackedBlock
    from ..counting import Usage
    from ..tracker import CostTracker as CoreTracker
    from .tracker import CostTracker


class Block:
    """`track_tokens` on whichever event loop the tracker runs."""

    def __init__(self, owner: CostTracker, make: Callable[[CoreTracker], TrackedBlock]) -> None:
        self._owner = owner
        self._make = make
        self._block: TrackedBlock | None = None

    async def __aenter__(self) -> Usage:
        tracker = await self._owner.near()
        block = self._block = self._make(tracker)
        try:
            return await run_across(tracker, block.__aenter__)
        except asyncio.CancelledError as error:
            # It may have been entered all the same, on the other loop.
            left = error
            await run_across(tracker, lambda: block.abandon(left))
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        block = self._block
        assert block is not None
        await run_across(block.tracker, lambda: block.__aexit__(kind, error, trace))


class BudgetEnforcer:
    """`cost_tracker.budget_enforcer`."""

    def __init__(self, owner: CostTracker) -> None:
        self._owner = owner

    async def set_daily_budget(self, tenant_id: str, usd: float | None) -> None:
        """Limit a tenant's spend for each UTC day, to whole nano-USD. None exempts it from the budget of `tenant=*`."""
        await self._owner.act(lambda tracker: tracker.budget_enforcer.set_daily_budget(tenant_id, usd))

    @property
    def fallback_model(self) -> str | None:
        """The model every other text model falls back to when a budget is short."""
        return self._owner.tracker.budget_enforcer.fallback_model

    @fallback_model.setter
    def fallback_model(self, model: str | None) -> None:
        for tracker in self._owner.trackers:
            tracker.budget_enforcer.fallback_model = model


class CostCalculator:
    """`cost_tracker.cost_calculator`."""

    def __init__(self, owner: CostTracker) -> None:
        self._owner = owner

    async def calculate(
        self, *, model: str, input_tokens: int, output_tokens: int, tenant_id: str | None = None
    ) -> float:
        """What so many tokens cost, in USD, whoever asks. Raises UnknownModelError."""
        del tenant_id  # prices are the same for all
        return self._owner.calculate_cost(model, input_tokens, output_tokens)
