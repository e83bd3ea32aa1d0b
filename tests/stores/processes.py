"""Programs that tests run as processes of their own: `python -m tests.stores.processes COMMAND PATH ...`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time

import msgspec

from askii_middleware.currency import parse_rate
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Outcome

from .support import DAY_S, Client, Clock

LIMIT = 10_000_000_000
SHARES = (0.000001, 0.00001, 0.0001)
"""Small enough to be crossed by the work of a second."""
RATE = parse_rate("1234567")
TENANTS = ("acme", "other")


class RealClock(Clock):
    """For a client of a store with the engine's own clock."""

    def __init__(self) -> None:
        pass

    def __call__(self) -> float:
        return time.time()

    @property
    def now_s(self) -> float:
        return time.time()

    @now_s.setter
    def now_s(self, _: float) -> None:
        raise AssertionError("nobody sets the time")


async def connect(path: str, worker: str) -> Client:
    clock = RealClock()
    store = open_store(f"sqlite:///{path}", clock=clock)
    await store.open()
    await store.heartbeat(worker, 3600)
    client = Client(store, clock)
    await client.refresh()
    return client


async def grow(path: str, name: str) -> None:
    """At the word, ten streams that ask for more until there is none left; then settles them at what they hold."""
    client = await connect(path, name)
    print("ready", flush=True)
    sys.stdin.readline()

    async def stream(call: str) -> int:
        held = (await client.reserve(call, 1, worker=name)).hold_nano_usd
        for sequence in range(1, 10**6):
            answer = await client.extend(call, held + 7, held + 1, sequence=sequence)
            if not answer.granted:
                break
            held = answer.hold_nano_usd
            await asyncio.sleep(0)
        return held

    calls = [f"{name}-{n}" for n in range(10)]
    held = await asyncio.gather(*(stream(call) for call in calls))
    print(json.dumps(held), flush=True)
    sys.stdin.readline()
    settled = await asyncio.gather(*(client.settle(call, cost) for call, cost in zip(calls, held, strict=True)))
    print(json.dumps([s.late or s.duplicate for s in settled]), flush=True)
    await client.store.close()


async def defer(path: str) -> None:
    """Hold for a call, give it away, and wait to be killed."""
    client = await connect(path, "victim")
    await client.store.heartbeat("mortal", 60)
    await client.reserve("deferred", 100, worker="mortal")
    await client.defer("deferred", for_s=DAY_S)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def sight(path: str, name: str) -> None:
    """At the word, settle all operations; tells those it was the first to settle."""
    client = await connect(path, name)
    print("ready", flush=True)
    sys.stdin.readline()
    charged = []
    for n in range(50):
        found = await client.store.operation(f"k:c{n}")
        if found is not None:
            await asyncio.sleep(0)
            if not (await client.settle(found.call_id, 93, rate=RATE)).duplicate:
                charged.append(found.call_id)
    print(json.dumps(charged), flush=True)
    await client.store.close()


async def work(path: str, seed: int) -> None:
    """Calls without end, five at a time, and deliveries between them, until somebody kills it."""
    rng = random.Random(seed)
    worker = f"worker-{seed}"
    client = await connect(path, worker)

    async def caller(lane: int) -> None:
        for n in range(10**9):
            name, tenant = f"{seed}-{lane}-{n}", rng.choice(TENANTS)
            hold = rng.randrange(1, 3000)
            admission = await client.reserve(name, hold, tenant=tenant, worker=worker)
            if admission.candidate is not None and rng.random() < 0.5:
                hold = (await client.extend(name, 2 * hold, tenant=tenant)).hold_nano_usd
            if rng.random() < 0.3:
                await client.defer(name, for_s=0)
            await asyncio.sleep(rng.choice([0, 0.003]))
            cost = rng.randrange(hold + 1)
            if admission.candidate is None or rng.random() < 0.1:
                await client.store.release(name)
                await asyncio.sleep(0)
                continue
            record = msgspec.json.encode({"call_id": name, "subscription": tenant, "cost_nano_usd": cost})
            await client.settle(name, cost, tenant=tenant, rate=RATE, record=record)

    async def deliver() -> None:
        while True:
            leases = await client.store.lease("s", worker, 0.02)
            for entry in await client.store.fetch("s", [lease.partition for lease in leases], 20):
                result = rng.choice(["delivered", "delivered", "again"])
                await client.store.acknowledge("s", leases, [Outcome(entry.partition, entry.seq, result)])
            await asyncio.sleep(0.001)

    await asyncio.gather(*(caller(lane) for lane in range(5)), deliver())


def breed(path: str) -> None:
    """Fork workers on command, so that fifty of them do not each load Python anew: `spawn SEED`, `kill PID`."""
    print("ready", flush=True)
    children: set[int] = set()
    for line in sys.stdin:
        command, number = line.split()
        if command == "kill":
            children.remove(int(number))
            kill(int(number))
            print("dead", flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(work(path, int(number)))
            finally:
                os._exit(1)
        children.add(pid)
        print(pid, flush=True)
    for pid in children:
        kill(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["grow", path, name]:
            asyncio.run(grow(path, name))
        case ["defer", path]:
            asyncio.run(defer(path))
        case ["sight", path, name]:
            asyncio.run(sight(path, name))
        case ["breed", path]:
            breed(path)
        case ["hold", path]:
            import sqlite3

            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            print("ready", flush=True)
            sys.stdin.readline()
            holder.execute("COMMIT")
            holder.close()
