"""A ledger behind Sentinels and in a Cluster: on the server that takes its writes, wherever that is."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from binascii import crc_hqx
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Erased, KeyRow, Store

from ..servers import Sentinel, Valkey, cluster, replicated, running, wait_until
from .support import DAY_S, Client, Clock, again, budget, delivered


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Sentinel, list[Valkey]]]:
    with replicated(tmp_path) as found:
        yield found


@asynccontextmanager
async def opened(url: str, clock: Clock | None = None) -> AsyncIterator[Store]:
    store = open_store(url, clock=clock, timeout_s=2.0)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


class ServerTime(Clock):
    """For a client of a store with the server's own clock."""

    def __call__(self) -> float:
        return time.time()

    @property
    def now_s(self) -> float:
        return time.time()

    @now_s.setter
    def now_s(self, _: float) -> None:
        pass


async def main_operations(store: Store, clock: Clock) -> None:
    """One of everything that matters, on an empty ledger."""
    client = Client(store, clock)
    assert await store.heartbeat("w", 3600)
    await store.register_sinks(["s"])
    await client.set(budget("tenant=*", 1000), budget("global", 5000))
    assert (await client.reserve("a", 600)).candidate == 0
    assert (await client.reserve("b", 600)).reason == "held"
    assert (await client.extend("a", 700)).granted
    assert not (await client.settle("a", 650)).duplicate
    assert (await client.settle("a", 650)).duplicate
    assert await client.spent_held_of("acme") == {"tenant=acme": (650, 0), "global": (650, 0)}
    assert (await client.reserve("b", 600)).reason == "spent"
    await client.settle("c", 100)
    assert await client.waiting("s") == ["a", "c"]
    await client.deliver("s", delivered(1), again(2, 60.0))
    assert await store.pending() == {"s": 1}
    assert (await store.totals()).cost_nano_usd == 750
    assert await store.put_item("kind", "name", b"value")
    assert [item.value for item in await store.items("kind")] == [b"value"]
    await store.put_key(KeyRow(id="k", sha256="00" * 32, tenant="acme", former_sha256="11" * 32))
    assert [await store.find_key(digits * 32) for digits in ("00", "11")] == await store.keys(tenant="acme") * 2
    day_s = clock.now_s // DAY_S * DAY_S
    (row,) = await store.spend("tenant=acme", day_s - 3600, day_s + DAY_S + 3600)
    (top,) = await store.top_spend("tenant=", day_s - 3600, day_s + DAY_S + 3600, 9)
    assert (row.cost_nano_usd, top.cost_nano_usd) == (750, 750)
    assert len(await store.latest("acme", 9)) == len(await store.latest(None, 9)) == 2
    assert await store.prune(records_before_s=clock.now_s, aggregates_before_s=None, limit=9) == 0
    with pytest.raises(StoreError, match="has not got all"):
        await store.erase("acme")
    await client.deliver("s", delivered(2))
    assert await store.erase("acme") == Erased(records=2, aggregates=1, keys=1, budgets=0)
    assert (await store.totals()).cost_nano_usd == 750


# Cluster --------------------------------------------------------------------------------------------------------------


def owner_of(nodes: list[Valkey], namespace: str) -> int:
    return crc_hqx(namespace.encode(), 0) % 16384 * 3 // 16384


async def test_a_clusters_ledgers_lie_on_the_shards_of_their_names_whole(nodes: list[Valkey]) -> None:
    url = "redis+cluster://" + ",".join(node.address for node in nodes)
    names = {owner_of(nodes, f"n{n}"): f"n{n}" for n in range(50)}
    assert sorted(names) == [0, 1, 2]
    for place, name in names.items():
        clock = Clock()
        async with opened(f"{url}?namespace={name}", clock) as store:
            await main_operations(store, clock)
        for n, node in enumerate(nodes):
            keys = node.call("KEYS", f"{{{name}}}:*")
            assert (keys == b"*0") == (n != place)


async def test_any_node_of_a_cluster_that_lives_shows_the_way(nodes: list[Valkey]) -> None:
    gone = Valkey(nodes[0].folder.parent / "gone")
    for node in nodes:
        async with opened(f"redis+cluster://{gone.address},{node.address}?namespace=way") as store:
            await store.ping()


