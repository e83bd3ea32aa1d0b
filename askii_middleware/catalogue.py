"""The public price catalogue (`genai-prices`), read into our own values.

Nothing here runs per call: an entry is looked up and converted when a name is first used, and again where its price
depends on the date or the hour. The catalogue's own look-up is not used because it remembers every name a client ever
sent. Importing it takes a few hundred milliseconds, so that happens at the first look-up or in `load()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from .model_price import Amount, ModelPrice
from .models import SELF_HOSTED, canonical, catalogue_provider, family, split_provider

if TYPE_CHECKING:
    from genai_prices import types

SERVICE_TIERS = frozenset({"flex", "priority", "batch", "fast"})
"""Served tiers that have prices of their own. Every other one (`default`, `standard`, `scale`, …) has the base price:
those are the base tier's other names or capacity that was paid for in advance.
"""

FIRST_PARTY = (
    "openai",
    "anthropic",
    "google",
    "mistral",
    "cohere",
    "deepseek",
    "x-ai",
    "moonshotai",
    "zai",
    "zhipuai",
    "minimax",
    "perplexity",
    "voyageai",
    "meta",
)
"""Makers of models, asked in this order where neither name nor call says whose price applies."""

_CLOUDS = frozenset({"aws", "azure"})
"""They sell others' models too: what they have no price for is looked for at its maker."""

_SEARCHED = ("aws", *(maker for maker in FIRST_PARTY if maker != "google"))
"""Amazon's names say their maker (`us.anthropic.claude-…`). Google's list matches Claude's names wherever they stand in
a name, at Google's price; its own models are recognised before.
"""

_FIELDS: dict[str, tuple[str, int]] = {
    # Catalogue key to our field and the power of ten between their units.
    "input_mtok": ("input_usd_per_mtok", 0),
    "cache_read_mtok": ("cache_read_usd_per_mtok", 0),
    "cache_write_mtok": ("cache_write_usd_per_mtok", 0),
    "cache_write_5m_mtok": ("cache_write_usd_per_mtok", 0),
    "cache_write_1h_mtok": ("cache_write_1h_usd_per_mtok", 0),
    "input_audio_mtok": ("input_audio_usd_per_mtok", 0),
    "cache_audio_read_mtok": ("cache_read_audio_usd_per_mtok", 0),
    "input_image_mtok": ("input_image_usd_per_mtok", 0),
    "cache_image_read_mtok": ("cache_read_image_usd_per_mtok", 0),
    "output_mtok": ("output_usd_per_mtok", 0),
    "output_reasoning_mtok": ("reasoning_usd_per_mtok", 0),
    "output_audio_mtok": ("output_audio_usd_per_mtok", 0),
    "output_image_mtok": ("output_image_usd_per_mtok", 0),
    "web_searches_kcount": ("web_search_usd_per_1k", 0),
    "requests_kcount": ("request_usd", -3),
    "input_document_kpages": ("page_usd_per_1k", 0),
    "input_mchars": ("character_usd_per_mchar", 0),
    "audio_hours": ("audio_usd_per_hour", 0),
    "input_audio_hours": ("audio_usd_per_hour", 0),
}

_MINIMUM_SECONDS = {("groq", "whisper-large-v3"): 10, ("groq", "whisper-large-v3-turbo"): 10}
"""Transcriptions are billed for at least 10 seconds (console.groq.com/docs/speech-to-text, read 2026-11)."""


_FREE_AT_OPENAI = "moderation"
"""All moderation models together, which the catalogue describes as free of charge and lists without a price."""


class Entry(NamedTuple):
    """A model in the catalogue, and whose list it was reached through."""

    provider: types.Provider
    model: types.ModelInfo

    @property
    def name(self) -> str:
        return self.model.id

    @property
    def of_maker(self) -> bool:
        """Reached through a cloud that sells its maker's model: tiers of the maker do not apply there."""
        return not any(self.model is own for own in self.provider.models)


def load() -> None:
    """Import the catalogue now, so that no call waits for it."""
    _providers()


def version() -> str:
    """Such as `genai-prices 0.2.3`; does not import the catalogue."""
    from importlib.metadata import version as installed  # noqa: PLC0415 - used once, costs as much as all above

    return f"genai-prices {installed('genai-prices')}"


def locate(name: str, provider: str | None = None) -> Entry | None:
    """The entry for a model name.

    A provider prefix in the name decides, then `provider` (an API family, an upstream or a catalogue identifier), then
    the catalogue's own knowledge of whose names look like this, then Amazon and the makers in a fixed order. Hosts of
    others' models (OpenRouter, Groq, …) are asked with the name as it is written, organisation included, and what they
    do not list is not priced: another host's price would be a guess. What runs on the user's own machines is never
    here.
    """
    providers = _providers()
    prefix, rest = split_provider(name)
    hinted = _find_provider(providers, provider) if provider else None
    if hinted is not None and "/" in name and (_is_host(hinted) or hinted.id == prefix):
        model = hinted.find_model(name.strip(), all_providers=providers)
        if model is not None:
            return Entry(hinted, model)
    for source, reference in ((prefix, rest), (provider, name)):
        if source is None:
            continue
        if catalogue_provider(source) in SELF_HOSTED:
            return None
        found = _find_provider(providers, source)
        if found is not None:
            model = _match(found, reference, providers)
            if model is not None:
                return Entry(found, model)
            if _is_host(found):
                return None
    return _search(canonical(name), providers)


