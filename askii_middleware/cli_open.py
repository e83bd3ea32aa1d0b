"""The configured ledger, open for one command: without heartbeat or delivery, which are the workers'."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import NamedTuple

from .errors import ConfigurationError
from .key_ring import KeyRing
from .price_desk import PriceDesk
from .settings import Settings, load_settings
from .tracker import CostTracker


class Opened(NamedTuple):
    """What commands work with. Its key ring and price desk start nothing."""

    tracker: CostTracker
    settings: Settings
    keys: KeyRing
    prices: PriceDesk


@contextlib.asynccontextmanager
async def opened_ledger(config: str | None) -> AsyncIterator[Opened]:
    """Open the configured ledger with its budgets and prices as they are now, and close it. Raises
    ConfigurationError, StoreError.
    """
    settings = load_settings(config)
    check_reachable(settings)
    tracker = CostTracker.from_settings(settings)
    await tracker.store.open()
    try:
        tracker.index.update(*await tracker.store.forms())
        clock, names = tracker.clock, tracker.prices.canonical
        keys = KeyRing(tracker.store, settings.keys, ready=_is_open, clock=clock, model_name=names)
        prices = PriceDesk(tracker.store, tracker.watcher, tracker.prices, ready=_is_open)
        await tracker.watcher.look()
        yield Opened(tracker, settings, keys, prices)
    finally:
        await tracker.store.close()


def check_reachable(settings: Settings) -> None:
    """Raise ConfigurationError for a ledger that only its own process can reach."""
    if settings.store.startswith("memory://"):
        raise ConfigurationError("store: memory:// lives inside one running process; this command cannot reach it")


async def confirmed(question: str) -> bool:
    """Whether whoever runs the command says yes."""
    print(f"askii: {question} [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    answer = await asyncio.to_thread(sys.stdin.readline)
    return answer.strip().lower() in ("y", "yes")


def shown_time(at_s: float | None) -> str | None:
    """A moment as ISO 8601 in UTC, to the second."""
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


async def _is_open() -> None:
    return
