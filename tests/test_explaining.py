"""`tracker.explain` says what `admit` would do, and why, and holds nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.budgets import Budget
from askii_middleware.calls import Call, CallSpec
from askii_middleware.errors import BudgetExceededError, UnknownModelError
from askii_middleware.explanations import Explanation
from askii_middleware.identity import Identity
from askii_middleware.modes import Modes
from askii_middleware.pricing import ModelPrice

from .support.service import PRICES, both_stores, make_tracker, opened

WHO = Identity(tenant="acme", user="ann", team="red", key="k1", end_user="eve", tags=("x", "y"))


# What it says ---------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_call_that_fits_is_explained_with_every_line_it_meets(kind: str, tmp_path: Path) -> None:
    budgets = [
        Budget(scope="global", limit_coins="2e6", period="monthly", zone="Asia/Tokyo", soft=True),
        Budget(scope="tenant=*", limit_usd=1),
        Budget(scope="tenant=*,model=big", limit_usd="0.01", period="weekly"),
        Budget(scope="team=red", limit_usd=5),
        Budget(scope="user=bob", limit_usd=0),
    ]
    async with opened(kind, tmp_path, budgets=budgets) as tracker:
        await tracker.budget_enforcer.set_daily_budget("acme", "0.5")
        await tracker.record_usage(WHO, "big", input_tokens=3000)
        told = await tracker.explain(WHO, "big", input_tokens=1000, output_tokens=500)
        assert (told.mode, told.mode_why, told.verdict) == ("enforce", "enforcement is enforce", "whole")
        assert (told.winner, told.called, told.hold_usd, told.hold_coins) == (
            "big",
            "big",
            Decimal("0.002"),
            Decimal(2000),
        )
        assert told.why == "big: its hold of 0.002 USD fits"
        (candidate,) = told.candidates
        assert (candidate.input_tokens, candidate.output_tokens, candidate.fits, candidate.wins) == (
            *(1000, 500),
            *(True, True),
        )
        assert {
            (line.scope, line.period, line.zone, line.limit_usd, line.spent_usd, line.soft, line.source, line.status)
            for line in candidate.budgets
        } == {
            ("global", "monthly", "Asia/Tokyo", Decimal(2), Decimal("0.003"), True, "config", "ok"),
            ("tenant=acme", "daily", "UTC", Decimal("0.5"), Decimal("0.003"), False, "store", "ok"),
            ("tenant=acme,model=big", "weekly", "UTC", Decimal("0.01"), Decimal("0.003"), False, "config", "ok"),
            ("team=red", "daily", "UTC", Decimal(5), Decimal("0.003"), False, "config", "ok"),
        }
        assert (await tracker.store.totals()).held_nano_usd == 0


async def test_a_refusal_names_the_deciding_line_and_why_each_candidate_fell(tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd="0.001"), Budget(scope="model=small", limit_usd=0, period="total")]
    async with opened("memory", tmp_path, budgets=budgets, fallbacks={"big": ["small"]}) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=900)
        told = await tracker.explain("acme", "big", input_tokens=200, output_tokens=0)
        assert (told.verdict, told.winner, told.called, told.hold_usd) == ("refused", None, None, Decimal(0))
        assert [(c.model, c.verdict, c.reason, c.deciding.scope if c.deciding else None) for c in told.candidates] == [
            ("big", "refused", "spent", "tenant=acme"),
            ("small", "refused", "spent", "model=small"),
        ]
        assert told.why == told.candidates[0].why
        assert "the daily budget of tenant=acme is spent: 0.0009 USD spent" in told.why
        assert told.deciding is not None
        assert (told.deciding.scope, told.deciding.remaining_usd) == ("tenant=acme", Decimal("0.0001"))


async def test_a_downgrade_tells_why_the_requested_model_is_not_taken(tmp_path: Path) -> None:
    options: dict[str, Any] = {"fallbacks": {"big": ["small", "free"]}, "downgrade_at": 0.5}
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=*", limit_usd="0.01")], **options) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=6000)
        told = await tracker.explain("acme", "big", input_tokens=100, output_tokens=0)
        assert (told.winner, told.called, told.verdict) == ("small", "small", "whole")
        assert [(c.model, c.fits, c.wins) for c in told.candidates] == [
            ("big", True, False),
            ("small", True, True),
            ("free", True, False),
        ]
        assert told.candidates[0].why.endswith(", but small is taken: above downgrade_at fallbacks come first")
        assert told.candidates[2].why.endswith(", but small is taken: it comes first")


async def test_a_clamped_and_a_metered_call_tell_how_many_tokens_are_paid_for(tmp_path: Path) -> None:
    long = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2, max_output_tokens=1_000_000)
    budgets = [Budget(scope="tenant=*", limit_usd="0.001")]
    async with opened("memory", tmp_path, budgets=budgets, prices={**PRICES, "long": long}) as tracker:
        told = await tracker.explain("acme", "big", input_tokens=100)
        # 900 thousandths of a thousandth are left for output at 2,000 nano-USD a token.
        assert (told.verdict, told.candidates[0].tokens, told.hold_usd) == ("clamped", 450, Decimal("0.001"))
        assert told.why == "big: its hold of 0.001 USD fits with at most 450 tokens of output"
        block = await tracker.explain("acme", "big", input_tokens=100, api="code")
        assert (block.verdict, block.reason) == ("refused", "spent")
        stream = await tracker.explain("acme", "long", input_tokens=100, stream=True)
        (candidate,) = stream.candidates
        assert (stream.verdict, candidate.output_tokens) == ("metered", 1_000_000)
        assert candidate.tokens is not None
        assert 64 <= candidate.tokens <= 450
        assert stream.why.endswith(f"pays for {candidate.tokens} tokens of output, and grows with the stream")


@pytest.mark.parametrize(
    ("options", "mode", "why", "held"),
    [
        ({"enforcement": "shadow"}, "shadow", "enforcement is shadow", "0.0012"),
        ({"enforcement": "off"}, "off", "enforcement is off", "0"),
        ({"rollout": 0.0}, "shadow", "the tenant is outside the rollout of 0", "0.0012"),
    ],
)
async def test_where_budgets_are_not_enforced_it_tells_what_they_say_and_what_is_called(
    options: dict[str, Any], mode: str, why: str, held: str, tmp_path: Path
) -> None:
    budgets = [Budget(scope="tenant=*", limit_usd="0.0001")]
    async with opened("memory", tmp_path, budgets=budgets, **options) as tracker:
        told = await tracker.explain("acme", "big", input_tokens=200, output_tokens=500)
        assert (told.mode, told.mode_why, told.verdict, told.called) == (mode, why, "refused", "big")
        assert told.hold_usd == Decimal(held)


def test_a_rollout_tells_on_which_side_a_tenant_is() -> None:
    modes = Modes("enforce", 0.5)
    assert {modes.why(f"t{n}") for n in range(64)} == {
        "the tenant is inside the rollout of 0.5",
        "the tenant is outside the rollout of 0.5",
    }


async def test_an_explanation_is_json(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path, fallbacks={"big": ["small"]}) as tracker:
        table = json.loads(json.dumps((await tracker.explain("acme", "big", input_tokens=10)).table()))
        assert table["candidates"][0]["budgets"][0] == {
            "scope": "tenant=acme",
            "period": "daily",
            "limit_usd": "1",
            "spent_usd": "0",
            "held_usd": "0",
            "remaining_usd": "1",
            "limit_coins": "1000000",
            "spent_coins": "0",
            "held_coins": "0",
            "remaining_coins": "1000000",
            "resets_at": "2026-01-02T00:00:00Z",
            "source": "config",
            "zone": "UTC",
            "soft": False,
            "status": "ok",
        }
        assert (table["hold_usd"], table["deciding"], table["candidates"][1]["wins"]) == ("0.00201", None, False)


async def test_what_cannot_be_admitted_at_all_cannot_be_explained(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(UnknownModelError):
            await tracker.explain("acme", "nobody-knows")
        with pytest.raises(ValueError, match="input_tokens"):
            await tracker.explain("acme", "big", input_tokens=-1)
        with pytest.raises(ValueError, match="model"):
            await tracker.explain("acme", "")


async def test_a_prompt_that_can_still_be_counted_can_be_counted_again_by_the_admission(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        spec = CallSpec(model="big", input_tokens=10, count_input=lambda: ("o200k", 5))
        await tracker.explain(WHO, spec)
        assert (spec.count_input is not None, spec.counted_input) == (True, None)


# It never differs from an admission -----------------------------------------------------------------------------------

SCOPES = [
    *("global", "tenant=*", "tenant=acme", "user=*", "team=red", "end_user=*", "tag=*", "tag=y", "key=k1"),
    *("model=big", "model=*", "tenant=*,model=small", "tenant=acme,model=*", "team=red,tag=x", "deployment=eu"),
]
BUDGETS = st.lists(
    st.builds(
        lambda scope, micro, period, soft, coins, most: Budget(
            scope=scope,
            limit_usd=None if coins or micro is None else Decimal(micro).scaleb(-6),
            limit_coins=micro if coins else None,
            period=period,
            soft=soft,
            max_values=most if "*" in scope else None,
        ),
        st.sampled_from(SCOPES),
        st.one_of(st.none(), st.integers(0, 8000)),
        st.sampled_from(["daily", "total", "1h"]),
        st.booleans(),
        st.booleans(),
        st.one_of(st.none(), st.integers(1, 2)),
    ),
    max_size=6,
    unique_by=lambda budget: budget.key,
)
SPECS = st.builds(
    lambda model, family, entering, leaving, choices, stream, deployment: CallSpec(
        model=model,
        family=family,
        input_tokens=entering,
        input_estimate=entering // 4,
        output_tokens=leaving,
        choices=choices,
        stream=stream,
        deployment=deployment,
        shows_output=(lambda name: name != "small") if stream else None,
    ),
    st.sampled_from(["big", "big", "big", "small", "free", "unknown"]),
    st.sampled_from(["code", "openai"]),
    st.integers(0, 1500),
    st.one_of(st.none(), st.integers(0, 1500)),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from([None, "eu"]),
)
TRACKERS = st.fixed_dictionaries(
    {
        "budgets": BUDGETS,
        "downgrade_at": st.sampled_from([1.0, 0.0, 0.2]),
        "enforcement": st.sampled_from(["enforce", "enforce", "enforce", "shadow", "off"]),
        "rollout": st.sampled_from([1.0, 1.0, 0.0]),
        "hold": st.sampled_from([None, "bound", "estimate"]),
        "clamp_output": st.sampled_from(["unset", "always", "never"]),
        "fallbacks": st.sampled_from([{"big": ["small", "free"]}, {"*": ["small"]}, {}]),
        "min_output_tokens": st.just(64),
    }
)


@given(
    options=TRACKERS,
    specs=st.lists(SPECS, min_size=1, max_size=4),
    before=st.lists(st.tuples(st.sampled_from(["acme", "other"]), st.integers(0, 1200)), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_an_admission_does_what_the_explanation_said(
    options: dict[str, Any], specs: list[CallSpec], before: list[tuple[str, int]]
) -> None:
    async def work() -> None:
        async with make_tracker("memory://", alert_channels=[], **options) as tracker:
            for tenant, tokens in before:
                await tracker.record_usage(Identity(tenant=tenant, user="ann", team="red"), "big", input_tokens=tokens)
            for spec in specs:  # each one leaves its hold to the next
                held = (await tracker.store.totals()).held_nano_usd
                told: Explanation | None = None
                with suppress(UnknownModelError):
                    told = await tracker.explain(WHO, spec)
                assert (await tracker.store.totals()).held_nano_usd == held
                try:
                    call = await tracker.admit(WHO, spec)
                except UnknownModelError:
                    assert told is None
                except BudgetExceededError as error:
                    assert told is not None
                    refused_alike(told, error)
                else:
                    assert told is not None
                    admitted_alike(told, call)

    asyncio.run(work())


def refused_alike(told: Explanation, error: BudgetExceededError) -> None:
    assert (told.mode, told.verdict, told.called) == ("enforce", "refused", None)
    assert told.deciding is not None
    assert (told.why, told.reason) == (error.message, error.reason)
    assert (told.deciding.scope, told.deciding.resets_at) == (error.scope, error.resets_at)


def admitted_alike(told: Explanation, call: Call) -> None:
    assert told.called == call.model
    if told.mode == "off":
        assert told.hold_usd == 0
        return
    assert told.hold_usd == Decimal(call.held_nano_usd).scaleb(-9)
    if told.mode == "shadow":
        said = None if call.shadow is None else call.shadow.partition(":")[0]
        assert (said == "denied") == (told.verdict == "refused")
        assert (said == "fallback") == (told.winner not in (None, told.model))
        return
    (winner,) = [candidate for candidate in told.candidates if candidate.wins]
    assert (winner.model, winner.verdict == "clamped") == (call.model, call.clamped)
    assert winner.tokens in (None, call.covered_tokens)
    assert [(line.scope, line.period, line.spent_usd, line.held_usd) for line in winner.budgets] == [
        (s.scope, s.period, Decimal(s.spent_nano_usd).scaleb(-9), Decimal(s.held_nano_usd).scaleb(-9))
        for s in call.states
    ]
