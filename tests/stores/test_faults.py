"""Faults of the server with the ledger, and of the wire to it, while it is under load: never more is spent than a
limit, nobody waits for longer than the time-out, no event is lost or doubled, and afterwards all goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from askii_middleware import session
from askii_middleware.errors import StoreError
from askii_middleware.journal import Journal
from askii_middleware.stores import open_store
from askii_middleware.stores.base import PARTITIONS
from askii_middleware.writer import LedgerWriter
from tests.servers import Postgres, Valkey, running
from tests.support.service import soon
from tests.support.tcp_proxy import Harm, TcpProxy

from .faults import LANES, TIMEOUT_S, Load, load
from .processes import RealClock
from .support import Client, budget

NAMESPACES = itertools.count()
Fault = Callable[[Load], Awaitable[None]]


@dataclass
class Server:
    """A server that keeps its data, and the name of a ledger on it that nobody has used."""

    engine: Valkey | Postgres
    namespace: str

    @property
    def url(self) -> str:
        return f"{self.engine.url}?namespace={self.namespace}"

    def url_through(self, proxy: TcpProxy) -> str:
        return self.url.replace(f":{self.engine.port}", f":{proxy.port}")

    @property
    def pids(self) -> list[int]:
        pid = self.engine.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def signal(self, how: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, how)

    def kill(self) -> None:
        """With its children, which would go on answering for a moment."""
        pids = self.pids
        self.engine.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Valkey | Postgres]]:
    valkey = Valkey(tmp_path_factory.mktemp("valkey"), "--appendonly", "yes", "--appendfsync", "always")
    postgres = Postgres("max_connections=20", "superuser_reserved_connections=0").start()
    yield {"redis": valkey.start(), "postgres": postgres}
    valkey.kill()
    postgres.close()


def new_ledger(engines: dict[str, Valkey | Postgres], kind: str) -> Server:
    return Server(engines[kind], f"faults_{next(NAMESPACES)}")


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest, engines: dict[str, Valkey | Postgres]) -> Server:
    return new_ledger(engines, request.param)


@pytest.fixture
def valkey(engines: dict[str, Valkey | Postgres]) -> Server:
    return new_ledger(engines, "redis")


@pytest.fixture
def postgres(engines: dict[str, Valkey | Postgres]) -> Server:
    return new_ledger(engines, "postgres")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the ledger is tried again sooner."""
    monkeypatch.setattr(session, "RECONNECT_S", 0.1)
    monkeypatch.setattr(session, "MAX_BEAT_S", 0.3)


# The server ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_killed_and_started_again_twice_under_load(server: Server, tmp_path: Path) -> None:
    async def restart(found: Load) -> None:
        await asyncio.to_thread(server.kill)
        await found.has_refused()
        await asyncio.to_thread(server.engine.start)

    try:
        async with load(server.url, tmp_path) as found:
            await found.run(restart, restart)
            await found.assert_exact()
    finally:
        server.engine.kill()  # it would end with the thread that has started it
        server.engine.start()


async def test_a_server_that_stands_still_for_longer_than_the_time_out(server: Server, tmp_path: Path) -> None:
    async def stand_still(found: Load) -> None:
        server.signal(signal.SIGSTOP)
        try:
            await found.has_refused()
        finally:
            server.signal(signal.SIGCONT)

    async with load(server.url, tmp_path) as found:
        await found.run(stand_still)
        await found.assert_exact()


