"""Alerts: each crossing of a share once, in the transaction of the charge. The contract of every store."""

from __future__ import annotations

import asyncio

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import Alert, Lease, Store, UnwritableError

from .support import DAY_S, NOON_S, Client, budget

SHARES = (0.5, 0.8, 1.0)
MIDNIGHT_S = 1_767_312_000
LOG, MAIL = "alert:log", "alert:mail"


async def crossed(client: Client) -> list[tuple[str, int, int]]:
    """Scope, share in percent and what was spent, oldest first."""
    return [(alert.scope, alert.share_ppm // 10_000, alert.spent_nano_usd) for alert in await client.alerts()]


@pytest.mark.parametrize("held", [True, False])
async def test_a_charge_that_crosses_shares_writes_an_alert_for_each(client: Client, held: bool) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=SHARES), budget("global", 10_000))
    for name, cost in (("a", 499), ("b", 1), ("c", 100), ("d", 400), ("e", 50)):
        if held:
            await client.reserve(name, 0)
        await client.settle(name, cost)
    assert await crossed(client) == [("tenant=acme", 50, 500), ("tenant=acme", 80, 1000), ("tenant=acme", 100, 1000)]
    first = (await client.alerts())[0]
    assert first == Alert(
        seq=first.seq,
        id=first.id,
        budget="tenant=*|daily",
        scope="tenant=acme",
        period="daily",
        share_ppm=500_000,
        limit_nano_usd=1000,
        spent_nano_usd=500,
        at_s=NOON_S,
        resets_at_s=MIDNIGHT_S,
    )


async def test_declared_budgets_report_as_stored_ones_do(client: Client) -> None:
    client.declare(budget("tenant=*", 1000, alert_at=SHARES))
    await client.reserve("a", 100)
    await client.settle("a", 600)
    assert await crossed(client) == [("tenant=acme", 50, 600)]
    await client.store.set_budget(budget("tenant=*", 1000))  # the stored one wins, and reports nothing
    await client.refresh()
    await client.reserve("b", 100)
    await client.settle("b", 600)
    assert len(await crossed(client)) == 1


async def test_a_share_is_reported_once_even_if_a_credit_brings_the_spend_back(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=SHARES))
    for name, cost in (("a", 600), ("b", -300), ("c", 300), ("a", 600)):
        await client.settle(name, cost)
    assert await crossed(client) == [("tenant=acme", 50, 600)]


async def test_every_tenant_budget_and_window_reports_for_itself(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(0.5,)), budget("global", 1500, alert_at=(1.0,)))
    await client.settle("a", 800)
    await client.settle("b", 800, tenant="other")
    client.clock.advance(DAY_S)
    await client.settle("c", 800)
    assert await crossed(client) == [
        ("tenant=acme", 50, 800),
        *sorted([("tenant=other", 50, 800), ("global", 100, 1600)]),
        ("tenant=acme", 50, 800),
    ]
    assert len({alert.id for alert in await client.alerts()}) == 4


async def test_a_changed_limit_makes_new_crossings(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(0.5,)))
    await client.settle("a", 600)
    await client.set(budget("tenant=*", 2000, alert_at=(0.5,)))
    await client.settle("b", 300)
    await client.settle("c", 100)
    await client.set(budget("tenant=*", 1000, alert_at=(0.5,)))
    await client.settle("d", 100)
    assert await crossed(client) == [("tenant=acme", 50, 600), ("tenant=acme", 50, 1000)]


async def test_a_limit_that_is_set_to_what_is_spent_is_not_crossed_by_the_next_charge(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(0.5,)))
    await client.settle("a", 600)
    await client.set(budget("tenant=*", 1200, alert_at=(0.5,)))
    await client.settle("b", 1)
    assert await crossed(client) == [("tenant=acme", 50, 600)]


async def test_a_budget_in_coins_reports_by_its_limit_at_the_settlements_rate(client: Client) -> None:
    await client.set(budget("tenant=*", None, limit_coins=1, alert_at=(1.0,)))
    await client.settle("a", 1000, rate="500000")
    assert await crossed(client) == []
    await client.settle("b", 200, rate="850000")
    assert [(a.limit_nano_usd, a.spent_nano_usd) for a in await client.alerts()] == [(1176, 1200)]


async def test_soft_budgets_report_and_limits_of_zero_or_none_do_not(client: Client) -> None:
    await client.set(
        budget("tenant=*", 1000, soft=True, alert_at=(1.0,)),
        budget("global", None, alert_at=(1.0,)),
        budget("model=*", 0, alert_at=(1.0,)),
    )
    await client.settle("a", 1500)
    assert await crossed(client) == [("tenant=acme", 100, 1500)]


async def test_a_late_charge_reports_in_the_window_of_its_admission(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(1.0,)))
    await client.reserve("a", 100, deadline_s=60.0)
    client.clock.advance(DAY_S)
    await client.store.heartbeat("w", DAY_S)
    assert (await client.settle("a", 1500, at_s=NOON_S)).late
    (alert,) = await client.alerts()
    assert (alert.at_s, alert.resets_at_s) == (NOON_S + DAY_S, MIDNIGHT_S)


async def test_a_charge_that_is_refused_reports_nothing(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(1.0,)))
    await client.settle("a", 2**53 - 2)
    with pytest.raises(UnwritableError):
        await client.settle("b", 2)
    assert len(await crossed(client)) == 1


