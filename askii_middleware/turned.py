"""How many calls were refused today, and how many went to another model than they asked for, by all workers of a
ledger. Each worker counts for itself and leaves its sums in the ledger with its heartbeats, until the UTC day is over.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from .stores.base import Store
from .waiting import bounded

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

DAY_S: Final = 86_400
MAX_LINES: Final = 200
"""Of one worker's sums, the largest; there are more only where somebody makes models up."""
_KIND: Final = "turned"
_COUNTERS: Final = {"askii_refusals_total": ("reason",), "askii_fallbacks_total": ("requested_model", "served_model")}

Counts = Mapping[tuple[str, ...], int]
"""By `(reason,)`, or by `(requested, served)` model."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[tuple[int, list[str]]]).decode


class Turned(NamedTuple):
    """What was refused, and what was moved to another model."""

    by_reason: tuple[tuple[str, int], ...] = ()
    by_models: tuple[tuple[str, str, int], ...] = ()
    """Requested and served model, and how often; the most frequent first."""

    @property
    def refused(self) -> int:
        return sum(n for _, n in self.by_reason)

    @property
    def moved(self) -> int:
        return sum(n for *_, n in self.by_models)


class TurnedToday:
    """The sums of all workers that share a ledger.

    Args:
        registry: where this process counts, since its start.
        clock: Unix seconds.
        answer_timeout_s: for the ledger.
    """

    def __init__(
        self, store: Store, registry: CollectorRegistry, *, clock: Callable[[], float], answer_timeout_s: float
    ) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._answer_timeout_s = answer_timeout_s
        self._id = uuid.uuid4().hex
        self._pid = os.getpid()
        self._day = -1
        self._before: Counts = {}
        self._left: Counts = {}

    async def tend(self) -> None:
        """Leave this worker's sums in the ledger, where they have changed. Raises StoreError and TimeoutError."""
        mine = self._mine()
        if mine == self._left:
            return
        largest = sorted(mine.items(), key=lambda pair: -pair[1])[:MAX_LINES]
        value = _encode([(n, what) for what, n in largest])
        until_s = float((self._day + 1) * DAY_S)
        await bounded(self._store.put_item(_KIND, self._name, value, until_s=until_s), self._answer_timeout_s)
        self._left = mine

    async def read(self) -> Turned:
        """Today's sums. Raises StoreError."""
        total = Counter(self._mine())
        for item in await self._store.items(_KIND):
            if item.name != self._name:
                total.update({tuple(what): n for n, what in _decode(item.value)})
        sums = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))
        return Turned(
            by_reason=tuple(sorted((what[0], n) for what, n in sums if len(what) == 1)),
            by_models=tuple((what[0], what[1], n) for what, n in sums if len(what) == 2),
        )

    @property
    def _name(self) -> str:
        return f"{self._id}-{self._pid}"  # a worker that was forked off counts for itself

    def _mine(self) -> Counts:
        """This process's sums of today."""
        day, counted = int(self._clock() // DAY_S), _counted(self._registry)
        if os.getpid() != self._pid:
            # Forked off: what was counted until then is for the one that counted it.
            self._pid, self._day, self._before, self._left = os.getpid(), day, counted, {}
        elif day != self._day:
            # What it counted before its first look was today as well: workers look as soon as they begin.
            self._before = counted if self._day >= 0 else {}
            self._day, self._left = day, {}
        today = {what: n - self._before.get(what, 0) for what, n in counted.items()}
        return {what: n for what, n in today.items() if n > 0}


def _counted(registry: CollectorRegistry) -> Counts:
    """Refusals and fallbacks by this process's own counters."""
    sums: Counter[tuple[str, ...]] = Counter()
    for metric in registry.restricted_registry(_COUNTERS).collect():
        for sample in metric.samples:
            if (labels := _COUNTERS.get(sample.name)) is not None:
                sums[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    return sums
