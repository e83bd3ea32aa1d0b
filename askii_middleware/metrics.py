"""What a tracker counts, under the names of docs/metrics.md.

What a call adds is summed up in plain numbers and handed to the client library when it is scraped, or every few
seconds, because a call should not pay for a dozen locked counters.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Exemplar

from .currency import NANO
from .errors import StoreError
from .exposition import OPEN_METRICS, PLAIN, families, open_metrics_text, plain_text, wants_open_metrics
from .gauges import LedgerGauges
from .metric_series import LABELS, Children, Counter, Folding, Histogram, Series
from .metric_workers import SharedSeries, WorkersMetrics, directory

if TYPE_CHECKING:
    from .calls import Call
    from .records import UsageRecord
    from .stores.base import Settled
    from .tracker import CostTracker

OVERHEAD_BUCKETS = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0)
MAX_EXEMPLAR_CHARS = 100
"""OpenMetrics allows 128 for name and value; a longer id, which is its caller's, is left out."""
_Key = tuple[tuple[str, ...], str, str]
"""Model and tenant as they are shown, outcome, and API."""
HAND_OVER_S = 1.0
"""With several workers: until their files have what was counted, for whichever of them is scraped."""
LEDGER_S = 5.0
"""How long a scrape waits for the ledger: scrapers give up after 10 s, and then nothing is known, not even that."""