async def test_a_ledger_whose_slot_has_moved_is_found_again(nodes: list[Valkey]) -> None:
    url = f"redis+cluster://{nodes[0].address}?namespace=moving"
    slot = crc_hqx(b"moving", 0) % 16384
    old = owner_of(nodes, "moving")
    new = (old + 1) % 3
    ids = [node.call("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in nodes]
    async with opened(url) as store:
        # An empty slot may just change hands.
        await store._link.call("DEL", "{moving}:meta")  # type: ignore[attr-defined]
        for n in (new, old, 3 - new - old):
            assert nodes[n].call("CLUSTER", "SETSLOT", slot, "NODE", ids[new]) == b"+OK"
        await asyncio.gather(*(store.ping() for _ in range(20)))
        assert nodes[new].call("KEYS", "{moving}:*") != b"*0"
        for n in (new, old):
            wait_until(lambda of=nodes[n]: b"cluster_state:ok" in of.call("CLUSTER", "INFO"), "the cluster")


async def test_a_cluster_nobody_of_which_answers_is_an_error(tmp_path: Path) -> None:
    gone = [Valkey(tmp_path / str(n)) for n in range(2)]
    store = open_store("redis+cluster://" + ",".join(node.address for node in gone))
    with pytest.raises(StoreError, match=gone[1].address):
        await store.open()
    await store.close()


# Sentinel -------------------------------------------------------------------------------------------------------------


async def test_behind_a_sentinel_the_master_is_found(watched: tuple[Sentinel, list[Valkey]], tmp_path: Path) -> None:
    sentinel, servers = watched
    gone = Valkey(tmp_path / "gone")
    clock = Clock()
    async with opened(f"redis+sentinel://{gone.address},{sentinel.address}/main?namespace=x", clock) as store:
        await main_operations(store, clock)
    assert servers[0].call("EXISTS", "{x}:meta") == b":1"
    stranger = open_store(f"redis+sentinel://{sentinel.address}/other")
    with pytest.raises(StoreError, match="no master of 'other'"):
        await stranger.open()
    await stranger.close()


async def test_what_no_replica_has_is_not_answered_and_a_repetition_waits_for_it_too(tmp_path: Path) -> None:
    master = Valkey(tmp_path / "0", "--repl-diskless-sync-delay", "0")
    replica = Valkey(tmp_path / "1", "--replicaof", f"127.0.0.1 {master.port}")
    clock = Clock()
    with running(master, replica):
        wait_until(lambda: b"master_link_status:up" in replica.call("INFO", "replication"), "the replica")
        stores = [open_store(f"{master.url}?wait_replicas=1", clock=clock, timeout_s=1.0) for _ in range(2)]
        clients = [Client(store, clock) for store in stores]
        await stores[0].open()
        await stores[0].heartbeat("w", 3600)
        await clients[0].set(budget("tenant=*", 1000))
        for call_id in ("a", "b"):
            await clients[0].reserve(call_id)
        await clients[0].settle("b")
        os.kill(replica.pid, signal.SIGSTOP)
        with pytest.raises(StoreError, match="NOREPLICAS 0"):
            await clients[0].settle("a")
        with pytest.raises(StoreError, match="NOREPLICAS 0"):  # though nothing is left to be written
            await clients[1].settle("a")
        assert (await stores[1].totals()).calls == 2
        os.kill(replica.pid, signal.SIGCONT)
        settled = await asyncio.gather(*(client.settle("a") for client in clients))
        assert [one.duplicate for one in settled] == [True, True]
        for store in stores:
            await store.close()


@pytest.mark.parametrize("how", ["coordinated", "killed"])
async def test_a_failover_under_load_overspends_nothing_and_loses_nothing(
    watched: tuple[Sentinel, list[Valkey]], how: str
) -> None:
    sentinel, servers = watched
    await fail_over_under_load(sentinel, servers, how)


@pytest.mark.parametrize(("how", "replicas"), [("plain", 1), ("killed", 2)])
async def test_what_replicas_have_confirmed_survives_a_failover_of_a_master_that_writes_without_them(
    tmp_path: Path, how: str, replicas: int
) -> None:
    with replicated(tmp_path, replicas, ("--repl-diskless-sync-delay", "0")) as (sentinel, servers):
        await fail_over_under_load(sentinel, servers, how, "?wait_replicas=1")


async def fail_over_under_load(sentinel: Sentinel, servers: list[Valkey], how: str, query: str = "") -> None:
    """A plain failover leaves the old master writing for a while; a coordinated one stops it first."""
    clock = ServerTime()
    admitted: list[str] = []
    over = asyncio.Event()
    async with opened(f"redis+sentinel://{sentinel.address}/main{query}", clock=None) as store:
        client = Client(store, clock)
        await store.heartbeat("w", 3600)
        await client.set(budget("tenant=*", 20_000, period="total"))

        async def until_answered(operation: str, call_id: str) -> object:
            until = time.monotonic() + 15
            while True:
                try:
                    return await getattr(client, operation)(call_id, 10)
                except StoreError:
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(0.02)

        async def caller(n: int) -> None:
            for m in itertools.count():
                call_id = f"{n}-{m}"
                answer = await until_answered("reserve", call_id)
                if getattr(answer, "reason", None) == "spent":
                    return
                if getattr(answer, "candidate", None) is None:
                    await asyncio.sleep(0.01)
                else:
                    admitted.append(call_id)
                    await asyncio.sleep(0 if over.is_set() else 0.1)
                    await until_answered("settle", call_id)

        async def fail_over() -> None:
            await asyncio.sleep(0.2)
            if how == "killed":
                servers[0].kill()
            else:
                command = ("SENTINEL", "FAILOVER", "main", *(("COORDINATED",) if how == "coordinated" else ()))
                assert await asyncio.to_thread(sentinel.call, *command) == b"+OK"
            first = f"{servers[0].port}".encode()
            while first in await asyncio.to_thread(sentinel.call, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"):
                await asyncio.sleep(0.02)
            if how == "plain":  # as the Sentinel does after 8 seconds
                command = ("REPLICAOF", "127.0.0.1", servers[1].port)
                await asyncio.to_thread(servers[0].call, *command)
            known = len(admitted)
            while len(admitted) < known + 100:  # until the new master has admitted calls
                await asyncio.sleep(0.02)
            over.set()

        async with asyncio.timeout(40):
            await asyncio.gather(fail_over(), *map(caller, range(20)))
        assert len(admitted) == 2000
        assert await client.spent_held() == (20_000, 0)
        totals = await store.totals()
        assert (totals.calls, totals.cost_nano_usd, totals.records, totals.held_nano_usd) == (2000, 20_000, 2000, 0)
    if how != "killed":
        wait_until(lambda: b"role:slave" in servers[0].call("INFO", "replication"), "the old master's new role")
