"""The models a call could be sent to, each with its bounds and its hold. No I/O; prices are looked up here."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

from .calls import CallSpec
from .currency import MAX_NANO_USD, usd_to_nano
from .errors import UnknownModelError
from .expectations import Expectations
from .output_limits import max_output_tokens
from .tokens import encoding_of
from .usage import NOTHING_USED

if TYPE_CHECKING:
    from .fallbacks import Fallbacks
    from .pricing import Price, PriceBook
    from .providers.base import BatchItems

HoldPolicy = Literal["bound", "metered", "estimate"]
ClampOutput = Literal["unset", "always", "never"]

DEFAULT_PRICE = "askii-default-price"
"""The name `default_price` is filed under."""
CONTEXT_WINDOW = 128_000
"""Tokens held for a prompt that is not in the request, where neither a setting nor the model's window is known."""
BYTES_PER_TOKEN = 4
"""Of most text; many fewer only of text that is no language."""
UNPRICED_HOLD_NANO_USD = 1
"""A model without a price still needs room in its budgets: this asks for it."""
ABSURD = 4
"""So many times what a model's maker documents, no model generates."""
LEAST_SLICE_TOKENS = 64
"""A stream begins with room for so many tokens at least, and grows by no fewer."""


class Option(NamedTuple):
    """A candidate model with everything that depends on it.

    Attributes:
        output_bound: the most tokens that may come, whatever is held for them.
        write_output_limit: a limit per choice to write into the request.
        hold_nano_usd: what to hold: for the bound, or for a stream's first slice.
        least_nano_usd: the least that will do; None: all of `hold_nano_usd`.
        metered: the hold grows with the stream.
    """

    model: str
    price: Price | None
    input_bound: int
    output_bound: int
    write_output_limit: int | None
    hold_nano_usd: int
    least_nano_usd: int | None = None
    metered: bool = False


