"""Many workers with leases over one ledger, in virtual time: the real code on an event loop whose clock jumps from one
event to the next, over a wire that delays, loses and repeats, with clocks that disagree and workers that die.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from askii_middleware.admission import Admission, ExtendRequest, Extension, ReserveRequest
from askii_middleware.budgets import Budget
from askii_middleware.errors import StoreError
from askii_middleware.leased import LeasedStore
from askii_middleware.leased.delegating import DelegatingStore
from askii_middleware.stores.base import Drawn, DrawRequest, Operation, Promotion, Settled, Settlement, UnwritableError
from askii_middleware.stores.memory import MemoryStore
from tests.stores.support import NOON_S, Client, Clock

T = TypeVar("T")
TIMEOUT_S = 0.5
LEASE_S = 1.0


class _Jump(selectors.SelectSelector):
    """Waiting takes no time, only the clock moves."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing is left to happen")
        self.now_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run(work: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))


@dataclass(kw_only=True)
class World:
    """What happens.

    Attributes:
        calls_a_second: of each worker; each call takes `call_s` and costs up to its hold, `hold_nano_usd` at most.
        lost: the share of messages that never arrive; as many are executed after their sender has given up.
        crashes: how many workers die at random moments.
        start_s: the ledger's time at the beginning.
    """

    workers: int
    budgets: Sequence[Budget]
    seed: int = 1
    for_s: float = 10.0
    calls_a_second: float = 50.0
    call_s: float = 0.3
    hold_nano_usd: int = 250_000
    least_delay_s: float = 0.0002
    most_delay_s: float = 0.004
    lost: float = 0.0
    dearer: float = 0.0
    """The share of calls that cost up to three times their hold."""
    crashes: int = 0
    drift_ppm: float = 500.0
    skew_s: float = 2.0
    extended: float = 0.1
    deferred: float = 0.02
    start_s: float = NOON_S
    lease: bool = True
    values: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    admitted: int = 0
    refused: int = 0
    unheld: int = 0
    """Not asked or not answered."""
    operations: Counter[str] = field(default_factory=Counter)
    """Of the store, as far as calls and credit go."""
    spent: dict[str, int] = field(default_factory=dict)
    charged_nano_usd: int = 0
    """The sum of what calls say they have cost."""
    excess_nano_usd: int = 0
    """The sum of what calls cost above their holds."""
    over: int = 0
    """The most that any counter was above its limit, at any moment."""
    committed_over: int = 0
    """The same of spent, held and credit."""
    idle_credit: dict[str, int] = field(default_factory=dict)
    dead_credit: dict[str, int] = field(default_factory=dict)
    idle_at_refusals: list[int] = field(default_factory=list)
    """Free credit of all workers, each time that a call was refused."""
    held: int = 0
    """By calls and credit, at the end, on all counters."""
    waited_s: float = 0.0
    """In admissions, all together."""

    @property
    def operations_per_call(self) -> float:
        return self.operations.total() / max(self.admitted, 1)


