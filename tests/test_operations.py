"""Operations are charged once, whichever worker sees their end, after restarts, kills and outages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, Budget, CostTracker, Identity, ModelPrice
from askii_middleware.admitting import BACKGROUND_S
from askii_middleware.calls import CallSpec
from askii_middleware.operations import DEFERRED_S, MAX_ID_CHARS, operation_key
from askii_middleware.providers.base import BatchItems
from askii_middleware.settling import DEFERRED, Conclusion
from askii_middleware.stores.base import MAX_KEY_CHARS, MAX_PAYLOAD_BYTES, Operation
from askii_middleware.stores.rules import OVERDUE_S
from askii_middleware.usage import Report, TokenUsage

from .support.service import (
    NOW_S,
    PRICES,
    Clock,
    FaultyStore,
    amounts,
    assert_balanced,
    both_stores,
    faulty,
    make_tracker,
    records_of,
    soon,
)

ROOT = Path(__file__).parents[1]
USED = TokenUsage(input=40, output=10)
COST_NANO_USD = 40 * 1000 + 10 * 2000
HELD_NANO_USD = 100 * 1000 + 50 * 2000
SPEC = {"model": "big", "api": "openai.responses", "provider": "openai", "input_tokens": 100, "output_tokens": 50}
ACME = Identity(tenant="acme", key="k1", user="ann", team="t", end_user="e", tags=("x", "y"))


def spec(**fields: Any) -> CallSpec:
    return CallSpec(**{**SPEC, "background": True, **fields})


def done(operation: str = "resp_1", **fields: Any) -> Report:
    return Report(**{"usage": USED, "model": "big", "provider_request_id": operation, "finished": True, **fields})


async def begin(
    tracker: CostTracker, operation: str | None = "resp_1", identity: Identity = ACME, **fields: Any
) -> str:
    """A call whose operation goes on elsewhere. Returns the call's id."""
    call = await tracker.admit(identity, spec(**fields))
    assert await tracker.close_call(call, Conclusion(DEFERRED, provider_request_id=operation)) is None
    return call.id


async def sight(tracker: CostTracker, report: Report | None = None) -> None:
    report = report or done()
    await tracker.operations.sighted("openai", [report.provider_request_id or ""], report)


async def calm(store: FaultyStore) -> None:
    """After the first heartbeat, whose upkeep comes last, nothing happens by itself for a while."""
    await soon(lambda: "overdue" in store.calls)


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.db'}"


# Several workers -----------------------------------------------------------------------------------------------------


