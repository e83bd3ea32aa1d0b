"""The ledger's interface. Every method is one atomic operation, idempotent by call id, and asynchronous.

Amounts are integer nano-USD (10⁻⁹ USD). Times are Unix seconds of the store's own clock. A method that cannot reach
its engine raises StoreError and has changed nothing, or everything: repeating it with the same id is always safe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest, Window
from ..budgets import Budget
from ..errors import StoreError
from .rows import (
    CHANNEL_PREFIX,
    MAX_ASKED,
    MAX_KEY_CHARS,
    MAX_PAYLOAD_BYTES,
    PARTITIONS,
    AggregateRow,
    Alert,
    CreditAsk,
    CreditLine,
    CreditRow,
    CreditUse,
    DeadLetter,
    Drawn,
    DrawRequest,
    Entry,
    Item,
    KeyRow,
    Lease,
    Operation,
    Outcome,
    Place,
    Promotion,
    Settled,
    Settlement,
    SpendRow,
    Totals,
    complete_record,
    partition_of,
)

# fmt: off
__all__ = [
    "CHANNEL_PREFIX", "MAX_ASKED", "MAX_KEY_CHARS", "MAX_PAYLOAD_BYTES", "PARTITIONS", "AggregateRow", "Alert",
    "CreditAsk", "CreditLine", "CreditRow", "CreditUse", "DeadLetter", "DeadWorkerError", "DrawRequest",
    "Drawn", "Entry", "Item", "KeyRow", "Lease", "Operation", "Outcome", "Place", "Promotion", "Settled",
    "Settlement", "ShortCreditError", "SpendRow", "StaleFormsError", "Store", "Totals", "UnwritableError",
    "complete_record", "partition_of",
]
# fmt: on


class StaleFormsError(StoreError):
    """The request was built from outdated budget forms: load them again and retry. Nothing was changed."""


class DeadWorkerError(StoreError):
    """The request's worker has no live heartbeat, so its hold would not count: send a heartbeat (under a new name if
    that answers False) and retry. Nothing was changed.
    """


class ShortCreditError(StoreError):
    """The holder has less credit than is to become a hold: draw first, or reserve the call. Nothing was changed."""


class UnwritableError(StoreError):
    """The engine works, but can never write this: repeating it is useless. Nothing was changed."""


class Store(ABC):
    """A ledger. See the module's docstring for what all methods promise."""

    url: str
    lost_holds = 0
    """How many holds the heartbeats sent from here have found lost."""
    for_copy = False
    """Open also what is marked as the target of an unfinished copy, see `copying`."""

    @abstractmethod
    async def open(self) -> None:
        """Connect and bring the schema up to date. Raises StoreError; may be called again."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what runs and disconnect."""

    @abstractmethod
    async def ping(self) -> None:
        """Raise StoreError unless the ledger can be read and written."""

    # Admission ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        """The version of the stored budgets' forms and the forms: `(shape joined by commas, period, zone)`."""

    @abstractmethod
    async def reserve(self, request: ReserveRequest) -> Admission:
        """Hold for the first candidate that fits, on all its lines, or on none. Counts only live holds: those whose
        worker's heartbeat and whose own deadline have not run out.

        A call that was admitted before gets its first answer again (once it is settled: without `states`), even if
        its hold is gone by now; a denial leaves no trace and is decided anew. The hold named by `replaces` is looked
        through while deciding and released if the new one is admitted; on denial it stays as it was.

        Where the request is in shadow, its first candidate's whole hold stands whatever the budgets say, and counters
        may pass their limits.

        Raises StaleFormsError, DeadWorkerError, and UnwritableError for amounts a counter cannot hold.
        """

    @abstractmethod
    async def extend(self, request: ExtendRequest) -> Extension:
        """Raise a call's hold on all its counters, or on none, as far as the present limits of the budgets it stands
        on have room. A sequence number no higher than one that was answered changes nothing and tells what is held.

        A hold that does not count any more, for whatever reason, is not revived: refused as `held`, with 0 held and no
        deciding line. Raises UnwritableError for amounts a counter cannot hold.
        """

    @abstractmethod
    async def settle(self, settlement: Settlement) -> Settled:
        """Replace a hold by its charge and write record, aggregates, carry and outbox entry. Without a hold of that
        id, charge `matches`. An expired, released or lost call is charged all the same, where its hold was; only a
        settled one is a duplicate. Raises UnwritableError if a counter would leave its range of 2**53 - 1 nano-USD.
        """

    def attributed(self, settlement: Settlement) -> Settlement:
        """The settlement with all that the store knows about its call in this process, such as the credit it was
        admitted from: so that it may wait in a journal and be written by any other process.
        """
        return settlement

    def settle_at_once(self, settlement: Settlement) -> Settled | None:
        """`settle`, if that needs no waiting; None, and nothing done, where it would. A caller that must not be
        interrupted then saves a task of its own. Raises StoreError.
        """
        del settlement
        return None

    @abstractmethod
    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        """`settle` for several calls in one operation of the engine, in this order. Each stands for itself: one that
        can never be written is answered by its error and keeps none of the others from being written.
        """

    @abstractmethod
    async def release(self, call_id: str) -> None:
        """Drop a hold, and forget the call's operation. No hold, or one already settled: nothing else happens. A lost
        one is lost no more: its end is known.
        """

    @abstractmethod
    async def defer(self, operation: Operation) -> bool:
        """The call goes on elsewhere: from now on its hold depends on no worker, and counts until it is settled or
        released, or an hour after it is overdue. `settle` and `release` of the call forget the operation in the same
        transaction.

        A hold that no longer counts is not revived, and a call without one gets none; its operation is kept all the
        same. A call that is deferred, settled or released already: nothing happens. (A call that never had a hold
        leaves no marker when it is released.) False: another call's operation has this key; nothing was changed.
        Raises UnwritableError for a key or a payload that is too long.
        """

    @abstractmethod
    async def operation(self, key: str) -> Operation | None:
        """The operation with this key, if its call is still open."""

    @abstractmethod
    async def overdue(self, limit: int) -> list[Operation]:
        """Operations whose time is up, at most `limit`, the longest overdue first."""

    @abstractmethod
    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        """Keep a worker's holds alive for `ttl_s` from now, mark the holds of dead workers as lost, and prune a bounded
        number of old rows. False: this worker's own heartbeat had run out, its holds have expired, and it must go on
        under a new name.
        """

    # Credit ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def draw(self, request: DrawRequest) -> Drawn:
        """Take and give back credit, and look. Never grants what is not left: spent and held, all credit included,
        stay within every limit. Raises StaleFormsError and DeadWorkerError.

        Credit does not end with its holder's heartbeat: what a dead worker had counts as held until its window ends,
        or `reclaim`.
        """

    @abstractmethod
    async def promote(self, promotion: Promotion) -> None:
        """Place a hold of `admission.hold_nano_usd` on the counters and take as much of the holder's credit on each,
        so that what is held in all stays the same. From then on the call is as if it had been reserved. A call that
        has a hold or a marker already: nothing happens. Raises DeadWorkerError, and ShortCreditError where the credit
        is not there.
        """

    @abstractmethod
    async def credits(self) -> list[CreditRow]:
        """All credit that is not used up, by counter and holder."""

    @abstractmethod
    async def reclaim(self, scope: str | None = None) -> list[CreditRow]:
        """Take back the credit of workers whose heartbeat has run out, on the counters of one scope (text form) or on
        all. Returns what was taken, as it was.
        """

    # Budgets, keys, reading -----------------------------------------------------------------------------------------

    @abstractmethod
    async def set_budget(self, budget: Budget) -> None:
        """Store a budget; it wins over a declared one with the same key. Spend is kept."""

    @abstractmethod
    async def remove_budget(self, key: str) -> bool:
        """Forget a stored budget (a declared one applies again). False if there was none."""

    @abstractmethod
    async def budgets(self) -> list[Budget]:
        """All stored budgets, by key."""

    async def status(
        self, matches: tuple[Match, ...], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[BudgetState]:
        """The lines that bind a call with these matches, now. Holds nothing. Missing windows are computed."""
        (states,) = await self.status_of((matches,), windows, rate)
        return states

    @abstractmethod
    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        """`status` of several calls, each for itself, at one moment and in one operation of the engine. Raises
        ValueError for more than `MAX_ASKED`.
        """

    @abstractmethod
    async def put_key(self, row: KeyRow) -> None:
        """Store or replace a key by its id."""

    @abstractmethod
    async def keys(self) -> list[KeyRow]:
        """All stored keys, by id."""

    @abstractmethod
    async def find_key(self, sha256: str) -> KeyRow | None:
        """The stored key with this digest."""

    @abstractmethod
    async def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        """Aggregates of a scope (text form) over whole hours that begin in [start, end)."""

    @abstractmethod
    async def totals(self) -> Totals:
        """Sums over the whole ledger."""

    @abstractmethod
    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        """Stored usage records in the order of settlement, from after `after_seq`. A store in memory keeps the newest
        100,000 and those that a sink still waits for.
        """

    @abstractmethod
    async def tenant_spend(self, period: str, window: Window, limit: int) -> list[tuple[str, int]]:
        """The tenants with the highest spend in `window` from the aggregates, `(tenant, nano-USD)`, at most `limit`,
        highest first. `period` only names the window.
        """

    @abstractmethod
    async def record(self, call_id: str) -> bytes | None:
        """The stored usage record of a settled call, as long as the store keeps it."""

    # Items ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def put_item(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None = None, only_new: bool = False
    ) -> bool:
        """Store, replace or (None) remove a named value. After `until_s` it is as if it was not there. False, and
        nothing changed: with `only_new`, because there is one; without a value, because there was none.
        """

    @abstractmethod
    async def items(self, kind: str) -> list[Item]:
        """All values of a kind, by name."""

    @abstractmethod
    async def item_versions(self) -> dict[str, int]:
        """For each kind a number that changes with every change of its values."""

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
