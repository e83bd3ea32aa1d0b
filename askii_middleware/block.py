"""`track_tokens`: a call made in code, held for on entry and settled on exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from .calls import Call, CallSpec, RequestContext, current_request
from .counting import Usage, check_model, checked_metadata, whole_count
from .errors import BudgetExceededError, TenantSuspendedError
from .identity import Identity
from .log_fields import fields, shown
from .settling import RELEASE, Conclusion, Ending, Verdict, bill
from .usage import Report

if TYPE_CHECKING:
    from .tracker import CostTracker

logger = logging.getLogger(__name__)


class TrackedBlock:
    """The context manager behind `track_tokens`. Enter once."""

    def __init__(
        self,
        tracker: CostTracker,
        tenant_id: str | Identity | None,
        model: str,
        *,
        expected_input_tokens: int | None,
        max_output_tokens: int | None,
        provider: str | None,
        metadata: Mapping[str, Any] | None,
        covers_request: bool,
        identity: Mapping[str, Any],
    ) -> None:
        unknown = sorted(identity.keys() - {"key", "user", "team", "end_user", "tags"})
        if unknown:
            raise TypeError(f"track_tokens() got an unexpected keyword argument {unknown[0]!r}")
        self.tracker = tracker
        self._tenant = tenant_id
        if isinstance(identity.get("tags"), str):
            raise TypeError("tags takes several texts, not one")
        self._fields: dict[str, Any] = {name: tuple(v) if name == "tags" else v for name, v in identity.items()}
        known = expected_input_tokens is not None
        bound = whole_count("expected_input_tokens", expected_input_tokens) if known else 0
        self._spec = CallSpec(
            model=check_model(model),
            provider=provider,
            input_tokens=bound,
            input_estimate=bound,
            output_tokens=None if max_output_tokens is None else whole_count("max_output_tokens", max_output_tokens),
            remote_input=not known,
            metadata=checked_metadata(metadata),
        )
        self._covers_request = covers_request
        self._entered = False
        self._call: Call | None = None
        self._usage: Usage | None = None
        self._request: RequestContext | None = None
        """The request whose hold this block took over."""

    async def __aenter__(self) -> Usage:
        if self._entered:
            raise RuntimeError("a track_tokens block can be entered once; make a new one")
        self._entered = True
        context = current_request.get()
        identity = await self._identity(context)
        try:
            self._call = await self._admit(context, identity)
        except (BudgetExceededError, TenantSuspendedError) as error:
            if context is not None:
                context.denied = error
            raise
        if context is not None:
            context.denied = None
        self._usage = Usage(self._call)
        return self._usage

    async def _identity(self, context: RequestContext | None) -> Identity:
        if self._tenant is not None and not isinstance(self._tenant, Identity):
            return Identity(tenant=self._tenant, **self._fields)  # which refuses what is no text
        found = self._tenant or await self.tracker.request_identity(context)
        if found is None:
            raise ValueError("track_tokens needs a tenant_id: no request that the middleware identified is running")
        return msgspec.structs.replace(found, **self._fields) if self._fields else found

    async def _admit(self, context: RequestContext | None, identity: Identity) -> Call:
        request = context.call if context is not None else None
        if context is None or request is None:
            return await self.tracker.admit(identity, self._spec)
        if context.taken or request.closed or not self._covers_request:
            context.blocks += 1
            return await self.tracker.admit(identity, self._spec, call_id=f"{request.id}.{context.blocks}")
        # Before any await: a second block that starts meanwhile must hold for itself.
        context.taken = True
        self._request = context
        tracker, prices = self.tracker, self.tracker.prices
        same_model = prices.canonical(request.model) == prices.canonical(self._spec.model)
        try:
            if (
                same_model
                and request.identity.tenant == identity.tenant
                # Whether what the block is billed passes in the request's own stream nobody knows.
                and (not tracker.meters.watches(request) or await tracker.meters.cover(request))
            ):
                tracker.tracing.admitted(request)
                return request
            context.blocks += 1
            call = await tracker.admit(
                identity,
                self._spec,
                call_id=f"{request.id}.{context.blocks}",
                replaces=request.id if request.held else None,
            )
        except BaseException:
            context.taken = False
            raise
        request.closed = True
        return call

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        call, usage = self._call, self._usage
        assert call is not None
        assert usage is not None
        if usage.is_counted or (error is not None and usage.has_begun and not usage.goes_on):
            await self._settle(call, usage, error)
        elif not usage.goes_on and (error is not None or usage.has_failed):
            await self._give_up(call)
        else:
            if self._request is not None and self._request.call is call:
                # The request's own answer may say what was used.
                self._request.taken = False
            tracker = self.tracker
            tracker.deferrals.add(call.id, self._finish, tracker.block_grace_s)
            usage.when_late(lambda: tracker.deferrals.due(call.id))

    async def abandon(self, error: BaseException) -> None:
        """Leave a block that its user was interrupted in entering."""
        if self._call is not None:
            await self.__aexit__(type(error), error, None)

    async def _give_up(self, call: Call) -> None:
        """The call failed and reported nothing, so nothing is charged. What the request itself answers counts again."""
        context = self._request
        own = context.settle_own if context is not None else None
        if context is None or context.call is not call or (context.over and own is None):
            await self.tracker.close_call(call, Conclusion(RELEASE))
        if context is not None and context.call is not None:
            context.taken = False
            if context.call is not call:
                context.call.closed = False
            if context.over and own is not None:
                await own()

    async def _settle(self, call: Call, usage: Usage, error: BaseException | None) -> None:
        tracker = self.tracker
        left = isinstance(error, asyncio.CancelledError | GeneratorExit) and not self._spec.remote_input
        ending = Ending(status=200, complete=error is None, client_left=left)
        reports = usage.reports() or [Report()]
        name_of = tracker.names.of
        served = next((r.model for r in reports if r.model and name_of(r.model) != name_of(call.model)), None)
        if served is not None:
            tracker.metrics.model_mismatch()
            logger.warning(
                "call %s: admitted for %s but answered by %s",
                call.id,
                shown(call.model),
                shown(served),
                extra=fields("model_mismatch", call_id=call.id, model=call.model, served_model=served),
            )
        priced = self._at_chosen_model(call, usage.chosen_model)
        found = [tracker.concluder.conclude(priced, report, ending) for report in reports]
        await tracker.close_call(call, _together([c for c in found if c.verdict.usage is not None]))

    def _at_chosen_model(self, call: Call, model: str | None) -> Call:
        """The call as if it had been admitted for the model that was set by hand, if that has a price."""
        price = None if model is None else self.tracker.price_of(model, provider=self._spec.provider)
        return call if model is None or price is None else replace(call, model=model, price=price)

    async def _finish(self) -> None:
        """The end of the grace period, or of the tracker: late counts, else the request's own answer, else the hold."""
        call, usage, context = self._call, self._usage, self._request
        assert call is not None
        assert usage is not None
        if usage.is_counted:
            await self._settle(call, usage, None)
        elif context is None or context.call is not call:
            await self.tracker.charge_hold(call)
        elif context.over and context.settle_own is not None:
            await context.settle_own()
        elif context.over:
            await self.tracker.charge_hold(call)


def _together(conclusions: list[Conclusion]) -> Conclusion:
    """Several responses of one call as one: each keeps its own price, tier and rounding."""
    if len(conclusions) == 1:
        return conclusions[0]
    last = conclusions[-1]
    parts = tuple(part for conclusion in conclusions for part in conclusion.parts)
    return Conclusion(
        Verdict(
            usage=last.verdict.usage,
            outcome=last.verdict.outcome,
            estimated=any(conclusion.verdict.estimated for conclusion in conclusions),
        ),
        parts,
        bill(parts),
        any(conclusion.flagged for conclusion in conclusions),
        last.service_tier,
        last.provider_request_id,
    )
