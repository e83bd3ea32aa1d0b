"""Alerts on their way to channels. They are kept without their numbers, which the stream they lie in gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...errors import StoreError
from ..base import Alert, Lease
from ..rules import check_channels
from .base import RedisBase

_decode = msgspec.json.Decoder(Alert).decode


class RedisAlerts(RedisBase):
    """Channels, and what waits for them."""

    async def register_channels(self, names: Sequence[str]) -> None:
        check_channels(names)
        await self._run("register_channels", names)

    async def _lease_channel(self, channel: str, owner: str, ttl_s: float) -> list[Lease]:
        token = _known(await self._run("lease_channel", (channel, owner, float(ttl_s))), channel)
        return [Lease(0, token, 0.0, 0)] if token else []

    async def fetch_alerts(self, channel: str, limit: int) -> list[Alert]:
        return _alerts(_known(await self._run("fetch_alerts", (channel, max(limit, 0))), channel))

    async def acknowledge_alerts(self, channel: str, token: int, through_seq: int) -> bool:
        return bool(_known(await self._run("acknowledge_alerts", (channel, token, through_seq)), channel))

    async def recent_alerts(self, limit: int) -> list[Alert]:
        return _alerts(await self._call("XREVRANGE", "alerts", "+", "-", "COUNT", max(limit, 0)) or [])


def _known(answer: Any, channel: str) -> Any:
    if answer is None:
        raise StoreError(f"alert channel {channel!r} is not registered: call register_channels first")
    return answer


def _alerts(stream: list[Any]) -> list[Alert]:
    return [_decode(b'{"seq":%b,%b' % (id_.partition(b"-")[0], fields[1][1:])) for id_, fields in stream]