class Upstream:
    """Answers a background response at once, and its state when asked."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "id": "resp_1",
            "object": "response",
            "model": "big",
            "status": "queued",
            "usage": None,
        }

    async def answer(self, _request: Request) -> Response:
        return JSONResponse(self.state)

    def complete(self) -> None:
        self.state |= {"status": "completed", "usage": {"input_tokens": 40, "output_tokens": 10, "total_tokens": 50}}


@asynccontextmanager
async def worker(upstream: Upstream, url: str, clock: Clock) -> AsyncIterator[tuple[CostTracker, httpx.AsyncClient]]:
    routes = [Route("/v1/responses", upstream.answer, methods=["POST"]), Route("/v1/responses/{id}", upstream.answer)]
    async with make_tracker(url, clock=clock) as tracker:
        app = AskiiMiddleware(Starlette(routes=routes), tracker=tracker, identify=lambda _scope: "acme")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield tracker, client


async def post(client: httpx.AsyncClient) -> None:
    body = {"model": "big", "input": "hello", "max_output_tokens": 20, "background": True}
    assert (await client.post("/v1/responses", json=body)).status_code == 200


async def test_what_one_worker_began_another_settles_by_its_poll(tmp_path: Path) -> None:
    upstream, clock = Upstream(), Clock()
    async with (
        worker(upstream, sqlite(tmp_path), clock) as (one, first),
        worker(upstream, sqlite(tmp_path), clock) as (two, second),
    ):
        await post(first)
        clock.advance(30)
        await second.get("/v1/responses/resp_1")
        assert await records_of(two) == []
        upstream.complete()
        for client in (second, first, second):
            assert (await client.get("/v1/responses/resp_1")).json() == upstream.state
        (record,) = await records_of(one)
        assert (record.cost_nano_usd, record.outcome, record.estimated) == (COST_NANO_USD, "completed", False)
        assert (record.timestamp, record.late) == ("2026-01-01T00:00:00.000Z", False)
        assert 30_000 <= record.duration_ms < 40_000
        assert await amounts(one) == (COST_NANO_USD, 0)
        await assert_balanced(two)


async def test_a_restart_between_beginning_and_end_loses_nothing(tmp_path: Path) -> None:
    upstream, clock = Upstream(), Clock()
    async with worker(upstream, sqlite(tmp_path), clock) as (tracker, client):
        await post(client)
        _, held = await amounts(tracker)
        assert held > 0
    clock.advance(3600)
    upstream.complete()
    async with worker(upstream, sqlite(tmp_path), clock) as (tracker, client):
        assert await amounts(tracker) == (0, held)
        await client.get("/v1/responses/resp_1")
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.late) == (COST_NANO_USD, False)
        await assert_balanced(tracker)


async def test_two_workers_that_see_the_end_at_once_charge_it_once(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock) as one, make_tracker(sqlite(tmp_path), clock=clock) as two:
        for number in range(20):
            await begin(one, f"resp_{number}")
            both = [sight(tracker, done(f"resp_{number}")) for tracker in (one, two, one, two)]
            await asyncio.gather(*both)
        assert len(await records_of(one)) == 20
        assert await amounts(one) == (20 * COST_NANO_USD, 0)
        counted = sum(metric(tracker, "completed") for tracker in (one, two))
        assert counted == 20
        await assert_balanced(one)


def metric(tracker: CostTracker, outcome: str) -> float:
    tracker.metrics.flush()
    labels = {"outcome": outcome, "api": "openai.responses"}
    return tracker.metrics.registry.get_sample_value("askii_requests_total", labels) or 0.0


async def test_overdue_operations_are_estimated_once_by_all_workers_together(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock) as one, make_tracker(sqlite(tmp_path), clock=clock) as two:
        ids = [await begin(one, f"resp_{n}", metadata={"n": n}) for n in range(3)]
        clock.advance(DEFERRED_S)
        await asyncio.gather(one.operations.tend(), two.operations.tend(), one.operations.tend())
        records = await records_of(two)
        assert sorted(record.call_id for record in records) == sorted(ids)
        for record in records:
            assert (record.outcome, record.estimated, record.late) == ("deferred_estimate", True, False)
            assert record.cost_nano_usd == HELD_NANO_USD
        assert sorted(record.metadata["n"] for record in records) == [0, 1, 2]
        assert await two.store.overdue(10) == []
        await assert_balanced(one)


async def test_the_heartbeat_settles_what_is_overdue(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock) as tracker:
        await begin(tracker)
    clock.advance(DEFERRED_S)
    async with make_tracker(sqlite(tmp_path), clock=clock) as tracker:

        async def settled() -> bool:
            return len(await records_of(tracker)) == 1

        await soon(settled)


VICTIM = """
import asyncio, sys
from tests.test_operations import Clock, Upstream, post, worker
async def main():
    async with worker(Upstream(), sys.argv[1], Clock()) as (_, client):
        await post(client)
        print("begun", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_an_operation_whose_worker_is_killed_is_settled_exactly_by_another(tmp_path: Path) -> None:
    url = sqlite(tmp_path)
    with subprocess.Popen([sys.executable, "-c", VICTIM, url], stdout=subprocess.PIPE, cwd=ROOT) as victim:
        assert victim.stdout is not None
        assert await asyncio.to_thread(victim.stdout.readline) == b"begun\n"
        victim.kill()
    upstream, clock = Upstream(), Clock()
    clock.advance(600)
    upstream.complete()
    async with worker(upstream, url, clock) as (tracker, client):
        _, held = await amounts(tracker)
        assert held > 0
        await client.get("/v1/responses/resp_1")
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.late, record.estimated) == (COST_NANO_USD, False, False)
        assert (await tracker.store.totals()).lost == 0
        await assert_balanced(tracker)


