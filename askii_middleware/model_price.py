"""The price of one model as a person writes it down, and what it comes to per unit, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from .errors import ConfigurationError
from .usage import TokenUsage

Amount = Decimal | int | float | str
"""USD. A float counts as the decimal it is written as: 0.1 is one tenth."""

MAX_COUNT = 10**12
"""Tokens or seconds: far more than there are, and few enough to be written as JSON and multiplied."""
MAX_EXPONENT = 30
"""Of ten, in an amount."""
HIGH_USD_PER_M = 1000
"""Above this many USD per million a price is more likely a wrong unit, and needs `allow_high`."""

_MTOK = Fraction(1000)  # nano-USD per token for 1 USD per million tokens
_PER_1K = Fraction(1_000_000)
_UNITS: dict[str, tuple[str, Fraction]] = {
    "input": ("input_usd_per_mtok", _MTOK),
    "cache_read": ("cache_read_usd_per_mtok", _MTOK),
    "cache_write": ("cache_write_usd_per_mtok", _MTOK),
    "cache_write_1h": ("cache_write_1h_usd_per_mtok", _MTOK),
    "input_audio": ("input_audio_usd_per_mtok", _MTOK),
    "cache_read_audio": ("cache_read_audio_usd_per_mtok", _MTOK),
    "input_image": ("input_image_usd_per_mtok", _MTOK),
    "cache_read_image": ("cache_read_image_usd_per_mtok", _MTOK),
    "output": ("output_usd_per_mtok", _MTOK),
    "reasoning": ("reasoning_usd_per_mtok", _MTOK),
    "output_audio": ("output_audio_usd_per_mtok", _MTOK),
    "output_image": ("output_image_usd_per_mtok", _MTOK),
    "web_search": ("web_search_usd_per_1k", _PER_1K),
    "request": ("request_usd", Fraction(1_000_000_000)),
    "page": ("page_usd_per_1k", _PER_1K),
    "character": ("character_usd_per_mchar", _MTOK),
    "second": ("audio_usd_per_hour", Fraction(1_000_000_000, 3600)),
}
"""Bucket of `TokenUsage` to its price field and the nano-USD per counted unit that 1 USD in that field makes."""

BUCKETS = tuple(_UNITS)
AMOUNTS = frozenset(name for name, _ in _UNITS.values())
assert TokenUsage.__struct_fields__ == (*BUCKETS, "anomalous", "largest_prompt")

_PARENTS: dict[str, tuple[str, ...]] = {
    "cache_read": ("input",),
    "cache_write": ("input",),
    "cache_write_1h": ("cache_write", "input"),
    "input_audio": ("input",),
    "cache_read_audio": ("cache_read", "input_audio", "input"),
    "input_image": ("input",),
    "cache_read_image": ("cache_read", "input_image", "input"),
    "reasoning": ("output",),
    "output_audio": ("output",),
    "output_image": ("output",),
}
"""What a bucket without a price of its own costs: the first of these that has one."""

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """The price of one model, in USD per million tokens unless the name says otherwise.

    A field left out costs what its parent costs: cache reads, cache writes, audio and images what `input` or `output`
    costs, reasoning what `output` costs; a use that meets no price at all is reported as unpriced. A free model has
    its prices set to 0. Raises ConfigurationError naming the field for amounts that are negative, not finite or, above
    1,000 USD per million without `allow_high`, probably in the wrong unit.

    Args:
        request_usd: per call.
        audio_usd_per_hour: seconds of audio, such as transcription billed by duration; at least `minimum_seconds`.
        tiers: `{start: {field: amount}}`: prices that replace the base prices of the whole call once its input tokens
            exceed `start`. A field that a higher tier leaves out keeps the lower tier's price.
        service_tiers: `{"flex": {field: amount, "tiers": {…}}}`: prices that replace base and tier prices where that
            tier was served (`flex`, `priority`, `batch`, `fast`).
        provider: whose price it is; where several are given for one name, the call's provider decides.
        context_window: tokens, input and output together.
        max_output_tokens: the most the model generates in one answer.
        allow_high: accept more than 1,000 USD per million.
    """

    input_usd_per_mtok: Amount | None = None
    output_usd_per_mtok: Amount | None = None
    cache_read_usd_per_mtok: Amount | None = None
    cache_write_usd_per_mtok: Amount | None = None
    cache_write_1h_usd_per_mtok: Amount | None = None
    input_audio_usd_per_mtok: Amount | None = None
    cache_read_audio_usd_per_mtok: Amount | None = None
    input_image_usd_per_mtok: Amount | None = None
    cache_read_image_usd_per_mtok: Amount | None = None
    reasoning_usd_per_mtok: Amount | None = None
    output_audio_usd_per_mtok: Amount | None = None
    output_image_usd_per_mtok: Amount | None = None
    web_search_usd_per_1k: Amount | None = None
    request_usd: Amount | None = None
    page_usd_per_1k: Amount | None = None
    character_usd_per_mchar: Amount | None = None
    audio_usd_per_hour: Amount | None = None
    minimum_seconds: int = 0
    tiers: Mapping[int, Mapping[str, Amount]] = field(default_factory=dict)
    service_tiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provider: str = ""
    context_window: int | None = None
    max_output_tokens: int | None = None
    allow_high: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        if type(self.allow_high) is not bool or not isinstance(self.provider, str):
            raise ConfigurationError("allow_high is true or false, and provider is text")
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None:
                put(self, name, usd_amount(name, value, allow_high=self.allow_high))
        put(self, "tiers", self._checked_tiers("tiers", self.tiers))
        served: dict[str, Mapping[str, Any]] = {}
        for tier, given in _table("service_tiers", self.service_tiers).items():
            where = f"service_tiers.{tier}"
            prices = _table(where, given)
            checked: dict[str, Any] = self._checked_amounts(where, {k: v for k, v in prices.items() if k != "tiers"})
            if "tiers" in prices:
                checked["tiers"] = self._checked_tiers(f"{where}.tiers", prices["tiers"])
            served[tier.casefold()] = checked
        put(self, "service_tiers", served)
        for name in ("minimum_seconds", "context_window", "max_output_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
                raise ConfigurationError(f"{name}: {value!r:.64} is not a whole number from 0 to {MAX_COUNT}")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ModelPrice:
        """From a table of a configuration file. Raises ConfigurationError that names an unknown key."""
        unknown = sorted(set(table) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigurationError(f"{unknown[0]}: not a price field; known are {', '.join(sorted(AMOUNTS))}")
        return cls(**table)

    def at_service_tier(self, service_tier: str | None) -> ModelPrice:
        """The price where `service_tier` was served; itself where that tier has no price of its own."""
        served = self.service_tiers.get(service_tier or "")
        if served is None:
            return self
        amounts = {name: amount for name, amount in served.items() if name != "tiers"}
        tiers: dict[int, dict[str, Amount]] = {
            start: {name: amount for name, amount in prices.items() if name not in amounts}
            for start, prices in self.tiers.items()
        }
        for start, prices in served.get("tiers", _NOTHING).items():
            tiers.setdefault(start, {}).update(prices)
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return ModelPrice(**{**kept, **amounts, "tiers": tiers, "service_tiers": _NOTHING})

    def _checked_amounts(self, where: str, prices: Mapping[str, Amount]) -> dict[str, Decimal]:
        unknown = sorted(set(_table(where, prices)) - AMOUNTS)
        if unknown:
            raise ConfigurationError(f"{where}.{unknown[0]}: not a price field")
        return {
            name: usd_amount(f"{where}.{name}", amount, allow_high=self.allow_high) for name, amount in prices.items()
        }

    def _checked_tiers(self, where: str, tiers: Mapping[Any, Mapping[str, Amount]]) -> dict[int, dict[str, Decimal]]:
        checked: dict[int, dict[str, Decimal]] = {}
        for start, prices in _table(where, tiers).items():
            # Keys of TOML and JSON tables are text.
            text = str(start)
            if isinstance(start, bool) or not text.isascii() or not text.isdigit():
                raise ConfigurationError(f"{where}: {start!r} is not a number of input tokens")
            checked[int(text)] = self._checked_amounts(f"{where}.{text}", prices)
        return dict(sorted(checked.items()))


def _table(where: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: {value!r:.64} is not a table of amounts")
    return value


def usd_amount(name: str, value: Any, *, allow_high: bool = False) -> Decimal:
    """An exact amount in USD. Raises ConfigurationError naming the field for what is not a finite amount of at
    least 0, and for more than 1,000 USD per million without `allow_high`.
    """
    try:
        amount = Decimal("nan") if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0 or abs(amount.adjusted()) > MAX_EXPONENT:
        raise ConfigurationError(f"{name}: {value!r} is not a finite amount in USD of at least 0")
    if amount > HIGH_USD_PER_M and not allow_high and name.endswith(("_per_mtok", "_per_mchar")):
        raise ConfigurationError(
            f"{name}: {value} USD per million is more than {HIGH_USD_PER_M}; check the unit, or set allow_high"
        )
    return abs(amount)  # minus zero is zero


def exact_rates(price: ModelPrice) -> list[dict[str, Fraction]]:
    """Nano-USD per unit of every bucket that has a price: the base prices, then those of each tier."""
    amounts: dict[str, Any] = {name: getattr(price, name) for name in AMOUNTS}
    levels = [amounts]
    for prices in price.tiers.values():
        amounts = {**amounts, **prices}
        levels.append(amounts)
    return [_with_parents(level) for level in levels]


def _with_parents(amounts: Mapping[str, Any]) -> dict[str, Fraction]:
    own = {
        bucket: Fraction(amounts[name]) * scale for bucket, (name, scale) in _UNITS.items() if amounts[name] is not None
    }
    rates = dict(own)
    for bucket, parents in _PARENTS.items():
        source = next((name for name in parents if name in own), None)
        if bucket not in own and source:
            rates[bucket] = own[source]
    return rates
