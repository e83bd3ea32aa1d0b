"""The ledger as plainly as it can be said: a list of calls, and sums over it. Slow, and obviously right."""

from __future__ import annotations

from dataclasses import dataclass, field

from askii_middleware.budgets import window
from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores.rules import ELSEWHERE, OVERDUE_S

from .support import Clock


@dataclass
class Limit:
    """A daily budget. An amount in coins is what it is in nano-USD at a million coins per USD."""

    amount: int | None = None
    enabled: bool = True
    soft: bool = False
    in_coins: bool = False
    shares: tuple[float, ...] = ()
    most: int | None = None

    def at(self, rate: int) -> int | None:
        return self.amount * 1_000_000 // rate if self.in_coins and self.amount is not None else self.amount


@dataclass
class Payer:
    tenant: str
    end_user: str | None = None


@dataclass
class Line:
    """What one call meets of a counter."""

    scope: str
    limit: int | None
    soft: bool
    shares: tuple[float, ...]
    shared: str | None = None
    """The counter beside which this one is new."""
    crowded: bool = False

    @property
    def needs_store(self) -> bool:
        return self.crowded or (self.limit == 0 and not self.soft)


@dataclass
class Credit:
    granted: int = 0
    used: int = 0

    @property
    def left(self) -> int:
        return self.granted - self.used


@dataclass
class Use:
    """What a worker admits calls on: its last draw."""

    payer: Payer
    at_s: float
    lines: dict[str, Line]


@dataclass
class Call:
    payer: Payer
    worker: str
    hold: int
    deadline_s: float
    counters: tuple[str, ...]
    candidate: int
    admitted_at_s: float
    state: str = "held"
    cost: int = 0
    late: bool = False
    sequence: int = 0


