"""A program that tests run three times at once on one ledger, whichever store that is: `python -m tests.stores.rush
NAME`. Each line it reads is a command of one JSON list, each line it writes the answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

import msgspec

from askii_middleware.admission import Admission, Candidate, ReserveRequest
from askii_middleware.stores import open_store
from askii_middleware.stores.base import CreditAsk, DrawRequest, Settled

from .processes import RealClock
from .support import Client

CALLS = 100
MODELS = ("big", "small")
"""What is asked for, and its fallback."""
HOLDS, COSTS = (40, 10), (33, 7)
"""By model."""
SCOPES = ("tenant=*", "end_user=*", "tag=*", "model=*", "user=*", "global")


class Rush:
    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.random = random.Random(name)
        self.admitted: dict[str, int] = {}
        self.charged = 0

    def request(self, call_id: str) -> ReserveRequest:
        """Meets every budget, in any order, and for some values the counter that they share."""
        pick = self.random.choice
        values: dict[str, str | tuple[str, ...]] = {
            "tenant": "acme",
            "user": "u",
            "end_user": pick("abcdefgh"),
            "tag": (pick("xyz"),),
        }
        candidates = []
        for model, hold in zip(MODELS, HOLDS, strict=True):
            matches = list(self.client.index.matches({**values, "model": model}))
            self.random.shuffle(matches)
            candidates.append(Candidate(model, hold, tuple(matches)))
        request = self.client.request(call_id, worker=self.name)
        return msgspec.structs.replace(request, candidates=tuple(candidates))

    async def reserve(self) -> dict[str, int]:
        """A hundred calls, each sent twice: which were admitted, and for which model. Every tenth id is the same in all
        processes.
        """
        calls = [f"shared-{n}" if n % 10 == 0 else f"{self.name}-{n}" for n in range(CALLS)]
        sent = [self.client.store.reserve(self.request(call)) for call in calls * 2]
        answers = [answer.candidate for answer in await asyncio.gather(*sent)]
        assert answers[:CALLS] == answers[CALLS:]
        found = dict(zip(calls, answers, strict=False))
        self.admitted = {call: candidate for call, candidate in found.items() if candidate is not None}
        return self.admitted

    async def settle(self) -> int:
        """How many of them were settled here for the first time: by ones and by tens, in any order, each twice."""
        calls = list(self.admitted.items()) * 2
        self.random.shuffle(calls)
        settlements = [self.client.settlement(call, COSTS[candidate]) for call, candidate in calls]
        tens = len(settlements) // 20
        many = [self.client.store.settle_many(settlements[n * 10 : n * 10 + 10]) for n in range(tens)]
        ones = [self.client.store.settle(one) for one in settlements[tens * 10 :]]
        by_tens, by_ones = await asyncio.gather(asyncio.gather(*many), asyncio.gather(*ones))
        answers = [answer for part in by_tens for answer in part] + list(by_ones)
        assert all(isinstance(answer, Settled) and not answer.late for answer in answers)
        return sum(isinstance(answer, Settled) and not answer.duplicate for answer in answers)

    async def live(self) -> int:
        """What a hundred calls of many kinds were charged, from their beginning to their end, beside a few draws."""
        await self.client.refresh()
        await asyncio.gather(*map(self._live, range(CALLS)))
        return self.charged

    async def _live(self, number: int) -> None:
        store, call = self.client.store, f"{self.name}-live-{number}"
        fate = self.random.choice(["settle", "release", "replace", "unheld", "draw"])
        if fate == "draw":
            await self._draw(number)
            return
        request = self.request(call)
        candidate = 0
        if fate != "unheld":
            candidate = await self._admitted(request)
        if fate == "replace":
            request = msgspec.structs.replace(self.request(f"{call}-again"), replaces=call)
            candidate = await self._admitted(request)
        if fate == "release":
            await store.release(call)
            return
        matches = request.candidates[candidate].matches
        await store.settle(self.client.settlement(request.call_id, COSTS[candidate], matches=matches))
        self.charged += COSTS[candidate]

    async def _admitted(self, request: ReserveRequest) -> int:
        answer: Admission = await self.client.store.reserve(request)
        assert answer.candidate is not None
        return answer.candidate

    async def _draw(self, number: int) -> None:
        request = self.request("")
        holder = f"{self.name}-{number}"
        await self.client.store.heartbeat(holder, 600)
        returned: list[tuple[str, int]] = []
        for sequence in (1, 2):
            drawn = await self.client.store.draw(
                DrawRequest(
                    holder=holder,
                    sequence=sequence,
                    asks=tuple(CreditAsk(match, 5) for match in request.candidates[1].matches) if sequence == 1 else (),
                    returns=tuple(returned),
                    windows=request.windows,
                    rate=request.rate,
                    forms_version=request.forms_version,
                )
            )
            returned = [(line.state.counter, line.granted_nano_usd) for part in drawn.lines for line in part]


async def opened(url: str, name: str) -> Rush:
    store = open_store(url)
    await store.open()
    await store.heartbeat(name, 600)
    client = Client(store, RealClock())
    await client.refresh()
    return Rush(client, name)


async def main(name: str) -> None:
    rush: Rush | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        said: Any = None
        match json.loads(line):
            case ["open", url]:
                rush = await opened(url, name)
            case ["close"]:
                assert rush is not None
                await rush.client.store.close()
            case [command]:
                said = await getattr(rush, command)()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
