"""What goes into a ledger and what comes out of it. Amounts are integer nano-USD, times Unix seconds."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote
from zlib import crc32

import msgspec

from ..admission import Admission, BudgetState, Match, Window


class AggregateRow(NamedTuple):
    """What one settlement adds to one scope's hourly aggregate."""

    scope: str
    model: str
    provider: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int


class CreditUse(NamedTuple):
    """What a call stands on that its worker admitted by itself, from credit it had drawn before."""

    holder: str
    counters: tuple[tuple[str, int], ...]
    """Key and window end of each counter the call was admitted on."""
    hold_nano_usd: int
    """What the call holds of it. Its charge never uses up more: other open calls stand on the rest."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a store writes when a call ends, in one transaction. Self-contained, so it can wait in a journal.

    Attributes:
        call_id: the hold it replaces; a second settlement of one id changes nothing.
        admitted_at_s: the moment the call belongs to.
        cost_nano_usd: the charge to every counter of the hold, in full, even above the limit. A credit is negative.
        matches, windows: where to charge if there is no hold (a call admitted unheld, or `record_usage`). A window
            that is missing here is computed, so that a charge always finds its counters.
        rate: as in ReserveRequest.
        subscription: whose coin carry the fraction goes to.
        coins, pico_coins: the exact charge in coins, split into whole coins and 10⁻¹² coin.
        tenant: orders and partitions delivery.
        aggregates: rows to add up under the hour of `admitted_at_s`.
        record: the usage record as a JSON object without its last two members, `late` and `askii_coins`, which only
            the store knows.
        credit: for a call without a hold that was admitted from credit: it is charged to these counters, whatever
            `matches` say by now, and as much of the holder's credit on them is used up, within the call's hold.
    """

    call_id: str
    admitted_at_s: float
    cost_nano_usd: int
    matches: tuple[Match, ...]
    windows: dict[str, tuple[Window, Window]]
    rate: tuple[int, int]
    subscription: str
    coins: int
    pico_coins: int
    tenant: str
    aggregates: tuple[AggregateRow, ...]
    record: bytes
    credit: CreditUse | None = None


class Settled(NamedTuple):
    """The answer to a settlement."""

    coins: int
    """Whole coins to bill for this call: its own and what overflowed from the carry; never below 0."""
    late: bool
    """The call had a hold that no longer counted (expired, lost or released), so the charge may stand above the
    limit. False for a call that never had one.
    """
    duplicate: bool
    """The call was settled before; `coins` and `late` are those of the first time."""


class Entry(NamedTuple):
    """One record on its way to one sink."""

    partition: int
    seq: int
    """Ascends in its partition in the order of settlement, from 1 and without gaps."""
    call_id: str
    tenant: str
    record: bytes
    """The complete usage record as JSON."""
    attempts: int


class Outcome(NamedTuple):
    """What became of one entry: delivered, dead (with the reason), or due again."""

    partition: int
    seq: int
    result: str
    """`delivered`, `dead` or `again`."""
    reason: str = ""
    after_s: float = 0.0


class DeadLetter(NamedTuple):
    """An entry a sink will never take as it is."""

    partition: int
    seq: int
    call_id: str
    tenant: str
    reason: str
    attempts: int
    first_attempt_s: float
    last_attempt_s: float
    record: bytes


class Lease(NamedTuple):
    """The right to deliver one partition of the tenants to one sink, fenced by `token`: a later owner's lease makes
    every earlier token void. An alert channel has one partition, 0.
    """

    partition: int
    token: int
    retry_at_s: float
    """Do not send before this moment (a back-off that survives restarts); 0 when free to send."""
    failures: int
    """How many sends in a row have failed."""


class Place(NamedTuple):
    """Who delivers one partition of the tenants to one sink, and how it goes, for people to read."""

    partition: int
    owner: str | None
    """Who had the lease last."""
    lease_until_s: float
    """Until then it is that owner's."""
    retry_at_s: float
    failures: int


class SpendRow(NamedTuple):
    """Aggregated spend of one scope on one model and provider."""

    model: str
    provider: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int


class SpendSums(NamedTuple):
    """Aggregated spend of one scope on all models."""

    scope: str
    """Text form."""
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int

    @property
    def value(self) -> str:
        """The scope's last value, plain. `*` is a name like others here, which a budget's scope could not have."""
        return unquote(self.scope.rpartition("=")[2], errors="surrogatepass")


class Erased(NamedTuple):
    """What an erasure did to a tenant's data."""

    records: int
    """Those that say no more whose they are."""
    aggregates: int
    """Hourly rows by scope, model and provider that were dropped, or added to those of all erased tenants."""
    keys: int
    budgets: int


