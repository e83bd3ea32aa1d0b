"""A tenant's data is handed out whole, and deleted so that nothing names the tenant any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget
from askii_middleware.calls import CallSpec
from askii_middleware.errors import ConfigurationError, StoreError, TenantSuspendedError
from askii_middleware.identity import Identity
from askii_middleware.key_ring import ListedKey
from askii_middleware.keys import KeyProblem, hash_secret
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.stores.base import KeyRow
from askii_middleware.tenant_data import PAGE, deleted, exported
from askii_middleware.tracker import CostTracker

from .support.service import NOW_S, Clock, both_stores, opened

DAY_S = 86_400.0


async def lines_of(tracker: CostTracker, tenant: str = "acme") -> list[dict[str, Any]]:
    lines = [line async for line in exported(tracker, tenant)]
    assert not [line for line in lines if b"\n" in line]
    return [json.loads(line) for line in lines]


async def some_data(tracker: CostTracker, clock: Clock) -> None:
    await tracker.keys.create("acme", key_id="k1", name="first", user="ann")
    await tracker.keys.create("globex", key_id="k2")
    await tracker.budget_enforcer.set_budget(Budget(scope="tenant=acme,model=big", limit_usd=2, period="monthly"))
    await tracker.budget_enforcer.set_budget(Budget(scope="tenant=globex", limit_usd=3))
    await tracker.record_usage(Identity(tenant="acme", user="ann", key="k1"), "big", input_tokens=7)
    await tracker.record_usage("globex", "big", input_tokens=1)
    clock.advance(DAY_S)
    await tracker.record_usage("acme", "small", input_tokens=10)


@both_stores
async def test_an_export_has_everything_of_the_tenant_and_nothing_of_others(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await some_data(tracker, clock)
        await tracker.suspend_tenant("acme", reason="moving")
        lines = await lines_of(tracker)
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            by_kind.setdefault(line["kind"], []).append(line)
        assert {kind: len(found) for kind, found in by_kind.items()} == {
            "key": 1,
            "budget": 1,
            "suspension": 1,
            "day": 2,
            "usage": 2,
        }
        (key,) = by_kind["key"]
        assert (key["id"], key["name"], key["created_at"]) == ("k1", "first", "2026-01-01T00:00:00+00:00")
        assert not [name for name in key if "sha256" in name]
        assert by_kind["budget"][0]["limit_usd"] == "2"
        assert by_kind["suspension"][0]["reason"] == "moving"
        assert [(day["day"], day["model"], day["cost_usd"]) for day in by_kind["day"]] == [
            ("2026-01-01", "big", "0.000007"),
            ("2026-01-02", "small", "0.000001"),
        ]
        assert [record["cost_nano_usd"] for record in by_kind["usage"]] == [7_000, 1_000]
        assert "globex" not in json.dumps(lines)


async def test_sums_of_many_years_are_all_exported(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("memory", tmp_path, clock=clock) as tracker:
        clock.now_s = NOW_S - 900 * DAY_S
        await tracker.record_usage("acme", "big", input_tokens=1)
        clock.now_s = NOW_S
        await tracker.record_usage("acme", "big", input_tokens=1)
        days = [line["day"] for line in await lines_of(tracker) if line["kind"] == "day"]
        assert sorted(days) == ["2023-07-16", "2026-01-01"]


async def test_more_keys_and_records_than_a_page_are_all_exported(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        for n in range(PAGE + 1):
            await tracker.keys.create("acme", key_id=f"k{n}")
            await tracker.record_usage("acme", "big", input_tokens=1)
        lines = await lines_of(tracker)
        assert sum(line["kind"] == "key" for line in lines) == PAGE + 1
        assert sum(line["kind"] == "usage" for line in lines) == PAGE + 1


@both_stores
async def test_a_deleted_tenant_is_suspended_and_nothing_names_it_any_more(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await some_data(tracker, clock)
        erased = await deleted(tracker, "acme")
        assert (erased.records, erased.keys, erased.budgets) == (2, 1, 1)
        assert erased.aggregates > 0
        assert [line["kind"] for line in await lines_of(tracker)] == ["suspension"]
        assert (await tracker.get_spend("tenant=acme", "total")).total_requests == 0
        assert await tracker.keys.get("k1") is None
        with pytest.raises(TenantSuspendedError):
            await tracker.admit(Identity(tenant="acme"), CallSpec(model="big", input_tokens=1, output_tokens=1))
        assert (await deleted(tracker, "acme")).records == 0
        # Others keep what is theirs, and the ledger's sums stay.
        assert (await tracker.get_spend("tenant=globex", "total")).total_requests == 1
        assert (await tracker.get_spend("global", "total")).cost_nano_usd == 9_000
        totals = await tracker.store.totals()
        assert (totals.calls, totals.cost_nano_usd) == (totals.records, totals.records_nano_usd) == (3, 9_000)


@both_stores
async def test_a_key_of_a_deleted_tenant_opens_nothing_at_once(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        made = await tracker.keys.create("acme")
        assert await tracker.keys.directory.find(made.secret) == made.row
        await deleted(tracker, "acme")
        assert tracker.keys.directory.find_cached(made.secret) is None
        assert await tracker.keys.directory.find(made.secret) != made.row


@both_stores
async def test_while_records_wait_for_a_sink_nothing_is_erased(kind: str, tmp_path: Path) -> None:
    class Unreachable(MemorySink):
        away = True

        async def send(self, records: Any) -> Any:
            if self.away:
                raise OSError("nobody is there")
            return await super().send(records)

    sink = Unreachable()
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock, sinks=[sink]) as tracker:
        await some_data(tracker, clock)
        with pytest.raises(StoreError, match="'acme'"):
            await deleted(tracker, "acme")
        assert [line["kind"] for line in await lines_of(tracker)].count("usage") == 2
        with pytest.raises(TenantSuspendedError):
            await tracker.admit(Identity(tenant="acme"), CallSpec(model="big", input_tokens=1, output_tokens=1))
        sink.away = False
        await tracker.flush()
        assert (await deleted(tracker, "acme")).records == 2


@both_stores
async def test_what_was_revoked_or_rotated_of_a_deleted_tenants_declared_keys_opens_nothing_when_it_is_resumed(
    kind: str, tmp_path: Path
) -> None:
    secrets = {name: f"sk-askii-{name}" for name in ("revoked", "rotated", "untouched", "elsewhere")}
    rows = [
        KeyRow(id=name, sha256=hash_secret(secret), tenant="globex" if name == "elsewhere" else "acme", user="ann")
        for name, secret in secrets.items()
    ]
    async with opened(kind, tmp_path, keys=rows) as tracker:
        await tracker.keys.revoke("revoked")
        await tracker.keys.rotate("rotated", overlap_s=0)
        for _ in range(2):
            await deleted(tracker, "acme")
            await tracker.resume_tenant("acme")
            assert await tracker.keys.revoke("untouched") is True  # changes nothing
            found = {name: await tracker.keys.directory.find(secret) for name, secret in secrets.items()}
            assert found.pop("elsewhere") == rows[-1]
            assert set(found.values()) == {KeyProblem.REVOKED}
        assert await tracker.store.keys(tenant="acme") == []
        assert {row.user for row in await tracker.store.keys(tenant="deleted")} == {None}
        listed = await tracker.keys.list(tenant="acme")
        assert {(key.row.id, key.row.revoked) for key in listed} == {(name, True) for name in found}
        assert await tracker.keys.list() == [ListedKey(rows[-1], "config"), *listed]


@both_stores
async def test_nobody_gets_the_id_of_a_deleted_tenants_key(kind: str, tmp_path: Path) -> None:
    declared = KeyRow(id="declared", sha256=hash_secret("sk-askii-declared"), tenant="acme")
    async with opened(kind, tmp_path, keys=[declared]) as tracker:
        await tracker.keys.create("acme", key_id="k1", user="ann", name="reports")
        await tracker.budget_enforcer.set_budget(Budget(scope="key=*", limit_usd=1))
        await tracker.record_usage(Identity(tenant="acme", key="k1"), "big", input_tokens=7)
        for _ in range(2):
            await deleted(tracker, "acme")
            for key_id in ("k1", "declared"):
                with pytest.raises(ConfigurationError, match="existed: name another"):
                    await tracker.keys.create("globex", key_id=key_id)
            assert await tracker.keys.get("k1") is None
            assert await tracker.keys.revoke("k1") is False
            with pytest.raises(ConfigurationError, match="no key has the id 'k1'"):
                await tracker.keys.rotate("k1")


async def test_pages_of_keys_are_full_in_spite_of_those_of_deleted_tenants(tmp_path: Path) -> None:
    declared = [KeyRow(id=f"k{n}d", sha256=hash_secret(f"sk-askii-{n}"), tenant="acme") for n in (1, 5)]
    async with opened("memory", tmp_path, keys=declared) as tracker:
        for n in range(9):
            await tracker.keys.create("globex" if n in (3, 7) else "acme", key_id=f"k{n}")
        await deleted(tracker, "acme")
        pages, after = [], ""
        while page := await tracker.keys.list(after=after, limit=1):
            pages += [(key.row.id, key.row.revoked) for key in page]
            after = page[-1].row.id
        assert pages == [("k1d", True), ("k3", False), ("k5d", True), ("k7", False)]
        assert [key.row.id for key in await tracker.keys.list(tenant="globex", limit=2)] == ["k3", "k7"]
        assert await tracker.keys.list(tenant="deleted") == []


async def test_the_name_that_erased_tenants_share_is_neither_deleted_nor_suspended(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(StoreError, match="nothing more to erase"):
            await deleted(tracker, "deleted")
        assert await tracker.tenant_states() == []


@pytest.mark.parametrize("tenant", ["", "x" * 257, "a\0b"])
async def test_what_is_no_tenant_is_neither_exported_nor_deleted(tenant: str, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match=r".+"):
            await lines_of(tracker, tenant)
        with pytest.raises(ValueError, match=r".+"):
            await deleted(tracker, tenant)
