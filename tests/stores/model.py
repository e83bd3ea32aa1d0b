"""The ledger as plainly as it can be said: a list of calls, and sums over it. Slow, and obviously right."""

from __future__ import annotations

from dataclasses import dataclass, field

from askii_middleware.budgets import window
from askii_middleware.stores.rules import ELSEWHERE, OVERDUE_S

from .support import Clock


@dataclass
class Call:
    tenant: str
    worker: str
    hold: int
    deadline_s: float
    counters: tuple[str, ...]
    candidate: int
    admitted_at_s: float
    state: str = "held"
    cost: int = 0
    late: bool = False


@dataclass
class Model:
    clock: Clock
    limits: dict[str, tuple[int | None, bool]] = field(default_factory=dict)
    """Stored daily budgets by scope: limit, enabled."""
    workers: dict[str, float] = field(default_factory=lambda: {ELSEWHERE: float("inf")})
    buried: set[str] = field(default_factory=set)
    calls: dict[str, Call] = field(default_factory=dict)
    operations: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Key and end of what goes on elsewhere, by call."""

    def alive(self, worker: str) -> bool:
        return worker not in self.buried and self.workers.get(worker, 0) > self.clock.now_s

    def live(self, call: Call) -> bool:
        return call.state == "held" and self.alive(call.worker) and call.deadline_s > self.clock.now_s

    def lines(self, tenant: str, at_s: float) -> dict[str, int | None]:
        """The counters that bind a tenant, with their limits."""
        found = {}
        start_s = window("daily", "UTC", at_s).start_s
        for levels, values in (((f"tenant={tenant}", "tenant=*"), f"tenant={tenant}"), (("global",), "global")):
            for scope in levels:
                limit, enabled = self.limits.get(scope, (None, False))
                if enabled:
                    found[f"{values}|daily|UTC|{start_s}"] = limit
                    break
        return found

    def spent(self, counter: str) -> int:
        return sum(c.cost for c in self.calls.values() if c.state == "settled" and counter in c.counters)

    def held(self, counter: str, without: str | None = None) -> int:
        return sum(
            c.hold for name, c in self.calls.items() if self.live(c) and counter in c.counters and name != without
        )

    def reserve(
        self, name: str, tenant: str, worker: str, holds: tuple[int, ...], deadline_s: float, replaces: str | None
    ) -> int | str | None:
        """The index of the candidate, None for a denial, or `dead` for a worker that cannot hold."""
        if name in self.calls and self.calls[name].candidate >= 0:
            return self.calls[name].candidate
        if name in self.calls:
            return 0
        if not self.alive(worker):
            return "dead"
        lines = self.lines(tenant, self.clock.now_s)
        chosen = None
        for index, hold in enumerate(holds):
            room = [
                limit is None
                or (limit > 0 if hold == 0 else self.spent(c) + self.held(c, without=replaces) + hold <= limit)
                for c, limit in lines.items()
            ]
            if all(room):
                chosen = index
                break
        for call in self.calls.values():
            if call.state == "held" and call.deadline_s <= self.clock.now_s and self.alive(call.worker):
                call.state = "expired"
        if chosen is not None:
            if replaces is not None:
                self.release(replaces)
            self.calls[name] = Call(
                tenant, worker, holds[chosen], self.clock.now_s + deadline_s, tuple(lines), chosen, self.clock.now_s
            )
        return chosen

    def settle(self, name: str, tenant: str, cost: int) -> tuple[bool, bool]:
        """Late, duplicate."""
        self.operations.pop(name, None)
        call = self.calls.get(name)
        if call is None:
            counters = tuple(self.lines(tenant, self.clock.now_s))
            call = self.calls[name] = Call(tenant, "", 0, 0, counters, -1, self.clock.now_s)
        elif call.state == "settled":
            return call.late, True
        else:
            call.late = not self.live(call)
        call.state, call.cost = "settled", cost
        return call.late, False

    def release(self, name: str) -> None:
        self.operations.pop(name, None)
        if name in self.calls and self.calls[name].state != "settled":
            self.calls[name].state = "released"

    def defer(self, name: str, key: str, until_s: float) -> bool:
        call = self.calls.get(name)
        if name in self.operations or (call is not None and call.state in ("settled", "released")):
            return True
        if key in [taken for taken, _ in self.operations.values()]:
            return False
        self.operations[name] = key, until_s
        if call is not None and self.live(call):
            call.worker, call.deadline_s = ELSEWHERE, until_s + OVERDUE_S
        elif call is not None and call.state == "held":
            call.state = "expired"
        return True

    def overdue(self) -> list[str]:
        due = [(until_s, name) for name, (_, until_s) in self.operations.items() if until_s <= self.clock.now_s]
        return [name for _, name in sorted(due)]

    def heartbeat(self, worker: str, ttl_s: float) -> bool:
        alive = worker not in self.workers or self.alive(worker)
        if alive:
            self.workers[worker] = self.clock.now_s + ttl_s
        for name in self.workers:
            if not self.alive(name):
                self.buried.add(name)
                for call in self.calls.values():
                    if call.worker == name and call.state in ("held", "expired"):
                        call.state = "lost"
        return alive
