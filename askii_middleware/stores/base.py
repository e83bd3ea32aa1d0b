"""The ledger's interface. Every method is one atomic operation, idempotent by call id, and asynchronous.

Amounts are integer nano-USD (10⁻⁹ USD). Times are Unix seconds of the store's own clock. A method that cannot reach
its engine raises StoreError and has changed nothing, or everything: repeating it with the same id is always safe.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence

from ..admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest, Window
from ..budgets import Budget
from ..errors import StoreError
from .delivering import Delivering
from .rows import (
    CHANNEL_PREFIX,
    MAX_ASKED,
    MAX_EDGES,
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
    Erased,
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
    SpendSums,
    Totals,
    complete_record,
    partition_of,
)

# fmt: off
__all__ = [
    "CHANNEL_PREFIX", "MAX_ASKED", "MAX_EDGES", "MAX_KEY_CHARS", "MAX_PAYLOAD_BYTES", "PARTITIONS", "AggregateRow",
    "Alert", "CreditAsk", "CreditLine", "CreditRow", "CreditUse", "DeadLetter", "DeadWorkerError", "DrawRequest",
    "Drawn", "Entry", "Erased", "Item", "KeyRow", "Lease", "Operation", "Outcome", "Place", "Promotion", "Settled",
    "Settlement", "ShortCreditError", "SpendRow", "SpendSums", "StaleFormsError", "Store", "Totals", "UnwritableError",
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


class Store(Delivering):
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

    async def tend(self) -> None:
        """Upkeep of bounded size that nothing depends on: without it answers are the same, and may take longer."""

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
    async def budgets(self, *, after: str = "", limit: int | None = None, contains: str = "") -> list[Budget]:
        """Stored budgets by key: those after a key, whose scope has a text in it; at most `limit`."""

    @abstractmethod
    async def budgets_of(self, keys: Collection[str]) -> list[Budget]:
        """The stored budgets with these keys, in any order."""

    async def budget(self, key: str) -> Budget | None:
        """The stored budget with this key."""
        return next(iter(await self.budgets_of((key,))), None)

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
    async def keys(self, *, tenant: str | None = None, after: str = "", limit: int | None = None) -> list[KeyRow]:
        """Stored keys by id: all, or one tenant's; those after an id; at most `limit`."""

    @abstractmethod
    async def key(self, key_id: str) -> KeyRow | None:
        """The stored key with this id."""

    @abstractmethod
    async def find_key(self, sha256: str) -> KeyRow | None:
        """The stored key with this digest, be it the present one or the former."""

    async def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        """Aggregates of a scope (text form) over whole hours that begin in [start, end)."""
        (rows,) = await self.spend_over((scope,), (start_s, end_s))
        return rows

    @abstractmethod
    async def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        """Aggregates of several scopes together, by model and provider, for each span between two neighbours of
        `edges_s` (ascending, at most 1,000): over the whole hours that begin in it. Sorted by model and provider.
        """

    @abstractmethod
    async def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        """The scopes that cost most over whole hours that begin in [start, end), highest first, at most `limit`: of
        those that are `prefix` and one value, such as `tenant=` or `tenant=acme,user=`.
        """

    @abstractmethod
    async def latest(self, tenant: str | None, limit: int, *, before_seq: int | None = None) -> list[tuple[int, bytes]]:
        """The newest usage records of a tenant, or of all, with their numbers, the newest first; those before a number,
        to read on. Bounded work: engines that keep a short list for each tenant (at least 100) answer from that.
        """

    @abstractmethod
    async def erase(self, tenant: str) -> Erased:
        """Forget a tenant in pieces of bounded size: its keys except their ids, the budgets and alerts that name it or
        them, the aggregates of its users and keys, and all that its records say except what was used and charged
        (`forgetting`). These, its keys' ids and its own aggregates go on under the tenant `deleted`, so that the
        ledger's sums stay and nobody else gets the keys' counters. Sums of `user=` and `team=`, which tenants may
        share, and what carries owe stay as they are. Calls that are open will be settled
        as they began: erase again after them.

        Records that a registered sink has not got, dead letters included, raise StoreError, and nothing is changed.
        """

    @abstractmethod
    async def prune(self, *, records_before_s: float | None, aggregates_before_s: float | None, limit: int) -> int:
        """Drop at most `limit` rows that nobody needs any more: records that were settled before one moment (not those
        of the last 25 hours, those that a sink has not got, and the newest of each partition), aggregates of hours that
        were over by another. How many were dropped; `totals` still counts them. An engine whose rows expire by
        themselves may leave that to them.
        """

    @abstractmethod
    async def totals(self) -> Totals:
        """Sums over the whole ledger."""

    @abstractmethod
    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        """Stored usage records in the order of settlement, from after `after_seq`. A store in memory keeps the newest
        100,000 and those that a sink still waits for.
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
