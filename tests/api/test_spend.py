"""What a key has spent: exact figures in both currencies, by periods and dates."""

from __future__ import annotations

from pathlib import Path

import pytest

from askii_middleware import Budget

from ..support.service import both_stores
from .support import bench

DAY_S = 86_400


@both_stores
async def test_a_days_spend_is_exact_in_usd_and_coins(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", "2000")
    async with bench(tmp_path, kind) as b:
        await b.key("k1")
        await b.use(key="k1", tokens=1001, output=10)
        await b.use(key="k1", model="small", tokens=3)
        await b.use(key="other", tokens=77)
        assert await b.get("/api/billing/spend/k1", headers=b.bearer("k1")) == {
            "key_id": "k1",
            "period": "daily",
            "period_start": "2026-01-01T00:00:00Z",
            "period_end": "2026-01-02T00:00:00Z",
            "zone": "UTC",
            "total_requests": 2,
            "total_tokens": 1014,
            "total_cost": 0.0010213,
            "total_cost_usd": "0.0010213",
            "total_cost_coins": "2.0426",
            "by_model": {"big": 0.001021, "small": 0.0000003},
            "by_model_coins": {"big": "2.042", "small": "0.0006"},
            "by_provider": {"": 0.0010213},
            "by_provider_coins": {"": "2.0426"},
            "exchange_rate": 2000.0,
        }


@both_stores
async def test_periods_and_dates_are_those_of_the_keys_zone(kind: str, tmp_path: Path) -> None:
    budget = Budget(scope="key=k1", limit_usd=1, zone="America/New_York")
    async with bench(tmp_path, kind, budgets=[budget]) as b:
        await b.key("k1")
        b.clock.advance(-3 * 3600)  # 31 December, 16:00 in New York
        for hours, tokens in ((0, 1), (8, 10), (24, 100), (24 * 31, 1000)):
            b.clock.advance(hours * 3600)
            await b.use(key="k1", tokens=tokens)
        b.clock.advance(-24 * 31 * 3600)  # 2 January, 00:00 in New York

        async def tokens_of(query: str) -> int:
            found = await b.get(f"/api/billing/spend/k1?{query}")
            assert found["zone"] == "America/New_York"
            return int(found["total_tokens"])

        assert await tokens_of("start_date=2025-12-31&end_date=2025-12-31") == 1
        assert await tokens_of("start_date=2025-12-31&end_date=2026-01-01") == 11
        assert await tokens_of("period=daily") == 100
        assert await tokens_of("period=weekly") == 111
        assert await tokens_of("period=monthly") == 110
        assert await tokens_of("start_date=2026-01-01&end_date=2026-02-28") == 1110
        found = await b.get("/api/billing/spend/k1?start_date=2026-01-01&end_date=2026-01-01")
        assert (found["period_start"], found["period_end"]) == ("2026-01-01T05:00:00Z", "2026-01-02T05:00:00Z")


@pytest.mark.parametrize(
    "query",
    [
        *("period=hourly", "start_date=2026-02-30", "start_date=x", "end_date=2026-01-01", "start_date=0001-01-01"),
        *("start_date=2026-01-02&end_date=2026-01-01", "start_date=2020-01-01&end_date=2026-01-01", "days=1"),
        "start_date=9999-12-31&end_date=9999-12-31",
    ],
)
async def test_spans_that_are_none_are_refused(query: str, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        assert (await b.ask("GET", f"/api/billing/spend/k1?{query}")).status_code == 422


@both_stores
async def test_usage_counts_whole_days_back_from_today(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        await b.key("k1")
        for day in range(4):
            await b.use(key="k1", tokens=10**day)
            b.clock.advance(DAY_S)
        for days, tokens in ((1, 0), (2, 1000), (3, 1100), (5, 1111), (365, 1111)):
            found = await b.get(f"/api/keys/k1/usage?days={days}")
            assert (found["period_days"], found["total_tokens"]) == (days, tokens)
            assert found["total_cost_usd"] == (f"{tokens / 1e6:.6f}".rstrip("0").rstrip(".") if tokens else "0")
        assert (await b.get("/api/keys/k1/usage"))["period_days"] == 30
        for wrong in ("0", "366", "-1", "x"):
            assert (await b.ask("GET", f"/api/keys/k1/usage?days={wrong}")).status_code == 422
