"""Credit: what settles from it, and what becomes of it when its window, its budget or its holder ends."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores import open_store
from askii_middleware.stores.base import (
    CreditRow,
    CreditUse,
    DeadWorkerError,
    Settled,
    UnwritableError,
)

from .credit_support import asks, by_counter, draw, drawn_line, settle_from, use
from .support import COUNTER, DAY_S, NOON_S, Client, Clock, budget

GLOBAL = "global|daily|UTC|1767225600"
MONTH_S = 30 * DAY_S


# Windows --------------------------------------------------------------------------------------------------------------


async def test_credit_belongs_to_its_window_and_the_old_ones_still_settles(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    yesterday = await draw(client, 1, 600)
    client.clock.advance(DAY_S)
    line = await drawn_line(client, 2)
    assert (line.granted_nano_usd, line.state.held_nano_usd) == (0, 0)
    await settle_from(client, "a", 150, use(yesterday), at_s=NOON_S)
    assert await client.spent_held() == (0, 0)
    client.clock.advance(-DAY_S)
    assert await client.spent_held() == (150, 450)


async def test_credit_is_forgotten_with_its_counter_8_days_after_the_windows_end(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000, period="total"))
    await client.store.heartbeat("w", 1)
    await draw(client, 1, 100)
    client.clock.advance(9 * DAY_S)
    await client.store.heartbeat("v", MONTH_S)
    assert [row.counter.split("|")[:2] for row in await client.store.credits()] == [["global", "total"]]


# Settling from credit -------------------------------------------------------------------------------------------------


async def test_a_settlement_from_credit_charges_exactly_its_counters_whatever_budgets_are_now(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000))
    drawn = await draw(client, 1, 300)
    client.declare(budget("model=*", 1000), budget("tenant=*", 1000))
    assert await settle_from(client, "a", 120, use(drawn)) == Settled(coins=0, late=False, duplicate=False)
    client.declare(budget("tenant=*", 1000), budget("global", 1000), budget("model=*", 1000))
    assert await client.spent_held_of("acme") == {"tenant=acme": (120, 180), "global": (120, 180), "model=m": (0, 0)}
    assert (await client.store.totals())[:4] == (1, 120, 1, 120)


async def test_a_settlement_from_credit_is_written_once(client: Client) -> None:
    client.declare(budget("tenant=*", 10**9))
    drawn = await draw(client, 1, 5_000_000)
    first = await settle_from(client, "a", 1_999_999, use(drawn))
    assert first == Settled(1999, late=False, duplicate=False)
    assert await settle_from(client, "a", 1_999_999, use(drawn)) == first._replace(duplicate=True)
    assert await client.settle("a", 5) == first._replace(duplicate=True)
    assert await client.spent_held() == (1_999_999, 3_000_001)


async def test_a_charge_beyond_the_credit_is_taken_in_full_and_uses_up_what_is_left(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 300)
    await settle_from(client, "a", 200, use(drawn))
    await settle_from(client, "b", 250, use(drawn))
    assert await client.spent_held() == (450, 0)
    await settle_from(client, "c", 50, use(drawn))
    assert await client.spent_held() == (500, 0)
    assert (await drawn_line(client, 2, 100)).granted_nano_usd == 400
    assert await client.spent_held() == (500, 100)


async def test_a_call_that_cost_more_than_it_held_uses_up_no_credit_of_others(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000))
    drawn = await draw(client, 1, 300)
    await settle_from(client, "a", 250, use(drawn, hold=40))
    assert await client.spent_held_of("acme") == {"tenant=acme": (250, 260), "global": (250, 260)}
    await settle_from(client, "b", 40, use(drawn, hold=250))
    await settle_from(client, "c", 40, use(drawn, hold=0))
    await settle_from(client, "d", -40, use(drawn, hold=-90))
    assert await client.spent_held_of("acme") == {"tenant=acme": (290, 220), "global": (290, 220)}


async def test_each_counters_credit_is_used_up_by_itself(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 60), budget("model=*", None))
    drawn = await draw(client, 1, 100)
    await settle_from(client, "a", 80, use(drawn))
    assert await client.spent_held_of("acme") == {"tenant=acme": (80, 20), "global": (80, 0), "model=m": (80, 0)}
    assert [row[1:4] for row in await client.store.credits()] == [("w", 100, 80)]


async def test_a_negative_charge_uses_up_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 300)
    await settle_from(client, "a", -50, use(drawn))
    assert await client.spent_held() == (-50, 300)


async def test_a_settlement_uses_up_only_its_own_holders_credit(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 60)
    await draw(client, 1, 300)
    others = await draw(client, 1, 200, holder="v")
    await settle_from(client, "a", 120, use(others, holder="v"))
    assert [row[1:4] for row in await client.store.credits()] == [("v", 200, 120), ("w", 300, 0)]


async def test_a_settlement_that_names_credit_nobody_ever_drew_is_charged_in_full(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.settle("a", 120, credit=CreditUse("nobody", ((COUNTER, 1_767_312_000),), 120))
    assert await client.spent_held() == (120, 0)
    assert await client.store.credits() == []


async def test_a_call_with_a_hold_settles_its_hold_whatever_credit_it_names(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 300)
    await client.reserve("a", 100)
    await settle_from(client, "a", 80, use(drawn))
    assert await client.spent_held() == (80, 300)


async def test_a_charge_no_counter_can_hold_uses_up_no_credit(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 300)
    await client.settle("a", 100)
    with pytest.raises(UnwritableError):
        await settle_from(client, "b", MAX_NANO_USD, use(drawn))
    assert await client.spent_held() == (100, 300)
    assert not (await settle_from(client, "b", 10, use(drawn))).duplicate


async def test_a_settlement_from_credit_reports_the_shares_it_crosses(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(0.5, 0.8)), budget("global", 200, alert_at=(1.0,)))
    tenants = await draw(client, 1, 600, asks=tuple(a for a in asks(client, 600) if "tenant" in a.match.counter))
    await settle_from(client, "a", 499, use(tenants))
    assert await client.alerts() == []
    await settle_from(client, "b", 1, use(tenants))
    (alert,) = await client.alerts()  # and none of the counter the calls do not stand on
    assert (alert.budget, alert.scope, alert.share_ppm, alert.spent_nano_usd) == (
        "tenant=*|daily",
        "tenant=acme",
        500_000,
        500,
    )


# Edits ----------------------------------------------------------------------------------------------------------------


async def test_every_edit_of_a_stored_budget_changes_the_version_that_draws_tell(client: Client) -> None:
    seen = [(await draw(client, 1)).budgets_version]
    for step in (
        client.set(budget("tenant=*", 1000)),
        client.set(budget("tenant=*", 900)),
        client.set(budget("tenant=other", 5)),
        client.store.remove_budget("tenant=other|daily"),
    ):
        await step
        await client.refresh()
        seen.append((await draw(client, len(seen) + 1)).budgets_version)
    assert len(set(seen)) == 5
    assert await client.store.remove_budget("tenant=other|daily") is False
    assert (await draw(client, 9, 100)).budgets_version == seen[-1]


# The death of holders -------------------------------------------------------------------------------------------------


async def test_a_worker_without_a_live_heartbeat_draws_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 20)
    await draw(client, 1, 100, holder="v")
    client.clock.advance(20)
    for holder in ("v", "nobody"):
        with pytest.raises(DeadWorkerError):
            await draw(client, 2, 100, returns=((COUNTER, 100),), holder=holder)
    assert await client.spent_held() == (0, 100)


async def test_what_a_dead_worker_had_stays_held_and_so_it_does_after_its_burial(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 300, holder="v")
    assert await client.store.credits() == [CreditRow(COUNTER, "v", 300, 0, alive=True)]
    client.clock.advance(20)
    assert await client.spent_held() == (0, 300)
    await client.store.heartbeat("w", MONTH_S)  # buries it
    assert await client.spent_held() == (0, 300)
    assert await client.store.credits() == [CreditRow(COUNTER, "v", 300, 0, alive=False)]
    await settle_from(client, "a", 120, use(drawn, holder="v"))
    assert await client.spent_held() == (120, 180)
    assert (await client.reserve("b", 701)).reason == "held"


async def test_reclaim_takes_only_the_credit_of_dead_holders(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000))
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 300, holder="v")
    await draw(client, 1, 200)
    await settle_from(client, "a", 120, use(drawn, holder="v"))
    assert await client.store.reclaim() == []
    client.clock.advance(20)
    taken = await client.store.reclaim()
    assert sorted(taken) == [
        CreditRow(GLOBAL, "v", 300, 120, alive=False),
        CreditRow(COUNTER, "v", 300, 120, alive=False),
    ]
    assert await client.store.reclaim() == []
    assert await client.spent_held_of("acme") == {"tenant=acme": (120, 200), "global": (120, 200)}
    assert [row[1:4] for row in await client.store.credits()] == [("w", 200, 0)] * 2


async def test_reclaim_of_one_scope_leaves_all_others(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000), budget("tenant=*,model=*", 1000))
    await client.store.heartbeat("v", 20)
    await draw(client, 1, 300, holder="v")
    client.clock.advance(20)
    assert [row.counter for row in await client.store.reclaim("tenant=acme")] == [COUNTER]
    assert await client.store.reclaim("tenant") == []
    assert {scope: held for scope, (_, held) in (await client.spent_held_of("acme")).items()} == {
        "tenant=acme": 0,
        "global": 300,
        "tenant=acme,model=m": 300,
    }


async def test_a_settlement_after_reclaim_is_charged_in_full(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 300, holder="v")
    await settle_from(client, "a", 100, use(drawn, holder="v"))
    client.clock.advance(20)
    await client.store.reclaim()
    assert await settle_from(client, "b", 120, use(drawn, holder="v")) == Settled(0, late=False, duplicate=False)
    assert await client.spent_held() == (220, 0)
    assert await client.store.credits() == []


DRAW_AND_SERVE = """
import asyncio, sys
from askii_middleware.stores import open_store
from tests.stores.credit_support import draw, settle_from, use
from tests.stores.support import Client, Clock, budget

