"""Counters on which credits have left less than nothing spent."""

from __future__ import annotations

import pytest

from .credit_support import drawn_line
from .support import Client, budget


@pytest.fixture
async def credited(client: Client) -> Client:
    """Nothing was charged to the tenant's daily budget of 1,000, and 5,000 were credited."""
    client.declare(budget("tenant=*", 1000))
    await client.settle("credit", -5000)
    return client


async def test_a_credit_gives_no_more_room_than_the_limit(credited: Client) -> None:
    refused = await credited.reserve("a", 1001)
    assert (refused.candidate, refused.reason) == (None, "spent")
    assert refused.deciding is not None
    assert refused.deciding.spent_nano_usd == -5000
    assert (await credited.reserve("b", 1000)).candidate == 0
    held = await credited.reserve("c", 1)
    assert (held.candidate, held.reason) == (None, "held")


async def test_where_a_part_will_do_a_credit_adds_nothing_to_what_fits(credited: Client) -> None:
    assert (await credited.reserve("a", 4000, least=1)).hold_nano_usd == 1000


async def test_a_hold_grows_up_to_the_limit_whatever_was_credited(credited: Client) -> None:
    await credited.reserve("a", 400)
    assert (await credited.extend("a", 3000, 1)).hold_nano_usd == 1000
    refused = await credited.extend("a", 1001, sequence=2)
    assert (refused.granted, refused.reason) == (False, "spent")


async def test_a_credit_does_not_hide_that_fallbacks_come_first(credited: Client) -> None:
    await credited.reserve("a", 600)
    assert (await credited.reserve("b", 20, 10, downgrade_at_ppm=500_000)).candidate == 1


async def test_workers_draw_no_more_than_the_limit_and_its_shares_whatever_was_credited(credited: Client) -> None:
    assert (await drawn_line(credited, 1, 9999, ceiling=300_000)).granted_nano_usd == 300
    assert (await drawn_line(credited, 2, 9999, share=500_000)).granted_nano_usd == 650
    assert (await drawn_line(credited, 3, 9999)).granted_nano_usd == 1000


async def test_the_status_shows_what_was_credited_and_the_limit_as_what_remains(credited: Client) -> None:
    (state,) = await credited.status()
    assert (state.spent_nano_usd, state.remaining_nano_usd) == (-5000, 1000)


async def test_charges_use_a_credit_up(credited: Client) -> None:
    await credited.reserve("a", 1000)
    await credited.settle("a", 900)
    assert await credited.spent_held() == (-4100, 0)
