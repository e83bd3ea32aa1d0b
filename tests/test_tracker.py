"""Money through the tracker: rates, prices, records made elsewhere, and what a configuration may say."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askii_middleware.budgets import Budget
from askii_middleware.calls import CallSpec
from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.default_tracker import get_cost_tracker
from askii_middleware.errors import BudgetExceededError, ConfigurationError, UnknownModelError
from askii_middleware.identity import Identity
from askii_middleware.operations import DEFERRED_S
from askii_middleware.pricing import ModelPrice, PricingConfig
from askii_middleware.records import unique_id
from askii_middleware.settings import load_settings
from askii_middleware.settling import DEFERRED, Conclusion
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.tracker import CostTracker
from askii_middleware.usage import TokenUsage

from .support.service import (
    PRICES,
    Clock,
    amounts,
    assert_balanced,
    both_stores,
    cancelled_at,
    faulty,
    make_tracker,
    opened,
    records_of,
)


async def use(tracker: CostTracker, tokens: int, model: str = "big") -> None:
    async with tracker.track_tokens("acme", model, expected_input_tokens=tokens, max_output_tokens=0) as usage:
        usage["input_tokens"] = tokens


# Rates ---------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_limit_in_coins_is_worth_what_the_rate_of_each_admission_says(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_coins=1000)]) as tracker:
        await use(tracker, 900)  # 900 coins at 10^6 coins per USD
        monkeypatch.setenv(RATE_VARIABLE, "1e9")
        with pytest.raises(BudgetExceededError) as refusal:
            await use(tracker, 1)
        assert (refusal.value.current_cost, refusal.value.max_budget) == (900_000.0, 1000.0)
        monkeypatch.setenv(RATE_VARIABLE, "1000")
        await use(tracker, 900)
        monkeypatch.delenv(RATE_VARIABLE)
        with pytest.raises(BudgetExceededError):
            await use(tracker, 1)
        assert await amounts(tracker) == (1_800_000, 0)


@both_stores
async def test_a_changing_rate_never_changes_who_is_over_a_budget_in_usd(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.001")]) as tracker:
        for rate in ("1", "1000", "1e6", "1234567"):
            monkeypatch.setenv(RATE_VARIABLE, rate)
            await use(tracker, 250)
        for rate in ("1e-6", "1e12"):
            monkeypatch.setenv(RATE_VARIABLE, rate)
            with pytest.raises(BudgetExceededError):
                await use(tracker, 1)
        found = await records_of(tracker)
        assert [record.exchange_rate for record in found] == [1.0, 1000.0, 1e6, 1234567.0]
        assert [record.cost_nano_usd for record in found] == [250_000] * 4
        # 0.00025 and 0.25 coins wait for more, 250 are whole, and 308.64175 bring the sum to 558.892.
        assert [record.askii_coins for record in found] == [0, 0, 250, 308]


@both_stores
async def test_a_call_keeps_the_rate_it_was_admitted_at(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(kind, tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            monkeypatch.setenv(RATE_VARIABLE, "1")
            usage["input_tokens"] = 10
        (record,) = await records_of(tracker)
        assert (record.exchange_rate, record.askii_coins) == (1e6, 10)


async def test_an_invalid_rate_keeps_the_last_valid_one_and_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "2000")
    async with opened("memory", tmp_path) as tracker:
        await use(tracker, 1)
        for rate in ("invalid", "0", "invalid", "0", "nan"):
            monkeypatch.setenv(RATE_VARIABLE, rate)
            await use(tracker, 1)
        assert {record.exchange_rate for record in await records_of(tracker)} == {2000.0}
        assert len([r for r in caplog.records if RATE_VARIABLE in r.getMessage()]) == 3
        assert "askii_invalid_exchange_rate_total 3.0" in tracker.metrics.render("")[0].decode()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(["1", "1000", "1e6", "1234567", "0.3"])), max_size=25
    )
)
def test_coins_sent_are_within_one_of_the_exact_sum_at_any_sequence_of_rates(
    calls: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        tracker = make_tracker("memory://", prices={"odd": ModelPrice(input_usd_per_mtok="0.0371")}, budgets=[])
        exact = Decimal(0)
        sent = 0
        for tokens, rate in calls:
            monkeypatch.setenv(RATE_VARIABLE, rate)
            record = await tracker.record_usage("acme", "odd", input_tokens=tokens)
            exact += Decimal(record.cost_nano_usd) * Decimal(rate) / 10**9
            sent += record.askii_coins
        assert 0 <= exact - sent < 1
        await tracker.stop()

    asyncio.run(run())


# Prices --------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_model_without_a_price_is_never_free_by_accident(kind: str, tmp_path: Path) -> None:
    for policy in ("reject", "default", "allow"):
        folder = tmp_path / policy
        folder.mkdir()
        default = ModelPrice(input_usd_per_mtok=7, output_usd_per_mtok=9) if policy == "default" else None
        options: dict[str, Any] = {"unknown_price": policy, "default_price": default}
        budgets = [Budget(scope="tenant=acme", limit_usd="0.0001")]
        async with opened(kind, folder, budgets=budgets, **options) as tracker:
            if policy == "reject":
                with pytest.raises(UnknownModelError, match="pricing"):
                    await use(tracker, 10, "mystery")
                with pytest.raises(UnknownModelError):
                    await tracker.record_usage("acme", "mystery", input_tokens=10)
                assert await records_of(tracker) == []
                continue
            await use(tracker, 10, "mystery")
            (record,) = await records_of(tracker)
            assert record.cost_nano_usd == (70_000 if policy == "default" else 0)
            assert record.unpriced == (policy == "allow")
            if policy == "allow":
                # It needs room in the budgets all the same.
                await tracker.record_usage("acme", "big", input_tokens=100)
                with pytest.raises(BudgetExceededError):
                    await use(tracker, 10, "mystery")


async def test_prices_in_the_guides_form_can_be_set_while_it_runs(tmp_path: Path) -> None:
    pricing = PricingConfig()
    async with opened("memory", tmp_path, pricing=pricing, prices=None) as tracker:
        pricing.openai["custom-model"] = {"input": 0.02, "output": 0.04}
        async with tracker.track_tokens("acme", "custom-model", expected_input_tokens=1000) as usage:
            usage["input_tokens"] = 1000
            usage["output_tokens"] = 500
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == 40_000_000


# Calls that were made elsewhere ---------------------------------------------------------------------------------------


@both_stores
async def test_recorded_usage_is_charged_once_for_its_id_whatever_the_budget(kind: str, tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd="0.00001")]
    async with opened(kind, tmp_path, budgets=budgets, sinks=[MemorySink()]) as tracker:
        for _ in range(2):
            record = await tracker.record_usage("acme", "big", input_tokens=100, output_tokens=50, call_id="job-7")
            assert (record.cost_nano_usd, record.askii_coins, record.late) == (200_000, 200, False)
        usage = TokenUsage.from_totals(10, 5, cached_input_tokens=4, reasoning_tokens=1)
        record = await tracker.record_usage(
            Identity(tenant="acme", user="u"), "big", usage=usage, provider="openai", metadata={"a": [1]}
        )
        assert (record.user, record.usage.cached_input_tokens, record.metadata) == ("u", 4, {"a": [1]})
        assert await amounts(tracker) == (220_000, 0)
        assert len(await records_of(tracker)) == 2
        with pytest.raises(BudgetExceededError):
            await use(tracker, 1)
        text = tracker.metrics.render("")[0].decode()
        assert 'askii_requests_total{api="code",outcome="completed"} 2.0' in text
        await assert_balanced(tracker)


@pytest.mark.parametrize(
    "options",
    [
        {"input_tokens": -1},
        {"output_tokens": 1.5},
        {"input_tokens": True},
        {"input_tokens": 10**18},
        {"usage": TokenUsage(input=-5)},
        {"usage": TokenUsage(output=2.5)},  # type: ignore[arg-type]
        {"model": "\ud800"},
        {"call_id": "\ud800"},
        {"call_id": ""},
        {"call_id": "x" * 257},
        {"metadata": {"a": {1, 2, object()}}},
    ],
)
async def test_what_is_no_usage_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match="takes"):
            await tracker.record_usage(**{"tenant_id": "acme", "model": "big", **options})
        assert await records_of(tracker) == []


async def test_more_than_a_charge_can_be_is_refused_at_the_edge(tmp_path: Path) -> None:
    dear = {"dear": ModelPrice(input_usd_per_mtok=100_000, allow_high=True)}
    async with opened("memory", tmp_path, prices=dear) as tracker:
        with pytest.raises(ValueError, match="more than a charge can be"):
            await tracker.record_usage("acme", "dear", input_tokens=10**9)
        with pytest.raises(ValueError, match="coins"):
            await tracker.record_external("acme", 10**30, "x")
        with pytest.raises(ValueError, match="coins"):
            await tracker.record_external("acme", -1, "x")
        await assert_balanced(tracker)


@both_stores
async def test_an_id_that_another_charge_of_the_subscription_has_is_refused_either_way(
    kind: str, tmp_path: Path
) -> None:
    """A receiver would take the two for one, and bill one of them only."""
    seen = MemorySink()
    async with opened(kind, tmp_path, sinks=[seen]) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=1, call_id="req-1")
        with pytest.raises(ValueError, match=r"'req-1' is taken by another charge of 'acme'"):
            await tracker.record_external("acme", 777, "req-1")
        await tracker.record_external("globex", 7, "req-1")
        await tracker.record_external("globex", 7, "req-1")
        with pytest.raises(ValueError, match=r"'req-1' is taken by another charge of 'globex'"):
            await tracker.record_usage("globex", "big", input_tokens=1, call_id="req-1")
        await tracker.record_usage("acme", "big", input_tokens=1, call_id="req-1")
        await tracker.flush()
        assert [(r.subscription, r.call_id, r.askii_coins) for r in seen.records] == [
            ("acme", "req-1", 1),
            ("globex", "req-1", 7),
        ]


async def test_no_two_subscriptions_share_an_id_in_the_ledger_or_at_a_receiver(tmp_path: Path) -> None:
    seen = MemorySink()
    async with opened("memory", tmp_path, sinks=[seen]) as tracker:
        for subscription, call_id in (("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("globex", "b:c")):
            await tracker.record_external(subscription, 5, call_id)
        credit = await tracker.adjust("a:b", "-0.000001", reason="returned", ref="c")
        await tracker.flush()
        assert [(r.subscription, r.call_id) for r in list(seen.records)[:4]] == [
            *(("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("globex", "b:c")),
        ]
        assert len({unique_id(record) for record in seen.records}) == 5
        assert unique_id(credit) == credit.call_id


@both_stores
async def test_external_events_go_through_the_ledger_and_the_outbox_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "3")
    lago, seen = LagoSink("http://127.0.0.1:9/api/v1", "key"), MemorySink()
    async with opened(kind, tmp_path, sinks=[seen], budgets=[Budget(scope="tenant=*", limit_usd=100)]) as tracker:
        lago.bind(tracker.record_external)
        for _ in range(2):
            await lago.send_usage_event("acme", 10, "call-1")
        await lago.send_usage_event("other", 10, "call-1")
        with pytest.raises(ValueError, match="whole coins"):
            await lago.send_usage_event("acme", 1.5, "call-2")
        await tracker.flush()
        assert [(r.subscription, r.call_id, r.askii_coins) for r in seen.records] == [
            ("acme", "call-1", 10),
            ("other", "call-1", 10),
        ]
        # 10 coins at 3 coins per USD are 3.333333333 USD.
        assert await amounts(tracker) == (3_333_333_333, 0)
        # Whole coins are billed as they are: nothing of them is carried.
        record = await tracker.record_usage("acme", "big", input_tokens=10)
        assert record.askii_coins == 0
        await assert_balanced(tracker)
    await lago.close()


# Who is billed --------------------------------------------------------------------------------------------------------


async def test_subscriptions_come_from_a_table_or_a_callable_and_a_failing_one_loses_no_charge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_who: Identity) -> str:
        raise LookupError("directory down")

    cases: list[tuple[Any, str]] = [
        (None, "acme"),
        ({"acme": "sub-1"}, "sub-1"),
        ({"other": "sub-1"}, ""),
        (lambda who: f"sub-{who.tenant}", "sub-acme"),
        (lambda _who: None, ""),
        (lambda _who: 7, ""),
        (failing, ""),
    ]
    for subscription_of, expected in cases:
        async with opened("memory", tmp_path, subscription_of=subscription_of) as tracker:
            await use(tracker, 10)
            (record,) = await records_of(tracker)
            assert record.subscription == expected
            assert await amounts(tracker) == (10_000, 0)
    assert "directory down" in caplog.text


# Enforcement ----------------------------------------------------------------------------------------------------------


@both_stores
async def test_with_enforcement_off_everything_is_charged_and_nothing_held_or_refused(
    kind: str, tmp_path: Path
) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd=0)]
    async with opened(kind, tmp_path, budgets=budgets, enforcement="off") as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            assert await amounts(tracker) == (0, 0)
            usage["input_tokens"] = 10
        with pytest.raises(KeyError):
            await _fail(tracker)
        assert await amounts(tracker) == (10_000, 0)
        await assert_balanced(tracker)


async def _fail(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", expected_input_tokens=1):
        raise KeyError


@both_stores
async def test_calls_at_once_admit_exactly_what_fits(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.001")]) as tracker:
        release = asyncio.Event()

        async def call() -> str:
            try:
                async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
                    await release.wait()
                    usage["input_tokens"] = 77
            except BudgetExceededError as error:
                return error.reason
            return "ran"

        tasks = [asyncio.create_task(call()) for _ in range(50)]
        await asyncio.sleep(0.02)
        release.set()
        answers = await asyncio.gather(*tasks)
        assert sorted(answers) == ["held"] * 40 + ["ran"] * 10
        assert await amounts(tracker) == (770_000, 0)


@both_stores
async def test_a_budget_set_elsewhere_binds_the_next_call(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    async with make_tracker(store, clock=clock, budgets=[]) as tracker:
        await use(tracker, 1000)
        await store.inner.set_budget(Budget(scope="tenant=acme", limit_usd="0.0005", period="monthly"))
        with pytest.raises(BudgetExceededError, match="monthly"):
            await use(tracker, 1000)


# Cancellation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1])
@both_stores
async def test_an_admission_cancelled_at_any_await_holds_nothing(kind: str, turns: int, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock, turns=turns)
    async with make_tracker(store, clock=clock) as tracker:
        for step in range(30):
            work = tracker.admit(Identity(tenant="acme"), CallSpec(model="big", input_tokens=10, output_tokens=0))
            still = await cancelled_at(step, work)
            await tracker.flush(1.0)
            if not still:
                break
            assert await amounts(tracker) == (0, 0), step
        else:
            pytest.fail("never admitted")
        assert await amounts(tracker) == (0, 10_000)


@both_stores
async def test_a_cancelled_settlement_is_counted_like_any_other(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock, turns=2)
    async with make_tracker(store, clock=clock) as tracker:
        task = asyncio.create_task(tracker.record_usage("acme", "big", input_tokens=10))
        for _ in range(1000):
            if "settle" in store.calls:
                break
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await tracker.flush(1.0)
        assert await amounts(tracker) == (10_000, 0)
        assert 'llm_cost_usd_total{model="big",tenant_id="acme"} 1e-05' in tracker.metrics.render("")[0].decode()


# Calls that go on elsewhere ------------------------------------------------------------------------------------------


@both_stores
async def test_a_call_that_goes_on_elsewhere_keeps_its_hold_until_it_is_estimated(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        call = await tracker.admit(Identity(tenant="acme"), CallSpec(model="big", input_tokens=10, output_tokens=5))
        assert await tracker.close_call(call, Conclusion(DEFERRED)) is None
        assert await amounts(tracker) == (0, 20_000)
        assert await tracker.close_call(call, Conclusion(DEFERRED)) is None
        clock.advance(DEFERRED_S)
        await tracker.operations.tend()
        (record,) = await records_of(tracker)
        assert (record.outcome, record.estimated, record.cost_nano_usd) == ("deferred_estimate", True, 20_000)
        clock.advance(-DEFERRED_S)
        assert await amounts(tracker) == (20_000, 0)


# Construction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown_price": "alow"}, "unknown_price: 'alow' is none of"),
        ({"unknown_price": "default"}, "needs default_price"),
        ({"enforcement": "paper"}, "enforcement: 'paper'"),
        ({"on_store_error": "hope"}, "on_store_error"),
        ({"hold_ttl_s": 0}, "hold_ttl_s: 0 is not a number above 0"),
        ({"max_call_s": float("inf")}, "max_call_s"),
        ({"settle_timeout_s": float("nan")}, "settle_timeout_s"),
        ({"max_series": -1}, "max_series"),
        ({"sinks": [MemorySink(), MemorySink()]}, "different names"),
        ({"store": "postgres://x"}, "expected memory://"),
        ({"fallbacks": {"big": "small"}}, "needs a list"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CostTracker(**{"store": "memory://", "prices": PRICES, **options})


def test_the_processs_own_tracker_is_one_for_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("askii_middleware.default_tracker._made", [])
    found: list[CostTracker] = []
    threads = [threading.Thread(target=lambda: found.append(get_cost_tracker())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    own = load_settings(store="memory://")
    assert get_cost_tracker(own) is get_cost_tracker(own)
    assert get_cost_tracker(own) is not found[0]


async def test_a_fallback_that_no_upstream_serves_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {
        "store": "memory://",
        "fallbacks": {"gpt-4o": ["gpt-4o-mini", "claude-3-5-haiku-latest"]},
        "upstreams": {"openai": {"url": "http://127.0.0.1:1/v1", "models": ["gpt-*"]}},
    }
    with pytest.raises(ConfigurationError, match="nothing serves 'claude-3-5-haiku-latest'"):
        CostTracker.from_settings(load_settings(**options))
    options["upstreams"]["anthropic"] = {"url": "http://127.0.0.1:1/v1", "models": ["Claude-*"]}
    CostTracker.from_settings(load_settings(**options))
