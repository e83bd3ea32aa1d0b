"""From the ledger's alerts to their channels: one task for each channel, so that none waits for another.

A channel gets its alerts in order, one at a time, under its lease: over all workers together. What it does not take is
tried again, with a pause that grows, and what stands behind it waits; what was taken is acknowledged at once. A worker
that dies in between leaves the alert to be sent again, with the same id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import unquote

from .admission import PPM
from .budgets import FOREVER_S
from .channels.base import AlertChannel, AlertNotice
from .currency import Rate, nano_to_coins_text, nano_to_usd_text
from .delivery_rounds import DeliveryOptions, Rounds
from .log_fields import fields
from .standing import share_used, standing
from .stores.base import CHANNEL_PREFIX, Alert, Store

logger = logging.getLogger("askii_middleware.delivery")

BATCH = 50
"""Alerts fetched at once."""


def lease_of(channel: AlertChannel) -> str:
    """A channel's name in the store."""
    return CHANNEL_PREFIX + channel.name


def notice_of(alert: Alert, rate: Rate) -> AlertNotice:
    """An alert as its receivers get it."""
    limit, spent = alert.limit_nano_usd, alert.spent_nano_usd
    return AlertNotice(
        id=alert.id,
        timestamp=_iso(alert.at_s),
        scope=alert.scope,
        tenant=_tenant(alert.scope),
        period=alert.period,
        share=alert.share_ppm / PPM,
        status=standing(alert.share_ppm, PPM),
        utilisation=round(share_used(spent, limit), 6),
        limit_usd=nano_to_usd_text(limit),
        spent_usd=nano_to_usd_text(spent),
        limit_coins=nano_to_coins_text(limit, rate),
        spent_coins=nano_to_coins_text(spent, rate),
        resets_at=None if alert.resets_at_s >= FOREVER_S else _iso(alert.resets_at_s),
    )


def _tenant(scope: str) -> str | None:
    for part in scope.split(","):
        name, _, value = part.partition("=")
        if name == "tenant" and value != "*":
            return unquote(value, errors="replace")
    return None


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class AlertWorker(Rounds):
    """Delivers alerts to one channel.

    Args:
        rate: the exchange rate of now.
    """

    def __init__(self, store: Store, channel: AlertChannel, options: DeliveryOptions, rate: Callable[[], Rate]) -> None:
        super().__init__(store, lease_of(channel), f"alert channel {channel.name}", options)
        self.channel = channel
        self._rate = rate

    def wake(self) -> None:
        """Nearly no settlement crosses a threshold, so none is worth a look of its own: alerts wait for the next one
        in `idle_s`, as they do where another process has settled.
        """

    async def _deliver(self) -> bool:
        alerts = await self._store.fetch_alerts(self._lease, BATCH)
        for alert in alerts:
            await self._confirm()
            (lease,) = self._held.values()
            problem = await self._try(notice_of(alert, self._rate()))
            if problem is not None:
                pause_s = self._o.back_off_s(lease.failures + 1)
                self._pause(self._o.clock() + pause_s, lease.failures + 1)
                self._o.on_result(self.channel.name, "error", 1)
                logger.warning(
                    "%s: alert %s waits %.1f s: %s",
                    self._what,
                    alert.id,
                    pause_s,
                    problem,
                    extra=fields("alert_waits", channel=self.channel.name, alert=alert.id, wait_s=pause_s),
                )
                break
            self._pause(0.0, 0)
            self._o.on_result(self.channel.name, "delivered", 1)
            if not await self._store.acknowledge_alerts(self._lease, lease.token, alert.seq):
                self._lost([lease.partition])
        return bool(alerts)

    async def _try(self, notice: AlertNotice) -> str | None:
        """Send once; what went wrong, or None. Whatever a channel raises is a failure of this try, not of the loop."""
        try:
            async with asyncio.timeout(self._o.send_timeout_s):
                await self.channel.send(notice)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return "the channel cancelled itself"
        except TimeoutError:
            return "no answer in time"
        except Exception as error:  # noqa: BLE001 - as above
            return f"{type(error).__name__}: {error}"
        return None
