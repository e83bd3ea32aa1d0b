"""Three processes with a hundred calls each on one ledger, whatever it lies in: exact to the last nano-USD."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from askii_middleware.admission import BudgetState
from askii_middleware.stores import open_store
from askii_middleware.stores.base import PARTITIONS

from ..servers import cluster, replicated
from .processes import RealClock
from .rush import COSTS, HOLDS, MODELS, SCOPES
from .support import Client, budget

ROOT = Path(__file__).parents[2]
SOFT_LIMIT = 50


class Process:
    """One `tests.stores.rush`."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, "-m", "tests.stores.rush", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    async def ask(self, *words: str) -> Any:
        return await asyncio.wait_for(asyncio.to_thread(self._ask, words), 60)

    def _ask(self, words: tuple[str, ...]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    found = [Process(f"p{n}") for n in range(3)]
    yield found
    for process in found:
        process.end()


@pytest.fixture(scope="module")
def sentinel_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with replicated(tmp_path_factory.mktemp("sentinel"), replicas=1) as (sentinel, _):
        yield f"redis+sentinel://{sentinel.address}/main"


@pytest.fixture(scope="module")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield f"redis+cluster://{nodes[0].address}"


@pytest.fixture(params=["sqlite", "redis", "sentinel", "cluster", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a ledger that nobody has used."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'askii.db'}"
    if request.param in ("sentinel", "cluster"):
        return f"{request.getfixturevalue(f'{request.param}_server')}?namespace={request.node.name[:40].strip('_')}"
    return str(request.getfixturevalue(f"{request.param}_url"))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Client]:
    store = open_store(url)
    await store.open()
    await store.register_sinks(["s"])
    yield Client(store, RealClock())
    await store.close()


async def look(client: Client) -> dict[str, BudgetState]:
    """All lines, by scope; not one above its limit, but the soft one."""
    found = {}
    for model in MODELS:
        for end_user in "abcdefgh":
            for state in await client.status(user="u", model=model, end_user=end_user):
                found[state.scope] = state
                used = state.spent_nano_usd + state.held_nano_usd
                assert state.soft or state.limit_nano_usd is None or used <= state.limit_nano_usd
    return found


async def watched(client: Client, processes: list[Process], *words: str) -> list[Any]:
    """Let all do this at once, and look all the time. What they answer."""
    work = asyncio.gather(*(process.ask(*words) for process in processes))
    try:
        while not work.done():
            await look(client)
            await asyncio.sleep(0.01)  # a look into a file need not wait for anything
    finally:
        answers = await work
    return answers


async def assert_settled(client: Client, calls: dict[str, int]) -> None:
    """Just these calls, each charged once, recorded once, and on its way to the sink once; nothing is held."""
    store, cost = client.store, sum(COSTS[candidate] for candidate in calls.values())
    expected = sorted((call, COSTS[candidate]) for call, candidate in calls.items())
    assert await store.totals() == (len(calls), cost, len(calls), cost, 0, 0)
    entries = await store.fetch("s", range(PARTITIONS), 1000)
    for bodies in ([entry.record for entry in entries], [body for _, body in await store.records()]):
        records = map(msgspec.json.decode, bodies)
        assert sorted((record["call_id"], record["cost_nano_usd"]) for record in records) == expected
    assert await store.credits() == []


async def test_300_calls_of_3_processes_on_one_budget_are_admitted_to_the_last_that_fits(
    url: str, processes: list[Process]
) -> None:
    async with opened(url) as client:
        await client.set(budget("tenant=*", 50 * HOLDS[0] + HOLDS[1] - 1, period="total"))
        for process in processes:
            await process.ask("open", url)
        admitted = {
            call: model for found in await watched(client, processes, "reserve") for call, model in found.items()
        }
        assert len(admitted) == 50
        assert set(admitted.values()) == {0}
        assert await client.spent_held() == (0, 50 * HOLDS[0])
        assert sum(await watched(client, processes, "settle")) == 50
        assert await client.spent_held() == (50 * COSTS[0], 0)
        await assert_settled(client, admitted)
        for process in processes:
            await process.ask("close")


async def test_300_calls_of_3_processes_on_six_budgets_are_exact_with_fallbacks_soft_limits_and_shared_counters(
    url: str, processes: list[Process], request: pytest.FixtureRequest
) -> None:
    big, small = 25, 75
    async with opened(url) as client:
        await client.set(
            *(budget(scope, None, max_values=3 if scope == "end_user=*" else None, period="total") for scope in SCOPES),
            budget("model=big", (big + 1) * HOLDS[0] - 1, period="total"),
            budget("user=*", SOFT_LIMIT, soft=True, period="total"),
            budget("global", big * HOLDS[0] + small * HOLDS[1] + HOLDS[1] - 1, period="total"),
        )
        for process in processes:
            await process.ask("open", url)
        before = deadlocks(request, url)
        admitted = {
            call: model for found in await watched(client, processes, "reserve") for call, model in found.items()
        }
        assert sorted(admitted.values()) == [0] * big + [1] * small
        held = big * HOLDS[0] + small * HOLDS[1]
        assert {scope: state.held_nano_usd for scope, state in (await look(client)).items() if "end_" not in scope} == {
            **dict.fromkeys(("tenant=acme", "user=u", "global"), held),
            "model=big": big * HOLDS[0],
            "model=small": small * HOLDS[1],
        }
        assert held > SOFT_LIMIT

        assert sum(await watched(client, processes, "settle")) == big + small
        states = await look(client)
        users = [state for scope, state in states.items() if "end_" in scope]
        assert len(users) == 4
        assert sum(state.spent_nano_usd for state in users) == states["global"].spent_nano_usd
        await assert_settled(client, admitted)

        settled = big * COSTS[0] + small * COSTS[1]
        # What comes without a hold is charged whether there is room or not.
        await client.set(*(budget(scope, None, period="total") for scope in ("global", "user=*", "model=big")))
        charged = settled + sum(await watched(client, processes, "live"))
        for process in processes:
            await process.ask("close")
        assert deadlocks(request, url) == before
        totals = await client.store.totals()
        assert (totals.cost_nano_usd, totals.records_nano_usd, totals.held_nano_usd) == (charged, charged, 0)
        states = await look(client)
        spent = {scope: states[scope].spent_nano_usd for scope in ("global", "tenant=acme", "user=u")}
        assert spent == dict.fromkeys(spent, charged)
        left = sum(row.granted_nano_usd for row in await client.store.credits() if row.counter.startswith("user=u|"))
        assert states["user=u"].held_nano_usd == left


def deadlocks(request: pytest.FixtureRequest, url: str) -> int:
    """How many there were in a PostgreSQL ledger; nobody waits in a circle."""
    if not url.startswith("postgresql"):
        return 0
    with psycopg.connect(request.getfixturevalue("postgres_server"), autocommit=True) as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ((number,),) = connection.execute(query).fetchall()
    return int(number)
