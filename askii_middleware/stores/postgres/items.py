"""Named values that operators change at run time, on PostgreSQL."""

from __future__ import annotations

from base64 import b64decode

import msgspec

from ..base import Item
from .engine import Engine

_decode = msgspec.json.Decoder(list[tuple[str, str]]).decode
_decode_versions = msgspec.json.Decoder(dict[str, int]).decode


class PostgresItems(Engine):
    """See `Store`."""

    async def put_item(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None = None, only_new: bool = False
    ) -> bool:
        return bool(await self._call("put_item", kind, name, value, until_s, only_new, self._now()))

    async def items(self, kind: str) -> list[Item]:
        return [
            Item(name, b64decode(value)) for name, value in _decode(await self._call("items_of", kind, self._now()))
        ]

    async def item_versions(self) -> dict[str, int]:
        return _decode_versions(await self._call("item_versions", self._now()))