def price_of(entry: Entry, service_tier: str | None, at_s: float) -> tuple[ModelPrice | None, float]:
    """The price at a served tier and a moment (Unix seconds), and until when it holds (infinity: for good).

    None where the catalogue lists the model without any price: that says included in a subscription, billed
    otherwise or unknown, none of which is free. Only names that say `:free` are, and OpenAI's moderation.
    """
    at = datetime.fromtimestamp(at_s, UTC)
    context = None
    if service_tier in SERVICE_TIERS and not entry.of_maker:
        # One of these keys selects a variant: OpenAI's and Google's tiers, batches, Anthropic's fast mode.
        context = {"service_tier": service_tier, "processing": service_tier, "speed": service_tier}
    prices = entry.model.get_prices(at, context)
    amounts, tiers = _amounts(prices)
    if not amounts:
        if not _is_free(entry):
            return None, _valid_until(entry.model, at)
        amounts = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0, "request_usd": 0}
    fields: dict[str, Any] = dict(amounts)
    price = ModelPrice(
        **fields,
        minimum_seconds=_MINIMUM_SECONDS.get((entry.provider.id, entry.name), 0),
        tiers=tiers,
        provider=entry.provider.id,
        context_window=entry.model.context_window,
        allow_high=True,
    )
    return price, _valid_until(entry.model, at)


def _is_free(entry: Entry) -> bool:
    return entry.name.endswith(":free") or (entry.provider.id == "openai" and entry.name == _FREE_AT_OPENAI)


def _providers() -> list[types.Provider]:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - slow to import, see the module's head

    return get_snapshot().providers


def _find_provider(providers: list[types.Provider], name: str) -> types.Provider | None:
    wanted = catalogue_provider(name)
    for provider in providers:
        if provider.id == wanted:
            return provider
    for provider in providers:
        if provider.provider_match is not None and provider.provider_match.is_match(wanted):
            return provider
    return None


def _is_host(provider: types.Provider) -> bool:
    return provider.id not in FIRST_PARTY and provider.id not in _CLOUDS


def _match(provider: types.Provider, reference: str, providers: list[types.Provider]) -> types.ModelInfo | None:
    """By the name as it is written, then canonical, then without its date."""
    tried: set[str] = set()
    for form in (reference.strip().casefold(), canonical(reference), family(reference)):
        if form not in tried:
            tried.add(form)
            model = provider.find_model(form, all_providers=providers)
            if model is not None:
                return model
    return None


def _search(name: str, providers: list[types.Provider]) -> Entry | None:
    likely = [p for p in providers if p.model_match is not None and p.model_match.is_match(name)]
    by_id = {p.id: p for p in providers}
    for provider in (*likely, *(by_id[other] for other in _SEARCHED if other in by_id)):
        model = _match(provider, name, [])
        if model is not None:
            return Entry(provider, model)
    return None


def _amounts(prices: types.ModelPrice) -> tuple[dict[str, Amount], dict[int, dict[str, Amount]]]:
    base: dict[str, Amount] = {}
    tiers: dict[int, dict[str, Amount]] = {}
    for key, (name, power) in _FIELDS.items():
        value = getattr(prices, key)
        if value is None:
            continue
        if isinstance(value, Decimal):
            base[name] = value.scaleb(power)
            continue
        base[name] = value.base.scaleb(power)
        for tier in value.tiers:
            tiers.setdefault(tier.start, {})[name] = tier.price.scaleb(power)
    return base, tiers


def _valid_until(model: types.ModelInfo, at: datetime) -> float:
    """The next moment at which a condition of any of the model's prices may change."""
    return min((moment.timestamp() for moment in _changes(model, at) if moment > at), default=inf)


def _changes(model: types.ModelInfo, at: datetime) -> Iterator[datetime]:
    conditional = model.prices if isinstance(model.prices, list) else []
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    for constraint in [c.constraint for c in (*conditional, *(model.price_variants or ()))]:
        start = getattr(constraint, "start_date", None)
        if start is not None:
            yield datetime(start.year, start.month, start.day, tzinfo=UTC)
        for edge in (getattr(constraint, "start_time", None), getattr(constraint, "end_time", None)):
            if edge is not None:
                local = datetime.combine(midnight, edge if edge.tzinfo else edge.replace(tzinfo=UTC))
                first = local.astimezone(UTC)
                yield from (first + timedelta(days=days) for days in (-1, 0, 1, 2))
