"""Keys on PostgreSQL."""

from __future__ import annotations

import msgspec

from ...errors import StoreError
from ..base import KeyRow
from ..rules import digests_of
from .engine import Engine
from .wire import encode

_decode_key = msgspec.json.Decoder(KeyRow).decode
_decode_keys = msgspec.json.Decoder(list[KeyRow]).decode


class PostgresKeys(Engine):
    """See `Store`."""

    async def put_key(self, row: KeyRow) -> None:
        if not await self._call("put_key", row.id, row.tenant, encode(sorted(digests_of(row))), encode(row)):
            raise StoreError(f"key {row.id!r}: another key has the same secret")

    async def keys(self, *, tenant: str | None = None, after: str = "", limit: int | None = None) -> list[KeyRow]:
        most = None if limit is None else max(limit, 0)
        return _decode_keys(await self._call("keys_after", tenant, after, most))

    async def key(self, key_id: str) -> KeyRow | None:
        row = await self._call("key_of", key_id)
        return None if row is None else _decode_key(row)

    async def find_key(self, sha256: str) -> KeyRow | None:
        row = await self._call("find_key", sha256)
        return None if row is None else _decode_key(row)
