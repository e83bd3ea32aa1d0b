"""What goes into a ledger and what comes out of it. Amounts are integer nano-USD, times Unix seconds."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..admission import Match, Window


class AggregateRow(NamedTuple):
    """What one settlement adds to one scope's hourly aggregate."""

    scope: str
    model: str
    provider: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int


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


class Settled(NamedTuple):
    """The answer to a settlement."""

    coins: int
    """Whole coins to bill for this call: its own and what overflowed from the carry."""
    late: bool
    """The call had a hold that no longer counted (expired, lost or released), so the charge may stand above the
    limit. False for a call that never had one.
    """
    duplicate: bool
    """The call was settled before; `coins` and `late` are those of the first time."""


class Entry(NamedTuple):
    """One record on its way to one sink."""

    seq: int
    call_id: str
    tenant: str
    record: bytes
    """The complete usage record as JSON."""
    attempts: int


class Outcome(NamedTuple):
    """What became of one entry: delivered, dead (with the reason), or due again."""

    seq: int
    result: str
    """`delivered`, `dead` or `again`."""
    reason: str = ""
    after_s: float = 0.0


class DeadLetter(NamedTuple):
    """An entry a sink will never take as it is."""

    seq: int
    call_id: str
    tenant: str
    reason: str
    attempts: int
    first_attempt_s: float
    last_attempt_s: float
    record: bytes


class Lease(NamedTuple):
    """The right to deliver to one sink, fenced by `token`: a later lease makes every earlier token void."""

    token: int
    retry_at_s: float
    """Do not send before this moment (a back-off that survives restarts); 0 when free to send."""
    failures: int
    """How many sends in a row have failed."""


class SpendRow(NamedTuple):
    """Aggregated spend of one scope on one model and provider."""

    model: str
    provider: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int


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


CHANNEL_PREFIX = "alert:"
"""What the names of alert channels begin with, so that they have leases as sinks do and are none."""
MAX_KEY_CHARS = 512
MAX_PAYLOAD_BYTES = 1 << 16


def complete_record(record: bytes, *, late: bool, coins: int) -> bytes:
    """The record with the two members only the store knows, in the place a usage record has them: at its end."""
    return record[:-1] + b',"late":%s,"askii_coins":%d}' % (b"true" if late else b"false", coins)
