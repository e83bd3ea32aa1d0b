"""All stores against the model, step by step, under every interleaving hypothesis can think of."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from askii_middleware.admission import Admission
from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.errors import StoreError
from askii_middleware.stores import open_store
from askii_middleware.stores.base import CreditUse, DeadWorkerError, Drawn, Settled, UnwritableError

from .credit_support import draw, promote, use
from .model import Limit, Model, Payer, Use
from .postgres_support import KeptLedger
from .support import NOON_S, Client, Clock, budget

T = TypeVar("T")

LEDGERS = itertools.count(1)
NAMES = st.sampled_from([f"call{n}" for n in range(7)])
TENANTS = st.sampled_from(["acme", "other"])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
AMOUNTS = st.integers(0, 60)
KEYS = st.sampled_from(["k1", "k2", "k3"])
PAYERS = st.builds(Payer, TENANTS, st.sampled_from([None, "ann", "bob", "cyn"]))
RATES = st.sampled_from([1_000_000, 500_000, 3_000_000])
SHARES = st.sampled_from([(), (0.5,), (0.5, 1.0)])
DAY = "|daily|UTC|1767225600"
RETURNS = st.dictionaries(st.sampled_from([f"{s}{DAY}" for s in ("tenant=acme", "tenant=other", "global")]), AMOUNTS)
COSTS = AMOUNTS | st.just(MAX_NANO_USD + 1)


class Ledgers(RuleBasedStateMachine):
    """Every command goes to all stores and to the model. Steps of the clock stay below the life of markers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.model = Model(self.clock)
        self.clients = [Client(open_store(url, clock=self.clock), self.clock) for url in self.urls()]
        self.drawn: dict[str, tuple[Use, Drawn]] = {}
        """What each worker admits calls on."""
        for client in self.clients:
            self.run(client.store.open())

    def urls(self) -> list[str]:
        """Of ledgers that nobody has used."""
        return ["memory://", f"sqlite:///{Path(self.folder.name) / 'askii.db'}"]

    def run(self, command: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(command)

    def all_answer(self, expected: object, answers: list[Any]) -> None:
        assert answers == [expected] * len(self.clients)

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
        for worker in ("w1", "w2"):
            self.draw(worker, 1, Payer("acme"), 40, 100, 100, {}, 1_000_000)

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
        self.all_answer(expected, [self.run(client.store.heartbeat(worker, ttl_s)) for client in self.clients])

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
            self.all_answer(expected, told)
            self.all_answer(answers[0], answers)

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
        self.all_answer(expected, [(answer.granted, answer.hold_nano_usd) for answer in answers])
        self.all_answer(answers[0], answers)

    @rule(
        holder=WORKERS,
        step=st.sampled_from([1, 1, 1, 0, -1]),
        payer=PAYERS,
        more=AMOUNTS,
        share=st.sampled_from([100, 100, 50]),
        ceiling=st.sampled_from([100, 100, 70]),
        back=RETURNS | st.just({}),
        rate=RATES,
    )
    def draw(
        self, holder: str, step: int, payer: Payer, more: int, share: int, ceiling: int, back: dict[str, int], rate: int
    ) -> None:
        sequence = max(self.model.drawn.get(holder, 0) + step, 1)
        expected = self.model.draw(holder, sequence, payer, more, share, ceiling, back, rate)
        answers = []
        for client in self.clients:
            try:
                drawn = draw(
                    client,
                    sequence,
                    more,
                    holder=holder,
                    share=share * 10_000,
                    ceiling=ceiling * 10_000,
                    returns=tuple(back.items()),
                    rate=(rate, 1),
                    tenant=payer.tenant,
                    **values(payer),
                )
                answers.append(self.run(drawn))
            except DeadWorkerError:
                assert expected is None
        if expected is not None:
            told = [
                {
                    line.state.counter: (line.granted_nano_usd, line.needs_store, line.state.held_nano_usd)
                    for lines in drawn.lines
                    for line in lines
                }
                for drawn in answers
            ]
            model = self.model
            self.all_answer(
                {
                    counter: (model.credit(counter, holder).granted, line.needs_store, model.held(counter))
                    for counter, line in expected.lines.items()
                },
                told,
            )
            self.all_answer(answers[0].lines, [drawn.lines for drawn in answers])
            self.drawn[holder] = expected, answers[0]

    @rule(name=NAMES, holder=WORKERS, hold=AMOUNTS, deadline_s=st.sampled_from([5.0, 600.0]))
    def promote(self, name: str, holder: str, hold: int, deadline_s: float) -> None:
        if holder not in self.drawn:
            return
        used, drawn = self.drawn[holder]
        expected = self.model.promote(name, holder, hold, used, deadline_s)
        answers: list[str | None] = []
        admission = Admission(
            candidate=0,
            admitted_at_s=used.at_s,
            states=tuple(line.state for lines in drawn.lines for line in lines),
            hold_nano_usd=hold,
        )
        for client in self.clients:
            try:
                credit = use(drawn, holder=holder)
                self.run(promote(client, name, hold, credit, drawn, admission=admission, deadline_s=deadline_s))
                answers.append(None)
            except DeadWorkerError:
                answers.append("dead")
            except StoreError:
                answers.append("short")
        self.all_answer(expected, answers)

    @rule(scope=st.sampled_from([None, "tenant=acme", "global"]))
    def reclaim(self, scope: str | None) -> None:
        expected = self.model.reclaim(scope)
        self.all_answer(expected, [self.run(client.store.reclaim(scope)) for client in self.clients])

    @rule(
        calls=st.lists(st.tuples(NAMES, PAYERS, COSTS, AMOUNTS, st.none() | WORKERS), min_size=1, max_size=4),
        rate=RATES,
        together=st.booleans(),
    )
    def settle(self, calls: list[tuple[str, Payer, int, int, str | None]], rate: int, together: bool) -> None:
        asked, expected = [], []
        for name, some_payer, cost, hold, holder in calls:
            used, drawn = self.drawn.get(holder or "", (None, None))
            call = self.model.calls.get(name)
            payer, at_s, credit = some_payer, self.clock.now_s, None
            if holder is not None and used is not None and drawn is not None:
                payer, at_s, credit = used.payer, used.at_s, use(drawn, holder=holder, hold=hold)
            if call is not None:
                payer, at_s = call.payer, call.admitted_at_s
            answer = self.model.settle(name, payer, cost, rate, (holder, used, hold) if holder and used else None)
            expected.append(answer)
            asked.append((name, payer, cost, at_s, credit))
        self.all_answer(expected, [self.settle_on(client, asked, rate, together) for client in self.clients])

    def settle_on(
        self,
        client: Client,
        asked: list[tuple[str, Payer, int, float, CreditUse | None]],
        rate: int,
        together: bool,
    ) -> list[tuple[bool, bool] | None]:
        settlements = [
            client.settlement(
                name, cost, tenant=payer.tenant, values=values(payer), at_s=at_s, rate=str(rate), credit=credit
            )
            for name, payer, cost, at_s, credit in asked
        ]
        answers: list[Settled | UnwritableError] = []
        if together:
            answers = self.run(client.store.settle_many(settlements))
        else:
            for settlement in settlements:
                try:
                    answers.append(self.run(client.store.settle(settlement)))
                except UnwritableError as error:
                    answers.append(error)
        return [None if isinstance(a, UnwritableError) else (a.late, a.duplicate) for a in answers]

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.model.release(name)
        for client in self.clients:
            self.run(client.store.release(name))

    @rule(name=NAMES, key=KEYS, for_s=st.sampled_from([0.0, 10.0, 600.0]))
    def defer(self, name: str, key: str, for_s: float) -> None:
        expected = self.model.defer(name, key, self.clock.now_s + for_s)
        self.all_answer(expected, [self.run(client.defer(name, key, for_s=for_s)) for client in self.clients])

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
            assert self.run(client.store.credits()) == model.rows()
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
        told_ids = [[alert.id for alert in self.run(client.alerts())] for client in self.clients]
        self.all_answer(told_ids[0], told_ids)


def values(payer: Payer) -> dict[str, str]:
    return {} if payer.end_user is None else {"end_user": payer.end_user}


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_shared_ledgers_equal_the_model(redis_server: str, postgres_ledger: KeptLedger) -> None:
    class SharedLedgers(Ledgers):
        def urls(self) -> list[str]:
            glue = "&" if "?" in redis_server else "?"
            namespace = f"askii_test_{os.getpid()}_model_{next(LEDGERS)}"
            return [f"{redis_server}{glue}namespace={namespace}", postgres_ledger.emptied().url]

    run_state_machine_as_test(
        SharedLedgers,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a server makes shrinking too slow
            suppress_health_check=list(HealthCheck),
        ),
    )
