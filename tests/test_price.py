from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.errors import ConfigurationError
from askii_middleware.model_price import AMOUNTS, BUCKETS, ModelPrice
from askii_middleware.price import Bill, Price
from askii_middleware.usage import TIER_STARTS, TokenUsage, added, prompt_class

GPT_4O_MINI = ModelPrice(input_usd_per_mtok=0.15, output_usd_per_mtok=0.6, cache_read_usd_per_mtok=0.075)
"""developers.openai.com/api/docs/pricing, 2026-11."""

SONNET = ModelPrice(
    input_usd_per_mtok=3,
    output_usd_per_mtok=15,
    cache_read_usd_per_mtok="0.3",
    cache_write_usd_per_mtok=Decimal("3.75"),
    cache_write_1h_usd_per_mtok=6,
    web_search_usd_per_1k=10,
    tiers={200_000: {"input_usd_per_mtok": 6, "output_usd_per_mtok": "22.5"}},
)
"""platform.claude.com/docs/en/about-claude/pricing: Claude Sonnet 4.5 with its long-context prices."""


def counted(**counts: Any) -> TokenUsage:
    return TokenUsage(**counts)


def parts(bill: Bill) -> dict[str, tuple[int, int]]:
    return {charge.bucket: (charge.quantity, charge.nano_usd) for charge in bill.charges}


def test_a_call_is_charged_by_disjoint_buckets() -> None:
    usage = TokenUsage.from_totals(812, 95, cached_input_tokens=64)
    bill = Price("gpt-4o-mini", GPT_4O_MINI).charge(usage)
    assert bill.nano_usd == 174_000
    assert parts(bill) == {"input": (748, 112_200), "cache_read": (64, 4_800), "output": (95, 57_000)}
    assert not bill.unpriced


def test_cache_writes_of_both_lives_and_searches_have_their_own_prices() -> None:
    usage = TokenUsage(input=10, cache_read=1000, cache_write=200, cache_write_1h=300, output=50, web_search=2)
    # In nano-USD: 3000, 300, 3750, 6000 and 15,000 per token, and 10,000,000 per search.
    assert Price("s", SONNET).charge(usage).nano_usd == sum(
        (10 * 3000, 1000 * 300, 200 * 3750, 300 * 6000, 50 * 15_000, 2 * 10_000_000)
    )


def test_a_tier_replaces_the_prices_of_the_whole_call_strictly_above_its_start() -> None:
    price = Price("s", SONNET)
    assert price.charge(TokenUsage(input=200_000, output=10)).nano_usd == 200_000 * 3000 + 150_000
    assert price.charge(TokenUsage(input=200_001, output=10)).nano_usd == 200_001 * 6000 + 225_000


def test_the_tier_follows_all_input_not_only_the_uncached() -> None:
    usage = TokenUsage(input=1, cache_read=200_000, output=1)
    # Cache reads have no price of their own above 200,000 here: they keep the base price.
    assert Price("s", SONNET).charge(usage).nano_usd == 6000 + 200_000 * 300 + 22_500


def test_a_higher_tier_keeps_what_it_leaves_out_from_the_lower() -> None:
    price = Price(
        "t",
        ModelPrice(
            input_usd_per_mtok=1,
            output_usd_per_mtok=2,
            tiers={200: {"input_usd_per_mtok": 5}, 100: {"input_usd_per_mtok": 3, "output_usd_per_mtok": 4}},
        ),
    )
    assert [price.charge(TokenUsage(input=n, output=1)).nano_usd for n in (100, 101, 201)] == [
        100_000 + 2000,
        303_000 + 4000,
        1_005_000 + 4000,
    ]


def test_a_bucket_without_a_price_costs_what_its_parent_costs() -> None:
    price = Price("p", ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10))
    usage = TokenUsage(
        input=1, cache_read=1, cache_write=1, cache_write_1h=1, input_audio=1, cache_read_audio=1,
        input_image=1, cache_read_image=1, output=1, reasoning=1, output_audio=1, output_image=1,
    )  # fmt: skip
    bill = price.charge(usage)
    assert bill.nano_usd == 8 * 1000 + 4 * 10_000
    assert not bill.unpriced


