"""Suspended tenants: who may not begin a call, and why. Calls that run already go on.

A suspension is an item in the store, so every worker learns of it within about a second, and admission only looks into
a dictionary. What suspends a tenant has a kind of its own: an operator's word, a subscription that ended and a wallet
that ran empty stand beside each other, and the end of one never lifts another.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from .errors import TenantSuspendedError
from .identity import Identity
from .log_fields import fields

if TYPE_CHECKING:
    from .item_watch import ItemWatcher
    from .stores.base import Item, Store

logger = logging.getLogger(__name__)

Cause = Literal["operator", "subscription", "wallet"]
"""Who suspends: a person, or Lago because of a subscription or a wallet."""

KINDS: Final[dict[Cause, str]] = {
    "operator": "tenant",
    "subscription": "tenant:subscription",
    "wallet": "tenant:wallet",
}
"""By cause the kind of the items: one for each tenant, or for each tenant and what its suspension depends on."""
MAX_COPIED: Final = 100_000
"""Suspensions of one cause that a worker keeps at hand."""
MAX_REASON_CHARS: Final = 500


class TenantState(msgspec.Struct, frozen=True, kw_only=True):
    """One suspension. `about` names what it depends on, such as Lago's id of a wallet; a tenant with two empty wallets
    has two.
    """

    tenant: str
    state: Literal["suspended"] = "suspended"
    cause: Cause
    reason: str
    at: str
    """RFC 3339 in UTC."""
    about: str | None = None


class _Value(msgspec.Struct, omit_defaults=True):
    state: str
    reason: str = ""
    at: str = ""
    about: str | None = None
    tenant: str | None = None
    """None: the item's name."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Value).decode


