"""What all operations of the store stand on: the server, its scripts and the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .connection import Link
from .places import Place
from .scripts import script
from .wire import Part, bulk


class RedisBase:
    """Runs scripts and commands on one ledger's keys.

    Args:
        url: see `open_store`.
        clock: Unix seconds, sent with each operation; None: the server's own time.
        timeout_s: bounds every operation.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None, timeout_s: float = 5.0) -> None:
        place = Place(url)
        self.url = place.url
        self._clock = clock
        self._prefix = f"{{{place.namespace}}}:"
        self._link = Link(place, timeout_s)
        self._heads: dict[str, bytes] = {}
        """By script: all of a call that is always the same."""

    def _now(self) -> bytes:
        """The time that goes with an operation; empty: the server's."""
        return b"" if self._clock is None else repr(float(self._clock())).encode()

    async def _run(self, name: str, args: Sequence[Part] = (), *, now: bytes | None = None) -> Any:
        """One script call: KEYS[1] is the prefix of the ledger's keys, ARGV[1] the time, ARGV[2] the first of `args`.
        Integers that a script writes into text come as `%.0f`. Raises StoreError.
        """
        found = script(name)
        head = self._heads.get(name)
        if head is None:
            head = self._heads[name] = b"".join(bulk(part) for part in ("EVALSHA", found.digest, 1, self._prefix))
        data = b"*%d\r\n%b%b%b" % (
            len(args) + 5,
            head,
            bulk(self._now() if now is None else now),
            b"".join(map(bulk, args)),
        )
        return await self._link.send(data, found)

    async def _call(self, command: str, key: str, *args: Part) -> Any:
        """The reply to one plain command on a key of the ledger. Raises StoreError."""
        return await self._link.call(command, self._prefix + key, *args)