@pytest.mark.parametrize(
    ("given", "bucket", "nano"),
    [
        ({"cache_write_usd_per_mtok": 4}, "cache_write_1h", 4000),
        ({"cache_read_usd_per_mtok": 2, "input_audio_usd_per_mtok": 9}, "cache_read_audio", 2000),
        ({"input_audio_usd_per_mtok": 9}, "cache_read_audio", 9000),
        ({"input_image_usd_per_mtok": 9}, "cache_read_image", 9000),
        ({"reasoning_usd_per_mtok": 3}, "reasoning", 3000),
    ],
)
def test_the_nearest_parent_with_a_price_counts(given: dict[str, Any], bucket: str, nano: int) -> None:
    price = Price("p", ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1, **given))
    assert price.charge(counted(**{bucket: 1})).nano_usd == nano


def test_what_meets_no_price_is_said_so_and_never_silently_free() -> None:
    only_output = Price("o", ModelPrice(output_usd_per_mtok=10))
    bill = only_output.charge(TokenUsage(input=100, output=1))
    assert bill == (10_000, bill.charges, True)
    assert parts(bill) == {"input": (100, 0), "output": (1, 10_000)}
    only_tokens = Price("t", GPT_4O_MINI)
    for bucket in ("web_search", "page", "character", "second"):
        assert only_tokens.charge(counted(output=1, **{bucket: 1})).unpriced
    assert not only_tokens.charge(TokenUsage(output=1)).unpriced


def test_counted_calls_are_unpriced_only_where_nothing_else_was_used() -> None:
    price = Price("t", GPT_4O_MINI)
    assert price.charge(TokenUsage(request=1)) == (0, (), True)
    assert price.charge(TokenUsage(request=1, output=1)).unpriced is False


def test_no_usage_costs_nothing() -> None:
    assert Price("t", SONNET).charge(TokenUsage()) == (0, (), False)
    assert Price("t", ModelPrice(request_usd=1)).charge(TokenUsage()) == (0, (), False)


def test_a_fee_per_call_is_charged_once_where_calls_were_not_counted() -> None:
    price = Price("sonar", ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1, request_usd="0.012"))
    assert price.charge(TokenUsage(input=1)).nano_usd == 12_001_000
    assert price.charge(TokenUsage(input=1, request=3)).nano_usd == 36_001_000
    assert price.hold(1, 0) == 12_001_000


def test_audio_by_duration_has_a_shortest_billed_length() -> None:
    price = Price("whisper", ModelPrice(audio_usd_per_hour="0.36", minimum_seconds=10))
    assert price.charge(TokenUsage(second=60)).nano_usd == 6_000_000
    assert parts(price.charge(TokenUsage(second=3))) == {"second": (10, 1_000_000)}
    assert price.charge(TokenUsage()).nano_usd == 0


def test_pages_and_characters_have_prices() -> None:
    price = Price("x", ModelPrice(page_usd_per_1k=2, character_usd_per_mchar=15))
    assert price.charge(TokenUsage(page=3, character=1000)).nano_usd == 6_000_000 + 15_000_000


def test_a_charge_is_rounded_half_even_once_for_the_whole_call() -> None:
    # 0.0005 USD per million is half a nano-USD per token.
    half = Price("h", ModelPrice(input_usd_per_mtok="0.0005", output_usd_per_mtok="0.0005"))
    assert [half.charge(TokenUsage(input=n)).nano_usd for n in (1, 2, 3, 4, 5)] == [0, 1, 2, 2, 2]
    both = half.charge(TokenUsage(input=1, output=1))
    assert both.nano_usd == 1
    assert parts(both) == {"input": (1, 1), "output": (1, 0)}


def test_a_price_of_a_third_stays_exact() -> None:
    # 0.1 USD per hour is 27,777.7… nano-USD per second.
    price = Price("w", ModelPrice(audio_usd_per_hour="0.1"))
    assert price.charge(TokenUsage(second=36)).nano_usd == 1_000_000
    assert price.charge(TokenUsage(second=1)).nano_usd == 27_778


