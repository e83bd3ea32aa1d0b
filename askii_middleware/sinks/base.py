"""What a receiver of usage records has to offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord

NumberFormat = Literal["string", "integer"]

BACK_OFF: Final = 0.0
"""As `Delivery.pause_s`: a failure without a known end. The loop chooses the pause, longer after each one in a row."""


class Verdict(NamedTuple):
    """What a sink did with one record."""

    result: str
    """`delivered`, `rejected` (never send it again), `again` (this record later, the others now) or `kept` (not
    tried; it keeps its place and comes with the next batch).
    """
    reason: str = ""
    after_s: float = 0.0
    """For `again`: not before so many seconds; 0 leaves it to the loop, longer after each time."""


DELIVERED = Verdict("delivered")
KEPT = Verdict("kept")


class Delivery(NamedTuple):
    """The answer to one `send`: a verdict for each record, in their order."""

    verdicts: tuple[Verdict, ...]
    pause_s: float | None = None
    """Set when nothing more should be sent for so long (the receiver is down, busy or misconfigured). The records
    with verdict `again` then keep their place and order. None: go on. `BACK_OFF`: the loop decides how long.
    """
    alarm: str = ""
    """What is wrong, where a person has to act, such as on a refused API key."""
    suspect: bool = False
    """For `BACK_OFF`: the receiver got the records and broke, so one of them may be the cause. After some failures
    in a row the loop then sends fewer at a time until it has found which.
    """


@runtime_checkable
class Sink(Protocol):
    """Receives finished records. `send` may raise: the batch is then tried again with back-off, as `suspect`.
    It may be cancelled at any await, and the same records then come again. `close` may be followed by a `send`.

    A sink may also declare what `Traits` has; what it does not declare has the defaults there.
    """

    name: str
    max_batch: int

    async def send(self, records: Sequence[UsageRecord]) -> Delivery: ...

    async def close(self) -> None: ...


class Traits(NamedTuple):
    """What a sink says of its receiver, by attributes of these names."""

    number_format: NumberFormat = "string"
    """How amounts are written."""
    max_age_s: float | None = None
    """The receiver refuses what is older, or bills it to a wrong month. None: any age will do."""
    remembers_s: float | None = None
    """How long the receiver knows a record again that it got before. None: for ever."""


def traits_of(sink: Sink) -> Traits:
    """What a sink declares. Raises SinkError for what makes no sense."""
    declared: dict[str, Any] = {name: getattr(sink, name) for name in Traits._fields if hasattr(sink, name)}
    traits = Traits(**declared)
    if traits.number_format not in ("string", "integer"):
        raise SinkError(f"number_format of sink {sink.name!r} is string or integer, not {traits.number_format!r}")
    for name, age_s in (("max_age_s", traits.max_age_s), ("remembers_s", traits.remembers_s)):
        if age_s is not None and not (isinstance(age_s, int | float) and age_s > 0):
            raise SinkError(f"{name} of sink {sink.name!r} is a number of seconds above 0 or None, not {age_s!r}")
    return traits
