"""From a call's specification to its hold: candidates, bounds, and the one question to the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from .admission import PPM, Admission, Candidate, ReserveRequest
from .budgets import BudgetIndex
from .calls import CallSpec
from .currency import MAX_NANO_USD, Rate, nano_to_coins, nano_to_coins_text, nano_to_usd_text
from .errors import BudgetExceededError, StoreError, UnknownModelError
from .output_limits import max_output_tokens
from .stores.base import StaleFormsError
from .tokens import encoding_of
from .usage import NOTHING_USED
from .waiting import bounded

if TYPE_CHECKING:
    from .fallbacks import Fallbacks
    from .identity import Identity
    from .pricing import Price, PriceBook
    from .providers.base import BatchItems
    from .stores.base import Store

DEFAULT_PRICE = "askii-default-price"
"""The name `default_price` is filed under."""
CONTEXT_WINDOW = 128_000
"""Tokens held for a prompt that is not in the request, where neither a setting nor the model's window is known."""
BACKGROUND_S = 26 * 3600.0
"""How long the hold of an operation may live that goes on after its answer."""
UNPRICED_HOLD_NANO_USD = 1
"""A model without a price still needs room in its budgets: this asks for it."""

_about = msgspec.json.Encoder().encode


class Option(NamedTuple):
    """A candidate model with everything that depends on it."""

    model: str
    price: Price | None
    input_bound: int
    output_bound: int
    write_output_limit: int | None
    hold_nano_usd: int


