"""Admission and settlement: each operation is one script call, which reads, decides and writes in one go."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest, Window
from ...errors import StoreError
from ..base import (
    CreditRow,
    Drawn,
    DrawRequest,
    Operation,
    Promotion,
    Settled,
    Settlement,
    StaleFormsError,
    UnwritableError,
)
from ..rules import check_asked, check_operation
from . import answers, requests
from .base import RedisBase

_TRIES = 5
"""How often an operation is repeated because the budgets have changed meanwhile."""


class RedisLedger(RedisBase):
    """The operations on money. `load_terms` is the budgets' part of the store."""

    lost_holds = 0

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None, timeout_s: float = 5.0) -> None:
        super().__init__(url, clock=clock, timeout_s=timeout_s)
        self._planner = requests.Planner()
        self._terms = self._planner.terms

    @abstractmethod
    async def load_terms(self) -> None:
        """Bring `_terms` up to date."""

    async def _catch_up(self, version: int) -> None:
        """The terms as of `version` are outdated."""
        if self._terms.version == version:
            await self.load_terms()

    async def _decide(self, name: str, encode: Callable[[], bytes]) -> Any:
        """The answer of a script that needs the present terms: they are loaded where it says that these are old."""
        for _ in range(_TRIES):
            version = self._terms.version
            try:
                packed = encode()
            except StaleFormsError:
                # Our copy may be older than the windows that were sent.
                await self._catch_up(version)
                if self._terms.version == version:
                    raise
                continue
            answer = await self._run(name, (packed,))
            if type(answer) is not list or answer[0] != b"stale":
                return answer
            await self._catch_up(version)
        raise self._racing()

    def _racing(self) -> StoreError:
        return StoreError(f"{self.url}: the budgets change faster than they can be read: try again")

    async def reserve(self, request: ReserveRequest) -> Admission:
        return answers.admission(await self._decide("reserve", lambda: self._planner.reserve(request)))

    async def extend(self, request: ExtendRequest) -> Extension:
        return answers.extension(await self._decide("extend", lambda: self._planner.extend(request)))

    async def settle(self, settlement: Settlement) -> Settled:
        (settled,) = await self.settle_many((settlement,))
        if isinstance(settled, UnwritableError):
            raise settled
        return settled

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        found: dict[int, Settled | UnwritableError] = {}
        waiting = list(range(len(settlements)))
        planned, tries = False, 0
        while waiting and tries < _TRIES:
            version = self._terms.version
            packed: list[bytes] = []
            script = "settle"
            for index in waiting:
                settlement = settlements[index]
                wanted = planned or self._planner.may_alert(settlement)
                if wanted or settlement.credit is not None:
                    script = "settle_planned"
                try:
                    packed.extend(self._planner.settle(settlement, planned=wanted))
                except UnwritableError as error:
                    found[index] = error
            waiting = [index for index in waiting if index not in found]
            told = await self._run(script, packed) if packed else []
            for index, answer in zip(waiting, told, strict=False):
                if answer[0] == b"stale":
                    await self._catch_up(version)
                elif answer[0] == b"plans":
                    planned = True
                else:
                    found[index] = answers.settled(answer)
            left = [index for index in waiting if index not in found]
            tries += len(left) == len(waiting)
            waiting = left
        if waiting:
            raise self._racing()
        return [found[index] for index in range(len(settlements))]

    async def release(self, call_id: str) -> None:
        await self._run("release", (call_id,))

    async def defer(self, operation: Operation) -> bool:
        check_operation(operation)
        return bool(await self._run("defer", (requests.defer(operation),)))

    async def operation(self, key: str) -> Operation | None:
        row = await self._run("operation", (key,))
        return None if row is None else answers.operation(row)

    async def overdue(self, limit: int) -> list[Operation]:
        return [answers.operation(row) for row in await self._run("overdue", (max(limit, 0),))]

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        alive, lost = await self._run("heartbeat", (worker, float(ttl_s)))
        self.lost_holds += lost
        return bool(alive)

    async def draw(self, request: DrawRequest) -> Drawn:
        return answers.drawn(await self._decide("draw", lambda: self._planner.draw(request)))

    async def promote(self, promotion: Promotion) -> None:
        packed = requests.promote(promotion, answers.told_admission)
        answer = await self._run("promote", (packed,))
        if type(answer) is list:
            raise answers.refusal(answer)

    async def credits(self) -> list[CreditRow]:
        return answers.credit_rows(await self._run("credits_list"))

    async def reclaim(self, scope: str | None = None) -> list[CreditRow]:
        return answers.credit_rows(await self._run("reclaim", () if scope is None else (scope,)))

    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        check_asked(asked)
        at_s = time.time() if self._clock is None else self._clock()
        for _ in range(_TRIES):
            answer = await self._decide("status", partial(self._planner.status, asked, windows, rate, at_s))
            if type(answer) is bytes:
                return answers.states(answer)
            if answer[0] != b"window":
                raise answers.refusal(answer)
            at_s = float(answer[1])  # the server's clock is in another window than ours
        raise StoreError(f"{self.url}: the server's clock jumps")
