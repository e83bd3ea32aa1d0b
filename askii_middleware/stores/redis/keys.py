"""Keys. `lua/keys.lua` says how they lie there."""

from __future__ import annotations

import msgspec

from ...errors import StoreError
from ..base import KeyRow
from ..rules import digests_of
from .base import RedisBase

_AT_ONCE = 1000
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeyRow).decode


class RedisKeys(RedisBase):
    """Keys."""

    async def put_key(self, row: KeyRow) -> None:
        if not await self._run("put_key", (row.id, row.tenant, _encode(row), *sorted(digests_of(row)))):
            raise StoreError(f"key {row.id!r}: another key has the same secret")

    async def keys(self, *, tenant: str | None = None, after: str = "", limit: int | None = None) -> list[KeyRow]:
        order = "key_order" if tenant is None else f"key_order:{tenant}"
        most = -1 if limit is None else max(limit, 0)
        ids = await self._call("ZRANGEBYLEX", order, f"({after}", "+", "LIMIT", 0, most)
        rows: list[KeyRow] = []
        for start in range(0, len(ids), _AT_ONCE):
            found = await self._call("HMGET", "keys", *ids[start : start + _AT_ONCE])
            rows += [_decode(row) for row in found if row is not None]
        return rows

    async def key(self, key_id: str) -> KeyRow | None:
        row = await self._call("HGET", "keys", key_id)
        return None if row is None else _decode(row)

    async def find_key(self, sha256: str) -> KeyRow | None:
        row = await self._run("find_key", (sha256,))
        return None if row is None else _decode(row)
