"""`MODEL_PRICING`: prices by model that take effect when they are changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..models import catalogue_provider, split_provider
from ..pricing_config import PROVIDERS
from . import homes

if TYPE_CHECKING:
    from ..pricing import PriceBook, PricingConfig

_BUCKETS = {"input": "input", "output": "output", "cached_input": "cache_read", "cache_write": "cache_write"}


class ModelPricing(MutableMapping[str, Mapping[str, float]]):
    """Model to `{"input": …, "output": …}` in USD per 1,000 tokens, of the process's own tracker.

    Looking a model up gives the price that calls are charged at now, wherever that comes from, so names that are not
    listed can be found. Listed and deleted are those that were set here. A price in the configuration, or set at run
    time through the API, comes before; to set one here that it would hide is a ConfigurationError.
    """

    def __getitem__(self, model: str) -> Mapping[str, float]:
        price = homes.default().prices.find(model)
        if price is None:
            raise KeyError(model)
        found = {name: price.usd_per_mtok(bucket) for name, bucket in _BUCKETS.items()}
        return {
            name: float(amount / 1000)
            for name, amount in found.items()
            if amount is not None and (name in ("input", "output") or amount != found["input"])
        }

    def __setitem__(self, model: str, prices: Mapping[str, Any]) -> None:
        for tracker in homes.both():
            book = tracker.prices
            table = getattr(book.config, _home(book, model))
            before = table.get(model)
            table[model] = prices
            price, wanted = book.find(model), dict(table[model])
            for name, bucket in _BUCKETS.items():
                is_amount = None if price is None else price.usd_per_mtok(bucket)
                if name in wanted and is_amount != wanted[name] * 1000:
                    table.pop(model)
                    if before is not None:
                        table[model] = before
                    raise ConfigurationError(
                        f"MODEL_PRICING[{model[:256]!r}]: the configuration or the pricing endpoint has a price for "
                        "this model, which comes before; change it there"
                    )

    def __delitem__(self, model: str) -> None:
        """The price before it was set here applies again."""
        found = False
        for tracker in homes.both():
            for provider in PROVIDERS:
                found = getattr(tracker.prices.config, provider).pop(model, None) is not None or found
        if not found:
            raise KeyError(model)

    def __contains__(self, model: object) -> bool:
        return isinstance(model, str) and homes.default().prices.find(model) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(model for _, model, _ in _config().items()))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"MODEL_PRICING({ {model: self[model] for model in self} })"


def _config() -> PricingConfig:
    return homes.default().prices.config


def _home(book: PriceBook, model: str) -> str:
    """The provider under which a model's price is filed: where it was before, else whose model it is."""
    known = next((provider for provider, name, _ in book.config.items() if name == model), None)
    if known is not None:
        return known
    price = book.find(model)
    owner = split_provider(model)[0] or (price.provider if price is not None else "")
    return next((provider for provider in PROVIDERS if catalogue_provider(provider) == owner), "local")


MODEL_PRICING = ModelPricing()
