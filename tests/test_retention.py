"""What is old enough leaves the ledger, once an hour, and nothing else does."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.retention import AT_ONCE, EVERY_S, Retention
from askii_middleware.settings import Settings
from askii_middleware.tracker import CostTracker

from .support.service import NOW_S, Clock, both_stores, faulty, opened

DAY_S = 86_400.0


class Pruned:
    """The two questions retention asks a store."""

    def __init__(self, *dropped: int) -> None:
        self.dropped = list(dropped)
        self.asked: list[dict[str, Any]] = []
        self.turns: dict[str, float] = {}
        self.clock = Clock()

    async def put_item(self, kind: str, name: str, value: bytes, *, until_s: float, only_new: bool) -> bool:
        assert (kind, value, only_new) == ("retention", b"{}", True)
        if self.turns.get(name, 0.0) > self.clock():
            return False
        self.turns[name] = until_s
        return True

    async def prune(self, **options: Any) -> int:
        self.asked.append(options)
        return self.dropped.pop(0) if self.dropped else 0

    def retention(self, records: int | None = 30, aggregates: int | None = 400) -> Retention:
        store: Any = self
        return Retention(
            store, records_days=records, aggregates_days=aggregates, clock=self.clock, answer_timeout_s=1.0
        )


async def test_once_an_hour_one_of_all_workers_prunes() -> None:
    store = Pruned()
    workers = [store.retention() for _ in range(3)]
    for _ in range(3):
        for worker in workers:
            await worker.tend()
        store.clock.advance(EVERY_S / 3)
    assert store.asked == [
        {
            "records_before_s": NOW_S - 30 * DAY_S,
            "aggregates_before_s": NOW_S - 400 * DAY_S,
            "limit": AT_ONCE,
        }
    ]
    for worker in workers:
        await worker.tend()
    assert len(store.asked) == 2


async def test_where_more_is_left_the_same_worker_goes_on_at_its_next_heartbeat() -> None:
    store = Pruned(AT_ONCE, AT_ONCE, 7)
    one, other = store.retention(), store.retention()
    for _ in range(5):
        await one.tend()
        await other.tend()
    assert len(store.asked) == 3


async def test_nothing_is_asked_where_all_is_kept() -> None:
    store = Pruned()
    await store.retention(None, None).tend()
    assert (store.asked, store.turns) == ([], {})


async def test_a_clock_set_back_does_not_put_it_off() -> None:
    store = Pruned()
    worker = store.retention()
    await worker.tend()
    store.turns.clear()
    store.clock.advance(-10 * EVERY_S)
    await worker.tend()
    assert len(store.asked) == 2


@pytest.mark.parametrize("name", ["records_days", "aggregates_days"])
def test_less_than_eight_days_cannot_be_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {name: 7}
    with pytest.raises(ConfigurationError, match=f"{name}: 7 is less than 8"):
        CostTracker(store="memory://", **options)
    with pytest.raises(ConfigurationError, match=rf"retention\.{name}: .*greater than or equal to 8"):
        Settings(retention=options)
    assert Settings().retention.records_days is None


def test_what_is_configured_reaches_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(store="memory://", retention={"records_days": 8, "aggregates_days": 9})
    retention = CostTracker.from_settings(settings).retention
    assert (vars(retention)["_records_days"], vars(retention)["_aggregates_days"]) == (8, 9)


@both_stores
async def test_old_records_and_sums_go_and_the_totals_stay(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock, records_days=8, aggregates_days=20) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=1000)
        clock.advance(10 * DAY_S)
        await tracker.record_usage("acme", "big", input_tokens=1)
        await tracker.retention.tend()
        assert len(await tracker.store.records()) == 1
        assert (await tracker.get_spend("tenant=acme", "total")).total_requests == 2
        clock.advance(12 * DAY_S)
        await tracker.retention.tend()
        assert (await tracker.get_spend("tenant=acme", "total")).total_requests == 1
        first = date(2026, 1, 1)
        assert (await tracker.usage_report(first=first, last=date(2026, 1, 30))).total.requests == 1
        totals = await tracker.store.totals()
        assert (totals.calls, totals.cost_nano_usd) == (2, 1_001_000)
        assert (totals.records, totals.records_nano_usd) == (2, 1_001_000)


async def test_a_ledger_that_is_away_is_told_to_the_heartbeat(tmp_path: Path) -> None:
    store = faulty("memory", tmp_path, Clock())
    store.down = True
    retention = Retention(store, records_days=8, aggregates_days=None, clock=Clock(), answer_timeout_s=1.0)
    with pytest.raises(StoreError):
        await retention.tend()
