"""Prometheus metrics with bounded labels.

Beyond `max_series` of a metric, further label sets fold into `other`. What a call adds is summed up in plain numbers
and handed to the client library when it is scraped, or every few seconds, because a call should not pay for a dozen
locked counters. Budget gauges are read from the store at scrape time, so every worker gives the same answer.
"""

from __future__ import annotations

import hmac
import os
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from .currency import NANO
from .errors import StoreError
from .gauges import LedgerGauges, label

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .calls import Call
    from .records import UsageRecord
    from .stores.base import Settled
    from .tracker import CostTracker

OTHER = "other"
_OPEN = frozenset(("model", "tenant_id", "requested_model", "served_model", "path_class"))
"""Labels whose values others choose."""
OVERHEAD_BUCKETS = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0)


class _Bounded:
    """A counter's children by label values. Beyond `limit` of them, what clients and providers name becomes `other`;
    labels with few values of our own stay.
    """

    def __init__(self, metric: Counter, labels: Sequence[str], limit: int, folded: Counter) -> None:
        self._metric = metric
        self._is_open = [name in _OPEN for name in labels]
        self._limit = limit
        self._folded = folded
        self._children: dict[tuple[str, ...], Counter] = {}

    def __call__(self, *values: str) -> Counter:
        child = self._children.get(values)
        if child is None:
            if len(self._children) >= self._limit:
                self._folded.inc()
                values = tuple(OTHER if open_ else v for v, open_ in zip(values, self._is_open, strict=True))
                child = self._children.get(values)
            if child is None:
                child = self._children[values] = self._metric.labels(*map(label, values))
        return child


