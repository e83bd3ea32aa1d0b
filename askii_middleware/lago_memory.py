"""What a receiver of Lago's webhooks remembers in the store: which webhooks it has had, and how recent the latest one
about each thing was. Nothing here reads more than it asks about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

if TYPE_CHECKING:
    from .stores.base import Store

KIND: Final = "lago-webhook"
LATEST: Final = "lago-latest"
PARTS: Final = 64
"""Kinds among which the latest times are spread: the store gives all values of a kind at once."""
REMEMBER_S: Final = 30 * 86_400.0
"""How long a webhook is recognised. What says of itself that it is older is not done, seen before or not."""
CLAIM_S: Final = 2.0
"""How long a webhook that was begun keeps others from beginning it. Lago tries again after 3 s, and after some 20."""
_DONE: Final = b"1"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(float).decode


class WebhookMemory:
    """The memory of one store. Everything raises StoreError.

    One webhook at a time is worked on per subject, under a claim that lapses where its worker dies.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def claim(self, subject: str) -> float | None:
        """Begin something about a subject: until when. None: somebody has just begun something, or died of it."""
        until_s = self._clock() + CLAIM_S
        name = f"claim {subject}"
        return until_s if await self._store.put_item(KIND, name, _DONE, until_s=until_s, only_new=True) else None

    async def release(self, subject: str) -> None:
        """Let others begin."""
        await self._store.put_item(KIND, f"claim {subject}", None)

    async def has_had(self, names: Sequence[str], claimed_until_s: float) -> bool:
        """Whether one of these names was remembered. The question is asked by writing, which reads one value only; what
        it writes lapses with the claim.
        """
        for name in names:
            if not await self._store.put_item(KIND, name, _DONE, until_s=claimed_until_s, only_new=True):
                return True
        return False

    async def remember(self, names: Sequence[str], *, for_good: bool) -> None:
        until_s = None if for_good else self._clock() + REMEMBER_S
        for name in names:
            await self._store.put_item(KIND, name, _DONE, until_s=until_s)

    async def latest_s(self, subject: str) -> float | None:
        """The time of the latest that was done about a subject; it is kept for good."""
        found = {item.name: item.value for item in await self._store.items(_part(subject))}
        return _decode(found[subject]) if subject in found else None

    async def note_latest(self, subject: str, at_s: float) -> None:
        await self._store.put_item(_part(subject), subject, _encode(at_s))


def _part(subject: str) -> str:
    return f"{LATEST}:{crc32(subject.encode(errors='replace')) % PARTS:02}"
