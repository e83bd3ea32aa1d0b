"""`CostTracker`: one ledger for requests through the middleware and calls made in code.

It prices and admits a call, and when the call has ended it turns what is known of its end into one settlement. Where
the money is decided stands in `admission` (may it run?), `settling` (what did it cost?) and `pricing`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from .admission import Admission
from .admitting import DEFAULT_PRICE, Admitter, Option, exceeded
from .block import TrackedBlock
from .budgets import Budget, BudgetIndex
from .calls import Call, CallSpec, RequestContext, current_request, new_call_id
from .concluding import Concluder
from .currency import RateSource
from .delivery import DeliveryLoop
from .enforcer import BudgetEnforcer, CostCalculator
from .errors import ConfigurationError, StoreError, UnknownModelError
from .fallbacks import Fallbacks
from .identity import Identity
from .journal import Journal
from .metrics import Metrics
from .pricing import ModelPrice, Price, PriceBook, PricingConfig
from .records import UsageRecord
from .reports import Reports
from .session import Session, worker_name
from .settling import Billed, Conclusion, Verdict, build
from .stores import open_store
from .stores.base import Store
from .usage import TokenUsage
from .writer import LedgerWriter

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .settings import Settings
    from .sinks.base import Sink

logger = logging.getLogger(__name__)

DEFAULT_STORE = "sqlite:///askii.db"


class CostTracker(Reports):
    """Budgets, metering and billing for one process.

    Args:
        pricing: prices in the guides' shape, USD per 1,000 tokens.
        store: where the ledger lives: a URL (`memory://`, `sqlite:///path`) or a `Store`.
        sinks: receivers of usage records.
        fallbacks: requested model to cheaper models in order; `"*"` for every other text model.
        budgets: declared budgets; those set at run time live in the store and win.
        prices: exact prices by model name, in USD per million tokens.
        aliases: other names of models.
        unknown_price: what happens to a model without a price: `reject`, `default` (at `default_price`), `allow`.
        enforcement: `enforce`, or `off` (everything is recorded and charged, nothing is held or refused).
        default_max_output_tokens: the output bound where neither the request nor the model sets one; it is then
            written into the request.
        remote_input_tokens: the bound for a prompt that is not in the request; None: the model's context window.
        hold_ttl_s: how long holds outlive the last heartbeat of their worker.
        max_call_s: how long a hold may live in all.
        settle_timeout_s: how long a charge waits for the store before it goes to the journal.
        on_store_error: while the store is away, `deny` calls or `allow` them unheld; both are charged.
        journal_path: prefix of the files where charges wait for the store; None: beside the SQLite file, or none.
        outbox_max_pending: beyond so many undelivered records, new calls are refused.
        subscription_of: the external subscription of an identity: a callable or a table by tenant; default: tenant.
        clock: Unix seconds.
    """

    def __init__(
        self,
        pricing: PricingConfig | None = None,
        *,
        store: str | Store = DEFAULT_STORE,
        sinks: Sequence[Sink] = (),
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        budgets: Iterable[Budget] = (),
        prices: Mapping[str, ModelPrice] | None = None,
        aliases: Mapping[str, str] | None = None,
        unknown_price: Literal["reject", "default", "allow"] = "reject",
        default_price: ModelPrice | None = None,
        enforcement: Literal["enforce", "off"] = "enforce",
        default_max_output_tokens: int = 16_384,
        remote_input_tokens: int | None = None,
        hold_ttl_s: float = 60.0,
        max_call_s: float = 3600.0,
        settle_timeout_s: float = 5.0,
        on_store_error: Literal["deny", "allow"] = "deny",
        journal_path: str | None = None,
        journal_max_bytes: int = 64 << 20,
        outbox_max_pending: int = 1_000_000,
        block_grace_s: float = 60.0,
        max_series: int = 1000,
        subscription_of: Callable[[Identity], str | None] | Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store: Store = open_store(store, clock=clock) if isinstance(store, str) else store
        self.sinks = tuple(sinks)
        names = [sink.name for sink in self.sinks]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"sinks need different names, got {', '.join(names)}")
        if unknown_price == "default" and default_price is None:
            raise ConfigurationError('unknown_price = "default" needs default_price')
        prices = {**(prices or {})}
        if default_price is not None:
            prices[DEFAULT_PRICE] = default_price
        self.prices = PriceBook(pricing, prices=prices, aliases=aliases or {}, clock=clock)
        self.unknown_price = unknown_price
        self.enforcement = enforcement
        self.index = BudgetIndex(budgets)
        self.metrics = Metrics(max_series=max_series)
        self.rates = RateSource(on_invalid=lambda _message: self.metrics.invalid_rate())
        self.fallbacks = Fallbacks(fallbacks or {}, self.prices)
        self.budget_enforcer = BudgetEnforcer(self)
        self.cost_calculator = CostCalculator(self)
        self.block_grace_s = block_grace_s
        self.clock = clock
        self._allow_unheld = on_store_error == "allow"
        self._subscription_of = subscription_of
        journal_path = journal_path or _journal_beside(self.store.url)
        journal = Journal(journal_path, max_bytes=journal_max_bytes) if journal_path else None
        self._admitter = Admitter(
            self.store,
            self.prices,
            self.index,
            self.fallbacks,
            unknown_price=unknown_price,
            default_max_output_tokens=default_max_output_tokens,
            remote_input_tokens=remote_input_tokens,
            max_call_s=max_call_s,
            clock=clock,
        )
        self.concluder = Concluder(self.prices, self.price_of)
        self._writer = LedgerWriter(
            self.store, journal, settle_timeout_s=settle_timeout_s, on_store_error=self.metrics.store_error
        )
        self._delivery = DeliveryLoop(
            self.store, self.sinks, clock=clock, owner=worker_name(), on_result=self.metrics.sink_events
        )
        for sink in self.sinks:
            bind = getattr(sink, "bind", None)
            if bind is not None:
                bind(self.record_external)
        self._session = Session(
            self.store,
            self.index,
            self._writer,
            self._delivery,
            self.metrics,
            sinks=names,
            hold_ttl_s=hold_ttl_s,
            outbox_max_pending=outbox_max_pending,
        )
        self._graces: set[asyncio.Task[None]] = set()

    @classmethod
    def from_settings(cls, settings: Settings) -> CostTracker:
        """A tracker as the configuration describes it. Raises ConfigurationError."""
        from .assembly import tracker_from_settings  # noqa: PLC0415 - the only place that knows every sink

        return tracker_from_settings(settings)

    # Life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, strict: bool = True) -> None:
        """Open the ledger and start heartbeat and delivery. Counted: as many `stop`s as `start`s end it.

        Without `strict` an unreachable store is no error: it is tried again at every call and every heartbeat.
        """
        await self._session.start(strict=strict)

    async def stop(self, *, flush_s: float = 5.0) -> None:
        """Flush what can be delivered within `flush_s` and close. What is left stays in the outbox."""
        if not await self._session.leave():
            return
        for grace in list(self._graces):
            grace.cancel()
        if self._graces:
            await asyncio.wait(self._graces, timeout=flush_s)
        await self._session.stop(flush_s)
        for sink in self.sinks:
            await sink.close()

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Write and deliver what waits, within `timeout_s`. What is left stays where it is."""
        await self._writer.drain(timeout_s)
        await self._writer.replay()
        await self._delivery.flush(timeout_s)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that serves this tracker, while it is open."""
        return self._session.loop

    async def ready(self) -> None:
        """Open the ledger if it is not open yet. Raises StoreError."""
        await self._session.ready()

    async def ping(self) -> None:
        """Raise StoreError unless calls can be admitted and charged."""
        await self._session.can_hold()
        await self.store.ping()

    # Admission ----------------------------------------------------------------------------------------------------

    def price_of(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or the configured default; None where there is neither."""
        return self._admitter.price_of(model, provider=provider, service_tier=service_tier)

    async def admit(
        self, identity: Identity, spec: CallSpec, *, call_id: str | None = None, replaces: str | None = None
    ) -> Call:
        """Hold a call's worst cost on every budget it meets, for the first candidate model that fits.

        Raises BudgetExceededError, UnknownModelError, or StoreError where the ledger is away and
        `on_store_error` is `deny`.
        """
        started_s = time.perf_counter()
        call_id = call_id or new_call_id(self.clock())
        rate = self.rates.current()
        options = self._admitter.options(spec)
        admission: Admission | None = None
        try:
            await self._session.can_hold()
            if self.enforcement == "enforce":
                admission, candidates = await self._admitter.reserve(
                    identity, spec, options, call_id=call_id, worker=self._session.worker, rate=rate, replaces=replaces
                )
        except StoreError:
            self.metrics.store_error("reserve")
            if not self._allow_unheld:
                raise
        if admission is None:
            chosen, matches = 0, self._admitter.candidate(options[0], identity, spec).matches
        elif admission.candidate is None:
            assert admission.deciding is not None
            assert admission.reason is not None
            raise exceeded(admission.deciding, admission.reason, rate)
        else:
            chosen = admission.candidate
            matches = candidates[chosen].matches
        option = options[chosen]
        if chosen:
            self.metrics.fell_back(spec.model, option.model, "budget")
        now_s = self.clock()
        self.metrics.admitted(time.perf_counter() - started_s)
        return Call(
            id=call_id,
            spec=spec,
            identity=identity,
            model=option.model,
            price=option.price,
            held_nano_usd=option.hold_nano_usd,
            held=admission is not None,
            input_bound=option.input_bound,
            output_bound=option.output_bound,
            write_output_limit=option.write_output_limit,
            matches=matches,
            windows=self.index.windows(now_s),
            rate=rate,
            admitted_at_s=admission.admitted_at_s if admission is not None else now_s,
            started_s=started_s,
            states=admission.states if admission is not None else (),
            fallback_reason="budget" if chosen else None,
        )

    # Settlement ---------------------------------------------------------------------------------------------------

    async def close_call(self, call: Call, conclusion: Conclusion, *, status: int | None = None) -> UsageRecord | None:
        """Write the end of a call: once, whatever happens to the caller. Returns the record, None for a release."""
        if call.closed:
            return None
        call.closed = True
        verdict = conclusion.verdict
        if verdict.usage is None:
            if call.held:
                await self._writer.release(call.id)
            self.metrics.released(call.spec.api)
            return None
        started_s = time.perf_counter()
        record, settlement = build(
            call,
            conclusion.parts,
            conclusion.billed,
            subscription=self.subscription(call.identity),
            price_version=self.prices.version,
            ending_status=status,
            outcome=verdict.outcome,
            estimated=verdict.estimated,
            flagged=conclusion.flagged,
            service_tier=conclusion.service_tier,
            provider_request_id=conclusion.provider_request_id,
            duration_ms=round((started_s - call.started_s) * 1000, 1),
            provider=(conclusion.parts[0].price.provider if conclusion.parts and conclusion.parts[0].price else None)
            or call.spec.provider
            or "",
        )
        settled = await self._writer.settle(settlement)
        self.metrics.settled(record, settled, time.perf_counter() - started_s)
        if settled is not None:
            self._delivery.wake()
        return record

    def subscription(self, identity: Identity) -> str:
        """The external subscription an identity is billed to; empty where it has none."""
        mapping = self._subscription_of
        if mapping is None:
            return identity.tenant
        return (mapping(identity) if callable(mapping) else mapping.get(identity.tenant)) or ""

    # Calls in code ------------------------------------------------------------------------------------------------

    def track_tokens(
        self,
        tenant_id: str | Identity | None = None,
        model: str | None = None,
        *,
        expected_input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        provider: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        covers_request: bool = True,
        **identity: Any,
    ) -> TrackedBlock:
        """A block around one model call, as an async context manager.

        Args:
            tenant_id: who pays; inside a request that the middleware identified it may be left out.
            model: the model to ask for; the one to call is the block's `model`.
            expected_input_tokens: replaces the bound of the prompt. Without it the context window is held.
            max_output_tokens: the limit passed to the model; without it the model's own maximum is held.
            provider: whose price list applies where the model's name does not say.
            metadata: kept in the record.
            covers_request: False for side calls that are not what the request pays for.
            identity: further fields of `Identity`: `key`, `user`, `team`, `end_user`, `tags`.

        Raises BudgetExceededError on entry, UnknownModelError, StoreError.
        """
        if model is None:
            raise TypeError("track_tokens() needs a model")
        return TrackedBlock(
            self,
            tenant_id,
            model,
            expected_input_tokens=expected_input_tokens,
            max_output_tokens=max_output_tokens,
            provider=provider,
            metadata=metadata or {},
            covers_request=covers_request,
            identity=identity,
        )

    async def request_identity(self, context: RequestContext | None = None) -> Identity | None:
        """Who makes the current request, if the middleware is around it and can tell."""
        context = context or current_request.get()
        if context is None:
            return None
        if context.identity is None:
            context.identity = await context.resolve()
        return context.identity

    async def record_usage(
        self,
        tenant_id: str | Identity,
        model: str,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        usage: TokenUsage | None = None,
        call_id: str | None = None,
        provider: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> UsageRecord:
        """Charge a call that has already happened. No budget can refuse it. The same `call_id` charges once."""
        identity = tenant_id if isinstance(tenant_id, Identity) else Identity(tenant=tenant_id)
        await self.ready()
        call = self._unheld(identity, CallSpec(model=model, provider=provider, metadata=metadata or {}), call_id)
        counted = usage or TokenUsage.from_totals(input_tokens, output_tokens)
        record = await self.close_call(call, self.concluder.priced(call, [(model, counted)], Verdict(usage=counted)))
        assert record is not None
        return record

    async def record_external(self, subscription: str, coins: int, call_id: str) -> None:
        """Charge and bill a whole number of coins that was computed elsewhere, once for each `call_id`."""
        await self.ready()
        spec = CallSpec(model="external", api="external")
        call = self._unheld(Identity(tenant=subscription), spec, call_id, priced=False)
        numerator, denominator = call.rate.ratio
        nano, rest = divmod(coins * 1_000_000_000 * denominator, numerator)
        nano += 2 * rest > numerator or (2 * rest == numerator and nano % 2)
        record, settlement = build(
            call, (), Billed(nano, (), False), subscription=subscription, price_version=self.prices.version
        )
        settled = await self._writer.settle(msgspec.structs.replace(settlement, coins=coins, pico_coins=0))
        self.metrics.settled(record, settled, 0.0)
        self._delivery.wake()

    def _unheld(self, identity: Identity, spec: CallSpec, call_id: str | None, *, priced: bool = True) -> Call:
        price = self.price_of(spec.model, provider=spec.provider) if priced else None
        if priced and price is None and self.unknown_price != "allow":
            raise UnknownModelError(spec.model)
        option = Option(spec.model, price, 0, 0, None, 0)
        now_s = self.clock()
        return Call(
            id=call_id or new_call_id(now_s),
            spec=spec,
            identity=identity,
            model=spec.model,
            price=price,
            held_nano_usd=0,
            held=False,
            input_bound=0,
            output_bound=0,
            write_output_limit=None,
            matches=self.index.matches(self._admitter.dimensions(identity, spec, option)),
            windows=self.index.windows(now_s),
            rate=self.rates.current(),
            admitted_at_s=now_s,
            started_s=time.perf_counter(),
        )

    def after_block(self, work: Any) -> None:
        """Run the grace period of a block that ended without counts, in the background, until `stop`."""
        task = asyncio.get_running_loop().create_task(work)
        self._graces.add(task)
        task.add_done_callback(self._graces.discard)

    def metrics_app(self) -> ASGIApp:
        """An ASGI application that serves the metrics in the Prometheus text format."""
        from .metrics import metrics_app  # noqa: PLC0415 - starlette only where it is served

        return metrics_app(self)


def _journal_beside(url: str) -> str | None:
    """The journal's default place: beside an SQLite file. A ledger in memory needs none."""
    return url.removeprefix("sqlite:///") + ".journal" if url.startswith("sqlite:///") else None


_made: list[tuple[Settings | None, CostTracker]] = []


def get_cost_tracker(settings: Settings | None = None) -> CostTracker:
    """The process's own tracker, built from the environment and `askii.toml` at the first call; or that of
    `settings`, the same one for the same object, since frameworks build a middleware many times.
    """
    for known, tracker in _made:
        if known is settings:
            return tracker
    from .settings import load_settings  # noqa: PLC0415 - only a configured tracker reads a configuration

    tracker = CostTracker.from_settings(settings or load_settings())
    _made.append((settings, tracker))
    return tracker
