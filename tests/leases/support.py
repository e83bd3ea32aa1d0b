"""One worker's book over a ledger in memory, step by step and without an event loop."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from askii_middleware.admission import Admission
from askii_middleware.budgets import Budget
from askii_middleware.leased.book import LeaseBook
from askii_middleware.stores.base import Drawn, DrawRequest, Settled
from askii_middleware.stores.memory import MemoryStore
from tests.stores.support import Client, Clock

T = TypeVar("T")
LEASE_S = 1.0


def now(work: Coroutine[Any, Any, T]) -> T:
    """A ledger in memory answers without suspending."""
    try:
        work.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise AssertionError("it suspended")


class Desk:
    """A worker. Its monotonic clock is the ledger's, less `NOON_S`, unless `offset_s` says otherwise."""

    def __init__(
        self, store: MemoryStore, clock: Clock, *budgets: Budget, name: str = "w", offset_s: float = 0
    ) -> None:
        self.store = store
        self.clock = clock
        self.name = name
        self.offset_s = offset_s
        self.book = LeaseBook(LEASE_S)
        self.client = Client(store, clock, budgets)
        self.client.index.update(*now(store.forms()))
        self.beat()

    @property
    def s(self) -> float:
        return self.clock.now_s - self.offset_s

    def beat(self, ttl_s: float = 86_400.0) -> None:
        alive = now(self.store.heartbeat(self.name, ttl_s))
        self.book.beat(self.name, alive=alive, sent=self.s, ttl_s=ttl_s)

    def locally(self, call_id: str, *holds: int, **options: Any) -> Admission | None:
        return self.book.admit(self.client.request(call_id, *holds, worker=self.name, **options), self.s)

    def directly(self, call_id: str, *holds: int, **options: Any) -> Admission:
        request = self.client.request(call_id, *holds, worker=self.name, **options)
        admission = now(self.store.reserve(request))
        self.book.missed(request, admission, self.s)
        return admission

    def reserve(self, call_id: str, *holds: int, **options: Any) -> tuple[Admission, bool]:
        """The answer, and whether it was given here."""
        admission = self.locally(call_id, *holds, **options)
        if admission is not None:
            return admission, True
        return self.directly(call_id, *holds, **options), False

    def send(self, *, everything: bool = False) -> tuple[DrawRequest, Drawn] | None:
        """A draw up to the moment at which its answer is on its way."""
        request = self.book.plan(self.s, everything=everything)
        return None if request is None else (request, now(self.store.draw(request)))

    def draw(self, *, took_s: float = 0.0, everything: bool = False) -> Drawn | None:
        sent = self.s
        found = self.send(everything=everything)
        if found is None:
            return None
        self.clock.advance(took_s)
        self.book.answered(*found, sent=sent, received=self.s)
        return found[1]

    def settle(self, call_id: str, cost: int, **options: Any) -> Settled:
        charged = self.book.charge(self.client.settlement(call_id, cost, **options))
        settled = now(self.store.settle(charged))
        self.book.settled(call_id)
        return settled

    def warm(self, hold: int = 100, calls: int = 4, **options: Any) -> None:
        """Some calls through the store, and a draw for those to come."""
        for n in range(calls):
            call_id = f"warm-{self.name}-{self.clock.now_s}-{n}"
            self.directly(call_id, hold, **options)
            now(self.store.release(call_id))
        self.draw()

    def spent_held(self) -> tuple[int, int]:
        (state,) = now(self.client.status())
        return state.spent_nano_usd, state.held_nano_usd

    def free(self) -> int:
        return sum(credit.free for credit in self.book._credits.values())
