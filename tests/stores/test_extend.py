"""Holds that are only a part, and holds that grow: the contract of every store."""

from __future__ import annotations

import pytest

from askii_middleware.admission import Extension
from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores.base import UnwritableError

from .support import DAY_S, NOON_S, Client, budget

GONE = Extension(granted=False, hold_nano_usd=0, reason="held")


async def test_where_a_part_will_do_what_fits_is_held_and_no_more(client: Client) -> None:
    await client.set(budget("tenant=*", 250), budget("global", 1000))
    await client.reserve("a", 100)
    answer = await client.reserve("b", 400, least=50)
    assert (answer.candidate, answer.hold_nano_usd) == (0, 150)
    assert await client.spent_held_of("acme") == {"tenant=acme": (0, 250), "global": (0, 250)}
    assert (await client.reserve("c", 400, least=1)).reason == "held"
    assert await client.reserve("b", 400, least=50) == answer
    await client.settle("b", 120)
    assert await client.spent_held_of("acme") == {"tenant=acme": (120, 100), "global": (120, 100)}
    assert (await client.store.totals()).held_nano_usd == 100


async def test_an_extension_raises_the_hold_on_all_its_counters(client: Client) -> None:
    await client.set(budget("tenant=*", 1000), budget("global", 1000))
    await client.reserve("a", 100)
    assert await client.extend("a", 300) == Extension(granted=True, hold_nano_usd=300)
    assert await client.spent_held_of("acme") == {"tenant=acme": (0, 300), "global": (0, 300)}
    assert (await client.store.totals()).held_nano_usd == 300
    await client.settle("a", 250)
    assert await client.spent_held_of("acme") == {"tenant=acme": (250, 0), "global": (250, 0)}


async def test_an_extension_takes_what_is_left_if_that_is_enough_and_else_nothing(client: Client) -> None:
    await client.set(budget("tenant=*", 1000), budget("global", 400))
    await client.reserve("a", 100)
    await client.reserve("other", 100, tenant="other")
    assert await client.extend("a", 900, 200) == Extension(granted=True, hold_nano_usd=300)
    refused = await client.extend("a", 900, 301, sequence=2)
    assert (refused.granted, refused.hold_nano_usd, refused.reason) == (False, 300, "held")
    assert refused.deciding is not None
    assert (refused.deciding.scope, refused.deciding.held_nano_usd) == ("global", 400)
    assert await client.spent_held_of("acme") == {"tenant=acme": (0, 300), "global": (0, 400)}
    await client.settle("other", 100)
    assert (await client.extend("a", 900, 301, sequence=3)).reason == "spent"


