"""Records that are too old to be sent: their receiver would refuse them, bill them to a wrong month, or not know them
again if an earlier try had reached it after all. The first two are of the moment of use, the last of the moment when
the record was made: a correction of an old call is young to a receiver's memory.

They become dead letters, which a person can still send. But a clock that has jumped forward makes every record look
old. So a first look proves nothing: these records wait, with what follows of the same tenant, and are looked at again,
until the clock has gone on for `CONFIRM_S` at an ordinary pace. A jump counts for no more than one look, and a clock
that is set right again finds everything as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from .records import UsageRecord
from .sinks.base import Traits
from .stores.base import PARTITIONS

if TYPE_CHECKING:
    from .stores.base import Store

CONFIRM_S: Final = 300.0
"""How long records have to look too old before they are taken for it."""
LOOK_S: Final = 60.0
"""From one look to the next, and the most that the time between two looks counts for."""
DESPITE_AGE: Final = "outbox-despite-age"
"""The kind of item that names a sink whose retried dead letters are sent whatever their age."""
TOO_OLD: Final = "too old to be sent: "
"""What the reasons here begin with."""
LOOKED_AT: Final = 100
"""Entries among which the oldest is looked for; they come nearly in the order of their age."""


class _Dated(msgspec.Struct):
    timestamp: str = ""


_dated = msgspec.json.Decoder(_Dated).decode


async def oldest_s(store: Store, sink: str) -> float | None:
    """The earliest moment of use among the records that a sink still waits for. None where there are none."""
    entries = await store.fetch(sink, range(PARTITIONS), LOOKED_AT, early=True)
    return min((at_s for entry in entries if (at_s := _used_s(entry.record)) is not None), default=None)


def _used_s(record: bytes) -> float | None:
    try:
        return datetime.fromisoformat(_dated(record).timestamp).timestamp()
    except ValueError:  # msgspec's errors are of this kind
        return None


@dataclass(slots=True)
class _Looks:
    last_s: float
    passed_s: float = 0.0
    waits_until_s: float = 0.0


class Ages:
    """Tells which records are too old for a sink, and of each partition how long that has been seen."""

    def __init__(self, traits: Traits) -> None:
        self._traits = traits
        self._looks: dict[int, _Looks] = {}

    def reason(self, record: UsageRecord, now_s: float) -> str:
        """Why a record is not to be sent any more; empty where it may be."""
        max_age_s, remembers_s = self._traits.max_age_s, self._traits.remembers_s
        if max_age_s is None and remembers_s is None:
            return ""
        try:
            moment = datetime.fromisoformat(record.timestamp)
        except ValueError:
            return ""  # what to make of it is the sink's to say
        if moment.tzinfo is None:
            return ""
        age_s = now_s - moment.timestamp()
        if max_age_s is not None and age_s > max_age_s:
            return f"{TOO_OLD}{age_s:.0f} s; the receiver takes records for {max_age_s:.0f} s"
        age_s -= max(record.duration_ms, 0.0) / 1000
        if remembers_s is not None and age_s > remembers_s:
            unsure = "the receiver could not tell a second try from a first"
            return f"{TOO_OLD}{age_s:.0f} s; after {remembers_s:.0f} s {unsure}"
        return ""

    def look(self, partition: int, now_s: float) -> float | None:
        """Note that a partition has such records now. None: it is certain. Else the moment until which to wait."""
        looks = self._looks.get(partition)
        step_s = 0.0 if looks is None else now_s - looks.last_s
        if looks is None or (looks.passed_s >= CONFIRM_S and not 0 <= step_s <= LOOK_S):
            looks = self._looks[partition] = _Looks(now_s)
        else:
            looks.passed_s += min(max(step_s, 0.0), LOOK_S)
            looks.last_s = now_s
        if looks.passed_s >= CONFIRM_S:
            return None
        looks.waits_until_s = now_s + LOOK_S
        return looks.waits_until_s

    def none(self, partition: int) -> None:
        """What is next in a partition is not too old."""
        self._looks.pop(partition, None)

    def was_set_back(self, partition: int, retry_at_s: float, now_s: float) -> bool:
        """Whether a partition waits for a moment named here that is further away than it ever was."""
        looks = self._looks.get(partition)
        return looks is not None and looks.waits_until_s == retry_at_s > now_s + LOOK_S
