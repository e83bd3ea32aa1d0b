"""Bounded label sets: what clients and providers name cannot make a metric grow, or break the exposition.

A metric takes label sets in the order they come until it is full; from then on the tenant becomes `other` while the
model stays, for as long as there is room for that, and then every value that others choose. What has a series keeps it,
because a counter that moved would seem to start anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

from prometheus_client import Counter as _Counter
from prometheus_client import Histogram as _Histogram
from prometheus_client.samples import Sample

from .exposition import Family, escaped, series

OTHER = "other"
LABELS = ("tenant_id", "model")
"""What `metrics_labels` may name."""
OPEN = {"tenant_id": "tenant_id", "type": "type", "path_class": "path_class"} | dict.fromkeys(
    ("model", "requested_model", "served_model"), "model"
)
"""The labels whose values others choose, and which entry of `LABELS`, if any, shows them."""
MAX_LABEL_BYTES = 80
"""As they stand in the exposition: quotes, backslashes and new lines take two."""
MAX_KEY_CHARS = 512
"""Of label sets whose place is remembered."""
KNOWN_PER_SERIES = 20
"""For each series, label sets whose place is remembered: most are folded where there are many."""
FOLDED_SHARE = 10
"""One in so many label sets of a metric is kept for those whose tenant is folded."""
Values = tuple[str, ...]
Admits = Callable[[str, Values, int], bool]
"""Whether a label set of a metric gets a series, where there may be so many."""


def label(value: str, most: int = MAX_LABEL_BYTES) -> str:
    """Text that the exposition can hold. What has to be changed for that ends in a digest of the whole, as does what
    looks like that, so that two values never become one: twice the same series would make all of a scrape unreadable.
    """
    if len(value) <= most and value.isascii() and escaped(value) == value:
        return value
    text = value.encode(errors="replace").decode()
    if text == value and _escaped_size(text) <= most and not _DIGEST.search(text):
        return text
    mark = f"…{blake2b(value.encode(errors='surrogatepass'), digest_size=4).hexdigest()}"
    room = most - len(mark.encode())
    text = text[:room]
    while _escaped_size(text) > room:
        text = text[:-1]
    return text + mark


_DIGEST = re.compile(r"…[0-9a-f]{8}\Z")


def _escaped_size(text: str) -> int:
    return len(text.encode()) + text.count("\\") + text.count('"') + text.count("\n")


class Counter(_Counter):
    """Without the moments at which series were created, which would double what is sent."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._written = series(f"{self._name}_total", dict(zip(self._labelnames, self._labelvalues, strict=True)))

    def family(self) -> Family:
        """What `collect` tells, without making and naming every sample anew: a scrape has thousands."""
        children: list[Any] = [self]
        if self._labelnames:
            with self._lock:
                children = list(self._metrics.values())
        told = [(each._written, each._value.get(), each._value.get_exemplar()) for each in children]  # noqa: SLF001
        return Family(self._name, "counter", self._documentation, told)

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("_total", {}, self._value.get(), None, self._value.get_exemplar()),)


class Histogram(_Histogram):
    """As above."""

    def _child_samples(self) -> Iterable[Sample]:
        return tuple(sample for sample in super()._child_samples() if sample.name != "_created")


class Series:
    """Which label sets have series, in a single process."""

    def __init__(self) -> None:
        self._known: dict[str, set[Values]] = {}

    def admits(self, group: str, values: Values, limit: int) -> bool:
        known = self._known.setdefault(group, set())
        if values not in known and len(known) < limit:
            known.add(values)
        return values in known


class Folding:
    """Where label sets are counted: under their own values, or folded.

    Args:
        name: of the metric, or of the metrics that share their label sets.
        labels: of which those in `OPEN` fold.
        limit: how many label sets have series. Those whose open labels are all folded do not count.
        shown: which of `LABELS` are shown; the others are `other` always.
        folded: called with the name for each label set that is folded.
    """

    def __init__(
        self,
        name: str,
        labels: Sequence[str],
        *,
        limit: int,
        shown: Sequence[str],
        admits: Admits,
        folded: Callable[[str], None],
    ) -> None:
        self._name = name
        self._open = [label in OPEN for label in labels]
        self._hidden = [OPEN.get(label) in LABELS and OPEN[label] not in shown for label in labels]
        self._tenant = labels.index("tenant_id") if {"tenant_id", "model"} <= {*labels} else None
        self._kept = limit // FOLDED_SHARE if self._tenant is not None else 0
        self._limit = limit - self._kept
        self._admits = admits
        self._folded = folded
        self._known: dict[Values, Values] = {}
        self._most_known = max(KNOWN_PER_SERIES * limit, 1000)

    def __call__(self, values: Values) -> Values:
        place = self._known.get(values)
        return self._decided(values) if place is None else place

    def _decided(self, values: Values) -> Values:
        shown = tuple(
            OTHER if hidden else label(value) if is_open else value
            for value, hidden, is_open in zip(values, self._hidden, self._open, strict=True)
        )
        place = self._place(shown)
        if place != shown:
            self._folded(self._name)
        if sum(map(len, values)) <= MAX_KEY_CHARS:
            if len(self._known) >= self._most_known:
                self._known.clear()
            self._known[values] = place
        return place

    def _place(self, shown: Values) -> Values:
        if not any(self._open) or self._admits(self._name, shown, self._limit):
            return shown
        if self._tenant is not None:
            without = (*shown[: self._tenant], OTHER, *shown[self._tenant + 1 :])
            if self._admits(f"{self._name} without tenants", without, self._kept):
                return without
        return tuple(OTHER if is_open else value for value, is_open in zip(shown, self._open, strict=True))


class Children:
    """A counter's children by label values, of which there are few."""

    def __init__(self, metric: Counter, folding: Folding | None = None) -> None:
        self._metric = metric
        self._folding = folding
        self._known: dict[Values, Counter] = {}

    def __call__(self, *values: str) -> Counter:
        place = values if self._folding is None else self._folding(values)
        child = self._known.get(place)
        if child is None:
            child = self._known[place] = self._metric.labels(*place)
        return child
