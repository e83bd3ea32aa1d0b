"""`track_tokens`: a call made in code, held for on entry and settled on exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from .calls import Call, CallSpec, RequestContext, current_request
from .identity import Identity
from .providers.response import record_into
from .settling import RELEASE, Conclusion, Verdict
from .usage import Report, TokenUsage

if TYPE_CHECKING:
    from .tracker import CostTracker

logger = logging.getLogger(__name__)

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
)
MAX_COUNT = 2**53


class Usage(MutableMapping[str, Any]):
    """What a block has used: a mapping of counts (0 where nothing was set), filled by `record` or by hand.

    Keys: `input_tokens`, `output_tokens`, `cached_input_tokens`, `cache_write_tokens`, `reasoning_tokens`,
    `audio_input_tokens`, `audio_output_tokens`, and `model`, the model that the counts are charged at.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reports: list[Report] = []
        self._counts: dict[str, int] = {}
        self._model: str | None = None
        self._finished: TrackedBlock | None = None

    @property
    def model(self) -> str:
        """The admitted model: the one to call."""
        return self._call.model

    @property
    def requested_model(self) -> str:
        return self._call.spec.model

    @property
    def fallback_reason(self) -> str | None:
        """Why `model` is not the requested one; None where it is."""
        return self._call.fallback_reason

    @property
    def max_output_tokens(self) -> int:
        """The output that is held for: pass it as the call's limit, and it cannot cost more than its hold."""
        return self._call.output_bound

    @property
    def call_id(self) -> str:
        return self._call.id

    def record(self, response: Any) -> None:
        """Take the usage out of any provider's response, a dict, JSON, or one chunk of a stream. Chunks of one stream
        replace each other (their usage is cumulative); further responses add up. What carries no usage is ignored.
        """
        fresh = Report()
        record_into(fresh, response)
        last = self._reports[-1] if self._reports else None
        if last is None or _another(last, fresh):
            self._reports.append(fresh)
            last = fresh
        else:
            record_into(last, response)
        if self._finished is not None and last.usage is not None:
            self._finished.counted_late()

    def __getitem__(self, key: str) -> Any:
        if key == "model":
            return self._model or self._call.model
        if key not in COUNTS:
            raise KeyError(f"{key!r}: usage has {', '.join(COUNTS)} and model")
        own = self._counts.get(key)
        return own if own is not None else sum(_count(r.usage, key) for r in self._reports if r.usage is not None)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "model":
            if not isinstance(value, str) or not value:
                raise ValueError(f"usage['model'] takes a model's name, not {value!r}")
            self._model = value
            return
        if key not in COUNTS:
            raise KeyError(f"{key!r}: usage has {', '.join(COUNTS)} and model")
        _check_count(f"usage[{key!r}]", value)
        self._counts[key] = value
        if self._finished is not None and {"input_tokens", "output_tokens"} <= self._counts.keys():
            self._finished.counted_late()

    def __delitem__(self, key: str) -> None:
        self._counts.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(COUNTS)

    def __len__(self) -> int:
        return len(COUNTS)

    @property
    def counted(self) -> bool:
        """Whether there is anything to charge."""
        return bool(self._counts) or any(report.usage is not None for report in self._reports)

    def usages(self) -> list[tuple[str | None, TokenUsage]]:
        """Usage by the model that served it. Counts by hand replace the recorded totals and keep the admitted model
        unless `usage["model"]` is set.
        """
        recorded = [(self._model or r.model, r.usage) for r in self._reports if r.usage is not None]
        extra = [other for r in self._reports for other in r.other_usage]
        if self._counts:
            served = recorded[0][0] if recorded else None
            totals = {key: self[key] for key in COUNTS}
            return [
                (
                    self._model or served,
                    TokenUsage.from_totals(
                        totals["input_tokens"],
                        totals["output_tokens"],
                        cached_input_tokens=totals["cached_input_tokens"],
                        cache_write_tokens=totals["cache_write_tokens"],
                        reasoning_tokens=totals["reasoning_tokens"],
                        audio_input_tokens=totals["audio_input_tokens"],
                        audio_output_tokens=totals["audio_output_tokens"],
                    ),
                ),
                *extra,
            ]
        return [*recorded, *extra]

    @property
    def last_report(self) -> Report:
        return self._reports[-1] if self._reports else Report()


def _count(usage: TokenUsage | None, key: str) -> int:
    if usage is None:
        return 0
    if key == "reasoning_tokens":
        return usage.reasoning
    if key == "audio_output_tokens":
        return usage.output_audio
    return int(getattr(usage, key))


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT):
        raise ValueError(f"{name} takes a whole number of at least 0, not {value!r}")


