"""Admission and settlement on PostgreSQL. Each operation is one call of one function of `sql/ledger_*.sql`, which holds
the locks and decides; here budgets are resolved to plans (`stores/plans.py`) and answers are read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ...admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest, Window
from ...budgets import FOREVER_S, window
from ...errors import StoreError
from ..base import (
    CreditRow,
    DeadWorkerError,
    Drawn,
    DrawRequest,
    Operation,
    Promotion,
    Settled,
    Settlement,
    StaleFormsError,
    UnwritableError,
)
from ..rules import check_asked, check_draw, check_operation
from . import wire
from .budgets import PostgresBudgets
from .together import Together

EDITS = 10
"""How often an operation is sent again because budgets were edited meanwhile."""
RESERVED_AT_ONCE = 50
SETTLED_AT_ONCE = 50
"""Settlements of one transaction: it keeps what it has locked until it ends."""
BURIED_AT_ONCE = 100
_ERRORS: dict[str, type[StoreError]] = {
    "forms": StaleFormsError,
    "worker": DeadWorkerError,
    "unwritable": UnwritableError,
}


class PostgresLedger(PostgresBudgets):
    """See `Store`."""

    def __init__(self, url: str, *, timeout_s: float = 5.0, clock: Callable[[], float] | None = None) -> None:
        super().__init__(url, timeout_s=timeout_s, clock=clock)
        self._reserving = Together(self._reserve, most=RESERVED_AT_ONCE, timeout_s=timeout_s)
        self._settling = Together(self._settle, most=SETTLED_AT_ONCE, timeout_s=timeout_s)

    async def reserve(self, request: ReserveRequest) -> Admission:
        if not request.candidates:
            raise ValueError("a reserve needs at least one candidate")

        async def ask() -> wire.Answer:
            return await self._reserving.ask(wire.reserve(request, self._terms))

        return wire.decode_admission(await self._answered(ask))

    async def _reserve(self, requests: Sequence[bytes]) -> list[wire.Answer]:
        try:
            return wire.decode_answers(await self._call("reserve", self._now(), b"[%b]" % b",".join(requests)))
        except UnwritableError as error:
            # One of them is of a kind that only the engine could see, and none was held for.
            if len(requests) == 1:
                return [wire.unwritable(error)]
        return [answer for request in requests for answer in await self._reserve([request])]

    async def extend(self, request: ExtendRequest) -> Extension:
        async def ask() -> wire.Answer:
            return wire.decode_answer(await self._call("extend", self._now(), wire.extend(request, self._terms)))

        return wire.decode_extension(await self._answered(ask))

    async def _answered(self, ask: Callable[[], Awaitable[wire.Answer]]) -> bytes:
        """What the engine says to a request made from the present terms. Raises what it refuses with."""
        refused: StaleFormsError | None = None
        for _ in range(EDITS):
            if self._terms.version < 0:
                await self.load_terms()
            known = self._terms.version
            try:
                kind, answer = await ask()
            except StaleFormsError as error:  # by our copy of the budgets, which may be the one that is outdated
                if refused is not None:
                    raise
                refused, kind, answer = error, "stale", msgspec.Raw()
            if kind is None:
                return bytes(answer)
            if kind != "stale":
                raise _ERRORS[kind](wire.decode_text(answer))
            await self.load_terms()
            if refused is not None and self._terms.version == known:
                raise refused
        raise StoreError(f"the ledger {self.url}: its budgets change faster than they are read: edit them less often")

    # Ends of calls ------------------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> Settled:
        settled = await self._settling.ask(settlement)
        if isinstance(settled, UnwritableError):
            raise settled
        return settled

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        answers: list[Settled | UnwritableError] = []
        for start in range(0, len(settlements), SETTLED_AT_ONCE):
            answers += await self._settle(settlements[start : start + SETTLED_AT_ONCE])
        return answers

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        try:
            return await self._settle_together(settlements)
        except UnwritableError as error:
            # One of them is of a kind that only the engine could see, and none was written.
            if len(settlements) == 1:
                return [error]
        return [answer for settlement in settlements for answer in await self._settle([settlement])]

    async def _settle_together(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        for _ in range(EDITS):
            if self._terms.version < 0:
                await self.load_terms()
            version, asked = self._terms.version, wire.settle(settlements, self._terms.terms)
            answer = await self._call("settle", self._now(), version, asked)
            if answer is not None:
                return wire.read_settled(answer)
            await self.load_terms()
        raise StoreError(f"the ledger {self.url}: its budgets change faster than they are read: edit them less often")

    async def release(self, call_id: str) -> None:
        await self._call("release", self._now(), call_id)

    async def defer(self, operation: Operation) -> bool:
        check_operation(operation)
        return bool(
            await self._call(
                "defer",
                self._now(),
                operation.call_id,
                operation.key,
                operation.tenant,
                float(operation.until_s),
                operation.payload,
            )
        )

    async def operation(self, key: str) -> Operation | None:
        row = await self._call("operation", key)
        return None if row is None else wire.decode_operation(row)

    async def overdue(self, limit: int) -> list[Operation]:
        return wire.decode_operations(await self._call("overdue", self._now(), max(limit, 0)))

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        alive = bool(await self._call("beat", self._now(), worker, float(ttl_s)))
        for _ in range(BURIED_AT_ONCE):
            dead = await self._call("dead_worker", self._now())
            if dead is None:
                break
            self.lost_holds += await self._call("bury_worker", self._now(), dead)
        await self._call("tend", self._now())
        return alive

    # Credit -------------------------------------------------------------------------------------------------------

    async def draw(self, request: DrawRequest) -> Drawn:
        check_draw(request)

        async def ask() -> wire.Answer:
            return wire.decode_answer(await self._call("draw", self._now(), wire.draw(request, self._terms)))

        return wire.decode_drawn(await self._answered(ask))

    async def promote(self, promotion: Promotion) -> None:
        await self._call("promote", self._now(), wire.promote(promotion))

    async def credits(self) -> list[CreditRow]:
        return wire.decode_credits(await self._call("credits_all", self._now()))

    async def reclaim(self, scope: str | None = None) -> list[CreditRow]:
        return wire.decode_credits(await self._call("reclaim", self._now(), scope))

    # Reading ------------------------------------------------------------------------------------------------------

    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        check_asked(asked)
        known = dict(windows)

        async def ask() -> wire.Answer:
            for _ in range(2):
                request, missing = wire.status(asked, known, rate, self._terms)
                answer = wire.decode_answer(await self._call("status", self._now(), self._terms.version, request))
                if answer[0] != "windows":
                    break
                # The engine's clock is in none of those that were sent: they are computed for its time.
                at_s = wire.decode_time(answer[1])
                for name in missing:
                    period, _, zone = name.partition("|")
                    now = window(period, zone, at_s)
                    known[name] = now, window(period, zone, now.end_s) if now.end_s < FOREVER_S else now
            return answer

        return wire.decode_states(await self._answered(ask))