class _Durations:
    """Observations of one histogram child, summed up until `flush`, with the last call of each bucket."""

    def __init__(self, histogram: Histogram, phase: str) -> None:
        self._child = histogram.labels(phase)
        self.forget()

    def forget(self) -> None:
        self._counts = [0] * (len(OVERHEAD_BUCKETS) + 1)
        self._calls: list[tuple[str, float] | None] = [None] * len(self._counts)
        self._sum = 0.0

    def observe(self, seconds: float, call_id: str) -> None:
        place = bisect_left(OVERHEAD_BUCKETS, seconds)
        self._counts[place] += 1
        self._calls[place] = call_id, seconds
        self._sum += seconds

    def flush(self) -> None:
        """The client library observes one value at a time only; its buckets take sums just as well."""
        counts, calls, total = self._counts, self._calls, self._sum
        self.forget()
        for bucket, count, last in zip(self._child._buckets, counts, calls, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
            if last is not None:
                bucket.set_exemplar(_exemplar(*last))
        if total:
            self._child._sum.inc(total)  # noqa: SLF001


def _exemplar(call_id: str, value: float) -> Exemplar | None:
    return Exemplar({"call_id": call_id}, value, time.time()) if len(call_id) <= MAX_EXEMPLAR_CHARS else None


class Metrics:
    """The counters of one tracker, in a registry of its own.

    Args:
        max_series: label sets of each metric whose values others choose.
        labels: which of these labels are shown: `tenant_id`, `model`. The others are `other` always.
    """

    def __init__(self, *, max_series: int = 1000, labels: Sequence[str] = LABELS) -> None:
        self.registry = CollectorRegistry()
        self._directory = directory()
        series = Series() if self._directory is None else SharedSeries(self._directory)
        self._counters: list[Counter] = []

        def counter(name: str, text: str, *names: str) -> Counter:
            made = Counter(name, text, names, registry=self.registry)
            self._counters.append(made)
            return made

        folded = counter("askii_series_folded", "Label sets folded into 'other'", "metric")
        folding = partial(
            Folding,
            limit=max_series,
            shown=labels,
            admits=series.admits,
            folded=lambda metric: folded.labels(metric).inc(),
        )

        def bounded(name: str, text: str, *names: str) -> Children:
            return Children(counter(name, text, *names), folding(name, names))

        def placed(name: str, text: str, *names: str) -> Children:
            return Children(counter(name, text, *names))

        self._max_series = max_series
        self._place = folding("llm", ("model", "tenant_id"))
        """Calls are placed once, for all three metrics."""
        self._tokens = placed("llm_tokens", "Tokens processed", "model", "direction", "tenant_id")
        self._cost = placed("llm_cost_usd", "Cost in USD", "model", "tenant_id")
        self._coins = placed("llm_cost_askii_coins", "Cost in Askii Coins", "model", "tenant_id")
        self._requests = bounded("askii_requests", "Calls by their end", "outcome", "api")
        self._refusals = bounded("askii_refusals", "Refused calls", "scope_kind", "reason")
        self._fallbacks = bounded(
            "askii_fallbacks", "Calls moved to another model", "requested_model", "served_model", "reason"
        )
        self._clamped = counter("askii_clamped_calls", "Calls whose output limit was lowered to fit a budget")
        self._cut = bounded("askii_cut_streams", "Calls that were ended on the way for want of room", "api")
        self._shadowed = bounded("askii_shadow", "Calls in shadow that would have gone otherwise", "outcome")
        self._flags = bounded(
            "askii_flagged_calls", "Calls that are estimated, anomalous, late, unpriced or mismatched", "flag"
        )
        self._unknown_prices = bounded("askii_unknown_prices", "Calls to models without a price", "action")
        self._deferred = bounded("askii_deferred_calls", "Calls that go on elsewhere and are settled later", "api")
        self._adjustments = bounded("askii_adjustments", "Adjustments by hand or repricing", "direction")
        self._adjusted_usd = bounded("askii_adjustments_usd", "Adjusted amounts in USD", "direction")
        self._sink_events = bounded("askii_sink_events", "Records by sink and result", "sink", "result")
        self._alerts = bounded("askii_alerts", "Alerts by channel and result", "channel", "result")
        self._webhooks = bounded("askii_webhooks", "Received webhooks by result", "type", "result")
        self._store_errors = bounded("askii_store_errors", "Operations the store failed", "operation")
        self._unmetered = bounded("askii_unmetered", "Requests that passed unmetered", "path_class")
        self._bypasses = bounded("askii_bypasses", "Unmetered requests whose answers report token usage", "path_class")
        self._late_identity = counter("askii_late_identity", "Calls whose tenant appeared after the application ran")
        self._invalid_rates = counter("askii_invalid_exchange_rate", "Invalid values of the exchange rate seen")
        self._lost_leases = counter("askii_lost_leases", "Times this worker's own heartbeat had run out")
        self._lost_holds = counter("askii_lost_holds", "Calls of dead workers, whose end nobody saw")
        self._lost = 0
        self._overhead = Histogram(
            "askii_overhead_seconds",
            "Time spent on a call besides the application",
            ("phase",),
            buckets=OVERHEAD_BUCKETS,
            registry=self.registry,
        )
        self._admit_seconds = _Durations(self._overhead, "admit")
        self._settle_seconds = _Durations(self._overhead, "settle")
        self._calls: dict[_Key, list[float]] = {}
        """Since the last flush: calls, input and output tokens, USD, coins, and the cost of the dearest call."""
        self._dearest: dict[_Key, str] = {}
        self.gauges = LedgerGauges(
            max_series=max_series, show_tenants="tenant_id" in labels, show_models="model" in labels
        )
        self._workers = None if self._directory is None else WorkersMetrics(self._directory)
        _all.add(self)

    def forget(self) -> None:
        """Drop what was not handed over: in a forked process, because that is for the one that counted it to do."""
        self._calls, self._dearest = {}, {}
        self._admit_seconds.forget()
        self._settle_seconds.forget()

    # What the tracker and the middleware report --------------------------------------------------------------------

    def admitted(self, call: Call, seconds: float) -> None:
        self._admit_seconds.observe(seconds, call.id)
        if call.fallback_reason is not None:
            self.fell_back(call.spec.model, call.model, call.fallback_reason)
        if call.clamped:
            self._clamped.inc()
        if call.shadow is not None:
            self._shadowed(call.shadow.partition(":")[0]).inc()

    def settled(self, record: UsageRecord, settled: Settled | None, seconds: float) -> None:
        """Count a finished call; also one whose charge waits in the journal (`settled` None)."""
        if settled is not None and settled.duplicate:
            return
        cost = record.cost_nano_usd
        if record.kind == "adjustment":
            self.adjusted(cost)
            return
        key = self._place((record.served_model, record.tenant)), record.outcome, record.api
        sums = self._calls.get(key)
        if sums is None:
            sums = self._new_sums(key)
        sums[0] += 1
        sums[1] += record.usage.input_tokens
        sums[2] += record.usage.output_tokens
        sums[3] += cost / NANO
        sums[4] += cost * record.exchange_rate / NANO
        if cost >= sums[5]:
            sums[5] = cost
            self._dearest[key] = record.call_id
        if record.estimated or record.anomalous or record.unpriced or (settled is not None and settled.late):
            self._flag(record, late=settled is not None and settled.late)
        if record.outcome == "cut":
            self._cut(record.api).inc()
        self._settle_seconds.observe(seconds, record.call_id)

    def _new_sums(self, key: _Key) -> list[float]:
        if len(self._calls) >= self._max_series:
            self.flush()
        if not self._calls and self._directory is not None:
            self._hand_over_soon()
        sums = self._calls[key] = [0, 0, 0, 0.0, 0.0, 0]
        return sums

    def _hand_over_soon(self) -> None:
        try:
            asyncio.get_running_loop().call_later(HAND_OVER_S, self.flush)
        except RuntimeError:  # a caller without an event loop flushes for itself
            return

    def _flag(self, record: UsageRecord, *, late: bool) -> None:
        if record.estimated:
            self._flags("estimated").inc()
        if record.anomalous:
            self._flags("anomalous").inc()
        if record.unpriced:
            self._flags("unpriced").inc()
            self.unknown_price("default" if record.cost_nano_usd else "allow")
        if late:
            self._flags("late").inc()

    def flush(self) -> None:
        """Hand what was summed up to the client library."""
        calls, self._calls = self._calls, {}
        dearest, self._dearest = self._dearest, {}
        for key, (count, entering, leaving, usd, coins, cost) in calls.items():
            (model, tenant), outcome, api = key
            if entering:
                self._tokens(model, "input", tenant).inc(entering)
            if leaving:
                self._tokens(model, "output", tenant).inc(leaving)
            charged = self._cost(model, tenant)
            charged.inc(usd)
            charged._value.set_exemplar(_exemplar(dearest[key], cost / NANO))  # noqa: SLF001 - of one call, not the sum
            self._coins(model, tenant).inc(coins)
            self._requests(outcome, api).inc(count)
        self._admit_seconds.flush()
        self._settle_seconds.flush()

    def released(self, api: str) -> None:
        self._requests("released", api).inc()

    def deferred(self, api: str) -> None:
        self._deferred(api).inc()

    def adjusted(self, nano_usd: int) -> None:
        direction = "up" if nano_usd >= 0 else "down"
        self._adjustments(direction).inc()
        self._adjusted_usd(direction).inc(abs(nano_usd) / NANO)

    def refused(self, scope_kind: str, reason: str) -> None:
        self._refusals(scope_kind, reason).inc()

    def unknown_price(self, action: str) -> None:
        self._unknown_prices(action).inc()

    def fell_back(self, requested: str, served: str, reason: str) -> None:
        self._fallbacks(requested, served, reason).inc()

    def sink_events(self, sink: str, result: str, count: int) -> None:
        self._sink_events(sink, result).inc(count)

    def alerts(self, channel: str, result: str, count: int) -> None:
        self._alerts(channel, result).inc(count)

    def lago_webhook(self, type_: str, result: str) -> None:
        self._webhooks(type_, result).inc()

    def store_error(self, operation: str) -> None:
        self._store_errors(operation).inc()

    def unmetered(self, path_class: str) -> None:
        self._unmetered(path_class).inc()

    def bypassed(self, path_class: str) -> None:
        self._bypasses(path_class).inc()

    def late_identity(self) -> None:
        self._late_identity.inc()

    def model_mismatch(self) -> None:
        self._flags("model_mismatch").inc()

    def invalid_rate(self) -> None:
        self._invalid_rates.inc()

    def lost_lease(self) -> None:
        self._lost_leases.inc()

    def lost_holds(self, total: int) -> None:
        """`total`: how many this process has found until now."""
        self._lost_holds.inc(total - self._lost)
        self._lost = total

    # Scrape ---------------------------------------------------------------------------------------------------------

    async def refresh(self, tracker: CostTracker) -> None:
        """Read the gauges; where the ledger is away, or takes longer than `LEDGER_S`, there are none of its own, which
        is counted.
        """
        try:
            async with asyncio.timeout(LEDGER_S):
                await tracker.ready()
                await self.gauges.read(tracker)
        except (StoreError, TimeoutError):
            self.store_error("scrape")
            await self.gauges.read(tracker, ledger=False)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type."""
        self.flush()
        return self.encoded(accept)

    def encoded(self, accept: str) -> tuple[bytes, str]:
        """As of the last `flush`: takes long, and may run in any thread."""
        if self._workers is not None:
            counted = self._workers.families()
        else:
            counted = [*(counter.family() for counter in self._counters), *families(self._overhead.collect())]
        found = [*counted, *self.gauges.found]
        if wants_open_metrics(accept):
            return open_metrics_text(found), OPEN_METRICS
        return plain_text(found), PLAIN


_all: WeakSet[Metrics] = WeakSet()


def _forked() -> None:
    for metrics in _all:
        metrics.forget()


os.register_at_fork(after_in_child=_forked)
