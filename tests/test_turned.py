"""What was refused and moved today, by all workers of a ledger."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from askii_middleware.tracker import CostTracker
from askii_middleware.turned import MAX_LINES, Turned

from .support.service import Clock, both_stores, make_tracker, url_of

DAY_S = 86_400


@both_stores
async def test_every_worker_shows_what_all_have_refused_and_moved(kind: str, tmp_path: Path) -> None:
    async with make_tracker(url_of(kind, tmp_path)) as one:
        other = CostTracker(store=one.store, clock=one.clock)
        one.metrics.refused("tenant", "spent")
        one.metrics.refused("key", "spent")
        one.metrics.fell_back("big", "small", "budget")
        other.metrics.refused("tenant", "held")
        other.metrics.fell_back("big", "small", "budget")
        for _ in range(2):  # a second heartbeat counts nothing twice
            await one.turned.tend()
            await other.turned.tend()
        expected = Turned((("held", 1), ("spent", 2)), (("big", "small", 2),))
        assert await one.turned.read() == expected
        assert await other.turned.read() == expected
        assert (expected.refused, expected.moved) == (3, 2)


async def test_a_new_day_begins_with_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(url_of("memory", tmp_path), clock=clock) as one:
        other = CostTracker(store=one.store, clock=clock)
        for tracker in (one, other):
            tracker.metrics.refused("tenant", "spent")
            await tracker.turned.tend()
        assert (await one.turned.read()).refused == 2
        clock.advance(DAY_S)
        assert (await one.turned.read()).refused == 0
        one.metrics.refused("tenant", "spent")
        await one.turned.tend()
        assert [(await each.turned.read()).refused for each in (one, other)] == [1, 1]


async def test_a_worker_that_has_refused_nothing_leaves_nothing(tmp_path: Path) -> None:
    async with make_tracker(url_of("memory", tmp_path)) as tracker:
        await tracker.turned.tend()
        assert await tracker.store.items("turned") == []


async def test_what_a_worker_leaves_is_bounded_whatever_the_models_are_called(tmp_path: Path) -> None:
    async with make_tracker(url_of("memory", tmp_path)) as one:
        other = CostTracker(store=one.store, clock=one.clock)
        for n in range(MAX_LINES + 50):
            other.metrics.fell_back(f"m{n}", "small", "budget")
        other.metrics.fell_back("m7", "small", "budget")
        await other.turned.tend()
        told = await one.turned.read()
        assert len(told.by_models) == MAX_LINES
        assert told.by_models[0] == ("m7", "small", 2)


async def test_heartbeats_leave_the_sums(tmp_path: Path) -> None:
    async with make_tracker(url_of("memory", tmp_path), hold_ttl_s=0.08) as tracker:
        tracker.metrics.refused("tenant", "spent")
        other = CostTracker(store=tracker.store, clock=tracker.clock)
        async with asyncio.timeout(5):
            while not (await other.turned.read()).refused:
                await asyncio.sleep(0.01)


async def test_a_worker_that_was_forked_off_leaves_what_its_parent_counted_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_tracker(url_of("memory", tmp_path)) as tracker:
        tracker.metrics.refused("tenant", "spent")
        await tracker.turned.tend()
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        for refused in (1, 2):
            await tracker.turned.tend()
            assert (await tracker.turned.read()).refused == refused
            assert len(await tracker.store.items("turned")) == refused  # each one's sums
            tracker.metrics.refused("tenant", "spent")
