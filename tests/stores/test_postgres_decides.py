"""The functions in PostgreSQL decide what the pure rules decide: the same commands go to a ledger in memory, and every
answer has to be the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from askii_middleware.admission import Admission, Candidate, ExtendRequest, Match
from askii_middleware.budgets import Budget
from askii_middleware.currency import parse_rate
from askii_middleware.stores import open_store
from askii_middleware.stores.base import CreditAsk, CreditUse, Drawn, DrawRequest, Promotion, Settlement

from .deciding import Command, compare, edges
from .postgres_support import KeptLedger
from .support import DAY_S, Client, Clock, budget

NAMES = st.sampled_from([f"call{n}" for n in range(6)])
WORKERS = st.sampled_from(["w1", "w2"])
AMOUNTS = st.integers(0, 60)
RATES = st.sampled_from(["1000000", "500000", "3000000"])
VALUES = st.fixed_dictionaries(
    {"tenant": st.sampled_from(["acme", "other"])},
    optional={
        "end_user": st.sampled_from(["ann", "bob", "cyn"]),
        "tag": st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=3).map(tuple),
    },
)
SCOPES = st.sampled_from(
    ["tenant=*", "tenant=acme", "global", "end_user=*", "tag=*", "model=*", "model=m1", "tenant=*,tag=*"]
)
TABLES = (
    "counters, holds, seats, operations, credits, draws, carries, budgets, aggregates, records, alerts, workers, meta"
)


class Decisions(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        stores = [open_store(url, clock=self.clock) for url in ("memory://", self.url)]
        self.clients = [Client(store, self.clock) for store in stores]
        self.about: dict[str, tuple[dict[str, Any], float]] = {}
        self.credit: dict[str, CreditUse] = {}
        self.admissions: dict[str, Admission] = {}
        self.draws = 0

    def both(self, ask: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
        """Ask both and expect one answer, which may be an error."""
        answers = [self.loop.run_until_complete(self.answer(ask(client))) for client in self.clients]
        assert answers[1] == answers[0]
        return answers[0]

    @staticmethod
    async def answer(asked: Coroutine[Any, Any, Any]) -> Any:
        try:
            found = await asked
        except Exception as error:
            return type(error)
        return [type(part) if isinstance(part, Exception) else part for part in found] if type(found) is list else found

    def teardown(self) -> None:
        for client in self.clients:
            self.loop.run_until_complete(client.store.close())
        self.loop.close()

    @initialize(most=st.integers(1, 3))
    def start(self, most: int) -> None:
        self.loop.run_until_complete(self.clients[1].store.open())
        with psycopg.connect(self.url.partition("?")[0], autocommit=True) as connection:
            connection.execute(f"SET search_path = {self.url.partition('namespace=')[2]}")
            connection.execute(f"TRUNCATE {TABLES}")
            connection.execute("UPDATE partitions SET last = 0; INSERT INTO workers VALUES ('~elsewhere', 'infinity')")
            names = "('schema', 1), ('forms_version', 0), ('budgets_version', 0), ('touched', 0), ('last_alert', 0)"
            connection.execute(f"INSERT INTO meta VALUES {names}")
        for worker, ttl_s in (("w1", 400), ("w2", 40)):
            self.heartbeat(worker, ttl_s)
        self.both(lambda client: client.set(budget("tenant=*", 100, alert_at=(0.5,)), budget("global", 150)))
        self.both(lambda client: client.set(budget("end_user=*", 40, max_values=most), budget("tag=*", 90)))

    @rule(
        scope=SCOPES,
        limit=st.none() | AMOUNTS,
        in_coins=st.booleans(),
        soft=st.booleans(),
        enabled=st.booleans(),
        most=st.none() | st.integers(1, 2),
        shares=st.sampled_from([(), (0.5,), (0.25, 1.0)]),
        zone=st.sampled_from(["UTC", "UTC", "Asia/Tokyo"]),
    )
    def set_budget(self, scope: str, limit: int | None, in_coins: bool, most: int | None, **options: Any) -> None:
        shares, zone = options.pop("shares"), options.pop("zone")
        if in_coins and limit is not None:
            options["limit_coins"] = Decimal(limit).scaleb(-3)
            limit = None
        stored = budget(scope, limit, max_values=most, alert_at=shares, zone=zone, **options)
        self.both(lambda client: client.set(stored))

    @rule(scope=SCOPES, refresh=st.booleans())
    def remove_budget(self, scope: str, refresh: bool) -> None:
        self.both(lambda client: client.store.remove_budget(f"{scope}|daily"))
        if refresh:
            self.both(lambda client: client.refresh())

    @rule(worker=WORKERS, ttl_s=st.sampled_from([0, 60, 300]))
    def heartbeat(self, worker: str, ttl_s: float) -> None:
        self.both(lambda client: client.store.heartbeat(worker, ttl_s))

    @rule(by_s=st.sampled_from([1, 30, 100, DAY_S // 2]))
    def advance(self, by_s: float) -> None:
        self.clock.advance(by_s)

    def matches(self, client: Client, values: dict[str, Any], model: str = "m0") -> tuple[Match, ...]:
        return client.index.matches({**values, "model": model})

    @rule(
        name=NAMES,
        values=VALUES,
        worker=WORKERS,
        holds=st.lists(st.tuples(AMOUNTS, st.none() | st.integers(0, 60)), min_size=1, max_size=3),
        downgrade=st.sampled_from([1_000_000, 500_000, 0]),
        shadow=st.sampled_from([False, False, True]),
        replaces=st.none() | NAMES,
        rate=RATES,
        deadline_s=st.sampled_from([20.0, 600.0]),
    )
    def reserve(
        self, name: str, values: dict[str, Any], holds: list[Any], replaces: str | None, downgrade: int, **options: Any
    ) -> None:
        def ask(client: Client) -> Coroutine[Any, Any, Any]:
            candidates = tuple(
                Candidate(f"m{n}", hold, self.matches(client, values, f"m{n}"), least)
                for n, (hold, least) in enumerate(holds)
            )
            return client.reserve(
                name,
                candidates=candidates,
                replaces=None if replaces == name else replaces,
                downgrade_at_ppm=downgrade,
                **options,
            )

        admission = self.both(ask)
        if isinstance(admission, Admission) and admission.candidate is not None:
            self.about.setdefault(name, (values, admission.admitted_at_s))

    @rule(name=NAMES, sequence=st.integers(1, 6), goal=AMOUNTS, least=AMOUNTS, rate=RATES)
    def extend(self, name: str, sequence: int, goal: int, least: int, rate: str) -> None:
        values, at_s = self.about.get(name, ({"tenant": "acme"}, self.clock.now_s))

        def ask(client: Client) -> Coroutine[Any, Any, Any]:
            return client.store.extend(
                ExtendRequest(
                    call_id=name,
                    sequence=sequence,
                    target_nano_usd=goal,
                    least_nano_usd=least,
                    matches=self.matches(client, values),
                    windows=client.index.windows(at_s),
                    rate=parse_rate(rate).ratio,
                )
            )

        self.both(ask)

    def settlement(self, client: Client, name: str, cost: int, rate: str) -> Settlement:
        values, at_s = self.about.get(name, ({"tenant": "acme"}, self.clock.now_s))
        settlement = client.settlement(name, cost, tenant=values["tenant"], rate=rate, at_s=at_s)
        matches = self.matches(client, values)
        return msgspec.structs.replace(settlement, matches=matches, credit=self.credit.get(name))

    @rule(name=NAMES, cost=st.integers(-20, 60), rate=RATES)
    def settle(self, name: str, cost: int, rate: str) -> None:
        self.both(lambda client: client.store.settle(self.settlement(client, name, cost, rate)))

    @rule(jobs=st.lists(st.tuples(NAMES, st.integers(0, 60) | st.just(1 << 60)), max_size=5), rate=RATES)
    def settle_many(self, jobs: list[tuple[str, int]], rate: str) -> None:
        self.both(lambda client: client.store.settle_many([self.settlement(client, *job, rate) for job in jobs]))

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.both(lambda client: client.store.release(name))

    @rule(name=NAMES, key=st.sampled_from(["k1", "k2"]), for_s=st.sampled_from([10.0, 600.0]))
    def defer(self, name: str, key: str, for_s: float) -> None:
        self.both(lambda client: client.defer(name, key, for_s=for_s))

    @rule(
        holder=WORKERS,
        values=VALUES,
        name=NAMES,
        asked=st.tuples(AMOUNTS, st.sampled_from([1_000_000, 300_000]), st.sampled_from([1_000_000, 700_000])),
        back=st.integers(0, 30),
        again=st.booleans(),
        rate=RATES,
        held=st.integers(0, 60),
        promoted=st.none() | st.integers(0, 30),
    )
    def draw(
        self,
        holder: str,
        values: dict[str, Any],
        name: str,
        asked: tuple[int, int, int],
        back: int,
        again: bool,
        rate: str,
        held: int,
        promoted: int | None,
    ) -> None:
        """Draw on all lines of a call, which then may be promoted, or settled from its credit."""
        self.draws += not again

        def ask(client: Client) -> Coroutine[Any, Any, Any]:
            request = client.request("", rate=rate)
            matches = self.matches(client, values)
            return self.drawn(
                client,
                DrawRequest(
                    holder=holder,
                    sequence=self.draws,
                    asks=tuple(CreditAsk(match, *asked) for match in matches),
                    returns=tuple((counter, back) for use in self.credit.values() for counter, _ in use.counters[:1]),
                    windows=request.windows,
                    rate=request.rate,
                    forms_version=request.forms_version,
                ),
            )

        drawn = self.both(ask)
        if isinstance(drawn, type) or name in self.about:
            return
        lines = [line for part in drawn.lines for line in part]
        counters = dict.fromkeys((line.state.counter, line.state.resets_at_s) for line in lines)
        self.credit[name] = CreditUse(holder, tuple(counters), held)
        self.about[name] = values, self.clock.now_s
        if promoted is not None:
            states = tuple({line.state.counter: line.state for line in lines}.values())
            admission = Admission(candidate=0, admitted_at_s=drawn.now_s, states=states, hold_nano_usd=promoted)
            promotion = Promotion(call_id=name, credit=self.credit[name], admission=admission, deadline_s=60.0)
            self.both(lambda client: client.store.promote(promotion))

    @staticmethod
    async def drawn(client: Client, request: DrawRequest) -> Drawn:
        return (await client.store.draw(request))._replace(budgets_version=0)  # PostgreSQL's follows the clock

    @rule(scope=st.sampled_from([None, "global", "tenant=acme"]))
    def reclaim(self, scope: str | None) -> None:
        self.both(lambda client: client.store.reclaim(scope))

    @invariant()
    def ledgers_are_equal(self) -> None:
        self.both(lambda client: client.store.totals())
        self.both(lambda client: client.store.credits())
        self.both(lambda client: client.store.recent_alerts(100))
        self.both(lambda client: client.store.overdue(9))
        for values in ({"tenant": "acme", "end_user": "ann", "tag": ("x", "y", "z")}, {"tenant": "other"}):

            def ask(client: Client, values: dict[str, Any] = values) -> Coroutine[Any, Any, Any]:
                windows = client.index.windows(self.clock.now_s)
                return client.store.status(self.matches(client, values), windows, (1_000_000, 1))

            self.both(ask)


def test_every_answer_is_that_of_the_ledger_in_memory(postgres_url: str) -> None:
    class Machine(Decisions):
        url = postgres_url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(**edges)
def test_functions_decide_at_the_edges_as_memory_does(
    postgres_ledger: KeptLedger, started: list[Budget], commands: list[Command]
) -> None:
    asyncio.run(compare(postgres_ledger.emptied().url, started, commands))
