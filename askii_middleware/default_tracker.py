"""The process's own tracker."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .tracker import CostTracker

if TYPE_CHECKING:
    from .settings import Settings

_made: list[tuple[Settings | None, CostTracker]] = []
_making = threading.Lock()


def get_cost_tracker(settings: Settings | None = None) -> CostTracker:
    """The process's own tracker, built from the environment and `askii.toml` at the first call; or that of
    `settings`, the same one for the same object, since frameworks build a middleware many times.
    """
    with _making:
        for known, tracker in _made:
            if known is settings:
                return tracker
        from .settings import load_settings  # noqa: PLC0415 - only a configured tracker reads a configuration

        tracker = CostTracker.from_settings(settings or load_settings())
        _made.append((settings, tracker))
        return tracker
