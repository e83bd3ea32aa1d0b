"""What a call costs at today's prices, from the charges in its record. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from . import catalogue
from .corrections import History, admitted_model, moment_of
from .model_price import BUCKETS
from .price import Price
from .records import EXTERNAL
from .usage import TokenUsage

if TYPE_CHECKING:
    from .records import Charge, UsageRecord

MAX_KNOWN = 4096
_PLACES = {bucket: place for place, bucket in enumerate(BUCKETS)}


class PriceAt(Protocol):
    """Looks up a price as it was at a moment (Unix seconds)."""

    def __call__(self, model: str, provider: str | None, service_tier: str | None, at_s: float) -> Price | None: ...


class Part(NamedTuple):
    """What one model used in a call, as far as it was charged. `model` None: the model that served it."""

    model: str | None
    usage: TokenUsage
    nano_usd: int
    """What it was charged."""


class Unpriceable(Exception):  # noqa: N818 - an answer rather than an error
    """Why a call cannot be priced again."""


def parts_of(record: UsageRecord) -> list[Part]:
    """What was used, from a record's charges: those of one part stand in the order of the buckets."""
    parts: list[Part] = []
    counts: dict[str, int] = {}
    model: str | None = None
    last, nano_usd = -1, 0
    for charge in record.charges:
        prefix, _, bucket = charge.bucket.rpartition(":")
        place = _PLACES.get(bucket)
        if place is None:
            raise Unpriceable(_why_not(charge))
        # The fee of a call that counted none stands behind everything else.
        if counts and ((prefix or None) != model or (place <= last and bucket != "request") or bucket in counts):
            parts.append(Part(model, _usage(counts), nano_usd))
            counts, last, nano_usd = {}, -1, 0
        model, last = prefix or None, max(last, place)
        counts[bucket] = charge.quantity
        nano_usd += charge.nano_usd
    if counts:
        parts.append(Part(model, _usage(counts), nano_usd))
    return parts


def _usage(counts: dict[str, int]) -> TokenUsage:
    return msgspec.convert(counts, TokenUsage)


def _why_not(charge: Charge) -> str:
    if charge.bucket == "provider_cost":
        return "charged what its provider said it cost"
    return f"its charges have a bucket that is not known ({charge.bucket[:64]})"


def price_again(record: UsageRecord, price_at: PriceAt) -> int:
    """What a call costs at today's prices, in nano-USD: each part at its own model and rounded once, like a charge.
    Raises Unpriceable.
    """
    if record.api == EXTERNAL:
        raise Unpriceable("its coins were computed elsewhere")
    if record.unpriced:
        raise Unpriceable("some of what it used had no price, and was not kept")
    if sum(charge.nano_usd for charge in record.charges) != record.cost_nano_usd:
        raise Unpriceable("its charges do not sum to its cost")
    if not record.charges and (record.usage.input_tokens or record.usage.output_tokens):
        raise Unpriceable("it has no charges to price again")
    provider, tier, at_s = record.provider or None, record.service_tier, moment_of(record)
    own = price_at(admitted_model(record), provider, tier, at_s)
    total = 0
    for index, (model, usage, charged_nano_usd) in enumerate(parts_of(record)):
        price = own
        # As when it was charged: a price that was given for the admitted name wins, for what its call used first.
        if index or model is not None or own is None or not own.explicit:
            price = price_at(model or record.served_model, provider, tier, at_s) or own
        if price is None:
            raise Unpriceable("no price is known now")
        bill = price.charge(usage)
        if bill.unpriced:
            raise Unpriceable("today's price lacks some of what it used")
        # Batches and blocks are sums of calls. The size of each prompt is not kept: only a charge that is the same
        # today tells it.
        small = price.charge(_of_small_prompts(usage))
        if small.nano_usd != bill.nano_usd and charged_nano_usd not in (small.nano_usd, bill.nano_usd):
            raise Unpriceable("the price depends on the size of each prompt, which is not kept")
        total += charged_nano_usd if charged_nano_usd == small.nano_usd else bill.nano_usd
    return total


def _of_small_prompts(usage: TokenUsage) -> TokenUsage:
    return msgspec.structs.replace(usage, largest_prompt=1)


def difference(history: History, price_nano_usd: int) -> tuple[int, bool]:
    """What is still to be adjusted so that a call has come to a price, and whether that is less than the difference:
    no more is credited than corrections by hand have left.
    """
    wanted = price_nano_usd - history.priced_nano_usd
    possible = max(wanted, -max(history.net_nano_usd, 0))
    return possible, possible != wanted


class PricesAt:
    """Today's price book with the catalogue's dated and hourly prices as they were at a moment."""

    def __init__(self, price_of: Callable[..., Price | None], clock: Callable[[], float]) -> None:
        self._price_of = price_of
        self._clock = clock
        self._known: dict[tuple[str, str | None, str | None], tuple[float, float, Price | None]] = {}

    def __call__(self, model: str, provider: str | None, service_tier: str | None, at_s: float) -> Price | None:
        key = model, provider, service_tier
        known = self._known.get(key)
        if known is not None and known[0] <= at_s < known[1]:
            return known[2]
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        found = self._look(*key, at_s)
        self._known[key] = found
        return found[2]

    def _look(
        self, model: str, provider: str | None, tier: str | None, at_s: float
    ) -> tuple[float, float, Price | None]:
        """A price and the span in which it is known to hold."""
        always = float("-inf"), float("inf")
        price = self._price_of(model, provider=provider, service_tier=tier)
        if price is None or price.explicit:
            return *always, price
        entry = catalogue.locate(price.model, price.provider)
        if entry is None or entry.name != price.model:
            return *always, price
        tier = (tier or "").casefold() or None
        listed, until_s = catalogue.price_of(entry, tier, at_s)
        if until_s == always[1] and catalogue.price_of(entry, tier, 0.0)[1] == always[1]:
            return *always, price
        if listed is None:
            return at_s, until_s, None
        base = listed if tier is None else catalogue.price_of(entry, None, at_s)[0]
        return at_s, until_s, Price(entry.name, listed, explicit=False, base=base)
