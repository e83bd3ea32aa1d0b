"""The tables and values of the settings, each checked where it stands. Secrets may be written `env:NAME` or
`file:/path`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    model_validator,
)

from .budgets import Budget
from .errors import ConfigurationError
from .identity import MAX_VALUE_CHARS, Identity
from .stores.base import KeyRow

STORE_SCHEMES = (
    *("memory", "sqlite", "postgresql", "redis", "rediss"),
    *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)

# Errors --------------------------------------------------------------------------------------------------------------

_SHOWN = {
    "literal_error",
    "bool_parsing",
    "int_parsing",
    "int_from_float",
    "float_parsing",
    "decimal_parsing",
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
}
"""Problems of choices and numbers, whose values can be repeated: any other value may be a secret in a wrong place."""
_SAID = {
    "missing": "is required",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "tuple_type": "expected a list",
    "dict_type": "expected a table",
    "model_type": "expected a table",
}


def problems(error: ValidationError, known: Iterable[str] = ()) -> list[str]:
    """One line for each problem: the setting's path and what is wrong. `known` are the names at the top level."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        where, kind = problem["loc"], problem["type"]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
        message = _SAID.get(kind) or problem["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            message = f"unknown setting{meant(str(where[-1]), known if len(where) == 1 else ())}"
        elif kind in _SHOWN:
            message += f", not {str(problem['input'])[:80]!r}"
        lines.append(f"{path}: {message}" if path else message)
    return lines


def meant(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that comes closest, or nothing."""
    close = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# Values --------------------------------------------------------------------------------------------------------------


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")  # noqa: TRY004 - pydantic reports ValueError
    return value


def _reveal(value: object) -> object:
    """The secret that `env:NAME` or `file:/path` points at; any other value is the secret itself."""
    kind, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if colon and kind == "env":
        if name not in os.environ:
            raise ValueError(f"the environment variable {name!r} is not set")
        return os.environ[name]
    if colon and kind == "file":
        try:
            return Path(name).read_text("utf-8").strip()
        except OSError as error:
            raise ValueError(f"cannot read {name!r}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{name!r} is not UTF-8 text") from None
    return value


def _not_blank(secret: SecretStr) -> SecretStr:
    if secret.get_secret_value().isspace():
        raise ValueError("must not be blank")
    return secret


def _known_store(url: str) -> str:
    scheme, sign, _ = url.partition("://")
    if not sign or scheme not in STORE_SCHEMES:
        raise ValueError(f"expected a URL that begins with one of {', '.join(f'{s}://' for s in STORE_SCHEMES)}")
    return url


def _web_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("expected http://host… or https://host…")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("credentials, a query or a fragment have no place here; keys go into api_key")
    return url.rstrip("/")


def _hook_url(url: str) -> str:
    """As `_web_url`, with a query, in which many receivers want their key."""
    _web_url(url.partition("?")[0])
    return url


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("NUL characters are not allowed")
    return value


def _source(value: object) -> object:
    name = value.partition(":")[2] if isinstance(value, str) and value.startswith("header:") else ""
    if callable(value) or value in ("key", "jwt", "state"):
        return value
    if name and name.isascii() and name.replace("-", "").replace("_", "").isalnum():
        return value
    raise ValueError(f'{value!r} is none of "key", "jwt", "state", "header:NAME" or a callable')


def _inject_usage(value: object) -> object:
    by_model = value.values() if isinstance(value, Mapping) else (value,)
    switches = {"true": True, "false": False}
    if not all(isinstance(v, bool) or (isinstance(v, str) and v.lower() in switches) for v in by_model):
        raise ValueError("expected true, false, or a table of models with true or false")
    if isinstance(value, Mapping):
        return {str(k): v if isinstance(v, bool) else switches[v.lower()] for k, v in value.items()}
    return value if isinstance(value, bool) else switches[str(value).lower()]


def _network(value: object) -> object:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"expected a network such as 10.0.0.0/8: {error}") from None


Number = BeforeValidator(_no_bool)
Count = Annotated[int, Number, Field(ge=1)]
Seconds = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
RequestSeconds = Annotated[float, Number, Field(gt=0, le=11)]
"""For one request of a sink: a `send` needs up to twice that, and is cancelled after 22 s."""
Share = Annotated[float, Number, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_VALUE_CHARS), AfterValidator(_no_nul)]
Secret = Annotated[SecretStr, BeforeValidator(_reveal), AfterValidator(_not_blank), Field(min_length=1)]
WebUrl = Annotated[str, AfterValidator(_web_url)]
HookUrl = Annotated[str, BeforeValidator(_reveal), AfterValidator(_hook_url)]
Source = Annotated[str | Callable[..., Any], PlainValidator(_source)]
Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
UrlPath = Annotated[str, Field(pattern="^/")]
PathPattern = Annotated[str, Field(pattern="^[/*]")]


# Tables --------------------------------------------------------------------------------------------------------------


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class JwtSettings(Table):
    """`[identity.jwt]`: tokens signed with a shared `secret` (HS256) or by the owner of `public_key` (RS256, PEM)."""

    secret: Secret | None = None
    public_key: Secret | None = None
    tenant_claim: Text = "tenant"
    user_claim: Text = "sub"
    audience: Text | None = None
    issuer: Text | None = None
    leeway_s: Annotated[float, Number, Field(ge=0, le=3600)] = 0.0

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.secret is None) == (self.public_key is None):
            raise ValueError("give either secret (HS256) or public_key (RS256)")
        if self.secret is not None and len(self.secret.get_secret_value().encode()) < 32:
            raise ValueError("secret: HS256 needs at least 32 bytes (RFC 7518, 3.2)")
        return self


class IdentitySettings(Table):
    """`[identity]`. `trusted_proxies` are the networks whose peers may set identity headers: none unless listed."""

    sources: tuple[Source, ...] = ("key",)
    trusted_proxies: tuple[Network, ...] = ()
    state_attribute: Text = "tenant_id"
    jwt: JwtSettings | None = None

    @model_validator(mode="after")
    def _jwt_has_a_key(self) -> Self:
        if ("jwt" in self.sources) != (self.jwt is not None):
            raise ValueError('the source "jwt" and the table identity.jwt come together')
        return self


class RouteSettings(Table):
    """`[routes]`: patterns as in a shell over whole paths. With `include` only these are metered, `exclude` are not,
    and `exempt` pass where `unmetered` is `deny`.
    """

    include: tuple[PathPattern, ...] = ()
    exclude: tuple[PathPattern, ...] = ()
    exempt: tuple[PathPattern, ...] = ()
    model_header: Annotated[str, Field(pattern="^[A-Za-z0-9-]{1,64}$")] | None = None
    """A header whose value is the model of a request that names none, such as `X-Preferred-Model`; the application has
    to read it too. It comes before `default_model`. None: no header says so.
    """


class UpstreamSettings(Table):
    """`[upstreams.NAME]` of `askii serve`: where calls for `models` (`*` as in a shell) go, with which key."""

    url: WebUrl
    api_key: Secret | None = None
    models: tuple[Text, ...] = ("*",)
    provider: Text | None = None
    """Whose wire format and prices; None: the table's name."""
    max_connections: Count = 1000
    connect_timeout_s: Seconds = 10.0
    read_timeout_s: Seconds = 600.0


class LagoSettings(Table):
    """`[sinks.lago]`; `url` with its path, which ends in `/api/v1`. `events` says what is sent: coins under `code`,
    tokens under `token_codes` (by default those of lago-agent-sdk), or both, each as a sink of its own: `lago` and
    `lago-tokens`.
    """

    url: WebUrl
    api_key: Secret
    events: Annotated[tuple[Literal["coins", "tokens"], ...], Field(min_length=1)] = ("coins",)
    code: Text = "askii_coins"
    token_codes: dict[Text, Text] | None = None
    only_tenants: Annotated[tuple[Text, ...] | None, Field(min_length=1)] = None
    """Bill these only; None: all."""
    properties: dict[Text, Text] = {}
    """Constants, and fields of the record in braces: `{ env = "prod", team = "{team}" }`."""
    max_age_s: Seconds | None = None
    """Older records go to the dead letters: no invoice that is final takes them any more. None: Lago's to say."""
    allow_http: bool = False
    """Take a `url` beyond this machine without TLS."""
    timeout_s: RequestSeconds = 10.0

    @model_validator(mode="after")
    def _codes_of_what_is_sent(self) -> Self:
        if self.token_codes is not None and "tokens" not in self.events:
            raise ValueError('token_codes does nothing: add "tokens" to events')
        if "code" in self.model_fields_set and "coins" not in self.events:
            raise ValueError('code does nothing without "coins" in events: tokens are sent under token_codes')
        return self


class AlertSettings(Table):
    """`[alerts]`: who hears when what is spent crosses a budget's `alert_at`. The e-mail's sender and server may also
    stand in `BILLING_ALERT_FROM_EMAIL`, `BILLING_ALERT_SMTP_HOST` and `BILLING_ALERT_SMTP_PORT`.
    """

    log: bool = True
    webhook_url: Annotated[HookUrl | None, Field(repr=False)] = None
    webhook_secret: Secret | None = None
    """`whsec_…`; without it the webhook is not signed."""
    email_to: tuple[Text, ...] = ()
    email_from: Text | None = None
    smtp_host: Text | None = None
    smtp_port: Annotated[int, Number, Field(ge=1, le=65_535)] = 587
    smtp_starttls: bool | None = None
    """None: on port 587."""
    smtp_user: Text | None = None
    smtp_password: Secret | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.webhook_secret is not None and self.webhook_url is None:
            raise ValueError("webhook_secret needs webhook_url")
        for name, variable in (
            ("email_from", "BILLING_ALERT_FROM_EMAIL"),
            ("smtp_host", "BILLING_ALERT_SMTP_HOST"),
        ):
            if self.email_to and getattr(self, name) is None:
                raise ValueError(f"email_to needs {name} (or the variable {variable})")
        return self


class BudgetTable(Table):
    """One of `[[budgets]]`."""

    scope: str
    limit_usd: Annotated[Decimal, Number] | None = None
    limit_coins: Annotated[Decimal, Number] | None = None
    period: str = "daily"
    zone: str = "UTC"
    alert_at: tuple[Annotated[float, Number], ...] = ()
    soft: bool = False
    max_values: Count | None = None
    enabled: bool = True


class KeyTable(Table):
    """One of `[[keys]]`; `sha256` is what `askii keys add` prints, the hex digest of the secret."""

    id: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    tenant: Text
    user: Text | None = None
    team: Text | None = None
    tags: tuple[Text, ...] = ()
    models: tuple[Text, ...] = ()
    expires_at: AwareDatetime | None = None
    revoked: bool = False


def _budget(value: object) -> Budget:
    if isinstance(value, Budget):
        return value
    try:
        return Budget(**dict(BudgetTable.model_validate(value)))
    except ValidationError as error:
        raise ValueError("; ".join(problems(error))) from None
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


def _key(value: object) -> KeyRow:
    if isinstance(value, KeyRow):
        return value
    try:
        table = KeyTable.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(problems(error))) from None
    Identity(tenant=table.tenant, tags=table.tags)  # its bounds are a key's bounds
    expires = table.expires_at
    return KeyRow(
        id=table.id,
        sha256=table.sha256.lower(),
        tenant=table.tenant,
        user=table.user,
        team=table.team,
        tags=table.tags,
        models=table.models,
        expires_at_s=None if expires is None else expires.timestamp(),
        revoked=table.revoked,
    )


BudgetItem = Annotated[Budget, PlainValidator(_budget)]
KeyItem = Annotated[KeyRow, PlainValidator(_key)]
StoreUrl = Annotated[str, BeforeValidator(_reveal), AfterValidator(_known_store)]
InjectUsage = Annotated[bool | dict[str, bool], PlainValidator(_inject_usage)]
