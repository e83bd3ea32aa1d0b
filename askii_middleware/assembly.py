"""Building the parts that the settings name. The only module that knows every sink and channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError, SinkError
from .models import is_provider, strip
from .pricing import ModelPrice, PricingConfig
from .settings_sinks import LogSettings, SinkTable, lago_names
from .settings_tables import LagoSettings
from .stores import open_store
from .tracker import CostTracker

if TYPE_CHECKING:
    from pydantic import SecretStr

    from .channels.base import AlertChannel
    from .settings import Settings
    from .sinks.base import Sink


def tracker_from_settings(settings: Settings, pricing: PricingConfig | None = None) -> CostTracker:
    """A tracker with its store and sinks, and perhaps prices made in code, below those of the settings. Raises
    ConfigurationError naming the setting.
    """
    options: dict[str, Any] = {}
    if settings.store.startswith("sqlite://"):
        options["sqlite_sync"] = settings.sqlite_sync
    tracker = CostTracker(
        pricing,
        store=open_store(settings.store, **options),
        sinks=sinks_from_settings(settings),
        fallbacks=settings.fallbacks,
        budgets=settings.budgets,
        keys=settings.keys,
        prices={model: _price(f"pricing.{model}", fields) for model, fields in settings.pricing.items()},
        aliases=settings.model_aliases,
        unknown_price=settings.unknown_price,
        default_price=None if settings.default_price is None else _price("default_price", settings.default_price),
        trust_provider_cost=settings.trust_provider_cost,
        enforcement=settings.enforcement,
        rollout=settings.rollout,
        hold=settings.hold,
        clamp_output=settings.clamp_output,
        min_output_tokens=settings.min_output_tokens,
        default_max_output_tokens=settings.default_max_output_tokens,
        file_batch_usd=settings.file_batch_usd,
        remote_input_tokens=settings.remote_input_tokens,
        hold_ttl_s=settings.hold_ttl_s,
        max_call_s=settings.max_call_s,
        settle_timeout_s=settings.settle_timeout_s,
        lease=settings.lease,
        lease_s=settings.lease_s,
        on_store_error=settings.on_store_error,
        journal_path=None if settings.journal_path is None else str(settings.journal_path),
        journal_max_bytes=settings.journal_max_bytes,
        outbox_max_pending=settings.outbox_max_pending,
        max_series=settings.max_series,
        metrics_labels=settings.metrics_labels,
        traces=settings.traces,
        trace_tenant=settings.trace_tenant,
        records_days=settings.retention.records_days,
        aggregates_days=settings.retention.aggregates_days,
        downgrade_at=settings.downgrade_at,
        provider_of=_provider_of(settings),
        subscription_of=settings.billing.rule,
        alert_channels=channels_from_settings(settings),
    )
    tracker.fallbacks.check(is_served=_is_served(settings), unpriced_allowed=settings.unknown_price != "reject")
    return tracker


def _provider_of(settings: Settings) -> Callable[[str], str | None] | None:
    """Whose prices a model has: those of the first upstream that takes it, where that one names a provider."""
    tables = [
        (
            [pattern.lower() for pattern in table.models],
            table.provider or (name if is_provider(name) else None),
        )
        for name, table in settings.upstreams.items()
    ]
    if not any(provider for _, provider in tables):
        return None

    @lru_cache(maxsize=4096)
    def provider_of(model: str) -> str | None:
        names = (model.lower(), strip(model))
        return next(
            (
                provider
                for patterns, provider in tables
                if any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
            ),
            None,
        )

    return provider_of


def _is_served(settings: Settings) -> Callable[[str], bool] | None:
    """Whether some upstream takes a model; None where there are no upstreams to ask."""
    if not settings.upstreams:
        return None
    patterns = [pattern.lower() for table in settings.upstreams.values() for pattern in table.models]
    return lambda model: any(
        fnmatchcase(name, pattern) for name in (model.lower(), strip(model)) for pattern in patterns
    )


def _price(setting: str, fields: dict[str, Any]) -> ModelPrice:
    try:
        return ModelPrice.from_table(fields)
    except ConfigurationError as error:
        raise ConfigurationError(f"{setting}: {error}") from None


def sinks_from_settings(settings: Settings) -> list[Sink]:
    """The sinks under `[sinks]`, in a fixed order."""
    sinks: list[Sink] = []
    for name, table in settings.sinks.tables:
        try:
            sinks += _sinks(name, table)
        except SinkError as error:
            raise ConfigurationError(f"sinks.{name}: {error}") from None
    return sinks


def _sinks(name: str, table: SinkTable) -> Iterator[Sink]:
    if isinstance(table, LagoSettings):
        yield from _lago_sinks(name, table)
    elif isinstance(table, LogSettings):
        from .sinks.log import LogSink  # noqa: PLC0415 - only what is used

        yield LogSink(table.path, rotate_bytes=table.rotate_bytes, keep=table.keep, fsync=table.fsync, name=name)
    else:
        from .sinks.webhook import WebhookSink  # noqa: PLC0415 - httpx only where it is used

        options = {field: getattr(table, field) for field in type(table).model_fields}
        options["secrets"] = [secret.get_secret_value() for secret in table.secrets]
        options["token"] = _secret(table.token)
        yield WebhookSink(name=name, **options)


def _lago_sinks(name: str, lago: LagoSettings) -> Iterator[Sink]:
    """One for each shape of events. Their names are theirs for good: a place in the outbox belongs to a name."""
    from .sinks.lago import LagoSink  # noqa: PLC0415 - httpx only where Lago is used

    for shape, sink in lago_names(name, lago).items():
        yield LagoSink(
            lago.url,
            lago.api_key.get_secret_value(),
            name=sink,
            events=shape,
            code=lago.code,
            token_codes=lago.token_codes,
            only_tenants=lago.only_tenants,
            properties=lago.properties,
            max_age_s=lago.max_age_s,
            allow_http=lago.allow_http,
            timeout_s=lago.timeout_s,
        )


def channels_from_settings(settings: Settings) -> list[AlertChannel]:
    """The channels of `[alerts]`, in a fixed order."""
    alerts = settings.alerts
    channels: list[AlertChannel] = []
    if alerts.log:
        from .channels.log import LogChannel  # noqa: PLC0415 - as above

        channels.append(LogChannel())
    if alerts.webhook_url is not None:
        from .channels.webhook import WebhookChannel  # noqa: PLC0415 - as above

        channels.append(WebhookChannel(alerts.webhook_url, _secret(alerts.webhook_secret)))
    if alerts.email_to:
        from .channels.email import EmailChannel  # noqa: PLC0415 - as above

        channels.append(
            EmailChannel(
                alerts.email_to,
                host=alerts.smtp_host or "",
                port=alerts.smtp_port,
                from_=alerts.email_from or "",
                starttls=alerts.smtp_starttls,
                user=alerts.smtp_user,
                password=_secret(alerts.smtp_password),
            )
        )
    return channels


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