class _Wire(DelegatingStore):
    """A worker's connection to the ledger."""

    url = "simulated://"

    def __init__(self, store: MemoryStore, sim: Simulation) -> None:
        super().__init__(store)
        self.url = "simulated://"
        self._sim = sim
        self.cut = False
        """The worker is dead: nothing leaves it, nothing comes back."""

    async def _send(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        sim, world, rng = self._sim, self._sim.world, self._sim.rng
        await self._alive()
        sim.outcome.operations[name] += 1
        luck = rng.random()
        if luck < 2 * world.lost:
            if luck < world.lost:
                sim.later(rng.uniform(0, 4 * TIMEOUT_S), work)  # late, perhaps after its sender has given up
            await asyncio.sleep(TIMEOUT_S)
            await self._alive()
            raise StoreError("lost")
        await asyncio.sleep(rng.uniform(world.least_delay_s, world.most_delay_s))
        await self._alive()
        answer = await work()
        sim.check()
        if rng.random() < world.lost:
            await asyncio.sleep(TIMEOUT_S)
            await self._alive()
            raise StoreError("answer lost")
        await asyncio.sleep(rng.uniform(world.least_delay_s, world.most_delay_s))
        await self._alive()
        return answer

    async def _alive(self) -> None:
        if self.cut:
            await asyncio.Event().wait()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        await self._alive()
        return await self._store.heartbeat(worker, ttl_s)

    async def reserve(self, request: ReserveRequest) -> Admission:
        return await self._send("reserve", lambda: self._store.reserve(request))

    async def extend(self, request: ExtendRequest) -> Extension:
        return await self._send("extend", lambda: self._store.extend(request))

    async def settle(self, settlement: Settlement) -> Settled:
        return await self._send("settle", lambda: self._store.settle(settlement))

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        return await self._send("settle", lambda: self._store.settle_many(settlements))

    async def release(self, call_id: str) -> None:
        await self._send("release", lambda: self._store.release(call_id))

    async def defer(self, operation: Operation) -> bool:
        return await self._send("defer", lambda: self._store.defer(operation))

    async def draw(self, request: DrawRequest) -> Drawn:
        return await self._send("draw", lambda: self._store.draw(request))

    async def promote(self, promotion: Promotion) -> None:
        await self._send("promote", lambda: self._store.promote(promotion))


class Simulation:
    def __init__(self, world: World, loop: VirtualLoop) -> None:
        self.world = world
        self.loop = loop
        self.rng = random.Random(world.seed)
        self.ledger = MemoryStore(clock=lambda: world.start_s + loop.time())
        self.limits = {str(b.scope).replace("*", "acme"): b.terms.limit_nano_usd or 0 for b in world.budgets}
        self.outcome = Outcome()
        self._late: set[asyncio.Task[Any]] = set()
        self.stopping = False

    def later(self, after_s: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        async def arrive() -> None:
            await asyncio.sleep(after_s)
            with contextlib.suppress(StoreError):  # nobody is there to hear it
                await work()
            self.check()

        task = self.loop.create_task(arrive())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def check(self) -> None:
        """No counter may be above its limit, at any moment, whoever counts what."""
        outcome, book = self.outcome, self.ledger._book
        now_s = self.world.start_s + self.loop.time()
        read = book.reader(now_s, [hold for _, hold in book.lapsed(now_s)])
        for counter in book.spent:
            limit = self.limits.get(counter.split("|")[0], 0)
            if limit:
                spent, held = read(counter)
                outcome.over = max(outcome.over, spent - limit)
                outcome.committed_over = max(outcome.committed_over, spent + held - limit)

    def idle(self) -> int:
        stores = [node.store for node in self.nodes if isinstance(node.store, LeasedStore)]
        return sum(max(credit.free, 0) for store in stores for credit in store._book._credits.values())

    async def run(self) -> Outcome:
        world = self.world
        nodes = self.nodes = [_Worker(self, n) for n in range(world.workers)]
        tasks = [self.loop.create_task(node.run()) for node in nodes]
        for node in self.rng.sample(nodes, world.crashes):
            self.loop.call_later(self.rng.uniform(0.1, 0.6) * world.for_s, node.crash)
        await asyncio.sleep(world.for_s)
        for node in nodes:
            node.stopping = True
        living = [task for node, task in zip(nodes, tasks, strict=True) if not node.wire.cut]
        await asyncio.gather(*living)
        self.outcome.spent = {key: spent for key, spent in self.ledger._book.spent.items() if spent}
        self.outcome.held = sum(sum(by.values()) for by in self.ledger._book.held.values())
        dead = {node.name for node in nodes if node.wire.cut}
        for row in await self.ledger.credits():
            where = self.outcome.dead_credit if row.holder in dead else self.outcome.idle_credit
            where[row.counter] = where.get(row.counter, 0) + row.granted_nano_usd - row.used_nano_usd
        for node in nodes:
            await node.end()
        for task in (*tasks, *self._late):
            task.cancel()
        await asyncio.gather(*tasks, *self._late, return_exceptions=True)
        return self.outcome


class _Worker:
    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.name = f"w{number}"
        rng = sim.rng
        self.wire = _Wire(sim.ledger, sim)
        self.drift = 1 + rng.uniform(-1, 1) * sim.world.drift_ppm / 1e6
        self.offset = rng.uniform(0, 1e6)
        self.store = LeasedStore(self.wire, lease_s=LEASE_S, monotonic=self.monotonic) if sim.world.lease else self.wire
        clock = _Skewed(sim, rng.uniform(-1, 1) * sim.world.skew_s)
        self.client = Client(self.store, clock, sim.world.budgets)
        self.stopping = False
        self._running: set[asyncio.Task[None]] = set()
        self._beats: asyncio.Task[None] | None = None

    def monotonic(self) -> float:
        return self.offset + self.sim.loop.time() * self.drift

    def crash(self) -> None:
        """From now on nothing of it happens any more: `kill -9`."""
        self.wire.cut = True

    async def _beat(self) -> None:
        while True:
            await self.store.heartbeat(self.name, 20.0)
            await asyncio.sleep(5.0)

    async def run(self) -> None:
        world, rng, loop = self.sim.world, random.Random(f"{self.sim.world.seed}{self.name}"), self.sim.loop
        await self.store.open()
        await self.store.heartbeat(self.name, 20.0)
        self._beats = loop.create_task(self._beat())
        number = 0
        while not self.stopping:
            await asyncio.sleep(rng.expovariate(world.calls_a_second))
            await self.wire._alive()
            number += 1
            task = loop.create_task(self._call(f"{self.name}-{number}", rng))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        while self._running:
            await asyncio.wait(self._running)
        if self._beats is not None:
            self._beats.cancel()
        await self.store.close()

    async def end(self) -> None:
        tending = getattr(self.store, "_tending", None)
        tasks = [task for task in (*self._running, self._beats, tending) if task is not None]
        flights = getattr(getattr(self.store, "_batches", None), "_flights", ())
        tasks.extend(flights)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, call_id: str, rng: random.Random) -> None:
        sim, world, client = self.sim, self.sim.world, self.client
        outcome = sim.outcome
        hold = rng.randrange(world.hold_nano_usd // 2, world.hold_nano_usd)
        began_s = sim.loop.time()
        try:
            admission = await client.reserve(call_id, hold, worker=self.name, values=world.values)
        except StoreError:
            outcome.unheld += 1
            await self._surely(lambda: self.store.release(call_id))
            return
        outcome.waited_s += sim.loop.time() - began_s
        if admission.candidate is None:
            outcome.refused += 1
            if outcome.refused % 8 == 1:
                outcome.idle_at_refusals.append(sim.idle())
            return
        outcome.admitted += 1
        hold = admission.hold_nano_usd
        luck = rng.random()
        if luck < world.extended:
            with contextlib.suppress(StoreError):
                hold = (await client.extend(call_id, 2 * hold, hold + 1, values=world.values)).hold_nano_usd or hold
        elif luck < world.extended + world.deferred:
            await self._surely(lambda: client.defer(call_id))
        await asyncio.sleep(rng.expovariate(1 / world.call_s))
        await self.wire._alive()
        if rng.random() < 0.05:
            await self._surely(lambda: self.store.release(call_id))
            return
        cost = rng.randrange(hold // 2, hold + 1)
        if world.dearer and rng.random() < world.dearer:
            cost = rng.randrange(hold, 3 * hold)
        outcome.excess_nano_usd += max(cost - hold, 0)
        settlement = client.settlement(call_id, cost, at_s=admission.admitted_at_s, values=world.values)
        await self._surely(lambda: self.store.settle(settlement))
        outcome.charged_nano_usd += cost

    async def _surely(self, work: Callable[[], Awaitable[Any]]) -> None:
        """As the writer and its journal do."""
        while True:
            try:
                await work()
            except StoreError:
                await asyncio.sleep(0.2)
            else:
                return


class _Skewed(Clock):
    """A worker's wall clock."""

    def __init__(self, sim: Simulation, skew_s: float) -> None:
        self._sim = sim
        self._skew_s = skew_s

    @property
    def now_s(self) -> float:
        return self._sim.world.start_s + self._sim.loop.time() + self._skew_s

    @now_s.setter
    def now_s(self, _: float) -> None:
        raise AttributeError


def simulate(world: World) -> Outcome:
    return run(lambda loop: Simulation(world, loop).run())
