"""Receivers of usage records. Members are imported when they are first named: httpx alone takes 0.1 s."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from askii_middleware.errors import ConfigurationError

from .base import BACK_OFF, DELIVERED, KEPT, Delivery, Sink, Verdict

if TYPE_CHECKING:
    from .lago import LagoSink
    from .log import LogSink
    from .memory import MemorySink
    from .webhook import WebhookSink

__all__ = [
    "BACK_OFF",
    "DELIVERED",
    "KEPT",
    "Delivery",
    "LagoSink",
    "LogSink",
    "MemorySink",
    "Sink",
    "Verdict",
    "WebhookSink",
    "build_sink",
]

_MEMBERS = {"LagoSink": ".lago", "LogSink": ".log", "MemorySink": ".memory", "WebhookSink": ".webhook"}
_KINDS = {"lago": "LagoSink", "log": "LogSink", "memory": "MemorySink", "webhook": "WebhookSink"}


def __getattr__(name: str) -> Any:
    if name in _MEMBERS:
        return getattr(import_module(_MEMBERS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_sink(name: str, options: Mapping[str, Any]) -> Sink:
    """A sink from its name and a table: its `kind` (by default its name) is lago, log, memory or webhook, the other
    entries are the arguments. Raises ConfigurationError or SinkError.
    """
    arguments = dict(options)
    kind = arguments.pop("kind", name)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigurationError(f"[sinks.{name}]: unknown kind {kind!r}; known are {', '.join(_KINDS)}")
    try:
        sink: Sink = __getattr__(_KINDS[kind])(**arguments, name=name)
    except TypeError as error:
        raise ConfigurationError(f"[sinks.{name}]: {error}") from None
    return sink
