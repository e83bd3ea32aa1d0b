"""From a call's specification to its hold: the one question to the store, and the call its answer makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from .admission import PPM, Admission, Candidate, ReserveRequest
from .budgets import BudgetIndex
from .calls import Call, CallSpec
from .currency import Rate, nano_to_coins, nano_to_coins_text, nano_to_usd_text
from .errors import BudgetExceededError, StoreError
from .stores.base import StaleFormsError
from .usage import NOTHING_USED
from .waiting import bounded

if TYPE_CHECKING:
    from .identity import Identity
    from .options import Option, OptionBuilder
    from .stores.base import Store

BACKGROUND_S = 26 * 3600.0
"""How long the hold of an operation may live that goes on after its answer."""

_about = msgspec.json.Encoder().encode


class Admitted(NamedTuple):
    """A store's answer, and the candidates and options it speaks of. `admission` None: nobody was asked."""

    admission: Admission | None
    candidates: list[Candidate]
    options: list[Option]


class Admitter:
    """Decides what to ask the store. Owns no state besides its configuration.

    Args:
        model_name: the name under which budgets know a model.
    """

    def __init__(
        self,
        store: Store,
        index: BudgetIndex,
        builder: OptionBuilder,
        *,
        model_name: Callable[[str], str],
        max_call_s: float,
        downgrade_at: float,
        answer_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._index = index
        self._builder = builder
        self._model_name = model_name
        self._max_call_s = max_call_s
        self._answer_timeout_s = answer_timeout_s
        self.downgrade_at_ppm = round(downgrade_at * PPM)
        self._clock = clock

    def count_early(self, spec: CallSpec, *, shadow: bool) -> None:
        """Count the prompt now if the order of the candidates may depend on how full the budgets are, or if there will
        be no second question because nothing is refused.
        """
        if spec.count_input is not None and (shadow or self.downgrade_at_ppm != PPM):
            spec.counted_input, spec.count_input = spec.count_input(), None

    def candidate(self, option: Option, identity: Identity, spec: CallSpec) -> Candidate:
        """An option as the store sees it: its hold and the budgets it meets."""
        return Candidate(
            option.model,
            option.hold_nano_usd,
            self._index.matches(self.dimensions(identity, spec, option)),
            option.least_nano_usd,
        )

    def dimensions(self, identity: Identity, spec: CallSpec, option: Option) -> dict[str, str | tuple[str, ...] | None]:
        """All dimension values of a call with this model."""
        values = identity.dimensions()
        if self._index.by_model:
            values["model"] = self._model_name(option.model)
            # As in the record: a price that somebody set may name no provider.
            values["provider"] = (option.price.provider if option.price else None) or spec.provider
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
        shadow: bool,
    ) -> Admitted:
        """Hold for the first option that fits. The bytes of a prompt bound its tokens several times over, so where
        they can be counted they are, before anything cheaper, a lower limit or a refusal. Raises StoreError.
        """

        async def ask(offered: list[Option]) -> Admitted:
            return await self._ask(
                identity, spec, offered, call_id=call_id, worker=worker, rate=rate, replaces=replaces, shadow=shadow
            )

        count = spec.count_input
        if count is not None:
            admitted = await ask([options[0]._replace(least_nano_usd=None)])
            if admitted.admission is not None and admitted.admission.candidate is not None:
                return admitted
            spec.counted_input, spec.count_input = count(), None
            options = self._builder.options(spec, identity.tenant)
        return await ask(options)

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
        shadow: bool,
    ) -> Admitted:
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
                downgrade_at_ppm=self.downgrade_at_ppm,
                replaces=replaces,
                shadow=shadow,
                about=about,
            )
            try:
                admission = await bounded(self._store.reserve(request), self._answer_timeout_s)
            except TimeoutError:
                raise StoreError(f"the ledger {self._store.url} did not answer in time (settle_timeout_s)") from None
            except StaleFormsError:
                self._index.update(*await self._store.forms())
            else:
                return Admitted(admission, candidates, options)
        raise StoreError("budgets keep changing faster than they can be read; try again")


def made_call(
    admitted: Admitted,
    identity: Identity,
    spec: CallSpec,
    index: BudgetIndex,
    *,
    call_id: str,
    rate: Rate,
    started_s: float,
    held: bool,
    now_s: float,
) -> Call:
    """The call that an answer which refused nothing makes."""
    admission = admitted.admission
    chosen = (admission.candidate or 0) if admission is not None else 0
    option = admitted.options[chosen]
    granted = option.hold_nano_usd if admission is None else admission.hold_nano_usd
    bound, covered, write, clamped = option.output_bound, option.output_bound, option.write_output_limit, False
    if admission is None or admission.shadow is not None:
        write = None  # nothing is held that it would have to fit, or nothing may be changed
    if granted < option.hold_nano_usd or option.metered:
        units = None if spec.units is NOTHING_USED else spec.units
        assert option.price is not None
        paid = option.price.output_within(granted, option.input_bound, media=spec.media, units=units)
        covered = bound if paid is None else min(bound, paid)
        if not option.metered:
            clamped, write = True, covered // spec.choices
            bound = covered = write * spec.choices
    return Call(
        id=call_id,
        spec=spec,
        identity=identity,
        model=option.model,
        price=option.price,
        held_nano_usd=granted,
        held=held,
        input_bound=option.input_bound,
        output_bound=bound,
        covered_tokens=covered,
        write_output_limit=write,
        clamped=clamped,
        matches=admitted.candidates[chosen].matches,
        windows=index.windows(now_s),
        rate=rate,
        admitted_at_s=now_s if admission is None else admission.admitted_at_s,
        started_s=started_s,
        states=() if admission is None else admission.states,
        fallback_reason="budget" if chosen else None,
        shadow=None if admission is None or admission.shadow is None else _shadow_text(admission.shadow, admitted),
    )


def _shadow_text(answer: Admission, admitted: Admitted) -> str | None:
    """What would have happened, for the record; None where nothing would have been different."""
    if answer.candidate is None:
        kind = ",".join(part.partition("=")[0] for part in answer.deciding.scope.split(",")) if answer.deciding else ""
        return f"denied:{answer.reason}:{kind}"
    option = admitted.options[answer.candidate]
    if answer.candidate:
        return f"fallback:{option.model}"
    return "clamped" if answer.hold_nano_usd < option.hold_nano_usd and not option.metered else None


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