class OptionBuilder:
    """Turns a call's specification into options.

    Args:
        hold: the policy for every call; None: metered for streams, bound otherwise.
        clamp_output: whether a limit that fits may be written where the hold does not: into requests that set none,
            into all, or never; `min_output_tokens` per choice is the least of it.
    """

    def __init__(
        self,
        prices: PriceBook,
        fallbacks: Fallbacks,
        *,
        unknown_price: Literal["reject", "default", "allow"],
        default_max_output_tokens: int,
        file_batch_usd: Decimal | float,
        remote_input_tokens: int | None,
        provider_of: Callable[[str], str | None] | None,
        hold: HoldPolicy | None,
        clamp_output: ClampOutput,
        min_output_tokens: int,
        expectations: Expectations,
    ) -> None:
        self._prices = prices
        self._fallbacks = fallbacks
        self._unknown_price = unknown_price
        self._default_max_output_tokens = default_max_output_tokens
        self._file_batch_nano_usd = max(usd_to_nano(file_batch_usd), UNPRICED_HOLD_NANO_USD)
        self._remote_input_tokens = remote_input_tokens
        self._provider_of = provider_of
        self._policy = hold
        self._clamp_output = clamp_output
        self._min_output_tokens = min_output_tokens
        self._expectations = expectations

    def price_of(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or the configured default; None where there is neither."""
        price = self._prices.find(model, provider=provider, service_tier=service_tier)
        if price is None and self._unknown_price == "default":
            price = self._prices.find(DEFAULT_PRICE)
        return price

    def options(self, spec: CallSpec, tenant: str, *, lenient: bool = False) -> list[Option]:
        """The requested model and its fallbacks, with their bounds and holds. Raises UnknownModelError where the
        requested one, or another that the request names, has no price, unless `lenient`; fallbacks without one are left
        out (the start refuses them).
        """
        found: list[Option] = []
        for model in (spec.model, *self._fallbacks.of(spec.model, spec.kind)):
            if found and spec.accepts is not None and not spec.accepts(model):
                continue
            price = self._price_for(model, spec)
            if price is None and self._unknown_price != "allow" and spec.kind != "batch":
                if found:
                    continue
                if not lenient:
                    raise UnknownModelError(model)
            entering = self._input_tokens(spec, model) + (self._remote(price) if spec.remote_input else 0)
            known = (price.max_output_tokens if price else None) or max_output_tokens(model)
            if spec.output_tokens is not None:
                leaving, write = spec.output_tokens, None
                if known:  # an absurd limit is the provider's to refuse, and not to fill counters with
                    leaving = min(leaving, ABSURD * known * spec.choices)
            else:
                leaving = (known or self._default_max_output_tokens) * spec.choices
                write = None if known or spec.kind != "text" else self._default_max_output_tokens
            try:
                hold, least, metered = self._held(spec, tenant, model, price, entering, leaving)
            except UnknownModelError:  # of a batch's item, or of a model that the provider may call besides
                if not lenient:
                    raise
                hold, least, metered = UNPRICED_HOLD_NANO_USD, None, False
            # Beyond what a counter holds no amount is any larger: it fits no budget.
            hold = min(hold, MAX_NANO_USD)
            if least is not None and least >= hold:
                least = None
            found.append(Option(model, price, entering, leaving, write, hold, least, metered))
        return found

    def _held(
        self, spec: CallSpec, tenant: str, model: str, price: Price | None, entering: int, leaving: int
    ) -> tuple[int, int | None, bool]:
        """What to hold, the least that will do, and whether it grows as the answer streams."""
        bound = self._hold(spec, price, entering, leaving)
        if price is None or spec.kind != "text" or spec.other_models or spec.alternatives:
            return bound, None, False
        policy = self._policy or ("metered" if spec.stream else "bound")
        if policy == "estimate":
            expected = min(self._expectations.output_tokens(tenant, model), leaving)
            return min(self._hold(spec, price, spec.input_estimate, expected), bound), None, False
        if policy == "metered" and spec.stream and spec.shows_output is not None and spec.shows_output(model):
            slice_tokens = min(self._expectations.first_slice(tenant, model) * self._bytes_per_unit(model), leaving)
            hold = self._hold(spec, price, entering, slice_tokens)
            if hold < bound:
                return hold, self._hold(spec, price, entering, min(LEAST_SLICE_TOKENS, leaving)), True
        if (
            spec.takes_limit
            and spec.family != "code"
            and (self._clamp_output == "always" or (self._clamp_output == "unset" and spec.output_tokens is None))
        ):
            return bound, self._hold(spec, price, entering, min(self._min_output_tokens * spec.choices, leaving)), False
        return bound, None, False

    def _bytes_per_unit(self, model: str) -> int:
        """What passes is held for by its tokens where these can be counted, else by its bytes."""
        return 1 if encoding_of(self._prices.canonical(model)) is not None else BYTES_PER_TOKEN

    def _price_for(self, model: str, spec: CallSpec) -> Price | None:
        """The price at the provider that will serve the model. One that prices no text is none for a call of text."""
        provider = self._provider_of(model) if self._provider_of is not None else None
        price = self.price_of(model, provider=provider or spec.provider, service_tier=spec.service_tier)
        if price is None or price.serves(spec.kind):
            return price
        return self._prices.find(DEFAULT_PRICE) if self._unknown_price == "default" else None

    def _hold(self, spec: CallSpec, price: Price | None, entering: int, leaving: int) -> int:
        """What a call may cost at a price. A batch costs what its items do, each at its own model's; one whose items
        are in a file holds a deposit.
        """
        if spec.kind == "batch":
            return sum(self._hold_for_items(spec, items) for items in spec.items) or self._file_batch_nano_usd
        units = None if spec.units is NOTHING_USED else spec.units
        hold = price.hold(entering, leaving, media=spec.media, units=units) if price else UNPRICED_HOLD_NANO_USD
        for model in spec.alternatives:
            hold = max(hold, self._hold_for(model, spec, entering, leaving))
        return hold + sum(self._hold_for(model, spec, entering, leaving) for model in spec.other_models)

    def _hold_for_items(self, spec: CallSpec, items: BatchItems) -> int:
        price = self.price_of(items.model, provider=spec.provider)
        if price is None:
            if self._unknown_price != "allow":
                raise UnknownModelError(items.model)
            return UNPRICED_HOLD_NANO_USD
        leaving = items.output_tokens
        if items.unlimited:
            known = price.max_output_tokens or max_output_tokens(items.model)
            leaving += items.unlimited * (known or self._default_max_output_tokens)
        return price.hold(items.input_tokens, leaving, media=spec.media)

    def _hold_for(self, model: str, spec: CallSpec, entering: int, leaving: int) -> int:
        """A further model that the request lets the provider call, bounded as the call itself."""
        price = self.price_of(model, provider=spec.provider)
        if price is None and self._unknown_price != "allow":
            raise UnknownModelError(model)
        return price.hold(entering, leaving, media=spec.media) if price else UNPRICED_HOLD_NANO_USD

    def _input_tokens(self, spec: CallSpec, model: str) -> int:
        if spec.counted_input is None or encoding_of(self._prices.canonical(model)) != spec.counted_input[0]:
            return spec.input_tokens
        return min(spec.counted_input[1], spec.input_tokens)

    def _remote(self, price: Price | None) -> int:
        return self._remote_input_tokens or (price.context_window if price else None) or CONTEXT_WINDOW
