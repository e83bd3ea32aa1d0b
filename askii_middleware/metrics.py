"""Prometheus metrics with bounded labels.

Beyond `max_series` of a metric, further label sets fold into `other`. What a call adds is summed up in plain numbers
and handed to the client library when it is scraped, or every few seconds, because a call should not pay for a dozen
locked counters. Budget gauges are read from the store at scrape time, so every worker gives the same answer.
"""

from __future__ import annotations

import hmac
import os
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from .budgets import window
from .currency import NANO
from .errors import StoreError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .records import UsageRecord
    from .stores.base import Settled
    from .tracker import CostTracker

OTHER = "other"
MAX_LABEL_CHARS = 128
OVERHEAD_BUCKETS = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0)


class _Bounded:
    """A metric's children by label values, at most `limit` of them."""

    def __init__(self, metric: Counter | Gauge, limit: int, folded: Counter) -> None:
        self._metric = metric
        self._limit = limit
        self._folded = folded
        self._children: dict[tuple[str, ...], Any] = {}

    def __call__(self, *values: str) -> Any:
        child = self._children.get(values)
        if child is None:
            if len(self._children) < self._limit:
                child = self._children[values] = self._metric.labels(*(_label(value) for value in values))
            else:
                self._folded.inc()
                folded = tuple(OTHER for _ in values)
                child = self._children.get(folded)
                if child is None:
                    child = self._children[folded] = self._metric.labels(*folded)
        return child

    def clear(self) -> None:
        self._children.clear()
        self._metric.clear()


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


def _label(value: str) -> str:
    """Text that the exposition can hold: a lone surrogate in one label would make the whole of it unreadable."""
    return value[:MAX_LABEL_CHARS].encode(errors="replace").decode()


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
        self._store_errors = self._counter("askii_store_errors", "Operations the store failed", "operation")
        self._unmetered = self._counter("askii_unmetered", "Requests that passed unmetered", "path_class")
        self._flags = self._counter(
            "askii_flagged_calls", "Calls that are estimated, anomalous, late, unpriced or mismatched", "flag"
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
        self._tenant_gauges = {
            name: self._gauge(name, text, "tenant_id")
            for name, text in (
                ("budget_remaining_usd", "What is left of a tenant's tightest budget, in USD"),
                ("budget_limit_usd", "The limit of a tenant's tightest budget, in USD"),
                ("budget_remaining_askii_coins", "What is left of a tenant's tightest budget, in Askii Coins"),
                ("budget_daily_reset_time", "When a tenant's tightest budget resets, Unix seconds"),
            )
        }
        self._scope_limit = self._gauge("askii_budget_limit_usd", "Limit in USD", "scope", "period")
        self._scope_left = self._gauge("askii_budget_remaining_usd", "What is left in USD", "scope", "period")
        self._outbox = self._gauge("askii_outbox_pending", "Records that wait for a sink", "sink")

    def _counter(self, name: str, text: str, *labels: str) -> _Bounded:
        return _Bounded(Counter(name, text, labels, registry=self.registry), self._max_series, self._folded)

    def _gauge(self, name: str, text: str, *labels: str) -> _Bounded:
        gauge = Gauge(name, text, labels, registry=self.registry, multiprocess_mode="mostrecent")
        return _Bounded(gauge, self._max_series, self._folded)

    # What the tracker and the middleware report --------------------------------------------------------------------

    def admitted(self, seconds: float) -> None:
        self._admit_seconds.observe(seconds)

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
        usd = record.cost_nano_usd / NANO
        sums[0] += 1
        sums[1] += record.usage.input_tokens
        sums[2] += record.usage.output_tokens
        sums[3] += usd
        sums[4] += usd * record.exchange_rate
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

    def store_error(self, operation: str) -> None:
        self._store_errors(operation).inc()

    def unmetered(self, path_class: str) -> None:
        self._unmetered(path_class).inc()

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
        """Read the budget gauges from the store: tenants with spend today or a budget of their own, the busiest
        first, at most `max_series`.
        """
        now_s = tracker.clock()
        today = window("daily", "UTC", now_s)
        tenants = {tenant for tenant, _ in await tracker.store.tenant_spend("daily", today, self._max_series)}
        own = [*tracker.index.declared.values(), *await tracker.store.budgets()]
        for budget in own:
            tenant = getattr(budget.scope, "tenant", None)
            if tenant not in (None, "*") and len(tenants) < self._max_series:
                tenants.add(tenant)
        windows, rate = tracker.index.windows(now_s), tracker.rates.current()
        for gauge in (*self._tenant_gauges.values(), self._scope_limit, self._scope_left, self._outbox):
            gauge.clear()
        for tenant in tenants:
            states = await tracker.store.status(tracker.index.matches({"tenant": tenant}), windows, rate.ratio)
            limited = [(s.remaining_nano_usd, s.limit_nano_usd, s) for s in states]
            bound = [(left, limit, s) for left, limit, s in limited if left is not None and limit is not None]
            for left, limit, state in bound:
                self._scope_limit(state.scope, state.period).set(limit / NANO)
                self._scope_left(state.scope, state.period).set(left / NANO)
            if bound:
                left, limit, state = min(bound, key=lambda item: item[0])
                self._tenant_gauges["budget_remaining_usd"](tenant).set(left / NANO)
                self._tenant_gauges["budget_limit_usd"](tenant).set(limit / NANO)
                self._tenant_gauges["budget_remaining_askii_coins"](tenant).set(left / NANO * rate.value)
                self._tenant_gauges["budget_daily_reset_time"](tenant).set(state.resets_at_s)
        for sink, count in (await tracker.store.pending()).items():
            self._outbox(sink).set(count)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type."""
        self.flush()
        encoder, content_type = choose_encoder(accept)
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return encoder(registry), content_type


def metrics_app(tracker: CostTracker, *, token: str | None = None) -> ASGIApp:
    """Serve the metrics. With `token`, only to `Authorization: Bearer <token>`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        del receive
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        expected = f"Bearer {token}".encode() if token else None
        if expected and not hmac.compare_digest(headers.get(b"authorization", "").encode(), expected):
            await _answer(send, 401, b"a token is needed\n", "text/plain; charset=utf-8")
            return
        try:
            await tracker.ready()
            await tracker.metrics.refresh(tracker)
        except StoreError:
            # The counters are worth having all the more when the store is away.
            tracker.metrics.store_error("scrape")
        body, content_type = tracker.metrics.render(headers.get(b"accept", ""))
        await _answer(send, 200, body, content_type)

    return app


async def _answer(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
