"""What an admission would answer now, and why: the same options, budgets and decision as `admit`, without a hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from .admission import Admission, BudgetState, Candidate, decide, fitting
from .admitting import Admitted, exceeded, made_call
from .budget_status import BudgetStatus, statuses, usd
from .calls import Call, CallSpec
from .counting import check_model, whole_count
from .currency import Rate, nano_to_coins, nano_to_usd_text
from .explanations import CandidateExplanation, Explanation, Verdict
from .identity import Identity
from .modes import Modes
from .options import Option
from .reports import Reports

if TYPE_CHECKING:
    from .errors import TenantSuspendedError
    from .item_watch import ItemWatcher
    from .tenants import TenantBook


class _Told(NamedTuple):
    """A candidate with what would become of it alone."""

    option: Option
    budgets: list[BudgetStatus]
    call: Call | None
    """As it would be admitted; None where it is refused."""
    alone: Admission
    deciding: BudgetStatus | None


class Explaining(Reports):
    """Mixed into `CostTracker`."""

    modes: Modes
    tenants: TenantBook
    watcher: ItemWatcher

    async def explain(
        self,
        who: str | Identity,
        model: str | CallSpec,
        *,
        input_tokens: int = 0,
        output_tokens: int | None = None,
        provider: str | None = None,
        deployment: str | None = None,
        stream: bool = False,
        api: str = "request",
    ) -> Explanation:
        """What an admission of this call would answer now, and why. Looks only: nothing is held, so the answer may be
        out of date before it arrives.

        Args:
            who: who would call, or the tenant's name.
            model: the requested model; or the whole specification of a call, which the other arguments then do not
                change.
            input_tokens: the prompt's bound.
            output_tokens: the answer's limit; None: the request sets none.
            provider: whose prices apply where the model's name does not say.
            deployment: for budgets on deployments.
            stream: the answer is streamed, and all its output can be seen.
            api: `request`, or `code` for a block of `track_tokens`, whose output nobody can clamp.

        Raises UnknownModelError, ValueError, StoreError.
        """
        await self.ready()
        if isinstance(model, str):
            model = described_call(
                model,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                provider=provider,
                deployment=deployment,
                stream=stream,
                api=api,
            )
        return await self.read_explanation(who if isinstance(who, Identity) else Identity(tenant=who), model)

    async def read_explanation(self, identity: Identity, spec: CallSpec) -> Explanation:
        """`explain` on a store that is open, without starting anything."""
        spec = replace(spec)  # counting the prompt changes it
        rate, mode = self.rates.current(), self.modes.of(identity.tenant)
        self.index.update(*await self.store.forms())
        await self.watcher.look()
        self._admitter.count_early(spec, shadow=True)
        options = self._builder.options(spec, identity.tenant, lenient=mode == "shadow")
        candidates = [self._admitter.candidate(option, identity, spec) for option in options]
        now_s = self.clock()
        windows = self.index.windows(now_s)
        lines: list[list[BudgetState]] = []
        for candidate in candidates:
            if lines and candidate.matches is candidates[len(lines) - 1].matches:
                lines.append(lines[-1])
            else:
                lines.append(await self.store.status(candidate.matches, windows, rate.ratio))
        stored = await self.stored_terms(match for candidate in candidates for match in candidate.matches)

        def admitted(admission: Admission) -> Call:
            return made_call(
                Admitted(admission, candidates, options),
                identity,
                spec,
                self.index,
                call_id="",
                rate=rate,
                started_s=0.0,
                held=False,
                now_s=now_s,
            )

        told = []
        for index, (option, candidate) in enumerate(zip(options, candidates, strict=True)):
            budgets = statuses(lines[index], candidate.matches, stored, rate)
            told.append(_tell(index, option, candidate, lines[index], budgets, now_s, admitted))
        answer = decide(candidates, lines, admitted_at_s=now_s, downgrade_at_ppm=self._admitter.downgrade_at_ppm)
        explanation = _summed_up(identity, spec, self.modes, answer, told, rate)
        suspended = self.tenants.find(identity.tenant)
        return explanation if suspended is None or mode == "off" else _refused(explanation, suspended)


def _refused(explanation: Explanation, suspended: TenantSuspendedError) -> Explanation:
    """What is answered to a suspended tenant, whatever its budgets say. In shadow the call is made all the same."""
    told = replace(explanation, verdict="refused", winner=None, reason=None, deciding=None, why=str(suspended))
    return told if told.mode == "shadow" else replace(told, called=None, hold_usd=usd(0), hold_coins=Decimal(0))


def described_call(
    model: str,
    *,
    input_tokens: int = 0,
    output_tokens: int | None = None,
    provider: str | None = None,
    deployment: str | None = None,
    stream: bool = False,
    api: str = "request",
) -> CallSpec:
    """A call as `Explaining.explain` describes it. Raises ValueError."""
    return CallSpec(
        model=check_model(model),
        api=api,
        family=api,
        provider=provider,
        deployment=deployment,
        input_tokens=whole_count("input_tokens", input_tokens),
        output_tokens=None if output_tokens is None else whole_count("output_tokens", output_tokens),
        stream=stream,
        shows_output=(lambda _model: True) if stream else None,
    )


def _tell(
    index: int,
    option: Option,
    candidate: Candidate,
    lines: Sequence[BudgetState],
    budgets: list[BudgetStatus],
    now_s: float,
    admitted: Callable[[Admission], Call],
) -> _Told:
    alone = decide([candidate], [lines], admitted_at_s=now_s)
    granted = fitting(lines, candidate.hold_nano_usd, candidate.least_nano_usd)
    call = None
    if granted is not None:
        call = admitted(Admission(candidate=index, admitted_at_s=now_s, states=tuple(lines), hold_nano_usd=granted))
    deciding = None if alone.deciding is None else budgets[lines.index(alone.deciding)]
    return _Told(option, budgets, call, alone, deciding)


def _summed_up(
    identity: Identity, spec: CallSpec, modes: Modes, answer: Admission, told: Sequence[_Told], rate: Rate
) -> Explanation:
    mode = modes.of(identity.tenant)
    winner = None if answer.candidate is None else told[answer.candidate]
    held, called = answer.hold_nano_usd, None if winner is None else winner.option.model
    if mode != "enforce":
        # Whatever budgets say, the requested model is called; in shadow its whole hold stands.
        held, called = told[0].option.hold_nano_usd if mode == "shadow" else 0, spec.model
    deciding = None
    if answer.deciding is not None:
        deciding = next(each.deciding for each in told if each.alone.deciding == answer.deciding)
    return Explanation(
        tenant=identity.tenant,
        model=spec.model,
        mode=mode,
        mode_why=modes.why(identity.tenant),
        verdict="refused" if winner is None else _verdict(winner),
        winner=None if winner is None else winner.option.model,
        called=called,
        hold_usd=usd(held),
        hold_coins=nano_to_coins(held, rate),
        reason=answer.reason,
        deciding=deciding,
        why=exceeded(answer, rate).message if winner is None else f"{winner.option.model}: {_why(winner)}",
        candidates=tuple(_shown(index, each, answer.candidate, told, rate) for index, each in enumerate(told)),
    )


def _shown(index: int, each: _Told, winner: int | None, told: Sequence[_Told], rate: Rate) -> CandidateExplanation:
    option, call = each.option, each.call
    why = exceeded(each.alone, rate).message if call is None else _why(each)
    if call is not None and winner is not None and index != winner:
        rule = "above downgrade_at fallbacks come first" if index == 0 else "it comes first"
        why += f", but {told[winner].option.model} is taken: {rule}"
    return CandidateExplanation(
        model=option.model,
        provider=option.price.provider if option.price else None,
        input_tokens=option.input_bound,
        output_tokens=option.output_bound,
        hold_usd=usd(option.hold_nano_usd),
        hold_coins=nano_to_coins(option.hold_nano_usd, rate),
        least_usd=None if option.least_nano_usd is None else usd(option.least_nano_usd),
        fits=call is not None,
        wins=index == winner,
        verdict=_verdict(each),
        tokens=None if call is None or not (call.clamped or option.metered) else call.covered_tokens,
        reason=each.alone.reason,
        deciding=each.deciding,
        why=why,
        budgets=tuple(each.budgets),
    )


def _verdict(each: _Told) -> Verdict:
    if each.call is None:
        return "refused"
    if each.option.metered:
        return "metered"
    return "clamped" if each.call.clamped else "whole"


def _why(each: _Told) -> str:
    call = each.call
    assert call is not None
    fits = f"its hold of {nano_to_usd_text(call.held_nano_usd)} USD fits"
    if each.option.metered:
        return f"{fits}, pays for {call.covered_tokens} tokens of output, and grows with the stream"
    return f"{fits} with at most {call.covered_tokens} tokens of output" if call.clamped else fits