# What is kept --------------------------------------------------------------------------------------------------------


@both_stores
async def test_the_record_says_all_that_was_known_at_admission(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    url = "memory://" if kind == "memory" else sqlite(tmp_path)
    async with make_tracker(url, clock=clock) as tracker:
        call_id = await begin(tracker, deployment="d", service_tier="flex", stream=True, metadata={"a": [1, "ü"]})
        clock.advance(86_400)
        await sight(tracker, done(service_tier="flex"))
        (record,) = await records_of(tracker)
        assert (record.call_id, record.tenant, record.key, record.user) == (call_id, "acme", "k1", "ann")
        assert (record.team, record.end_user, record.tags) == ("t", "e", ("x", "y"))
        assert (record.api, record.provider, record.deployment) == ("openai.responses", "openai", "d")
        assert (record.requested_model, record.served_model, record.service_tier) == ("big", "big", "flex")
        assert (record.stream, record.metadata, record.status) == (True, {"a": [1, "ü"]}, 200)
        assert record.timestamp == "2026-01-01T00:00:00.000Z"
        assert await amounts(tracker) == (0, 0)  # of the second day
        clock.advance(-86_400)
        assert await amounts(tracker) == (COST_NANO_USD, 0)


async def test_a_call_without_a_hold_is_charged_where_its_budgets_are(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock, enforcement="off") as tracker:
        await begin(tracker)
        clock.advance(86_400)
        await sight(tracker)
        clock.advance(-86_400)
        assert await amounts(tracker) == (COST_NANO_USD, 0)


async def test_an_operation_nobody_can_name_is_estimated_at_its_end(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock) as tracker:
        await begin(tracker, None)
        await begin(tracker, None)
        clock.advance(DEFERRED_S)
        await tracker.operations.tend()
        assert [r.outcome for r in await records_of(tracker)] == ["deferred_estimate"] * 2


async def test_a_fallback_is_settled_at_the_model_that_was_admitted(tmp_path: Path) -> None:
    async with make_tracker(
        sqlite(tmp_path), fallbacks={"big": ["small"]}, budgets=[Budget(scope="tenant=*", limit_usd="0.00003")]
    ) as tracker:
        await begin(tracker)
        await sight(tracker, done(model=None))
        (record,) = await records_of(tracker)
        assert (record.requested_model, record.served_model, record.fallback_reason) == ("big", "small", "budget")
        assert record.cost_nano_usd == COST_NANO_USD // 10


async def test_a_model_whose_price_is_gone_costs_what_was_held(tmp_path: Path, caplog: Any) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker, "seen")
        await begin(tracker, "unseen")
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock, prices={"other": PRICES["big"]}) as tracker:
        await sight(tracker, done("seen"))
        clock.advance(DEFERRED_S)
        await tracker.operations.tend()
        records = await records_of(tracker)
        assert [(r.cost_nano_usd, r.estimated) for r in records] == [(HELD_NANO_USD, True)] * 2
        assert "no price" in caplog.text
        await assert_balanced(tracker)


async def test_a_batch_costs_what_was_held_for_its_items_if_nobody_sees_its_end(tmp_path: Path) -> None:
    clock = Clock()
    items = (BatchItems("big", 10, 5, 0), BatchItems("small", 100, 50, 0))
    async with make_tracker(sqlite(tmp_path), clock=clock) as tracker:
        await begin(tracker, kind="batch", items=items)
        _, held = await amounts(tracker)
        clock.advance(DEFERRED_S)
        await tracker.operations.tend()
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == held == 10 * 1000 + 5 * 2000 + 100 * 100 + 50 * 200


