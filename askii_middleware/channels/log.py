"""Alerts in the log."""

from __future__ import annotations

import logging

from ..log_fields import fields
from .base import AlertNotice

logger = logging.getLogger("askii_middleware.alerts")


class LogChannel:
    """One warning for each alert, under `askii_middleware.alerts`."""

    def __init__(self, *, name: str = "log") -> None:
        self.name = name

    async def send(self, alert: AlertNotice) -> None:
        logger.warning(
            "%s (alert %s)",
            alert.text,
            alert.id,
            extra=fields(
                "budget_alert",
                alert=alert.id,
                scope=alert.scope,
                tenant=alert.tenant,
                period=alert.period,
                share=alert.share,
                resets_at=alert.resets_at,
            ),
        )
