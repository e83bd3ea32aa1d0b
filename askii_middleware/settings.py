"""Settings: constructor > environment (`ASKII_…`, tables as JSON) > `askii.toml` > defaults.

Tables merge key by key, lists are replaced whole. Everything is checked here, once, at start; what is wrong is a
ConfigurationError that names the setting, one line for each problem, and never shows a secret.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ._version import __version__
from .currency import DEFAULT_RATE_TEXT, RATE_VARIABLE, parse_rate
from .errors import ConfigurationError
from .journal import journal_beside
from .settings_api import ApiSettings
from .settings_billing import BillingSettings, billing_variables
from .settings_retention import RetentionSettings
from .settings_sinks import SinkSettings
from .settings_tables import (
    AlertSettings,
    BudgetItem,
    Count,
    IdentitySettings,
    InjectUsage,
    KeyItem,
    Number,
    RouteSettings,
    Seconds,
    Secret,
    Share,
    StoreUrl,
    Text,
    UpstreamSettings,
    UrlPath,
    meant,
    problems,
)
from .settings_webhooks import LagoWebhookSettings

__all__ = [
    "Settings",
    "UpstreamSettings",
    "check_workers",
    "describe",
    "limits_nothing",
    "load_settings",
    "shown_url",
]

PREFIX = "ASKII_"
DEFAULT_FILE = "askii.toml"
_SERVICE_LINK = re.compile(
    r"ASKII_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+|PORT(?==\w+://))=.*", re.DOTALL
)
"""What Kubernetes puts into every container's environment for a Service called `askii` or `askii-…`."""