async def test_what_was_used_per_model_is_priced_per_model(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker)
        await sight(tracker, done(other_usage=(("small", USED),)))
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == COST_NANO_USD + COST_NANO_USD // 10


async def test_what_the_request_alone_says_is_charged_when_the_end_tells_no_counts(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker, billed_by_request=TokenUsage(input=7))
        await sight(tracker, done(usage=None))
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.estimated) == (7000, False)


async def test_an_operation_that_used_nothing_costs_nothing(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path), prices={**PRICES, "batch": ModelPrice(request_usd=1)}) as tracker:
        await begin(tracker)
        await sight(tracker, done(usage=TokenUsage()))
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == 0
        await assert_balanced(tracker)


async def test_what_is_too_large_to_be_kept_is_charged_at_once(tmp_path: Path, caplog: Any) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker, metadata={"x": "y" * MAX_PAYLOAD_BYTES})
        (record,) = await records_of(tracker)
        assert (record.outcome, record.cost_nano_usd) == ("deferred_estimate", HELD_NANO_USD)
        assert "to charge it later" in caplog.text
        await assert_balanced(tracker)


async def test_extreme_rates_and_names_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", "1.2345e-25")
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker, "i" * 5000 + "\udc80\0")
        monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", "5")
        await tracker.operations.sighted("openai", ["i" * 5000 + "\udc80\0"], done())
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.exchange_rate) == (COST_NANO_USD, 1.2345e-25)


async def test_a_payload_of_a_later_version_is_left_to_it(tmp_path: Path, caplog: Any) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock) as tracker:
        call_id = await begin(tracker)
        known = await tracker.store.operation("openai:resp_1")
        assert known is not None
        fields = msgspec.json.decode(known.payload)
        assert fields["version"] == 1
        for number, payload in enumerate((msgspec.json.encode({**fields, "version": 2}), b"\xff", b"{}")):
            strange = Operation(
                key=f"openai:s{number}", call_id=f"s{number}", tenant="acme", until_s=NOW_S, payload=payload
            )
            await tracker.store.defer(strange)
            caplog.clear()
            for _ in range(2):
                await sight(tracker, done(f"s{number}"))
            assert caplog.text.count("another version") == 1
        clock.advance(DEFERRED_S)
        await tracker.operations.tend()
        assert [record.call_id for record in await records_of(tracker)] == [call_id]
        assert len(await tracker.store.overdue(10)) == 3


async def test_further_fields_of_a_payload_are_ignored(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker)
        known = await tracker.store.operation("openai:resp_1")
        assert known is not None
        payload = msgspec.json.encode({**msgspec.json.decode(known.payload), "new": {"x": 1}})
        later = Operation(key="openai:resp_2", call_id="c2", tenant="acme", until_s=NOW_S + 1, payload=payload)
        await tracker.store.defer(later)
        await sight(tracker, done("resp_2"))
        assert [record.call_id for record in await records_of(tracker)] == ["c2"]


# Keys ----------------------------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.sampled_from(["openai", "google"]), st.sampled_from(["openai", "google"]))
def test_different_operations_have_different_keys(one: str, two: str, its: str, others: str) -> None:
    keys = {operation_key(its, one), operation_key(others, two)}
    assert len(keys) == len({(its, one), (others, two)})
    assert all(len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable() for key in keys)


def test_long_names_are_not_cut_to_the_same_key() -> None:
    long = "r" * MAX_ID_CHARS
    assert operation_key("openai", long) == f"openai:{long}"
    assert operation_key("openai", long + "a") != operation_key("openai", long + "b")


async def test_a_strangers_poll_charges_the_owner(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker, identity=Identity(tenant="acme"))
        await tracker.operations.sighted("google", ["resp_1"], done())
        assert await records_of(tracker) == []
        await sight(tracker)
        assert [record.tenant for record in await records_of(tracker)] == ["acme"]


