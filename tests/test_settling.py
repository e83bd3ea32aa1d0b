"""Every way out of a call, as the contract's table has it, and the record it leaves."""

from __future__ import annotations

import json

import pytest

from askii_middleware.aggregates import EVERYTHING
from askii_middleware.budgets import Budget, BudgetIndex
from askii_middleware.currency import parse_rate
from askii_middleware.identity import Identity
from askii_middleware.pricing import PriceBook
from askii_middleware.records import decode_record
from askii_middleware.settling import Billed, Ending, Part, bill, build, judge, timestamp_text
from askii_middleware.stores.base import complete_record, partition_of
from askii_middleware.usage import Report, TokenUsage

from .support.calls import make_call

EXACT = TokenUsage(input=90, output=30)


def passed(deltas: int = 8, text_bytes: int = 20, **fields: object) -> Report:
    return Report(visible_deltas=deltas, visible_bytes=text_bytes, **fields)  # type: ignore[arg-type]


def test_reported_usage_of_a_complete_answer_is_the_charge() -> None:
    verdict = judge(make_call(), Report(usage=EXACT, finished=True), Ending(status=200, complete=True))
    assert (verdict.usage, verdict.outcome, verdict.estimated) == (EXACT, "completed", False)


def test_a_finished_answer_without_usage_is_charged_by_what_passed() -> None:
    verdict = judge(make_call(), passed(finished=True), Ending(status=200, complete=True))
    assert verdict.usage == TokenUsage(input=100, output=8)
    assert (verdict.outcome, verdict.estimated) == ("completed", True)


def test_a_finished_answer_of_which_nothing_was_visible_is_charged_its_hold() -> None:
    verdict = judge(make_call(), Report(), Ending(status=200, complete=True))
    assert verdict.usage == TokenUsage(input=400, output=50)
    assert verdict.estimated


def test_a_client_that_left_mid_stream_is_charged_the_last_cumulative_usage_raised_to_what_passed() -> None:
    report = passed(deltas=12, usage=TokenUsage(input=90, cache_read=10, output=1))
    verdict = judge(make_call(), report, Ending(status=200, client_left=True))
    assert verdict.usage == TokenUsage(input=90, cache_read=10, output=12)
    assert (verdict.outcome, verdict.estimated) == ("client_disconnected", True)


def test_a_client_that_left_mid_stream_before_any_usage_is_charged_the_prompt_and_what_passed() -> None:
    verdict = judge(make_call(), passed(), Ending(status=200, client_left=True))
    assert verdict.usage == TokenUsage(input=100, output=8)
    assert (verdict.outcome, verdict.estimated) == ("client_disconnected", True)


def test_a_client_that_left_before_a_plain_answer_is_charged_its_usage_when_the_application_ran_on() -> None:
    verdict = judge(
        make_call(), Report(usage=EXACT, finished=True), Ending(status=200, complete=True, client_left=True)
    )
    assert (verdict.usage, verdict.outcome, verdict.estimated) == (EXACT, "completed", False)


def test_a_client_that_left_before_a_plain_answer_that_never_came_is_charged_the_prompt() -> None:
    verdict = judge(make_call(), Report(), Ending(status=None, client_left=True, called=True))
    assert verdict.usage == TokenUsage(input=100)
    assert (verdict.outcome, verdict.estimated) == ("client_disconnected", True)


def test_a_client_that_left_before_the_application_read_its_request_is_charged_nothing() -> None:
    assert judge(make_call(), Report(), Ending(client_left=True, called=False)).usage is None


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_an_error_answer_without_usage_is_charged_nothing(status: int) -> None:
    verdict = judge(make_call(), Report(finished=True, failed=True), Ending(status=status, complete=True))
    assert verdict.usage is None
    assert not verdict.deferred


def test_usage_in_an_error_answer_is_charged() -> None:
    verdict = judge(make_call(), Report(usage=EXACT, failed=True), Ending(status=500, complete=True))
    assert (verdict.usage, verdict.outcome) == (EXACT, "upstream_error")


def test_an_application_that_raised_before_its_answer_is_charged_nothing() -> None:
    assert judge(make_call(), Report(), Ending(status=None)).usage is None


def test_an_application_that_broke_off_is_charged_the_prompts_bound_and_what_passed() -> None:
    verdict = judge(make_call(), passed(), Ending(status=200))
    assert verdict.usage == TokenUsage(input=400, output=8)
    assert (verdict.outcome, verdict.estimated) == ("upstream_error", True)


def test_a_stream_that_ended_in_the_providers_error_is_charged_what_passed() -> None:
    verdict = judge(make_call(), passed(failed=True), Ending(status=200, complete=True))
    assert verdict.usage == TokenUsage(input=400, output=8)
    assert (verdict.outcome, verdict.estimated) == ("upstream_error", True)