class Settings(BaseSettings):
    """Everything that is configured. Raises ConfigurationError with one line for each problem.

    Units stand in the names: `_s` seconds, `_usd` USD, `_usd_per_mtok` USD per million tokens, `_bytes` bytes.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix=PREFIX)

    config: Path | None = None
    """The file that was read. Set by `ASKII_CONFIG` or the constructor it must exist."""

    # Ledger
    store: StoreUrl = Field("sqlite:///askii.db", repr=False)
    sqlite_sync: Literal["normal", "full"] = "normal"
    lease: bool = False
    """Admit calls in the worker, from credit drawn ahead of need."""
    lease_s: Seconds = 1.0
    """Within this time budget edits take effect on such calls."""
    on_store_error: Literal["deny", "allow"] = "deny"
    hold_ttl_s: Seconds = 60.0
    max_call_s: Seconds = 3600.0
    settle_timeout_s: Seconds = 5.0
    journal_path: Path | None = None
    """Prefix of the files where charges wait for the store; None: beside the SQLite file, or `askii-journal-…` in the
    working directory.
    """
    journal_max_bytes: Count = 64 << 20
    outbox_max_pending: Count = 1_000_000
    retention: RetentionSettings = RetentionSettings()

    # Budgets, prices, models
    enforcement: Literal["enforce", "shadow", "off"] = "enforce"
    rollout: Share = 1.0
    """The share of tenants that are enforced; the others are in shadow."""
    hold: Literal["bound", "metered", "estimate"] | None = None
    """None: metered for streams, bound otherwise."""
    clamp_output: Literal["unset", "always", "never"] = "unset"
    min_output_tokens: Count = 256
    budgets: tuple[BudgetItem, ...] = ()
    downgrade_at: Share = 1.0
    fallbacks: dict[Text, tuple[Text, ...]] = {}
    pricing: dict[Text, dict[str, Any]] = {}
    """By model, the fields of a `ModelPrice`."""
    model_aliases: dict[Text, Text] = {}
    unknown_price: Literal["reject", "default", "allow"] = "reject"
    default_price: dict[str, Any] | None = None
    trust_provider_cost: bool | tuple[Text, ...] = False
    """Charge what a provider says a call cost: of all providers, or of those named."""
    default_max_output_tokens: Count = 16_384
    file_batch_usd: Annotated[Decimal, Number, Field(ge=0, le=1_000_000)] = Decimal(1)
    """Held for a batch whose items are in a file, and charged if nobody ever asks for its result."""
    remote_input_tokens: Count | None = None
    """Held for input that is not in the request; None: the model's context window."""
    strict_exchange_rate: bool = False

    # Identity
    identity: IdentitySettings = IdentitySettings()
    default_tenant: Text | None = None
    """Pays where no source names a tenant; also accepted as `identity.default_tenant`."""
    keys: tuple[KeyItem, ...] = ()

    # Requests and answers
    routes: RouteSettings = RouteSettings()
    unmetered: Literal["allow", "deny"] = "allow"
    default_model: Text | None = None
    max_body_bytes: Count = 32 << 20
    inject_usage: InjectUsage = True
    expose_amounts: bool = True
    budget_exceeded_status: Annotated[int, Number, Field(ge=400, le=499)] = 402

    # Edges
    upstreams: dict[Text, UpstreamSettings] = {}
    sinks: SinkSettings = SinkSettings()
    billing: BillingSettings = BillingSettings()
    alerts: AlertSettings = AlertSettings()
    api: ApiSettings = ApiSettings()
    lago_webhooks: LagoWebhookSettings | None = None
    metrics_path: UrlPath | None = None
    metrics_port: Annotated[int, Number, Field(ge=0, le=65_535)] | None = None
    metrics_token: Secret | None = None
    metrics_labels: tuple[Literal["tenant_id", "model"], ...] = ("tenant_id", "model")
    """Which labels whose values others choose are shown; the others are `other`."""
    max_series: Count = 1000
    traces: Literal["auto", "off"] = "auto"
    trace_tenant: bool = True
    """Whether OpenTelemetry's spans name the tenant."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError("\n".join(problems(error, type(self).model_fields))) from None
        except SettingsError as error:
            raise ConfigurationError(_unreadable_variable(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the contract knows no such layer
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _BillingVariables(settings_cls), _TomlFile(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _lift_default_tenant(cls, values: Any) -> Any:
        identity = values.get("identity")
        if isinstance(identity, dict) and "default_tenant" in identity:
            inner = identity["default_tenant"]
            if values.get("default_tenant", inner) != inner:
                raise ValueError("default_tenant and identity.default_tenant differ: give one of them")
            rest = {name: value for name, value in identity.items() if name != "default_tenant"}
            return {**values, "default_tenant": inner, "identity": rest}
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for what, names in (
            ("budgets", [budget.key for budget in self.budgets]),
            ("keys: the id", [row.id for row in self.keys]),
            ("keys: the sha256 of", [row.sha256 for row in self.keys]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(twice)} is given twice")
        if self.lease and self.store.startswith("memory://"):
            raise ValueError("lease: memory:// is one process's own, so there is nothing to lease; leave it out")
        if self.lease and self.lease_s > self.hold_ttl_s / 2:
            raise ValueError("lease_s is to be at most half of hold_ttl_s")
        if (self.unknown_price == "default") and self.default_price is None:
            raise ValueError('unknown_price = "default" needs default_price')
        if self.strict_exchange_rate:
            parse_rate(os.environ.get(RATE_VARIABLE, DEFAULT_RATE_TEXT))
        return self


def load_settings(config: str | Path | None = None, **overrides: Any) -> Settings:
    """The settings of this process. `config` names the file in place of `ASKII_CONFIG`; `overrides` are settings that
    win over environment and file. Raises ConfigurationError.
    """
    return Settings(**overrides) if config is None else Settings(config=config, **overrides)


# Layers --------------------------------------------------------------------------------------------------------------


class _BillingVariables(PydanticBaseSettingsSource):
    """`BILLING_ALERT_…`, which have no prefix of ours; `ASKII_…` wins over them, and they over the file."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the base wants it for sources that are asked field by field

    def __call__(self) -> dict[str, Any]:
        return billing_variables(os.environ)


