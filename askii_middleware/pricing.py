"""Which price a call has: the user's own prices over the public catalogue, compiled once for each name.

`find` is on the hot path of every call: one dictionary look-up and one look at the clock. Everything else happens the
first time a name is seen, after a price was changed, or when a price that depends on the date or the hour runs out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import inf
from operator import index
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

from . import catalogue
from .currency import NANO, current_rate
from .errors import ConfigurationError, UnknownModelError
from .model_price import AMOUNTS, Amount, ModelPrice, usd_amount
from .models import MAX_MODEL_CHARS, NO_ALIASES, canonical, catalogue_provider, family, split_provider, strip
from .output_limits import max_output_tokens
from .price import Bill, Price
from .pricing_config import PricingConfig
from .usage import TokenUsage

__all__ = ["Amount", "Bill", "ModelPrice", "Price", "PriceBook", "PricingConfig", "cost_per_token"]

MAX_CACHED = 4096
"""Names, with provider and tier, remembered on each side: found and not found. Clients choose them."""

_BASE_TIERS = frozenset({"default", "standard", "auto", "standard_only", "scale", "on_demand"})
"""Names of the base tier that are worth remembering; any other a client may have invented."""

_Key = tuple[str, str | None, str | None]


_NO_PRICES: Mapping[str, ModelPrice] = MappingProxyType({})


class _Cached(NamedTuple):
    price: Price | None
    until_s: float


class PriceBook:
    """The prices of one tracker.

    A name is looked up, in this order: a price given for it; one given for its family (`gpt-4o` for
    `gpt-4o-2024-11-20`); the catalogue's (`catalogue.locate` says how). A price given for a name applies at every
    provider; where several are given, that of the call's provider wins, then one without a provider, then the first.
    Prices that `override` gave come before the declared ones of the same name.

    Args:
        config: prices in the guides' form; later changes to it count at once.
        prices: model to price. They come before `config`.
        aliases: name to the name whose price and budgets it shares, such as a deployment to its model. A price given
            for the alias itself wins.
        clock: Unix seconds; decides which of the catalogue's dated and hourly prices holds.

    Raises:
        ConfigurationError: for a name that is priced twice for the same provider, or without any amount.
    """

    def __init__(
        self,
        config: PricingConfig | None = None,
        *,
        prices: Mapping[str, ModelPrice] = _NO_PRICES,
        aliases: Mapping[str, str] = NO_ALIASES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = PricingConfig() if config is None else config
        self._prices = dict(prices)
        self._aliases = {strip(name): target for name, target in aliases.items()}
        self._clock = clock
        self._lock = Lock()
        self._stored: Mapping[str, Mapping[str, ModelPrice]] = {}
        self._stored_digest = ""
        self.reload()

    def reload(self) -> None:
        """Read all prices again and forget what was compiled. Changes to the `PricingConfig` do this by themselves."""
        self._revision = self._config.revision
        explicit: dict[str, dict[str, ModelPrice]] = {}
        for name, price in self._prices.items():
            prefix, _ = split_provider(name)
            _add(explicit, name, catalogue_provider(price.provider) or prefix or "", price)
        given = {name: set(by_provider) for name, by_provider in explicit.items()}
        for provider, name, price in self._config.items():
            label = catalogue_provider(provider)
            if label not in given.get(strip(name), ()):
                _add(explicit, name, label, price)
        self._explicit: Mapping[str, Mapping[str, ModelPrice]] = explicit
        self._compiled_anew()

    def override(self, prices: Mapping[str, Mapping[str, ModelPrice]], digest: str) -> None:
        """Put prices before the declared ones, in place of those given so before: by model as `strip` writes it, then
        by provider as the catalogue names it, or "". `digest` tells them from all others.
        """
        self._stored = prices
        self._stored_digest = digest if prices else ""
        self._compiled_anew()

    def _compiled_anew(self) -> None:
        self._tiers = catalogue.SERVICE_TIERS.union(
            *(
                price.service_tiers
                for layer in (self._explicit, self._stored)
                for by_provider in layer.values()
                for price in by_provider.values()
            )
        )
        self._version = ""
        self._known: dict[_Key, _Cached] = {}
        self._unknown: dict[_Key, _Cached] = {}

    @property
    def config(self) -> PricingConfig:
        """The prices in the guides' form, to be changed at any time."""
        return self._config

    def declared(self) -> list[tuple[str, str, ModelPrice]]:
        """Model, provider (or "") and price of every declared price, by model."""
        if self._config.revision != self._revision:
            self.reload()
        return [
            (name, label, price) for name, found in sorted(self._explicit.items()) for label, price in found.items()
        ]

    @property
    def version(self) -> str:
        """Which prices these are, for the record: `genai-prices 0.2.3`, with `+` and a digest of the user's own
        prices and aliases where there are any.
        """
        if self._config.revision != self._revision:
            self.reload()
        if not self._version:
            self._version = catalogue.version()
            if self._explicit or self._aliases or self._stored_digest:
                own = repr((sorted(self._explicit.items()), sorted(self._aliases.items()))) + self._stored_digest
                self._version += f"+{sha256(own.encode()).hexdigest()[:8]}"
        return self._version

    def canonical(self, model: str) -> str:
        """The name in which models are compared, aliases applied."""
        return canonical(model, self._aliases)

    def family_of(self, model: str) -> str:
        """The canonical name's family, or itself where a price was given for it."""
        name = canonical(model, self._aliases)
        return name if name in self._explicit or name in self._stored else family(name)

    def declared_entry(self, name: str) -> str | None:
        """The name of the entry that prices a canonical name where nothing is overridden. It is the same for every
        worker at all times, so that budgets on models may depend on it.
        """
        found = self._resolve(name, None, None, overrides=False).price
        return None if found is None else found.model

    def warm(self) -> None:
        """Import the catalogue now (about 0.3 s), so that the first call does not wait for it."""
        catalogue.load()

    def find(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or None.

        Args:
            model: as the client, the deployment or the answer names it; a provider prefix decides whose price it is.
            provider: an API family, an upstream or a provider, for names without a prefix.
            service_tier: the tier that was served, or is asked for. One without prices of its own has the base price.
        """
        if self._config.revision != self._revision:
            self.reload()
        known = self._known.get((model, provider, service_tier))
        if known is not None and known.until_s > self._clock():
            return known.price
        return self._find(model, provider, service_tier)

    def _find(self, model: str, provider: str | None, service_tier: str | None) -> Price | None:
        if len(model) > MAX_MODEL_CHARS:
            return None
        tier = (service_tier or "").casefold()
        key = (model, provider, tier if tier in self._tiers else None)
        known, unknown = self._known, self._unknown  # a change of prices in another thread puts others in their place
        cached = known.get(key) or unknown.get(key)
        if cached is not None and cached.until_s > self._clock():
            return cached.price
        price, until_s = self._resolve(*key)
        cache = unknown if price is None else known
        with self._lock:
            _remember(cache, key, _Cached(price, until_s))
            if key[2] is not None or tier in _BASE_TIERS:
                _remember(cache, (model, provider, service_tier), _Cached(price, until_s))
        return price

    def _resolve(self, model: str, provider: str | None, tier: str | None, *, overrides: bool = True) -> _Cached:
        short, name = strip(model), self.canonical(model)
        # An alias to a name with a prefix carries that prefix's provider.
        prefix, _ = split_provider(model)
        target = self._aliases.get(short)
        if prefix is None and target is not None:
            prefix, _ = split_provider(target)
        label = prefix or (catalogue_provider(provider) if provider else "")
        for candidate in dict.fromkeys((short, name, family(name))):
            chosen = _chosen(self._stored.get(candidate) if overrides else None, self._explicit.get(candidate), label)
            if chosen is not None:
                return _Cached(
                    Price(candidate, chosen, service_tier=tier, max_output_tokens=max_output_tokens(name)), inf
                )
        entry = catalogue.locate(model if target is None else target, provider)
        if entry is None:
            return _Cached(None, inf)
        now_s = self._clock()
        listed, until_s = catalogue.price_of(entry, tier, now_s)
        if listed is None:
            return _Cached(None, until_s)
        base = listed if tier is None else catalogue.price_of(entry, None, now_s)[0]
        return _Cached(
            Price(entry.name, listed, explicit=False, base=base, max_output_tokens=max_output_tokens(name)),
            until_s,
        )


def _chosen(
    stored: Mapping[str, ModelPrice] | None, declared: Mapping[str, ModelPrice] | None, label: str
) -> ModelPrice | None:
    """Of a name's prices the provider's own, else the one without a provider, else the first; stored ones first."""
    layers = [layer for layer in (stored, declared) if layer]
    for layer in layers:
        found = layer.get(label) or layer.get("")
        if found is not None:
            return found
    return next(iter(layers[0].values())) if layers else None


def _add(explicit: dict[str, dict[str, ModelPrice]], name: str, provider: str, price: ModelPrice) -> None:
    if all(getattr(price, amount) is None for amount in AMOUNTS):
        raise ConfigurationError(f"pricing: {name!r} has no amount; a free model has its prices set to 0")
    by_provider = explicit.setdefault(strip(name), {})
    if provider in by_provider:
        raise ConfigurationError(f"pricing: {name!r} has two prices{f' for {provider}' if provider else ''}")
    by_provider[provider] = price


def _remember(cache: dict[_Key, _Cached], key: _Key, value: _Cached) -> None:
    """Bounded: the oldest goes first."""
    cache.pop(key, None)
    if len(cache) >= MAX_CACHED:
        cache.pop(next(iter(cache)), None)
    cache[key] = value


_book = PriceBook()


def cost_per_token(
    model: str,
    prompt_tokens: int,
    completion_tokens: int,
    *,
    cached_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
    audio_input_tokens: int = 0,
    audio_output_tokens: int = 0,
    service_tier: str | None = None,
    provider: str | None = None,
    input_cost_per_token: Amount | None = None,
    output_cost_per_token: Amount | None = None,
) -> float:
    """What a call costs in coins, at the current rate.

    Args:
        model: the name; its price is the catalogue's unless one is given here.
        prompt_tokens: all input.
        completion_tokens: all output.
        cached_tokens: the part of the input that was read from a cache.
        cache_read_tokens: another name of `cached_tokens`.
        cache_write_tokens: the part of the input that was written to a cache.
        reasoning_tokens: the part of the output that is reasoning.
        audio_input_tokens: the part of the input that is audio.
        audio_output_tokens: the part of the output that is audio.
        service_tier: the tier that served it.
        provider: whose price, where the name does not say.
        input_cost_per_token: USD for each input token. With it or `output_cost_per_token` the catalogue is not asked.
        output_cost_per_token: USD for each output token.

    Raises:
        UnknownModelError: no price is known for the model, or for some of what was used.
        ValueError: a count is negative, or parts exceed their whole.
        TypeError: a count is not a whole number, or an argument is unknown.
    """
    if cached_tokens is not None and cache_read_tokens is not None:
        raise TypeError("cached_tokens and cache_read_tokens are the same count: give one")
    cached = cached_tokens if cache_read_tokens is None else cache_read_tokens
    counts = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_tokens": cached or 0,
        "cache_write_tokens": cache_write_tokens,
        "reasoning_tokens": reasoning_tokens,
        "audio_input_tokens": audio_input_tokens,
        "audio_output_tokens": audio_output_tokens,
    }
    for name, count in counts.items():
        if index(count) < 0:
            raise ValueError(f"{name}: {count} is negative")
    usage = TokenUsage.from_totals(
        prompt_tokens,
        completion_tokens,
        cached_input_tokens=counts["cached_tokens"],
        cache_write_tokens=cache_write_tokens,
        audio_input_tokens=audio_input_tokens,
        reasoning_tokens=reasoning_tokens,
        audio_output_tokens=audio_output_tokens,
    )
    if usage.anomalous:
        raise ValueError("the parts of prompt_tokens or completion_tokens are more than the whole")
    if input_cost_per_token is not None or output_cost_per_token is not None:
        price: Price | None = Price(model, _per_token(input_cost_per_token, output_cost_per_token))
    else:
        price = _book.find(model, provider=provider, service_tier=service_tier)
    bill = price.charge(usage) if price is not None else None
    if bill is None or bill.unpriced:
        raise UnknownModelError(model)
    rate = current_rate()
    return bill.nano_usd * rate.numerator / (rate.denominator * NANO)


def _per_token(per_input: Amount | None, per_output: Amount | None) -> ModelPrice:
    return ModelPrice(
        input_usd_per_mtok=None if per_input is None else usd_amount("input_cost_per_token", per_input) * 1_000_000,
        output_usd_per_mtok=None if per_output is None else usd_amount("output_cost_per_token", per_output) * 1_000_000,
        allow_high=True,
    )
