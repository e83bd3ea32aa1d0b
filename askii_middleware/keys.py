"""API keys of ours: their secrets, and who holds one. Only digests are kept, never a secret.

A key may be declared in the configuration and stored in the ledger. By key id the stored row wins, so a key that was
rotated at run time no longer opens with the declared secret once the overlap is over, and a revocation on either side
wins over everything.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from hashlib import sha256
from hmac import compare_digest
from types import MappingProxyType
from typing import NamedTuple

from .errors import ConfigurationError, StoreError
from .stores.base import KeyRow, Store

SECRET_PREFIX = "sk-askii-"  # noqa: S105 - how a secret begins, not one
MAX_SECRET_CHARS = 256
STALE_S = 3600.0
"""With `on_store_error = "allow"`: how long a known key opens while the store is away, and so how late a revocation
may arrive then.
"""


class KeyProblem(Enum):
    """Why a secret that looks like ours opens nothing."""

    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"


def new_secret() -> str:
    """A new secret: `sk-askii-` and 43 URL-safe characters, 256 bits at random."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """The hex SHA-256 under which a secret is filed. Secrets are random, so a slow hash would add nothing."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class _Seen(NamedTuple):
    answer: KeyRow | KeyProblem
    at_s: float


class KeyDirectory:
    """Finds the key a secret belongs to.

    Args:
        declared: the configuration's keys.
        store: where further keys live; None: there are only declared ones.
        ttl_s: for how long an answer of the store is believed, and so how late a revocation may arrive.
        max_entries: how many known and, apart from them, how many unknown secrets are remembered.
        stale_s: while the store is away, for how long after its last answer that answer, or a declared key, still
            opens. 0: not at all, `find` then raises StoreError.
    """

    def __init__(
        self,
        declared: Iterable[KeyRow] = (),
        store: Store | None = None,
        *,
        clock: Callable[[], float] = time.time,
        ttl_s: float = 2.0,
        max_entries: int = 10_000,
        stale_s: float = 0.0,
    ) -> None:
        self._declared: dict[str, KeyRow] = {}
        self._declared_ids: dict[str, KeyRow] = {}
        self.declare(declared)
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._stale_s = stale_s
        # Two tables, so that a flood of invented secrets cannot push out the keys in use.
        self._known: dict[str, _Seen] = {}
        self._unknown: dict[str, _Seen] = {}
        self._overrides: dict[str, KeyRow | None] = {}
        self._age = 0
        """Moves when everything is forgotten: answers that were asked for before are not remembered."""

    @property
    def declared(self) -> Mapping[str, KeyRow]:
        """The configuration's keys by id."""
        return MappingProxyType(self._declared_ids)

    def declare(self, rows: Iterable[KeyRow]) -> None:
        """Know further keys of the configuration. Ids that are known already stay as they are. Raises
        ConfigurationError for two ids with the same secret.
        """
        for row in rows:
            if row.id in self._declared_ids:
                continue
            other = self._declared.get(row.sha256)
            if other is not None:
                raise ConfigurationError(f"keys: {other.id!r} and {row.id!r} have the same sha256: give each its own")
            self._declared[row.sha256] = self._declared_ids[row.id] = row

    def find_cached(self, secret: str) -> KeyRow | KeyProblem | None:
        """The answer if it is at hand; None: ask `find`. Touches no store."""
        if len(secret) > MAX_SECRET_CHARS:
            return KeyProblem.UNKNOWN
        digest = hash_secret(secret)
        seen = self._known.get(digest) or self._unknown.get(digest)
        if seen is None:
            return None
        now = self._clock()
        # A clock that was set back must not keep a revoked key alive: answers from the future are void as well.
        if self._store is not None and not 0 <= now - seen.at_s < self._ttl_s:
            return None
        return self._checked(seen.answer, digest, now)

    async def find(self, secret: str) -> KeyRow | KeyProblem:
        """The key that `secret` opens, or why it opens none. Raises StoreError while the store is away."""
        answer = self.find_cached(secret)
        if answer is not None:
            return answer
        digest = hash_secret(secret)
        asked_at_s, age = self._clock(), self._age
        try:
            answer = self._decide(digest, await self._stored(digest))
        except StoreError:
            stale = self._stale(digest, asked_at_s)
            if stale is None:
                raise
            return self._checked(stale, digest, asked_at_s)
        if age == self._age:
            fresh, other = self._known, self._unknown
            if answer is KeyProblem.UNKNOWN:
                fresh, other = other, fresh
            other.pop(digest, None)
            self._remember(fresh, digest, _Seen(answer, asked_at_s))
        return self._checked(answer, digest, asked_at_s)

    def forget(self) -> None:
        """Believe nothing that was remembered; for this process's own changes to keys."""
        self._age += 1
        self._known.clear()
        self._unknown.clear()

    async def _stored(self, digest: str) -> KeyRow | None:
        if self._store is None:
            return None
        declared = self._declared.get(digest)
        if declared is not None:
            # The store may have a row for a declared key under another secret, which only its id tells.
            self._overrides[declared.id] = await self._store.key(declared.id)
        return await self._store.find_key(digest)

    def _decide(self, digest: str, stored: KeyRow | None) -> KeyRow | KeyProblem:
        declared = self._declared.get(digest)
        override = self._overrides.get(declared.id) if declared is not None else None
        row = stored or override or declared
        twin = self._declared_ids.get(row.id) if row is not None else None
        if any(found is not None and found.revoked for found in (row, declared, override, twin)):
            return KeyProblem.REVOKED
        return row if row is not None and digest in (row.sha256, row.former_sha256) else KeyProblem.UNKNOWN

    def _stale(self, digest: str, now_s: float) -> KeyRow | KeyProblem | None:
        seen = self._known.get(digest)
        if seen is not None:
            return seen.answer if 0 <= now_s - seen.at_s < self._stale_s else None
        return self._decide(digest, None) if self._stale_s > 0 and digest in self._declared else None

    def _remember(self, table: dict[str, _Seen], digest: str, seen: _Seen) -> None:
        table.pop(digest, None)
        if len(table) >= self._max_entries:
            del table[next(iter(table))]
        table[digest] = seen

    def _checked(self, answer: KeyRow | KeyProblem, digest: str, now_s: float) -> KeyRow | KeyProblem:
        if isinstance(answer, KeyProblem):
            return answer
        until_s = answer.expires_at_s
        if not compare_digest(answer.sha256, digest):
            if answer.former_sha256 is None or not compare_digest(answer.former_sha256, digest):
                return KeyProblem.UNKNOWN
            overlap_s = answer.former_until_s or 0.0
            until_s = overlap_s if until_s is None else min(until_s, overlap_s)
        return KeyProblem.EXPIRED if until_s is not None and now_s >= until_s else answer
