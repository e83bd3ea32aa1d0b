"""Which tracker of ours stands behind the guides' objects, and on which event loop it runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from .. import default_tracker
from ..calls import current_request
from ..errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from ..pricing import PricingConfig
    from ..tracker import CostTracker

_making = threading.Lock()
_made: list[CostTracker] = []


def made(pricing: PricingConfig | None = None) -> CostTracker:
    """A tracker as the settings describe it, for the portal's thread: synchronous code can wait for it whatever runs in
    the caller's own. It shares its ledger with the process's other trackers through the store, as workers do.
    """
    from ..assembly import tracker_from_settings  # noqa: PLC0415 - only a configured tracker reads a configuration
    from .configuration import guide_settings  # noqa: PLC0415 - as above

    return tracker_from_settings(guide_settings(), pricing)


def default() -> CostTracker:
    """The one of the process. A ledger in memory cannot be shared, so there it is the middleware's as well. Raises
    ConfigurationError where the settings are wrong.
    """
    with _making:
        if not _made:
            fresh = made()
            if fresh.store.url.startswith("memory://"):
                serving = default_tracker.get_cost_tracker()
                if [sink.name for sink in fresh.sinks] != [sink.name for sink in serving.sinks]:
                    raise ConfigurationError(
                        "LAGO_API_BASE is for ledgers that trackers share, and memory:// is one tracker's own: set "
                        "[sinks.lago], or store to sqlite:///askii.db"
                    )
                fresh = serving
            _made.append(fresh)
        return _made[0]


async def near() -> CostTracker:
    """The tracker for a block: that of the middleware around the present request, so that the block takes over the
    request's hold; elsewhere the process's. Raises ConfigurationError.
    """
    context = current_request.get()
    serving = None if context is None else context.tracker
    if serving is None:
        return default()
    if serving.loop is None:
        with contextlib.suppress(StoreError):  # which the admission meets again, and knows what to do
            await serving.ready()
    return serving if serving.loop is asyncio.get_running_loop() else default()


def both() -> list[CostTracker]:
    """The process's tracker and the middleware's, which may be the same."""
    return list({id(tracker): tracker for tracker in (default(), default_tracker.get_cost_tracker())}.values())


def forget() -> list[CostTracker]:
    """Begin anew, as if nothing had been used. What was made is the caller's to stop."""
    with _making:
        old = list(_made)
        _made.clear()
    return old