def test_negative_counts_never_lower_a_charge() -> None:
    bill = Price("g", GPT_4O_MINI).charge(TokenUsage(input=-1_000_000, output=10))
    assert parts(bill) == {"output": (10, 6000)}


def test_a_free_model_is_priced_at_zero() -> None:
    free = Price("local", ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=0.0))
    assert free.free
    assert free.hold(10**6, 10**6, media=True) == 0
    bill = free.charge(TokenUsage(input=5, reasoning=5))
    assert (bill.nano_usd, bill.unpriced) == (0, False)
    assert not Price("none", ModelPrice()).free
    assert not Price("half", ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=1)).free


def test_a_served_tier_replaces_its_prices_and_keeps_the_rest() -> None:
    price = ModelPrice(
        input_usd_per_mtok=2,
        output_usd_per_mtok=8,
        cache_read_usd_per_mtok=1,
        tiers={100: {"input_usd_per_mtok": 4, "output_usd_per_mtok": 16}},
        service_tiers={
            "Flex": {"input_usd_per_mtok": 1, "tiers": {"200": {"input_usd_per_mtok": 3}}},
            "batch": {"output_usd_per_mtok": 4},
        },
    )
    flex = Price("m", price, service_tier="flex")
    assert [flex.charge(TokenUsage(input=n)).nano_usd for n in (100, 101, 201)] == [100_000, 101_000, 603_000]
    assert flex.charge(TokenUsage(input=101, output=1)).nano_usd == 101_000 + 16_000
    assert flex.charge(TokenUsage(cache_read=1)).nano_usd == 1000
    batch = Price("m", price, service_tier="batch")
    assert batch.charge(TokenUsage(input=101, output=1)).nano_usd == 404_000 + 4000
    assert Price("m", price, service_tier="unheard-of").charge(TokenUsage(input=1)).nano_usd == 2000
    assert price.at_service_tier(None) is price


def test_a_hold_takes_the_dearest_bucket_the_call_can_reach() -> None:
    price = Price("s", SONNET)
    assert price.hold(100, 10) == 100 * 6000 + 10 * 15_000  # one-hour cache writes are dearest
    assert price.hold(200_000, 0) == 200_000 * 6000
    assert price.hold(200_001, 1) == 200_001 * 6000 + 22_500


def test_audio_and_images_count_in_a_hold_only_where_the_call_has_them() -> None:
    price = Price(
        "gpt-realtime",
        ModelPrice(
            input_usd_per_mtok=4, output_usd_per_mtok=16, input_audio_usd_per_mtok=32, output_audio_usd_per_mtok=64
        ),
    )
    assert price.hold(1, 1) == 4000 + 16_000
    assert price.hold(1, 1, media=True) == 32_000 + 64_000


def test_a_cheaper_upper_tier_does_not_lower_a_hold() -> None:
    price = Price("d", ModelPrice(input_usd_per_mtok=5, output_usd_per_mtok=5, tiers={10: {"input_usd_per_mtok": 1}}))
    assert price.hold(11, 0) == 55_000
    assert price.charge(TokenUsage(input=11)).nano_usd == 11_000


def test_a_hold_is_rounded_up() -> None:
    price = Price("h", ModelPrice(input_usd_per_mtok="0.0001", output_usd_per_mtok=0))
    assert [price.hold(n, 0) for n in (0, 1, 10, 11)] == [0, 1, 1, 2]


def test_a_price_carries_its_limits() -> None:
    price = Price("m", ModelPrice(input_usd_per_mtok=1, context_window=10, max_output_tokens=5), max_output_tokens=7)
    assert (price.context_window, price.max_output_tokens) == (10, 5)
    assert Price("m", ModelPrice(input_usd_per_mtok=1), max_output_tokens=7).max_output_tokens == 7
    assert repr(price) == "Price('m', provider='', explicit=True, free=False)"


@pytest.mark.parametrize("value", [-1, "-0.01", float("nan"), float("inf"), "x", "", True, [], "1e40", "1e-40"])
@pytest.mark.parametrize("name", ["input_usd_per_mtok", "request_usd", "audio_usd_per_hour"])
def test_a_wrong_amount_is_an_error_that_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        ModelPrice(**{name: value})


