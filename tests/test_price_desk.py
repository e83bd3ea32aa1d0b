"""Prices that are set at run time: here at once, elsewhere at the next look, and never in the past."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import price_desk
from askii_middleware.budgets import Budget
from askii_middleware.calls import CallSpec
from askii_middleware.errors import BudgetExceededError, ConfigurationError, UnknownModelError
from askii_middleware.identity import Identity
from askii_middleware.model_price import ModelPrice
from askii_middleware.price_desk import KIND, price_table, read_prices
from askii_middleware.pricing import PriceBook
from askii_middleware.tracker import CostTracker
from askii_middleware.usage import TokenUsage

from .support.service import Clock, both_stores, make_tracker, opened, records_of

DEAR = ModelPrice(input_usd_per_mtok=7, output_usd_per_mtok=9)
CHEAP = ModelPrice(input_usd_per_mtok="0.5", output_usd_per_mtok=1)


@asynccontextmanager
async def two_workers(folder: Path, **options: Any) -> AsyncIterator[tuple[CostTracker, CostTracker]]:
    """Two trackers on one ledger, which look at named values only when they are told to."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        workers = [make_tracker(f"sqlite:///{folder / 'ledger.db'}", clock=clock, **options) for _ in range(2)]
        for worker in workers:
            worker.watcher.every_s = 1e9
            await stack.enter_async_context(worker)
        yield workers[0], workers[1]


async def charge_of(tracker: CostTracker, model: str, tokens: int = 1000) -> int:
    record = await tracker.record_usage("acme", model, input_tokens=tokens)
    return record.cost_nano_usd


# Setting and removing -------------------------------------------------------------------------------------------------


