"""Whole coins are billed, fractions are carried: nothing is lost and nothing is made up."""

from __future__ import annotations

import random
from fractions import Fraction
from math import floor
from pathlib import Path

import msgspec
import pytest

from askii_middleware.currency import parse_rate
from askii_middleware.stores import open_store

from .support import Client, Clock

RATES = [parse_rate(text) for text in ("1", "1000", "1e6", "1234567")]


async def test_credits_are_set_off_against_later_charges_and_no_bill_is_ever_negative(client: Client) -> None:
    costs = (2_500, -4_700, 1_000, -100, 2_000, 400, 1_300)
    bills = [(await client.settle(f"c{n}", cost)).coins for n, cost in enumerate(costs)]
    assert bills == [2, 0, 0, 0, 0, 0, 0]  # 2.5 coins are owed at first, and 2.4 at the end
    assert (await client.settle("d", 600)).coins == 1
    assert (await client.settle("e", -100, subscription="other")).coins == 0
    assert (await client.settle("f", 1_100, subscription="other")).coins == 1


async def test_what_was_billed_is_the_exact_sum_but_for_a_fraction_once_credits_are_used_up(client: Client) -> None:
    rng = random.Random(20260102)
    rate = parse_rate("1234567")
    exact, billed, highest = Fraction(), 0, 0
    for n in range(500):
        cost = rng.choice([-1, 1]) * rng.randrange(10**4) + 20
        settled = await client.settle(f"c{n}", cost, rate=rate)
        assert settled.coins >= 0
        exact += Fraction(cost * rate.numerator, 10**9 * rate.denominator)
        billed += settled.coins
        highest = max(highest, floor(exact + Fraction(1, 10**6)))
        assert abs(billed - highest) <= 1  # never above what was once owed, and never behind it
    settled = await client.settle("last", 10**9, rate=rate)
    assert abs(billed + settled.coins - exact - rate.numerator // rate.denominator) < 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_coins_of_10000_calls_at_changing_rates_are_within_one_of_the_exact_sum(
    kind: str, clock: Clock, tmp_path: Path
) -> None:
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'askii.db'}"
    rng = random.Random(20260101)
    client = Client(open_store(url, clock=clock), clock)
    await client.store.open()
    exact: dict[str, Fraction] = {}
    billed: dict[str, int] = {}
    rate = RATES[0]
    for n in range(10_000):
        if n % 7 == 0:
            rate = rng.choice(RATES)
        if n % 2500 == 2499 and kind == "sqlite":
            await client.store.close()
            client.store = open_store(url, clock=clock)
            await client.store.open()
        subscription = rng.choice(["s1", "s2", "s3", ""])
        cost = rng.choice([0, 1, 150, rng.randrange(10**6), rng.randrange(10**10)])
        settled = await client.settle(f"c{n}", cost, subscription=subscription, rate=rate)
        exact[subscription] = exact.get(subscription, Fraction()) + Fraction(
            cost * rate.numerator, 10**9 * rate.denominator
        )
        billed[subscription] = billed.get(subscription, 0) + settled.coins
    for subscription, sum_exact in exact.items():
        assert abs(billed[subscription] - sum_exact) < 1
    in_records = sum(msgspec.json.decode(body)["askii_coins"] for _, body in await client.store.records(limit=10**6))
    assert in_records == sum(billed.values())
    await client.store.close()
