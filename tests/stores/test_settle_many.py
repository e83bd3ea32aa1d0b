from __future__ import annotations

import msgspec

from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores.base import Settled, UnwritableError

from .credit_support import draw, use
from .support import Client, budget

PLAIN = Settled(0, late=False, duplicate=False)


async def recorded(client: Client) -> list[str]:
    return [msgspec.json.decode(body)["call_id"] for _, body in await client.store.records()]


async def test_nothing_to_settle_is_answered_with_nothing(client: Client) -> None:
    assert await client.store.settle_many([]) == []


async def test_each_call_is_settled_as_if_alone_and_in_this_order(client: Client) -> None:
    client.declare(budget("tenant=*", 10_000))
    await client.reserve("held", 300)
    await client.reserve("late", 300, deadline_s=1.0)
    client.clock.advance(1)
    drawn = await draw(client, 1, 500)
    answers = await client.store.settle_many(
        [
            client.settlement("held", 100),
            client.settlement("late", 20),
            client.settlement("credit", 3, credit=use(drawn)),
            client.settlement("plain", 4),
        ]
    )
    assert answers == [PLAIN, PLAIN._replace(late=True), PLAIN, PLAIN]
    assert await client.spent_held() == (127, 497)
    assert await recorded(client) == ["held", "late", "credit", "plain"]
    assert (await client.store.totals())[:4] == (4, 127, 4, 127)


async def test_the_same_call_twice_among_them_is_charged_once(client: Client) -> None:
    client.declare(budget("tenant=*", 10**9))
    first, second, third = await client.store.settle_many(
        [client.settlement("a", 1_999_999), client.settlement("a", 5), client.settlement("b", 1)]
    )
    assert first == Settled(1999, late=False, duplicate=False)
    assert second == Settled(1999, late=False, duplicate=True)
    assert third == Settled(1, late=False, duplicate=False)  # the fraction of the first, and a thousandth
    assert await client.spent_held() == (2_000_000, 0)


async def test_repeating_them_all_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 10_000))
    drawn = await draw(client, 1, 500)
    settlements = [client.settlement("a", 100), client.settlement("b", 30, credit=use(drawn))]
    first = await client.store.settle_many(settlements)
    again = await client.store.settle_many([*settlements, client.settlement("c", 1)])
    assert again == [answer._replace(duplicate=True) for answer in first if isinstance(answer, Settled)] + [PLAIN]
    assert await client.spent_held() == (131, 470)
    assert await recorded(client) == ["a", "b", "c"]


async def test_one_that_can_never_be_written_keeps_none_of_the_others_from_being_written(client: Client) -> None:
    await client.set(budget("tenant=*", 10_000, alert_at=(0.01,)))
    await client.store.register_sinks(["s"])
    await client.reserve("big", 300)
    await client.defer("big")
    drawn = await draw(client, 1, 500)
    answers = await client.store.settle_many(
        [
            client.settlement("a", 7),
            client.settlement("big", MAX_NANO_USD),
            client.settlement("bigger", MAX_NANO_USD + 1, credit=use(drawn)),
            client.settlement("b", 8, credit=use(drawn)),
        ]
    )
    assert [type(answer) for answer in answers] == [Settled, UnwritableError, UnwritableError, Settled]
    assert await recorded(client) == ["a", "b"]
    assert await client.spent_held() == (15, 300 + 492)  # the first one's hold stands, and no credit was used
    assert await client.alerts() == []
    assert await client.store.operation("k:big") is not None
    assert await client.store.pending() == {"s": 2}
    assert await client.settle("big", 100) == PLAIN
    assert [alert.spent_nano_usd for alert in await client.alerts()] == [115]


async def test_one_after_an_unwritable_one_of_the_same_call_is_written(client: Client) -> None:
    client.declare(budget("tenant=*", 10_000))
    answers = await client.store.settle_many([client.settlement("a", MAX_NANO_USD + 1), client.settlement("a", 9)])
    assert isinstance(answers[0], UnwritableError)
    assert answers[1] == PLAIN
    assert await client.spent_held() == (9, 0)


async def test_each_sees_what_those_before_it_have_charged(client: Client) -> None:
    await client.set(budget("tenant=*", 100, alert_at=(0.5, 1.0)))
    await client.store.settle_many([client.settlement(f"c{n}", 30) for n in range(4)])
    assert [(alert.share_ppm, alert.spent_nano_usd) for alert in await client.alerts()] == [
        (500_000, 60),
        (1_000_000, 120),
    ]


async def test_100_calls_of_two_tenants_come_to_the_exact_sums(client: Client) -> None:
    client.declare(budget("tenant=*", 10**6), budget("global", 10**6))
    answers = await client.store.settle_many(
        [client.settlement(f"c{n}", n, tenant=("acme", "other")[n % 2]) for n in range(100)]
    )
    coins = [answer.coins for answer in answers if isinstance(answer, Settled)]
    assert (len(coins), sum(coins[::2]), sum(coins[1::2])) == (100, 2, 2)
    assert await client.spent_held_of("acme") == {"tenant=acme": (2450, 0), "global": (4950, 0)}
    assert await client.spent_held_of("other") == {"tenant=other": (2500, 0), "global": (4950, 0)}
    assert await recorded(client) == [f"c{n}" for n in range(100)]
