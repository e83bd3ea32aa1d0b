"""From a call's end to its bill: which price charges what. Pure besides caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from .models import catalogue_provider
from .records import Charge
from .settling import Billed, Conclusion, Ending, Part, Verdict, bill, judge

if TYPE_CHECKING:
    from .calls import Call
    from .names import ModelNames
    from .pricing import Price
    from .usage import Report, TokenUsage


class PriceOf(Protocol):
    """Looks up a price with the tracker's rules for unknown models."""

    def __call__(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> Price | None: ...


class Concluder:
    """Prices what calls used. `trust_provider_cost`: whether what a provider says a call cost is charged instead of our
    own sum: for all, none, or the named providers.
    """

    def __init__(
        self, names: ModelNames, price_of: PriceOf, *, trust_provider_cost: bool | Iterable[str] = False
    ) -> None:
        self._names = names
        self._trust_provider_cost = (
            trust_provider_cost
            if isinstance(trust_provider_cost, bool)
            else frozenset(map(catalogue_provider, trust_provider_cost))
        )
        self._price_of = price_of

    def conclude(self, call: Call, report: Report, ending: Ending) -> Conclusion:
        """What a call comes to, from what was read of its answer and how it ended."""
        verdict = judge(call, report, ending)
        if verdict.usage is None:
            return Conclusion(
                verdict, provider_request_id=report.provider_request_id, seen_output=report.visible_tokens
            )
        return self.priced(
            call,
            [(report.model, verdict.usage), *report.other_usage],
            verdict,
            service_tier=report.service_tier,
            provider_request_id=report.provider_request_id,
            provider_cost_nano_usd=report.cost_nano_usd,
        )

    def priced(
        self,
        call: Call,
        usages: Sequence[tuple[str | None, TokenUsage]],
        verdict: Verdict,
        *,
        service_tier: str | None = None,
        provider_request_id: str | None = None,
        provider_cost_nano_usd: int | None = None,
    ) -> Conclusion:
        """Price each usage by the model that served it. An explicit price for the admitted name wins; a served model
        without a price is charged at the admitted one's, and flagged. What a trusted provider says the call cost
        replaces all of these.
        """
        parts, flagged = [], False
        # The provider that was held for is the one that answered, whatever the model is called in the answer.
        provider = (call.price.provider if call.price is not None else "") or call.spec.provider
        for index, (served, usage) in enumerate(usages):
            explicit = index == 0 and call.price is not None and call.price.explicit
            name = call.model if explicit or not served else served
            price = self._price_of(name, provider=provider, service_tier=service_tier)
            if price is None:
                flagged = call.price is not None
                price = call.price
            parts.append(Part(self._names.of(served or call.model), price, usage))
        billed = bill(parts)
        if provider_cost_nano_usd is not None and not verdict.estimated and self._trusts(provider):
            cost = Charge(bucket="provider_cost", quantity=1, nano_usd=provider_cost_nano_usd)
            billed, flagged = Billed(provider_cost_nano_usd, (cost,), False), False
        return Conclusion(
            verdict, tuple(parts), billed, flagged, service_tier, provider_request_id, provider_cost_nano_usd
        )

    def _trusts(self, provider: str | None) -> bool:
        trusted = self._trust_provider_cost
        return trusted if isinstance(trusted, bool) else catalogue_provider(provider or "") in trusted
