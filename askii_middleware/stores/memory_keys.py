"""The API keys of a ledger in memory."""

from __future__ import annotations

from itertools import islice

from ..errors import StoreError
from .base import KeyRow
from .forgetting import tombstone
from .rules import digests_of


class KeyBook:
    """Invariant: `_ids` has the digests of all rows, the present and the former, and each belongs to one of them."""

    def __init__(self) -> None:
        self._rows: dict[str, KeyRow] = {}
        self._ids: dict[str, str] = {}

    def put(self, row: KeyRow) -> None:
        digests = digests_of(row)
        if any(self._ids.get(digest, row.id) != row.id for digest in digests):
            raise StoreError(f"key {row.id!r}: another key has the same secret")
        self._forget(row.id)
        self._rows[row.id] = row
        self._ids |= dict.fromkeys(digests, row.id)

    def _forget(self, key_id: str) -> None:
        known = self._rows.pop(key_id, None)
        for digest in () if known is None else digests_of(known):
            del self._ids[digest]

    def list(self, tenant: str | None, after: str, limit: int | None) -> list[KeyRow]:
        """See `Store.keys`."""
        asked = (key_id for key_id in sorted(self._rows) if key_id > after)
        rows = (self._rows[key_id] for key_id in asked if tenant in (None, self._rows[key_id].tenant))
        return list(islice(rows, None if limit is None else max(limit, 0)))

    def get(self, key_id: str) -> KeyRow | None:
        return self._rows.get(key_id)

    def find(self, sha256: str) -> KeyRow | None:
        key_id = self._ids.get(sha256)
        return None if key_id is None else self._rows[key_id]

    def erase(self, tenant: str) -> set[str]:
        """Leave a tenant's keys as tombstones. Returns their ids."""
        found = {row.id for row in self._rows.values() if row.tenant == tenant}
        for key_id in found:
            self.put(tombstone(key_id))
        return found
