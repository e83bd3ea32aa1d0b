"""Calls that a worker admitted by itself and that then need a hold: to grow, to go on elsewhere."""

from __future__ import annotations

import pytest

from askii_middleware.admission import Admission
from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores.base import CreditUse, DeadWorkerError, Settled, ShortCreditError, UnwritableError

from .credit_support import draw, drawn_line, promote, settle_from, use
from .support import COUNTER, NOON_S, Client, budget


async def test_a_promotion_moves_credit_into_a_hold_and_the_sum_of_both_stays_the_same(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000))
    drawn = await draw(client, 1, 600)
    await promote(client, "a", 250, use(drawn), drawn)
    assert await client.spent_held_of("acme") == {"tenant=acme": (0, 600), "global": (0, 600)}
    assert [row[1:4] for row in await client.store.credits()] == [("w", 350, 0)] * 2
    assert (await client.store.totals()).held_nano_usd == 250
    assert [line.granted_nano_usd for (line,) in (await draw(client, 2)).lines] == [350, 350]


async def test_a_reserve_of_a_promoted_call_gets_the_answer_its_worker_gave(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    admission = await promote(client, "a", 250, use(drawn), drawn)
    assert await client.reserve("a", 999) == admission
    assert await client.spent_held() == (0, 600)
    await client.settle("a", 30)
    assert await client.reserve("a", 999) == Admission(candidate=0, admitted_at_s=NOON_S)


async def test_a_promoted_call_extends_and_settles_like_any_other(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await promote(client, "a", 250, use(drawn), drawn)
    assert (await client.extend("a", 650)).hold_nano_usd == 650
    assert not (await client.extend("a", 651, sequence=2)).granted
    assert await client.settle("a", 640) == Settled(0, late=False, duplicate=False)
    assert await client.spent_held() == (640, 350)


async def test_a_promoted_call_that_is_released_leaves_only_what_credit_remained(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await promote(client, "a", 250, use(drawn), drawn)
    await client.store.release("a")
    assert await client.spent_held() == (0, 350)
    assert (await client.settle("a", 10)).late


async def test_a_promoted_call_can_go_on_elsewhere_and_outlive_its_worker(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 600, holder="v")
    await promote(client, "a", 250, use(drawn, holder="v"), drawn)
    await promote(client, "b", 100, use(drawn, holder="v"), drawn)
    assert await client.defer("a")
    client.clock.advance(20)
    await client.store.heartbeat("w", 86_400)
    assert await client.spent_held() == (0, 250 + 250)  # the hold elsewhere, and credit; "b" went with its worker
    assert (await client.store.totals()).lost == 1
    assert not (await client.settle("a", 90)).late


async def test_a_promoted_hold_ends_at_its_deadline(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await promote(client, "a", 250, use(drawn), drawn, deadline_s=5.0)
    client.clock.advance(5)
    assert await client.spent_held() == (0, 350)
    assert (await client.settle("a", 10)).late


async def test_a_second_promotion_of_a_call_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await promote(client, "a", 250, use(drawn), drawn)
    await promote(client, "a", 250, use(drawn), drawn)
    assert [row[1:4] for row in await client.store.credits()] == [("w", 350, 0)]
    await client.settle("a", 100)
    await promote(client, "a", 250, use(drawn), drawn)
    await client.store.release("b")
    assert await client.spent_held() == (100, 350)


async def test_a_call_that_was_released_or_settled_from_credit_gets_no_hold(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await client.reserve("a", 10)
    await client.store.release("a")
    await settle_from(client, "b", 50, use(drawn))
    for call_id in ("a", "b"):
        await promote(client, call_id, 250, use(drawn), drawn)
    assert await client.spent_held() == (50, 550)
    assert (await client.store.totals()).held_nano_usd == 0


async def test_without_the_credit_on_every_counter_a_promotion_is_refused_and_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 100))
    drawn = await draw(client, 1, 600)
    with pytest.raises(ShortCreditError, match="draw first"):
        await promote(client, "a", 101, use(drawn), drawn)
    assert await client.spent_held_of("acme") == {"tenant=acme": (0, 600), "global": (0, 100)}
    assert sorted(row[2] for row in await client.store.credits()) == [100, 600]
    assert (await client.store.totals()).held_nano_usd == 0
    await promote(client, "a", 100, use(drawn), drawn)


async def test_credit_that_calls_have_used_up_cannot_be_promoted(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    await settle_from(client, "a", 400, use(drawn))
    with pytest.raises(ShortCreditError):
        await promote(client, "b", 201, use(drawn), drawn)
    await promote(client, "b", 200, use(drawn), drawn)
    assert await client.spent_held() == (400, 200)
    assert (await drawn_line(client, 2)).granted_nano_usd == 400


async def test_others_credit_cannot_be_promoted(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 600)
    with pytest.raises(ShortCreditError):
        await promote(client, "a", 100, use(drawn, holder="v"), drawn)


async def test_lines_that_cannot_refuse_need_no_credit_to_be_held_on(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", None), budget("model=*", 50, soft=True))
    drawn = await draw(client, 1, 600)
    await promote(client, "a", 250, use(drawn), drawn)
    assert await client.spent_held_of("acme") == {"tenant=acme": (0, 600), "global": (0, 250), "model=m": (0, 250)}
    await client.settle("a", 40)
    assert await client.spent_held_of("acme") == {"tenant=acme": (40, 350), "global": (40, 0), "model=m": (40, 0)}


async def test_a_counter_that_is_not_among_the_answers_lines_needs_credit(client: Client) -> None:
    client.declare(budget("tenant=*", None))
    drawn = await draw(client, 1)
    await promote(client, "a", 250, use(drawn), drawn)
    unknown = CreditUse("w", (("global|daily|UTC|1767225600", 1_767_312_000),), 250)
    with pytest.raises(ShortCreditError):
        await promote(client, "b", 250, unknown, drawn)


async def test_a_hold_of_nothing_needs_no_credit(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1)
    admission = await promote(client, "a", 0, use(drawn), drawn)
    assert await client.reserve("a", 100) == admission
    await client.settle("a", 7)
    assert await client.spent_held() == (7, 0)


async def test_a_dead_worker_promotes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 600, holder="v")
    client.clock.advance(20)
    with pytest.raises(DeadWorkerError):
        await promote(client, "a", 100, use(drawn, holder="v"), drawn)
    assert await client.spent_held() == (0, 600)
    assert (await client.store.totals()).held_nano_usd == 0


async def test_only_an_admission_of_what_a_counter_can_hold_is_promoted(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    for hold in (-1, MAX_NANO_USD + 1):
        with pytest.raises(UnwritableError):
            await promote(client, "a", hold, use(drawn), drawn)
    refusal = Admission(candidate=None, admitted_at_s=NOON_S, reason="held")
    with pytest.raises(ValueError, match="refused"):
        await promote(client, "a", 1, use(drawn), drawn, admission=refusal)
    assert [row[:4] for row in await client.store.credits()] == [(COUNTER, "w", 600, 0)]