async def test_a_sequence_that_was_answered_changes_nothing_and_tells_what_is_held(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await client.reserve("a", 100)
    await client.extend("a", 300, sequence=1)
    await client.extend("a", 500, sequence=2)
    for sequence in (0, 1, 2):
        assert await client.extend("a", 900, 400, sequence=sequence) == Extension(granted=True, hold_nano_usd=500)
    assert (await client.extend("a", 2000, sequence=3)).reason == "spent"
    await client.set(budget("tenant=*", 5000))
    assert await client.extend("a", 2000, sequence=3) == Extension(granted=False, hold_nano_usd=500, reason="held")
    assert await client.extend("a", 2000, sequence=4) == Extension(granted=True, hold_nano_usd=2000)


async def test_a_hold_of_nothing_can_grow_and_no_hold_shrinks(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await client.reserve("a", 0)
    assert (await client.extend("a", 10)).hold_nano_usd == 10
    assert await client.extend("a", 4, sequence=2) == Extension(granted=True, hold_nano_usd=10)
    assert await client.spent_held() == (0, 10)


async def test_limits_are_those_of_the_moment_and_budgets_that_came_later_do_not_bind(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await client.reserve("a", 100)
    await client.set(budget("tenant=*", 150), budget("global", 1))
    assert await client.extend("a", 300, 120) == Extension(granted=True, hold_nano_usd=150)
    await client.store.remove_budget("tenant=*|daily")
    await client.refresh()
    assert await client.extend("a", 900, sequence=2) == Extension(granted=True, hold_nano_usd=900)
    assert await client.spent_held_of("acme") == {"global": (0, 0)}


async def test_a_limit_in_coins_bounds_an_extension_at_the_rate_it_brings(client: Client) -> None:
    await client.set(budget("tenant=*", None, limit_coins="0.4"))
    await client.reserve("a", 100)
    assert (await client.extend("a", 900, 200, rate="1000000")).hold_nano_usd == 400
    assert (await client.extend("a", 900, 500, sequence=2, rate="500000")).hold_nano_usd == 800


async def test_an_extension_belongs_to_the_window_of_the_admission(client: Client) -> None:
    await client.set(budget("tenant=*", 300))
    client.clock.now_s = NOON_S + DAY_S / 2 - 1
    await client.reserve("a", 100, deadline_s=7200.0)
    admitted_at_s = client.clock.now_s
    client.clock.advance(2)
    await client.reserve("b", 250)
    assert await client.extend("a", 900, 200, at_s=admitted_at_s) == Extension(granted=True, hold_nano_usd=300)
    assert await client.spent_held() == (0, 250)
    # Nor does it matter that the request knows today's windows only.
    assert (await client.extend("a", 900, 301, sequence=2)).reason == "spent"


async def test_a_hold_that_does_not_count_any_more_is_not_revived(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    assert await client.extend("never", 100) == GONE
    for name in ("settled", "released", "expired"):
        await client.reserve(name, 10, deadline_s=60.0)
    await client.settle("settled", 10)
    await client.store.release("released")
    await client.store.heartbeat("mortal", 30)
    await client.reserve("dead", 10, worker="mortal")
    await client.reserve("buried", 10, worker="mortal")
    client.clock.advance(61)
    for name in ("settled", "released", "expired", "dead"):
        assert await client.extend(name, 100) == GONE
    await client.store.heartbeat("w", 60)
    assert await client.extend("buried", 100) == GONE
    assert await client.spent_held() == (10, 0)


async def test_the_hold_of_an_operation_can_grow_without_its_worker(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await client.store.heartbeat("mortal", 30)
    await client.reserve("a", 100, worker="mortal")
    await client.defer("a")
    client.clock.advance(60)
    await client.store.heartbeat("w", 60)
    assert await client.extend("a", 400) == Extension(granted=True, hold_nano_usd=400)
    await client.store.release("a")
    assert await client.spent_held() == (0, 0)


async def test_holds_past_their_deadline_leave_room_for_an_extension(client: Client) -> None:
    await client.set(budget("tenant=*", 300))
    await client.reserve("short", 200, deadline_s=10.0)
    await client.reserve("a", 100)
    assert (await client.extend("a", 200)).granted is False
    client.clock.advance(10)
    assert await client.extend("a", 300, sequence=2) == Extension(granted=True, hold_nano_usd=300)


async def test_an_extension_beyond_what_a_counter_holds_is_unwritable_and_changes_nothing(client: Client) -> None:
    await client.set(budget("tenant=*", None))
    await client.settle("spent", MAX_NANO_USD - 1000)
    await client.reserve("a", 100)
    for target in (1001, MAX_NANO_USD + 1, -1):
        with pytest.raises(UnwritableError):
            await client.extend("a", target)
    assert await client.spent_held() == (MAX_NANO_USD - 1000, 100)
    assert (await client.extend("a", 1000)).hold_nano_usd == 1000


# Shadow and soft budgets ---------------------------------------------------------------------------------------------


async def test_in_shadow_the_requested_model_is_held_for_whole_and_the_answer_is_told(client: Client) -> None:
    await client.set(budget("tenant=*", 150))
    await client.reserve("a", 100)
    answer = await client.reserve("b", 100, 30, shadow=True)
    assert (answer.candidate, answer.hold_nano_usd, answer.reason) == (0, 100, None)
    assert answer.shadow is not None
    assert (answer.shadow.candidate, answer.shadow.hold_nano_usd, answer.shadow.shadow) == (1, 30, None)
    assert await client.spent_held() == (0, 200)
    denied = (await client.reserve("c", 100, shadow=True)).shadow
    assert denied is not None
    assert (denied.candidate, denied.reason, denied.deciding) == (None, "held", denied.states[0])
    assert await client.reserve("b", 100, 30, shadow=True) == answer
    await client.settle("b", 100)
    assert await client.spent_held() == (100, 200)


async def test_in_shadow_counters_pass_their_limits_but_not_their_range(client: Client) -> None:
    await client.set(budget("tenant=*", 0))
    await client.reserve("a", MAX_NANO_USD, shadow=True)
    with pytest.raises(UnwritableError):
        await client.reserve("b", 1, shadow=True)
    assert await client.spent_held() == (0, MAX_NANO_USD)


async def test_a_soft_budget_counts_and_never_refuses(client: Client) -> None:
    await client.set(budget("tenant=*", 100, soft=True))
    answer = await client.reserve("a", 500)
    assert (answer.candidate, answer.hold_nano_usd, answer.states[0].soft) == (0, 500, True)
    assert (await client.extend("a", 900)).hold_nano_usd == 900
    (state,) = await client.status()
    assert (state.soft, state.limit_nano_usd, state.held_nano_usd) == (True, 100, 900)


async def test_where_budgets_share_a_counter_the_lowest_limit_that_can_refuse_rules(client: Client) -> None:
    await client.set(
        budget("tenant=acme,model=*", 100, soft=True), budget("tenant=*,model=m", 300), budget("global", None)
    )
    (first, second) = sorted(await client.status(), key=lambda state: state.scope)
    assert (first.scope, first.limit_nano_usd, first.soft) == ("global", None, False)
    assert (second.scope, second.limit_nano_usd, second.soft) == ("tenant=acme,model=m", 300, False)
    await client.set(budget("tenant=*,model=m", None))
    assert [s.soft for s in await client.status() if s.limit_nano_usd == 100] == [True]
    assert (await client.reserve("a", 500)).hold_nano_usd == 500
    assert {s.held_nano_usd for s in await client.status()} == {500}
