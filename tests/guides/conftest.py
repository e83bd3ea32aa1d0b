"""Each test is a process of its own as far as the guides' code can tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from askii_middleware import default_tracker
from askii_middleware.compat import homes
from askii_middleware.portal import run_sync
from askii_middleware.tracker import CostTracker


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("ASKII_", "BILLING_", "LAGO_")) and not name.startswith("ASKII_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(default_tracker, "_made", [])
    homes.forget()
    yield
    for tracker in homes.forget():
        _stop(tracker)


def _stop(tracker: CostTracker) -> None:
    async def stop() -> None:
        await tracker.stop()

    run_sync(tracker, stop)
