"""What the processes of `test_processes` run: `python -m tests.leases.processes COMMAND URL …`. They print one line for
each step and wait for a line in return.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

from askii_middleware.leased import LeasedStore
from askii_middleware.stores import open_store
from tests.stores.support import Client, Clock

CONCURRENT = 100
TTL_S = 2.0


class RealClock(Clock):
    @property
    def now_s(self) -> float:
        return time.time()

    @now_s.setter
    def now_s(self, _: float) -> None:
        pass


async def beat(store: LeasedStore, name: str) -> None:
    while True:
        await asyncio.sleep(TTL_S / 4)
        assert await store.heartbeat(name, TTL_S)


async def spend(url: str, name: str, hold: int) -> None:
    """A hundred callers until everything is refused; tells what they were admitted and charged."""
    store = LeasedStore(open_store(url))
    await store.open()
    await store.heartbeat(name, TTL_S)
    beating = asyncio.create_task(beat(store, name))
    client = Client(store, RealClock(time.time()))
    await client.refresh()
    print("ready", flush=True)
    sys.stdin.readline()
    rng = random.Random(name)
    told = {"admitted": 0, "charged": 0, "refused": 0}

    async def caller(lane: int) -> None:
        for n in range(10**6):
            call_id = f"{name}-{lane}-{n}"
            admission = await client.reserve(call_id, hold, worker=name)
            if admission.candidate is None:
                told["refused"] += 1
                if admission.reason == "spent":
                    return
                await asyncio.sleep(0.01)
                continue
            told["admitted"] += 1
            await asyncio.sleep(rng.uniform(0, 0.01))
            cost = rng.randrange(hold + 1)
            assert not (await client.settle(call_id, cost)).late
            told["charged"] += cost

    await asyncio.gather(*(caller(lane) for lane in range(CONCURRENT)))
    beating.cancel()
    await store.close()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["spend", url, name, hold]:
            asyncio.run(spend(url, name, int(hold)))
