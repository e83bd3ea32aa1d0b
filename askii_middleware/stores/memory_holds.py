"""Counters, holds and the leases of workers of a ledger in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from math import inf

import msgspec

from ..admission import Admission
from .lines import Amounts, Line
from .memory_credits import CreditBook
from .rules import COUNTER_S, ELSEWHERE, MARKER_S, OVERDUE_S

PRUNED_AT_ONCE = 10_000


class Hold(msgspec.Struct, eq=False, gc=False):
    """It refers to nothing that refers to it, so the garbage collector is not to walk it."""

    worker: str
    nano_usd: int
    until_s: float
    """The hold's deadline; once it is released, expired or lost: how long it is remembered."""
    counters: tuple[tuple[str, int], ...]
    """Key and window end of each counter it stands on."""
    answer: Admission
    about: bytes
    sequence: int = 0
    """Of the last extension that was answered."""
    state: str = "held"
    """`held`, and when it no longer counts `released`, `expired` (deadline) or `lost` (worker)."""


class HoldBook:
    """Invariant: a counter's held sums are those of the holds in state `held`, and every worker with such a hold is
    in `workers`, alive or not yet buried. Credit stands beside them, and no death ends it.
    """

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        """By counter, for every counter there is."""
        self.held: dict[str, dict[str, int]] = {}
        """By counter, then by worker: the sum its open calls hold, so that reading walks workers and not calls. Only
        what is held now.
        """
        self.holds: dict[str, Hold] = {}
        self.workers: dict[str, float] = {ELSEWHERE: inf}
        """Until when each worker's heartbeat lasts."""
        self.credit = CreditBook()
        self.drawn: dict[str, int] = {}
        """The last draw of each worker that was answered."""
        self._buried: dict[str, float] = {}
        self._ending: dict[int, list[str]] = {}
        """Counters by the end of their window."""
        self._seats: dict[str, set[str]] = {}
        """By shared counter: the values' own ones that stand beside it."""
        self._deadlines: list[tuple[float, str]] = []
        self.lost = 0
        """How many were ever found lost."""
        self._fading: dict[str, deque[str]] = {"released": deque(), "expired": deque(), "lost": deque()}
        """Call ids whose hold no longer counts, in the order in which they will be forgotten."""

    def is_live(self, hold: Hold, now_s: float) -> bool:
        return hold.state == "held" and hold.until_s > now_s and self.workers[hold.worker] > now_s

    def _begin(self, key: str, end_s: int) -> None:
        """From now on there is this counter."""
        self.spent[key] = 0
        self._ending.setdefault(end_s, []).append(key)

    def charge(self, counters: Iterable[tuple[str, int]], nano_usd: int) -> None:
        spent = self.spent
        for key, end_s in counters:
            if key not in spent:
                self._begin(key, end_s)
            spent[key] += nano_usd

    def spent_on(self, key: str) -> int:
        return self.spent.get(key, 0)

    def crowding(self, shared: str, own: str) -> int | None:
        """See `lines.Crowding`. What is spent on a counter keeps it, too: it may be older than the budget."""
        seats = self._seats.get(shared, ())
        return None if own in seats or self.spent.get(own) else len(seats)

    def seat(self, line: Line) -> None:
        """Write that a value has this counter of its own."""
        for shared in line.seats:
            if shared not in self.spent:
                self._begin(shared, line.end_s)  # whose end is theirs
            self._seats.setdefault(shared, set()).add(line.counter)

    def give_credit(self, line: Line, holder: str, nano_usd: int) -> None:
        if line.counter not in self.spent:
            self._begin(line.counter, line.end_s)
        self.credit.give(line.counter, holder, nano_usd)

    def is_alive(self, worker: str, now_s: float) -> bool:
        return self.workers.get(worker, 0.0) > now_s

    def reader(self, now_s: float, away: Sequence[Hold]) -> Callable[[str], Amounts]:
        """Reads counters as if the holds in `away` were not there."""
        spent, holding, workers, credit = self.spent, self.held, self.workers, self.credit.left

        def read(key: str) -> Amounts:
            held = credit.get(key, 0)
            if key in holding:
                for worker, nano_usd in holding[key].items():
                    if workers[worker] > now_s:
                        held += nano_usd
            return spent.get(key, 0), held

        if not away:
            return read
        gone: dict[str, int] = {}
        for hold in away:
            for key, _ in hold.counters:
                gone[key] = gone.get(key, 0) + hold.nano_usd

        def read_without(key: str) -> Amounts:
            spent, held = read(key)
            return spent, held - gone.get(key, 0)

        return read_without

    def lapsed(self, now_s: float) -> list[tuple[str, Hold]]:
        """The holds that a living worker let run past their deadline. Changes nothing that counts."""
        deadlines = self._deadlines
        if not deadlines or deadlines[0][0] > now_s:
            return []
        passed = []
        while deadlines and deadlines[0][0] <= now_s:
            entry = heappop(deadlines)
            hold = self.holds.get(entry[1])
            # An operation's hold may stand here twice: only its present deadline counts.
            if hold is not None and hold.state == "held" and hold.until_s == entry[0]:
                passed.append((entry, hold))
        for entry, _ in passed:
            heappush(deadlines, entry)
        return [(entry[1], hold) for entry, hold in passed if self.workers[hold.worker] > now_s]

    def place(self, call_id: str, hold: Hold) -> None:
        self.holds[call_id] = hold
        heappush(self._deadlines, (hold.until_s, call_id))
        self._stand(hold)

    def _stand(self, hold: Hold) -> None:
        if hold.nano_usd:
            self._add(hold, hold.nano_usd)

    def _add(self, hold: Hold, nano_usd: int) -> None:
        worker, holding = hold.worker, self.held
        for key, end_s in hold.counters:
            held = holding.get(key)
            if held is not None:
                held[worker] = held.get(worker, 0) + nano_usd
                continue
            if key not in self.spent:
                self._begin(key, end_s)
            holding[key] = {worker: nano_usd}

    def extend(self, hold: Hold, nano_usd: int) -> None:
        """Raise a live hold to this amount."""
        self._add(hold, nano_usd - hold.nano_usd)
        hold.nano_usd = nano_usd

    def lift(self, hold: Hold) -> None:
        """Take a hold off its counters, if it still stands there."""
        if hold.state == "held" and hold.nano_usd:
            for key, _ in hold.counters:
                held = self.held[key]
                left = held[hold.worker] - hold.nano_usd
                if left:
                    held[hold.worker] = left
                elif len(held) > 1:
                    del held[hold.worker]
                else:
                    del self.held[key]

    def defer(self, call_id: str, until_s: float, now_s: float) -> None:
        """Take an operation's hold out of its worker's hands. One that no longer counts stays so."""
        hold = self.holds.get(call_id)
        if hold is None or hold.state != "held":
            return
        if not self.is_live(hold, now_s):
            self.fade(call_id, "expired", now_s)
            return
        self.lift(hold)
        hold.worker = ELSEWHERE
        self._stand(hold)
        if hold.until_s != until_s + OVERDUE_S:
            hold.until_s = until_s + OVERDUE_S
            heappush(self._deadlines, (hold.until_s, call_id))

    def fade(self, call_id: str, state: str, now_s: float) -> None:
        """A hold counts no more, but stays known. No hold, or already released: nothing happens."""
        hold = self.holds.get(call_id)
        if hold is not None and hold.state != "released":
            self.lift(hold)
            hold.state = state
            hold.until_s = now_s + (MARKER_S if state == "released" else COUNTER_S)
            self._fading[state].append(call_id)

    def heartbeat(self, worker: str, ttl_s: float, now_s: float) -> bool:
        """Renew a lease, or answer False if it has run out; then bury the workers whose lease has."""
        alive = worker not in self._buried and self.workers.get(worker, now_s + 1) > now_s
        if alive:
            self.workers[worker] = now_s + ttl_s
        dead = [name for name, until_s in self.workers.items() if until_s <= now_s]
        for name in dead:
            for call_id, hold in self.holds.items():
                if hold.worker == name and hold.state in ("held", "expired"):
                    self.fade(call_id, "lost", now_s)
                    self.lost += 1
            del self.workers[name]
            self.drawn.pop(name, None)
            self._buried[name] = now_s
        return alive

    def prune(self, now_s: float) -> None:
        """Forget what is old enough, a bounded number at a time."""
        for queue in self._fading.values():
            for _ in range(min(len(queue), PRUNED_AT_ONCE)):
                hold = self.holds.get(queue[0])
                if hold is not None and hold.state != "held":
                    if hold.until_s > now_s:
                        break
                    del self.holds[queue[0]]
                queue.popleft()
        for name in [name for name, died_s in self._buried.items() if died_s + COUNTER_S <= now_s]:
            del self._buried[name]
        self._prune_counters(now_s)
        if len(self._deadlines) > 2 * len(self.holds) + PRUNED_AT_ONCE:
            self._deadlines = [(h.until_s, call_id) for call_id, h in self.holds.items() if h.state == "held"]
            heapify(self._deadlines)

    def _prune_counters(self, now_s: float) -> None:
        left = PRUNED_AT_ONCE
        for end_s in sorted(end_s for end_s in self._ending if end_s + COUNTER_S <= now_s):
            keys = self._ending[end_s]
            if any(key in self.held for key in keys[-left:]):
                break  # some call still holds there
            while keys and left:
                key = keys.pop()
                del self.spent[key]
                self._seats.pop(key, None)
                self.credit.forget(key)
                left -= 1
            if keys:
                break
            del self._ending[end_s]
