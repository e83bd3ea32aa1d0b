"""The server with the ledger goes away and comes back: nothing hangs, nothing is lost, nothing is charged twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware
from askii_middleware.budgets import Budget
from askii_middleware.errors import BudgetExceededError, StoreError
from askii_middleware.journal import journal_beside
from askii_middleware.settings import Settings, describe
from askii_middleware.stores import open_store
from askii_middleware.tracker import CostTracker
from tests.servers import Postgres, Valkey
from tests.support.service import PRICES, records_of, soon

NAMESPACES = itertools.count()
Policy = Literal["deny", "allow"]
both_policies = pytest.mark.parametrize("policy", ["deny", "allow"])
COST = 10 * 1_000 + 5 * 2_000
"""Of every call here: 10 tokens in and 5 out."""
TEN_CALLS = [Budget(scope="tenant=*", limit_usd=Decimal(10 * COST).scaleb(-9), period="total")]
BACK_S = 5.0
"""Enforcement is shared again within so long after the server is back."""
CHAT = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


@dataclass
class Server:
    """A server that keeps its data when it is killed, and the URL of a ledger on it that nobody has used."""

    engine: Valkey | Postgres
    url: str

    def start(self) -> None:
        self.engine.start()

    def kill(self) -> None:
        """With its children, which would go on answering for a moment."""
        pids = self._pids()
        self.engine.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pause(self, how: signal.Signals) -> None:
        """Stop it, or let it go on."""
        for pid in self._pids():
            os.kill(pid, how)

    def _pids(self) -> list[int]:
        pid = self.engine.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Valkey | Postgres]]:
    """One of each, with data and not running."""
    postgres = Postgres().start()
    postgres.kill(signal.SIGINT)
    folder = tmp_path_factory.mktemp("valkey")
    yield {"redis": Valkey(folder, "--appendonly", "yes", "--appendfsync", "always"), "postgres": postgres}
    postgres.close()


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest, engines: dict[str, Valkey | Postgres]) -> Iterator[Server]:
    engine = engines[request.param]
    yield Server(engine, f"{engine.url}?namespace=askii_{next(NAMESPACES)}")
    engine.kill(signal.SIGINT)


def new_tracker(server: Server, folder: Path, policy: Policy, **options: Any) -> CostTracker:
    return CostTracker(
        store=open_store(server.url, timeout_s=1.0),
        prices=PRICES,
        on_store_error=policy,
        journal_path=str(folder / "journal"),
        **{"settle_timeout_s": 1.0, "budgets": TEN_CALLS, **options},
    )


async def call(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=5) as usage:
        usage["input_tokens"], usage["output_tokens"] = 10, 5


async def refused(tracker: CostTracker) -> bool:
    try:
        await call(tracker)
    except StoreError:
        return True
    return False


async def charged(tracker: CostTracker) -> tuple[int, int]:
    """The number of records and their sum, which the ledger's own sums agree with; nothing is held."""
    totals = await tracker.store.totals()
    records = await records_of(tracker)
    assert len({record.call_id for record in records}) == len(records)
    assert (totals.calls, totals.cost_nano_usd) == (totals.records, totals.records_nano_usd)
    assert totals.held_nano_usd == 0
    return len(records), sum(record.cost_nano_usd for record in records)


async def has_charged(tracker: CostTracker, number: int) -> bool:
    try:
        return (await tracker.store.totals()).calls == number
    except StoreError:
        return False


async def fills_up(tracker: CostTracker, already: int) -> None:
    """The budget has room for ten calls in all, and counts those of the outage."""
    for _ in range(10 - already):
        await call(tracker)
    with pytest.raises(BudgetExceededError):
        await call(tracker)
    assert await charged(tracker) == (10, 10 * COST)


@both_policies
async def test_a_start_without_the_store_comes_right_by_itself(server: Server, policy: Policy, tmp_path: Path) -> None:
    tracker = new_tracker(server, tmp_path, policy)
    await tracker.start(strict=False)
    try:
        assert await refused(tracker) == (policy == "deny")
        await asyncio.to_thread(server.start)
        made = 0 if policy == "deny" else 1
        await soon(tracker_is_ready(tracker), timeout_s=BACK_S)
        await soon(lambda: has_charged(tracker, made), timeout_s=BACK_S)
        await fills_up(tracker, made)
    finally:
        await tracker.stop()


def tracker_is_ready(tracker: CostTracker) -> Any:
    session: Any = tracker._session
    return lambda: session.is_ready


@both_policies
async def test_calls_that_lose_the_store_are_charged_once_when_it_is_back(
    server: Server, policy: Policy, tmp_path: Path
) -> None:
    await asyncio.to_thread(server.start)
    tracker = new_tracker(server, tmp_path, policy)
    async with tracker:
        await call(tracker)
        admitted, may_end = asyncio.Barrier(4), asyncio.Event()

        async def long_call() -> None:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=5) as usage:
                await admitted.wait()
                await may_end.wait()
                usage["input_tokens"], usage["output_tokens"] = 10, 5

        running = [asyncio.create_task(long_call()) for _ in range(3)]
        await admitted.wait()
        await asyncio.to_thread(server.kill)
        may_end.set()
        await asyncio.gather(*running)
        assert (tmp_path / "journal.0").read_bytes().count(b"\n") == 3
        assert await refused(tracker) == (policy == "deny")
        made = 4 if policy == "deny" else 5
        await asyncio.to_thread(server.start)
        await soon(lambda: has_charged(tracker, made), timeout_s=BACK_S)
        await fills_up(tracker, made)
    assert not list(tmp_path.glob("journal*"))


