"""Credits and extra charges: exact, in their call's place, once each, and never more than a call has cost."""

from __future__ import annotations

import asyncio
import os
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.budgets import Budget
from askii_middleware.channels.callback import CallbackChannel
from askii_middleware.corrections import MAX_REASON_CHARS, AdjustmentError, UnknownCallError, own_id
from askii_middleware.currency import PICO, RATE_VARIABLE, parse_rate, split_coins
from askii_middleware.errors import BudgetExceededError, StoreError
from askii_middleware.identity import Identity
from askii_middleware.records import Charge, UsageCounts, UsageRecord
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.tracker import CostTracker

from .support.service import NOW_S, Clock, amounts, both_stores, faulty, make_tracker, opened, records_of

DAY_S = 86_400


async def use(tracker: CostTracker, tokens: int, call_id: str = "c1", who: str | Identity = "acme") -> UsageRecord:
    """A call of so many thousand nano-USD."""
    return await tracker.record_usage(who, "big", input_tokens=tokens, call_id=call_id)


async def summed(tracker: CostTracker) -> int:
    """What the ledger holds, which has to be the same in its aggregates and its records."""
    totals = await tracker.store.totals()
    records = await records_of(tracker)
    assert totals.cost_nano_usd == totals.records_nano_usd == sum(record.cost_nano_usd for record in records)
    assert totals.calls == sum(record.kind == "usage" for record in records)
    return totals.cost_nano_usd


# Where an adjustment belongs ------------------------------------------------------------------------------------------


@both_stores
async def test_a_credit_of_a_call_lowers_the_window_model_and_payers_it_was_charged_to(
    kind: str, tmp_path: Path
) -> None:
    clock = Clock()
    budgets = [Budget(scope="tenant=*", limit_usd=1), Budget(scope="tenant=*,model=big", limit_usd=1, period="total")]
    async with opened(kind, tmp_path, clock=clock, budgets=budgets) as tracker:
        who = Identity(tenant="acme", key="k1", user="u1", team="t1", end_user="e1", tags=("a", "b"))
        call = await use(tracker, 300, who=who)
        clock.advance(DAY_S)
        await use(tracker, 50, "c2")
        credit = await tracker.adjust("acme", "-0.0001", reason="slow answer", ref="c1")
        assert credit == msgspec.structs.replace(
            call,
            kind="adjustment",
            call_id="c1~adjustment~1",
            reason="slow answer",
            reference="c1",
            metadata={"adjustment_id": own_id(-100_000, "slow answer")},
            usage=UsageCounts(),
            charges=(Charge(bucket="adjustment", quantity=1, nano_usd=-100_000),),
            cost_nano_usd=-100_000,
            duration_ms=DAY_S * 1000,
            askii_coins=0,
        )
        assert await records_of(tracker) == [call, (await records_of(tracker))[1], credit]
        # Yesterday's counter was lowered, today's was not, the one without an end was.
        daily, forever = await tracker.budget_enforcer.status("tenant=acme,model=big")
        assert (int(daily.spent_usd.scaleb(9)), int(forever.spent_usd.scaleb(9))) == (50_000, 250_000)
        clock.now_s = NOW_S
        daily, _ = await tracker.budget_enforcer.status("tenant=acme,model=big")
        assert int(daily.spent_usd.scaleb(9)) == 200_000
        for scope in ("tenant=acme", "key=k1", "user=u1", "team=t1"):
            spent = await tracker.get_spend(scope, "daily")
            assert (spent.nano_usd_by_model, spent.total_requests, spent.total_tokens) == ({"big": 200_000}, 1, 300)
        assert await summed(tracker) == 250_000


@both_stores
async def test_an_adjustment_of_no_call_belongs_to_the_present_and_the_tenant(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock, subscription_of={"acme": "sub-1"}) as tracker:
        await use(tracker, 300)
        clock.advance(DAY_S)
        charge = await tracker.adjust("acme", "0.002", reason="set-up fee", adjustment_id="fee 1")
        assert (charge.call_id, charge.reference, charge.subscription) == ("adjustment:acme:fee 1", None, "sub-1")
        assert (charge.timestamp, charge.askii_coins) == ("2026-01-02T00:00:00.000Z", 2000)
        assert (charge.api, charge.served_model, charge.provider) == ("adjustment", "adjustment", "")
        assert await amounts(tracker) == (2_000_000, 0)
        spent = await tracker.get_spend("tenant=acme", "daily")
        assert (spent.nano_usd_by_model, spent.total_requests) == ({"adjustment": 2_000_000}, 0)
        await tracker.adjust(Identity(tenant="acme", user="u1"), "-0.003", reason="goodwill")
        assert await amounts(tracker) == (-1_000_000, 0)
        assert (await tracker.get_spend("user=u1", "daily")).cost_nano_usd == -3_000_000
        assert await summed(tracker) == 300_000 + 2_000_000 - 3_000_000


