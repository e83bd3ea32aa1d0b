"""Credit: how it is granted, told again, and given back."""

from __future__ import annotations

from decimal import Decimal

import pytest

from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores.base import (
    Drawn,
    StaleFormsError,
    UnwritableError,
)

from .credit_support import asks, by_counter, draw, drawn_line, settle_from, use
from .support import COUNTER, NOON_S, Client, budget

GLOBAL = "global|daily|UTC|1767225600"


def granted(drawn: Drawn) -> dict[str, int]:
    return {counter: line.granted_nano_usd for counter, line in by_counter(drawn).items()}


# Granting -------------------------------------------------------------------------------------------------------------


async def test_a_draw_tells_the_time_the_window_and_what_was_granted_and_holds_it(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    ((line,),) = drawn.lines
    assert drawn.now_s == NOON_S
    assert (line.granted_nano_usd, line.needs_store, line.start_s) == (600, False, 1_767_225_600)
    assert (line.state.counter, line.state.limit_nano_usd, line.state.resets_at_s) == (COUNTER, 1000, 1_767_312_000)
    assert (line.state.spent_nano_usd, line.state.held_nano_usd, line.state.remaining_nano_usd) == (0, 600, 400)


async def test_a_grant_counts_as_held_for_everyone_else_at_once(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 60)
    await draw(client, 1, 600)
    refused = await client.reserve("a", 401, worker="v")
    assert (refused.candidate, refused.reason) == (None, "held")
    assert (await client.reserve("b", 400, worker="v")).candidate == 0
    assert (await drawn_line(client, 1, 100, holder="v")).granted_nano_usd == 0
    assert await client.spent_held() == (0, 1000)


async def test_a_hold_is_not_extended_into_credit(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 100)
    await draw(client, 1, 600)
    refused = await client.extend("a", 401)
    assert (refused.granted, refused.hold_nano_usd, refused.reason) == (False, 100, "held")
    assert (await client.extend("a", 400, sequence=2)).granted


async def test_what_is_spent_and_held_is_not_granted(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.settle("a", 300)
    await client.reserve("b", 250)
    assert (await drawn_line(client, 1, 9999)).granted_nano_usd == 450
    assert await client.spent_held() == (300, 700)
    await client.settle("c", 500)
    assert (await drawn_line(client, 2, 1)).granted_nano_usd == 450
    assert await client.spent_held() == (800, 700)


async def test_holds_that_lapsed_leave_room_for_credit(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 60)
    await client.reserve("a", 500, deadline_s=5.0)
    await client.reserve("b", 400, worker="v")
    client.clock.advance(5)
    assert (await drawn_line(client, 1, 9999)).granted_nano_usd == 600
    client.clock.advance(55)
    assert (await drawn_line(client, 2, 9999)).granted_nano_usd == 1000


async def test_credit_adds_up_and_never_ends_with_a_draw_for_less(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    assert [(await drawn_line(client, n + 1, more)).granted_nano_usd for n, more in enumerate((300, 0, 50, 900))] == [
        300,
        300,
        350,
        1000,
    ]


async def test_at_most_a_share_of_what_is_left_is_granted_rounded_down(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.settle("a", 101)
    assert (await drawn_line(client, 1, 9999, share=250_000)).granted_nano_usd == 224
    assert (await drawn_line(client, 2, 9999, share=250_000)).granted_nano_usd == 224 + 168
    assert (await drawn_line(client, 3, 100, share=250_000)).granted_nano_usd == 224 + 168 + 100
    assert (await drawn_line(client, 4, 9999, share=0)).granted_nano_usd == 492


async def test_nothing_is_granted_beyond_a_ceiling_of_spent_and_held(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.settle("a", 300)
    assert (await drawn_line(client, 1, 9999, ceiling=900_000)).granted_nano_usd == 600
    assert (await drawn_line(client, 2, 9999, ceiling=500_000)).granted_nano_usd == 600
    assert (await drawn_line(client, 3, 9999, ceiling=950_999)).granted_nano_usd == 650


async def test_a_share_or_a_ceiling_above_the_whole_is_the_whole(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    line = await drawn_line(client, 1, 9999, share=3_000_000, ceiling=3_000_000)
    assert line.granted_nano_usd == 1000


async def test_shares_of_the_largest_limits_are_exact(client: Client) -> None:
    client.declare(budget("tenant=*", MAX_NANO_USD))
    await client.settle("a", 7)
    first = (MAX_NANO_USD - 7) * 999_999 // 1_000_000
    assert (await drawn_line(client, 1, MAX_NANO_USD, share=999_999)).granted_nano_usd == first
    line = await drawn_line(client, 2, MAX_NANO_USD, ceiling=999_999)
    assert line.granted_nano_usd == max(first, MAX_NANO_USD * 999_999 // 1_000_000 - 7)
    assert (await drawn_line(client, 3, MAX_NANO_USD)).granted_nano_usd == MAX_NANO_USD - 7
    assert await client.spent_held() == (7, MAX_NANO_USD - 7)


async def test_asks_are_granted_in_order_and_see_those_before_them(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, asks=(*asks(client, 700), *asks(client, 700)))
    assert [(line.granted_nano_usd, line.state.held_nano_usd) for (line,) in drawn.lines] == [(700, 700), (1000, 1000)]


async def test_each_ask_is_answered_in_its_place_and_without_a_budget_with_no_lines(client: Client) -> None:
    client.declare(budget("tenant=acme", 1000, enabled=False), budget("global", 500))
    wanted = asks(client, 200)
    assert len(wanted) == 2
    drawn = await draw(client, 1, asks=wanted)
    assert [[line.state.scope for line in lines] for lines in drawn.lines] == [
        ["global"] if ask.match.counter.startswith("global") else [] for ask in wanted
    ]
    assert granted(drawn) == {GLOBAL: 200}


async def test_several_lines_of_one_match_are_granted_each_what_they_have(client: Client) -> None:
    client.declare(budget("tenant=acme,model=*", 1000, zone="UTC"), budget("tenant=*,model=m", 300, zone="Asia/Tokyo"))
    drawn = await draw(client, 1, 500)
    assert len(drawn.lines) == 1
    tokyo, utc = sorted(by_counter(drawn).values(), key=lambda line: line.start_s)
    assert (utc.granted_nano_usd, tokyo.granted_nano_usd) == (500, 300)
    assert utc.start_s - tokyo.start_s == 9 * 3600 or tokyo.start_s - utc.start_s == 15 * 3600


async def test_budgets_that_share_a_counter_are_one_line_and_the_lowest_limit_rules(client: Client) -> None:
    client.declare(budget("tenant=acme,model=*", 1000), budget("tenant=*,model=m", 300))
    line = await drawn_line(client, 1, 500)
    assert (line.granted_nano_usd, line.state.limit_nano_usd) == (300, 300)


async def test_a_limit_in_coins_is_what_it_is_at_the_draws_rate(client: Client) -> None:
    client.declare(budget("tenant=*", None, limit_coins=Decimal("0.5")))
    assert (await drawn_line(client, 1, 9999)).granted_nano_usd == 500
    assert (await drawn_line(client, 2, 9999, rate=(500_000, 1))).granted_nano_usd == 1000


async def test_lines_that_cannot_refuse_need_no_credit_and_get_none(client: Client) -> None:
    client.declare(budget("tenant=*", None), budget("global", 100, soft=True), budget("model=*", 0, soft=True))
    drawn = await draw(client, 1, 50)
    assert len(granted(drawn)) == 3
    assert {(line.granted_nano_usd, line.needs_store) for line in by_counter(drawn).values()} == {(0, False)}
    assert await client.store.credits() == []


async def test_a_limit_of_0_gives_no_credit_and_needs_the_store(client: Client) -> None:
    client.declare(budget("tenant=*", 0))
    line = await drawn_line(client, 1, 50)
    assert (line.granted_nano_usd, line.needs_store) == (0, True)


@pytest.mark.parametrize("limit", [1000, None])
async def test_lines_whose_values_crowd_give_no_credit_and_need_the_store(client: Client, limit: int | None) -> None:
    client.declare(budget("end_user=*", limit, max_values=1))
    line = await drawn_line(client, 1, 50, end_user="ann")
    assert (line.state.scope, line.granted_nano_usd, line.needs_store) == ("end_user=ann", 0, True)
    await client.reserve("a", 10, values={"end_user": "bob"})  # the draw took no place
    line = await drawn_line(client, 2, 50, end_user="bob")
    assert (line.state.scope, line.granted_nano_usd, line.needs_store) == ("end_user=bob", 0, True)
    line = await drawn_line(client, 3, 50, end_user="ann")
    assert (line.state.scope, line.granted_nano_usd, line.needs_store) == ("end_user=*", 0, True)


async def test_a_budget_that_became_soft_or_lost_its_limit_still_tells_what_was_granted(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await draw(client, 1, 300)
    await client.set(budget("tenant=*", 1000, soft=True))
    line = await drawn_line(client, 2, 100)
    assert (line.granted_nano_usd, line.needs_store, line.state.held_nano_usd) == (300, False, 300)
    await client.set(budget("tenant=*", None))
    assert (await drawn_line(client, 3, 100)).granted_nano_usd == 300


async def test_a_lowered_limit_grants_nothing_more_and_shows_nothing_left(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await draw(client, 1, 600)
    await client.set(budget("tenant=*", 500))
    line = await drawn_line(client, 2, 100)
    assert (line.granted_nano_usd, line.state.held_nano_usd, line.state.remaining_nano_usd) == (600, 600, 0)
    line = await drawn_line(client, 3, 100, returns=((COUNTER, 350),))
    assert (line.granted_nano_usd, line.state.remaining_nano_usd) == (350, 150)


# Repeating ------------------------------------------------------------------------------------------------------------


async def test_a_draw_with_an_old_or_equal_sequence_changes_nothing_and_tells_what_is(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    first = await draw(client, 5, 300)
    assert await draw(client, 5, 300) == first
    assert await draw(client, 4, 300) == first
    assert await draw(client, 5, 300, returns=((COUNTER, 100),)) == first
    await client.settle("a", 50)
    line = await drawn_line(client, 5, 300)
    assert (line.granted_nano_usd, line.state.spent_nano_usd, line.state.held_nano_usd) == (300, 50, 300)
    assert (await drawn_line(client, 6, 300)).granted_nano_usd == 600


async def test_a_lost_answer_heals_by_what_the_next_draw_says_was_granted_in_all(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await draw(client, 1, 300)  # its answer never came
    line = await drawn_line(client, 2, 200)
    assert (line.granted_nano_usd, line.state.held_nano_usd) == (500, 500)


async def test_each_holder_counts_its_own_draws(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 60)
    await draw(client, 7, 300)
    assert (await drawn_line(client, 1, 200, holder="v")).granted_nano_usd == 200
    assert [row[:4] for row in await client.store.credits()] == [(COUNTER, "v", 200, 0), (COUNTER, "w", 300, 0)]


async def test_a_draw_from_outdated_forms_or_without_its_windows_changes_nothing(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    with pytest.raises(StaleFormsError):
        await draw(client, 1, 300, forms_version=client.index.version - 1)
    with pytest.raises(StaleFormsError):
        await draw(client, 1, 300, windows={})
    assert (await drawn_line(client, 1, 100)).granted_nano_usd == 100


async def test_a_draw_for_what_no_counter_holds_is_refused_and_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await draw(client, 1, 300)
    for more, back in ((MAX_NANO_USD + 1, 0), (-1, 0), (0, -1), (0, MAX_NANO_USD + 1)):
        with pytest.raises(UnwritableError):
            await draw(client, 2, more, returns=((COUNTER, back),))
    assert (await drawn_line(client, 2, 100)).granted_nano_usd == 400


# Giving back ----------------------------------------------------------------------------------------------------------


async def test_what_is_given_back_is_free_at_once(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await draw(client, 1, 600)
    line = await drawn_line(client, 2, returns=((COUNTER, 250),))
    assert (line.granted_nano_usd, line.state.held_nano_usd) == (350, 350)
    assert (await client.reserve("a", 650)).candidate == 0


async def test_more_than_there_is_gives_back_what_there_is(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await settle_from(client, "a", 200, use(drawn))
    line = await drawn_line(client, 2, returns=((COUNTER, 999), ("tenant=nobody|daily|UTC|0", 5)))
    assert (line.granted_nano_usd, line.state.spent_nano_usd, line.state.held_nano_usd) == (200, 200, 0)
    assert await client.store.credits() == []


async def test_returns_come_before_asks(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await draw(client, 1, 1000)
    assert (await drawn_line(client, 2, 999, returns=((COUNTER, 700),), share=500_000)).granted_nano_usd == 650


async def test_nobody_gives_back_what_others_hold(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 60)
    await draw(client, 1, 600)
    await draw(client, 1, returns=((COUNTER, 600),), holder="v")
    assert await client.spent_held() == (0, 600)
