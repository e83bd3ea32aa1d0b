from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askii_middleware import Budget, Scope
from askii_middleware.currency import parse_rate
from askii_middleware.leased import LeasedStore
from askii_middleware.stores import open_store
from askii_middleware.stores.base import MAX_ASKED, Store

from .support import Client, Clock

RATE = parse_rate("1000000").ratio


async def test_each_call_gets_its_own_lines_in_the_order_asked(client: Client) -> None:
    await client.set(
        Budget(scope="tenant=*", limit_usd="0.000001"),
        Budget(scope="tenant=acme", limit_usd="0.000002", period="monthly"),
        Budget(scope="global", limit_usd="0.000009", period="total"),
    )
    await client.reserve("open", 70)
    await client.settle("done", 200, tenant="zoo")
    tenants = ["zoo", "acme", "new", "acme"]
    windows = client.index.windows(client.clock.now_s)
    told = await client.store.status_of([client.matches(tenant) for tenant in tenants], windows, RATE)
    assert [{s.scope: (s.limit_nano_usd, s.spent_nano_usd, s.held_nano_usd) for s in states} for states in told] == [
        {"tenant=zoo": (1000, 200, 0), "global": (9000, 200, 70)},
        {"tenant=acme": (2000, 0, 70), "global": (9000, 200, 70)},
        {"tenant=new": (1000, 0, 0), "global": (9000, 200, 70)},
        {"tenant=acme": (2000, 0, 70), "global": (9000, 200, 70)},
    ]
    assert told == [await client.status(tenant) for tenant in tenants]


async def test_nothing_asked_and_nothing_that_binds_are_answered_in_kind(client: Client) -> None:
    assert await client.store.status_of([], {}, RATE) == []
    assert await client.store.status_of([(), client.matches()], {}, RATE) == [[], []]
    await client.set(Budget(scope="user=u", limit_usd=1))
    states = await client.store.status_of([(), client.matches(), client.matches(user="u")], {}, RATE)
    assert [[s.scope for s in part] for part in states] == [[], [], ["user=u"]]


async def test_values_that_crowd_are_looked_at_one_call_at_a_time(client: Client) -> None:
    await client.set(Budget(scope="end_user=*", limit_usd="0.000001", max_values=2))
    await client.settle("1", 100, values={"end_user": "ann"})
    users = ["ann", "bob", "cid"]
    asked = [client.matches(end_user=user) for user in users]
    told = await client.store.status_of(asked, client.index.windows(client.clock.now_s), RATE)
    # To look takes no place: each of the others would get the second one.
    assert [[s.scope for s in part] for part in told] == [[f"end_user={user}"] for user in users]
    assert [part[0].spent_nano_usd for part in told] == [100, 0, 0]


async def test_a_thousand_calls_can_be_asked_for_and_no_more(client: Client) -> None:
    await client.set(Budget(scope="tenant=*", limit_usd=1))
    windows = client.index.windows(client.clock.now_s)
    asked = [client.matches(f"t{number}") for number in range(MAX_ASKED)]
    told = await client.store.status_of(asked, windows, RATE)
    assert [part[0].scope for part in told] == [f"tenant=t{number}" for number in range(MAX_ASKED)]
    with pytest.raises(ValueError, match="1001 calls are more than the 1000"):
        await client.store.status_of([*asked, ()], windows, RATE)


async def test_many_stored_budgets_spends_and_holds_are_those_of_each_call_alone(client: Client) -> None:
    tenants = [f"t\u00e9 {number}" for number in range(40)]
    for number, tenant in enumerate(tenants):
        await client.set(Budget(scope=Scope(tenant=tenant), limit_usd=number + 1))
        await client.settle(f"s{number}", 100 + number, tenant=tenant)
        await client.reserve(f"r{number}", 7 + number, tenant=tenant)
        await client.reserve(f"lapsing{number}", 9, tenant=tenant, deadline_s=10.0)
    client.clock.advance(11)
    windows = client.index.windows(client.clock.now_s)
    told = await client.store.status_of([client.matches(tenant) for tenant in tenants], windows, RATE)
    assert [(s.limit_nano_usd, s.spent_nano_usd, s.held_nano_usd) for (s,) in told] == [
        ((number + 1) * 10**9, 100 + number, 7 + number) for number in range(40)
    ]
    assert told == [await client.status(tenant) for tenant in tenants]


async def test_holds_that_lapsed_and_windows_that_ended_are_not_seen(client: Client) -> None:
    await client.set(Budget(scope="tenant=*", limit_usd=1))
    await client.reserve("short", 500, deadline_s=10.0)
    await client.settle("old", 300)
    client.clock.advance(11)
    asked = [client.matches(), client.matches("zoo")]
    windows = client.index.windows(client.clock.now_s)
    told = await client.store.status_of(asked, windows, RATE)
    assert [(s.spent_nano_usd, s.held_nano_usd) for part in told for s in part] == [(300, 0), (0, 0)]
    client.clock.advance(86_400)
    told = await client.store.status_of(asked, windows, RATE)
    assert [(s.spent_nano_usd, s.held_nano_usd) for part in told for s in part] == [(0, 0), (0, 0)]


async def test_a_store_with_leases_tells_what_the_ledger_has(clock: Clock, tmp_path: Path) -> None:
    ledger = open_store(f"sqlite:///{tmp_path / 'askii.db'}", clock=clock)
    store = LeasedStore(ledger)
    await store.open()
    client = Client(store, clock)
    await client.set(Budget(scope="tenant=*", limit_usd=1))
    await client.settle("1", 100)
    asked = [client.matches(), client.matches("zoo")]
    told = await store.status_of(asked, {}, RATE)
    assert told == await ledger.status_of(asked, {}, RATE)
    assert [part[0].spent_nano_usd for part in told] == [100, 0]
    await store.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spent=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 10**9)), max_size=8),
    tenants=st.lists(st.sampled_from("abcde"), max_size=6),
)
async def test_many_at_once_are_what_each_is_alone(
    store: Store, clock: Clock, spent: list[tuple[str, int]], tenants: list[str]
) -> None:
    client = Client(store, clock)
    await client.set(Budget(scope="tenant=*", limit_usd=1), Budget(scope="tenant=b,model=*", limit_usd=2))
    for number, (tenant, nano_usd) in enumerate(spent):
        await client.settle(f"{tenant}{number}{nano_usd}", nano_usd, tenant=tenant)
    windows = client.index.windows(clock.now_s)
    together = await store.status_of([client.matches(tenant) for tenant in tenants], windows, RATE)
    assert together == [await client.status(tenant) for tenant in tenants]


# Lost holds ----------------------------------------------------------------------------------------------------------


async def test_the_heartbeat_that_finds_a_dead_workers_holds_counts_them_once(client: Client, clock: Clock) -> None:
    store = client.store
    await client.set(Budget(scope="tenant=*", limit_usd=1))
    await store.heartbeat("short", 10)
    for number in range(3):
        await client.reserve(f"call{number}", 10, worker="short")
    await client.settle("call0", 10)
    before = store.lost_holds
    clock.advance(11)
    assert await store.heartbeat("other", 60)
    assert store.lost_holds - before == 2
    assert await store.heartbeat("other", 60)
    assert store.lost_holds - before == 2
    assert (await store.totals()).lost == 2
