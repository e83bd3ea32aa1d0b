"""A key never reads another tenant's data: with and without other tenants in the ledger, its answers are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware import Budget
from askii_middleware.api.access import KeyHolder
from askii_middleware.api.table import OPERATIONS

from .support import Bench, bench

OTHERS = "zebra9417"
"""Stands in every name that others have and the key's holder does not use."""
BUDGETS = [  # never so tight that others' calls change what is answered to the key's
    *(
        Budget(scope=scope, limit_usd="1.05")
        for scope in ("global", "user=*", "team=*", "tag=*", "model=*", "end_user=*")
    ),
    *(Budget(scope=scope, limit_usd=1, alert_at=(0.001,)) for scope in ("tenant=*", "key=*", "tenant=*,user=*")),
    *(
        Budget(scope=scope, limit_usd=2, alert_at=(0.001,), period="monthly")
        for scope in ("user=*", "team=*", "global")
    ),
]
IDS = ("k1", f"{OTHERS}-key", f"{OTHERS}-tenant", "acme", "ann", "none", "*", "k1/usage", "../k1", "memory")
SCOPES = tuple(f"{name}={value}" for name in ("tenant", "key", "user", "team") for value in (*IDS[:5], "*"))
FOR_KEYS = [operation for operation in OPERATIONS if KeyHolder in operation.who]
VALUES: dict[str, Any] = {
    "tenant": st.sampled_from(IDS),
    "key": st.sampled_from(IDS),
    "user": st.sampled_from(("ann", *IDS, f"{OTHERS}-user")),
    "team": st.sampled_from(("core", *IDS)),
    "tag": st.sampled_from(("batch", OTHERS)),
    "scope": st.sampled_from(("global", "", *SCOPES)),
    "model": st.sampled_from(("big", "small", "unpriced")),
    "period": st.sampled_from(("daily", "weekly", "monthly", "total")),
    "start_date": st.sampled_from(("2025-12-01", "2026-01-01")),
    "end_date": st.sampled_from(("2026-01-01", "2026-01-31")),
    "format": st.sampled_from(("json", "csv")),
    "days": st.integers(1, 365).map(str),
    "limit": st.integers(1, 1000).map(str),
    "after": st.sampled_from(("", "a", OTHERS)),
    "zone": st.sampled_from(("UTC", "Asia/Kolkata")),
    "input_tokens": st.sampled_from(("0", "5000")),
    "output_tokens": st.sampled_from(("1", "5000")),
    "stream": st.sampled_from(("true", "false")),
    "provider": st.sampled_from(("", "openai")),
    "deployment": st.just("d"),
}
BODIES = st.sampled_from(
    (None, {}, {"key_id": "k1", "max_budget": 9}, {"tenant": f"{OTHERS}-tenant"}, {"overlap_s": 1})
)


async def own(world: Bench) -> None:
    """What the holder of the key has; it shares the names of its user, its team, its tag and its models with others."""
    await world.key("k1", user="ann", team="core", tags=("batch",))
    await world.use(key="k1", user="ann", team="core", tags=("batch",), tokens=3000)
    await world.use(model="small", key="k1", user="ann", tokens=500)
    await world.use(tokens=7, user="ben")


async def others(world: Bench) -> None:
    """What nobody of `acme` may learn of."""
    tenant, key = f"{OTHERS}-tenant", f"{OTHERS}-key"
    await world.key(key, tenant, name=OTHERS, user="ann", team="core", tags=("batch",), models=("big",))
    for user in ("ann", f"{OTHERS}-user"):
        for model in ("big", "small"):
            await world.use(
                tenant, model=model, key=key, user=user, team="core", end_user="e", tags=("batch",), tokens=123_457
            )
    await world.tracker.budget_enforcer.set_budget(Budget(scope=f"tenant={tenant}", limit_usd=3, period="weekly"))
    await world.tracker.suspend_tenant(tenant, reason=OTHERS)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Bench, Bench]]:
    """The same ledger twice: alone, and with others in it."""
    folder: Path = tmp_path_factory.mktemp("worlds")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def built() -> tuple[Bench, Bench]:
            alone = await stack.enter_async_context(bench(folder, budgets=BUDGETS))
            shared = await stack.enter_async_context(bench(folder, budgets=BUDGETS))
            await others(shared)
            await own(alone)
            await own(shared)
            return alone, shared

        yield runner, *runner.run(built())
        runner.run(stack.aclose())


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    """Mostly what a key may ask, with few parameters: what is refused at once proves little."""
    operation = draw(st.sampled_from((*OPERATIONS, *FOR_KEYS, *FOR_KEYS, *FOR_KEYS)))
    path = operation.path
    for part in ("{key_id}", "{tenant}", "{sink}"):
        path = path.replace(
            part, quote(draw(st.sampled_from(("k1", "k1", *IDS))), safe=draw(st.sampled_from(("", "/*"))))
        )
    known = sorted(operation.query.model_fields)
    names = draw(st.sets(st.sampled_from(known), max_size=2)) if known else set()
    names |= {name for name, field in operation.query.model_fields.items() if field.is_required()}
    names |= draw(st.sampled_from((set(), set(), set(), {"surprise"})))
    query = {name: draw(VALUES.get(name, st.just("x"))) for name in sorted(names)}
    headers = draw(st.sampled_from(({}, {"x-user-id": "ann"}, {"x-user-id": f"{OTHERS}-user"})))
    method = draw(st.sampled_from((operation.method, operation.method, operation.method, "GET", "DELETE")))
    return {"method": method, "path": path, "params": query, "json": draw(BODIES), "headers": headers}


async def answered(world: Bench, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    headers = {**request["headers"], **world.bearer("k1")}
    answer = await world.ask(**{**request, "headers": headers})
    return answer.status_code, answer.text, dict(answer.headers)


@given(request=requests())
@settings(max_examples=400)
def test_a_key_never_reads_another_tenants_data(
    request: dict[str, Any], worlds: tuple[asyncio.Runner, Bench, Bench]
) -> None:
    runner, alone, shared = worlds
    expected = runner.run(answered(alone, request))
    assert runner.run(answered(shared, request)) == expected
    assert expected[0] < 500


def test_the_other_tenants_data_is_there_to_be_read(worlds: tuple[asyncio.Runner, Bench, Bench]) -> None:
    runner, alone, shared = worlds

    async def read(world: Bench) -> list[str]:
        paths = (
            "/api/keys",
            "/api/billing/report",
            "/api/billing/alerts",
            "/api/billing/explain?model=big&tenant=acme&user=ann",
        )
        return [(await world.ask("GET", path)).text for path in paths]

    for mine, theirs in zip(runner.run(read(alone)), runner.run(read(shared)), strict=True):
        assert mine != theirs
    assert OTHERS in runner.run(read(shared))[0]