def test_wrong_tiers_and_limits_are_errors_that_name_their_place() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tiers": {100: {"input_usd_per_mtok": -1}}}, r"tiers\.100\.input_usd_per_mtok"),
        ({"tiers": {100: {"price": 1}}}, r"tiers\.100\.price"),
        ({"tiers": {"many": {}}}, "tiers: 'many'"),
        ({"tiers": {True: {}}}, "tiers: True"),
        ({"tiers": {-1: {}}}, "tiers: -1"),
        ({"service_tiers": {"flex": {"input": 1}}}, r"service_tiers\.flex\.input"),
        ({"service_tiers": {"flex": {"tiers": {5: {"x": 1}}}}}, r"service_tiers\.flex\.tiers\.5\.x"),
        ({"context_window": -1}, "context_window"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"minimum_seconds": True}, "minimum_seconds"),
    ]
    for fields, message in wrong:
        with pytest.raises(ConfigurationError, match=message):
            ModelPrice(**fields)


def test_more_than_a_thousand_usd_per_million_needs_allow_high() -> None:
    assert ModelPrice(input_usd_per_mtok=1000).input_usd_per_mtok == 1000
    with pytest.raises(ConfigurationError, match=r"output_usd_per_mtok: 1000\.01 .*allow_high"):
        ModelPrice(output_usd_per_mtok="1000.01")
    with pytest.raises(ConfigurationError, match=r"tiers\.5\.input_usd_per_mtok: 2000"):
        ModelPrice(tiers={5: {"input_usd_per_mtok": 2000}})
    high = ModelPrice(input_usd_per_mtok=2000, allow_high=True)
    assert Price("h", high).charge(TokenUsage(input=1)).nano_usd == 2_000_000
    assert ModelPrice(web_search_usd_per_1k=5000).web_search_usd_per_1k == 5000


def test_floats_count_as_the_decimals_they_are_written_as() -> None:
    price = ModelPrice(input_usd_per_mtok=0.1, output_usd_per_mtok=-0.0)
    assert price.input_usd_per_mtok == Decimal("0.1")
    assert str(price.output_usd_per_mtok) == "0.0"


def test_a_table_of_a_configuration_file_names_its_unknown_keys() -> None:
    assert ModelPrice.from_table({"input_usd_per_mtok": 1, "tiers": {"5": {"input_usd_per_mtok": 2}}}).tiers == {
        5: {"input_usd_per_mtok": Decimal(2)}
    }
    with pytest.raises(ConfigurationError, match=r"^input_price: "):
        ModelPrice.from_table({"input_price": 1})


amounts = st.decimals(0, 1000, places=6) | st.sampled_from([Decimal(0), Decimal("0.3333333333333333")])
counts = st.integers(0, 10**6) | st.sampled_from([0, 1, 10**7])


@st.composite
def model_prices(draw: st.DrawFn) -> ModelPrice:
    fields: dict[str, Any] = {name: draw(st.none() | amounts) for name in sorted(AMOUNTS)}
    tiers = st.dictionaries(
        st.integers(0, 300_000), st.dictionaries(st.sampled_from(sorted(AMOUNTS)), amounts, max_size=4), max_size=3
    )
    return ModelPrice(**fields, tiers=draw(tiers), minimum_seconds=draw(st.sampled_from([0, 10])))


usages = st.builds(TokenUsage, **dict.fromkeys(BUCKETS, counts))


@given(model_prices(), usages)
def test_the_buckets_of_a_bill_sum_to_it(price: ModelPrice, usage: TokenUsage) -> None:
    bill = Price("m", price).charge(usage)
    assert sum(charge.nano_usd for charge in bill.charges) == bill.nano_usd
    assert all(charge.nano_usd >= 0 and charge.quantity > 0 for charge in bill.charges)
    named = [charge.bucket for charge in bill.charges]
    assert len(set(named)) == len(named)


