"""Metered streams: a stream's hold grows with what it produces, a little ahead of it.

A stream begins with a hold for its prompt and a first slice of output. As chunks pass, the tokens they can hold at
most are counted. When less than half a slice of room is left, an extension is asked for while chunks go on passing;
only where what is paid for, less the largest chunk seen, is reached does the next chunk wait for the answer. Where
the budgets have no room, the stream is cut.

The upper bound of visible text is its bytes, which no tokenizer exceeds. Where the tokenizer knows the model, text is
counted as exact tokens whenever the bytes would ask for more, so that English is not taken for four times itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from .admission import ExtendRequest, Extension
from .errors import StoreError
from .options import LEAST_SLICE_TOKENS
from .tokens import count_tokens
from .usage import NOTHING_USED, Report

if TYPE_CHECKING:
    from .calls import Call

logger = logging.getLogger(__name__)

MARGIN_TOKENS = 16
"""What a stream bills beside its visible text: stop tokens and the frames of tool calls."""
MAX_SLICE_TOKENS = 8_192
MAX_KEPT_BYTES = 4_096
"""Text that waits to be counted; more than this is counted at once and forgotten."""
NEVER = 1 << 60


class Extend(Protocol):
    """Asks the ledger for more room. Raises StoreError."""

    async def __call__(self, request: ExtendRequest) -> Extension: ...


class StreamMeter:
    """Watches one stream and keeps its hold ahead.

    After each chunk the edge asks `behind()`, which is all that most chunks cost, and awaits `advance()` where it is.

    Args:
        encoding: the tokenizer's name for the model's encoding; None where it is not known.
        answer_timeout_s: how long a chunk waits for the ledger.
    """

    __slots__ = (
        "_answer_timeout_s",
        "_call",
        "_counted_bytes",
        "_counted_tokens",
        "_covered",
        "_encoding",
        "_extend",
        "_largest",
        "_last_bytes",
        "_mark_bytes",
        "_report",
        "_sequence",
        "_slice",
        "_task",
        "refusal",
    )

    def __init__(
        self, call: Call, report: Report, extend: Extend, *, encoding: str | None, answer_timeout_s: float
    ) -> None:
        self._call = call
        self._report = report
        self._extend = extend
        self._encoding = encoding
        self._answer_timeout_s = answer_timeout_s
        self._covered = call.covered_tokens
        self._slice = max(call.covered_tokens, LEAST_SLICE_TOKENS)
        self._counted_bytes = 0
        """So many of the visible bytes are `_counted_tokens`; every other byte may be a token."""
        self._counted_tokens = 0
        self._last_bytes = 0
        self._largest = 0
        self._sequence = 0
        self._task: asyncio.Task[Extension] | None = None
        self._mark_bytes = 0
        """Up to so many visible bytes nothing has to be done."""
        self.refusal: Extension | None = None
        """What the ledger answered when there was no more room."""
        if encoding is not None:
            report.text = []
        self._set_mark()

    @property
    def produced_tokens(self) -> int:
        """An upper bound of the output that has passed, never below the number of pieces."""
        uncounted = self._report.visible_bytes - self._counted_bytes
        return max(self._counted_tokens + uncounted, self._report.visible_deltas) + MARGIN_TOKENS

    @property
    def best_count(self) -> int | None:
        """The output's exact tokens where they are counted; None where they are not. For a stream that was cut."""
        if self._encoding is None:
            return None
        self._count()
        return max(self._counted_tokens + self._report.visible_bytes - self._counted_bytes, self._report.visible_deltas)

    def behind(self) -> bool:
        """Whether the chunk that has just been read calls for `advance()`. Once for each chunk."""
        visible = self._report.visible_bytes
        size = visible - self._last_bytes
        self._last_bytes = visible
        self._largest = max(self._largest, size)
        return visible > self._mark_bytes

    async def advance(self) -> bool:
        """Look after the hold. False: there is no room for another chunk, and the stream is to be cut."""
        kept = self._report.visible_bytes - self._counted_bytes
        if kept >= MAX_KEPT_BYTES or self._left() < self._slice // 2:
            self._count()
        if self._covered < self._call.output_bound:
            last_chance = self._left() <= self._largest
            # A refusal stands until it hurts: then others may have given something back.
            if self._task is None and (last_chance or (self.refusal is None and self._left() < self._slice // 2)):
                self._task = asyncio.create_task(self._ask())
                self._task.add_done_callback(_seen)
            if self._task is not None and (last_chance or self._task.done()):
                await self._take()
        self._set_mark()
        return self._left() > self._largest or self._covered >= self._call.output_bound

    def close(self) -> None:
        """The stream is over: what was asked for is not waited for."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._report.text = None

    def _left(self) -> int:
        return self._covered - self.produced_tokens

    def _set_mark(self) -> None:
        """The next look: when half a slice is left, or once the text that is kept should be counted. With the whole
        bound paid for, nothing more can come.
        """
        if self._covered >= self._call.output_bound and self._encoding is None:
            self._mark_bytes = NEVER
            return
        step = max(self._left() - max(self._slice // 2, self._largest), 0)
        self._mark_bytes = self._report.visible_bytes + min(step, MAX_KEPT_BYTES)

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

    async def _ask(self) -> Extension:
        call = self._call
        assert call.price is not None
        produced = self.produced_tokens
        # Longer streams are likely to become longer still.
        self._slice = min(max(self._slice, produced // 2), MAX_SLICE_TOKENS)
        units = None if call.spec.units is NOTHING_USED else call.spec.units
        needs = [min(produced + more, call.output_bound) for more in (self._slice, LEAST_SLICE_TOKENS + self._largest)]
        target, least = (
            call.price.hold(call.input_bound, tokens, media=call.spec.media, units=units) for tokens in needs
        )
        self._sequence += 1
        return await self._extend(
            ExtendRequest(
                call_id=call.id,
                sequence=self._sequence,
                target_nano_usd=target,
                least_nano_usd=min(least, target),
                matches=call.matches,
                windows=call.windows,
                rate=call.rate.ratio,
            )
        )

    async def _take(self) -> None:
        """Wait for the extension that was asked for, and use it. Raises nothing: no answer is no room."""
        task, self._task = self._task, None
        assert task is not None
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                extension = await asyncio.shield(task)
        except (StoreError, TimeoutError) as error:
            logger.warning("call %s: no more room could be asked for: %s", self._call.id, error)
            return
        call = self._call
        assert call.price is not None
        if extension.granted:
            units = None if call.spec.units is NOTHING_USED else call.spec.units
            call.held_nano_usd = extension.hold_nano_usd
            paid = call.price.output_within(
                extension.hold_nano_usd, call.input_bound, media=call.spec.media, units=units
            )
            covered = call.output_bound if paid is None else min(paid, call.output_bound)
            self._covered = call.covered_tokens = max(covered, self._covered)
        else:
            self.refusal = extension


def _seen(task: asyncio.Task[Extension]) -> None:
    """A failure that nobody waits for any more has no one to tell."""
    if not task.cancelled():
        task.exception()