async def test_charges_at_once_report_a_crossing_once(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(0.5,)))
    await asyncio.gather(*(client.settle(f"c{n}", 100) for n in range(10)))
    assert await crossed(client) == [("tenant=acme", 50, 500)]


async def test_a_crossing_has_the_same_id_in_every_ledger(client: Client) -> None:
    await client.set(budget("tenant=*", 1000, alert_at=(0.5,)))
    await client.settle("a", 500)
    assert [alert.id for alert in await client.alerts()] == ["ffc77386cadc2d09f38b42eb6e94fc85"]


# Channels ------------------------------------------------------------------------------------------------------------


async def cross(client: Client, *names: str) -> None:
    """One crossing for each tenant."""
    for name in names:
        await client.settle(f"{name}-{client.clock.now_s}", 1000, tenant=name)


async def waiting(store: Store, channel: str, limit: int = 100) -> list[str]:
    return [alert.scope for alert in await store.fetch_alerts(channel, limit)]


async def test_each_channel_has_its_own_place_and_begins_at_its_registration(client: Client) -> None:
    store = client.store
    await client.set(budget("tenant=*", 1000, alert_at=(1.0,)))
    await cross(client, "early")
    await store.register_channels([LOG])
    await cross(client, "a", "b")
    await store.register_channels([LOG, MAIL])
    await cross(client, "c")
    assert await waiting(store, LOG) == ["tenant=a", "tenant=b", "tenant=c"]
    assert await waiting(store, LOG, 2) == ["tenant=a", "tenant=b"]
    assert await waiting(store, LOG, -1) == []
    assert await waiting(store, MAIL) == ["tenant=c"]
    assert [alert.scope for alert in await store.recent_alerts(2)] == ["tenant=c", "tenant=b"]
    (lease,) = await store.lease(LOG, "me", 60)
    found = await store.fetch_alerts(LOG, 2)
    assert await store.acknowledge_alerts(LOG, lease.token, found[-1].seq)
    assert await store.acknowledge_alerts(LOG, lease.token, 0)
    assert await waiting(store, LOG) == ["tenant=c"]
    assert await store.acknowledge_alerts(LOG, lease.token, 10**9)
    await cross(client, "d")
    assert await waiting(store, LOG) == ["tenant=d"]
    assert await waiting(store, MAIL) == ["tenant=c", "tenant=d"]


async def test_one_owner_at_a_time_delivers_to_a_channel_and_an_older_token_is_void(client: Client) -> None:
    store = client.store
    await store.register_channels([LOG])
    (mine,) = await store.lease(LOG, "me", 60)
    assert mine == Lease(0, 1, 0.0, 0)
    assert await store.lease(LOG, "you", 60) == []
    assert await store.lease(LOG, "me", 60) == [mine]
    client.clock.advance(60)
    (yours,) = await store.lease(LOG, "you", 60)
    assert yours == Lease(0, 2, 0.0, 0)
    assert not await store.acknowledge_alerts(LOG, mine.token, 1)
    assert await store.acknowledge_alerts(LOG, yours.token, 1)
    assert await store.lease(LOG, "you", 0) == []
    assert await store.lease(LOG, "you", 60) == [yours]
    assert await store.lease(LOG, "you", 0) == []
    assert await store.lease(LOG, "me", 60) == [Lease(0, 3, 0.0, 0)]


async def test_channels_and_sinks_cannot_be_taken_for_each_other(client: Client) -> None:
    store = client.store
    with pytest.raises(ValueError, match="alert channel 'log': its name has to begin with 'alert:'"):
        await store.register_channels(["log"])
    with pytest.raises(ValueError, match="sink 'alert:log'"):
        await store.register_sinks([LOG])
    for asked in (
        store.fetch_alerts(LOG, 1),
        store.acknowledge_alerts(LOG, 1, 1),
        store.lease(LOG, "me", 1),
    ):
        with pytest.raises(StoreError, match="'alert:log' is not registered: call register_channels first"):
            await asked
    await store.register_channels([LOG])
    assert await store.pending() == {}
    with pytest.raises(StoreError, match="sink 'alert:log' is not registered"):
        await store.fetch(LOG, [0], 1)


async def test_alerts_are_kept_for_eight_days_and_until_every_channel_in_use_is_done_with_them(client: Client) -> None:
    store = client.store
    await client.set(budget("tenant=*", 1000, alert_at=(1.0,)))
    await store.register_channels([LOG, MAIL])
    await cross(client, "a", "b")
    first, second = await client.alerts()
    client.clock.now_s = MIDNIGHT_S + 8 * DAY_S - 1
    for channel in (LOG, MAIL):
        (lease,) = await store.lease(channel, "me", 60)
        await store.acknowledge_alerts(channel, lease.token, second.seq if channel == LOG else first.seq)
    await store.heartbeat("w", DAY_S)
    assert await client.alerts() == [first, second]
    client.clock.advance(1)
    await store.heartbeat("w", DAY_S)
    assert await client.alerts() == [second]
    client.clock.advance(30 * DAY_S + 60)
    await store.register_channels(["alert:new"])
    await cross(client, "c")
    await store.heartbeat("v", DAY_S)  # the mail channel was given up
    assert [alert.scope for alert in await client.alerts()] == ["tenant=c"]
    assert await waiting(store, "alert:new") == ["tenant=c"]
