"""Sums of the ledger over spans of time, and who has the highest."""

from __future__ import annotations

import pytest

from askii_middleware.budgets import scope_text
from askii_middleware.stores.base import MAX_EDGES, AggregateRow, SpendRow, SpendSums

from .support import DAY_S, NOON_S, Client

HOUR_S = 3600
MIDNIGHT_S = NOON_S - DAY_S / 2


def row(scope: str, cost: int, model: str = "m", provider: str = "p", requests: int = 1) -> AggregateRow:
    return AggregateRow(scope, model, provider, requests, 10 * requests, 5 * requests, cost)


async def add(client: Client, name: str, at_s: float, *rows: AggregateRow) -> None:
    await client.settle(name, 1, at_s=at_s, aggregates=rows)


async def test_each_span_has_the_hours_that_begin_in_it(client: Client) -> None:
    for hour in range(6):
        await add(client, f"c{hour}", NOON_S + HOUR_S * hour + 1800, row("tenant=acme", 10**hour))
    edges = [NOON_S, NOON_S + HOUR_S, NOON_S + 3 * HOUR_S, NOON_S + 3 * HOUR_S, NOON_S + 4.5 * HOUR_S]
    spans = await client.store.spend_over(["tenant=acme"], edges)
    assert [[found.cost_nano_usd for found in span] for span in spans] == [[1], [110], [], [11_000]]


async def test_a_span_is_broken_down_by_model_and_provider_in_order(client: Client) -> None:
    await add(client, "a", NOON_S, row("tenant=acme", 5, "m2"), row("tenant=acme", 7, "m1", "q"))
    await add(client, "b", NOON_S + HOUR_S, row("tenant=acme", 9, "m1"), row("tenant=acme", 1, "m2"))
    await add(client, "c", NOON_S + DAY_S, row("tenant=acme", 2, "m1"))
    await add(client, "d", NOON_S, row("tenant=acm", 100), row("tenant=acme,user=u", 100), row("global/0", 100))
    edges = [MIDNIGHT_S, MIDNIGHT_S + DAY_S, MIDNIGHT_S + 2 * DAY_S, MIDNIGHT_S + 3 * DAY_S]
    assert await client.store.spend_over(["tenant=acme"], edges) == [
        [SpendRow("m1", "p", 1, 10, 5, 9), SpendRow("m1", "q", 1, 10, 5, 7), SpendRow("m2", "p", 2, 20, 10, 6)],
        [SpendRow("m1", "p", 1, 10, 5, 2)],
        [],
    ]


async def test_several_scopes_are_added_up_each_once(client: Client) -> None:
    await add(client, "a", NOON_S, row("global/0", 1), row("global/1", 20), row("global/2", 300))
    await add(client, "b", NOON_S + HOUR_S, row("global/0", 4000), row("global/1", 50_000, "n"))
    scopes = ["global/0", "global/1", "global/0", "global/7"]
    assert await client.store.spend_over(scopes, [MIDNIGHT_S, MIDNIGHT_S + DAY_S]) == [
        [SpendRow("m", "p", 3, 30, 15, 4021), SpendRow("n", "p", 1, 10, 5, 50_000)]
    ]


async def test_a_year_by_day_is_one_call(client: Client) -> None:
    settlements = [
        client.settlement(f"c{day}", 1, at_s=MIDNIGHT_S + DAY_S * day, aggregates=(row("tenant=acme", day + 1),))
        for day in range(0, 365, 7)
    ]
    await client.store.settle_many(settlements)
    spans = await client.store.spend_over(["tenant=acme"], [MIDNIGHT_S + DAY_S * day for day in range(366)])
    assert len(spans) == 365
    for day, span in enumerate(spans):
        assert [found.cost_nano_usd for found in span] == ([] if day % 7 else [day + 1])


async def test_credits_and_negative_sums_are_sums(client: Client) -> None:
    await add(client, "a", NOON_S, row("tenant=acme", 100))
    await add(client, "b", NOON_S, row("tenant=acme", -250, requests=0))
    assert await client.store.spend_over(["tenant=acme"], [MIDNIGHT_S, NOON_S + DAY_S]) == [
        [SpendRow("m", "p", 1, 10, 5, -150)]
    ]


