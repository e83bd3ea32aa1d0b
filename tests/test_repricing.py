"""Calls charged at a wrong price get exactly the difference, once, whatever is cut short or done twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import tenant_data
from askii_middleware.budgets import Budget
from askii_middleware.corrections import AdjustmentError
from askii_middleware.errors import StoreError
from askii_middleware.pricing import ModelPrice
from askii_middleware.records import Charge
from askii_middleware.repricing import Repriced
from askii_middleware.stores.base import Settled, Settlement, Store, UnwritableError
from askii_middleware.tracker import CostTracker

from .support.service import NOW_S, Clock, amounts, both_stores, faulty, make_tracker, records_of, url_of

ROOT = Path(__file__).parents[1]
START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 1, 1)  # noqa: DTZ001 - in UTC, as naive ones are
MS = timedelta(milliseconds=1)
WRONG = {"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2), "small": ModelPrice(input_usd_per_mtok=1)}
RIGHT = {**WRONG, "big": ModelPrice(input_usd_per_mtok="0.5", output_usd_per_mtok="3.0005")}


def at_price(store: str | Store, prices: dict[str, ModelPrice], clock: Clock | None = None) -> CostTracker:
    return make_tracker(store, prices=prices, clock=clock, budgets=[Budget(scope="tenant=*", limit_usd=1)])


@asynccontextmanager
async def priced_wrongly(kind: str, folder: Path, clock: Clock | None = None) -> AsyncIterator[CostTracker]:
    """A tracker at the right prices, over a ledger of calls at the wrong ones: of `acme` c0 to c4 of `big` (1,000 in,
    1 to 5 out) and one of `small`, of `other` one of `big`; in all 12,030,000 nano-USD.
    """
    clock = clock or Clock()
    async with at_price(url_of(kind, folder), WRONG, clock) as before:
        for n in range(5):
            await before.record_usage("acme", "big", input_tokens=1000, output_tokens=n + 1, call_id=f"c{n}")
        await before.record_usage("acme", "small", input_tokens=5000, call_id="s")
        await before.record_usage("other", "big", input_tokens=2000, call_id="o")
        if kind == "memory":
            async with at_price(before.store, RIGHT, clock) as tracker:
                yield tracker
            return
    async with at_price(url_of(kind, folder), RIGHT, clock) as tracker:
        yield tracker


async def costs(tracker: CostTracker) -> dict[str, int]:
    """What each call has come to with all its adjustments, in nano-USD; ledger and records have to agree."""
    found: dict[str, int] = {}
    for record in await records_of(tracker):
        call = record.reference or record.call_id
        found[call] = found.get(call, 0) + record.cost_nano_usd
    totals = await tracker.store.totals()
    assert totals.cost_nano_usd == totals.records_nano_usd == sum(found.values())
    return found


def sums(done: Repriced) -> dict[tuple[str, str], tuple[int, int]]:
    return {key: (each.calls, each.nano_usd) for key, each in done.sums.items()}


# A token of big costs 500 nano-USD in and 3,000.5 out: rounded half-even once for each call.
AFTER = {"c0": 503_000, "c1": 506_001, "c2": 509_002, "c3": 512_002, "c4": 515_002, "s": 5_000_000, "o": 1_000_000}


# What it does ---------------------------------------------------------------------------------------------------------


@both_stores
async def test_each_call_gets_the_difference_to_its_price_rounded_once(kind: str, tmp_path: Path) -> None:
    async with priced_wrongly(kind, tmp_path) as tracker:
        planned = await tracker.reprice("big", since=START, dry_run=True)
        assert len(await records_of(tracker)) == 7
        done = await tracker.reprice("big", since=START)
        assert await costs(tracker) == AFTER
        assert sums(done) == sums(planned) == {("acme", "big"): (5, -2_484_993), ("other", "big"): (1, -1_000_000)}
        assert (done.adjusted, done.nano_usd, done.read, done.unchanged) == (6, -3_484_993, 13, 0)
        assert (planned.adjusted, planned.nano_usd, planned.read) == (6, -3_484_993, 7)
        assert done.skipped == planned.skipped == {}
        assert await amounts(tracker) == (sum(AFTER.values()) - AFTER["o"], 0)
        (record,) = [r for r in await records_of(tracker) if r.reference == "c0"]
        assert (record.kind, record.call_id, record.reason) == ("adjustment", "c0~adjustment~1", "reprice big")
        assert record.charges == (Charge(bucket="reprice", quantity=1, nano_usd=-499_000),)
        assert record.price_version == tracker.prices.version


@both_stores
async def test_doing_it_twice_changes_nothing(kind: str, tmp_path: Path) -> None:
    async with priced_wrongly(kind, tmp_path) as tracker:
        await tracker.reprice("big", since=START)
        before = await records_of(tracker)
        done = await tracker.reprice("big", since=START)
        assert (done.adjusted, done.unchanged, done.read) == (0, 6, 13)
        assert await records_of(tracker) == before


async def test_another_price_later_starts_from_where_the_first_repricing_ended(tmp_path: Path) -> None:
    async with priced_wrongly("memory", tmp_path) as tracker:
        await tracker.reprice("big", since=START)
        async with at_price(tracker.store, WRONG) as again:
            done = await again.reprice("big", since=START)
            assert (done.adjusted, done.nano_usd) == (6, 3_484_993)
            assert (await costs(again))["c0"] == 1_002_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "small"}, {}),
        ({"tenant": "other"}, {"o"}),
        ({"tenant": "nobody"}, set()),
        ({"since": END}, {"c3", "c4", "o"}),
        ({"until": END}, {"c0", "c1", "c2"}),
        ({"since": END - MS, "until": END + MS}, {"c3"}),
        ({"model": "openai/BIG"}, {"c0", "c1", "c2", "c3", "c4", "o"}),
    ],
)
async def test_only_the_calls_that_were_asked_for_are_priced_again(
    options: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    clock = Clock()
    async with at_price("memory://", WRONG, clock) as before:
        for n in range(5):
            clock.now_s = NOW_S + 3600 * (n >= 3) + (n > 3)
            await before.record_usage("acme", "big", input_tokens=1000, call_id=f"c{n}")
        await before.record_usage("acme", "small", input_tokens=5000, call_id="s")
        await before.record_usage("other", "big", input_tokens=2000, call_id="o")
        async with at_price(before.store, RIGHT, clock) as tracker:
            await tracker.reprice(**{"model": "big", "since": START, **options})
            assert {r.reference for r in await records_of(tracker) if r.kind == "adjustment"} == set(expected)


@pytest.mark.parametrize("span", [{"until": START}, {"until": datetime(2025, 1, 1)}])  # noqa: DTZ001 - in UTC
async def test_a_span_that_ends_before_it_begins_is_refused(span: dict[str, Any], tmp_path: Path) -> None:
    async with priced_wrongly("memory", tmp_path) as tracker:
        with pytest.raises(AdjustmentError, match="ends before it begins"):
            await tracker.reprice("big", since=START, **span)
        with pytest.raises(AdjustmentError, match="model takes a name"):
            await tracker.reprice("", since=START)


async def test_corrections_by_hand_stay_and_no_more_is_credited_than_they_have_left(tmp_path: Path) -> None:
    async with priced_wrongly("memory", tmp_path) as tracker:
        await tracker.adjust("acme", "-0.0001", reason="by hand", ref="c0")
        await tracker.adjust("acme", "-0.0009", reason="by hand", ref="c1")
        await tracker.adjust("acme", "-0.002", reason="by hand", ref="c2", allow_beyond=True)
        await tracker.adjust("acme", "0.002", reason="by hand", ref="c3")
        planned = await tracker.reprice("big", since=START, tenant="acme", dry_run=True)
        for done in (planned, await tracker.reprice("big", since=START, tenant="acme")):
            assert done.capped == 2
            found = done.skipped["an adjustment by hand, which stays as it is"]
            assert (found.count, found.examples) == (4, [f"c{n}~adjustment~1" for n in range(4)])
        found_costs = await costs(tracker)
        assert found_costs["c0"] == AFTER["c0"] - 100_000
        assert found_costs["c1"] == 0
        assert found_costs["c2"] == 1_006_000 - 2_000_000
        assert found_costs["c3"] == AFTER["c3"] + 2_000_000
        assert (await tracker.reprice("big", since=START)).nano_usd == -1_000_000  # the other tenant's
        assert (await tracker.reprice("big", since=START)).adjusted == 0


async def test_a_ledger_of_any_size_is_read_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.repricing.PAGE", 3)
    monkeypatch.setattr("askii_middleware.repricing.AT_ONCE", 2)
    monkeypatch.setattr("askii_middleware.repricing.MAX_SUMS", 1)
    async with priced_wrongly("memory", tmp_path) as tracker:
        seen: list[int] = []
        done = await tracker.reprice("big", since=START, on_progress=seen.append)
        assert await costs(tracker) == AFTER
        assert seen == [3, 6, 9, 12, 13]
        assert sums(done) == {("acme", "big"): (5, -2_484_993), ("(others)", "(others)"): (1, -1_000_000)}


# Cut short ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["fail", "after"])
@pytest.mark.parametrize("at", range(3))
async def test_what_the_ledger_cut_short_is_finished_by_doing_it_again(
    fault: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.repricing.AT_ONCE", 2)
    async with priced_wrongly("sqlite", tmp_path):
        pass
    store = faulty("sqlite", tmp_path, Clock())
    async with at_price(store, RIGHT) as tracker:
        store.faults["settle_many"] = [*["ok"] * at, fault]
        with pytest.raises(StoreError):
            await tracker.reprice("big", since=START)
        assert await costs(tracker) != AFTER or (at, fault) == (2, "after")
        await tracker.reprice("big", since=START)
        assert await costs(tracker) == AFTER


async def test_several_at_the_same_time_adjust_each_call_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.repricing.AT_ONCE", 2)
    async with priced_wrongly("sqlite", tmp_path) as tracker, at_price(url_of("sqlite", tmp_path), RIGHT) as other:
        repriced = [each.reprice("big", since=START) for each in (tracker, other, other)]
        by_hand = tracker.adjust("acme", "-0.0001", reason="by hand", ref="c1")
        *done, _ = await asyncio.gather(*repriced, by_hand)
        assert sum(each.adjusted for each in done if isinstance(each, Repriced)) == 6
        assert await costs(tracker) == {**AFTER, "c1": AFTER["c1"] - 100_000}


async def test_a_correction_by_hand_that_comes_in_between_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with priced_wrongly("memory", tmp_path) as tracker:
        write = tracker.store.settle_many

        async def write_late(settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
            await tracker.adjust("acme", "-0.0008", reason="by hand", ref="c0")
            return await write(settlements)

        monkeypatch.setattr(tracker.store, "settle_many", write_late)
        done = await tracker.reprice("big", since=START)
        assert (done.adjusted, done.unchanged, done.capped) == (6, 0, 1)
        assert await costs(tracker) == {**AFTER, "c0": 0}


SCRIPT = """
import asyncio, sys
from datetime import UTC, datetime
import askii_middleware.repricing as repricing
from tests.test_repricing import RIGHT, START, at_price
repricing.AT_ONCE = 5
async def main():
    async with at_price(sys.argv[1], RIGHT) as tracker:
        print("ready", flush=True)
        await tracker.reprice("big", since=START)