def test_an_operation_that_goes_on_elsewhere_is_deferred() -> None:
    verdict = judge(make_call(), Report(deferred=True), Ending(status=200, complete=True))
    assert verdict.deferred
    assert verdict.usage is None


def test_a_stream_that_ended_cleanly_without_a_last_event_keeps_the_larger_count() -> None:
    report = passed(deltas=40, usage=TokenUsage(input=90, output=1))
    verdict = judge(make_call(), report, Ending(status=200, complete=True))
    assert verdict.usage == TokenUsage(input=90, output=40)
    assert (verdict.outcome, verdict.estimated) == ("completed", True)


def test_the_record_has_the_contracts_members_and_exact_charges() -> None:
    book = PriceBook()
    price = book.find("gpt-4o-mini", provider="openai")
    usage = TokenUsage.from_totals(812, 95, cached_input_tokens=64)
    parts = [Part("gpt-4o-mini", price, usage)]
    call = make_call(model="gpt-4o-mini", price=price, fallback_reason="budget")
    billed = bill(parts)
    record, settlement = build(
        call, parts, billed, subscription="acme", price_version="v", ending_status=200, provider="openai"
    )
    assert record.cost_nano_usd == 112_200 + 4_800 + 57_000
    whole = json.loads(complete_record(settlement.record, late=False, coins=174))
    assert whole["timestamp"] == "2026-01-01T00:00:00.123Z"
    assert whole["usage"] == {
        "input_tokens": 812,
        "output_tokens": 95,
        "cached_input_tokens": 64,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "audio_input_tokens": 0,
        "audio_output_tokens": 0,
    }
    assert [(c["bucket"], c["quantity"], c["nano_usd"]) for c in whole["charges"]] == [
        ("input", 748, 112_200),
        ("cache_read", 64, 4_800),
        ("output", 95, 57_000),
    ]
    assert (whole["requested_model"], whole["served_model"]) == ("gpt-4o", "gpt-4o-mini")
    assert (whole["fallback_reason"], whole["late"], whole["askii_coins"]) == ("budget", False, 174)
    assert (settlement.coins, settlement.pico_coins) == (174, 0)
    assert decode_record(json.dumps(whole).encode()).askii_coins == 174


def test_a_charge_is_split_at_the_calls_own_rate() -> None:
    call = make_call(rate=parse_rate("1234567"))
    _, settlement = build(call, [], Billed(150, (), False), subscription="s", price_version="v")
    # 150 nano-USD x 1,234,567 coins per USD = 0.18518505 coin
    assert (settlement.coins, settlement.pico_coins) == (0, 185_185_050_000)


def test_aggregates_cover_everything_the_tenant_its_user_key_user_and_team() -> None:
    call = make_call(identity=Identity(tenant="a,b", key="k", user="u", team="t"))
    _, settlement = build(call, [], Billed(7, (), False), subscription="s", price_version="v")
    everything, *scopes = [row.scope for row in settlement.aggregates]
    assert everything == EVERYTHING[partition_of("a,b")] == "global/15"
    assert scopes == ["tenant=a%2Cb", "tenant=a%2Cb,user=u", "key=k", "user=u", "team=t"]
    assert {row.cost_nano_usd for row in settlement.aggregates} == {7}


def test_a_settlement_carries_where_to_charge_without_a_hold() -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1)])
    call = make_call(matches=index.matches({"tenant": "acme"}), windows=index.windows(1_767_225_600))
    _, settlement = build(call, [], Billed(7, (), False), subscription="s", price_version="v")
    assert settlement.matches[0].counter == "tenant=acme|daily"
    assert settlement.windows["daily|UTC"][0] == (1_767_225_600, 1_767_312_000)


@pytest.mark.parametrize(
    ("at_s", "text"),
    [(0.0, "1970-01-01T00:00:00.000Z"), (1_767_225_600.9996, "2026-01-01T00:00:01.000Z")],
)
def test_timestamps_have_milliseconds_in_utc(at_s: float, text: str) -> None:
    assert timestamp_text(at_s) == text


def test_parts_of_another_model_name_it_in_their_buckets() -> None:
    book = PriceBook()
    main, adviser = book.find("claude-haiku-4-5"), book.find("claude-opus-4-5")
    billed = bill(
        [
            Part("claude-haiku-4-5", main, TokenUsage(input=1000)),
            Part("claude-opus-4-5", adviser, TokenUsage(input=1000, output=10)),
        ]
    )
    assert [c.bucket for c in billed.charges] == ["input", "claude-opus-4-5:input", "claude-opus-4-5:output"]
    assert billed.nano_usd == 1_000_000 + 5_000_000 + 250_000