def _another(last: Report, fresh: Report) -> bool:
    """Whether a response is a new one rather than the next chunk of the last."""
    if last.provider_request_id is not None and fresh.provider_request_id is not None:
        return last.provider_request_id != fresh.provider_request_id
    return last.finished and fresh.usage is not None and last.usage is not None


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
        metadata: Mapping[str, Any],
        covers_request: bool,
        identity: Mapping[str, Any],
    ) -> None:
        for name, value in (("expected_input_tokens", expected_input_tokens), ("max_output_tokens", max_output_tokens)):
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT
            ):
                raise ValueError(f"{name} takes a whole number of at least 0, not {value!r}")
        if not isinstance(model, str) or not model or len(model) > 256:
            raise ValueError(f"model takes a name of 1 to 256 characters, not {model!r:.300}")
        self._tracker = tracker
        self._tenant = tenant_id
        self._identity_fields = identity
        self._spec = CallSpec(
            model=model,
            provider=provider,
            input_tokens=expected_input_tokens or 0,
            input_estimate=expected_input_tokens or 0,
            output_tokens=max_output_tokens,
            remote_input=expected_input_tokens is None,
            metadata=metadata,
        )
        self._covers_request = covers_request
        self._call: Call | None = None
        self._usage: Usage | None = None
        self._late: asyncio.Event | None = None
        self._shares: RequestContext | None = None
        """The request whose own call this block uses."""

    async def __aenter__(self) -> Usage:
        if self._call is not None:
            raise RuntimeError("a track_tokens block can be entered once; make a new one")
        context = current_request.get()
        identity = await self._identity(context)
        self._call = await self._admit(context, identity)
        self._usage = Usage(self._call)
        return self._usage

    async def _identity(self, context: RequestContext | None) -> Identity:
        if isinstance(self._tenant, Identity):
            return self._tenant
        if self._tenant is not None:
            return Identity(tenant=self._tenant, **self._identity_fields)
        found = await self._tracker.request_identity(context)
        if found is None:
            raise ValueError("track_tokens needs a tenant_id: no request that the middleware identified is running")
        return found

    async def _admit(self, context: RequestContext | None, identity: Identity) -> Call:
        request = context.call if context is not None else None
        if context is None or request is None:
            return await self._tracker.admit(identity, self._spec)
        if context.taken or request.closed or not self._covers_request:
            context.blocks += 1
            return await self._tracker.admit(identity, self._spec, call_id=f"{request.id}.{context.blocks}")
        # Before any await: a second block that starts meanwhile must hold for itself.
        context.taken = True
        prices = self._tracker.prices
        same_model = prices.canonical(request.model) == prices.canonical(self._spec.model)
        if same_model and request.identity.tenant == identity.tenant:
            self._shares = context
            return request
        context.blocks += 1
        try:
            call = await self._tracker.admit(
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
        if usage.counted:
            await self._settle()
        elif error is not None:
            # The call failed and reported nothing, so nothing is charged; a request's own call is the request's again.
            if self._shares is not None:
                self._shares.taken = False
            else:
                await self._tracker.close_call(call, Conclusion(RELEASE))
        else:
            self._late = asyncio.Event()
            usage._finished = self  # noqa: SLF001 - one unit with its block
            self._tracker.after_block(self._grace())

    async def _settle(self) -> None:
        call, usage = self._call, self._usage
        assert call is not None
        assert usage is not None
        usages = usage.usages()
        report = usage.last_report
        shown = self._tracker.concluder.shown
        if usages[0][0] and shown(usages[0][0]) != shown(call.model):
            self._tracker.metrics.model_mismatch()
            logger.warning("call %s: admitted for %s but answered by %s", call.id, call.model, usages[0][0])
        conclusion = self._tracker.concluder.priced(
            call,
            usages,
            Verdict(usage=usages[0][1]),
            service_tier=report.service_tier,
            provider_request_id=report.provider_request_id,
        )
        await self._tracker.close_call(call, conclusion)

    def counted_late(self) -> None:
        """Counts were set after the block had ended."""
        if self._late is not None:
            self._late.set()

    async def _grace(self) -> None:
        """Wait for counts set after the block, then settle; without any, charge the hold as an estimate."""
        call, usage, late = self._call, self._usage, self._late
        assert call is not None
        assert usage is not None
        assert late is not None
        try:
            async with asyncio.timeout(self._tracker.block_grace_s):
                await late.wait()
        except (TimeoutError, asyncio.CancelledError):
            pass
        if usage.counted:
            await self._settle()
            return
        logger.warning("call %s: the block ended without counts; its hold is charged", call.id)
        whole = TokenUsage(input=call.input_bound, output=call.output_bound)
        verdict = Verdict(usage=whole, outcome="deferred_estimate", estimated=True)
        await self._tracker.close_call(call, self._tracker.concluder.priced(call, [(None, whole)], verdict))