@pytest.mark.parametrize("what", ["ALL", "WRITE"])
async def test_a_redis_that_pauses_its_clients_for_longer_than_the_time_out(
    valkey: Server, what: str, tmp_path: Path
) -> None:
    engine = valkey.engine
    assert isinstance(engine, Valkey)

    async def pause(found: Load) -> None:
        await asyncio.to_thread(engine.call, "CLIENT", "PAUSE", int(5000 * TIMEOUT_S), what)
        await found.has_refused(LANES // 2)

    async with load(valkey.url, tmp_path) as found:
        await found.run(pause)
        await found.assert_exact()


async def test_a_redis_that_has_reached_maxmemory_and_gets_more(valkey: Server, tmp_path: Path) -> None:
    engine = valkey.engine
    assert isinstance(engine, Valkey)

    async def fill(found: Load) -> None:
        await asyncio.to_thread(engine.call, "CONFIG", "SET", "maxmemory", 1)
        await found.has_refused(LANES)
        await asyncio.to_thread(engine.call, "CONFIG", "SET", "maxmemory", 0)

    async with load(valkey.url, tmp_path) as found:
        await found.run(fill)
        await found.assert_exact()


async def test_a_backend_of_postgresql_that_stands_still_while_others_go_on(postgres: Server, tmp_path: Path) -> None:
    async def stand_still(found: Load) -> None:
        pid = await asyncio.to_thread(busy_backend, postgres)
        known = len(found.charged)
        os.kill(pid, signal.SIGSTOP)
        try:  # it has locked a counter, or not
            await soon(lambda: found.refused or len(found.charged) > known + 100)
        finally:
            os.kill(pid, signal.SIGCONT)

    async with load(postgres.url, tmp_path) as found:
        await found.run(stand_still)
        await found.assert_exact()


async def test_a_counter_of_postgresql_that_somebody_has_locked(postgres: Server, tmp_path: Path) -> None:
    async def lock(found: Load) -> None:
        other = await psycopg.AsyncConnection.connect(postgres.engine.url)
        try:
            await other.execute(f"SELECT FROM {postgres.namespace}.counters FOR UPDATE".encode())
            await found.has_refused(LANES)
        finally:
            await other.close()

    async with load(postgres.url, tmp_path) as found:
        await found.run(lock)
        await found.assert_exact()


async def test_a_postgresql_whose_connections_others_have_taken(postgres: Server, tmp_path: Path) -> None:
    async def take_all(found: Load) -> None:
        taken = await asyncio.to_thread(take_connections, postgres)
        try:
            await found.has_refused()
        finally:
            for connection in taken:
                connection.close()

    async with load(postgres.url, tmp_path) as found:
        await found.run(take_all)
        await found.assert_exact()


def busy_backend(server: Server) -> int:
    """One with a transaction under way."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' LIMIT 1"
    )
    with psycopg.connect(server.engine.url, autocommit=True) as other:
        while (row := other.execute(query).fetchone()) is None:
            pass
    return int(row[0])


def take_connections(server: Server) -> list[psycopg.Connection]:
    """End all others and take their places, until there is none left."""
    taken: list[psycopg.Connection] = []
    others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND NOT pid = ANY(%s)"
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(psycopg.connect(server.engine.url, autocommit=True))
        pids = [connection.info.backend_pid for connection in taken]
        if taken[0].execute(f"SELECT count(pg_terminate_backend(pid)) {others}".encode(), (pids,)).fetchone() == (0,):
            return taken


# The wire ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["before", "inside", "after", "half-close", "swallow", "stall"])
async def test_a_wire_that_breaks_before_within_or_after_a_command(server: Server, harm: Harm, tmp_path: Path) -> None:
    async with TcpProxy(server.engine.port).running() as proxy:

        async def do(found: Load) -> None:
            proxy.harm = harm
            await found.has_refused(LANES // 2)
            proxy.harm = "none"

        async with load(server.url_through(proxy), tmp_path, direct_url=server.url) as found:
            await found.run(do)
            await found.assert_exact()


async def test_a_wire_that_is_cut_again_and_again_wherever_the_commands_are(server: Server, tmp_path: Path) -> None:
    async with TcpProxy(server.engine.port).running() as proxy:

        async def cut(found: Load) -> None:
            for _ in range(8):
                proxy.reset()
                await found.has_charged(1)

        async with load(server.url_through(proxy), tmp_path, direct_url=server.url) as found:
            await found.run(cut)
            await found.assert_exact()


async def test_a_wire_of_50_ms_refuses_nobody(server: Server, tmp_path: Path) -> None:
    async with TcpProxy(server.engine.port).running() as proxy:

        async def slow(found: Load) -> None:
            proxy.latency_s = 0.025
            await found.has_charged(100)
            proxy.latency_s = 0.0

        async with load(server.url_through(proxy), tmp_path, direct_url=server.url) as found:
            await found.run(slow)
            await found.assert_exact()
            assert found.refused == 0


async def test_a_wire_that_is_slower_than_the_time_out(server: Server, tmp_path: Path) -> None:
    async with TcpProxy(server.engine.port).running() as proxy:

        async def slow(found: Load) -> None:
            proxy.latency_s = 2 * TIMEOUT_S
            await found.has_refused()
            proxy.latency_s = 0.0

        async with load(server.url_through(proxy), tmp_path, direct_url=server.url) as found:
            await found.run(slow)
            await found.assert_exact()


# What can be lost ----------------------------------------------------------------------------------------------------


async def settle(writer: LedgerWriter, client: Client, numbers: Iterable[int]) -> list[bool]:
    """Whether the ledger said that it has each of these calls, of one nano-USD."""
    answers = [await writer.settle(client.settlement(f"c{number}", 1)) for number in numbers]
    return [answer is not None for answer in answers]


async def assert_charged(client: Client, calls: int) -> None:
    """So many calls, with all that belongs to each of them."""
    store = client.store
    assert await store.totals() == (calls, calls, calls, calls, 0, 0)
    assert len(await store.records()) == len(await store.fetch("s", range(PARTITIONS), 100)) == calls
    assert await client.spent_held() == (calls, 0)


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[tuple[LedgerWriter, Client]]:
    client = Client(open_store(url, timeout_s=TIMEOUT_S), RealClock(), [budget("tenant=*", 10**9, period="total")])
    writer = LedgerWriter(client.store, Journal(folder / "journal"), settle_timeout_s=2 * TIMEOUT_S)
    try:
        await client.store.open()
        await client.store.register_sinks(["s"])
        yield writer, client
    finally:
        await writer.close()
        await client.store.close()


async def test_with_everysec_a_killed_server_loses_nothing_and_a_dead_machine_whole_calls_since_the_last_fsync(
    tmp_path: Path,
) -> None:
    server = Valkey(tmp_path / "valkey", "--appendonly", "yes", "--appendfsync", "everysec")
    with running(server):
        async with opened(server.url, tmp_path) as (writer, client):
            assert await settle(writer, client, range(20)) == [True] * 20
            (file,) = (tmp_path / "valkey" / "appendonlydir").glob("*.incr.aof")
            on_disk = file.stat().st_size
            assert await settle(writer, client, range(20, 25)) == [True] * 5
            server.kill()
            server.start()
            await soon(lambda: answers(client))
            await assert_charged(client, 25)
            server.kill()
            with file.open("r+b") as opened_file:
                opened_file.truncate(on_disk + 100)  # in the middle of the next call
            server.start()
            await soon(lambda: answers(client))
            await assert_charged(client, 20)
            assert await settle(writer, client, range(20, 25)) == [True] * 5
            await assert_charged(client, 25)


@pytest.mark.parametrize(("query", "answered", "kept"), [("", True, 20), ("?wait_replicas=1", False, 25)])
async def test_a_failover_loses_what_no_replica_has_seen_and_with_wait_replicas_nothing(
    query: str, answered: bool, kept: int, tmp_path: Path
) -> None:
    first, second, third = (Valkey(tmp_path / name, "--repl-diskless-sync-delay", "0") for name in "abc")
    with running(first, second, third):
        to_replicas, to_master = TcpProxy(first.port), TcpProxy(first.port)
        async with to_replicas.running(), to_master.running():
            for replica in (second, third):
                await replicate(replica, to_replicas.port)
            async with opened(f"redis://127.0.0.1:{to_master.port}{query}", tmp_path) as (writer, client):
                assert await settle(writer, client, range(20)) == [True] * 20
                await soon(lambda: offset(first, "master") == offset(second, "slave") == offset(third, "slave"))
                to_replicas.harm = "stall"
                assert await settle(writer, client, range(20, 25)) == [answered] * 5
                first.kill()
                await asyncio.to_thread(second.call, "REPLICAOF", "NO", "ONE")
                await replicate(third, second.port)
                to_master.target = second.port
                to_master.reset()
                await soon(lambda: answers(client))
                await writer.replay()
                await assert_charged(client, kept)


async def answers(client: Client) -> bool:
    with contextlib.suppress(StoreError):
        await client.store.totals()
        return True
    return False


async def replicate(replica: Valkey, port: int) -> None:
    await asyncio.to_thread(replica.call, "REPLICAOF", "127.0.0.1", port)

    async def is_up() -> bool:
        return b"master_link_status:up" in await asyncio.to_thread(replica.call, "INFO", "replication")

    await soon(is_up)


def offset(server: Valkey, role: str) -> bytes:
    return server.call("INFO", "replication").partition(f"{role}_repl_offset:".encode())[2].split(b"\r")[0]