@both_stores
async def test_after_a_credit_the_budget_has_room_and_admits_again(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=*", limit_usd="0.0003")]) as tracker:
        await use(tracker, 300)
        with pytest.raises(BudgetExceededError):
            async with tracker.track_tokens("acme", "big", expected_input_tokens=50, max_output_tokens=10):
                pass
        await tracker.adjust("acme", "-0.0001", reason="wrong answer", ref="c1")
        assert await amounts(tracker) == (200_000, 0)
        async with tracker.track_tokens("acme", "big", expected_input_tokens=50, max_output_tokens=10) as usage:
            usage["input_tokens"] = 50
        assert await amounts(tracker) == (250_000, 0)


async def test_only_what_raises_spend_sets_off_alerts(tmp_path: Path) -> None:
    heard: list[Any] = []
    channel = CallbackChannel(heard.append)
    budgets = [Budget(scope="tenant=*", limit_usd="0.001", alert_at=(0.5,))]
    async with opened("memory", tmp_path, budgets=budgets, alert_channels=[channel]) as tracker:
        await use(tracker, 400)
        await tracker.adjust("acme", "-0.0003", reason="down", ref="c1")
        assert await tracker.store.recent_alerts(10) == []
        await tracker.adjust("acme", "0.0005", reason="up")
        (alert,) = await tracker.store.recent_alerts(10)
        assert (alert.spent_nano_usd, alert.share_ppm) == (600_000, 500_000)


async def test_an_adjustment_reaches_the_sinks_like_every_record(tmp_path: Path) -> None:
    sink = MemorySink()
    async with opened("memory", tmp_path, sinks=[sink]) as tracker:
        await use(tracker, 300)
        made = [
            await tracker.adjust("acme", "-0.0001", reason="down", ref="c1"),
            await tracker.adjust("acme", "0.0001", reason="up", ref="c1"),
        ]
        await tracker.flush()
        assert list(sink.records)[1:] == made


async def test_what_was_charged_elsewhere_is_found_by_its_callers_id(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.record_external("acme", 500, "order 7")
        credit = await tracker.adjust("acme", "-0.0005", reason="returned", ref="order 7")
        assert (credit.reference, credit.cost_nano_usd) == ("external:acme:order 7", -500_000)
        assert await summed(tracker) == 0


# What is refused ------------------------------------------------------------------------------------------------------


@both_stores
async def test_no_more_is_credited_than_a_call_has_cost_unless_that_is_wanted(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        await use(tracker, 300)
        await tracker.adjust("acme", "-0.0002", reason="first", ref="c1")
        with pytest.raises(AdjustmentError, match=r"charged 0.0003 USD, of which 0.0001 are left"):
            await tracker.adjust("acme", "-0.000100001", reason="second", ref="c1")
        await tracker.adjust("acme", "-0.0001", reason="second", ref="c1")
        with pytest.raises(AdjustmentError, match="0 are left"):
            await tracker.adjust("acme", "-0.000000001", reason="third", ref="c1")
        assert await summed(tracker) == 0
        await tracker.adjust("acme", "-0.0004", reason="third", ref="c1", allow_beyond=True)
        await tracker.adjust("acme", "0.0006", reason="fourth", ref="c1")
        assert await summed(tracker) == 200_000


async def test_a_call_is_adjusted_only_for_its_own_tenant_and_only_if_the_ledger_has_it(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await use(tracker, 300)
        credit = await tracker.adjust("acme", "-0.0001", reason="r", ref="c1")
        with pytest.raises(AdjustmentError, match="is not one of the tenant 'other'"):
            await tracker.adjust("other", "-0.0001", reason="r", ref="c1")
        with pytest.raises(
            UnknownCallError, match="not settled yet, the id is wrong, or the record was pruned"
        ) as told:
            await tracker.adjust("acme", "-0.0001", reason="r", ref="c2")
        assert told.value.call_id == "c2"
        with pytest.raises(AdjustmentError, match="is itself an adjustment: name the call it corrects"):
            await tracker.adjust("acme", "0.0001", reason="r", ref=credit.call_id)
        assert len(await records_of(tracker)) == 2


@pytest.mark.parametrize("reason", ["", "  ", "x" * (MAX_REASON_CHARS + 1), "a\0b", "\ud800", None, 7, b"r"])
async def test_a_reason_is_text_of_bounded_length(reason: Any, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(AdjustmentError, match="reason"):
            await tracker.adjust("acme", 1, reason=reason)
        assert await records_of(tracker) == []


@pytest.mark.parametrize("name", ["", "x" * 257, "a\0b", "\ud800", 7])
async def test_ids_are_text_of_bounded_length(name: Any, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        for names in ({"ref": name}, {"adjustment_id": name}):
            with pytest.raises(AdjustmentError):
                await tracker.adjust("acme", 1, reason="r", **names)
        assert await records_of(tracker) == []


async def test_what_a_counter_cannot_hold_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.adjust("acme", "9000000", reason="all of it")
        with pytest.raises(AdjustmentError, match="cannot hold this adjustment"):
            await tracker.adjust("acme", "9000000", reason="and again")
        assert await summed(tracker) == 9_000_000 * 10**9


# Once -----------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_repeated_adjustment_changes_nothing_and_says_so(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        await use(tracker, 300)
        options: list[dict[str, Any]] = [
            {"ref": "c1"},
            {"ref": "c1", "adjustment_id": "mine"},
            {"adjustment_id": "mine"},
        ]
        for count, option in enumerate(options, 2):
            first = await tracker.write_adjustment("acme", "-0.0001", reason="r", **option)
            again = await tracker.write_adjustment("acme", "-0.0001", reason="r", **option)
            assert (first.repeated, again.repeated) == (False, True)
            assert first[:2] == again[:2]
            assert len(await records_of(tracker)) == count
            with pytest.raises(AdjustmentError, match=r"was made before, of -0\.0001 USD"):
                await tracker.adjust("acme", "-0.00005", reason="r", **{"adjustment_id": first.adjustment_id, **option})
        assert await summed(tracker) == 0
        # Another reason, or no id at all, is another adjustment.
        await tracker.adjust("acme", "0.0001", reason="r2", ref="c1")
        await tracker.adjust("acme", "0.0001", reason="r3", ref="c1")
        await tracker.adjust("acme", "0.0001", reason="r")
        await tracker.adjust("acme", "0.0001", reason="r")
        assert await summed(tracker) == 400_000


async def test_an_adjustments_id_never_takes_another_tenants_or_a_calls_place(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.adjust("a:b", "0.0001", reason="r", adjustment_id="c")
        with pytest.raises(AdjustmentError, match="'b:c' is taken"):
            await tracker.adjust("a", "0.0001", reason="r", adjustment_id="b:c")
        await use(tracker, 100, "c1")
        await use(tracker, 7, "c1~adjustment~1")
        with pytest.raises(AdjustmentError, match=r"0\.0001 are left"):
            await tracker.adjust("acme", "-0.000107", reason="r", ref="c1")
        made = await tracker.adjust("acme", "-0.0001", reason="r", ref="c1")
        assert made.call_id == "c1~adjustment~2"
        assert await summed(tracker) == 100_000 + 7_000


@both_stores
async def test_of_writers_at_the_same_time_no_two_credit_the_same_cent(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        await use(tracker, 300)
        other = tracker if kind == "memory" else make_tracker(f"sqlite:///{tmp_path / 'ledger.db'}")
        await other.ready()
        try:
            results = await asyncio.gather(
                *(
                    each.adjust("acme", "-0.0001", reason=f"r{n}", ref="c1")
                    for n in range(3)
                    for each in (tracker, other)
                ),
                *(each.adjust("acme", "-0.00005", reason="late", ref="c1") for each in (tracker, other)),
                return_exceptions=True,
            )
        finally:
            if other is not tracker:
                await other.stop()
        assert all(isinstance(result, UsageRecord | AdjustmentError) for result in results)
        made = [record for record in await records_of(tracker) if record.kind == "adjustment"]
        assert len({record.reason for record in made}) == len(made)
        assert 0 <= await summed(tracker) < 100_000


@pytest.mark.parametrize("fault", ["fail", "after"])
@pytest.mark.parametrize("option", [{"ref": "c1"}, {}], ids=["of a call", "of a tenant"])
async def test_where_the_ledger_does_not_answer_the_error_names_the_id_to_repeat_it_with(
    fault: str, option: dict[str, Any], tmp_path: Path
) -> None:
    store = faulty("sqlite", tmp_path, Clock())
    async with make_tracker(store) as tracker:
        await use(tracker, 300)
        store.faults["settle"] = [fault]
        with pytest.raises(StoreError, match="repeat it with the id '") as told:
            await tracker.adjust("acme", "-0.0001", reason="r", **option)
        adjustment_id = str(told.value).partition("with the id '")[2].partition("'")[0]
        again = await tracker.write_adjustment("acme", "-0.0001", reason="r", adjustment_id=adjustment_id, **option)
        assert again.repeated is (fault == "after")
        assert await summed(tracker) == 200_000


# Coins ----------------------------------------------------------------------------------------------------------------

RATES = ("1", "0.003", "1000", "1000000", "1234567.89", "7e-4")

steps = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "tenant", "ref", "beyond"]),
        st.integers(-(10**7), 10**7).filter(bool),
        st.sampled_from(RATES),
        st.sampled_from(["acme", "other", "third"]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=30,
)
SUBSCRIPTIONS = {"acme": "one", "other": "one", "third": "three"}


async def play(url: str, moves: list[tuple[str, int, str, str, int]]) -> None:
    """Charges, credits and rate changes. After each, what was billed to a subscription is the highest that its exact
    net has ever been, in whole coins: nothing is billed twice, and a credit is used up before anything is billed again.
    """
    net, billed = dict.fromkeys(("one", "three"), 0), dict.fromkeys(("one", "three"), 0)
    calls: dict[str, str] = {}
    highest = dict(net)
    async with make_tracker(url, subscription_of=SUBSCRIPTIONS, budgets=()) as tracker:
        for number, (move, nano_usd, rate, tenant, place) in enumerate(moves):
            os.environ[RATE_VARIABLE] = rate
            mine = [call for call, payer in calls.items() if payer == tenant]
            try:
                if move == "call":
                    record = await use(tracker, abs(nano_usd) // 1000, f"c{number}", tenant)
                    calls[record.call_id] = tenant
                elif move == "tenant" or not mine:
                    usd = Decimal(nano_usd).scaleb(-9)
                    record = await tracker.adjust(tenant, usd, reason="r", adjustment_id=str(number))
                else:
                    record = await tracker.adjust(
                        tenant,
                        Decimal(nano_usd).scaleb(-9),
                        reason=f"r{number}",
                        ref=mine[place % len(mine)],
                        allow_beyond=move == "beyond",
                    )
            except AdjustmentError:
                assert move == "ref"
                assert nano_usd < 0
                continue
            assert record.askii_coins >= 0
            coins, pico = split_coins(record.cost_nano_usd, parse_rate(repr(record.exchange_rate)))
            subscription = record.subscription
            net[subscription] += coins * PICO + pico
            highest[subscription] = max(highest[subscription], net[subscription])
            billed[subscription] += record.askii_coins
            assert billed[subscription] == highest[subscription] // PICO
        await summed(tracker)
        for call in calls:
            own = [r for r in await records_of(tracker) if call in (r.call_id, r.reference)]
            if not any(move[0] == "beyond" for move in moves):
                assert sum(record.cost_nano_usd for record in own) >= 0


@settings(max_examples=150, deadline=None)
@given(steps)
def test_what_is_billed_is_the_highest_the_exact_net_has_ever_been(moves: list[tuple[str, int, str, str, int]]) -> None:
    with patch.dict(os.environ):
        asyncio.run(play("memory://", moves))


@settings(max_examples=15, deadline=None)
@given(steps)
def test_what_is_billed_from_a_file_is_the_highest_the_exact_net_has_ever_been(
    moves: list[tuple[str, int, str, str, int]],
) -> None:
    with patch.dict(os.environ), tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(f"sqlite:///{folder}/ledger.db", moves))


async def test_a_credit_of_a_whole_call_takes_back_all_its_coins_at_whatever_rate_there_is_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened("memory", tmp_path) as tracker:
        monkeypatch.setenv(RATE_VARIABLE, "1000000")
        assert (await use(tracker, 7)).askii_coins == 7
        monkeypatch.setenv(RATE_VARIABLE, "3")
        credit = await tracker.adjust("acme", "-0.000007", reason="r", ref="c1")
        assert (credit.askii_coins, credit.exchange_rate) == (0, 1_000_000.0)
        monkeypatch.setenv(RATE_VARIABLE, "1000000")
        # The 7 coins that were billed are used up first.
        assert (await use(tracker, 10, "c2")).askii_coins == 3
