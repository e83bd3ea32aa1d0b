"""Prices in the format of LiteLLM's `model_prices_and_context_window.json`, read into our own values.

There amounts are USD per token, character, second, page or call, and a prompt's length and the service tier stand in
the fields' names: `input_cost_per_token_above_200k_tokens_priority`. What has no counterpart here (images and video by
size or number) is left out. Source: the file's `sample_spec` and docs.litellm.ai/docs/proxy/custom_pricing, 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from .errors import ConfigurationError
from .model_price import MAX_COUNT, MAX_EXPONENT, ModelPrice
from .models import catalogue_provider, split_provider

SPECIMEN: Final = "sample_spec"
"""The file's first entry, which explains the others."""

_PER_MILLION: Final = Decimal(1_000_000)
_TOKENS: Final = {
    "input_cost_per_token": "input_usd_per_mtok",
    "output_cost_per_token": "output_usd_per_mtok",
    "cache_read_input_token_cost": "cache_read_usd_per_mtok",
    "cache_creation_input_token_cost": "cache_write_usd_per_mtok",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_usd_per_mtok",
    "input_cost_per_audio_token": "input_audio_usd_per_mtok",
    "cache_read_input_audio_token_cost": "cache_read_audio_usd_per_mtok",
    "cache_read_input_token_cost_per_audio_token": "cache_read_audio_usd_per_mtok",
    "input_cost_per_image_token": "input_image_usd_per_mtok",
    "cache_read_input_image_token_cost": "cache_read_image_usd_per_mtok",
    "output_cost_per_reasoning_token": "reasoning_usd_per_mtok",
    "output_cost_per_audio_token": "output_audio_usd_per_mtok",
    "output_cost_per_image_token": "output_image_usd_per_mtok",
}
_BY_MODE: Final = {
    # Elsewhere these are another way to say what tokens cost, or the price of capacity.
    ("audio_transcription", "input_cost_per_second"): ("audio_usd_per_hour", Decimal(3600)),
    ("audio_speech", "input_cost_per_character"): ("character_usd_per_mchar", _PER_MILLION),
    ("rerank", "input_cost_per_query"): ("request_usd", Decimal(1)),
    ("ocr", "ocr_cost_per_page"): ("page_usd_per_1k", Decimal(1000)),
}
_ANYWHERE: Final = {"input_cost_per_request": ("request_usd", Decimal(1))}
_NAME = re.compile(r"(?P<field>\w+?)(?:_above_(?P<start>[0-9]{1,6})k_tokens)?(?:_(?P<tier>flex|priority|batches))?")
_TIERS: Final = {"batches": "batch"}
_SEARCHES: Final = ("search_context_size_medium", "search_context_size_high", "search_context_size_low")
"""What LiteLLM charges for a search that names no size comes first."""


def is_litellm(entry: Mapping[str, Any]) -> bool:
    """Whether a table is written in that format, and not in ours."""
    return any(name in ("litellm_provider", "mode") or "_cost" in name for name in entry)


def litellm_price(model: str, entry: Mapping[str, Any]) -> ModelPrice | None:
    """The price of one entry; None where it tells nothing that is counted here. Raises ConfigurationError naming the
    field for what is no amount, and for what is probably in the wrong unit, unless the entry has `allow_high`.
    """
    base: dict[str, Any] = {}
    tiers: dict[int, dict[str, Decimal]] = {}
    served: dict[str, dict[str, Any]] = {}
    for name, value in entry.items():
        found = _NAME.fullmatch(name)
        field = None if found is None or value is None else _TOKENS.get(found["field"])
        if field is None or found is None:
            continue
        amount = _amount(name, value) * _PER_MILLION
        prices = base
        if found["tier"]:
            prices = served.setdefault(_TIERS.get(found["tier"], found["tier"]), {})
        if found["start"]:
            levels = prices.setdefault("tiers", {}) if found["tier"] else tiers
            prices = levels.setdefault(int(found["start"]) * 1000, {})
        prices[field] = amount
    others = _ANYWHERE | {name: into for (mode, name), into in _BY_MODE.items() if mode == entry.get("mode")}
    for name, (field, scale) in others.items():
        if entry.get(name) is not None:
            base[field] = _amount(name, entry[name]) * scale
    base |= _searches(entry)
    if not base:
        return None
    return ModelPrice(
        **base,
        tiers=tiers,
        service_tiers=served,
        provider=_provider(model, entry.get("litellm_provider")),
        context_window=_count(entry.get("max_input_tokens")),
        max_output_tokens=_count(entry.get("max_output_tokens")),
        allow_high=entry.get("allow_high", False),
    )


def _searches(entry: Mapping[str, Any]) -> dict[str, Decimal]:
    sizes = entry.get("search_context_cost_per_query")
    if not isinstance(sizes, Mapping):
        return {}
    size = next((name for name in _SEARCHES if sizes.get(name) is not None), None)
    return {} if size is None else {"web_search_usd_per_1k": _amount(size, sizes[size]) * 1000}


def _provider(model: str, named: object) -> str:
    """By the catalogue's identifier; the name's own prefix says it best."""
    prefix, _ = split_provider(model)
    if prefix is not None:
        return prefix
    if not isinstance(named, str):
        return ""
    name = named.removeprefix("text-completion-")
    return catalogue_provider("vertex_ai" if name.startswith("vertex_ai") else name)


def _amount(name: str, value: object) -> Decimal:
    try:
        amount = Decimal("nan") if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or abs(amount.adjusted()) > MAX_EXPONENT:
        raise ConfigurationError(f"{name}: {str(value)[:64]!r} is not an amount in USD")
    return amount


def _count(value: object) -> int | None:
    """A number of tokens; some entries have it as text, or none at all."""
    try:
        count = int(str(value))
    except ValueError:
        return None
    return count if 0 < count <= MAX_COUNT else None
