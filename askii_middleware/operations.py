"""Operations: calls that go on elsewhere after their answer, such as background responses and batches.

The ledger keeps each by the provider's id, with all that charging it needs, so that any worker that sees its end can
settle it: under its original id, at the moment of its admission, and therefore once. Its price is looked up again when
it is settled, by the admitted model and provider, as for every other call.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from .errors import StoreError
from .kept_calls import KeptCall, keep, read_kept, restore
from .log_fields import fields, shown
from .options import UNPRICED_HOLD_NANO_USD
from .records import CallOutcome, Charge
from .settling import Billed, Conclusion, Ending, Verdict
from .stores.base import MAX_PAYLOAD_BYTES, Operation
from .usage import NOTHING_USED, TokenUsage
from .waiting import bounded

if TYPE_CHECKING:
    from .calls import Call
    from .concluding import Concluder, PriceOf
    from .stores.base import Store
    from .usage import Report
    from .writer import LedgerWriter

logger = logging.getLogger(__name__)

DEFERRED_S = 25 * 3600.0
"""How long an operation may take before its hold is charged."""
AT_ONCE = 100
"""Overdue operations that one round of upkeep settles."""
MAX_UNASKED = 1000
MAX_ID_CHARS = 160


def operation_key(provider: str, operation: str) -> str:
    """The ledger's key of an operation. Ids are the provider's: whoever asks about one is told the truth about it, so
    the tenant is no part of it. Ids that are long, or more than plain text, are digested, never cut.
    """
    if len(operation) > MAX_ID_CHARS or not operation.isascii() or not operation.isprintable():
        operation = "sha256:" + sha256(operation.encode(errors="surrogatepass")).hexdigest()
    return f"{provider}:{operation}"


class Operations:
    """Puts operations into the ledger, and settles them: at the first sight of their end, else when they are overdue.

    Args:
        charge: writes a call's charge, whatever becomes of the store.
        released: told the API of a call that ended without a charge.
        timeout_s: how long the store may take to find an operation.
    """

    def __init__(
        self,
        store: Store,
        writer: LedgerWriter,
        concluder: Concluder,
        price_of: PriceOf,
        *,
        charge: Callable[[Call, Conclusion, int | None], Awaitable[object]],
        released: Callable[[str], None],
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._writer = writer
        self._concluder = concluder
        self._price_of = price_of
        self._charge = charge
        self._released = released
        self._timeout_s = timeout_s
        self._clock = clock
        self._unasked: dict[tuple[str, ...], Report] = {}
        """Ends that were seen while the store was away, by the keys they may belong to."""
        self._unreadable: set[str] = set()

    async def defer(self, call: Call, operation: str | None, *, seen_output: int = 0) -> None:
        """The call goes on elsewhere, under the provider's id for it; None: nobody can ever ask for it, and its hold is
        charged when its time is up. `seen_output`: tokens its answer has shown already.
        """
        payload = keep(call, operation, seen_output)
        if len(payload) > MAX_PAYLOAD_BYTES:
            logger.error(
                "call %s: what is needed to charge it later takes %d bytes",
                call.id,
                len(payload),
                extra=fields("operation_too_large", call_id=call.id, tenant=call.identity.tenant, bytes=len(payload)),
            )
            await self._charge(call, self._estimate(call, operation), None)
            return
        provider = call.spec.provider or call.spec.api
        key = f"call:{call.id}" if operation is None else operation_key(provider, operation)
        await self._writer.defer(
            Operation(
                key=key,
                call_id=call.id,
                tenant=call.identity.tenant,
                until_s=call.admitted_at_s + DEFERRED_S,
                payload=payload,
            )
        )

    async def sighted(self, provider: str, operations: Sequence[str], report: Report) -> None:
        """An answer has told the state of an operation, which has one of these ids. The first that tells its end
        settles it; all others change nothing. Never raises.

        A report is of an end where it is finished and not deferred. One without usage costs what was seen of its
        output. Where nothing was, it costs nothing if it has failed (or was cancelled, which APIs report as failed),
        else the hold.
        """
        if report.finished and not report.deferred and operations:
            keys = tuple([operation_key(provider, operation) for operation in operations])
            await self._writer.shielded(self._sighted(keys, report))

    async def _sighted(self, keys: tuple[str, ...], report: Report) -> bool:
        """Whether the store could tell what the report is about."""
        try:
            await self._writer.replay()  # it may wait there itself
            for key in keys:
                found = await bounded(self._store.operation(key), self._timeout_s)
                if found is not None:
                    await self._settle(found, report)
                    break
        except (StoreError, TimeoutError) as error:
            logger.warning(
                "operation %s: its end was seen, and waits for the store: %s",
                shown(keys[0]),
                error,
                extra=fields("operation_waits", operation=keys[0]),
            )
            if len(self._unasked) >= MAX_UNASKED:
                self._unasked.pop(next(iter(self._unasked)))
            self._unasked[keys] = report
            return False
        except Exception:
            logger.exception(
                "operation %s: its end could not be settled",
                shown(keys[0]),
                extra=fields("operation_unsettled", operation=keys[0]),
            )
        self._unasked.pop(keys, None)
        return True

    async def tend(self) -> None:
        """Ask again what the store could not tell, and charge what is overdue, a bounded number at a time. Every worker
        does: the ledger takes one charge. Raises StoreError and TimeoutError.
        """
        for keys, report in list(self._unasked.items()):
            if not await self._sighted(keys, report):
                break
        for operation in await bounded(self._store.overdue(AT_ONCE), self._timeout_s):
            try:
                await self._settle(operation, None)
            except Exception:  # it must not stand in the way of the others
                logger.exception(
                    "call %s: its operation could not be settled",
                    operation.call_id,
                    extra=fields("operation_unsettled", call_id=operation.call_id, tenant=operation.tenant),
                )

    async def _settle(self, operation: Operation, report: Report | None) -> None:
        kept = self._read(operation)
        if kept is None:
            return
        price = self._price_of(
            kept.model, provider=kept.price_provider or kept.provider, service_tier=kept.service_tier
        )
        call = restore(kept, operation.call_id, price, self._clock())
        if report is None:
            logger.warning(
                "call %s: nobody saw the end of %s; its hold is charged",
                call.id,
                shown(operation.key),
                extra=fields("hold_charged", call_id=call.id, tenant=operation.tenant, cause="unseen"),
            )
            await self._charge(call, self._estimate(call, kept.operation), None)
            return
        if report.usage is None:  # who has read the output cannot have it for nothing by cancelling the rest
            report.visible_deltas = max(report.visible_deltas, kept.seen_output)
        if report.usage is None and report.failed and not report.visible_tokens:
            await self._writer.release(call.id)
            self._released(call.spec.api)
            return
        if report.usage is None and not report.visible_tokens and call.spec.billed_by_request is None:
            await self._charge(call, self._estimate(call, kept.operation, "completed"), 200)
            return
        conclusion = self._concluder.conclude(call, report, Ending(status=200, complete=True))
        if call.held_nano_usd and _is_free_by_accident(kept, conclusion):
            logger.error(
                "call %s: what %s used has no price (any more); its hold is charged",
                call.id,
                shown(call.model),
                extra=fields("hold_charged", call_id=call.id, tenant=operation.tenant, cause="no_price"),
            )
            conclusion = replace(conclusion, verdict=replace(conclusion.verdict, estimated=True), billed=_as_held(call))
        await self._charge(call, conclusion, 200)

    def _read(self, operation: Operation) -> KeptCall | None:
        """None, and logged once, where another version has to settle it."""
        try:
            return read_kept(operation.payload)
        except ValueError as error:
            reason = str(error)
        if operation.call_id not in self._unreadable and len(self._unreadable) < MAX_UNASKED:
            self._unreadable.add(operation.call_id)
            logger.error(
                "call %s: another version of askii-middleware must settle it: %s",
                operation.call_id,
                reason,
                extra=fields("operation_unreadable", call_id=operation.call_id, tenant=operation.tenant),
            )
        return None

    def _estimate(self, call: Call, operation: str | None, outcome: CallOutcome = "deferred_estimate") -> Conclusion:
        """What an operation costs of which nothing is known but that it ran: what was held for it."""
        usage = call.spec.billed_by_request or TokenUsage(input=call.input_bound, output=call.output_bound)
        verdict = Verdict(usage=usage, outcome=outcome, estimated=True)
        conclusion = self._concluder.priced(call, [(None, usage)], verdict, provider_request_id=operation)
        # The items of a batch go to models of their own: the hold is the sum over these.
        if call.held_nano_usd and (call.price is None or call.spec.kind == "batch"):
            return replace(conclusion, billed=_as_held(call))
        return conclusion


def _is_free_by_accident(kept: KeptCall, conclusion: Conclusion) -> bool:
    """Something was used that had a price at admission, or whose model was not known then, and has none now."""
    had_price = kept.price_provider is not None or kept.kind == "batch"
    used = any(part.usage != NOTHING_USED for part in conclusion.parts)
    return had_price and used and conclusion.billed.unpriced and not conclusion.billed.nano_usd


def _as_held(call: Call) -> Billed:
    """A hold that only asked for room says nothing about the cost: such a charge is flagged."""
    held = call.held_nano_usd
    return Billed(held, (Charge(bucket="hold", quantity=1, nano_usd=held),), held <= UNPRICED_HOLD_NANO_USD)
