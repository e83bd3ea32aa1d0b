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
from .stores.forgetting import DELETED

BUCKETS: Final = 4096
MAX_LISTED: Final = 1000
"""Differences of one kind that are named; beyond that they are counted."""
_MODULUS: Final = 1 << 128

Kind = Literal[
    "pending", "earlier", "dead letter", "missing", "unknown", "different", "doubled", "unbillable", "ledger"
]
"""Of a difference: not delivered yet; settled before the sink was there, so never to be sent; given up; delivered and
not there; there and not ours; there with another value; several lines with one id, and not the same on both sides;
nothing that can be billed, and not given up either; the ledger's own sums against its records."""
NO_FAULT: Final = frozenset[Kind]({"pending", "earlier"})
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
    """The bucket of a line: the same whatever its value is, and whose it is, which erased records do not say."""
    return int.from_bytes(_digest(line.code, line.id)[:2]) % BUCKETS


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
        more: so many more wait, and were not looked at.
        dead: dead letters, with their reasons.
    """

    pending: AbstractSet[CallId]
    more: int
    dead: Mapping[CallId, str]


class Ours(NamedTuple):
    """A line of ours, with the call it is of."""

    line: Line
    call: CallId
    earlier: bool = False
    """Whether it was settled before the sink was registered."""


def compare(
    ours: Mapping[Key, Sequence[Ours]], theirs: Mapping[Key, Sequence[Line]], waiting: Waiting
) -> list[Difference]:
    """Every difference between the lines of some buckets; none only where both sides have the same lines as often."""
    found = []
    theirs = _with_erased(ours, theirs)
    for key in sorted(ours.keys() | theirs.keys()):
        mine, yours = ours.get(key, ()), theirs.get(key, ())
        if not yours:
            found += [_absent(key, each, waiting) for each in mine]
        elif not mine:
            found += [_difference("unknown", key, None, line.value) for line in yours]
        elif (left := sorted(each.line.value for each in mine)) != (right := sorted(line.value for line in yours)):
            kind: Kind = "different" if len(left) == len(right) == 1 else "doubled"
            found.append(_difference(kind, key, " + ".join(left), " + ".join(right)))
    return found


def _with_erased(ours: Mapping[Key, Sequence[Ours]], theirs: Mapping[Key, Sequence[Line]]) -> dict[Key, list[Line]]:
    """Their lines; those that are an erased tenant's, which only their ids tell, under the name these records have."""
    erased = {key[1:] for key in ours if key[0] == DELETED}
    found: dict[Key, list[Line]] = {}
    for key, lines in theirs.items():
        place = (DELETED, *key[1:]) if key not in ours and key[1:] in erased else key
        found.setdefault(place, []).extend(lines)
    return found


def _absent(key: Key, mine: Ours, waiting: Waiting) -> Difference:
    kind: Kind = "missing"
    if mine.call in waiting.dead:
        kind = "dead letter"
    elif mine.call in waiting.pending:
        kind = "pending"
    elif mine.earlier:
        kind = "earlier"
    return _difference(kind, key, mine.line.value, None, waiting.dead.get(mine.call, ""))


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
        """Up to so many that are missing may wait: no one has looked which, so all or none do."""
        missing = self.counts.get("missing", 0)
        if 0 < missing <= count:
            self.listed = [each._replace(kind="pending") if each.kind == "missing" else each for each in self.listed]
            self.counts["pending"] = self.counts.get("pending", 0) + self.counts.pop("missing")

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but what is still on its way, or never was to be sent."""
        return not self.counts.keys() - NO_FAULT


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


class Running:
    """Sums of records by tenant, in nano-USD, with the least and the most that each was since `mark`."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.moved: dict[str, tuple[int, int]] = {}
        """Of those that changed."""

    def mark(self) -> None:
        self.moved.clear()

    def add(self, tenant: str, nano_usd: int) -> None:
        before = self.sums.get(tenant, 0)
        now = self.sums[tenant] = before + nano_usd
        low, high = self.moved.get(tenant, (before, before))
        self.moved[tenant] = min(low, now), max(high, now)


def ledger_differences(booked: Mapping[str, int], running: Running) -> Sequence[Difference]:
    """Tenants whose aggregates are not what their records come to, in nano-USD. The records were read before the
    aggregates (then comes the mark) and again after them: a tenant whose calls were settled meanwhile may be anywhere
    in between, and nowhere else.
    """
    found = []
    for tenant in sorted(booked.keys() | running.sums.keys()):
        now, has = running.sums.get(tenant, 0), booked.get(tenant, 0)
        low, high = running.moved.get(tenant, (now, now))
        if not low <= has <= high:
            found.append(Difference("ledger", tenant, "", "", str(now), str(has), "records, ledger"))
    return found
