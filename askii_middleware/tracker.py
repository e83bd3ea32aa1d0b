"""`CostTracker`: one ledger for requests through the middleware and calls made in code.

It prices and admits a call, and turns what is known of its end into one settlement. Where the money is decided:
`admission` (may it run?), `settling` (what did it cost?), `pricing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from .admissions import Admissions
from .admitting import Admitter
from .block import TrackedBlock
from .budgets import Budget, BudgetIndex
from .calls import RequestContext, current_request
from .channels import default_channels
from .charging import Charging
from .checks import check_choice, check_different, check_positive
from .concluding import Concluder
from .currency import RateSource
from .deferrals import Deferrals
from .delivery import DeliveryLoop
from .enforcer import BudgetEnforcer, CostCalculator
from .errors import ConfigurationError
from .expectations import Expectations
from .explaining import Explaining
from .fallbacks import Fallbacks
from .identity import Identity
from .item_watch import ItemWatcher
from .journal import Journal, journal_beside
from .key_ring import KeyRing
from .keys import STALE_S
from .leased import LeasedStore
from .logs import EventLog
from .metering import Meters
from .metrics import Metrics
from .modes import Mode, Modes
from .names import ModelNames
from .options import DEFAULT_PRICE, ClampOutput, HoldPolicy, OptionBuilder
from .price_desk import PriceDesk
from .pricing import ModelPrice, PriceBook, PricingConfig
from .repricing import Repricing
from .retention import Retention
from .running import Running
from .session import Session
from .stores import open_store
from .stores.base import KeyRow, Store
from .tenants import Suspending, TenantBook
from .tracing import Tracing
from .turned import TurnedToday
from .usage_report import UsageReports
from .waiting import bounded
from .writer import LedgerWriter

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .api.app import CookieSecure, IdentifyTenant
    from .channels.base import AlertChannel
    from .settings import Settings
    from .sinks.base import Sink

DEFAULT_STORE = "sqlite:///askii.db"


class CostTracker(Running, Admissions, Charging, Explaining, Repricing, Suspending, UsageReports):
    """Budgets, metering and billing for one process.

    Args:
        pricing: prices in the guides' shape, USD per 1,000 tokens.
        store: where the ledger lives: a URL (`memory://`, `sqlite:///path`) or a `Store`.
        sinks: receivers of usage records.
        fallbacks: requested model to cheaper models in order; `"*"` for every other text model.
        budgets: declared budgets; those set at run time live in the store and win.
        keys: declared API keys; those made at run time live in the store and win.
        prices: exact prices by model name, in USD per million tokens.
        aliases: other names of models.
        unknown_price: what happens to a model without a price: `reject`, `default` (at `default_price`), `allow`.
        trust_provider_cost: charge what a provider says a call cost, of all providers or of those named.
        enforcement: `enforce`; `shadow` (nothing is refused or changed; records say what would have happened); `off`
            (everything is recorded and charged, nothing is held or refused).
        rollout: the share of tenants, 0 to 1, that are enforced; the others are in shadow.
        hold: `bound` (the worst cost), `metered` (streams hold as they go), `estimate` (the expected cost, which may
            overspend by its error); None: metered for streams, bound otherwise.
        clamp_output: where the hold does not fit, write a limit that does into requests that set none (`unset`), into
            all (`always`), or `never`; at least `min_output_tokens`.
        default_max_output_tokens: the output bound where neither the request nor the model sets one; it is then
            written into the request.
        file_batch_usd: what a batch holds whose items are in a file, and costs if nobody ever asks for its result.
        remote_input_tokens: the bound for a prompt that is not in the request; None: the model's context window.
        hold_ttl_s: how long holds outlive the last heartbeat of their worker.
        max_call_s: how long a hold may live in all.
        settle_timeout_s: how long a charge waits for the store before it goes to the journal, and an admission before
            the store counts as away.
        downgrade_at: above this utilisation (0 to 1) of a budget of the requested model, fallbacks are tried first.
        provider_of: whose prices a model has, for gateways that know where it is served; None: its name and its API
            decide.
        lease: admit calls here from credit drawn ahead of need, without a round trip; over shared stores only.
        lease_s: within this time budget edits take effect on calls that are admitted from credit.
        on_store_error: while the store is away, `deny` calls or `allow` them unheld; both are charged.
        journal_path: prefix of the files where charges wait for the store; None: beside the SQLite file, for a ledger
            on a server `askii-journal` in the working directory, in memory none.
        outbox_max_pending: beyond so many undelivered records, new calls are refused.
        subscription_of: the external subscription of an identity: a callable or a table by tenant; default: tenant.
        alert_channels: who hears when what is spent crosses a budget's `alert_at`; None: the log.
        traces: `auto`: OpenTelemetry's current span, where there is one, tells of the calls made in it; `off`.
        trace_tenant: whether such spans name the tenant.
        records_days: for how many days the ledger keeps delivered records, at least 8; None: for good.
        aggregates_days: for how many days it keeps the hourly sums that reports are made of; None: for good.
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
        keys: Iterable[KeyRow] = (),
        prices: Mapping[str, ModelPrice] | None = None,
        aliases: Mapping[str, str] | None = None,
        unknown_price: Literal["reject", "default", "allow"] = "reject",
        default_price: ModelPrice | None = None,
        trust_provider_cost: bool | Iterable[str] = False,
        enforcement: Mode = "enforce",
        rollout: float = 1.0,
        hold: HoldPolicy | None = None,
        clamp_output: ClampOutput = "unset",
        min_output_tokens: int = 256,
        default_max_output_tokens: int = 16_384,
        file_batch_usd: Decimal | float = 1,
        remote_input_tokens: int | None = None,
        hold_ttl_s: float = 60.0,
        max_call_s: float = 3600.0,
        settle_timeout_s: float = 5.0,
        downgrade_at: float = 1.0,
        provider_of: Callable[[str], str | None] | None = None,
        lease: bool = False,
        lease_s: float = 1.0,
        on_store_error: Literal["deny", "allow"] = "deny",
        journal_path: str | None = None,
        journal_max_bytes: int = 64 << 20,
        outbox_max_pending: int = 1_000_000,
        block_grace_s: float = 60.0,
        max_series: int = 1000,
        metrics_labels: Sequence[str] = ("tenant_id", "model"),
        subscription_of: Callable[[Identity], str | None] | Mapping[str, str] | None = None,
        alert_channels: Sequence[AlertChannel] | None = None,
        traces: Literal["auto", "off"] = "auto",
        trace_tenant: bool = True,
        records_days: int | None = None,
        aggregates_days: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_choice("unknown_price", unknown_price, "reject", "default", "allow")
        check_choice("enforcement", enforcement, "enforce", "shadow", "off")
        check_choice("clamp_output", clamp_output, "unset", "always", "never")
        if hold is not None:
            check_choice("hold", hold, "bound", "metered", "estimate")
        check_choice("on_store_error", on_store_error, "deny", "allow")
        check_choice("traces", traces, "auto", "off")
        check_positive(
            hold_ttl_s=hold_ttl_s,
            max_call_s=max_call_s,
            settle_timeout_s=settle_timeout_s,
            lease_s=lease_s,
            block_grace_s=block_grace_s,
            default_max_output_tokens=default_max_output_tokens,
            outbox_max_pending=outbox_max_pending,
            max_series=max_series,
            min_output_tokens=min_output_tokens,
        )
        if isinstance(store, str):  # engines on servers have clocks of their own
            store = open_store(store, clock=None if clock is time.time else clock, timeout_s=settle_timeout_s)
        self.store: Store = store
        if lease:
            if lease_s > hold_ttl_s / 2:
                raise ConfigurationError(f"lease_s: {lease_s:g} s is more than half of hold_ttl_s, {hold_ttl_s:g} s")
            self.store = LeasedStore(self.store, lease_s=lease_s)
        self.sinks = tuple(sinks)
        self.alert_channels = default_channels() if alert_channels is None else tuple(alert_channels)
        check_different("sinks", [sink.name for sink in self.sinks])
        check_different("alert_channels", [channel.name for channel in self.alert_channels])
        if unknown_price == "default" and default_price is None:
            raise ConfigurationError('unknown_price = "default" needs default_price')
        prices = dict(prices or {}) | ({} if default_price is None else {DEFAULT_PRICE: default_price})
        self.prices = PriceBook(pricing, prices=prices, aliases=aliases or {}, clock=clock)
        self.unknown_price = unknown_price
        self.modes = Modes(enforcement, rollout)
        self.names = ModelNames(self.prices)
        self.index = BudgetIndex(map(self.names.budget, budgets))
        self.metrics = Metrics(max_series=max_series, labels=metrics_labels)
        self.log = EventLog(clock=clock)
        self.tracing = Tracing(enabled=traces == "auto", tenant=trace_tenant)
        self.rates = RateSource(on_invalid=lambda _message: self.metrics.invalid_rate())
        self.fallbacks = Fallbacks(fallbacks or {}, self.prices)
        self.budget_enforcer = BudgetEnforcer(self)
        self.cost_calculator = CostCalculator(self)
        self.block_grace_s = block_grace_s
        self.clock = clock
        self._allow_unheld = on_store_error == "allow"
        self._subscription_of = subscription_of
        journal_path = journal_path or journal_beside(self.store.url)
        journal = Journal(journal_path, max_bytes=journal_max_bytes) if journal_path else None
        self.watcher = ItemWatcher(self.store, answer_timeout_s=settle_timeout_s)
        self.tenants = TenantBook(self.store, self.watcher, clock=clock)
        self.keys = KeyRing(
            self.store,
            keys,
            ready=self.ready,
            clock=clock,
            model_name=self.prices.canonical,
            stale_s=STALE_S if self._allow_unheld else 0.0,
        )
        self.price_desk = PriceDesk(self.store, self.watcher, self.prices, ready=self.ready)
        self.expectations = Expectations()
        self._builder = OptionBuilder(
            self.prices,
            self.fallbacks,
            unknown_price=unknown_price,
            default_max_output_tokens=default_max_output_tokens,
            file_batch_usd=file_batch_usd,
            remote_input_tokens=remote_input_tokens,
            provider_of=provider_of,
            hold=hold,
            clamp_output=clamp_output,
            min_output_tokens=min_output_tokens,
            expectations=self.expectations,
        )
        self._admitter = Admitter(
            self.store,
            self.index,
            self._builder,
            model_name=self.names.of,
            max_call_s=max_call_s,
            downgrade_at=downgrade_at,
            answer_timeout_s=settle_timeout_s,
            clock=clock,
        )
        self.meters = Meters(
            self.store,
            self.modes,
            canonical=self.prices.canonical,
            answer_timeout_s=settle_timeout_s,
            goes_on_unheld=on_store_error == "allow",
        )
        self.concluder = Concluder(self.names, self.price_of, trust_provider_cost=trust_provider_cost)
        self._writer = LedgerWriter(
            self.store,
            journal,
            settle_timeout_s=settle_timeout_s,
            on_store_error=self.metrics.store_error,
            log=self.log,
        )
        self.retention = Retention(
            self.store,
            records_days=records_days,
            aggregates_days=aggregates_days,
            clock=clock,
            answer_timeout_s=settle_timeout_s,
        )
        self.turned = TurnedToday(self.store, self.metrics.registry, clock=clock, answer_timeout_s=settle_timeout_s)
        self.deferrals = Deferrals()
        self.operations = self._new_operations(settle_timeout_s)
        for sink in self.sinks:
            if (bind := getattr(sink, "bind", None)) is not None:
                bind(self.record_external)
        self._session = Session(
            self.store,
            self.index,
            self._writer,
            self.metrics,
            sinks=self.sinks,
            channels=self.alert_channels,
            new_delivery=lambda owner: DeliveryLoop(
                self.store,
                self.sinks,
                clock=clock,
                owner=owner,
                on_result=self.metrics.sink_events,
                channels=self.alert_channels,
                rate=self.rates.current,
                on_alert=self.metrics.alerts,
            ),
            watcher=self.watcher,
            hold_ttl_s=hold_ttl_s,
            outbox_max_pending=outbox_max_pending,
            upkeep=(
                *(self.operations.tend, self.retention.tend, self.turned.tend),
                lambda: bounded(self.store.tend(), settle_timeout_s),
            ),
            log=self.log,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> CostTracker:
        """A tracker as the configuration describes it. Raises ConfigurationError."""
        from .assembly import tracker_from_settings  # noqa: PLC0415 - the only place that knows every sink

        return tracker_from_settings(settings)

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
            metadata: kept in the record; whatever fits into JSON.
            covers_request: False for side calls that are not what the request pays for.
            identity: further fields of `Identity`: `key`, `user`, `team`, `end_user`, `tags`.

        Raises BudgetExceededError and TenantSuspendedError on entry, UnknownModelError, StoreError.
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
            metadata=metadata,
            covers_request=covers_request,
            identity=identity,
        )

    async def request_identity(self, context: RequestContext | None = None) -> Identity | None:
        """Who makes the current request, if the middleware is around it and can tell. Where nobody could be told when
        the request came in, somebody may by now.
        """
        context = context or current_request.get()
        if context is None:
            return None
        if context.identity is None or context.identity.source == "default":
            context.identity = await context.resolve() or context.identity
        return context.identity

    def metrics_app(self) -> ASGIApp:
        """An ASGI application that serves the metrics in the Prometheus text format."""
        from .scraping import metrics_app  # noqa: PLC0415 - starlette only where it is served

        return metrics_app(self)

    def api(
        self,
        admin_token: str | None = None,
        *,
        dashboard: bool = True,
        session_s: float = 43_200.0,
        cookie_secure: CookieSecure = "auto",
        identify: IdentifyTenant | None = None,
    ) -> ASGIApp:
        """The billing API as an ASGI application to mount anywhere, with the dashboard beside it; see docs/api.md.

        Args:
            admin_token: at least 16 characters; without it there are no admins and no dashboard, and keys of ours see
                their own data only.
            dashboard: whether the pages are there too.
            session_s: how long a sign-in to them lasts.
            cookie_secure: whether its cookie goes over TLS only; `auto`: where the request did.
            identify: gets the ASGI scope of a request without credentials of ours and gives its tenant, such as
                `lambda scope: scope["state"].get("tenant_id")`; that tenant may read its usage stats.

        Raises ConfigurationError, and MissingExtraError for a dashboard without its extra.
        """
        from .api.app import api_app  # noqa: PLC0415 - pydantic and starlette only where it is served

        return api_app(
            self,
            admin_token,
            dashboard=dashboard,
            session_s=session_s,
            cookie_secure=cookie_secure,
            identify=identify,
        )
