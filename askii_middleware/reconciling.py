"""Do we and a receiver of usage have the same? Pure, and in bounded memory however many lines there are.

Each side is folded: into sums for each subscription and code, and into a fixed number of buckets, by id, each with the
sum of its lines' hashes. Buckets that agree hold the same lines on both sides; only of those that differ are the lines
themselves looked at, so many at a time as may be held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

from .sinks.auditing import Line

BUCKETS: Final = 4096
MAX_LISTED: Final = 1000
"""Differences of one kind that are named; beyond that they are counted."""
_MODULUS: Final = 1 << 128

Kind = Literal["pending", "dead letter", "missing", "unknown", "different", "unbillable", "ledger"]
"""Of a difference: not delivered yet; given up; delivered and not there; there and not ours; there with another value;
nothing that can be billed, and not given up either; the ledger's own sums against its records."""
Key = tuple[str, str, str]
"""Subscription, code and id."""
CallId = tuple[str, str]
"""Subscription and call id: ids that others chose are unique within their subscription only."""


class Difference(NamedTuple):
    kind: Kind
    subscription: str
    """Of `ledger`: the tenant."""
    id: str
    code: str
    ours: str | None
    """The value as we have it; None: we have no such line."""
    theirs: str | None
    detail: str = ""


@dataclass(slots=True)
class Sums:
    """Lines and the sum of their whole values; those whose value is no whole number are only counted."""

    count: int = 0
    value: int = 0


def bucket_of(line: Line) -> int:
    """The bucket of a line: the same whatever its value is."""
    return int.from_bytes(_digest(line.subscription, line.code, line.id)[:2]) % BUCKETS


def key_of(line: Line) -> Key:
    return line.subscription, line.code, line.id


def whole(value: str) -> int | None:
    """A value that is a whole number in plain digits; None: it is not."""
    sign, digits = (-1, value[1:]) if value.startswith("-") else (1, value)
    return sign * int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 30 else None


def _digest(*parts: str) -> bytes:
    made = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        made.update(b"%d:" % len(encoded) + encoded)
    return made.digest()


class Fold:
    """One side, folded."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Sums] = {}
        """By subscription and code."""
        self._hashes = [0] * BUCKETS
        self.counts = [0] * BUCKETS

    def add(self, line: Line) -> None:
        number = bucket_of(line)
        self.counts[number] += 1
        # A sum and no exclusive or, in which a line that comes twice would vanish.
        self._hashes[number] = (self._hashes[number] + int.from_bytes(_digest(*line))) % _MODULUS
        sums = self.sums.setdefault((line.subscription, line.code), Sums())
        sums.count += 1
        sums.value += whole(line.value) or 0

    def differing(self, other: Fold) -> list[int]:
        """The buckets that do not hold the same on both sides."""
        return [
            number
            for number in range(BUCKETS)
            if self._hashes[number] != other._hashes[number] or self.counts[number] != other.counts[number]
        ]


def rounds(buckets: Iterable[int], ours: Fold, theirs: Fold, most: int) -> list[set[int]]:
    """The buckets in groups, each with at most `most` lines of both sides together, or of one bucket."""
    groups: list[set[int]] = []
    room = 0
    for number in buckets:
        size = ours.counts[number] + theirs.counts[number]
        if not groups or size > room:
            groups.append(set())
            room = most
        groups[-1].add(number)
        room -= size
    return groups


class Waiting(NamedTuple):
    """What the outbox has for a sink.

    Attributes:
        pending: entries that are known to wait.
        more: so many more wait, for their next try, and cannot be named.
        dead: dead letters, with their reasons.
    """

    pending: AbstractSet[CallId]
    more: int
    dead: Mapping[CallId, str]


def compare(ours: Mapping[Key, tuple[Line, CallId]], theirs: Mapping[Key, Line], waiting: Waiting) -> list[Difference]:
    """Every difference between the lines of some buckets. `ours` come with their call ids."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        mine, line = ours.get(key), theirs.get(key)
        if mine is not None and line is not None:
            if mine[0].value != line.value:
                found.append(_difference("different", key, mine[0].value, line.value))
        elif mine is not None:
            line, call = mine
            kind: Kind = "pending" if call in waiting.pending else "missing"
            kind = "dead letter" if call in waiting.dead else kind
            found.append(_difference(kind, key, line.value, None, waiting.dead.get(call, "")))
        elif line is not None:
            found.append(_difference("unknown", key, None, line.value))
    return found


def _difference(kind: Kind, key: Key, ours: str | None, theirs: str | None, detail: str = "") -> Difference:
    return Difference(kind, key[0], key[2], key[1], ours, theirs, detail)


@dataclass(slots=True)
class Findings:
    """The differences of one comparison: all counted, the first of each kind named."""

    listed: list[Difference] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=dict)

    def add(self, differences: Iterable[Difference]) -> None:
        for difference in differences:
            count = self.counts.get(difference.kind, 0)
            self.counts[difference.kind] = count + 1
            if count < MAX_LISTED:
                self.listed.append(difference)

    def forgive(self, count: int) -> None:
        """Up to so many that are missing wait for their next try: no one can tell which, so all or none is."""
        missing = self.counts.get("missing", 0)
        if 0 < missing <= count:
            self.listed = [each._replace(kind="pending") if each.kind == "missing" else each for each in self.listed]
            self.counts["pending"] = self.counts.get("pending", 0) + self.counts.pop("missing")

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but what is still on its way."""
        return not self.counts.keys() - {"pending"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkAccount:
    """A sink against its receiver. `totals`: by subscription and code, where the two differ: ours, theirs."""

    sink: str
    audited: bool
    """Whether its receiver was asked; where it cannot be, only the outbox was looked at."""
    lines: int
    pending: int
    dead: int
    totals: Mapping[tuple[str, str], tuple[Sums, Sums]]
    findings: Findings

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sink": self.sink,
            "audited": self.audited,
            "agrees": self.findings.agrees,
            "lines": self.lines,
            "pending": self.pending,
            "dead_letters": self.dead,
            "counts": dict(self.findings.counts),
            "subscriptions": [
                {
                    "subscription": subscription,
                    "code": code,
                    "ours": {"count": ours.count, "sum": ours.value},
                    "theirs": {"count": theirs.count, "sum": theirs.value},
                }
                for (subscription, code), (ours, theirs) in sorted(self.totals.items())
            ],
            "differences": [difference._asdict() for difference in self.findings.listed],
        }


def unlike(ours: Fold, theirs: Fold) -> dict[tuple[str, str], tuple[Sums, Sums]]:
    """The subscriptions and codes whose sums differ."""
    both = {key: (ours.sums.get(key, Sums()), theirs.sums.get(key, Sums())) for key in ours.sums | theirs.sums}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def ledger_differences(
    booked: Mapping[str, int], before: Mapping[str, int], after: Mapping[str, int]
) -> Sequence[Difference]:
    """Tenants whose aggregates are not what their records come to, in nano-USD. The records were read before the
    aggregates and again after them: a tenant whose calls were settled meanwhile may be anywhere in between.
    """
    return [
        Difference("ledger", tenant, "", "", str(after.get(tenant, 0)), str(booked.get(tenant, 0)), "records, ledger")
        for tenant in sorted(booked.keys() | after.keys())
        if booked.get(tenant, 0) not in (before.get(tenant, 0), after.get(tenant, 0))
        and before.get(tenant, 0) == after.get(tenant, 0)
    ]
