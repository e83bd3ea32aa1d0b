"""What a receiver of budget alerts has to offer, and what it gets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from askii_middleware.errors import AskiiError
from askii_middleware.standing import Standing

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class AlertError(AskiiError):
    """An alert was not taken. It is tried again."""


class AlertNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What is spent has crossed a share of a budget's limit.

    Attributes:
        id: of the crossing: whoever gets it twice can tell.
        timestamp: when the crossing charge was settled, ISO 8601.
        scope: the values it is about, in text form: `tenant=acme` also for a budget on `tenant=*`.
        tenant: the scope's tenant, if it names one.
        period: as in `Budget`.
        share: what was crossed, as a share of the limit.
        status: the word for that share: `caution` from 0.8, `warning` from 0.9, `exceeded` from 1, `ok` below.
        utilisation: spent / limit, the crossing charge included; it may be far beyond `share`.
        limit_usd, spent_usd, limit_coins, spent_coins: exact decimals; coins at the rate of the delivery.
        resets_at: when the budget's window ends, ISO 8601; None for `total`.
    """

    id: str
    timestamp: str
    scope: str
    tenant: str | None
    period: str
    share: float
    status: Standing
    utilisation: float
    limit_usd: str
    spent_usd: str
    limit_coins: str
    spent_coins: str
    resets_at: str | None

    @property
    def headline(self) -> str:
        """One line of printable ASCII: scopes are percent-encoded."""
        return f"{self.status}: {self.scope} has spent {self.share * 100:g} % of its {self.period} budget"

    @property
    def text(self) -> str:
        """The headline with amounts, still one line."""
        until = "" if self.resets_at is None else f"; it resets at {self.resets_at}"
        return (
            f"{self.headline}: {self.spent_usd} of {self.limit_usd} USD "
            f"({self.spent_coins} of {self.limit_coins} Askii Coins){until}"
        )

    def json(self) -> bytes:
        return _encode(self)


@runtime_checkable
class AlertChannel(Protocol):
    """Takes one alert at a time. Whatever `send` raises means: not taken, again later, with the same id. It may be
    cancelled at any await. Alerts come in their order, and the next one only after this one was taken.
    """

    name: str

    async def send(self, alert: AlertNotice) -> None: ...


class OneThread:
    """Runs blocking work in a thread, never two pieces at once: a thread cannot be cancelled, so one that its caller
    has given up may still be at it.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()

    async def run(self, work: Callable[[], T]) -> T:
        """Raises AlertError while earlier work goes on, and whatever the work raises."""
        return await asyncio.to_thread(self._alone, work)

    def _alone(self, work: Callable[[], T]) -> T:
        if not self._busy.acquire(blocking=False):
            raise AlertError("it is still busy with an earlier try")
        try:
            return work()
        finally:
            self._busy.release()
