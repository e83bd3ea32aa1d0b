"""`track_tokens` by itself: a hold on entry, one exact charge on exit, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message, RawMessageDeltaEvent, RawMessageStartEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from askii_middleware.budgets import Budget, Scope
from askii_middleware.errors import BudgetExceededError, UnknownModelError
from askii_middleware.identity import Identity
from askii_middleware.pricing import ModelPrice
from askii_middleware.stores import open_store
from askii_middleware.tracker import CostTracker

from .support.service import (
    PRICES,
    Clock,
    FaultyStore,
    amounts,
    assert_balanced,
    both_stores,
    cancelled_at,
    faulty,
    make_tracker,
    opened,
    records_of,
    soon,
    url_of,
)

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "big",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
}


def chunk(text: str | None = None, usage: dict[str, int] | None = None, finish: str | None = None) -> dict[str, Any]:
    choices = [] if usage else [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "big",
        "choices": choices,
        "usage": usage,
    }


# Holding and settling ------------------------------------------------------------------------------------------------


@both_stores
async def test_a_block_holds_its_worst_case_and_charges_what_was_used(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=800, max_output_tokens=50) as usage:
            assert usage.model == "big"
            assert usage.max_output_tokens == 50
            assert await amounts(tracker) == (0, 800_000 + 100_000)
            usage.record(ANSWER)
        assert await amounts(tracker) == (100_000 + 40_000, 0)
        (record,) = await records_of(tracker)
        assert (record.tenant, record.api, record.served_model) == ("acme", "code", "big")
        assert (record.usage.input_tokens, record.usage.output_tokens) == (100, 20)
        assert (record.cost_nano_usd, record.askii_coins) == (140_000, 140)
        assert (record.outcome, record.estimated, record.provider_request_id) == ("completed", False, "chatcmpl-1")
        await assert_balanced(tracker)


@both_stores
async def test_arguments_go_by_keyword_too_and_identity_fields_reach_the_record(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        block = tracker.track_tokens(
            tenant_id="acme",
            model="big",
            expected_input_tokens=1,
            user="u1",
            team="t1",
            tags=["batch"],
            metadata={"job": 7},
        )
        async with block as usage:
            usage["input_tokens"] = 1
        (record,) = await records_of(tracker)
        assert (record.user, record.team, record.tags, record.metadata) == ("u1", "t1", ("batch",), {"job": 7})


async def test_an_identity_may_be_given_whole_and_with_further_fields(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        who = Identity(tenant="acme", user="u1")
        async with tracker.track_tokens(who, "big", expected_input_tokens=1, team="t2") as usage:
            usage["input_tokens"] = 1
        (record,) = await records_of(tracker)
        assert (record.tenant, record.user, record.team) == ("acme", "u1", "t2")


async def test_without_an_expected_prompt_the_context_window_is_held_and_without_a_limit_the_models(
    tmp_path: Path,
) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big") as usage:
            assert await amounts(tracker) == (0, 100_000 * 1000 + 1000 * 2000)
            usage["output_tokens"] = 1
        assert await amounts(tracker) == (2000, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expected_input_tokens": -1}, "expected_input_tokens takes a whole number"),
        ({"expected_input_tokens": 1.5}, "expected_input_tokens takes a whole number"),
        ({"max_output_tokens": True}, "max_output_tokens takes a whole number"),
        ({"max_output_tokens": 10**30}, "max_output_tokens takes a whole number"),
        ({"model": ""}, "model takes a name"),
        ({"model": "x" * 257}, "model takes a name"),
        ({"model": "\ud800"}, "model takes a name"),
        ({"metadata": {"x": object()}}, "metadata"),
        ({"metadata": {"x": "y" * 20_000}}, "metadata takes at most"),
        ({"metadata": {"x": "\ud800"}}, "metadata"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_held(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match=message):
            tracker.track_tokens("acme", **{"model": "big", **options})


async def test_a_model_and_a_tenant_are_needed_and_unknown_arguments_are_refused(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(TypeError, match="needs a model"):
            tracker.track_tokens("acme")
        with pytest.raises(TypeError, match="'colour'"):
            tracker.track_tokens("acme", "big", colour="red")
        with pytest.raises(ValueError, match="needs a tenant_id"):
            await tracker.track_tokens(model="big").__aenter__()
        with pytest.raises(UnknownModelError, match="nobody-knows"):
            await tracker.track_tokens("acme", "nobody-knows").__aenter__()
        await assert_balanced(tracker)


@pytest.mark.parametrize(
    "who",
    [{"tenant_id": "\ud800"}, {"tenant_id": ""}, {"user": "\ud800"}, {"team": 5}, {"tags": ["\ud800"]}, {"tags": [""]}],
)
async def test_an_identity_the_ledger_could_not_write_is_refused_before_anything_is_held(
    who: dict[str, Any], tmp_path: Path
) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        with pytest.raises(ValueError, match=r"tenant|user|team|tags"):
            await tracker.track_tokens(**{"tenant_id": "acme", "model": "big", **who}).__aenter__()
        with pytest.raises(TypeError, match="tags"):
            tracker.track_tokens("acme", "big", tags="batch")
        await assert_balanced(tracker)


@pytest.mark.parametrize(
    "odd", [{"model": "\ud800"}, {"id": "\ud800"}, {"service_tier": "\ud800"}, {"model": "a\0b"}, {"model": "x" * 5000}]
)
@both_stores
async def test_what_a_provider_calls_itself_loses_no_charge(kind: str, odd: dict[str, str], tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage.record({**ANSWER, **odd})
        assert await amounts(tracker) == (140_000, 0)
        await assert_balanced(tracker)


async def test_a_block_is_entered_once(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        block = tracker.track_tokens("acme", "big", expected_input_tokens=1)
        async with block as usage:
            usage["input_tokens"] = 1
        with pytest.raises(RuntimeError, match="entered once"):
            await block.__aenter__()


# Refusal and fallback -------------------------------------------------------------------------------------------------


@both_stores
async def test_a_refusal_says_everything_in_coins_and_usd(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.001")]) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=400, max_output_tokens=0) as usage:
            usage["input_tokens"] = 400
        with pytest.raises(BudgetExceededError) as refusal:
            await tracker.track_tokens("acme", "big", expected_input_tokens=601, max_output_tokens=0).__aenter__()
        error = refusal.value
        assert (error.current_cost, error.max_budget) == (400.0, 1000.0)
        assert (error.scope, error.reason) == ("tenant=acme", "spent")
        assert error.resets_at == datetime(2026, 1, 2, tzinfo=UTC)
        assert error.message == str(error)
        assert "0.0004 USD" in error.message
        assert "0.001 USD" in error.message
        assert "400 of 1000 Askii Coins" in error.message
        await assert_balanced(tracker)


@both_stores
async def test_money_that_is_only_held_is_said_to_be_held(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.001")]) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=900, max_output_tokens=0) as usage:
            with pytest.raises(BudgetExceededError) as refusal:
                await tracker.track_tokens("acme", "big", expected_input_tokens=101, max_output_tokens=0).__aenter__()
            assert refusal.value.reason == "held"
            usage["input_tokens"] = 0
        async with tracker.track_tokens("acme", "big", expected_input_tokens=101, max_output_tokens=0) as usage:
            usage["input_tokens"] = 101
        assert await amounts(tracker) == (101_000, 0)


@both_stores
async def test_when_money_is_short_the_fallback_is_the_model_to_call(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "budgets": [Budget(scope="tenant=acme", limit_usd="0.001")],
        "fallbacks": {"big": ["small"]},
    }
    async with opened(kind, tmp_path, **options) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=2000, max_output_tokens=0) as usage:
            assert (usage.model, usage.requested_model, usage.fallback_reason) == ("small", "big", "budget")
            assert await amounts(tracker) == (0, 200_000)
            usage["input_tokens"] = 2000
        (record,) = await records_of(tracker)
        assert (record.requested_model, record.served_model, record.fallback_reason) == ("big", "small", "budget")
        assert record.cost_nano_usd == 200_000


@both_stores
async def test_a_limit_of_zero_refuses_free_models_too_and_a_used_up_one_does_not(kind: str, tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=none", limit_usd=0), Budget(scope="tenant=acme", limit_usd="0.001")]
    async with opened(kind, tmp_path, budgets=budgets) as tracker:
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("none", "free", expected_input_tokens=1).__aenter__()
        await tracker.record_usage("acme", "big", input_tokens=1000)
        async with tracker.track_tokens("acme", "free", expected_input_tokens=10) as usage:
            usage["input_tokens"] = 10
        assert await amounts(tracker) == (1_000_000, 0)


async def test_a_hold_beyond_what_counters_hold_fits_no_budget(tmp_path: Path) -> None:
    dear = {"dear": ModelPrice(input_usd_per_mtok=1_000_000, output_usd_per_mtok=0, allow_high=True)}
    async with opened("memory", tmp_path, prices=dear) as tracker:
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("acme", "dear", expected_input_tokens=10**9).__aenter__()


# Ends ----------------------------------------------------------------------------------------------------------------


@both_stores
async def test_an_exception_without_counts_releases_and_with_counts_charges(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        with pytest.raises(KeyError):
            async with tracker.track_tokens("acme", "big", expected_input_tokens=800):
                raise KeyError("provider down")
        assert await amounts(tracker) == (0, 0)
        with pytest.raises(ExceptionGroup):  # noqa: PT012 - the block is the point
            async with tracker.track_tokens("acme", "big", expected_input_tokens=800) as usage:
                usage.record(ANSWER)
                raise ExceptionGroup("two", [KeyError("a"), ValueError("b")])
        assert await amounts(tracker) == (140_000, 0)
        await assert_balanced(tracker)
        (record,) = await records_of(tracker)
        assert record.outcome == "completed"


@both_stores
async def test_a_task_groups_failure_ends_its_blocks(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def call(*, fails: bool) -> None:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=0):
                await asyncio.sleep(0 if fails else 10)
                raise ValueError("provider down")

        with pytest.raises(ExceptionGroup):  # noqa: PT012 - the block is the point
            async with asyncio.TaskGroup() as group:
                group.create_task(call(fails=True))
                group.create_task(call(fails=False))
        assert await amounts(tracker) == (0, 0)
        assert await records_of(tracker) == []


async def test_a_stream_cut_by_a_cancellation_costs_the_prompt_and_what_was_seen(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        entered = asyncio.Event()

        async def call() -> None:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=80) as usage:
                for _ in range(5):
                    usage.record(chunk("word"))
                entered.set()
                await asyncio.sleep(100)

        task = asyncio.create_task(call())
        await soon(entered.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (record,) = await records_of(tracker)
        assert (record.usage.input_tokens, record.usage.output_tokens) == (80, 5)
        assert (record.outcome, record.estimated) == ("client_disconnected", True)
        assert await amounts(tracker) == (80_000 + 10_000, 0)


async def test_a_stream_that_broke_costs_the_bound_and_what_was_seen(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ConnectionError):  # noqa: PT012 - the block is the point
            async with tracker.track_tokens("acme", "big", expected_input_tokens=80) as usage:
                usage.record(chunk("word"))
                raise ConnectionError
        (record,) = await records_of(tracker)
        assert (record.usage.input_tokens, record.usage.output_tokens) == (80, 1)
        assert (record.outcome, record.estimated) == ("upstream_error", True)


async def test_an_error_of_the_provider_costs_nothing(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=80) as usage:
            usage.record({"error": {"message": "overloaded", "type": "server_error"}})
        assert await amounts(tracker) == (0, 0)
        assert await records_of(tracker) == []
        assert len(tracker.deferrals) == 0


@pytest.mark.parametrize("seen", ["nothing", "a piece"])
async def test_an_exception_does_not_release_what_the_provider_goes_on_with(seen: str, tmp_path: Path) -> None:
    queued = {"id": "resp_1", "object": "response", "model": "big", "status": "queued", "background": True}
    async with opened("memory", tmp_path) as tracker:
        block = tracker.track_tokens("acme", "big", expected_input_tokens=80, max_output_tokens=10)
        usage = await block.__aenter__()
        usage.record({"type": "response.created", "response": queued})
        if seen == "a piece":
            usage.record({"type": "response.output_text.delta", "delta": "hello"})
        await block.__aexit__(LookupError, LookupError(), None)
        assert await amounts(tracker) == (0, 100_000)
        await tracker.deferrals.finish_all(5.0)
        assert await amounts(tracker) == (100_000, 0)
        (record,) = await records_of(tracker)
        assert (record.outcome, record.estimated) == ("deferred_estimate", True)


@pytest.mark.parametrize("turns", [0, 1])
@both_stores
async def test_a_cancellation_at_any_await_leaves_no_hold_and_at_most_one_charge(
    kind: str, turns: int, tmp_path: Path
) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock, turns=turns)
    async with make_tracker(store, clock=clock) as tracker:

        async def call() -> None:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=10) as usage:
                await asyncio.sleep(0)
                usage.record(ANSWER)
                await asyncio.sleep(0)

        expected = 0
        for step in range(40):
            still = await cancelled_at(step, call())
            await tracker.flush(1.0)
            spent, held = await amounts(tracker)
            assert held == 0, step
            assert spent in (expected, expected + 140_000), step
            expected = spent
            if not still:
                break
        else:
            pytest.fail("the call never ended by itself")
        assert expected >= 140_000
        await assert_balanced(tracker)


ENDINGS = ("recorded", "by hand", "failed", "failed after counting", "cancelled", "nothing")


def break_off(ending: str) -> None:
    if ending.startswith("failed"):
        raise ConnectionError
    if ending == "cancelled":
        raise asyncio.CancelledError


@settings(max_examples=30, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(ENDINGS), st.integers(0, 4)), max_size=12))
def test_any_mixture_of_concurrent_endings_charges_the_exact_sum(plan: list[tuple[int, str, int]]) -> None:
    async def call(tracker: CostTracker, tokens: int, ending: str, turns: int) -> int:
        """Returns what it must cost."""
        try:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=200, max_output_tokens=0) as usage:
                for _ in range(turns):
                    await asyncio.sleep(0)
                if ending == "recorded":
                    usage.record({"prompt_tokens": tokens, "completion_tokens": 0})
                elif ending in ("by hand", "failed after counting"):
                    usage["input_tokens"] = tokens
                break_off(ending)
        except (ConnectionError, asyncio.CancelledError):
            pass
        return {"failed": 0, "cancelled": 0, "nothing": 200_000}.get(ending, tokens * 1000)

    async def run() -> None:
        clock = Clock()
        store = FaultyStore(open_store("memory://", clock=clock), turns=1)  # type: ignore[abstract]
        async with make_tracker(store, clock=clock) as tracker:
            costs = await asyncio.gather(*(call(tracker, *each) for each in plan))
            await tracker.deferrals.finish_all(5.0)
            assert await amounts(tracker) == (sum(costs), 0)
            charged = [ending for _, ending, _ in plan if ending not in ("failed", "cancelled")]
            assert len(await records_of(tracker)) == len(charged)
            await assert_balanced(tracker)

    asyncio.run(run())


# Counts --------------------------------------------------------------------------------------------------------------


async def test_counts_by_hand_are_charged_at_the_admitted_model(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage["input_tokens"] = 100
            usage["output_tokens"] += 3
            usage["output_tokens"] += 4
            usage["cached_input_tokens"] = 40
            assert dict(usage) == {
                "input_tokens": 100,
                "output_tokens": 7,
                "cached_input_tokens": 40,
                "cache_write_tokens": 0,
                "reasoning_tokens": 0,
                "audio_input_tokens": 0,
                "audio_output_tokens": 0,
            }
        (record,) = await records_of(tracker)
        assert (record.served_model, record.cost_nano_usd) == ("big", 100_000 + 14_000)
        assert record.usage.cached_input_tokens == 40


async def test_counts_by_hand_add_to_what_was_recorded_and_later_responses_add_to_them(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage.record(ANSWER)
            usage["output_tokens"] += 3
            assert usage["output_tokens"] == 23
            usage.record({**ANSWER, "id": "chatcmpl-2"})
            assert (usage["input_tokens"], usage["output_tokens"]) == (200, 43)
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == 200_000 + 86_000


async def test_a_model_set_by_hand_is_charged_and_its_difference_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            assert usage["model"] == "big"
            usage["model"] = "small"
            usage["input_tokens"] = 1000
        (record,) = await records_of(tracker)
        assert (record.served_model, record.cost_nano_usd) == ("small", 100_000)
        assert "admitted for big but answered by small" in caplog.text
        assert 'askii_flagged_calls_total{flag="model_mismatch"} 1.0' in tracker.metrics.render("")[0].decode()


async def test_the_model_that_answered_is_charged_and_its_difference_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prices = {**PRICES, "gpt-4o": PRICES["big"]}
    async with opened("memory", tmp_path, prices=prices) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage.record({**ANSWER, "model": "gpt-4o-mini"})
        assert "admitted for big but answered by gpt-4o-mini" in caplog.text
        caplog.clear()
        async with tracker.track_tokens("acme", "gpt-4o", expected_input_tokens=10) as usage:
            usage.record({**ANSWER, "model": "gpt-4o-2024-11-20"})
        assert "answered by" not in caplog.text
        assert [record.served_model for record in await records_of(tracker)] == ["gpt-4o-mini", "gpt-4o"]


@pytest.mark.parametrize("count", [-1, 1.0, 2.5, True, "7", 10**30, float("inf")])
async def test_what_is_no_count_is_refused_and_changes_nothing(count: Any, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage["input_tokens"] = 5
            with pytest.raises(ValueError, match="whole number"):
                usage["input_tokens"] = count
            with pytest.raises(KeyError, match="prompt_tokens"):
                usage["prompt_tokens"] = 1
            with pytest.raises(ValueError, match="model takes a name"):
                usage["model"] = ""
        assert await amounts(tracker) == (5000, 0)


async def test_a_count_that_is_not_known_sets_nothing(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, block_grace_s=60.0) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=5) as usage:
            usage["output_tokens"] = None
        assert await records_of(tracker) == []
        await tracker.stop()
        await tracker.start()
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.outcome) == (20_000, "deferred_estimate")


async def test_counts_by_hand_can_be_taken_back(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage["output_tokens"] = 50
            del usage["output_tokens"]
            usage.update(input_tokens=4, output_tokens=50)
            usage.clear()
            assert not any(usage.values())
            usage["input_tokens"] = 3
        assert await amounts(tracker) == (3000, 0)


async def test_parts_larger_than_their_whole_are_clamped_and_flagged(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage["input_tokens"] = 10
            usage["cached_input_tokens"] = 1000
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.anomalous) == (10_000, True)


async def test_responses_of_the_sdks_are_read(tmp_path: Path) -> None:
    chat = ChatCompletion.model_validate(ANSWER)
    message = Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "big",
            "content": [{"type": "text", "text": "hello"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 30, "output_tokens": 4, "cache_read_input_tokens": 10},
        }
    )
    response = Response.model_validate(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1.0,
            "model": "big",
            "status": "completed",
            "output": [],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 7,
                "output_tokens": 2,
                "total_tokens": 9,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 1},
            },
        }
    )
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage.record(chat)
            usage.record(message)
            usage.record(response)
            usage.record(json.dumps(ANSWER | {"id": "chatcmpl-9"}))
            assert usage["input_tokens"] == 100 + 40 + 7 + 100
            assert usage["output_tokens"] == 20 + 4 + 2 + 20
            assert usage["reasoning_tokens"] == 1
            with pytest.raises(TypeError, match="cannot read usage"):
                usage.record(object())
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == 247_000 + 92_000
        assert sum(charge.nano_usd for charge in record.charges) == record.cost_nano_usd
        assert {charge.bucket for charge in record.charges} == {"input", "cache_read", "output", "reasoning"}


async def test_chunks_of_one_stream_replace_each_other_and_streams_add_up(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            for number in range(2):
                for piece in ("a", "b", None):
                    part = chunk(piece, finish=None if piece else "stop")
                    usage.record(ChatCompletionChunk.model_validate(part | {"id": f"c{number}"}))
                total = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
                usage.record(ChatCompletionChunk.model_validate(chunk(usage=total) | {"id": f"c{number}"}))
            assert (usage["input_tokens"], usage["output_tokens"]) == (20, 4)
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.estimated) == (20_000 + 8_000, False)


async def test_an_anthropic_streams_cumulative_usage_is_taken_once(tmp_path: Path) -> None:
    start = RawMessageStartEvent.model_validate(
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "big",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 30, "output_tokens": 1},
            },
        }
    )
    delta = RawMessageDeltaEvent.model_validate(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 9},
        }
    )
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage.record(start)
            assert usage["output_tokens"] == 1
            usage.record(delta)
            usage.record({"type": "message_stop"})
            assert (usage["input_tokens"], usage["output_tokens"]) == (30, 9)
        assert await amounts(tracker) == (30_000 + 18_000, 0)


async def test_bare_usage_objects_add_up(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage.record({"prompt_tokens": 10, "completion_tokens": 1})
            usage.record({"usage": {"input_tokens": 5, "output_tokens": 2}})
        (record,) = await records_of(tracker)
        assert (record.usage.input_tokens, record.usage.output_tokens) == (15, 3)
        assert (record.outcome, record.estimated) == ("completed", False)


async def test_each_response_keeps_its_own_tier_and_rounding(tmp_path: Path) -> None:
    price = ModelPrice(
        input_usd_per_mtok=1, output_usd_per_mtok=2, service_tiers={"flex": {"input_usd_per_mtok": "0.5"}}
    )
    async with opened("memory", tmp_path, prices={"big": price}) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=1) as usage:
            usage.record({**ANSWER, "service_tier": "flex"})
            usage.record({**ANSWER, "id": "chatcmpl-2"})
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == (50_000 + 40_000) + (100_000 + 40_000)


# Counts that come after the block -------------------------------------------------------------------------------------


@both_stores
async def test_a_block_without_counts_keeps_its_hold_until_they_come(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=10) as usage:
            pass
        assert await amounts(tracker) == (0, 120_000)
        usage["input_tokens"] = 60
        await asyncio.sleep(0.01)
        assert await amounts(tracker) == (0, 120_000)
        usage["output_tokens"] = 2
        await soon(lambda: records_of(tracker))
        assert await amounts(tracker) == (64_000, 0)
        (record,) = await records_of(tracker)
        assert (record.outcome, record.estimated) == ("completed", False)


@both_stores
async def test_a_response_recorded_after_the_block_is_charged_exactly_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(kind, tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=10) as usage:
            pass
        threading.Thread(target=usage.record, args=(ANSWER,)).start()
        await soon(lambda: records_of(tracker))
        assert await amounts(tracker) == (140_000, 0)
        usage.record({**ANSWER, "id": "too-late"})
        assert "come after it was settled" in caplog.text
        await asyncio.sleep(0.01)
        assert await amounts(tracker) == (140_000, 0)


@both_stores
async def test_a_block_without_counts_is_charged_its_hold_when_the_grace_is_over(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(kind, tmp_path, block_grace_s=0.01) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=10):
            pass
        await soon(lambda: records_of(tracker))
        assert await amounts(tracker) == (120_000, 0)
        (record,) = await records_of(tracker)
        assert (record.outcome, record.estimated) == ("deferred_estimate", True)
        assert "its hold is charged" in caplog.text
        await assert_balanced(tracker)


@both_stores
async def test_stopping_settles_what_is_pending(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    tracker = make_tracker(store, clock=clock)
    await tracker.start()
    blocks = [tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=0) for _ in range(3)]
    for block in blocks:
        async with block:
            pass
    await tracker.stop()
    await store.inner.open()
    assert (await store.inner.totals()).cost_nano_usd == 30_000
    assert (await store.inner.totals()).held_nano_usd == 0
    await store.inner.close()


async def test_a_pending_block_outlives_its_event_loop(tmp_path: Path) -> None:
    tracker = make_tracker(url_of("sqlite", tmp_path))

    async def forgetful() -> None:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=0):
            pass

    await asyncio.to_thread(asyncio.run, forgetful())
    async with tracker:
        pass
    async with make_tracker(url_of("sqlite", tmp_path)) as later:
        assert await amounts(later) == (10_000, 0)


async def test_scopes_of_users_and_models_are_held_too(tmp_path: Path) -> None:
    budgets = [Budget(scope=Scope(user="u1"), limit_usd=1), Budget(scope=Scope(tenant="*", model="big"), limit_usd=1)]
    async with opened("memory", tmp_path, budgets=budgets) as tracker:
        async with tracker.track_tokens("acme", "BIG", expected_input_tokens=10, user="u1") as usage:
            usage["input_tokens"] = 10
        assert await amounts(tracker, "user=u1") == (10_000, 0)
        assert await amounts(tracker, "tenant=acme,model=big") == (10_000, 0)


async def test_no_log_line_for_a_call_that_went_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="askii_middleware")
    async with opened("memory", tmp_path) as tracker, tracker.track_tokens("acme", "big") as usage:
        usage.record(ANSWER)
    assert caplog.records == []
