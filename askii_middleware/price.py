"""The compiled price of one model, which charges and holds in integers.

It is kept as exact rationals over one common denominator, so a whole usage is summed exactly and rounded once:
half-even for a charge, up for a hold.
"""

from __future__ import annotations

from bisect import bisect_left
from decimal import Decimal
from math import lcm
from typing import NamedTuple

from msgspec.structs import astuple

from .model_price import BUCKETS, ModelPrice, exact_rates
from .records import Charge
from .usage import TokenUsage

_TEXT_IN = ("input", "cache_read", "cache_write", "cache_write_1h")
_MEDIA_IN = (*_TEXT_IN, "input_audio", "cache_read_audio", "input_image", "cache_read_image")
_TEXT_OUT = ("output", "reasoning")
_MEDIA_OUT = (*_TEXT_OUT, "output_audio", "output_image")
_REQUEST = BUCKETS.index("request")
_SECOND = BUCKETS.index("second")
_UNIT_BUCKETS = frozenset(("web_search", "page", "character", "second"))
"""What is counted besides tokens and calls."""


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
        exact = exact_rates(price)
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
        starts = self._starts
        rates = self._rates[bisect_left(starts, usage.largest_prompt or usage.input_tokens) if starts else 0]
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

    def serves(self, kind: str) -> bool:
        """Whether a call of this kind meets a price: text needs one for prompt and answer, an embedding one for its
        input; what else models do is priced in many units, of which there must be one.
        """
        if kind == "text":
            return self.prices_input and self.prices_output
        return self.prices_input if kind == "embedding" else any(rate is not None for rate in self._rates[0])

    def covers(self, usage: TokenUsage) -> bool:
        """Whether every bucket that was used has a price."""
        return all(
            rate is not None for quantity, rate in zip(astuple(usage), self._rates[0], strict=False) if quantity > 0
        )

    def hold(
        self, input_tokens: int, output_tokens: int, *, media: bool = False, units: TokenUsage | None = None
    ) -> int:
        """Nano-USD, rounded up, that no call within these bounds exceeds: at the dearest input and output bucket of
        every tier the input can reach, with one call's fee. Audio and images count only with `media`; fees of tools
        are not in it. `units` bounds what is counted besides tokens. A service tier that is only asked for may be
        served as the base tier: the dearer of the two.
        """
        holds = self._media_holds if media else self._text_holds
        per_input, per_output = holds[bisect_left(self._starts, input_tokens) if self._starts else 0]
        amount = input_tokens * per_input + output_tokens * per_output
        amount += self._request_fee if units is None else self._hold_for_units(units)
        hold = -(-amount // self._denominator)
        if self._at_base_tier is None:
            return hold
        return max(hold, self._at_base_tier.hold(input_tokens, output_tokens, media=media, units=units))

    def output_within(
        self, nano_usd: int, input_tokens: int, *, media: bool = False, units: TokenUsage | None = None
    ) -> int | None:
        """The most output tokens that a hold of `nano_usd` pays for beside `input_tokens`, below 0 where it does not
        pay for these; None where output costs nothing. `hold` of the result never exceeds `nano_usd`.
        """
        holds = self._media_holds if media else self._text_holds
        per_input, per_output = holds[bisect_left(self._starts, input_tokens) if self._starts else 0]
        left = nano_usd * self._denominator - input_tokens * per_input
        left -= self._request_fee if units is None else self._hold_for_units(units)
        found = left // per_output if per_output else None
        if self._at_base_tier is None:
            return found
        at_base = self._at_base_tier.output_within(nano_usd, input_tokens, media=media, units=units)
        return at_base if found is None else found if at_base is None else min(found, at_base)

    def _hold_for_units(self, units: TokenUsage) -> int:
        total = max(units.request, 1) * self._request_fee
        for bucket, quantity in zip(BUCKETS, astuple(units), strict=False):
            if quantity > 0 and bucket in _UNIT_BUCKETS:
                least = self._minimum_seconds if bucket == "second" else 0
                place = BUCKETS.index(bucket)
                total += max(quantity, least) * max(rates[place] or 0 for rates in self._rates)
        return total

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