@both_stores
async def test_a_price_set_at_run_time_wins_over_the_declared_one_until_it_is_removed(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as tracker:
        assert await charge_of(tracker, "big") == 1_000_000
        await tracker.price_desk.set({"big": DEAR})
        assert await charge_of(tracker, "big") == 7_000_000
        assert await charge_of(tracker, "openai/BIG") == 7_000_000
        assert await tracker.price_desk.remove("big") == 1
        assert await tracker.price_desk.remove("big") == 0
        assert await charge_of(tracker, "big") == 1_000_000


async def test_a_price_set_in_one_worker_is_charged_by_the_other_after_its_next_look(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (one, other):
        await one.price_desk.set({"big": DEAR})
        assert await charge_of(other, "big") == 1_000_000
        await other.watcher.look()
        assert await charge_of(other, "big") == 7_000_000
        await other.price_desk.remove("big")
        await one.watcher.look()
        assert await charge_of(one, "big") == 1_000_000


async def test_records_name_the_version_of_the_prices_they_were_charged_at(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (one, other):
        await charge_of(one, "big")
        before = one.prices.version
        await one.price_desk.set({"big": DEAR})
        await charge_of(one, "big")
        await other.watcher.look()
        assert other.prices.version == one.prices.version
        await other.price_desk.set({"big": CHEAP})
        await one.watcher.look()
        await charge_of(one, "big")
        records = await records_of(one)
        assert [record.cost_nano_usd for record in records] == [1_000_000, 7_000_000, 500_000]
        versions = [record.price_version for record in records]
        assert versions[0] == before
        assert len(set(versions)) == 3
        await one.price_desk.remove("big")
        assert one.prices.version == before


async def test_a_model_without_a_price_gets_one_while_running_and_loses_it_again(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(UnknownModelError):
            await tracker.admit(Identity(tenant="acme"), CallSpec(model="house-llm", input_tokens=1, output_tokens=1))
        await tracker.price_desk.set({"house-llm": CHEAP})
        assert await charge_of(tracker, "house-llm") == 500_000
        await tracker.price_desk.remove("house-llm")
        with pytest.raises(UnknownModelError):
            await tracker.admit(Identity(tenant="acme"), CallSpec(model="house-llm", input_tokens=1, output_tokens=1))


async def test_a_call_is_charged_at_the_prices_in_force_when_it_ends(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            await tracker.price_desk.set({"big": CHEAP})
            usage["input_tokens"] = 10
        (record,) = await records_of(tracker)
        assert (record.cost_nano_usd, record.price_version) == (5_000, tracker.prices.version)


async def test_providers_have_prices_of_their_own_and_are_removed_by_themselves(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        desk = tracker.price_desk
        await desk.set({"azure/big": DEAR, "bedrock/big": CHEAP})
        listed = [(one.model, one.price.provider, one.source) for one in await desk.list() if one.model == "big"]
        assert listed == [("big", "", "config"), ("big", "aws", "store"), ("big", "azure", "store")]
        assert [await charge_of(tracker, name) for name in ("azure/big", "bedrock/big", "big")] == [
            *(7_000_000, 500_000, 1_000_000),
        ]
        assert await desk.remove("bedrock/big") == 1
        assert await desk.remove("big", "azure") == 1
        assert [one.source for one in await desk.list() if one.model == "big"] == ["config"]
        await desk.set({"azure/big": DEAR, "bedrock/big": CHEAP})
        assert await desk.remove("big") == 2


async def test_a_price_for_every_provider_wins_over_declared_ones_of_one(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, prices={"azure/house": DEAR}) as tracker:
        assert await charge_of(tracker, "azure/house") == 7_000_000
        await tracker.price_desk.set({"house": CHEAP})
        assert await charge_of(tracker, "azure/house") == 500_000


async def test_what_is_listed_can_be_set_again_and_changes_nothing(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.price_desk.set({"azure/big": DEAR, "house": CHEAP})
        listed, version = await tracker.price_desk.list(), tracker.prices.version
        for one in listed:
            if one.source == "store":
                await tracker.price_desk.set({one.model: one.price})
        assert await tracker.price_desk.list() == listed
        assert tracker.prices.version == version


async def test_the_default_price_is_no_model(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, prices={}, unknown_price="default", default_price=DEAR) as tracker:
        assert await tracker.price_desk.list() == []


# Budgets and fallbacks -----------------------------------------------------------------------------------------------


async def test_a_budget_on_a_model_still_binds_a_dated_name_that_gets_a_price_at_run_time(tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=acme,model=house", limit_usd="0.001")]
    async with opened("memory", tmp_path, budgets=budgets, prices={"house": CHEAP}) as tracker:
        spec = CallSpec(model="house-2026-01-01", input_tokens=1000, output_tokens=1)
        await tracker.price_desk.set({"house-2026-01-01": DEAR})
        with pytest.raises(BudgetExceededError) as refused:
            await tracker.admit(Identity(tenant="acme"), spec)
        assert refused.value.scope == "tenant=acme,model=house"
        assert await charge_of(tracker, "house-2026-01-01") == 7_000_000
        assert (await tracker.get_spend("tenant=acme", "daily")).by_model == {"house": 0.007}


async def test_a_fallback_that_is_priced_anew_is_taken_where_it_fits_now(tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd="0.001")]
    async with opened("memory", tmp_path, budgets=budgets, fallbacks={"big": ["small"]}) as tracker:
        spec = CallSpec(model="big", input_tokens=1100, output_tokens=1)
        assert (await tracker.admit(Identity(tenant="acme"), spec)).model == "small"
        await tracker.price_desk.set({"big": CHEAP})
        assert (await tracker.admit(Identity(tenant="acme"), spec)).model == "big"
        tracker.fallbacks.check()


async def test_a_fallback_whose_price_was_removed_is_left_out(tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd="0.001")]
    async with opened("memory", tmp_path, budgets=budgets) as tracker:
        spec = CallSpec(model="big", input_tokens=1100, output_tokens=1)
        await tracker.price_desk.set({"house": CHEAP})
        tracker.budget_enforcer.fallback_model = "house"
        assert (await tracker.admit(Identity(tenant="acme"), spec)).model == "house"
        await tracker.price_desk.remove("house")
        with pytest.raises(BudgetExceededError):
            await tracker.admit(Identity(tenant="acme"), spec)


# Checks --------------------------------------------------------------------------------------------------------------


async def test_nothing_is_written_where_one_of_several_prices_is_wrong(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ConfigurationError, match="no amount; a free model"):
            await tracker.price_desk.set({"house": CHEAP, "empty": ModelPrice()})
        assert await tracker.store.items(KIND) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"m": {"input_usd_per_mtok": 1001}}, "'m': input_usd_per_mtok: 1001 USD per million is more than 1000"),
        ({"m": {"input_cost_per_token": 0.0025}}, "'m': input_usd_per_mtok: 2500.0000 USD per million is more"),
        ({"m": {"input_cost_per_token": -1e-06}}, "'m': input_usd_per_mtok: .* at least 0"),
        ({"m": {"input_cost_per_token": True}}, "'m': input_cost_per_token: 'True' is not an amount"),
        ({"m": {"output_cost_per_token": "dear"}}, "'m': output_cost_per_token: 'dear' is not an amount"),
        ({"m": {"output_cost_per_token": "1e999999999"}}, "'m': output_cost_per_token: '1e999999999' is not an amount"),
        ({"m": {"input_usd_per_mtok": 5000, "allow_high": "false"}}, "'m': allow_high is true or false"),
        ({"m": {"input_cost_per_token": 1, "allow_high": "false"}}, "'m': allow_high is true or false"),
        ({"m": {"input_usd_per_mtok": 1, "context_window": 10**400}}, "'m': context_window: 1000.* is not a whole"),
        ({"m": {"colour": 1}}, "'m': colour: not a price field"),
        ({"m": {"tiers": [1]}}, r"'m': tiers: \[1\] is not a table of amounts"),
        ({"m": {"tiers": {"1": []}}}, r"'m': tiers.1: \[\] is not a table"),
        ({"m": {"service_tiers": []}}, r"'m': service_tiers: \[\] is not a table"),
        ({"m": {"service_tiers": {"flex": 1}}}, "'m': service_tiers.flex: 1 is not a table"),
        ({"m": {"service_tiers": {"flex": {"tiers": None}}}}, "'m': service_tiers.flex.tiers: None is not a table"),
        ({"m": []}, "'m': expected a table"),
        ({"m": {"provider": 7, "input_usd_per_mtok": 1}}, "'m': .*provider is text"),
        ({"m": 3}, "'m': expected a table"),
        ({"": {"input_usd_per_mtok": 1}}, "a model's name has"),
        ({"m" * 257: {"input_usd_per_mtok": 1}}, "a model's name has"),
        ({"a\nb": {"input_usd_per_mtok": 1}}, "a model's name has"),
        ({"m": {"input_usd_per_mtok": 1, "provider": "x" * 65}}, "a provider's name has"),
        ({"m": {"mode": "image_generation", "output_cost_per_image": 0.04}}, "no price of anything"),
        ({}, "no price of anything"),
        (
            {"m": {"input_usd_per_mtok": 1, "tiers": {str(n): {"input_usd_per_mtok": n} for n in range(900)}}},
            "more than",
        ),
    ],
)
def test_a_wrong_price_is_refused_and_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_prices(table)


def test_a_price_above_a_thousand_dollars_per_million_is_taken_where_it_is_meant() -> None:
    prices = read_prices(
        {
            "ours": {"input_usd_per_mtok": 1001, "allow_high": True},
            "theirs": {"input_cost_per_token": 0.0025, "allow_high": True},
        }
    )
    assert [price.input_usd_per_mtok for price in prices.values()] == [Decimal(1001), Decimal("2500.0000")]


async def test_the_number_of_prices_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert price_desk.MAX_PRICES == 10_000
    monkeypatch.setattr(price_desk, "MAX_PRICES", 5)
    async with opened("memory", tmp_path) as tracker:
        await tracker.price_desk.set({f"m{n}": CHEAP for n in range(5)})
        with pytest.raises(ConfigurationError, match="at most 5 models"):
            await tracker.price_desk.set({"one-more": CHEAP})
        await tracker.price_desk.set({"m1": DEAR})
        assert await charge_of(tracker, "m1") == 7_000_000


async def test_of_more_prices_than_a_worker_uses_the_first_count_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.price_desk.set({f"m{n}": CHEAP for n in range(3)})
        monkeypatch.setattr(price_desk, "MAX_PRICES", 2)
        with caplog.at_level(logging.ERROR):
            assert [one.model for one in await tracker.price_desk.list() if one.source == "store"] == ["m0", "m1", "m2"]
            await tracker.price_desk.remove("m0")
        assert "prices were set at run time" not in caplog.text
        await tracker.store.put_item(KIND, "|zzz", b"{}")
        with caplog.at_level(logging.ERROR):
            await tracker.watcher.look()
        assert "3 prices were set at run time; only 2 of them are used" in caplog.text


async def test_two_spellings_of_one_model_cannot_have_two_prices_at_once(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ConfigurationError, match="given twice, under two spellings"):
            await tracker.price_desk.set({"House": CHEAP, "house": DEAR})


async def test_a_stored_price_that_cannot_be_read_is_told_and_changes_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.price_desk.set({"house": CHEAP})
        for name, value in (("|big", b"{"), ("|small", b'{"model":"small","price":{"colour":1}}')):
            await tracker.store.put_item(KIND, name, value)
        with caplog.at_level(logging.ERROR):
            await tracker.watcher.look()
        assert [record.message.split("'")[1] for record in caplog.records] == ["|big", "|small"]
        assert [await charge_of(tracker, name) for name in ("big", "house")] == [1_000_000, 500_000]


# The format of LiteLLM -----------------------------------------------------------------------------------------------


async def test_a_file_in_litellms_format_is_charged_exactly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = {
        "sample_spec": {"input_cost_per_token": 0.0, "mode": "one of: chat, embedding"},
        "house-chat": {
            "litellm_provider": "openai",
            "mode": "chat",
            "max_input_tokens": 128000,
            "max_output_tokens": "4096",
            "input_cost_per_token": 2.5e-06,
            "output_cost_per_token": 1e-05,
            "cache_read_input_token_cost": 1.25e-06,
        },
        "house-image": {"litellm_provider": "openai", "mode": "image_generation", "output_cost_per_image": 0.04},
    }
    async with opened("memory", tmp_path) as tracker:
        with caplog.at_level(logging.WARNING):
            assert await tracker.price_desk.load(table) == ["house-chat"]
        assert "1 of 3 entries" in caplog.text
        record = await tracker.record_usage(
            "acme", "house-chat", usage=TokenUsage.from_totals(1000, 10, cached_input_tokens=400)
        )
        assert record.cost_nano_usd == 600 * 2500 + 400 * 1250 + 10 * 10_000
        (listed,) = [one for one in await tracker.price_desk.list() if one.source == "store"]
        assert (listed.model, listed.price.provider) == ("house-chat", "openai")
        assert (listed.price.context_window, listed.price.max_output_tokens) == (128_000, 4096)


def test_lengths_of_prompts_and_served_tiers_stand_in_litellms_field_names() -> None:
    (price,) = read_prices(
        {
            "vertex_ai/house": {
                "litellm_provider": "vertex_ai-language-models",
                "input_cost_per_token": 1e-06,
                "input_cost_per_token_above_200k_tokens": 2e-06,
                "input_cost_per_token_priority": 3e-06,
                "input_cost_per_token_above_200k_tokens_priority": 4e-06,
                "output_cost_per_token_batches": 5e-07,
                "cache_creation_input_token_cost_above_1hr": 6e-06,
                "output_cost_per_reasoning_token": None,
                "search_context_cost_per_query": {
                    "search_context_size_high": 0.05,
                    "search_context_size_medium": 0.035,
                },
            }
        }
    ).values()
    assert price == ModelPrice(
        input_usd_per_mtok=1,
        cache_write_1h_usd_per_mtok=6,
        web_search_usd_per_1k=35,
        tiers={200_000: {"input_usd_per_mtok": 2}},
        service_tiers={
            "priority": {"input_usd_per_mtok": 3, "tiers": {200_000: {"input_usd_per_mtok": 4}}},
            "batch": {"output_usd_per_mtok": "0.5"},
        },
        provider="google",
    )


@pytest.mark.parametrize(
    ("entry", "price"),
    [
        (
            {"mode": "audio_transcription", "input_cost_per_second": 0.0001},
            ModelPrice(audio_usd_per_hour="0.36"),
        ),
        ({"mode": "audio_speech", "input_cost_per_character": 1.5e-05}, ModelPrice(character_usd_per_mchar=15)),
        ({"mode": "rerank", "input_cost_per_query": 0.002}, ModelPrice(request_usd="0.002")),
        ({"mode": "ocr", "ocr_cost_per_page": 0.001}, ModelPrice(page_usd_per_1k=1)),
        (
            {"mode": "chat", "input_cost_per_character": 1e-06, "input_cost_per_token": 1e-06},
            ModelPrice(input_usd_per_mtok=1),
        ),
    ],
)
def test_units_that_depend_on_the_kind_of_model_are_read_by_it(entry: dict[str, Any], price: ModelPrice) -> None:
    assert read_prices({"house": entry}) == {"house": price}


def test_of_two_entrances_to_one_providers_model_the_first_is_taken() -> None:
    table = {
        "gemini/house": {"litellm_provider": "gemini", "input_cost_per_token": 1e-06},
        "house": {"litellm_provider": "vertex_ai-language-models", "input_cost_per_token": 2e-06},
    }
    assert list(read_prices(table)) == ["gemini/house"]


amounts = st.decimals(min_value=0, max_value=999, allow_nan=False, places=6)


@given(st.dictionaries(st.sampled_from(["input_usd_per_mtok", "output_usd_per_mtok", "request_usd"]), amounts))
def test_a_price_survives_its_way_into_the_ledger_and_back(found: dict[str, Decimal]) -> None:
    table: dict[str, Any] = {**found, "tiers": {200_000: dict(found)}, "provider": "openai", "context_window": 5}
    price = ModelPrice(**table)
    assert ModelPrice.from_table(price_table(price)) == price


@given(st.integers(min_value=1, max_value=10**9))
def test_an_amount_per_token_is_exact_per_million(picodollars: int) -> None:
    per_token = Decimal(picodollars).scaleb(-12)
    (price,) = read_prices({"m": {"input_cost_per_token": float(per_token)}}).values()
    assert price.input_usd_per_mtok == per_token * 1_000_000


def test_an_override_without_prices_is_none() -> None:
    book = PriceBook(prices={"m": CHEAP})
    before = book.version
    book.override({}, "whatever")
    assert book.version == before


def test_a_price_that_changes_in_another_thread_while_one_is_looked_up_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book = PriceBook(prices={"m": CHEAP})
    resolve = book._resolve

    def overtaken(*asked: Any) -> Any:
        found = resolve(*asked)
        book.override({"m": {"": ModelPrice(input_usd_per_mtok=7)}}, "new")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(book, "_resolve", overtaken)
        book.find("m")
    found = book.find("m")
    assert found is not None
    assert found.charge(TokenUsage(input=1)).nano_usd == 7000
