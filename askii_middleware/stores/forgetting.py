"""What every store leaves of a tenant that is erased, and how long rows are needed at least. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from ..budgets import scope_text
from ..errors import StoreError
from .rows import KeyRow

DELETED = "deleted"
"""The tenant, and the subscription, that the records of erased tenants are filed under, all together."""
MARKED_S = 25 * 3600.0
"""A settled call's record is kept so long in any case: it answers a repeated settlement."""
PIECE = 200
"""Rows that are changed or dropped at once: some 10 ms, which others who write may have to wait for."""

_EMPTY: Final[dict[str, object]] = {
    "tenant": DELETED,
    "subscription": DELETED,
    "key": None,
    "user": None,
    "team": None,
    "end_user": None,
    "tags": [],
    "metadata": {},
    "reason": None,
    "provider_request_id": None,
    "shadow": None,
}
"""The members of a record that could say whose it is, and what remains of them."""
_encode = msgspec.json.Encoder().encode
_LEFT = {name: msgspec.Raw(_encode(value)) for name, value in _EMPTY.items()}
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def anonymous(record: bytes) -> bytes:
    """A usage record that says what was used and charged, and no more by whom. All else is byte for byte as it was."""
    members = _decode(record)
    return _encode(members | {name: left for name, left in _LEFT.items() if name in members})


def naming(tenant: str, key_ids: Iterable[str]) -> Callable[[str], bool]:
    """Tells the scopes (text form) that name a tenant or one of these keys."""
    named = {scope_text({"tenant": tenant}), *(scope_text({"key": key_id}) for key_id in key_ids)}
    return lambda scope: not named.isdisjoint(scope.split(","))


def tombstone(key_id: str) -> KeyRow:
    """What remains of an erased tenant's key: its id, which the counters of its budgets still go by, so that no other
    tenant may have it. No secret has such a digest.
    """
    return KeyRow(id=key_id, sha256=f"{DELETED}:{key_id}", tenant=DELETED, revoked=True)


def is_tombstone(row: KeyRow) -> bool:
    """Whether a key is what `tombstone` leaves."""
    return row == tombstone(row.id)


def check_erasable(tenant: str) -> None:
    """Raise StoreError for the name that erased tenants share."""
    if tenant == DELETED:
        raise StoreError(f"tenant {tenant!r} stands for all that were erased: there is nothing more to erase")


def waiting_error(tenant: str, sink: str) -> StoreError:
    """Why a tenant cannot be erased yet."""
    return StoreError(
        f"tenant {tenant!r}: the sink {sink!r} has not got all of its records (dead letters count): deliver them, or "
        "forget the sink, and erase again; nothing was changed"
    )
