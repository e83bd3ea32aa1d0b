"""Prices as the guides write them: USD per 1,000 tokens, by provider.

    pricing = PricingConfig()
    pricing.openai["custom-model"] = {"input": 0.02, "output": 0.04}

They may be set at any time, also while a tracker uses them: every change moves `revision`, which a `PriceBook`
compares at each look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from decimal import Decimal
from typing import Any, TypeVar

from .errors import ConfigurationError
from .model_price import Amount, ModelPrice, usd_amount

PROVIDERS = (
    "openai",
    "anthropic",
    "google",
    "azure",
    "bedrock",
    "mistral",
    "cohere",
    "deepseek",
    "groq",
    "xai",
    "perplexity",
    "openrouter",
    "together",
    "fireworks",
    "ollama",
    "vllm",
    "local",
)
"""The attributes of a `PricingConfig`."""

_FIELDS = {
    "input": "input_usd_per_mtok",
    "output": "output_usd_per_mtok",
    "cached_input": "cache_read_usd_per_mtok",
    "cache_write": "cache_write_usd_per_mtok",
}

V = TypeVar("V")


class _Watched(MutableMapping[str, V]):
    """A dictionary that checks what is put in and reports every change."""

    def __init__(self, check: Callable[[str, Any], V], changed: Callable[[], None], start: Mapping[str, Any]) -> None:
        self._check = check
        self._changed = changed
        self._values = {key: check(key, value) for key, value in start.items()}

    def __getitem__(self, key: str) -> V:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = self._check(key, value)
        self._changed()

    def __delitem__(self, key: str) -> None:
        del self._values[key]
        self._changed()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr({key: dict(value) if isinstance(value, _Watched) else value for key, value in self.items()})


class PricingConfig:
    """Prices by provider, each a dictionary of model to `{"input": …, "output": …}` in USD per 1,000 tokens; also
    `cached_input`, `cache_write`, and `allow_high: True` for more than 1 USD per 1,000 tokens (1,000 USD per million).

    A price here applies to its model's name at every provider; where the same name is priced for several, the call's
    own provider decides. Raises ConfigurationError, naming model and key, when a wrong price is set.
    """

    openai: MutableMapping[str, Mapping[str, Any]]
    anthropic: MutableMapping[str, Mapping[str, Any]]
    google: MutableMapping[str, Mapping[str, Any]]
    azure: MutableMapping[str, Mapping[str, Any]]
    bedrock: MutableMapping[str, Mapping[str, Any]]
    mistral: MutableMapping[str, Mapping[str, Any]]
    cohere: MutableMapping[str, Mapping[str, Any]]
    deepseek: MutableMapping[str, Mapping[str, Any]]
    groq: MutableMapping[str, Mapping[str, Any]]
    xai: MutableMapping[str, Mapping[str, Any]]
    perplexity: MutableMapping[str, Mapping[str, Any]]
    openrouter: MutableMapping[str, Mapping[str, Any]]
    together: MutableMapping[str, Mapping[str, Any]]
    fireworks: MutableMapping[str, Mapping[str, Any]]
    ollama: MutableMapping[str, Mapping[str, Any]]
    vllm: MutableMapping[str, Mapping[str, Any]]
    local: MutableMapping[str, Mapping[str, Any]]

    def __init__(self, **prices: Mapping[str, Mapping[str, Amount]]) -> None:
        self.revision = 0
        """Moves with every change."""
        unknown = sorted(set(prices) - set(PROVIDERS))
        if unknown:
            raise ConfigurationError(f"pricing.{unknown[0]}: unknown provider; known are {', '.join(PROVIDERS)}")
        for provider in PROVIDERS:
            setattr(self, provider, prices.get(provider, {}))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "revision":
            object.__setattr__(self, name, value)
            return
        if name not in PROVIDERS:
            raise AttributeError(f"pricing.{name}: unknown provider; known are {', '.join(PROVIDERS)}")
        object.__setattr__(
            self, name, _Watched(lambda model, prices: self._entry(name, model, prices), self._moved, value)
        )
        self._moved()

    def _moved(self) -> None:
        self.revision += 1

    def _entry(self, provider: str, model: str, prices: Any) -> Mapping[str, Any]:
        where = f"pricing.{provider}[{model!r}]"
        if not isinstance(prices, Mapping) or not prices:
            raise ConfigurationError(
                f'{where}: expected {{"input": USD, "output": USD}} per 1,000 tokens, got {prices!r}'
            )

        def check(key: str, value: Any) -> Any:
            if key == "allow_high":
                return bool(value)
            if key not in _FIELDS:
                raise ConfigurationError(f"{where}: {key!r} is none of {', '.join(_FIELDS)}, allow_high")
            return usd_amount(f"{where}[{key!r}]", value)

        entry: _Watched[Any] = _Watched(check, self._moved, prices)
        _model_price(where, provider, entry)
        return entry

    def items(self) -> Iterator[tuple[str, str, ModelPrice]]:
        """Provider, model and price of every entry."""
        for provider in PROVIDERS:
            entries: Mapping[str, Mapping[str, Any]] = getattr(self, provider)
            for model, prices in entries.items():
                yield provider, model, _model_price(f"pricing.{provider}[{model!r}]", provider, prices)


def _model_price(where: str, provider: str, prices: Mapping[str, Any]) -> ModelPrice:
    per_mtok: dict[str, Any] = {
        _FIELDS[key]: Decimal(amount) * 1000 for key, amount in prices.items() if key != "allow_high"
    }
    try:
        return ModelPrice(**per_mtok, provider=provider, allow_high=prices.get("allow_high", False))
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