class Totals(NamedTuple):
    """What the whole ledger holds, for reconciliation."""

    calls: int
    """Settled calls, from the aggregates of `tenant=` scopes."""
    cost_nano_usd: int
    """Sum of their charges, from the same aggregates."""
    records: int
    records_nano_usd: int
    """Sum of `cost_nano_usd` over the stored records, read from the records themselves."""
    held_nano_usd: int
    """Sum of the live holds' amounts, each counted once for a call."""
    lost: int
    """Holds of dead workers, never settled. The rows are kept for 8 days."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What is spent has crossed a share of a budget's limit. Written once for each counter, share and limit, by the
    settlement that crossed it.
    """

    seq: int
    """Ascends in the order of settlement."""
    id: str
    """The same for the same crossing, whoever wrote it: for receivers that get an alert twice."""
    budget: str
    """Key of the budget, `<scope>|<period>`."""
    scope: str
    """The values it is about: `tenant=acme` for a budget on `tenant=*`."""
    period: str
    share_ppm: int
    """The share that was crossed, in millionths of the limit."""
    limit_nano_usd: int
    spent_nano_usd: int
    """Including the charge that crossed it."""
    at_s: float
    """When it was settled."""
    resets_at_s: int


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """An API key of ours, without its secret."""

    id: str
    sha256: str
    """Hex digest of the secret."""
    tenant: str
    user: str | None = None
    team: str | None = None
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Allowed models by canonical name; empty: all."""
    expires_at_s: float | None = None
    revoked: bool = False
    name: str | None = None
    """What people call it."""
    created_at_s: float | None = None
    former_sha256: str | None = None
    """The digest before the last rotation: it opens the same key until `former_until_s`."""
    former_until_s: float | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A call that goes on elsewhere, such as a background response or a batch, with what charging it later needs.

    Attributes:
        key: by which a later answer names it, at most `MAX_KEY_CHARS`.
        until_s: when it is overdue, by the store's clock.
        payload: opaque to the store, at most `MAX_PAYLOAD_BYTES`.
    """

    key: str
    call_id: str
    tenant: str
    until_s: float
    payload: bytes


class CreditAsk(NamedTuple):
    """A wish for credit on each counter a match comes to in the present window."""

    match: Match
    more_nano_usd: int
    """How much more than there is. 0: only tell what there is."""
    share_ppm: int = 1_000_000
    """At most this share, in millionths, of what is neither spent nor held."""
    ceiling_ppm: int = 1_000_000
    """Never so much that what is spent and held passes this share of the limit."""


class DrawRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Credit for calls to come. What is granted counts as held, by whoever looks, until it is used by settlements,
    given back, or reclaimed after its holder's death.

    Attributes:
        holder: the worker, whose heartbeat must be alive.
        sequence: ascends with the holder's draws; one that was answered before changes nothing and tells what is.
        asks: in order; each is granted in full, in part or not at all.
        returns: credit given back, by counter; more than there is gives back what there is.
        windows, rate, forms_version: as in ReserveRequest.
    """

    holder: str
    sequence: int
    asks: tuple[CreditAsk, ...]
    returns: tuple[tuple[str, int], ...] = ()
    windows: dict[str, tuple[Window, Window]]
    rate: tuple[int, int]
    forms_version: int


class CreditLine(NamedTuple):
    """One counter of an ask after the draw. `state.held_nano_usd` includes all credit, the holder's too."""

    state: BudgetState
    start_s: int
    granted_nano_usd: int
    """All that the holder was ever granted on this counter, less what it gave back or moved into holds. What its own
    unsettled and settled calls came to is the holder's to subtract. Lines without a limit and soft ones need no credit
    and are granted none; lines whose values crowd (`max_values`) and limits of 0 are granted none either.
    """
    needs_store: bool = False
    """No call may be admitted from credit on this line: the store has to look (crowds, limits of 0)."""


class Drawn(NamedTuple):
    """The answer to a draw."""

    now_s: float
    """The store's clock."""
    budgets_version: int
    """Changes with every edit of a stored budget: what was resolved before is then out of date."""
    lines: tuple[tuple[CreditLine, ...], ...]
    """For each ask; empty where no budget governs the match."""


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """Turn credit of a worker into a hold of one of its calls, with `admission` as the answer it was given.

    Attributes:
        credit: whose credit, and the counters the hold will stand on. How much it takes says `admission`.
        deadline_s: how long the hold may live from now on.
        about: as in ReserveRequest.
    """

    call_id: str
    credit: CreditUse
    admission: Admission
    deadline_s: float
    about: bytes = b"{}"


class CreditRow(NamedTuple):
    """Credit on one counter in one worker's hands."""

    counter: str
    holder: str
    granted_nano_usd: int
    used_nano_usd: int
    alive: bool
    """Whether the holder's heartbeat lasts."""


class Item(NamedTuple):
    """A named value of some kind that operators change at run time, such as a suspended tenant or a price."""

    name: str
    value: bytes


PARTITIONS = 16
"""Of tenants, in every outbox. Fixed: records keep the partition they were written to."""
EVER_S = 1e15
"""Later than any moment."""
CHANNEL_PREFIX = "alert:"
"""What the names of alert channels begin with, so that they have leases as sinks do and are none."""
MAX_ASKED = 1000
"""Calls whose budgets are looked up at once."""
MAX_EDGES = 1000
"""Between the spans that spend is read over at once."""
MAX_KEY_CHARS = 512
MAX_PAYLOAD_BYTES = 1 << 16


def partition_of(tenant: str) -> int:
    """The partition of a tenant's records, the same in every process and release."""
    return crc32(tenant.encode("utf-8", "surrogatepass")) % PARTITIONS


def complete_record(record: bytes, *, late: bool, coins: int) -> bytes:
    """The record with the two members only the store knows, in the place a usage record has them: at its end."""
    return record[:-1] + b',"late":%s,"askii_coins":%d}' % (b"true" if late else b"false", coins)
