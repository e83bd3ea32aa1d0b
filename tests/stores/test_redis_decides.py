"""What is decided in Lua on Redis against what is decided in Python in memory: the same commands, the same answers."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askii_middleware.admission import Candidate
from askii_middleware.budgets import Budget
from askii_middleware.currency import MAX_NANO_USD

from .credit_support import asks, draw, settle_from, use
from .deciding import Command, compare, edges
from .support import Client, budget

LEDGERS = itertools.count(1)
NAMES = st.sampled_from([f"c{n}" for n in range(6)])
SMALL = st.sampled_from([0, 1, 25, 50, 50, 100, 150])
AMOUNTS = SMALL | SMALL | st.sampled_from([MAX_NANO_USD - 50, MAX_NANO_USD, MAX_NANO_USD + 1])
RATES = st.sampled_from(["1000000", "500000", "3e6"])
PPM = st.sampled_from([0, 300_000, 500_000, 999_999, 1_000_000])
TENANTS = st.sampled_from(["acme", "other"])
USERS = st.sampled_from(["ann", "bob", "cyn"])
SCOPES = ["tenant=*", "tenant=acme", "global", "tenant=*,model=*", "tenant=acme,model=*", "tenant=*,model=small"]


@st.composite
def budgets(drawn: st.DrawFn) -> Budget:
    scope = drawn(st.sampled_from([*SCOPES, "end_user=*", "tenant=*,end_user=*"]))
    options: dict[str, Any] = {
        "period": drawn(st.sampled_from(["daily", "daily", "monthly", "6h"])),
        "zone": drawn(st.sampled_from(["UTC", "UTC", "Asia/Tokyo"])),
        "soft": drawn(st.integers(0, 3)) == 0,
        "enabled": drawn(st.integers(0, 5)) > 0,
        "alert_at": drawn(st.sampled_from([(), (0.5,), (0.3, 1.0)])),
    }
    if "end_user" in scope:
        options["max_values"] = drawn(st.integers(1, 2))
    limit = drawn(st.sampled_from([None, 0, 50, 100, 200, 200, 300, MAX_NANO_USD]))
    if limit is not None and drawn(st.booleans()):
        return budget(scope, None, limit_coins=Decimal(limit).scaleb(-3), **options)
    return budget(scope, limit, **options)


def who(tenant: str, user: str, model: str = "big") -> dict[str, str]:
    return {"tenant": tenant, "end_user": user, "model": model}


@st.composite
def reserves(drawn: st.DrawFn) -> Command:
    name, tenant, user = drawn(NAMES), drawn(TENANTS), drawn(USERS)
    models = drawn(st.lists(st.sampled_from(["big", "small", "tiny"]), min_size=1, max_size=3))
    asked = [(model, drawn(AMOUNTS), drawn(st.none() | SMALL)) for model in models]
    options = {
        "rate": drawn(RATES),
        "shadow": drawn(st.integers(0, 4)) == 0,
        "deadline_s": drawn(st.sampled_from([5.0, 600.0])),
        "downgrade_at_ppm": drawn(PPM),
        "replaces": drawn(st.none() | NAMES),
    }

    def command(client: Client) -> Awaitable[Any]:
        candidates = [
            Candidate(model, hold, client.index.matches(who(tenant, user, model)), least)
            for model, hold, least in asked
        ]
        return client.reserve(name, tenant=tenant, candidates=tuple(candidates), **options)

    return command


@st.composite
def others(drawn: st.DrawFn) -> Command:
    """Everything else that can be done to a ledger."""
    kind = drawn(
        st.sampled_from(
            ["extend", "settle", "settle", "release", "defer", "draw", "credit", "advance", "beat", "budget", "reclaim"]
        )
    )
    name, tenant, user = drawn(NAMES), drawn(TENANTS), drawn(USERS)
    rate, amount = drawn(RATES), drawn(AMOUNTS)
    values: dict[str, Any] = {"end_user": user, "model": "big"}
    if kind == "extend":
        least, sequence = drawn(SMALL), drawn(st.integers(1, 4))
        return lambda client: client.extend(
            name, amount, least, sequence=sequence, tenant=tenant, values=values, rate=rate
        )
    if kind == "settle":
        return lambda client: client.settle(name, amount, tenant=tenant, values=values, rate=rate)
    if kind == "release":
        return lambda client: client.store.release(name)
    if kind == "defer":
        return lambda client: client.defer(name, for_s=amount % 60)
    if kind == "draw":
        sequence, share, ceiling = drawn(st.integers(1, 9)), drawn(PPM), drawn(PPM)
        back = drawn(st.lists(SMALL, max_size=1))

        async def drawing(client: Client) -> Any:
            wanted = asks(client, min(amount, MAX_NANO_USD), share=share, ceiling=ceiling, tenant=tenant, **values)
            states = await client.status(tenant, **values)
            returns = tuple((state.counter, nano_usd) for state in states for nano_usd in back)
            return (await draw(client, sequence, asks=wanted, returns=returns))._replace(budgets_version=0)

        return drawing
    if kind == "credit":
        hold = drawn(SMALL)

        async def settling(client: Client) -> Any:
            found = await draw(client, 0, asks=asks(client, 0, tenant=tenant, **values))
            return await settle_from(client, name, amount, use(found, hold=hold), tenant=tenant, values=values)

        return settling
    if kind == "beat":
        return lambda client: client.store.heartbeat(("w", "v")[amount % 2], 60)
    if kind == "budget":
        new = drawn(budgets())
        return lambda client: client.set(new)
    if kind == "reclaim":
        return lambda client: client.store.reclaim()
    by_s = drawn(st.sampled_from([1, 6, 30, 43_200]))

    async def advance(client: Client) -> None:
        client.clock.advance(by_s)

    return advance


def fresh(server: str) -> str:
    """URL of a ledger that nobody has used."""
    glue = "&" if "?" in server else "?"
    return f"{server}{glue}namespace=askii_test_{os.getpid()}_decides_{next(LEDGERS)}"


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    started=st.lists(budgets(), max_size=5),
    commands=st.lists(reserves() | others(), min_size=4, max_size=16),
    flushed_at=st.integers(0, 15),
)
def test_scripts_decide_as_memory_does(
    redis_server: str, started: list[Budget], commands: list[Command], flushed_at: int
) -> None:
    def flush(n: int) -> None:
        if n == flushed_at:
            with redis.Redis.from_url(redis_server) as connection:
                connection.script_flush()

    asyncio.run(compare(fresh(redis_server), started, commands, flush))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(**edges)
def test_scripts_decide_at_the_edges_as_memory_does(
    redis_server: str, started: list[Budget], commands: list[Command]
) -> None:
    asyncio.run(compare(fresh(redis_server), started, commands))
