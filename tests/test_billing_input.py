"""Bad input, through every way in: a typed error that says what is wrong, and nothing is charged or sent for it; what
goes out beside it is as it should be.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.errors import AskiiError, ConfigurationError
from askii_middleware.identity import Identity
from askii_middleware.pricing import ModelPrice
from askii_middleware.settings import load_settings
from askii_middleware.sinks.lago import LagoSink, UnbillableError
from askii_middleware.tracker import CostTracker
from askii_middleware.usage import TokenUsage

from .sinks.support import record
from .support.lago_server import KEY, LagoServer
from .support.service import PRICES, make_tracker, records_of

NAN, INF = float("nan"), float("inf")
NUMBERS: list[Any] = [NAN, INF, -INF, -1, -0.5, 10**30, 1e30, 1e-5, "1e-05", "1E+6", "+1", ".5", "NaN", "", None, True]
NUMBERS += [Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal(-1), Decimal("1E+30"), [], {}, b"5", 1j]
COUNTS = [value for value in NUMBERS if value is not None] + [0.5, "5", 5.0, Decimal(5), Fraction(1, 3)]
NAMES: list[Any] = [
    "",
    "a\0b",
    "\ud800",
    "x" * (1 << 20),
    None,
    5,
    5.5,
    b"acme",
    ["acme"],
    {"tenant": "acme"},
    True,
    NAN,
]
REFUSED = (AskiiError, ValueError, TypeError)


def shown(value: object) -> str:
    return repr(value)[:20]


class Billing:
    """A tracker, its sink and the receiver behind it."""

    def __init__(self, tracker: CostTracker, sink: LagoSink, lago: LagoServer) -> None:
        self.tracker = tracker
        self.sink = sink
        self.lago = lago

    async def nothing_happened(self) -> None:
        """Not a charge, not a hold, not an event; and what comes afterwards goes through."""
        totals = await self.tracker.store.totals()
        assert (totals.calls, totals.records, totals.held_nano_usd) == (0, 0, 0)
        await self.tracker.record_usage("good", "big", input_tokens=7, call_id="good")
        await self.tracker.flush(5.0)
        assert [event.transaction_id for event in self.lago.books.events()] == ["good"]
        assert self.lago.books.billed() == {"good": 7}
        assert self.lago.books.unbilled() == []
        assert await self.tracker.store.dead_letters("lago") == []
        assert self.tracker._writer.rejected_path is None


@pytest.fixture
async def billing(tmp_path: Path) -> AsyncIterator[Billing]:
    async with LagoServer(str(tmp_path / "lago.db")) as lago:
        sink = LagoSink(lago.url, KEY)
        async with make_tracker(f"sqlite:///{tmp_path / 'askii.db'}", sinks=[sink], budgets=()) as tracker:
            yield Billing(tracker, sink, lago)


# record_usage and track_tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens"])
async def test_record_usage_takes_whole_counts_only(billing: Billing, field: str) -> None:
    for count in COUNTS:
        with pytest.raises(ValueError, match=field):
            await billing.tracker.record_usage("acme", "big", **{field: count})
        with pytest.raises(ValueError, match=r"usage\.input"):
            await billing.tracker.record_usage("acme", "big", usage=TokenUsage(input=count))
    await billing.nothing_happened()


async def test_record_usage_takes_names_that_are_text_only(billing: Billing) -> None:
    for name in NAMES:
        with pytest.raises(REFUSED):
            await billing.tracker.record_usage(name, "big", input_tokens=5)
        with pytest.raises(REFUSED):
            await billing.tracker.record_usage("acme", name, input_tokens=5)
        if name is not None:
            with pytest.raises(REFUSED):
                await billing.tracker.record_usage("acme", "big", input_tokens=5, call_id=name)
    await billing.nothing_happened()


@pytest.mark.parametrize(
    "metadata",
    [{"x": "y" * (1 << 20)}, {"x": NAN}, {"x": INF}, {"x": object()}, {"x": {1j}}, ["x"], "x" * 10, {"\ud800": 1}],
    ids=shown,
)
async def test_metadata_that_json_cannot_carry_is_refused_or_written_as_null(billing: Billing, metadata: Any) -> None:
    try:
        written = await billing.tracker.record_usage("acme", "big", input_tokens=5, call_id="m", metadata=metadata)
    except REFUSED:
        await billing.nothing_happened()
        return
    assert written.metadata == {"x": None}  # JSON has no other word for what is no number
    await billing.tracker.flush(5.0)
    assert billing.lago.books.billed() == {"acme": 5}


@pytest.mark.parametrize("field", ["key", "user", "team", "end_user"])
async def test_an_identity_has_short_texts_only(field: str) -> None:
    for value in [name for name in NAMES if name not in (None, "")]:
        with pytest.raises((ValueError, TypeError)):
            Identity(**{"tenant": "acme", field: value})


@pytest.mark.parametrize(
    "tags", [("x" * (1 << 20),), ("a\0",), ("",), (5,), ("x",) * 17, ("\ud800",), (None,)], ids=shown
)
async def test_tags_of_a_megabyte_and_other_impossible_ones_are_refused(billing: Billing, tags: Any) -> None:
    with pytest.raises(ValueError, match="tags"):
        await billing.tracker.record_usage(Identity(tenant="acme", tags=tags), "big", input_tokens=5)
    await billing.nothing_happened()


async def test_a_block_takes_whole_counts_only_and_charges_those_that_are(billing: Billing) -> None:
    async with billing.tracker.track_tokens("acme", "big", expected_input_tokens=9, max_output_tokens=9) as usage:
        for count in COUNTS:
            with pytest.raises(ValueError, match="input_tokens"):
                usage["input_tokens"] = count
        usage["input_tokens"] = 3
    await billing.tracker.flush(5.0)
    assert billing.lago.books.billed() == {"acme": 3}


async def test_a_block_is_not_entered_with_impossible_bounds_or_names(billing: Billing) -> None:
    for count in COUNTS:
        with pytest.raises(REFUSED):
            async with billing.tracker.track_tokens("acme", "big", expected_input_tokens=count):
                pass
        with pytest.raises(REFUSED):
            async with billing.tracker.track_tokens("acme", "big", max_output_tokens=count):
                pass
    for name in NAMES:
        with pytest.raises(REFUSED):
            async with billing.tracker.track_tokens(name, "big", expected_input_tokens=1):
                pass
        with pytest.raises(REFUSED):
            async with billing.tracker.track_tokens("acme", name, expected_input_tokens=1):
                pass
    await billing.nothing_happened()


@pytest.mark.parametrize(
    "reported",
    [
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": NAN, "completion_tokens": INF},
        {"prompt_tokens": "1e5", "completion_tokens": None},
        {"prompt_tokens": {}, "completion_tokens": []},
    ],
    ids=shown,
)
async def test_what_a_provider_reports_never_makes_a_bill_negative_or_absurd(billing: Billing, reported: Any) -> None:
    answer = {"object": "chat.completion", "model": "big", "choices": [], "usage": reported}
    async with billing.tracker.track_tokens("acme", "big", expected_input_tokens=9, max_output_tokens=9) as usage:
        try:
            usage.record(answer)
        except REFUSED:
            usage["input_tokens"] = 1
    await billing.tracker.flush(5.0)
    for written in await records_of(billing.tracker):
        assert 0 <= written.cost_nano_usd <= 10**15
        assert all(count >= 0 for count in (written.usage.input_tokens, written.usage.output_tokens))
    assert billing.lago.books.unbilled() == []
    assert await billing.tracker.store.dead_letters("lago") == []


# adjust ---------------------------------------------------------------------------------------------------------------


async def test_an_adjustment_takes_an_exact_amount_in_usd_only(billing: Billing) -> None:
    odd: list[Any] = [
        NAN,
        INF,
        -INF,
        10**30,
        1e30,
        "1E+30",
        "NaN",
        "",
        None,
        True,
        [],
        {},
        b"5",
        1j,
        Decimal("sNaN"),
        Decimal("inf"),
    ]
    for amount in [*odd, "1e-10", "0.0000000001", 10**16, "x"]:
        with pytest.raises(REFUSED):
            await billing.tracker.adjust("acme", amount, reason="a mistake")
    await billing.nothing_happened()


async def test_an_adjustment_takes_names_and_reasons_that_are_text_only(billing: Billing) -> None:
    for name in NAMES:
        with pytest.raises(REFUSED):
            await billing.tracker.adjust(name, "1", reason="a mistake")
        with pytest.raises(REFUSED):
            await billing.tracker.adjust("acme", "1", reason=name)
        if name is not None:
            with pytest.raises(REFUSED):
                await billing.tracker.adjust("acme", "1", reason="a mistake", ref=name)
            with pytest.raises(REFUSED):
                await billing.tracker.adjust("acme", "1", reason="a mistake", adjustment_id=name)
    await billing.nothing_happened()


async def test_a_credit_larger_than_what_was_used_never_makes_an_event_negative(billing: Billing) -> None:
    tracker = billing.tracker
    await tracker.record_usage("acme", "big", input_tokens=5)
    await tracker.adjust("acme", "-0.000008", reason="goodwill")  # 8 coins
    await tracker.record_usage("acme", "big", input_tokens=2)
    await tracker.record_usage("acme", "big", input_tokens=10)
    await tracker.flush(5.0)
    coins = [event.properties["askii_coins"] for event in billing.lago.books.events()]
    assert coins[0] == "5"
    assert all(int(text) >= 0 for text in coins)
    assert billing.lago.books.billed() == {"acme": 5 - 8 + 2 + 10}


# LagoSink -------------------------------------------------------------------------------------------------------------


async def test_send_usage_event_takes_whole_coins_that_lago_can_bill_only(billing: Billing) -> None:
    for cost in [value for value in NUMBERS if value is not None] + [0.5, 10**12, "5", None]:
        with pytest.raises(REFUSED):
            await billing.sink.send_usage_event("acme", cost, "call")
    await billing.nothing_happened()


async def test_send_usage_event_takes_names_that_are_text_only(billing: Billing) -> None:
    for name in NAMES:
        with pytest.raises(REFUSED):
            await billing.sink.send_usage_event(name, 5, "call")
        with pytest.raises(REFUSED):
            await billing.sink.send_usage_event("acme", 5, name)
    await billing.nothing_happened()


async def test_a_record_that_lago_would_not_bill_is_put_aside_and_the_rest_of_its_batch_is_sent(
    billing: Billing,
) -> None:
    bad = [
        record(1, subscription=""),
        record(2, subscription="a\0b"),
        record(3, coins=-1),
        record(4, coins=10**12),
        record(5, timestamp="yesterday"),
        record(6, timestamp="1969-12-31T23:59:59Z"),
        record(7, call_id=""),
        record(8, model="a\0b"),
    ]
    delivery = await billing.sink.send([record(0), *bad, record(9)])
    results = [verdict.result for verdict in delivery.verdicts]
    assert results[0] == results[-1] == "delivered"
    # A NUL in what is for show only may also be left out of the event, which is then sent.
    assert results[1:-2] == ["rejected"] * 7
    arrived = {event.transaction_id for event in billing.lago.books.events()}
    assert {"call-00000", "call-00009"} <= arrived <= {"call-00000", "call-00008", "call-00009"}
    assert billing.lago.books.unbilled() == []
    assert len(billing.lago.posts) == 1


@given(st.one_of(st.floats(), st.decimals(), st.integers(), st.fractions(), st.text(max_size=9)))
async def test_any_cost_is_billed_as_it_is_or_refused(cost: Any) -> None:
    billed: list[int] = []

    async def note(_subscription: str, coins: int, _call_id: str) -> None:
        billed.append(coins)

    sink = LagoSink("http://127.0.0.1:9/api/v1", KEY)
    sink.bind(note)
    try:
        await sink.send_usage_event("acme", cost, "call")
    except (UnbillableError, TypeError):
        assert billed == []
    else:
        assert billed == [cost]
        assert 0 <= billed[0] < 10**12


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["invalid", "", "0", "-5", "inf", "nan", "1e400", "1e-400", "1,5", "0x10", "1\n2"])
async def test_an_impossible_exchange_rate_bills_at_the_last_valid_one(
    billing: Billing, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "2e6")
    await billing.tracker.record_usage("acme", "big", input_tokens=1)
    monkeypatch.setenv(RATE_VARIABLE, text)
    await billing.tracker.record_usage("acme", "big", input_tokens=1)
    await billing.tracker.flush(5.0)
    assert billing.lago.books.billed() == {"acme": 4}
    assert "exchange rate" in caplog.text.lower() or RATE_VARIABLE in caplog.text


@pytest.mark.parametrize("amount", [NAN, INF, -1, "1e400", "x", "", 10**30], ids=shown)
@pytest.mark.parametrize("field", ["input_usd_per_mtok", "output_usd_per_mtok"])
def test_an_impossible_price_is_refused_when_it_is_set(field: str, amount: Any) -> None:
    prices = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, field: amount}
    with pytest.raises((ConfigurationError, ValueError)):
        CostTracker(store="memory://", prices={**PRICES, "odd": ModelPrice(**prices)})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("[[budgets]]", 'scope = "tenant=*"\nlimit_usd = nan'),
        ("[[budgets]]", 'scope = "tenant=*"\nlimit_usd = inf'),
        ("[[budgets]]", 'scope = "tenant=*"\nlimit_usd = -1'),
        ("[[budgets]]", 'scope = "tenant=*"\nlimit_usd = 1e30'),
        ('[pricing."m"]', "input_usd_per_mtok = nan"),
        ('[pricing."m"]', "input_usd_per_mtok = -1"),
        ('[pricing."m"]', "input_usd_per_mtok = 1e30"),
        ("[sinks.lago]", 'url = "not a url"\napi_key = "k"'),
        ("[sinks.lago]", 'url = "http://127.0.0.1/api/v1"\napi_key = "a\\u0000b"'),
        ("[sinks.lago]", 'url = "http://127.0.0.1/api/v1"\napi_key = "k"\ntimeout_s = nan'),
        ("[sinks.lago]", 'url = "http://127.0.0.1/api/v1"\napi_key = "k"\ntimeout_s = -1'),
        ("[sinks.lago]", 'url = "http://127.0.0.1/api/v1"\napi_key = "k"\nunknown = 1'),
    ],
)
def test_impossible_settings_are_refused_at_the_start(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "askii.toml"
    path.write_text(f'store = "memory://"\n{name}\n{text}\n')
    monkeypatch.setenv("ASKII_CONFIG", str(path))
    with pytest.raises(AskiiError):
        CostTracker.from_settings(load_settings())


@given(st.integers(0, 10**9), st.integers(0, 10**9))
async def test_any_counts_that_are_counts_are_charged_exactly(input_tokens: int, output_tokens: int) -> None:
    async with make_tracker("memory://", budgets=()) as tracker:
        written = await tracker.record_usage("acme", "big", input_tokens=input_tokens, output_tokens=output_tokens)
        assert written.cost_nano_usd == 1_000 * input_tokens + 2_000 * output_tokens
        assert written.askii_coins == input_tokens + 2 * output_tokens
        assert math.isfinite(written.exchange_rate)