@given(amounts, amounts, counts, counts)
def test_a_charge_is_the_exact_sum_rounded_half_even(a: Decimal, b: Decimal, n: int, m: int) -> None:
    price = Price("m", ModelPrice(input_usd_per_mtok=a, output_usd_per_mtok=b))
    exact = (Fraction(a) * n + Fraction(b) * m) * 1000
    assert price.charge(TokenUsage(input=n, output=m)).nano_usd == round(exact)


@given(model_prices(), st.data(), st.integers(0, 400_000), st.integers(0, 100_000), st.booleans())
def test_no_call_within_the_bounds_exceeds_its_hold(
    price: ModelPrice, data: st.DataObject, input_bound: int, output_bound: int, media: bool
) -> None:
    def split(total: int, names: tuple[str, ...]) -> dict[str, int]:
        left, shares = data.draw(st.integers(0, total)), {}
        for name in names:
            shares[name] = data.draw(st.integers(0, left))
            left -= shares[name]
        return shares

    text_in: tuple[str, ...] = ("input", "cache_read", "cache_write", "cache_write_1h")
    text_out: tuple[str, ...] = ("output", "reasoning")
    if media:
        text_in += ("input_audio", "cache_read_audio", "input_image", "cache_read_image")
        text_out += ("output_audio", "output_image")
    usage = counted(**split(input_bound, text_in), **split(output_bound, text_out))
    compiled = Price("m", price)
    assert compiled.charge(usage).nano_usd <= compiled.hold(input_bound, output_bound, media=media)


def test_a_hold_bounds_what_is_counted_besides_tokens() -> None:
    price = Price("whisper", ModelPrice(audio_usd_per_hour="0.36", minimum_seconds=10, request_usd="0.001"))
    per_second = 100_000
    assert price.hold(0, 0, units=TokenUsage(second=60)) == 60 * per_second + 1_000_000
    assert price.hold(0, 0, units=TokenUsage(second=3)) == 10 * per_second + 1_000_000
    assert price.hold(0, 0, units=TokenUsage(request=4)) == 4_000_000
    pages = Price("ocr", ModelPrice(page_usd_per_1k=1, web_search_usd_per_1k=10, character_usd_per_mchar=15))
    assert pages.hold(0, 0, units=TokenUsage(page=3, web_search=2, character=100)) == 3_000_000 + 20_000_000 + 1_500_000


def test_what_a_price_serves_depends_on_the_kind_of_call() -> None:
    text = Price("a", ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1))
    embedding = Price("b", ModelPrice(input_usd_per_mtok=1))
    pages = Price("c", ModelPrice(page_usd_per_1k=1))
    kinds = ("text", "embedding", "ocr")
    assert [text.serves(kind) for kind in kinds] == [True, True, True]
    assert [embedding.serves(kind) for kind in kinds] == [False, True, True]
    assert [pages.serves(kind) for kind in kinds] == [False, False, True]
    assert not Price("d", ModelPrice()).serves("ocr")


def test_a_sum_of_calls_is_charged_at_the_tier_of_its_largest_prompt() -> None:
    price = Price("m", ModelPrice(input_usd_per_mtok=1, tiers={200_000: {"input_usd_per_mtok": 2}}))
    small, large = TokenUsage(input=150_000), TokenUsage(input=250_000)
    assert price.charge(added(added(small, small), small)).nano_usd == 450_000_000
    assert price.charge(added(large, large)).nano_usd == 1_000_000_000
    assert prompt_class(small) != prompt_class(large)


@given(st.lists(st.integers(0, 600_000), min_size=1, max_size=20), st.sampled_from(TIER_STARTS))
def test_sums_by_class_cost_what_their_calls_do(prompts: list[int], start: int) -> None:
    price = Price("m", ModelPrice(input_usd_per_mtok=1, tiers={start: {"input_usd_per_mtok": 2}}))
    sums: dict[int, TokenUsage] = {}
    for prompt in prompts:
        usage = TokenUsage(input=prompt)
        key = prompt_class(usage)
        sums[key] = added(sums[key], usage) if key in sums else usage
    assert sum(price.charge(s).nano_usd for s in sums.values()) == sum(
        price.charge(TokenUsage(input=prompt)).nano_usd for prompt in prompts
    )
