"""Alerts on their way to channels, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..base import Alert
from ..rules import check_channels
from .engine import Engine

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Alert]).decode


class PostgresAlerts(Engine):
    """See `Store`."""

    async def register_channels(self, names: Sequence[str]) -> None:
        check_channels(names)
        await self._call("register_channels", _encode(list(names)), self._now())

    async def fetch_alerts(self, channel: str, limit: int) -> list[Alert]:
        return _decode(await self._call("fetch_alerts", channel, max(limit, 0)))

    async def acknowledge_alerts(self, channel: str, token: int, through_seq: int) -> bool:
        return bool(await self._call("acknowledge_alerts", channel, token, through_seq))

    async def recent_alerts(self, limit: int) -> list[Alert]:
        return _decode(await self._call("recent_alerts", max(limit, 0)))