async def test_two_calls_of_one_payer_that_began_one_operation_are_charged_as_one(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        first = await begin(tracker)
        await begin(tracker)
        assert await amounts(tracker) == (0, HELD_NANO_USD)
        await sight(tracker)
        assert [record.call_id for record in await records_of(tracker)] == [first]
        await assert_balanced(tracker)


async def test_an_id_that_another_payer_has_leaves_the_second_call_to_its_estimate(tmp_path: Path) -> None:
    clock = Clock()
    async with make_tracker(sqlite(tmp_path), clock=clock) as tracker:
        await begin(tracker)
        await begin(tracker, identity=Identity(tenant="other"))
        await sight(tracker)
        assert [record.tenant for record in await records_of(tracker)] == ["acme"]
        assert await amounts(tracker, "tenant=other") == (0, HELD_NANO_USD)
        clock.advance(DEFERRED_S)
        await tracker.operations.tend()
        assert [record.tenant for record in await records_of(tracker)] == ["acme", "other"]


async def test_a_payer_who_became_known_late_pays_for_the_operation(tmp_path: Path) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        call = await tracker.admit(Identity(tenant="default"), spec())
        await tracker.close_late(call, ACME, Conclusion(DEFERRED, provider_request_id="resp_1"))
        await sight(tracker)
        (record,) = await records_of(tracker)
        assert (record.tenant, record.call_id) == ("acme", f"{call.id}.late")
        await assert_balanced(tracker)


# Trouble -------------------------------------------------------------------------------------------------------------


@both_stores
@pytest.mark.parametrize("fault", ["fail", "after", "hang", "hang after"])
async def test_an_operation_the_store_did_not_take_waits_and_is_settled_when_it_is_back(
    kind: str, fault: str, tmp_path: Path
) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    async with make_tracker(store, clock=clock, settle_timeout_s=0.05) as tracker:
        await calm(store)
        store.faults["defer"] = [fault]
        await begin(tracker)
        await sight(tracker)
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.late) == (COST_NANO_USD, False)
        await tracker.flush()
        assert len(await records_of(tracker)) == 1
        assert await store.operation("openai:resp_1") is None
        await assert_balanced(tracker)