@dataclass
class Model:
    clock: Clock
    limits: dict[str, Limit] = field(default_factory=dict)
    """Stored daily budgets by scope."""
    workers: dict[str, float] = field(default_factory=lambda: {ELSEWHERE: float("inf")})
    buried: set[str] = field(default_factory=set)
    calls: dict[str, Call] = field(default_factory=dict)
    operations: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Key and end of what goes on elsewhere, by call."""
    first_holds: dict[str, int] = field(default_factory=dict)
    """What each call was answered when it was admitted."""
    seats: dict[str, list[str]] = field(default_factory=dict)
    """Counters that values have of their own, by the shared one."""
    credits: dict[tuple[str, str], Credit] = field(default_factory=dict)
    """By counter and holder."""
    drawn: dict[str, int] = field(default_factory=dict)
    """The last draw of each worker."""
    alerts: list[tuple[str, float, int, int]] = field(default_factory=list)
    """Counter, share, limit, and what was spent."""

    def alive(self, worker: str) -> bool:
        return worker not in self.buried and self.workers.get(worker, 0) > self.clock.now_s

    def live(self, call: Call) -> bool:
        return call.state == "held" and self.alive(call.worker) and call.deadline_s > self.clock.now_s

    def lines(
        self, payer: Payer, at_s: float, rate: int = 1_000_000, standing: tuple[str, ...] | None = None
    ) -> dict[str, Line]:
        """The counters that bind a payer. `standing`: those of a hold, where its call stays."""
        found = {}
        day = f"|daily|UTC|{window('daily', 'UTC', at_s).start_s}"
        asked = [((f"tenant={payer.tenant}", "tenant=*"), f"tenant={payer.tenant}"), (("global",), "global")]
        if payer.end_user is not None:
            asked.append((("end_user=*",), f"end_user={payer.end_user}"))
        for levels, scope in asked:
            for name in levels:
                budget = self.limits.get(name)
                if budget is not None and budget.enabled:
                    line = Line(scope, budget.at(rate), budget.soft, budget.shares)
                    if budget.most is not None:
                        line.crowded = True
                        self.place(line, "end_user=*" + day, scope + day, budget.most, standing)
                    found[line.scope + day] = line
                    break
        return found

    def place(self, line: Line, shared: str, own: str, most: int, standing: tuple[str, ...] | None) -> None:
        if standing is not None:
            line.scope = line.scope if own in standing else "end_user=*"
            return
        seats = self.seats.get(shared, [])
        if own in seats or self.spent(own):
            return
        if len(seats) < most:
            line.shared = shared
        else:
            line.scope = "end_user=*"

    def take_places(self, lines: dict[str, Line]) -> None:
        for counter, line in lines.items():
            if line.shared is not None:
                self.seats.setdefault(line.shared, []).append(counter)

    def spent(self, counter: str) -> int:
        return sum(c.cost for c in self.calls.values() if c.state == "settled" and counter in c.counters)

    def held(self, counter: str, without: str | None = None) -> int:
        held = sum(
            c.hold for name, c in self.calls.items() if self.live(c) and counter in c.counters and name != without
        )
        return held + sum(credit.left for (key, _), credit in self.credits.items() if key == counter)

    def room(self, lines: dict[str, Line], without: str | None = None) -> int | None:
        """How much more all the lines can hold; None: anything. -1: not even nothing."""
        hard = [(counter, line.limit) for counter, line in lines.items() if not line.soft and line.limit is not None]
        if any(limit == 0 for _, limit in hard):
            return -1
        return min((limit - self.spent(c) - self.held(c, without) for c, limit in hard), default=None)

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
    ) -> tuple[int, int] | str | None:
        """The index of the candidate and what is held, None for a denial, or `dead` for a worker that cannot hold."""
        if name in self.calls and self.calls[name].state != "settled":
            return self.calls[name].candidate, self.first_holds[name]
        if name in self.calls:
            return max(self.calls[name].candidate, 0), 0
        if not self.alive(worker):
            return "dead"
        lines = self.lines(payer, self.clock.now_s, rate)
        room = self.room(lines, without=replaces)
        chosen = self.choose(room, holds, least, any(line.limit == 0 and not line.soft for line in lines.values()))
        if shadow:
            chosen = 0, holds[0]
        for call in self.calls.values():
            if call.state == "held" and call.deadline_s <= self.clock.now_s and self.alive(call.worker):
                call.state = "expired"
        if chosen is not None:
            if replaces is not None:
                self.release(replaces)
            self.take_places(lines)
            self.first_holds[name] = chosen[1]
            now_s = self.clock.now_s
            self.calls[name] = Call(payer, worker, chosen[1], now_s + deadline_s, tuple(lines), chosen[0], now_s)
        return chosen

    @staticmethod
    def choose(room: int | None, holds: tuple[int, ...], least: int | None, closed: bool) -> tuple[int, int] | None:
        for index, hold in enumerate(holds):
            if closed:
                continue
            if room is None or hold == 0 or hold <= room:
                return index, hold
            if least is not None and min(least, hold) <= room:
                return index, room
        return None

    def extend(self, name: str, sequence: int, target: int, least: int, rate: int) -> tuple[bool, int]:
        """Whether it is granted, and what is held."""
        call = self.calls.get(name)
        if call is None or not self.live(call):
            return False, 0
        if sequence <= call.sequence:
            return call.hold >= least, call.hold
        call.sequence = sequence
        lines = self.lines(call.payer, call.admitted_at_s, rate, standing=call.counters)
        room = self.room({counter: line for counter, line in lines.items() if counter in call.counters})
        reachable = call.hold + max(room, 0) if room is not None else target
        goal = max(call.hold, min(target, reachable))
        if goal < min(least, target):
            return False, call.hold
        call.hold = goal
        return True, goal

    def draw(
        self,
        holder: str,
        sequence: int,
        payer: Payer,
        more: int,
        share: int,
        ceiling: int,
        back: dict[str, int],
        rate: int,
    ) -> Use | None:
        """What the draw stands on; None for a worker that cannot hold."""
        if not self.alive(holder):
            return None
        lines = self.lines(payer, self.clock.now_s, rate)
        if sequence > self.drawn.get(holder, 0):
            self.drawn[holder] = sequence
            for counter, amount in back.items():
                credit = self.credit(counter, holder)
                credit.granted -= min(amount, credit.left)
            for counter, line in lines.items():
                if not line.limit or line.soft or line.crowded:
                    continue
                taken = self.spent(counter) + self.held(counter)
                most = min(more, (line.limit - taken) * share // 100, line.limit * ceiling // 100 - taken)
                self.credit(counter, holder).granted += max(most, 0)
        return Use(payer, self.clock.now_s, lines)

    def credit(self, counter: str, holder: str) -> Credit:
        return self.credits.setdefault((counter, holder), Credit())

    def promote(self, name: str, holder: str, hold: int, use: Use, deadline_s: float) -> str | None:
        """`dead` or `short` for a worker that cannot hold, or has too little credit."""
        if name in self.calls:
            return None
        if not self.alive(holder):
            return "dead"
        taken = [self.credit(c, holder) for c, line in use.lines.items() if line.limit is not None and not line.soft]
        if any(credit.left < hold for credit in taken):
            return "short"
        for credit in taken:
            credit.granted -= hold
        self.first_holds[name] = hold
        self.calls[name] = Call(use.payer, holder, hold, self.clock.now_s + deadline_s, tuple(use.lines), 0, use.at_s)
        return None

    def rows(self) -> list[tuple[str, str, int, int, bool]]:
        return sorted(
            (counter, holder, credit.granted, credit.used, self.alive(holder))
            for (counter, holder), credit in self.credits.items()
            if credit.left
        )

    def reclaim(self, scope: str | None) -> list[tuple[str, str, int, int, bool]]:
        taken = [row for row in self.rows() if not row[4] and (scope is None or row[0].split("|")[0] == scope)]
        for counter, holder, *_ in taken:
            del self.credits[counter, holder]
        return taken

    def settle(
        self, name: str, payer: Payer, cost: int, rate: int, credit: tuple[str, Use, int] | None = None
    ) -> tuple[bool, bool] | None:
        """Late, duplicate; None for a charge that no counter can hold."""
        call = self.calls.get(name)
        if cost > MAX_NANO_USD and (call is None or call.state != "settled"):
            return None
        self.operations.pop(name, None)
        if call is None and credit is not None:
            holder, use, hold = credit
            lines = self.lines(use.payer, use.at_s, rate, standing=tuple(use.lines))
            for counter in use.lines:
                held = self.credit(counter, holder)
                held.used += max(min(cost, hold, held.left), 0)
            call = self.calls[name] = Call(use.payer, "", 0, 0, tuple(use.lines), -1, use.at_s)
        elif call is None:
            lines = self.lines(payer, self.clock.now_s, rate)
            self.take_places(lines)
            call = self.calls[name] = Call(payer, "", 0, 0, tuple(lines), -1, self.clock.now_s)
        elif call.state == "settled":
            return call.late, True
        else:
            call.late = not self.live(call)
            lines = self.lines(payer, call.admitted_at_s, rate, standing=call.counters)
        for counter, line in lines.items():
            before = self.spent(counter)
            for share in line.shares if counter in call.counters else ():
                if not line.limit:
                    continue
                crossing = counter, share, line.limit
                if before < share * line.limit <= before + cost and crossing not in [a[:3] for a in self.alerts]:
                    self.alerts.append((*crossing, before + cost))
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