class _TomlFile(PydanticBaseSettingsSource):
    """The file named by a layer above, which must exist, or `askii.toml` of the working directory, which may."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the base wants it for sources that are asked field by field

    def __call__(self) -> dict[str, Any]:
        table = self._table()
        _refuse_unknown_variables(set(_pointed_at([table, self.current_state])))
        return table

    def _table(self) -> dict[str, Any]:
        named = self.current_state.get("config")
        path = Path(DEFAULT_FILE if named is None else str(named))
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            if named is None:
                return {}
            raise ConfigurationError(f"config: the file {str(path)!r} does not exist") from None
        except OSError as error:
            raise ConfigurationError(f"config: cannot read {str(path)!r}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"config: {str(path)!r} is not TOML: {error}") from None
        if "config" in table:
            raise ConfigurationError(f"config: {str(path)!r} cannot name another file; set {PREFIX}CONFIG")
        return {**table, "config": path}


def _pointed_at(values: Any) -> Iterator[str]:
    """The variables that settings name as `env:NAME`: whoever chose such a name may begin it as ours do."""
    if isinstance(values, str):
        if values.startswith("env:"):
            yield values.removeprefix("env:").upper()
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _pointed_at(value)


def _refuse_unknown_variables(pointed_at: set[str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {RATE_VARIABLE}
    lines = [
        f"{name}: unknown variable{meant(name.upper(), known)}"
        for name, value in sorted(os.environ.items())
        if name.upper().startswith(PREFIX)
        and name.upper() not in known | pointed_at
        and not name.upper().startswith(f"{PREFIX}TEST_")
        and not _SERVICE_LINK.fullmatch(f"{name}={value}")
    ]
    if lines:
        raise ConfigurationError("\n".join(lines))


def _unreadable_variable(error: SettingsError) -> str:
    field = str(error).partition('field "')[2].partition('"')[0]
    cause = error.__cause__
    why = f": {cause}" if isinstance(cause, json.JSONDecodeError) else ""
    return f"{PREFIX}{field.upper()}: expected JSON, as tables and lists are written in the environment{why}"


# What a start says ---------------------------------------------------------------------------------------------------


def describe(settings: Settings, *, budgets: int | None = None, keys: int | None = None) -> str:
    """The line a start logs. `budgets` and `keys` are the numbers in force where the store adds to the file's."""
    return (
        f"askii {__version__}: config {settings.config or 'none'}, store {shown_url(settings.store)}, "
        f"{_journal_place(settings)}"
        f"enforcement {settings.enforcement}, "
        f"identity {', '.join(s if isinstance(s, str) else 'callable' for s in settings.identity.sources)}, "
        f"sinks {', '.join(settings.sinks.names) or 'none'}, "
        f"budgets {len(settings.budgets) if budgets is None else budgets}, "
        f"keys {len(settings.keys) if keys is None else keys}"
    )


def _journal_place(settings: Settings) -> str:
    """Where charges wait while the store is away, unless that is beside the file that `store` names."""
    place = settings.journal_path or journal_beside(settings.store)
    beside = settings.journal_path is None and settings.store.startswith("sqlite://")
    return "" if place is None or beside else f"journal {Path(place).absolute()}, "


def limits_nothing(settings: Settings) -> bool:
    """Whether no declared budget can refuse a call: worth a warning unless the store holds one."""
    return settings.enforcement != "enforce" or not any(
        budget.enabled and not budget.soft and (budget.limit_usd is not None or budget.limit_coins is not None)
        for budget in settings.budgets
    )


def shown_url(url: str) -> str:
    """A store's URL without credentials and options; the scheme alone where they cannot be told apart."""
    scheme, _, rest = url.partition("://")
    place, _, options = rest.partition("?")
    if scheme in ("memory", "sqlite"):
        return f"{scheme}://{place}"
    return f"{scheme}://{'…' if '@' in options else place.rpartition('@')[2]}"


def check_workers(settings: Settings, workers: int) -> None:
    """Raise ConfigurationError where so many processes cannot share the store."""
    if workers > 1 and settings.store.startswith("memory://"):
        raise ConfigurationError(
            f"store: memory:// is one process's own, and there are {workers} workers; use sqlite:///askii.db"
        )
