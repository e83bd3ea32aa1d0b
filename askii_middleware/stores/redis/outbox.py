"""Records on their way to sinks. What the scripts keep where stands in `lua/outbox.lua`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from ...errors import StoreError
from ..base import CHANNEL_PREFIX, PARTITIONS, DeadLetter, Entry, Lease, Outcome, Place
from ..rows import EVER_S
from ..rules import check_outcomes, check_sinks
from .base import RedisBase
from .wire import Part, text

_pack = msgspec.msgpack.Encoder().encode


class RedisOutbox(RedisBase):
    """Sinks, their leases and what waits for them."""

    async def register_sinks(self, names: Sequence[str]) -> None:
        check_sinks(names)
        await self._run("register_sinks", names)

    async def forget_sink(self, name: str) -> bool:
        return bool(await self._run("forget_sink", (name,)))

    async def lease(self, sink: str, owner: str, ttl_s: float) -> list[Lease]:
        if sink.startswith(CHANNEL_PREFIX):
            return await self._lease_channel(sink, owner, ttl_s)
        found = await self._of_sink("lease", sink, (owner, float(ttl_s)))
        return [Lease(partition, token, float(at), int(failures)) for partition, token, at, failures in found]

    @abstractmethod
    async def _lease_channel(self, channel: str, owner: str, ttl_s: float) -> list[Lease]:
        """The same for an alert channel."""

    async def fetch(self, sink: str, partitions: Sequence[int], limit: int, *, early: bool = False) -> list[Entry]:
        asked = [partition for partition in range(PARTITIONS) if partition in partitions]
        now = repr(EVER_S).encode() if early else None
        found = _known(await self._run("fetch", (sink, max(limit, 0), *asked), now=now), sink)
        return [
            Entry(partition, seq, text(call_id), text(tenant), record, attempts)
            for partition, seq, call_id, tenant, record, attempts in found
        ]

    async def acknowledge(
        self,
        sink: str,
        leases: Sequence[Lease],
        outcomes: Sequence[Outcome],
        *,
        retry_at_s: float = 0.0,
        failures: int = 0,
    ) -> list[int]:
        check_outcomes(outcomes)
        asked = sink, retry_at_s, failures, [(lease.partition, lease.token) for lease in leases], outcomes
        return sorted(set(_known(await self._run("acknowledge", (_pack(asked),)), sink)))

    async def pending(self) -> dict[str, int]:
        found = await self._run("pending")
        return {text(sink): waiting for sink, waiting in zip(found[::2], found[1::2], strict=True)}

    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        return [
            DeadLetter(p, seq, text(call_id), text(tenant), text(reason), attempts, float(first), float(last), record)
            for p, seq, call_id, tenant, reason, attempts, first, last, record in await self._of_sink(
                "dead_letters", sink, (max(limit, 0),)
            )
        ]

    async def retry_dead(self, sink: str) -> int:
        return int(await self._of_sink("retry_dead", sink, ()))

    async def places(self, sink: str) -> list[Place]:
        return [
            Place(partition, text(owner) or None, float(until_s), float(retry_at_s), int(failures))
            for partition, (owner, until_s, retry_at_s, failures) in enumerate(await self._of_sink("places", sink, ()))
        ]

    async def _of_sink(self, script: str, sink: str, args: Sequence[Part]) -> Any:
        return _known(await self._run(script, (sink, *args)), sink)


def _known(answer: Any, sink: str) -> Any:
    if answer is None:
        raise StoreError(f"sink {sink!r} is not registered: call register_sinks first")
    return answer
