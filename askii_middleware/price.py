"""What one model costs: the price a person writes down, and its compiled form that charges in integers.

A price is kept as exact rationals over one common denominator, so a whole usage is summed exactly and rounded once:
half-even for a charge, up for a hold.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import lcm
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec.structs import astuple

from .errors import ConfigurationError
from .records import Charge
from .usage import TokenUsage

Amount = Decimal | int | float | str
"""USD. A float counts as the decimal it is written as: 0.1 is one tenth."""

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
assert TokenUsage.__struct_fields__ == (*BUCKETS, "anomalous")

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

_TEXT_IN = ("input", "cache_read", "cache_write", "cache_write_1h")
_MEDIA_IN = (*_TEXT_IN, "input_audio", "cache_read_audio", "input_image", "cache_read_image")
_TEXT_OUT = ("output", "reasoning")
_MEDIA_OUT = (*_TEXT_OUT, "output_audio", "output_image")
_REQUEST = BUCKETS.index("request")
_SECOND = BUCKETS.index("second")

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
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None:
                put(self, name, usd_amount(name, value, allow_high=self.allow_high))
        put(self, "tiers", self._checked_tiers("tiers", self.tiers))
        served: dict[str, Mapping[str, Any]] = {}
        for tier, prices in self.service_tiers.items():
            where = f"service_tiers.{tier}"
            checked: dict[str, Any] = self._checked_amounts(where, {k: v for k, v in prices.items() if k != "tiers"})
            if "tiers" in prices:
                checked["tiers"] = self._checked_tiers(f"{where}.tiers", prices["tiers"])
            served[tier.casefold()] = checked
        put(self, "service_tiers", served)
        for name in ("minimum_seconds", "context_window", "max_output_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ConfigurationError(f"{name}: {value!r} is not a whole number of at least 0")

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
        unknown = sorted(set(prices) - AMOUNTS)
        if unknown:
            raise ConfigurationError(f"{where}.{unknown[0]}: not a price field")
        return {
            name: usd_amount(f"{where}.{name}", amount, allow_high=self.allow_high) for name, amount in prices.items()
        }

    def _checked_tiers(self, where: str, tiers: Mapping[Any, Mapping[str, Amount]]) -> dict[int, dict[str, Decimal]]:
        checked: dict[int, dict[str, Decimal]] = {}
        for start, prices in tiers.items():
            # Keys of TOML and JSON tables are text.
            text = str(start)
            if isinstance(start, bool) or not text.isascii() or not text.isdigit():
                raise ConfigurationError(f"{where}: {start!r} is not a number of input tokens")
            checked[int(text)] = self._checked_amounts(f"{where}.{text}", prices)
        return dict(sorted(checked.items()))


def usd_amount(name: str, value: Any, *, allow_high: bool = False) -> Decimal:
    """An exact amount in USD. Raises ConfigurationError naming the field for what is not a finite amount of at
    least 0, and for more than 1,000 USD per million without `allow_high`.
    """
    try:
        amount = Decimal("nan") if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0 or abs(amount.adjusted()) > 30:
        raise ConfigurationError(f"{name}: {value!r} is not a finite amount in USD of at least 0")
    if amount > HIGH_USD_PER_M and not allow_high and name.endswith(("_per_mtok", "_per_mchar")):
        raise ConfigurationError(
            f"{name}: {value} USD per million is more than {HIGH_USD_PER_M}; check the unit, or set allow_high"
        )
    return abs(amount)  # minus zero is zero


class Bill(NamedTuple):
    """A charge in nano-USD, rounded once, and the buckets that sum to it. `unpriced`: something used has no price."""

    nano_usd: int
    charges: tuple[Charge, ...]
    unpriced: bool


_Rates = tuple[int | None, ...]


class Price:
    """A compiled price at one service tier: nano-USD per unit as integers over one denominator.

    Args:
        base: the price without a service tier, where `price` is already that of a tier.

    Attributes:
        model: the name of the entry that was found, which need not be the name that was asked for.
        provider: whose price it is.
        explicit: given by the user, not by the catalogue.
        free: there is a price, and all of it is 0.
        prices_input, prices_output: text has a price there; models billed by seconds or pages only have none.
    """

    __slots__ = (
        "_at_base_tier",
        "_denominator",
        "_media_holds",
        "_minimum_seconds",
        "_rates",
        "_request_fee",
        "_starts",
        "_text_holds",
        "context_window",
        "explicit",
        "free",
        "max_output_tokens",
        "model",
        "prices_input",
        "prices_output",
        "provider",
    )

    def __init__(
        self,
        model: str,
        price: ModelPrice,
        *,
        explicit: bool = True,
        service_tier: str | None = None,
        base: ModelPrice | None = None,
        max_output_tokens: int | None = None,
    ) -> None:
        base = price if base is None else base
        price = price.at_service_tier(service_tier)
        self._at_base_tier = None if price == base else Price(model, base, explicit=explicit)
        self.model = model
        self.provider = price.provider
        self.explicit = explicit
        self.context_window = price.context_window
        own_limit = price.max_output_tokens
        self.max_output_tokens = max_output_tokens if own_limit is None else own_limit
        self._starts = tuple(price.tiers)
        exact = _exact_rates(price)
        self._denominator = lcm(*(rate.denominator for rates in exact for rate in rates.values()))
        scaled = [{bucket: int(rate * self._denominator) for bucket, rate in rates.items()} for rates in exact]
        self._rates: tuple[_Rates, ...] = tuple(tuple(rates.get(bucket) for bucket in BUCKETS) for rates in scaled)
        self._text_holds = _dearest(scaled, _TEXT_IN, _TEXT_OUT)
        self._media_holds = _dearest(scaled, _MEDIA_IN, _MEDIA_OUT)
        self.prices_input = scaled[0].get("input") is not None
        self.prices_output = scaled[0].get("output") is not None
        self._request_fee = max(rates.get("request", 0) for rates in scaled)
        self._minimum_seconds = price.minimum_seconds
        self.free = bool(scaled[0]) and not any(rate for rates in scaled for rate in rates.values())

    def __repr__(self) -> str:
        return f"Price({self.model!r}, provider={self.provider!r}, explicit={self.explicit}, free={self.free})"

    def charge(self, usage: TokenUsage) -> Bill:
        """What a usage costs: summed exactly and rounded half-even once; the buckets' charges, by largest remainder,
        sum to it. A model with a fee per call charges one call where the usage counts none.

        `unpriced` says that a used bucket has no price. Calls (`request`) set it only where nothing else was priced:
        most models have no fee per call.
        """
        rates = self._rates[bisect_left(self._starts, usage.input_tokens) if self._starts else 0]
        denominator = self._denominator
        total = 0
        unpriced = uncharged_calls = False
        used: list[tuple[str, int, int]] = []
        for bucket, quantity, rate in zip(BUCKETS, astuple(usage), rates, strict=False):
            if quantity > 0:
                if rate is None:
                    if bucket == "request":
                        uncharged_calls = True
                        continue
                    unpriced, rate = True, 0  # noqa: PLW2901 - no price charges nothing and says so
                amount = quantity * rate
                total += amount
                used.append((bucket, quantity, amount))
        if self._request_fee or self._minimum_seconds:
            total = self._add_floors(usage, rates, used, total)
        nano, rest = divmod(total, denominator)
        if 2 * rest > denominator or (2 * rest == denominator and nano & 1):
            nano += 1
        if denominator == 1:
            charges = tuple([Charge(bucket=b, quantity=q, nano_usd=amount) for b, q, amount in used])
        else:
            charges = _spread(used, denominator, nano)
        return Bill(nano, charges, unpriced or (uncharged_calls and not used))

    def usd_per_mtok(self, bucket: str) -> Decimal | None:
        """The base rate of a token bucket, for people; None where it has no price."""
        rate = self._rates[0][BUCKETS.index(bucket)]
        return None if rate is None else Decimal(rate) / (self._denominator * 1000)

    def hold(self, input_tokens: int, output_tokens: int, *, media: bool = False) -> int:
        """Nano-USD, rounded up, that no call within these bounds exceeds: at the dearest input and output bucket of
        every tier the input can reach, with one call's fee. Audio and images count only with `media`; fees of tools
        are not in it. A service tier that is only asked for may be served as the base tier: the dearer of the two.
        """
        holds = self._media_holds if media else self._text_holds
        per_input, per_output = holds[bisect_left(self._starts, input_tokens) if self._starts else 0]
        hold = -(-(input_tokens * per_input + output_tokens * per_output + self._request_fee) // self._denominator)
        if self._at_base_tier is None:
            return hold
        return max(hold, self._at_base_tier.hold(input_tokens, output_tokens, media=media))

    def _add_floors(self, usage: TokenUsage, rates: _Rates, used: list[tuple[str, int, int]], total: int) -> int:
        """The fee of one call where none was counted, and the shortest audio that is billed."""
        fee = rates[_REQUEST]
        if fee and used and usage.request <= 0:
            used.append(("request", 1, fee))
            total += fee
        per_second = rates[_SECOND]
        if per_second and 0 < usage.second < self._minimum_seconds:
            place = next(i for i, (bucket, _, _) in enumerate(used) if bucket == "second")
            total += (self._minimum_seconds - usage.second) * per_second
            used[place] = ("second", self._minimum_seconds, self._minimum_seconds * per_second)
        return total


def _exact_rates(price: ModelPrice) -> list[dict[str, Fraction]]:
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


def _dearest(
    levels: list[dict[str, int]], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[tuple[int, int], ...]:
    """Per tier, the dearest input and output rate of it and all below: a cheaper upper tier never lowers a hold."""
    found: list[tuple[int, int]] = []
    per_input = per_output = 0
    for rates in levels:
        per_input = max(per_input, *(rates.get(bucket, 0) for bucket in inputs))
        per_output = max(per_output, *(rates.get(bucket, 0) for bucket in outputs))
        found.append((per_input, per_output))
    return tuple(found)


def _spread(used: list[tuple[str, int, int]], denominator: int, nano_usd: int) -> tuple[Charge, ...]:
    """Whole nano-USD per bucket that sum to the rounded total: the largest remainders are rounded up."""
    parts = [divmod(amount, denominator) for _, _, amount in used]
    left = nano_usd - sum(whole for whole, _ in parts)
    order = sorted(range(len(parts)), key=lambda i: -parts[i][1])
    raised = set(order[:left])
    return tuple(
        [
            Charge(bucket=bucket, quantity=quantity, nano_usd=parts[i][0] + (i in raised))
            for i, (bucket, quantity, _) in enumerate(used)
        ]
    )
