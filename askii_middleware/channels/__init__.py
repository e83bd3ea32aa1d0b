"""Receivers of budget alerts. Members are imported when they are first named: httpx and smtplib take their time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import AlertChannel, AlertNotice

if TYPE_CHECKING:
    from .callback import CallbackChannel
    from .email import EmailChannel
    from .log import LogChannel
    from .webhook import WebhookChannel

__all__ = [
    "AlertChannel",
    "AlertNotice",
    "CallbackChannel",
    "EmailChannel",
    "LogChannel",
    "WebhookChannel",
    "default_channels",
]

_MEMBERS = {
    "CallbackChannel": ".callback",
    "EmailChannel": ".email",
    "LogChannel": ".log",
    "WebhookChannel": ".webhook",
}


def __getattr__(name: str) -> Any:
    if name in _MEMBERS:
        return getattr(import_module(_MEMBERS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def default_channels() -> tuple[AlertChannel, ...]:
    """Where nobody named any: the log."""
    log: AlertChannel = __getattr__("LogChannel")()
    return (log,)