async def test_without_a_span_or_a_scope_there_is_nothing(client: Client) -> None:
    await add(client, "a", NOON_S, row("tenant=acme", 100))
    assert await client.store.spend_over(["tenant=acme"], []) == []
    assert await client.store.spend_over(["tenant=acme"], [NOON_S]) == []
    assert await client.store.spend_over([], [NOON_S, NOON_S + HOUR_S]) == [[]]
    assert await client.store.spend_over(["tenant=acme"], [NOON_S, NOON_S]) == [[]]


async def test_edges_that_do_not_ascend_or_are_too_many_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="ascend"):
        await client.store.spend_over(["tenant=acme"], [NOON_S, NOON_S - HOUR_S])
    most = [NOON_S + HOUR_S * number for number in range(MAX_EDGES)]
    assert len(await client.store.spend_over(["tenant=acme"], most)) == MAX_EDGES - 1
    with pytest.raises(ValueError, match="1001 edges are more than the 1000"):
        await client.store.spend_over(["tenant=acme"], [*most, most[-1]])


# The highest ---------------------------------------------------------------------------------------------------------


async def test_the_scopes_that_cost_most_come_first_and_equal_ones_by_name(client: Client) -> None:
    costs = (("low", 1), ("high", 50), ("mid", 20), ("also-mid", 20))
    await add(client, "a", NOON_S, *(row(f"tenant={tenant}", cost) for tenant, cost in costs))
    await add(client, "b", NOON_S + HOUR_S, row("tenant=high", 7, "n", requests=3))
    await add(client, "c", NOON_S - DAY_S, row("tenant=low", 1000))
    top = await client.store.top_spend("tenant=", MIDNIGHT_S, MIDNIGHT_S + DAY_S, 3)
    assert top == [
        SpendSums("tenant=high", 4, 40, 20, 57),
        SpendSums("tenant=also-mid", 1, 10, 5, 20),
        SpendSums("tenant=mid", 1, 10, 5, 20),
    ]
    everybody = await client.store.top_spend("tenant=", MIDNIGHT_S, MIDNIGHT_S + DAY_S, 9)
    assert [sums.scope for sums in everybody] == ["tenant=high", "tenant=also-mid", "tenant=mid", "tenant=low"]
    assert (await client.store.top_spend("tenant=", 0, NOON_S + DAY_S, 1))[0].cost_nano_usd == 1001
    assert await client.store.top_spend("tenant=", MIDNIGHT_S, MIDNIGHT_S + DAY_S, 0) == []
    assert await client.store.top_spend("tenant=", NOON_S + DAY_S, NOON_S + 2 * DAY_S, 9) == []


async def test_only_scopes_that_are_the_prefix_and_one_value_are_listed(client: Client) -> None:
    scopes = {
        "tenant=acme": 1,
        "tenant=acme,user=ann": 20,
        "tenant=acme,user=bob": 30,
        "tenant=acme,user=bob,team=x": 99,
        "tenant=acmeX,user=eve": 99,
        "user=ann": 40,
        "key=k": 50,
        "global/3": 60,
        scope_text({"tenant": "a,b=c|%*ü"}): 70,
    }
    await add(client, "a", NOON_S, *(row(scope, cost) for scope, cost in scopes.items()))

    async def top(prefix: str) -> dict[str, int]:
        found = await client.store.top_spend(prefix, MIDNIGHT_S, MIDNIGHT_S + DAY_S, 9)
        return {sums.scope: sums.cost_nano_usd for sums in found}

    odd = "tenant=a%2Cb%3Dc%7C%25%2A%C3%BC"
    assert await top("tenant=") == {odd: 70, "tenant=acme": 1}
    assert await top("tenant=acme,user=") == {"tenant=acme,user=bob": 30, "tenant=acme,user=ann": 20}
    assert await top("user=") == {"user=ann": 40}
    assert await top("key=") == {"key=k": 50}
    assert await top("team=") == {}


async def test_days_and_hours_at_the_edges_of_a_range_are_counted_once(client: Client) -> None:
    for number in range(60):
        await add(client, f"c{number}", MIDNIGHT_S + HOUR_S * number, row("tenant=acme", 1 << number % 30))

    async def cost(first: int, last: int) -> int:
        found = await client.store.top_spend("tenant=", MIDNIGHT_S + HOUR_S * first, MIDNIGHT_S + HOUR_S * last, 1)
        return sum(sums.cost_nano_usd for sums in found)

    for first, last in ((0, 24), (0, 60), (5, 29), (23, 49), (24, 48), (7, 8), (30, 30)):
        assert await cost(first, last) == sum(1 << number % 30 for number in range(first, last)), (first, last)