class _Durations:
    """Observations of one histogram child, summed up until `flush`."""

    def __init__(self, histogram: Histogram, phase: str) -> None:
        self._child = histogram.labels(phase)
        self._counts = [0] * (len(OVERHEAD_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(OVERHEAD_BUCKETS, seconds)] += 1
        self._sum += seconds

    def flush(self) -> None:
        """The client library observes one value at a time only; its buckets take sums just as well."""
        counts, total = self._counts, self._sum
        self._counts, self._sum = [0] * len(counts), 0.0
        for bucket, count in zip(self._child._buckets, counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        if total:
            self._child._sum.inc(total)  # noqa: SLF001


class Metrics:
    """The counters of one tracker, in a registry of its own."""

    def __init__(self, *, max_series: int = 1000) -> None:
        self.registry = CollectorRegistry()
        self._max_series = max_series
        self._folded = Counter(
            "askii_series_folded", "Label sets that were folded into 'other'", registry=self.registry
        )
        self._tokens = self._counter("llm_tokens", "Tokens processed", "model", "direction", "tenant_id")
        self._cost = self._counter("llm_cost_usd", "Cost in USD", "model", "tenant_id")
        self._coins = self._counter("llm_cost_askii_coins", "Cost in Askii Coins", "model", "tenant_id")
        self._requests = self._counter("askii_requests", "Calls by their end", "outcome", "api")
        self._refusals = self._counter("askii_refusals", "Refused calls", "scope_kind", "reason")
        self._fallbacks = self._counter(
            "askii_fallbacks", "Calls moved to another model", "requested_model", "served_model", "reason"
        )
        self._sink_events = self._counter("askii_sink_events", "Records by sink and result", "sink", "result")
        self._alerts = self._counter("askii_alerts", "Alerts by channel and result", "channel", "result")
        self._lago_webhooks = self._counter("askii_lago_webhooks", "Webhooks of Lago by result", "type", "result")
        self._store_errors = self._counter("askii_store_errors", "Operations the store failed", "operation")
        self._unmetered = self._counter("askii_unmetered", "Requests that passed unmetered", "path_class")
        self._bypasses = self._counter(
            "askii_bypasses", "Unmetered requests whose answers report token usage", "path_class"
        )
        self._flags = self._counter(
            "askii_flagged_calls", "Calls that are estimated, anomalous, late, unpriced or mismatched", "flag"
        )
        self._shadowed = self._counter("askii_shadow", "Calls in shadow that would have gone otherwise", "outcome")
        self._clamped = Counter(
            "askii_clamped_calls", "Calls whose output limit was lowered to fit a budget", registry=self.registry
        )
        self._late_identity = Counter(
            "askii_late_identity", "Calls whose tenant appeared only after the application ran", registry=self.registry
        )
        self._invalid_rates = Counter(
            "askii_invalid_exchange_rate", "Invalid values of the exchange rate seen", registry=self.registry
        )
        self._lost_leases = Counter(
            "askii_lost_leases", "Times this worker's own heartbeat had run out", registry=self.registry
        )
        overhead = Histogram(
            "askii_overhead_seconds",
            "Time spent on a call besides the application",
            ("phase",),
            buckets=OVERHEAD_BUCKETS,
            registry=self.registry,
        )
        self._admit_seconds = _Durations(overhead, "admit")
        self._settle_seconds = _Durations(overhead, "settle")
        self._calls: dict[tuple[str, str, str, str], list[float]] = {}
        """By model, tenant, outcome and API: calls, input and output tokens, USD and coins since the last flush."""
        self.gauges = LedgerGauges(max_series=max_series)
        self.registry.register(self.gauges)

    def _counter(self, name: str, text: str, *labels: str) -> _Bounded:
        counter = Counter(name, text, labels, registry=self.registry)
        return _Bounded(counter, labels, self._max_series, self._folded)

    # What the tracker and the middleware report --------------------------------------------------------------------

    def admitted(self, call: Call, seconds: float) -> None:
        self._admit_seconds.observe(seconds)
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
        key = (record.served_model, record.tenant, record.outcome, record.api)
        sums = self._calls.get(key)
        if sums is None:
            if len(self._calls) >= self._max_series:
                self.flush()
            sums = self._calls[key] = [0, 0, 0, 0.0, 0.0]
        cost = record.cost_nano_usd
        sums[0] += 1
        sums[1] += record.usage.input_tokens
        sums[2] += record.usage.output_tokens
        sums[3] += cost / NANO
        sums[4] += cost * record.exchange_rate / NANO
        if record.estimated:
            self._flags("estimated").inc()
        if record.anomalous:
            self._flags("anomalous").inc()
        if record.unpriced:
            self._flags("unpriced").inc()
        if settled is not None and settled.late:
            self._flags("late").inc()
        self._settle_seconds.observe(seconds)

    def flush(self) -> None:
        """Hand what was summed up to the client library."""
        calls, self._calls = self._calls, {}
        for (model, tenant, outcome, api), (count, entering, leaving, usd, coins) in calls.items():
            if entering:
                self._tokens(model, "input", tenant).inc(entering)
            if leaving:
                self._tokens(model, "output", tenant).inc(leaving)
            self._cost(model, tenant).inc(usd)
            self._coins(model, tenant).inc(coins)
            self._requests(outcome, api).inc(count)
        self._admit_seconds.flush()
        self._settle_seconds.flush()

    def released(self, api: str) -> None:
        self._requests("released", api).inc()

    def refused(self, scope_kind: str, reason: str) -> None:
        self._refusals(scope_kind, reason).inc()

    def fell_back(self, requested: str, served: str, reason: str) -> None:
        self._fallbacks(requested, served, reason).inc()

    def sink_events(self, sink: str, result: str, count: int) -> None:
        self._sink_events(sink, result).inc(count)

    def alerts(self, channel: str, result: str, count: int) -> None:
        self._alerts(channel, result).inc(count)

    def lago_webhook(self, type_: str, result: str) -> None:
        self._lago_webhooks(type_, result).inc()

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

    # Scrape ---------------------------------------------------------------------------------------------------------

    async def refresh(self, tracker: CostTracker) -> None:
        """Read the gauges from the ledger; where that is away there are none, which is counted."""
        try:
            await tracker.ready()
            await self.gauges.read(tracker)
        except StoreError:
            self.gauges.forget()
            self.store_error("scrape")

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type."""
        self.flush()
        encoder, content_type = choose_encoder(accept)
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self.gauges)
        return encoder(registry), content_type


def metrics_app(tracker: CostTracker, *, token: str | None = None) -> ASGIApp:
    """Serve the metrics. With `token`, only to `Authorization: Bearer <token>`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        del receive
        headers = {name.lower(): value for name, value in scope["headers"]}
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if token and not (scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token.encode())):
            await _answer(send, 401, b"a token is needed\n", "text/plain; charset=utf-8")
            return
        # The counters are worth having all the more when the ledger is away.
        await tracker.metrics.refresh(tracker)
        body, content_type = tracker.metrics.render(headers.get(b"accept", b"").decode("latin-1"))
        await _answer(send, 200, body, content_type)

    return app


async def _answer(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
