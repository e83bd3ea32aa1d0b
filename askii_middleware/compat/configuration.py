"""The settings of the guides' programs: ours, and the variables that they and LiteLLM's Lago logger read.

Only here. These variables have no prefix of ours, so another program's may stand in the environment of any service: it
must not bill twice, and above all not be left without enforcement.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ConfigurationError
from ..settings import Settings, load_settings

PAYERS = {
    "user_id": "user",
    "team_id": "team",
    "end_user_id": "end_user",
}
"""Values of `LAGO_API_CHARGE_BY`, and the part of the identity that is then the subscription."""
_SWITCH: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def guide_settings() -> Settings:
    """The process's settings, with what the guides' variables add. Raises ConfigurationError.

    `BILLING_ENABLED=false` is `enforcement = "off"` (all is recorded and charged, nothing is refused) unless
    `ASKII_ENFORCEMENT` says what holds. Without a `[sinks.lago]`, `LAGO_API_BASE` with `LAGO_API_KEY` makes one,
    with `LAGO_API_EVENT_CODE` and `LAGO_API_CHARGE_BY` if these are set.
    """
    settings, environment = load_settings(), os.environ
    more: dict[str, Any] = {}
    _check_currency(environment)
    if not _enabled(environment) and not any(name.upper() == "ASKII_ENFORCEMENT" for name in environment):
        more["enforcement"] = "off"
    if environment.get("LAGO_API_BASE") and settings.sinks.lago is None:
        more["sinks"] = {"lago": _lago(environment)}
        if (payer := environment.get("LAGO_API_CHARGE_BY")) and not settings.billing.model_fields_set:
            if payer not in PAYERS:
                raise ConfigurationError(f"LAGO_API_CHARGE_BY: {payer[:64]!r} is none of {', '.join(PAYERS)}")
            more["billing"] = {"subscription": PAYERS[payer]}
    return load_settings(**more) if more else settings


def _enabled(environment: Mapping[str, str]) -> bool:
    said = environment.get("BILLING_ENABLED", "").strip()
    if said and said.casefold() not in _SWITCH:
        raise ConfigurationError(f"BILLING_ENABLED: {said[:64]!r} is neither true nor false")
    return _SWITCH[said.casefold()] if said else True


def _check_currency(environment: Mapping[str, str]) -> None:
    currency = environment.get("BILLING_DEFAULT_CURRENCY", "").strip()
    if currency and currency.upper() != "USD":
        raise ConfigurationError(
            f"BILLING_DEFAULT_CURRENCY: {currency[:64]!r} cannot be: budgets and prices are in USD. Leave it out or "
            "set USD; coins, at ASKII_COIN_EXCHANGE_RATE for each USD, may stand for another currency"
        )


def _lago(environment: Mapping[str, str]) -> dict[str, Any]:
    if not environment.get("LAGO_API_KEY"):
        raise ConfigurationError("LAGO_API_BASE needs LAGO_API_KEY, the API key of that Lago")
    base = environment["LAGO_API_BASE"].rstrip("/")
    lago = {"url": base if base.endswith("/api/v1") else f"{base}/api/v1", "api_key": "env:LAGO_API_KEY"}
    if code := environment.get("LAGO_API_EVENT_CODE"):
        lago["code"] = code
    return lago
