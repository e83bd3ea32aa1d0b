"""A program that tests run three times at once: `python -m tests.stores.postgres_rush URL NAME`."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import msgspec

from askii_middleware.admission import Admission, Candidate, ReserveRequest
from askii_middleware.stores import open_store
from askii_middleware.stores.base import CreditAsk, DrawRequest, Settled

from .support import Client, Clock

CALLS = 100
HOLD, COST = 10, 7
SCOPES = ("tenant=*", "end_user=*", "tag=*", "model=*", "user=*", "global")


class RealClock(Clock):
    def __call__(self) -> float:
        self.now_s = time.time()
        return self.now_s


class Rush:
    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.random = random.Random(name)
        self.charged = 0

    def request(self, call_id: str, hold: int = HOLD) -> ReserveRequest:
        """Meets every budget, in any order, and for some values the counter that they share."""
        pick = self.random.choice
        values: dict[str, str | tuple[str, ...]] = {
            "tenant": "acme",
            "user": "u",
            "end_user": pick("abcdefgh"),
            "model": "m",
            "tag": (pick("xyz"),),
        }
        matches = list(self.client.index.matches(values))
        self.random.shuffle(matches)
        request = self.client.request(call_id, hold, worker=self.name)
        candidates = (Candidate("m", hold, tuple(matches)),)
        return ReserveRequest(
            call_id=call_id,
            worker=self.name,
            candidates=candidates,
            windows=request.windows,
            rate=request.rate,
            deadline_s=600,
            forms_version=request.forms_version,
        )

    async def reserve_all(self) -> list[str]:
        """The ids that were admitted. Every tenth id is the same in all processes."""
        calls = [f"shared-{n}" if n % 10 == 0 else f"{self.name}-{n}" for n in range(CALLS)]
        answers = await asyncio.gather(*(self.client.store.reserve(self.request(call)) for call in calls))
        return [call for call, answer in zip(calls, answers, strict=True) if answer.candidate is not None]

    async def settle_all(self, calls: list[str]) -> int:
        """How many were settled here for the first time: by ones and by tens, in any order."""
        self.random.shuffle(calls)
        half = len(calls) // 2
        settlements = [self.client.settlement(call, COST) for call in calls]
        jobs = [self.client.store.settle_many(settlements[n : n + 10]) for n in range(0, half // 10 * 10, 10)]
        many = asyncio.gather(*jobs)
        ones = asyncio.gather(*(self.client.store.settle(one) for one in settlements[half // 10 * 10 :]))
        answers = [answer for part in await many for answer in part] + list(await ones)
        assert all(isinstance(answer, Settled) and not answer.late for answer in answers)
        return sum(isinstance(answer, Settled) and not answer.duplicate for answer in answers)

    async def live(self, number: int) -> None:
        """One call of many kinds, from its beginning to its end, beside a few draws."""
        store, call = self.client.store, f"{self.name}-live-{number}"
        fate = self.random.choice(["settle", "release", "replace", "unheld", "draw"])
        if fate == "draw":
            await self.draw(number)
            return
        request = self.request(call)
        if fate != "unheld":
            answer: Admission = await store.reserve(request)
            assert answer.candidate == 0
        if fate == "replace":
            again = self.request(f"{call}-again")
            request = msgspec.structs.replace(again, replaces=call)
            assert (await store.reserve(request)).candidate == 0
            call = request.call_id
        if fate == "release":
            await store.release(call)
            return
        settlement = self.client.settlement(call, COST, matches=request.candidates[0].matches)
        await store.settle(settlement)
        self.charged += COST

    async def draw(self, number: int) -> None:
        request = self.request("")
        holder = f"{self.name}-{number}"
        await self.client.store.heartbeat(holder, 600)
        returned: list[tuple[str, int]] = []
        for sequence in (1, 2):
            drawn = await self.client.store.draw(
                DrawRequest(
                    holder=holder,
                    sequence=sequence,
                    asks=tuple(CreditAsk(match, 5) for match in request.candidates[0].matches) if sequence == 1 else (),
                    returns=tuple(returned),
                    windows=request.windows,
                    rate=request.rate,
                    forms_version=request.forms_version,
                )
            )
            returned = [(line.state.counter, line.granted_nano_usd) for part in drawn.lines for line in part]


async def main(url: str, name: str) -> None:
    store = open_store(url)
    await store.open()
    await store.heartbeat(name, 600)
    client = Client(store, RealClock(time.time()))
    await client.refresh()
    rush = Rush(client, name)

    async def at_word(said: object) -> None:
        print(json.dumps(said), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

    await at_word("ready")
    admitted = await rush.reserve_all()
    await at_word(admitted)
    await at_word(await rush.settle_all(admitted))
    await asyncio.gather(*(rush.live(number) for number in range(CALLS)))
    await at_word(rush.charged)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
