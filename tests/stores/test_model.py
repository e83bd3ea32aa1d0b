"""Both stores against the model, step by step, under every interleaving hypothesis can think of."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from askii_middleware.stores import open_store
from askii_middleware.stores.base import DeadWorkerError

from .model import Model
from .support import NOON_S, Client, Clock, budget

T = TypeVar("T")

NAMES = st.sampled_from([f"call{n}" for n in range(7)])
TENANTS = st.sampled_from(["acme", "other"])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
AMOUNTS = st.integers(0, 60)
KEYS = st.sampled_from(["k1", "k2", "k3"])


class Ledgers(RuleBasedStateMachine):
    """Every command goes to both stores and to the model. Steps of the clock stay below the life of markers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.model = Model(self.clock)
        urls = ("memory://", f"sqlite:///{Path(self.folder.name) / 'askii.db'}")
        self.clients = [Client(open_store(url, clock=self.clock), self.clock) for url in urls]
        for client in self.clients:
            self.run(client.store.open())

    def run(self, command: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(command)

    def teardown(self) -> None:
        for client in self.clients:
            self.run(client.store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    @initialize()
    def start(self) -> None:
        self.set_budget("tenant=*", 100, enabled=True)
        for worker, ttl_s in (("w1", 60), ("w2", 20), ("w3", 40)):
            self.heartbeat(worker, ttl_s)

    @rule(
        scope=st.sampled_from(["tenant=*", "tenant=acme", "global"]), limit=st.none() | AMOUNTS, enabled=st.booleans()
    )
    def set_budget(self, scope: str, limit: int | None, enabled: bool) -> None:
        self.model.limits[scope] = (limit, enabled)
        for client in self.clients:
            self.run(client.set(budget(scope, limit, enabled=enabled)))

    @rule(scope=st.sampled_from(["tenant=acme", "global"]))
    def remove_budget(self, scope: str) -> None:
        known = self.model.limits.pop(scope, None) is not None
        for client in self.clients:
            assert self.run(client.store.remove_budget(f"{scope}|daily")) is known
            self.run(client.refresh())

    @rule(worker=WORKERS, ttl_s=st.sampled_from([0, 20, 60]))
    def heartbeat(self, worker: str, ttl_s: float) -> None:
        expected = self.model.heartbeat(worker, ttl_s)
        assert [self.run(client.store.heartbeat(worker, ttl_s)) for client in self.clients] == [expected] * 2

    @rule(by_s=st.sampled_from([1, 10, 30, 43_200, -5, -40]))
    def advance(self, by_s: float) -> None:
        if self.clock.now_s + by_s < NOON_S + 80_000:
            self.clock.advance(by_s)

    @rule(
        name=NAMES,
        tenant=TENANTS,
        worker=WORKERS,
        holds=st.lists(AMOUNTS, min_size=1, max_size=3).map(tuple),
        deadline_s=st.sampled_from([5.0, 35.0, 600.0]),
        replaces=st.none() | NAMES,
    )
    def reserve(
        self, name: str, tenant: str, worker: str, holds: tuple[int, ...], deadline_s: float, replaces: str | None
    ) -> None:
        expected = self.model.reserve(name, tenant, worker, holds, deadline_s, replaces)
        answers = []
        for client in self.clients:
            request = client.request(
                name, *holds, tenant=tenant, worker=worker, deadline_s=deadline_s, replaces=replaces
            )
            try:
                answers.append(self.run(client.store.reserve(request)))
            except DeadWorkerError:
                assert expected == "dead"
        if expected != "dead":
            assert [answer.candidate for answer in answers] == [expected] * 2
            assert answers[0] == answers[1]

    @rule(name=NAMES, tenant=TENANTS, cost=AMOUNTS)
    def settle(self, name: str, tenant: str, cost: int) -> None:
        at_s = self.model.calls[name].admitted_at_s if name in self.model.calls else self.clock.now_s
        late, duplicate = self.model.settle(name, tenant, cost)
        for client in self.clients:
            settled = self.run(client.settle(name, cost, tenant=tenant, at_s=at_s))
            assert (settled.late, settled.duplicate) == (late, duplicate)

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.model.release(name)
        for client in self.clients:
            self.run(client.store.release(name))

    @rule(name=NAMES, key=KEYS, for_s=st.sampled_from([0.0, 10.0, 600.0]))
    def defer(self, name: str, key: str, for_s: float) -> None:
        expected = self.model.defer(name, key, self.clock.now_s + for_s)
        assert [self.run(client.defer(name, key, for_s=for_s)) for client in self.clients] == [expected] * 2

    @invariant()
    def ledgers_equal_the_model(self) -> None:
        model = self.model
        calls = model.calls.values()
        settled = [call.cost for call in calls if call.state == "settled"]
        held = sum(call.hold for call in calls if model.live(call))
        lost = sum(call.state == "lost" for call in calls)
        for client in self.clients:
            assert self.run(client.store.totals()) == (
                len(settled),
                sum(settled),
                len(settled),
                sum(settled),
                held,
                lost,
            )
            assert [o.call_id for o in self.run(client.store.overdue(10))] == model.overdue()
            for key in ("k1", "k2", "k3"):
                found = self.run(client.store.operation(key))
                taken = [(name, until_s) for name, (its, until_s) in model.operations.items() if its == key]
                assert [(found.call_id, found.until_s)] == taken if found is not None else not taken
            for tenant in ("acme", "other"):
                states = self.run(client.status(tenant))
                lines = model.lines(tenant, self.clock.now_s)
                assert {s.counter: (s.limit_nano_usd, s.spent_nano_usd, s.held_nano_usd) for s in states} == {
                    counter: (limit, model.spent(counter), model.held(counter)) for counter, limit in lines.items()
                }


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
