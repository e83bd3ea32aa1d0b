"""When a sink was registered: what was settled before is never sent to it, and no loss.

Noted beside the sink's places in the outbox as the place, in the order of settlement, of the last record before. Where
that is not known, because the sink is older than this note, nothing counts as earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .stores.base import Store

REGISTERED: Final = "sink-registration"
"""The kind of item that has this place, by the sink's name."""


async def register(store: Store, names: Iterable[str]) -> None:
    """Register sinks, and note where the new ones begin. Records of this very moment may count as later."""
    names = list(names)
    known = await store.pending()
    new = [name for name in names if name not in known]
    last = await _last_place(store) if new else 0
    for name in new:
        await store.put_item(REGISTERED, name, str(last).encode(), only_new=True)
    await store.register_sinks(names)


async def forget(store: Store, name: str) -> None:
    """Forget a sink with all that waits for it."""
    await store.forget_sink(name)
    await store.put_item(REGISTERED, name, None)


async def registered_after(store: Store, name: str) -> int:
    """The place of the last record before the sink was registered; 0: none, or it is not known."""
    return next((int(item.value) for item in await store.items(REGISTERED) if item.name == name), 0)


async def _last_place(store: Store) -> int:
    low, step = 0, 1
    while found := await store.records(low, 1):
        low, step = found[0][0], 1
        while found := await store.records(low + step, 1):
            low, step = found[0][0], step * 2
    return low