async def test_an_operation_in_the_journal_of_a_dead_worker_is_adopted(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    tracker = make_tracker(store, clock=clock, settle_timeout_s=0.05)
    await tracker.start()
    store.faults["defer"] = ["fail"] * 1000
    await begin(tracker)
    await tracker.stop(flush_s=0.1)
    clock.advance(10)
    async with make_tracker(sqlite(tmp_path), clock=clock) as heir:

        async def known() -> bool:
            return await heir.store.operation("openai:resp_1") is not None

        await soon(known)
        await sight(heir)
        (record,) = await records_of(heir)
        assert record.cost_nano_usd == COST_NANO_USD
        await assert_balanced(heir)


@pytest.mark.parametrize("fault", ["fail", "hang"])
async def test_an_end_that_was_seen_while_the_store_was_away_is_settled_when_it_is_back(
    fault: str, tmp_path: Path
) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    async with make_tracker(store, clock=clock, settle_timeout_s=0.05) as tracker:
        await calm(store)
        await begin(tracker)
        store.faults["operation"] = [fault]
        await sight(tracker)
        assert await records_of(tracker) == []
        await tracker.operations.tend()
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == COST_NANO_USD
        store.calls.clear()
        await tracker.operations.tend()
        assert store.calls == ["overdue"]


async def test_ends_that_wait_for_the_store_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.operations.MAX_UNASKED", 3)
    store = faulty("memory", tmp_path, Clock())
    async with make_tracker(store) as tracker:
        await calm(store)
        store.faults["operation"] = ["fail"] * 10
        for number in range(10):
            await sight(tracker, done(f"resp_{number}"))
        assert len(tracker.operations._unasked) == 3


async def test_a_defect_in_the_store_reaches_no_client(tmp_path: Path, caplog: Any) -> None:
    store = faulty("memory", tmp_path, Clock())
    async with make_tracker(store) as tracker:
        await calm(store)
        await begin(tracker)
        store.faults["operation"] = [RuntimeError("broken")]
        await sight(tracker)
        assert "could not be settled" in caplog.text


async def test_a_settlement_the_store_does_not_take_waits_in_the_journal(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    async with make_tracker(store, clock=clock, settle_timeout_s=0.05) as tracker:
        await begin(tracker)
        store.faults["settle"] = ["fail"]
        await sight(tracker)
        await tracker.flush()
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == COST_NANO_USD
        await assert_balanced(tracker)


async def test_a_cancelled_poll_settles_all_the_same(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock, turns=5)
    async with make_tracker(store, clock=clock) as tracker:
        for step in range(1, 12):
            name = f"resp_{step}"
            await begin(tracker, name)
            task = asyncio.create_task(sight(tracker, done(name)))
            for _ in range(step):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await tracker.flush()
        assert len(await records_of(tracker)) == 11
        await assert_balanced(tracker)


@pytest.mark.parametrize(
    "change",
    [
        lambda report: setattr(report, "finished", False),
        lambda report: setattr(report, "deferred", True),
    ],
    ids=["unfinished", "deferred"],
)
async def test_only_an_end_decides(change: Callable[[Report], None], tmp_path: Path) -> None:
    store = faulty("memory", tmp_path, Clock())
    async with make_tracker(store) as tracker:
        await calm(store)
        await begin(tracker)
        report = done()
        change(report)
        store.calls.clear()
        await sight(tracker, report)
        assert store.calls == []
        assert await records_of(tracker) == []


@pytest.mark.parametrize(
    ("report", "charged"),
    [
        (done(usage=None), HELD_NANO_USD),
        (done(usage=None, failed=True), 0),
        (done(usage=None, failed=True, visible_deltas=9), 9 * 2000),
        (done(usage=None, visible_deltas=9), 9 * 2000),
    ],
    ids=["nothing", "failed", "failed late", "seen"],
)
async def test_an_end_without_counts_costs_what_was_seen_of_it_or_else_the_hold(
    report: Report, charged: int, tmp_path: Path
) -> None:
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker)
        await sight(tracker, report)
        assert await amounts(tracker) == (charged, 0)
        outcome = "upstream_error" if report.failed else "completed"
        assert [(r.outcome, r.estimated) for r in await records_of(tracker)] == [(outcome, True)] * (charged > 0)
        assert metric(tracker, "released") == (charged == 0)


async def test_a_batch_that_ends_without_counts_costs_what_was_held(tmp_path: Path) -> None:
    items = (BatchItems("big", 10, 5, 0), BatchItems("small", 100, 50, 0))
    async with make_tracker(sqlite(tmp_path)) as tracker:
        await begin(tracker, kind="batch", items=items)
        _, held = await amounts(tracker)
        await sight(tracker, done(usage=None))
        assert await amounts(tracker) == (held, 0)


@pytest.mark.parametrize(("deposit_usd", "cost", "unpriced"), [("0.5", 500_000_000, False), (0, 1, True)])
async def test_a_batch_of_which_nothing_is_ever_known_costs_its_deposit(
    tmp_path: Path, deposit_usd: Any, cost: int, unpriced: bool
) -> None:
    async with make_tracker(sqlite(tmp_path), file_batch_usd=deposit_usd) as tracker:
        await begin(tracker, kind="batch", model="batch")
        assert (await amounts(tracker)) == (0, cost)
        await sight(tracker, done(usage=None))
        (record,) = await records_of(tracker)
        assert (record.unpriced, record.estimated, record.cost_nano_usd) == (unpriced, True, cost)


def test_the_hold_of_a_background_call_lives_as_long_as_its_operation() -> None:
    assert BACKGROUND_S == DEFERRED_S + OVERDUE_S
