"""`LagoLogger`: usage events for calls that were made elsewhere."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from ..errors import SinkError
from ..sinks.base import Sink
from ..tracker import CostTracker as CoreTracker
from .tracker import CostTracker, cost_tracker

PICO = 10**12
MAX_COINS = 999_999_999_999


class LagoLogger:
    """Bills coins to a Lago subscription, through the ledger's outbox: delivered once, however often the network or
    this process fails. Which Lago: `[sinks.lago]` of the configuration, else `LAGO_API_BASE` and `LAGO_API_KEY`.
    """

    def __init__(self, tracker: CostTracker | None = None) -> None:
        self._tracker = tracker or cost_tracker

    async def _send_usage_event(self, external_subscription_id: str, cost: float, call_id: str) -> None:
        """Bill `cost` coins. Returns when the event is safe in the outbox. The same call id of a subscription bills
        once. A part of a coin is not lost: the ledger carries it to the subscription's next event.

        Raises:
            ValueError: `cost` is no amount of at most 12 digits of coins, or an id is empty or another charge's.
            SinkError: no Lago is configured.
        """
        whole, pico = _split(cost)
        for text in (external_subscription_id, call_id):
            if not isinstance(text, str) or not text.strip() or "\0" in text:
                raise ValueError("external_subscription_id and call_id are texts, not empty and without NUL")

        async def bill(tracker: CoreTracker) -> None:
            if not any(_sends_coins(sink) for sink in tracker.sinks):
                raise SinkError(
                    "no Lago is configured: set [sinks.lago] with url and api_key, or LAGO_API_BASE and LAGO_API_KEY"
                )
            await tracker.record_external(external_subscription_id, whole, call_id, pico_coins=pico)

        await self._tracker.act(bill)


def _sends_coins(sink: Sink) -> bool:
    from ..sinks import LagoSink  # noqa: PLC0415 - httpx only where something is sent

    return isinstance(sink, LagoSink) and sink.events == "coins"


def _split(cost: float) -> tuple[int, int]:
    """Coins as whole ones and 10⁻¹² of one. A float counts as the decimal it is written as."""
    try:
        exact = Decimal(str(cost))
    except InvalidOperation:
        exact = Decimal("nan")
    if isinstance(cost, bool) or not exact.is_finite() or not 0 <= exact <= MAX_COINS:
        raise ValueError(f"cost takes 0 to {MAX_COINS} coins, not {str(cost)[:64]!r}")
    return divmod(int((exact * PICO).to_integral_value()), PICO)