asyncio.run(main())
"""


async def test_what_was_killed_is_finished_by_doing_it_again(tmp_path: Path) -> None:
    url = url_of("sqlite", tmp_path)
    async with at_price(url, WRONG) as before:
        for n in range(400):
            await before.record_usage("acme", "big", input_tokens=10 + n, call_id=f"c{n}")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, url]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            until_s = time.monotonic() + 15
            while not await before.store.records(420, 1) and time.monotonic() < until_s:
                await asyncio.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        made = len(await before.store.records(400, 1000))
        assert 20 < made < 400
    async with at_price(url, RIGHT) as tracker:
        done = await tracker.reprice("big", since=START)
        assert (done.adjusted, done.unchanged) == (400 - made, made)
        assert await costs(tracker) == {f"c{n}": 500 * (10 + n) for n in range(400)}


# What cannot be priced again ------------------------------------------------------------------------------------------


@both_stores
async def test_calls_of_a_deleted_tenant_are_left_as_they_are(kind: str, tmp_path: Path) -> None:
    """They are filed under a name that no receiver knows."""
    async with priced_wrongly(kind, tmp_path) as tracker:
        await tenant_data.deleted(tracker, "acme")
        done = await tracker.reprice("big", since=START)
        assert sums(done) == {("other", "big"): (1, -1_000_000)}
        ((why, skipped),) = done.skipped.items()
        assert ("was deleted" in why, skipped.count) == (True, 5)
        for tenant in ("acme", "deleted"):
            with pytest.raises(AdjustmentError, match=r"not one of the tenant|was deleted"):
                await tracker.adjust(tenant, "-0.0001", reason="by mistake", ref="c0")


async def test_what_cannot_be_priced_again_is_named_and_counted(tmp_path: Path) -> None:
    async with make_tracker("memory://", prices=WRONG, unknown_price="allow") as tracker:
        for n in range(7):
            await tracker.record_usage("acme", "unheard-of", input_tokens=10, call_id=f"u{n}")
        await tracker.record_external("acme", 500, "e1")
        done = await tracker.reprice("unheard-of", since=START)
        (why,) = done.skipped
        assert "had no price" in why
        assert (done.skipped[why].count, done.skipped[why].examples) == (7, [f"u{n}" for n in range(5)])
        done = await tracker.reprice("external", since=START)
        assert [(why, found.count) for why, found in done.skipped.items()] == [("its coins were computed elsewhere", 1)]
        assert done.adjusted == 0