class TenantBook:
    """The suspensions of one store, and a bounded copy of them for admissions."""

    def __init__(self, store: Store, watcher: ItemWatcher, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._watcher = watcher
        self._clock = clock
        self._by_cause: dict[Cause, dict[str, str]] = {cause: {} for cause in KINDS}
        self._suspended: dict[str, str] = {}
        for cause, kind in KINDS.items():
            watcher.watch(kind, partial(self._take, cause))

    def find(self, tenant: str) -> TenantSuspendedError | None:
        """What to refuse a tenant's calls with, as far as this worker knows. Costs one look into a dictionary."""
        reason = self._suspended.get(tenant)
        return None if reason is None else TenantSuspendedError(tenant, reason)

    async def suspend(
        self, tenant: str, *, reason: str = "", cause: Cause = "operator", about: str | None = None
    ) -> bool:
        """Refuse a tenant's calls from now on. A person's word replaces the one before; others leave what they find,
        and have one suspension for each thing it is `about`. Whether anything was written. Raises ValueError for what
        is no tenant, StoreError.
        """
        Identity(tenant=tenant)  # its bounds are a tenant's bounds
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = reason.replace("\0", "").encode(errors="replace").decode()[:MAX_REASON_CHARS]
        value = _encode(_Value(state="suspended", reason=told, at=at, about=about, tenant=tenant))
        name = _name(tenant, about)
        written = await self._store.put_item(KINDS[cause], name, value, only_new=cause != "operator")
        await self._watcher.look()
        return written

    async def resume(self, tenant: str, *, cause: Cause | None = None) -> bool:
        """Lift a tenant's suspensions, or that of one cause. False: there was none. Raises StoreError."""
        mine = [state for state in await self.states(cause) if state.tenant == tenant]
        return await self._remove(mine) != []

    async def lift(self, cause: Cause, about: str) -> list[str]:
        """Lift the suspensions that depend on one thing. The tenants that had one; another may still stand. Raises
        StoreError.
        """
        return await self._remove([state for state in await self.states(cause) if state.about == about])

    async def states(self, cause: Cause | None = None) -> list[TenantState]:
        """All suspensions in the store, or those of one cause, by tenant. Raises StoreError."""
        found = [
            TenantState(
                tenant=value.tenant or item.name, cause=each, reason=value.reason, at=value.at, about=value.about
            )
            for each in (KINDS if cause is None else (cause,))
            for item in await self._store.items(KINDS[each])
            if (value := _read(item)) is not None
        ]
        return sorted(found, key=lambda state: state.tenant)

    async def _remove(self, states: Sequence[TenantState]) -> list[str]:
        """The tenants of the suspensions that were there and are not any more."""
        gone = [
            state.tenant
            for state in states
            if await self._store.put_item(KINDS[state.cause], _name(state.tenant, state.about), None)
        ]
        await self._watcher.look()
        return gone

    def _take(self, cause: Cause, items: Sequence[Item]) -> None:
        if len(items) > MAX_COPIED:
            logger.error(
                "%d tenants are suspended (%s); only %d of them are refused: resume those that will not come back",
                *(len(items), cause, MAX_COPIED),
                extra=fields("suspensions_cut", count=len(items), cause=cause),
            )
        values = ((item.name, _read(item)) for item in islice(items, MAX_COPIED))
        self._by_cause[cause] = {value.tenant or name: value.reason for name, value in values if value is not None}
        # One dictionary is looked into; where several causes name a tenant, a person's reason is told.
        together: dict[str, str] = {}
        for each in reversed(KINDS):
            together |= self._by_cause[each]
        self._suspended = together


def _name(tenant: str, about: str | None) -> str:
    """An item's name: no two pairs share one."""
    return tenant if about is None else msgspec.json.encode([tenant, about]).decode()


def _read(item: Item) -> _Value | None:
    """A suspension; one that cannot be read counts, for it was somebody's wish; another state does not."""
    try:
        value = _decode(item.value)
    except msgspec.DecodeError:
        logger.warning(
            "the suspension of tenant %r cannot be read; it stands",
            *(item.name,),
            extra=fields("suspension_unreadable", tenant=item.name),
        )
        return _Value("suspended")
    return value if value.state == "suspended" else None


class Suspending(ABC):
    """Mixed into `CostTracker`."""

    tenants: TenantBook
    _subscription_of: Callable[[Identity], str | None] | Mapping[str, str] | None

    @abstractmethod
    def subscription(self, identity: Identity) -> str:
        """The external subscription an identity is billed to; empty where it has none."""

    @abstractmethod
    async def ready(self) -> None:
        """Open the ledger if it is not open yet. Raises StoreError."""

    async def suspend_tenant(self, tenant: str, *, reason: str = "") -> None:
        """Refuse a tenant's calls in all workers that share the store: here at once, elsewhere within about a second.
        Calls and streams that run go on, and usage that happened elsewhere is still charged. Raises ValueError for
        what is no tenant, StoreError.
        """
        await self.ready()
        await self.tenants.suspend(tenant, reason=reason)

    async def resume_tenant(self, tenant: str) -> bool:
        """Lift all suspensions of a tenant, whoever set them. False: there was none. Raises StoreError."""
        await self.ready()
        return await self.tenants.resume(tenant)

    def tenants_billed_to(self, subscription: str) -> tuple[str, ...]:
        """The tenants whose usage goes to an external subscription: by the table where there is one, else the tenant of
        that name, unless `subscription_of` says that this one is billed elsewhere, or by more than its name.
        """
        table = self._subscription_of
        if isinstance(table, Mapping):
            return tuple(tenant for tenant, billed_to in table.items() if billed_to == subscription)
        billed_to = self._billed_by_name(subscription)
        return (subscription,) if billed_to == subscription else ()

    def is_billed_by_name(self, tenant: str) -> bool:
        """Whether who pays for a tenant's usage depends on the tenant only, and not on its keys, users or teams."""
        return self._billed_by_name(tenant) is not None

    def _billed_by_name(self, tenant: str) -> str | None:
        """What all of a tenant's usage is billed to; None: it is no tenant, or that is not one subscription."""
        try:
            bare = Identity(tenant=tenant)
        except ValueError:
            return None
        part = "?" if tenant != "?" else "!"  # differs from the tenant, so that it shows where a rule uses it
        full = Identity(tenant=tenant, key=part, user=part, team=part, end_user=part, tags=(part,))
        billed_to = self.subscription(bare)
        return billed_to if self.subscription(full) == billed_to else None

    async def tenant_states(self) -> list[TenantState]:
        """All suspensions, by tenant: who is not listed is active. Raises StoreError."""
        await self.ready()
        return await self.tenants.states()
