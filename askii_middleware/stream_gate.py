"""Between a metered stream and its client: only whole events pass, and only as far as the hold pays for them.

Because nothing is let through in the middle of an event, a stream can be ended in its API's own form wherever the
money ends. Large chunks are read in small pieces, so that what has room in them passes and what has not does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .admission import Extension
    from .metering import StreamMeter
    from .providers.base import StreamReader

PIECE_BYTES = 2_048


class StreamGate:
    """Holds back the bytes of an unfinished event: as many as a reader keeps of one, at most.

    Attributes:
        shut: there is no more room. Nothing passes any more, and the stream is to be cut.
        ended: it is shut behind the stream's own end, which has passed.
    """

    __slots__ = ("_held", "_held_bytes", "_meter", "_reader", "ended", "shut")

    def __init__(self, reader: StreamReader, meter: StreamMeter) -> None:
        self._reader = reader
        self._meter = meter
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.shut = False
        self.ended = False

    async def take(self, body: bytes) -> bytes:
        """Read the next bytes; returns those that the client may have now."""
        if len(body) <= PIECE_BYTES:
            out = self._reader.feed(body)
            return out if self.lets_pass() else await self.weigh(out)
        passed = []
        for at in range(0, len(body), PIECE_BYTES):
            passed.append(await self.weigh(self._reader.feed(body[at : at + PIECE_BYTES])))
            if self.shut:
                break
        return b"".join(passed)

    async def finish(self, body: bytes) -> bytes:
        """Read the last bytes; returns what the client may still have."""
        out = await self.take(body)
        if self.shut:
            return out
        rest = self.rest() + self._reader.finish()
        if self._meter.behind() or self._meter.overrun:  # the usage at the end may tell of more than was seen
            await self._meter.advance()
        self.shut = self._meter.overrun
        self.ended = self.shut and self._reader.report.finished
        return out if self.shut else out + rest

    def rest(self) -> bytes:
        """What is held back, given up."""
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held

    @property
    def refusal(self) -> Extension | None:
        """What the ledger answered when there was no more room; None where it did not answer."""
        return self._meter.refusal

    def close(self) -> None:
        """Count what has passed, and ask for nothing more."""
        self._meter.close()

    def lets_pass(self) -> bool:
        """Whether what the reader has just given out may pass at once, as nearly every chunk may: it ends with an
        event, nothing is held back, and there is room.
        """
        return not self._held and not self._reader.unfinished and not self._meter.behind()

    async def weigh(self, out: bytes) -> bytes:
        """What may pass of what the reader has just given out."""
        goes_on = not self._meter.behind() or await self._meter.advance()
        self.shut = not goes_on
        if not goes_on and self._meter.overrun:
            return b""
        self._held.append(out)
        self._held_bytes += len(out)
        tail = self._reader.unfinished
        if tail >= self._held_bytes:
            return b""
        whole = self.rest()
        if not tail:
            return whole
        self._held.append(whole[-tail:])
        self._held_bytes = tail
        return whole[:-tail]