class Admitter:
    """Decides what to ask the store. Owns no state besides its configuration."""

    def __init__(
        self,
        store: Store,
        prices: PriceBook,
        index: BudgetIndex,
        fallbacks: Fallbacks,
        *,
        unknown_price: Literal["reject", "default", "allow"],
        default_max_output_tokens: int,
        remote_input_tokens: int | None,
        max_call_s: float,
        downgrade_at: float,
        provider_of: Callable[[str], str | None] | None,
        answer_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._prices = prices
        self._index = index
        self._fallbacks = fallbacks
        self._unknown_price = unknown_price
        self._default_max_output_tokens = default_max_output_tokens
        self._remote_input_tokens = remote_input_tokens
        self._max_call_s = max_call_s
        self._answer_timeout_s = answer_timeout_s
        self._downgrade_at_ppm = round(downgrade_at * PPM)
        self._provider_of = provider_of
        self._clock = clock

    def count_early(self, spec: CallSpec) -> None:
        """Count the prompt now if the order of the candidates may depend on how full the budgets are."""
        if spec.count_input is not None and self._downgrade_at_ppm != PPM:
            spec.counted_input, spec.count_input = spec.count_input(), None

    def price_of(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None:
        """The price of a model, or the configured default; None where there is neither."""
        price = self._prices.find(model, provider=provider, service_tier=service_tier)
        if price is None and self._unknown_price == "default":
            price = self._prices.find(DEFAULT_PRICE)
        return price

    def options(self, spec: CallSpec) -> list[Option]:
        """The requested model and its fallbacks, with their bounds and holds. Raises UnknownModelError where the
        requested one has no price; fallbacks without one are left out (the start refuses them anyway).
        """
        found: list[Option] = []
        for model in (spec.model, *self._fallbacks.of(spec.model, spec.kind)):
            if found and spec.accepts is not None and not spec.accepts(model):
                continue
            price = self._price_for(model, spec)
            if price is None and self._unknown_price != "allow" and spec.kind != "batch":
                if found:
                    continue
                raise UnknownModelError(model)
            entering = self._input_tokens(spec, model) + (self._remote(price) if spec.remote_input else 0)
            if spec.output_tokens is not None:
                leaving, write = spec.output_tokens, None
            else:
                known = (price.max_output_tokens if price else None) or max_output_tokens(model)
                leaving = (known or self._default_max_output_tokens) * spec.choices
                write = None if known or spec.kind != "text" else self._default_max_output_tokens
            hold = self._hold(spec, price, entering, leaving)
            # Beyond what a counter holds no amount is any larger: it fits no budget.
            found.append(Option(model, price, entering, leaving, write, min(hold, MAX_NANO_USD)))
        return found

    def _price_for(self, model: str, spec: CallSpec) -> Price | None:
        """The price at the provider that will serve the model. One that prices no text is none for a call of text."""
        provider = self._provider_of(model) if self._provider_of is not None else None
        price = self.price_of(model, provider=provider or spec.provider, service_tier=spec.service_tier)
        if price is None or price.serves(spec.kind):
            return price
        return self._prices.find(DEFAULT_PRICE) if self._unknown_price == "default" else None

    def _hold(self, spec: CallSpec, price: Price | None, entering: int, leaving: int) -> int:
        """What a call may cost at a price. A batch costs what its items do, each at its own model's."""
        if spec.kind == "batch":
            return sum(self._hold_for_items(spec, items) for items in spec.items) or UNPRICED_HOLD_NANO_USD
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

    def candidate(self, option: Option, identity: Identity, spec: CallSpec) -> Candidate:
        """An option as the store sees it: its hold and the budgets it meets."""
        return Candidate(
            option.model, option.hold_nano_usd, self._index.matches(self.dimensions(identity, spec, option))
        )

    def dimensions(self, identity: Identity, spec: CallSpec, option: Option) -> dict[str, str | tuple[str, ...] | None]:
        """All dimension values of a call with this model."""
        values = identity.dimensions()
        if self._index.by_model:
            values["model"] = self._prices.canonical(option.model)
            values["provider"] = option.price.provider if option.price else spec.provider
            values["deployment"] = spec.deployment
        return values

    async def reserve(
        self,
        identity: Identity,
        spec: CallSpec,
        options: list[Option],
        *,
        call_id: str,
        worker: str,
        rate: Rate,
        replaces: str | None,
    ) -> tuple[Admission, list[Candidate], list[Option]]:
        """Hold for the first option that fits. The bytes of a prompt bound its tokens several times over, so where
        they can be counted they are, before anything cheaper or a refusal. Raises StoreError.

        Returns the store's answer, and the candidates and options it speaks of.
        """

        async def ask(offered: list[Option]) -> tuple[Admission, list[Candidate]]:
            return await self._ask(
                identity, spec, offered, call_id=call_id, worker=worker, rate=rate, replaces=replaces
            )

        count = spec.count_input
        if count is not None:
            admission, candidates = await ask(options[:1])
            if admission.candidate is not None:
                return admission, candidates, options
            spec.counted_input, spec.count_input = count(), None
            options = self.options(spec)
        admission, candidates = await ask(options)
        return admission, candidates, options

    async def _ask(
        self,
        identity: Identity,
        spec: CallSpec,
        options: list[Option],
        *,
        call_id: str,
        worker: str,
        rate: Rate,
        replaces: str | None,
    ) -> tuple[Admission, list[Candidate]]:
        """One question to the store; again where the budgets' forms have changed meanwhile."""
        about = _about({"tenant": identity.tenant, "model": spec.model, "api": spec.api})
        for _attempt in range(3):
            candidates = [self.candidate(option, identity, spec) for option in options]
            request = ReserveRequest(
                call_id=call_id,
                worker=worker,
                candidates=tuple(candidates),
                windows=self._index.windows(self._clock()),
                rate=rate.ratio,
                deadline_s=max(self._max_call_s, BACKGROUND_S) if spec.background else self._max_call_s,
                forms_version=self._index.version,
                downgrade_at_ppm=self._downgrade_at_ppm,
                replaces=replaces,
                about=about,
            )
            try:
                return await bounded(self._store.reserve(request), self._answer_timeout_s), candidates
            except TimeoutError:
                raise StoreError(f"the ledger {self._store.url} did not answer in time (settle_timeout_s)") from None
            except StaleFormsError:
                self._index.update(*await self._store.forms())
        raise StoreError("budgets keep changing faster than they can be read; try again")


def exceeded(refusal: Admission, rate: Rate) -> BudgetExceededError:
    """The error for a refusal, in both currencies."""
    line, reason = refusal.deciding, refusal.reason
    assert line is not None
    assert reason is not None
    limit = line.limit_nano_usd or 0
    used = line.spent_nano_usd + line.held_nano_usd
    what = "is spent" if reason == "spent" else "is held by running calls"
    return BudgetExceededError(
        f"the {line.period} budget of {line.scope} {what}: {nano_to_usd_text(line.spent_nano_usd)} USD spent and "
        f"{nano_to_usd_text(line.held_nano_usd)} USD held of {nano_to_usd_text(limit)} USD "
        f"({nano_to_coins_text(used, rate)} of {nano_to_coins_text(limit, rate)} Askii Coins)",
        current_cost=float(nano_to_coins(used, rate)),
        max_budget=float(nano_to_coins(limit, rate)),
        scope=line.scope,
        reason=reason,
        resets_at_s=line.resets_at_s,
    )
