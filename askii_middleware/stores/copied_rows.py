"""What a ledger consists of, in a form that every engine can read and write. Amounts are integer nano-USD, times Unix
seconds. Budgets, keys and operations come as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..admission import Admission
from .rows import Alert


class ItemRow(NamedTuple):
    kind: str
    name: str
    value: bytes
    until_s: float | None


class WorkerRow(NamedTuple):
    worker: str
    alive_until_s: float
    buried_s: float | None
    drawn: int
    """The sequence number of its last draw of credit."""


class CounterRow(NamedTuple):
    counter: str
    end_s: int
    spent_nano_usd: int
    """What is held on it follows from holds and credit."""


class CreditRow(NamedTuple):
    counter: str
    holder: str
    end_s: int
    granted_nano_usd: int
    used_nano_usd: int


class HoldRow(NamedTuple):
    call_id: str
    state: str
    """`held`, `expired`, `lost` or `released`."""
    until_s: float
    """In state `held` the deadline, else how long the row is remembered."""
    worker: str
    nano_usd: int
    counters: tuple[tuple[str, int], ...]
    """Keys and window ends."""
    candidate: int
    admitted_at_s: float
    sequence: int
    """The last extension that was answered."""
    answer: Admission
    """For a repeated reserve."""
    about: bytes
    """JSON."""


class SeatRow(NamedTuple):
    shared: str
    counter: str
    number: int
    """From 1 without gaps. Not every engine keeps who came first."""
    end_s: int


class CarryRow(NamedTuple):
    subscription: str
    coins: int
    pico_coins: int


class HourRow(NamedTuple):
    hour: int
    scope: str
    model: str
    provider: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int


class RecordRow(NamedTuple):
    partition: int
    position: int
    """In its partition, from 1."""
    seq: int
    """In the whole ledger."""
    call_id: str
    tenant: str
    candidate: int
    admitted_at_s: float
    """These two answer a repeated reserve; an engine forgets them after a day, and then says 0."""
    record: bytes


class EndRow(NamedTuple):
    name: str
    """`records`, `alerts`, or a partition's number; from an engine that lets old rows go also `calls`, `cost_nano_usd`
    and `records_nano_usd`.
    """
    last: int
    """The last number that was given out, or the sum over all rows ever written. An engine that sees it in its rows
    keeps none.
    """


class SinkRow(NamedTuple):
    sink: str
    partition: int
    behind: int
    """How far its position is from the partition's end. (Not from the beginning: where old records are gone, engines
    number the new ones as they can.)
    """
    token: int
    retry_at_s: float
    failures: int


class AsideRow(NamedTuple):
    sink: str
    partition: int
    position: int
    state: str
    """`again`, `dead` or `delivered`."""
    due_s: float
    attempts: int
    reason: str
    first_attempt_s: float
    last_attempt_s: float


class AlertRow(NamedTuple):
    seq: int
    id: str
    end_s: int
    alert: Alert


class ChannelRow(NamedTuple):
    channel: str
    position: int
    token: int
    used_until_s: float
    """The end of its last lease."""


Row = Any
"""One of the above, Budget, KeyRow or Operation."""
