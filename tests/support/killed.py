"""Workers that are killed in the middle of their calls: `python -m tests.support.killed FILE KILLS`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable

from askii_middleware.budgets import Budget
from askii_middleware.stores.sqlite import SQLiteStore
from askii_middleware.tracker import CostTracker

from .service import PRICES

HOLD_TTL_S = 30.0
LIMIT_USD = 1


def open_tracker(path: str, clock: Callable[[], float] = time.time) -> CostTracker:
    return CostTracker(
        store=SQLiteStore(path, clock=clock),
        prices=PRICES,
        budgets=[Budget(scope="tenant=*", limit_usd=LIMIT_USD, period="total")],
        hold_ttl_s=HOLD_TTL_S,
        clock=clock,
    )


async def work(path: str, seed: int, begun: int) -> None:
    """Calls without end, eight at a time."""
    rng = random.Random(seed)
    async with open_tracker(path) as tracker:

        async def caller() -> None:
            while True:
                async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=10) as usage:
                    os.write(begun, b".")
                    await asyncio.sleep(rng.choice([0, 0.001, 0.003]))
                    usage["input_tokens"], usage["output_tokens"] = rng.randrange(11), rng.randrange(11)

        await asyncio.gather(*(caller() for _ in range(8)))


async def warm() -> None:
    """Load here what every worker would load at its start."""
    async with CostTracker(store="memory://", prices=PRICES):
        pass


def kill_one(path: str, seed: int) -> None:
    """Fork a worker, so that Python is loaded once only, and kill it soon after its first call has begun."""
    begun, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(begun)
            asyncio.run(work(path, seed, tell))
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(begun, 1) == b".", "the worker ended by itself"
    time.sleep(random.Random(-seed).uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(begun)


if __name__ == "__main__":
    asyncio.run(warm())
    for number in range(int(sys.argv[2])):
        kill_one(sys.argv[1], number)
