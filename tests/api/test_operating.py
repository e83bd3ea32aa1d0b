"""Prices, tenants and the outbox, as operators handle them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import MemorySink
from askii_middleware.sinks.base import Delivery, Verdict

from ..support.service import both_stores, records_of
from .support import ADMIN_HEADERS, bench

PRICES = {
    "mine": {"input_usd_per_mtok": "0.05", "output_usd_per_mtok": 1, "max_output_tokens": 10},
    "theirs": {
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 2e-06,
        "litellm_provider": "openai",
        "mode": "chat",
    },
}


@both_stores
async def test_prices_are_set_listed_and_removed_and_old_records_keep_theirs(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        before = (await b.get("/api/billing/pricing"))["version"]
        answer = await b.ask("PUT", "/api/billing/pricing", json=PRICES)
        assert answer.status_code == 200, answer.text
        assert answer.json()["models"] == ["mine", "theirs"]
        assert answer.json()["version"] != before
        await b.use(model="mine", tokens=1000)
        await b.ask("PUT", "/api/billing/pricing", json={"mine": {"input_usd_per_mtok": 100}})
        await b.use(model="mine", tokens=1000)
        assert sorted(record.cost_nano_usd for record in await records_of(b.tracker)) == [50_000, 100_000_000]
        listed = {each["model"]: each for each in (await b.get("/api/billing/pricing"))["prices"]}
        assert listed["mine"] == {"model": "mine", "source": "store", "price": {"input_usd_per_mtok": "100"}}
        assert listed["theirs"]["price"]["output_usd_per_mtok"] == "2"
        assert listed["big"]["source"] == "config"
        assert (await b.ask("DELETE", "/api/billing/pricing?model=mine")).json() == {"model": "mine", "removed": True}
        assert (await b.ask("DELETE", "/api/billing/pricing?model=mine")).status_code == 404


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"m": {}},
        {"m": {"input_usd_per_mtok": -1}},
        {"m": {"input_usd_per_mtok": 100_000}},
        {"m": {"price": 1}},
        {"": {"input_usd_per_mtok": 1}},
        {"m": 1},
        {"good": {"input_usd_per_mtok": 1}, "bad": {"input_usd_per_mtok": "x"}},
    ],
)
async def test_a_table_with_one_bad_price_sets_none(table: dict[str, Any], tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        before = await b.get("/api/billing/pricing")
        assert (await b.ask("PUT", "/api/billing/pricing", json=table)).status_code == 422
        assert await b.get("/api/billing/pricing") == before


async def test_a_price_file_of_a_megabyte_is_taken(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        table = {f"model-{n}-{'x' * 180}": {"input_usd_per_mtok": n} for n in range(1, 1001)}
        padded = json.dumps(table) + " " * (1 << 20)
        headers = {**ADMIN_HEADERS, "content-type": "application/json; charset=utf-8"}
        answer = await b.ask("PUT", "/api/billing/pricing", content=padded, headers=headers)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["models"]) == 1000


# Tenants --------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_tenant_is_suspended_and_resumed(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        assert (await b.get("/api/tenants/acme"))["state"] == "active"
        await b.ask("POST", "/api/tenants/acme/suspend", json={"reason": "late"})
        shown = await b.get("/api/tenants/acme")
        assert (shown["state"], shown["can_make_request"], shown["budgets"][0]["limit_usd"]) == (
            "suspended",
            False,
            "1",
        )
        assert shown["suspensions"] == [
            {"cause": "operator", "reason": "late", "at": "2026-01-01T00:00:00.000Z", "about": None}
        ]
        resumed = {"tenant": "acme", "state": "active", "was_suspended": True}
        assert (await b.ask("POST", "/api/tenants/acme/resume")).json() == resumed
        assert (await b.ask("POST", "/api/tenants/acme/resume")).json() == {**resumed, "was_suspended": False}
        assert (await b.ask("POST", "/api/tenants/acme/suspend", json={"reason": "x" * 501})).status_code == 422


@both_stores
async def test_a_tenants_data_is_handed_out_and_deleted(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        await b.key("k1")
        await b.use(key="k1", tokens=10)
        await b.use("globex", tokens=20)
        answer = await b.ask("GET", "/api/tenants/acme/export")
        assert answer.headers["content-type"] == "application/x-ndjson; charset=utf-8"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert {line["kind"] for line in lines} >= {"key", "usage"}
        assert [line["tenant"] for line in lines if line["kind"] == "usage"] == ["acme"]
        assert "globex" not in answer.text
        assert b.secrets["k1"] not in answer.text
        deleted = (await b.ask("DELETE", "/api/tenants/acme")).json()
        assert (deleted["tenant"], deleted["records"], deleted["keys"]) == ("acme", 1, 1)
        assert (await b.ask("GET", "/api/keys/k1", headers=b.bearer("k1"))).status_code == 401
        assert (await b.get("/api/tenants/acme"))["state"] == "suspended"
        assert (await b.get("/api/v1/usage/stats?tenant=acme"))["current_usage"]["tokens_by_model"] == {}


async def test_a_tenant_with_records_on_their_way_is_not_deleted(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.tracker.store.register_sinks(["slow"])
        await b.use(tokens=10)
        answer = await b.ask("DELETE", "/api/tenants/acme")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        assert "slow" in answer.json()["error"]["message"]


# Outbox ---------------------------------------------------------------------------------------------------------------


class Picky(MemorySink):
    """Refuses everything for good while it is told to."""

    refuses = True

    async def send(self, records: Any) -> Delivery:
        if self.refuses:
            return Delivery((Verdict("rejected", "no such customer"),) * len(records))
        return await super().send(records)


async def test_dead_letters_are_listed_and_sent_again(tmp_path: Path) -> None:
    sink = Picky()
    async with bench(tmp_path, sinks=[sink]) as b:
        await b.use(tokens=10)
        await b.tracker.flush()
        assert await b.get("/api/billing/outbox") == {
            "sinks": [{"sink": "memory", "configured": True, "pending": 0, "dead": 1, "failures": 0, "retry_at": None}]
        }
        dead = await b.get("/api/billing/outbox/memory/dead")
        (letter,) = dead["dead_letters"]
        assert (letter["tenant"], letter["reason"], letter["attempts"]) == ("acme", "no such customer", 1)
        assert letter["last_attempt"] == "2026-01-01T00:00:00Z"
        sink.refuses = False
        retried = await b.ask("POST", "/api/billing/outbox/memory/retry")
        assert retried.json() == {"sink": "memory", "retried": 1}
        await b.tracker.flush()
        assert len(sink.records) == 1
        assert (await b.get("/api/billing/outbox/memory/dead"))["dead_letters"] == []
        assert (await b.ask("POST", "/api/billing/outbox/none/retry")).status_code == 404
