"""Both stores against the model, step by step, under every interleaving hypothesis can think of."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from askii_middleware.stores import open_store
from askii_middleware.stores.base import DeadWorkerError

from .model import Limit, Model, Payer
from .support import NOON_S, Client, Clock, budget

T = TypeVar("T")

NAMES = st.sampled_from([f"call{n}" for n in range(7)])
TENANTS = st.sampled_from(["acme", "other"])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
AMOUNTS = st.integers(0, 60)
KEYS = st.sampled_from(["k1", "k2", "k3"])
PAYERS = st.builds(Payer, TENANTS, st.sampled_from([None, "ann", "bob", "cyn"]))
RATES = st.sampled_from([1_000_000, 500_000, 3_000_000])
SHARES = st.sampled_from([(), (0.5,), (0.5, 1.0)])


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
        self.set_budget("tenant=*", Limit(100, shares=(0.5,)), 1)
        self.set_budget("end_user=*", Limit(40), 2)
        for worker, ttl_s in (("w1", 60), ("w2", 20), ("w3", 40)):
            self.heartbeat(worker, ttl_s)

    @rule(
        scope=st.sampled_from(["tenant=*", "tenant=acme", "global", "end_user=*"]),
        limit=st.builds(
            Limit, st.none() | AMOUNTS, enabled=st.booleans(), soft=st.booleans(), in_coins=st.booleans(), shares=SHARES
        ),
        most=st.integers(1, 3),
    )
    def set_budget(self, scope: str, limit: Limit, most: int) -> None:
        limit.most = most if scope == "end_user=*" else None
        self.model.limits[scope] = limit
        options: dict[str, Any] = {
            "enabled": limit.enabled,
            "soft": limit.soft,
            "alert_at": limit.shares,
            "max_values": limit.most,
        }
        if limit.in_coins and limit.amount is not None:
            stored = budget(scope, None, limit_coins=Decimal(limit.amount).scaleb(-3), **options)
        else:
            stored = budget(scope, limit.amount, **options)
        for client in self.clients:
            self.run(client.set(stored))

    @rule(scope=st.sampled_from(["tenant=acme", "global", "end_user=*"]))
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
        payer=PAYERS,
        worker=WORKERS,
        holds=st.lists(AMOUNTS, min_size=1, max_size=3).map(tuple),
        least=st.none() | st.integers(0, 10),
        deadline_s=st.sampled_from([5.0, 35.0, 600.0]),
        replaces=st.none() | NAMES,
        rate=RATES,
        shadow=st.integers(0, 5).map(lambda n: n == 0),
    )
    def reserve(
        self,
        name: str,
        payer: Payer,
        worker: str,
        holds: tuple[int, ...],
        least: int | None,
        deadline_s: float,
        replaces: str | None,
        rate: int,
        shadow: bool,
    ) -> None:
        expected = self.model.reserve(name, payer, worker, holds, least, deadline_s, replaces, rate, shadow)
        answers = []
        for client in self.clients:
            request = client.request(
                name,
                *holds,
                least=least,
                tenant=payer.tenant,
                values=values(payer),
                worker=worker,
                deadline_s=deadline_s,
                replaces=replaces,
                rate=str(rate),
                shadow=shadow,
            )
            try:
                answers.append(self.run(client.store.reserve(request)))
            except DeadWorkerError:
                assert expected == "dead"
        if expected != "dead":
            told = [
                None if answer.candidate is None else (answer.candidate, answer.hold_nano_usd) for answer in answers
            ]
            assert told == [expected] * 2
            assert answers[0] == answers[1]

    @rule(name=NAMES, sequence=st.integers(1, 8), goal=AMOUNTS, least=st.integers(0, 30), rate=RATES)
    def extend(self, name: str, sequence: int, goal: int, least: int, rate: int) -> None:
        call = self.model.calls.get(name)
        payer = Payer("acme") if call is None else call.payer
        at_s = self.clock.now_s if call is None else call.admitted_at_s
        expected = self.model.extend(name, sequence, goal, least, rate)
        answers = [
            self.run(
                client.extend(
                    name,
                    goal,
                    least,
                    sequence=sequence,
                    tenant=payer.tenant,
                    values=values(payer),
                    rate=str(rate),
                    at_s=at_s,
                )
            )
            for client in self.clients
        ]
        assert [(answer.granted, answer.hold_nano_usd) for answer in answers] == [expected] * 2
        assert answers[0] == answers[1]

    @rule(name=NAMES, payer=PAYERS, cost=AMOUNTS, rate=RATES)
    def settle(self, name: str, payer: Payer, cost: int, rate: int) -> None:
        call = self.model.calls.get(name)
        payer = payer if call is None else call.payer
        at_s = self.clock.now_s if call is None else call.admitted_at_s
        late, duplicate = self.model.settle(name, payer, cost, rate)
        for client in self.clients:
            settled = self.run(
                client.settle(name, cost, tenant=payer.tenant, values=values(payer), at_s=at_s, rate=str(rate))
            )
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
            for payer in (Payer("acme"), Payer("other", "ann"), Payer("acme", "bob"), Payer("acme", "cyn")):
                states = self.run(client.status(payer.tenant, **values(payer)))
                lines = model.lines(payer, self.clock.now_s)
                assert {s.counter: (s.limit_nano_usd, s.soft, s.spent_nano_usd, s.held_nano_usd) for s in states} == {
                    counter: (line.limit, line.soft, model.spent(counter), model.held(counter))
                    for counter, line in lines.items()
                }
            alerts = self.run(client.alerts())
            told = [(a.scope, a.share_ppm / 1e6, a.limit_nano_usd, a.spent_nano_usd) for a in alerts]
            assert sorted(told) == sorted((counter.split("|")[0], *rest) for counter, *rest in model.alerts)
        first, second = [self.run(client.alerts()) for client in self.clients]
        assert [a.id for a in first] == [a.id for a in second]


def values(payer: Payer) -> dict[str, str]:
    return {} if payer.end_user is None else {"end_user": payer.end_user}


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
