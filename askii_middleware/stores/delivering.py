"""The half of the ledger's interface that hands out what is written: records to sinks, alerts to channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .rows import Alert, DeadLetter, Entry, Lease, Outcome, Place


class Delivering(ABC):
    """See `base.Store`, which it is a part of."""

    # Outbox ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def register_sinks(self, names: Sequence[str]) -> None:
        """Give each new sink its places at the ends of the outbox's partitions; known sinks keep theirs."""

    @abstractmethod
    async def forget_sink(self, name: str) -> bool:
        """Drop a sink with all that waits for it. False if there was none."""

    @abstractmethod
    async def lease(self, sink: str, owner: str, ttl_s: float) -> list[Lease]:
        """Take or renew the right to deliver to a sink, partition by partition, or to an alert channel, which has one.

        The owners that ask share a sink's partitions evenly: each keeps those it has up to its share, gives up what is
        beyond, and takes free ones and those whose lease has run out. An owner counts until `ttl_s` after it asked
        last. A renewal by the same owner keeps its token. `ttl_s` 0 gives all leases back and ends the owner's share.
        Returns the leases held from now on, by partition. Like the other outbox methods, raises StoreError for a name
        that was not registered.
        """

    @abstractmethod
    async def fetch(self, sink: str, partitions: Sequence[int], limit: int, *, early: bool = False) -> list[Entry]:
        """The next entries of these partitions, at most `limit`: those due again first, the longest due first, but in
        no more than half of the places while there are new ones; then new ones in the order of settlement. A tenant's
        entries keep their order among first deliveries. `early`: those that wait for a moment of their own count as
        due, for who wants to see all that waits.
        """

    @abstractmethod
    async def acknowledge(
        self,
        sink: str,
        leases: Sequence[Lease],
        outcomes: Sequence[Outcome],
        *,
        retry_at_s: float = 0.0,
        failures: int = 0,
    ) -> list[int]:
        """Write what became of entries, and the back-off of all leased partitions. Entries without an outcome stay
        where they are. Returns the partitions whose lease is void, because its token is no longer the newest: nothing
        was written for these. Outcomes of partitions without a lease here, of entries that do not exist, or that were
        delivered before, change nothing.
        """

    @abstractmethod
    async def pending(self) -> dict[str, int]:
        """How many entries wait for each registered sink (dead letters not counted)."""

    @abstractmethod
    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        """Entries a sink has rejected for good, the longest rejected first."""

    @abstractmethod
    async def retry_dead(self, sink: str) -> int:
        """Make a sink's dead letters due again; how many."""

    @abstractmethod
    async def places(self, sink: str) -> list[Place]:
        """Who delivers to a sink, and how it goes, by partition."""

    # Alerts ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def register_channels(self, names: Sequence[str]) -> None:
        """Give each new channel its place behind the last alert; known channels keep theirs. Names begin with
        `CHANNEL_PREFIX`, else ValueError. The right to deliver to a channel is taken with `lease`, under its name.
        """

    @abstractmethod
    async def fetch_alerts(self, channel: str, limit: int) -> list[Alert]:
        """The next alerts for a channel, in order. Raises StoreError for a channel that was not registered."""

    @abstractmethod
    async def acknowledge_alerts(self, channel: str, token: int, through_seq: int) -> bool:
        """All alerts up to `through_seq` are done with. False, and nothing written, if `token` is no longer the
        newest. Raises StoreError like `fetch_alerts`.
        """

    @abstractmethod
    async def recent_alerts(self, limit: int) -> list[Alert]:
        """The newest alerts, the newest first. They are kept for 8 days after their window's end, and until every
        channel that was leased within 30 days has acknowledged them.
        """