async def test_a_store_that_hangs_is_waited_for_no_longer_than_its_time_out(server: Server, tmp_path: Path) -> None:
    await asyncio.to_thread(server.start)
    tracker = new_tracker(server, tmp_path, "allow")
    async with tracker:
        await call(tracker)
        server.pause(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            await call(tracker)
            assert time.monotonic() - began_s < 4.0
        finally:
            server.pause(signal.SIGCONT)
        made = 2
        await soon(lambda: has_charged(tracker, made), timeout_s=BACK_S)
        await soon(lambda: nothing_held(tracker), timeout_s=BACK_S)
        await fills_up(tracker, made)


async def nothing_held(tracker: CostTracker) -> bool:
    return (await tracker.store.totals()).held_nano_usd == 0


async def test_a_full_journal_refuses_new_calls_under_either_policy(server: Server, tmp_path: Path) -> None:
    await asyncio.to_thread(server.start)
    async with new_tracker(server, tmp_path, "allow", journal_max_bytes=4_000) as tracker:
        await call(tracker)
        await asyncio.to_thread(server.kill)
        made = 1
        while not await refused(tracker):
            made += 1
            assert made < 20
        assert made > 1
        assert await refused(tracker)
        # The last one did not fit: it waits in memory.
        await asyncio.to_thread(server.start)
        await soon(lambda: has_charged(tracker, made), timeout_s=BACK_S)
        assert await charged(tracker) == (made, made * COST)
        assert not await refused(tracker)


async def test_what_a_killed_worker_left_in_its_journal_is_charged_by_the_next(server: Server, tmp_path: Path) -> None:
    await asyncio.to_thread(server.start)
    first = new_tracker(server, tmp_path, "allow")
    await first.start()
    await asyncio.to_thread(server.kill)
    await call(first)
    await first.stop(flush_s=0.1)
    assert (tmp_path / "journal.0").stat().st_size > 0
    await asyncio.to_thread(server.start)
    async with new_tracker(server, tmp_path, "allow") as second:
        await soon(lambda: has_charged(second, 1), timeout_s=BACK_S)
        await fills_up(second, 1)
    assert not list(tmp_path.glob("journal*"))


# Over HTTP -----------------------------------------------------------------------------------------------------------


async def answer(_request: Request) -> JSONResponse:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return JSONResponse({"id": "c", "object": "chat.completion", "model": "big", "choices": [], "usage": usage})


@contextlib.asynccontextmanager
async def client_of(tracker: CostTracker) -> AsyncIterator[httpx.AsyncClient]:
    inner = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    app = AskiiMiddleware(inner, tracker=tracker, identify=lambda _scope: "acme")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(("policy", "status"), [("deny", 503), ("allow", 200)])
async def test_clients_get_503_or_their_answer_while_the_store_is_away(
    server: Server, policy: Policy, status: int, tmp_path: Path
) -> None:
    await asyncio.to_thread(server.start)
    roomy = [Budget(scope="tenant=*", limit_usd=1)]
    async with new_tracker(server, tmp_path, policy, budgets=roomy) as tracker, client_of(tracker) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        await asyncio.to_thread(server.kill)
        away = await client.post("/v1/chat/completions", json=CHAT)
        assert away.status_code == status
        if status == 503:
            assert away.json()["error"]["code"] == "ledger_unavailable"
            assert int(away.headers["retry-after"]) >= 1
        await asyncio.to_thread(server.start)
        made = 1 if policy == "deny" else 2
        await soon(lambda: has_charged(tracker, made), timeout_s=BACK_S)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        await soon(lambda: has_charged(tracker, made + 1), timeout_s=BACK_S)
        assert await charged(tracker) == (made + 1, (made + 1) * COST)


def test_the_journal_of_a_ledger_on_a_server_lies_in_the_working_directory_and_a_start_says_so() -> None:
    said = describe(Settings(store="redis://user:secret@host:6379/0"))
    place = journal_beside("redis://host:6379/0")
    assert place is not None
    assert f"store redis://host:6379/0, journal {Path(place).absolute()}, " in said
    assert "journal" not in describe(Settings(store="sqlite:///askii.db"))
    assert journal_beside("sqlite:///data/askii.db") == "data/askii.db.journal"
    assert journal_beside("memory://") is None


def test_every_ledger_on_a_server_has_a_journal_of_its_own_whoever_signs_in() -> None:
    urls = ("redis://host:6379/0", "redis://host:6379/1", "redis://other:6379/0", "postgresql://host/db?namespace=blue")
    places = [journal_beside(url) for url in urls]
    assert places[0] == journal_beside("redis://user:secret@host:6379/0?namespace=askii")
    assert len(set(places)) == 4
    assert str(places[3]).startswith("blue-journal-")
