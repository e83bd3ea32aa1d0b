"""`kill -9` in the middle of calls: what was held comes back in time, and nothing is spent that was not charged."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from askii_middleware.calls import CallSpec
from askii_middleware.errors import BudgetExceededError
from askii_middleware.identity import Identity

from .support.killed import HOLD_TTL_S, LIMIT_USD, open_tracker
from .support.service import Clock, amounts, assert_balanced

ROOT = Path(__file__).parents[1]
KILLS = 100
ACME = Identity(tenant="acme")


async def test_a_hundred_killed_workers_leave_an_exact_ledger_and_their_headroom_within_the_holds_life(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "askii.db")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.killed", path, str(KILLS), cwd=ROOT
    )
    assert await process.wait() == 0
    clock = Clock()
    clock.now_s = time.time()
    async with open_tracker(path, clock) as tracker:
        totals = await tracker.store.totals()
        charged = totals.records_nano_usd
        assert totals.records > KILLS
        assert await amounts(tracker) == (charged, totals.held_nano_usd)
        assert totals.held_nano_usd > 0

        clock.advance(HOLD_TTL_S)
        assert await amounts(tracker) == (charged, 0)
        await assert_balanced(tracker)

    clock.advance(1)
    async with open_tracker(path, clock) as tracker:
        assert (await tracker.store.totals()).lost >= KILLS
        left = CallSpec(model="big", input_tokens=LIMIT_USD * 10**6 - charged // 1000, output_tokens=0)
        with pytest.raises(BudgetExceededError):
            await tracker.admit(ACME, replace(left, input_tokens=left.input_tokens + 1))
        await tracker.admit(ACME, left)
        assert await amounts(tracker) == (charged, LIMIT_USD * 10**9 - charged)
