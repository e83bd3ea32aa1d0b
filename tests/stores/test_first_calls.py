"""A tenant nobody has seen before: its first burst meets the budget as any other."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from askii_middleware import CostTracker
from askii_middleware.budgets import Budget
from askii_middleware.errors import BudgetExceededError
from askii_middleware.pricing_config import PricingConfig

CALLS, ROOM = 64, 3


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_of_a_first_burst_as_many_calls_are_admitted_as_there_is_room_for(kind: str, tmp_path: Path) -> None:
    pricing = PricingConfig()
    pricing.openai["m"] = {"input": 1.0, "output": 1.0}  # USD per 1,000 tokens
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'askii.db'}"
    budget = Budget(scope="tenant=*", limit_usd=Decimal(10) * ROOM + 9)
    async with CostTracker(store=url, pricing=pricing, budgets=[budget]) as tracker:
        answered = asyncio.Barrier(CALLS)
        admitted: list[int] = []
        refused: list[str] = []

        async def call(number: int) -> None:
            try:
                async with tracker.track_tokens(
                    "new", "m", expected_input_tokens=4_000, max_output_tokens=6_000
                ) as usage:
                    admitted.append(number)
                    await answered.wait()  # held open until all are answered
                    usage["input_tokens"], usage["output_tokens"] = 4_000, 5_000
            except BudgetExceededError as refusal:
                refused.append(refusal.reason)
                await answered.wait()

        await asyncio.gather(*(call(number) for number in range(CALLS)))
        assert (len(admitted), refused) == (ROOM, ["held"] * (CALLS - ROOM))
        totals = await tracker.store.totals()
        assert (totals.calls, totals.cost_nano_usd, totals.held_nano_usd) == (ROOM, 9_000_000_000 * ROOM, 0)
