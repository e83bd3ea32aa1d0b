"""Records on their way to sinks, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..base import CHANNEL_PREFIX, DeadLetter, Entry, Lease, Outcome, Place
from ..rows import EVER_S
from ..rules import check_outcomes, check_sinks
from .engine import Engine
from .wire import encode

_decode_leases = msgspec.json.Decoder(list[Lease]).decode
_decode_entries = msgspec.json.Decoder(list[tuple[int, int, str, str, int, msgspec.Raw]]).decode
_decode_dead = msgspec.json.Decoder(list[tuple[int, int, str, str, str, int, float, float, msgspec.Raw]]).decode
_decode_places = msgspec.json.Decoder(list[Place]).decode
_decode_partitions = msgspec.json.Decoder(list[int]).decode
_decode_pending = msgspec.json.Decoder(dict[str, int]).decode


class PostgresOutbox(Engine):
    """See `Store`."""

    async def register_sinks(self, names: Sequence[str]) -> None:
        check_sinks(names)
        await self._call("register_sinks", encode(list(names)))

    async def forget_sink(self, name: str) -> bool:
        return bool(await self._call("forget_sink", name))

    async def lease(self, sink: str, owner: str, ttl_s: float) -> list[Lease]:
        function = "lease_channel" if sink.startswith(CHANNEL_PREFIX) else "lease_sink"
        return _decode_leases(await self._call(function, sink, owner, float(ttl_s), self._now()))

    async def fetch(self, sink: str, partitions: Sequence[int], limit: int, *, early: bool = False) -> list[Entry]:
        asked = encode(list(partitions))
        found = await self._call("fetch_entries", sink, asked, max(limit, 0), EVER_S if early else self._now())
        return [
            Entry(partition, seq, call_id, tenant, bytes(record), attempts)
            for partition, seq, call_id, tenant, attempts, record in _decode_entries(found)
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
        held = encode([(lease.partition, lease.token) for lease in leases])
        became = encode(list(outcomes))
        return _decode_partitions(
            await self._call("acknowledge", sink, held, became, float(retry_at_s), failures, self._now())
        )

    async def pending(self) -> dict[str, int]:
        return _decode_pending(await self._call("pending"))

    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        found = _decode_dead(await self._call("dead_letters", sink, max(limit, 0)))
        return [DeadLetter(*row[:-1], bytes(row[-1])) for row in found]

    async def retry_dead(self, sink: str) -> int:
        return int(await self._call("retry_dead", sink, self._now()))

    async def places(self, sink: str) -> list[Place]:
        return _decode_places(await self._call("sink_places", sink))
