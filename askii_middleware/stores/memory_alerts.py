"""The alerts of a ledger in memory, and how far each channel has come with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from ..errors import StoreError
from .base import Alert, Lease
from .rules import COUNTER_S, UNUSED_S


@dataclass(slots=True)
class _Channel:
    position: int
    """Every alert up to here is done with."""
    lease_until_s: float
    token: int = 0
    owner: str | None = None


class AlertBook:
    """Not a store: its methods are the synchronous halves of those of `MemoryStore`."""

    def __init__(self) -> None:
        self._alerts: dict[int, Alert] = {}
        self._ids: set[str] = set()
        self._last = 0
        self._channels: dict[str, _Channel] = {}

    def add(self, alerts: Iterable[Alert]) -> None:
        """Number and keep those that are new."""
        for alert in alerts:
            if alert.id not in self._ids:
                self._last += 1
                self._ids.add(alert.id)
                self._alerts[self._last] = msgspec.structs.replace(alert, seq=self._last)

    def register(self, names: Sequence[str], now_s: float) -> None:
        for name in names:
            self._channels.setdefault(name, _Channel(self._last, now_s))

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            raise StoreError(f"alert channel {name!r} is not registered: call register_channels first")
        return channel

    def lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> list[Lease]:
        channel = self._channel(name)
        if channel.owner != owner:
            if ttl_s <= 0 or (channel.owner is not None and channel.lease_until_s > now_s):
                return []
            channel.owner = owner
            channel.token += 1
        channel.lease_until_s = now_s + ttl_s
        return [Lease(0, channel.token, 0.0, 0)] if ttl_s > 0 else []

    def fetch(self, name: str, limit: int) -> list[Alert]:
        position = self._channel(name).position
        # Alerts are in order, and few: those that are done with are soon forgotten.
        return list(islice((alert for seq, alert in self._alerts.items() if seq > position), max(limit, 0)))

    def acknowledge(self, name: str, token: int, through_seq: int) -> bool:
        channel = self._channel(name)
        if token != channel.token:
            return False
        channel.position = max(channel.position, min(through_seq, self._last))
        return True

    def recent(self, limit: int) -> list[Alert]:
        return list(islice(reversed(self._alerts.values()), max(limit, 0)))

    def erase(self, named: Callable[[str], bool]) -> None:
        """Forget those about scopes that are `named`, whoever still waits for them."""
        for seq in [seq for seq, alert in self._alerts.items() if named(alert.scope)]:
            self._ids.remove(self._alerts.pop(seq).id)

    def prune(self, now_s: float) -> None:
        """Forget what is old enough and done with."""
        used = (channel for channel in self._channels.values() if channel.lease_until_s + UNUSED_S > now_s)
        done = min((channel.position for channel in used), default=self._last)
        old = [seq for seq, a in self._alerts.items() if seq <= done and a.resets_at_s + COUNTER_S <= now_s]
        for seq in old:
            self._ids.remove(self._alerts.pop(seq).id)