async def main(path):
    clock = Clock()
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock, [budget("tenant=*", 1000)])
    await client.store.open()
    await client.store.heartbeat("v", 20)
    drawn = await draw(client, 1, 600, holder="v")
    await settle_from(client, "a", 150, use(drawn, holder="v"))
    print("ready", flush=True)
    sys.stdin.readline()

asyncio.run(main(sys.argv[1]))
"""


async def test_what_a_killed_process_had_drawn_and_not_settled_stays_held_until_it_is_reclaimed(tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRAW_AND_SERVE, str(path), stdin=PIPE, stdout=PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()

    clock = Clock()
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock, [budget("tenant=*", 1000)])
    await client.store.open()
    clock.advance(60)
    await client.store.heartbeat("w", 60)
    assert await client.spent_held() == (150, 450)
    assert (await drawn_line(client, 1, 9999)).granted_nano_usd == 400
    assert await client.store.reclaim("tenant=acme") == [CreditRow(COUNTER, "v", 600, 150, alive=False)]
    assert await client.spent_held() == (150, 400)
    await client.store.close()


# All together ---------------------------------------------------------------------------------------------------------


async def test_spent_and_held_with_all_credit_never_pass_a_limit_and_workers_never_lose_count(client: Client) -> None:
    client.declare(budget("tenant=*", 5000), budget("global", 7000), budget("model=*", None))
    rng = random.Random(20260101)
    for worker in ("w0", "w1", "w2"):
        await client.store.heartbeat(worker, MONTH_S)
    mine: dict[tuple[str, str], int] = {}
    """By worker and counter: what it was granted, less what its settled calls came to."""
    used: dict[tuple[str, str], int] = {}
    uses: dict[tuple[str, str], CreditUse] = {}
    for step in range(250):
        worker, tenant = f"w{rng.randrange(3)}", rng.choice(("acme", "other"))
        action = rng.randrange(4)
        if action == 0:
            back = tuple((c, rng.randrange(free + 1)) for (name, c), free in mine.items() if name == worker)
            drawn = await draw(
                client,
                step + 1,
                rng.randrange(1500),
                tenant=tenant,
                holder=worker,
                share=rng.choice((1_000_000, 400_000)),
                returns=back if rng.randrange(3) == 0 else (),
            )
            for counter, line in by_counter(drawn).items():
                mine[worker, counter] = line.granted_nano_usd - used.get((worker, counter), 0)
                assert mine[worker, counter] >= 0
            if back:
                again = await draw(client, step + 1, tenant="other" if tenant == "acme" else "acme", holder=worker)
                for counter, line in by_counter(again).items():
                    mine[worker, counter] = line.granted_nano_usd - used.get((worker, counter), 0)
            uses[worker, tenant] = use(drawn, holder=worker)
        elif action == 1 and (worker, tenant) in uses:
            credit = uses[worker, tenant]
            limited = [key for key, _ in credit.counters if not key.startswith("model")]
            cost = rng.randrange(min(mine[worker, key] for key in limited) // 2 + 1)
            await settle_from(client, f"c{step}", cost, credit, tenant=tenant)
            for key in limited:
                mine[worker, key] -= cost
                used[worker, key] = used.get((worker, key), 0) + cost
        else:
            hold = rng.randrange(800)
            if (await client.reserve(f"r{step}", hold, tenant=tenant, worker=worker)).candidate is not None:
                await client.settle(f"r{step}", rng.randrange(hold + 1) // 4, tenant=tenant)
        for payer in ("acme", "other"):
            for state in await client.status(payer):
                if state.limit_nano_usd is not None:
                    assert state.spent_nano_usd + state.held_nano_usd <= state.limit_nano_usd
                    open_credit = sum(free for (_, key), free in mine.items() if key == state.counter)
                    assert state.held_nano_usd == open_credit
