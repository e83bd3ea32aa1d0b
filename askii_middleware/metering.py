"""Metered streams: a stream's hold grows with what it produces, a little ahead of it.

A stream begins with a hold for its prompt and a first slice of output. As chunks pass, the tokens they can hold at
most are counted. When less than half a slice of room is left, an extension is asked for while chunks go on passing;
only where what is paid for, less the largest chunk seen, is reached does the next chunk wait for the answer. Where
the budgets have no room, the stream is cut.

The upper bound of visible text is its bytes, which no tokenizer exceeds. Where the tokenizer knows the model, text is
counted as exact tokens whenever the bytes would ask for more, so that English is not taken for four times itself;
where the provider counts as it goes, its own counts are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .admission import ExtendRequest, Extension
from .errors import StoreError
from .log_fields import fields
from .options import LEAST_SLICE_TOKENS
from .tokens import count_tokens, encoding_of
from .usage import NOTHING_USED, Report
from .waiting import bounded

if TYPE_CHECKING:
    from .calls import Call
    from .modes import Modes
    from .stores.base import Store

logger = logging.getLogger(__name__)

MARGIN_TOKENS = 16
"""What each answer bills beside its visible text: stop tokens, and the marks of its beginning."""
MAX_SLICE_TOKENS = 8_192
MAX_KEPT_BYTES = 4_096
"""Text that waits to be counted; more than this is counted at once and forgotten."""
MAX_QUESTIONS = 3
"""A chunk waits for the answer on its way, for that to a question of its own, and once more."""
NEVER = 1 << 60


class Extend(Protocol):
    """Asks the ledger for more room. Raises StoreError."""

    async def __call__(self, request: ExtendRequest) -> Extension: ...


class StreamMeter:
    """Watches one stream and keeps its hold ahead.

    After each piece the edge asks `behind()`, which is all that most cost, and awaits `advance()` where it is.

    Args:
        encoding: the tokenizer's name for the model's encoding; None where it is not known.
        answer_timeout_s: how long a chunk waits for the ledger.
        counts_as_it_goes: the usage in the report tells, whenever it changes, all tokens up to there.
        goes_on_unheld: whether the stream goes on where the ledger cannot be reached.
    """

    __slots__ = (
        "_answer_timeout_s",
        "_asked_nano_usd",
        "_call",
        "_counted_bytes",
        "_counted_tokens",
        "_counts_as_it_goes",
        "_covered",
        "_encoding",
        "_extend",
        "_goes_on_unheld",
        "_largest",
        "_last",
        "_mark",
        "_report",
        "_slice",
        "_task",
        "_usage",
        "refusal",
    )

    def __init__(
        self,
        call: Call,
        report: Report,
        extend: Extend,
        *,
        encoding: str | None,
        answer_timeout_s: float,
        counts_as_it_goes: bool = False,
        goes_on_unheld: bool = False,
    ) -> None:
        self._call = call
        self._report = report
        self._extend = extend
        self._encoding = encoding
        self._answer_timeout_s = answer_timeout_s
        self._counts_as_it_goes = counts_as_it_goes
        self._goes_on_unheld = goes_on_unheld
        self._covered = call.covered_tokens
        self._slice = max(call.covered_tokens, LEAST_SLICE_TOKENS)
        self._counted_bytes = 0
        """So many of the visible bytes are `_counted_tokens`; every other byte may be a token."""
        self._counted_tokens = 0
        self._usage = report.usage
        self._last = 0
        self._largest = 0
        self._asked_nano_usd = 0
        self._task: asyncio.Task[Extension] | None = None
        self._mark = 0
        """Up to so many bytes of text and tokens of frames nothing has to be done."""
        self.refusal: Extension | None = None
        """What the ledger answered when there was no more room."""
        report.choices = call.spec.choices
        if encoding is not None:
            report.text = []
        self._set_mark()

    @property
    def produced_tokens(self) -> int:
        """An upper bound of the output that has passed, never below the number of pieces."""
        report = self._report
        if report.finished and report.usage is not None:
            return report.usage.output_tokens
        uncounted = report.visible_bytes - self._counted_bytes
        text = max(self._counted_tokens + uncounted, report.visible_deltas)
        return text + report.frame_tokens + MARGIN_TOKENS * report.choices

    @property
    def overrun(self) -> bool:
        """Whether more has been produced than is held for: what was read last must not pass."""
        return self._left() < 0 and not self._is_covered()

    def behind(self) -> bool:
        """Whether the piece that has just been read calls for `advance()`."""
        report = self._report
        passed = report.visible_bytes + report.frame_tokens
        if report.usage is not self._usage:
            self._note_usage()
        size = passed - self._last
        if size > self._largest:  # noqa: PLR1730 - for every piece, and `max` takes three times as long
            self._largest = size
        self._last = passed
        return passed > self._mark

    async def advance(self) -> bool:
        """Look after the hold. False: there is no room for another piece, and the stream is to be cut."""
        kept = self._report.visible_bytes - self._counted_bytes
        if kept >= MAX_KEPT_BYTES or self._left() < self._slice // 2:
            self._count()
        if self._task is not None and self._task.done():
            await self._take()
        # A refusal stands until it hurts: by then others may have given something back.
        wanted = self._left() < self._slice // 2 and self.refusal is None
        if wanted and self._task is None and not self._is_covered():
            self._ask()
            # Servers mostly take chunks without suspending: the question would never leave.
            await asyncio.sleep(0)
        for _ in range(MAX_QUESTIONS):
            if self._may_go_on():
                break
            fresh = self._task is None
            if fresh:
                self._ask()
            if not await self._take() and fresh:
                break
        if self._task is None and self.refusal is not None and self.overrun:
            # There is no room for another piece like this one, but perhaps for this one.
            self._ask(exactly=True)
            await self._take()
        self._set_mark()
        return self._may_go_on()

    async def cover_all(self) -> bool:
        """Hold for the whole bound now, for an answer that cannot be watched as it goes. Whether there was room."""
        if not self._is_covered():
            self._ask(everything=True)
            await self._take()
        return self._is_covered()

    def close(self) -> None:
        """The stream is over: what was asked for is not waited for, and the report has the best count there is."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        report = self._report
        if self._encoding is not None and report.usage is None:
            self._count()
            report.counted_tokens = self._counted_tokens - (self._counted_bytes - report.visible_bytes) // 4
        report.text = None

    def _left(self) -> int:
        return self._covered - self.produced_tokens

    def _is_covered(self) -> bool:
        """The whole bound is held for: nothing more can come."""
        return self._covered >= self._call.output_bound

    def _may_go_on(self) -> bool:
        if self._is_covered():
            return True
        left = self._left()
        return left > self._largest or (left >= 0 and self._report.finished)

    def _set_mark(self) -> None:
        """The next look: when half a slice is left, or once the text that is kept should be counted. A little later,
        too, because counting costs as much as fifty chunks; but never behind the place where a piece may not fit.
        """
        if self._is_covered():
            self._mark = NEVER
            self._report.text = None
            return
        left = self._left() - 1
        at_ease = min(left - max(self._slice // 2, self._largest), MAX_KEPT_BYTES)
        at_least = min(left - self._largest, self._slice if self._encoding is not None else self._slice // 4)
        self._mark = self._report.visible_bytes + self._report.frame_tokens + max(at_ease, at_least, 0)

    def _count(self) -> None:
        """Replace bytes by exact tokens, as far as their text is here."""
        pieces = self._report.text
        if not pieces or self._encoding is None:
            return
        text = "".join(pieces).encode(errors="replace")
        pieces.clear()
        tokens = count_tokens(text, self._encoding)
        if tokens is not None:
            self._counted_bytes += len(text)
            self._counted_tokens += tokens

    def _note_usage(self) -> None:
        """The piece that has just been read brought a usage. It counts all that passed before that piece; what passed
        with it may have come behind it.
        """
        usage = self._usage = self._report.usage
        if self._counts_as_it_goes and usage is not None and usage.output_tokens >= self._counted_tokens:
            self._counted_tokens = usage.output_tokens
            self._counted_bytes = max(self._last - self._report.frame_tokens, self._counted_bytes)

    def _ask(self, *, everything: bool = False, exactly: bool = False) -> None:
        """Begin to ask for another slice: as much as is left of it where that is a least slice. `exactly`: only for
        what has been produced.
        """
        call = self._call
        assert call.price is not None
        produced = self.produced_tokens
        # Longer streams are likely to become longer still.
        self._slice = min(max(self._slice, produced // 2), MAX_SLICE_TOKENS)
        least = max(self._covered, produced + self._largest) + LEAST_SLICE_TOKENS
        target = max(produced + self._slice, least)
        if everything:
            target = least = call.output_bound
        elif exactly:
            target = least = produced
        units = None if call.spec.units is NOTHING_USED else call.spec.units
        target_nano_usd, least_nano_usd = (
            call.price.hold(call.input_bound, min(tokens, call.output_bound), media=call.spec.media, units=units)
            for tokens in (target, least)
        )
        call.extensions += 1
        self._asked_nano_usd = target_nano_usd
        request = ExtendRequest(
            call_id=call.id,
            sequence=call.extensions,
            target_nano_usd=target_nano_usd,
            least_nano_usd=min(least_nano_usd, target_nano_usd),
            matches=call.matches,
            windows=call.windows,
            rate=call.rate.ratio,
        )
        self._task = asyncio.create_task(self._answer(request))
        self._task.add_done_callback(_seen)

    async def _answer(self, request: ExtendRequest) -> Extension:
        return await bounded(self._extend(request), self._answer_timeout_s)

    async def _take(self) -> bool:
        """Wait for the extension that was asked for, and use it. False: no more than before is held."""
        task = self._task
        assert task is not None
        try:
            # Whoever waits may be cancelled; the question stays this meter's until it is answered or closed.
            extension = await asyncio.shield(task)
        except (StoreError, TimeoutError) as error:
            self._task = None
            logger.warning(
                "call %s: the ledger did not extend its hold (%s); %s",
                self._call.id,
                error or "no answer in time",
                "it goes on unheld" if self._goes_on_unheld else "it is cut where that ends",
                extra=fields("extension_failed", call_id=self._call.id, tenant=self._call.identity.tenant),
            )
            if self._goes_on_unheld:
                self._covered = self._call.output_bound
            return self._goes_on_unheld
        self._task = None
        if not extension.granted:
            self.refusal = extension
            return False
        self.refusal = None
        self._use(extension.hold_nano_usd)
        return True

    def _use(self, hold_nano_usd: int) -> None:
        """More is held, perhaps less than was asked for."""
        call = self._call
        assert call.price is not None
        units = None if call.spec.units is NOTHING_USED else call.spec.units
        call.held_nano_usd = max(hold_nano_usd, call.held_nano_usd)
        paid = call.price.output_within(hold_nano_usd, call.input_bound, media=call.spec.media, units=units)
        covered = call.output_bound if paid is None else min(paid, call.output_bound)
        self._covered = call.covered_tokens = max(covered, self._covered)
        if hold_nano_usd < self._asked_nano_usd:  # all that there is: the next slice is no larger
            self._slice = max(min(self._slice, self._left()), LEAST_SLICE_TOKENS)


class Meters:
    """Makes the meters of a tracker's calls.

    Args:
        canonical: a model's name as encodings know it.
        answer_timeout_s: how long a chunk waits for the ledger.
        goes_on_unheld: whether streams go on while the ledger cannot be reached.
    """

    def __init__(
        self,
        store: Store,
        modes: Modes,
        *,
        canonical: Callable[[str], str],
        answer_timeout_s: float,
        goes_on_unheld: bool,
    ) -> None:
        self._store = store
        self._modes = modes
        self._canonical = canonical
        self._answer_timeout_s = answer_timeout_s
        self._goes_on_unheld = goes_on_unheld

    def watches(self, call: Call) -> bool:
        """Whether a call's hold has to grow with its stream."""
        return (
            call.held
            and call.price is not None
            and call.covered_tokens < call.output_bound
            and self._modes.of(call.identity.tenant) == "enforce"
        )

    async def cover(self, call: Call) -> bool:
        """Hold for the whole bound of a call whose stream nobody watches any more. Whether there was room."""
        meter = self.meter(call, Report(), counts_as_it_goes=True)
        try:
            return await meter.cover_all()
        finally:
            meter.close()

    def meter(self, call: Call, report: Report, *, counts_as_it_goes: bool) -> StreamMeter:
        """A meter for a call that is to be watched, whose stream is read into `report`."""
        return StreamMeter(
            call,
            report,
            self._store.extend,
            encoding=None if counts_as_it_goes else encoding_of(self._canonical(call.model)),
            answer_timeout_s=self._answer_timeout_s,
            counts_as_it_goes=counts_as_it_goes,
            goes_on_unheld=self._goes_on_unheld,
        )


def _seen(task: asyncio.Task[Extension]) -> None:
    """A failure that nobody waits for any more has no one to tell."""
    if not task.cancelled():
        task.exception()
