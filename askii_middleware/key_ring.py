"""`tracker.keys`: API keys of ours, as operators make, list, rotate and revoke them."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from math import isfinite
from typing import Final, Literal, NamedTuple

from msgspec.structs import replace

from .errors import ConfigurationError, StoreError
from .identity import MAX_VALUE_CHARS, Identity
from .keys import KeyDirectory, hash_secret, new_secret
from .models import MAX_MODEL_CHARS
from .stores.base import KeyRow, Store
from .stores.forgetting import DELETED, is_tombstone

OVERLAP_S: Final = 86_400.0
MAX_OVERLAP_S: Final = 31 * 86_400.0
MAX_MODELS: Final = 100
MAX_PAGE: Final = 1000
_ID = re.compile(r"(?!\.{1,2}$)[\w.:@+-]{1,256}")
"""Fit for paths, headers and tables as it is."""
_CHANGE: Final = "key:change"
"""The kind of the items that let one worker at a time change a key: reading and writing it are two operations, and
between them a revocation could be lost.
"""
_CHANGE_S: Final = 10.0
_AGAIN_S: Final = 0.02


class ListedKey(NamedTuple):
    """A key without its secret, and where it comes from."""

    row: KeyRow
    source: Literal["store", "config"]


class NewKey(NamedTuple):
    """A key with its secret, which is shown only now: the ledger keeps its hash."""

    row: KeyRow
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(row={self.row!r}, secret=…)"


class KeyRing:
    """The keys of one ledger together with those that are declared. A stored row wins over a declared one of the same
    id, and a revocation on either side over everything. Of a deleted tenant's keys only those that are still declared
    are shown, as revoked; the ids of all stay taken, since counters go by them.

    Attributes:
        directory: finds the key a secret belongs to. Whoever identifies callers of this ledger asks this one, so that
            changes made here count here at once.
    """

    def __init__(
        self,
        store: Store,
        declared: Iterable[KeyRow] = (),
        *,
        ready: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        model_name: Callable[[str], str],
        stale_s: float = 0.0,
    ) -> None:
        self._store = store
        self._ready = ready
        self._clock = clock
        self._model_name = model_name
        self.directory = KeyDirectory(declared, store, clock=clock, stale_s=stale_s)

    async def create(
        self,
        tenant: str,
        *,
        key_id: str | None = None,
        name: str | None = None,
        user: str | None = None,
        team: str | None = None,
        tags: Iterable[str] = (),
        models: Iterable[str] = (),
        expires_at_s: float | None = None,
    ) -> NewKey:
        """A new key. Raises ConfigurationError for an id that is taken, ValueError for fields out of bounds,
        StoreError.
        """
        tags, allowed = tuple(tags), self._allowed(models)
        if key_id is not None and not _ID.fullmatch(key_id):
            raise ValueError("a key's id has 1 to 256 letters, digits or any of . _ : @ + -")
        if tenant == DELETED:
            raise ValueError(f"{DELETED!r} stands for tenants that were deleted: name the tenant otherwise")
        if user == "" or team == "":
            raise ValueError("user and team must not be empty; leave them out")
        Identity(tenant=tenant, user=user, team=team, tags=tags)  # its bounds are a key's bounds
        if name is not None and (not name.strip() or len(name) > MAX_VALUE_CHARS or not name.isprintable()):
            raise ValueError(f"a key's name has 1 to {MAX_VALUE_CHARS} printable characters")
        now_s = self._clock()
        if expires_at_s is not None and not (isfinite(expires_at_s) and now_s < expires_at_s < 1e11):
            raise ValueError("a key expires at a moment to come")
        await self._ready()
        secret = new_secret()
        row = KeyRow(
            id=key_id or f"key_{uuid.uuid4().hex[:12]}",
            sha256=hash_secret(secret),
            tenant=tenant,
            user=user,
            team=team,
            tags=tags,
            models=allowed,
            expires_at_s=expires_at_s,
            name=name,
            created_at_s=now_s,
        )
        async with self._changing(row.id):
            if await self._store.key(row.id) is not None or row.id in self.directory.declared:
                raise ConfigurationError(f"a key with the id {row.id!r} exists or existed: name another")
            await self._store.put_key(row)
        return NewKey(row, secret)

    async def rotate(self, key_id: str, *, overlap_s: float = OVERLAP_S, expected_sha256: str | None = None) -> NewKey:
        """A new secret for a key, whose id, budgets and history stay. The one before opens it for `overlap_s` more; 0
        ends it at once, and the second but last ends in any case: so of two rotations at the same moment only the
        first should be done, where both say in `expected_sha256` which digest they have seen. A declared key becomes a
        stored one. Raises ConfigurationError for a key that is not there, revoked or rotated since, ValueError for an
        overlap of more than 31 days, StoreError.
        """
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise ValueError(f"an overlap takes 0 to {MAX_OVERLAP_S / 86_400:.0f} days")
        await self._ready()
        if await self._find(key_id) is None:
            raise ConfigurationError(f"no key has the id {key_id[:MAX_VALUE_CHARS]!r}")
        async with self._changing(key_id):
            found = await self._find(key_id)
            if found is None:
                raise ConfigurationError(f"the key {key_id!r} was deleted a moment ago")
            if found.row.revoked:
                raise ConfigurationError(f"the key {key_id!r} is revoked, and stays so: make another one")
            if expected_sha256 not in (None, found.row.sha256):
                raise ConfigurationError(f"the key {key_id!r} has been rotated since: look at it again")
            secret = new_secret()
            row = replace(
                found.row,
                sha256=hash_secret(secret),
                former_sha256=found.row.sha256 if overlap_s else None,
                former_until_s=self._clock() + overlap_s if overlap_s else None,
            )
            await self._store.put_key(row)
        return NewKey(row, secret)

    async def revoke(self, key_id: str) -> bool:
        """Refuse a key from now on, wherever it is declared. False: there is none of that id. Raises StoreError."""
        await self._ready()
        if await self._find(key_id) is None:
            return False
        async with self._changing(key_id):
            found = await self._find(key_id)
            # A deleted tenant's is refused as it is, and is not to be written down again.
            if found is not None and not is_tombstone(await self._store.key(key_id) or found.row):
                await self._store.put_key(replace(found.row, revoked=True))
        return found is not None

    async def get(self, key_id: str) -> ListedKey | None:
        """One key. Raises StoreError."""
        await self._ready()
        return await self._find(key_id)

    async def list(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> list[ListedKey]:
        """Keys by id, stored and declared, a page at a time: those after an id, at most `limit` (1 to 1,000). Raises
        ValueError, StoreError.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit takes 1 to {MAX_PAGE}")
        await self._ready()
        stored, last, buried = await _next_stored(self._store, tenant, after, limit)
        page = {row.id: self._merged(row) for row in stored}
        for key_id, row in sorted(self.directory.declared.items()):
            mine = tenant is None or row.tenant == tenant
            if not mine or key_id <= after or key_id in page or (last is not None and key_id > last):
                continue
            # A stored row may have given a declared id to another tenant.
            other = None if tenant is None else await self._store.key(key_id)
            if other is None or is_tombstone(other):
                page[key_id] = self._declared(row, is_buried=other is not None or key_id in buried)
                if len(page) == 2 * limit:
                    break
        return [page[key_id] for key_id in sorted(page)][:limit]

    async def _find(self, key_id: str) -> ListedKey | None:
        stored = await self._store.key(key_id)
        is_buried = stored is not None and is_tombstone(stored)
        if stored is not None and not is_buried:
            return self._merged(stored)
        declared = self.directory.declared.get(key_id)
        return None if declared is None else self._declared(declared, is_buried=is_buried)

    @staticmethod
    def _declared(row: KeyRow, *, is_buried: bool) -> ListedKey:
        return ListedKey(replace(row, revoked=True) if is_buried else row, "config")

    def _merged(self, stored: KeyRow) -> ListedKey:
        declared = self.directory.declared.get(stored.id)
        revoked = declared is not None and declared.revoked
        return ListedKey(replace(stored, revoked=True) if revoked else stored, "store")

    def _allowed(self, models: Iterable[str]) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(models))
        if len(given) > MAX_MODELS or any(not model.strip() or len(model) > MAX_MODEL_CHARS for model in given):
            raise ValueError(f"at most {MAX_MODELS} models, whose names have 1 to {MAX_MODEL_CHARS} characters")
        return tuple(dict.fromkeys(map(self._model_name, given)))

    @asynccontextmanager
    async def _changing(self, key_id: str) -> AsyncIterator[None]:
        """Be the only one to change a key, of all workers. Raises StoreError where others do not come to an end."""
        for _ in range(int(_CHANGE_S / _AGAIN_S)):
            until_s = self._clock() + _CHANGE_S
            if await self._store.put_item(_CHANGE, key_id, b"{}", until_s=until_s, only_new=True):
                break
            await asyncio.sleep(_AGAIN_S)
        else:
            raise StoreError(f"the key {key_id[:MAX_VALUE_CHARS]!r} is being changed elsewhere: try again")
        try:
            yield
        finally:
            self.directory.forget()
            # It ends by itself. What was done must be told all the same: nobody else has seen the new secret.
            with suppress(StoreError):
                await self._store.put_item(_CHANGE, key_id, None)


async def _next_stored(
    store: Store, tenant: str | None, after: str, limit: int
) -> tuple[list[KeyRow], str | None, set[str]]:
    """The next `limit` stored keys, the id up to which these are all, if there may be more, and the ids of deleted
    tenants' keys among them.
    """
    found: list[KeyRow] = []
    buried: set[str] = set()
    step = limit
    while rows := await store.keys(tenant=tenant, after=after, limit=step):
        gone = {row.id for row in rows if is_tombstone(row)}
        found += [row for row in rows if row.id not in gone]
        buried |= gone
        if len(found) >= limit:
            return found[:limit], found[limit - 1].id, buried
        if len(rows) < step:
            break
        after, step = rows[-1].id, MAX_PAGE
    return found, None, buried
