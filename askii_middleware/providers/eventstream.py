"""AWS event streams (`application/vnd.amazon.eventstream`) as they pass: framing by push, and the reader of Bedrock's.

A frame is 4 bytes of its total length, 4 of its headers' length, a CRC of these 8, the headers, the payload, and a CRC
of all before it; integers are big-endian, both CRCs are CRC-32. A header is a name (1 byte of length), a type (7: text)
and a value (2 bytes of length). `:message-type` is `event`, `exception` or `error`; the kind stands in `:event-type`,
`:exception-type` or `:error-code`.
Source: botocore 1.44 (`eventstream.py`, `parsers.py`), the event stream specification of Smithy
(smithy.io/2.0/aws/amazon-eventstream.html), and recorded streams (2026-11).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

from ..log_fields import fields
from ..usage import Report
from .base import StreamReader
from .fields import decode_object

logger = logging.getLogger(__name__)

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
MAX_FRAME_BYTES = 1_048_576
MAX_HEADER_BYTES = 8_192
"""Bedrock's frames have some 100 bytes of headers."""
_PRELUDE = Struct(">III")
_CRC = Struct(">I")
_LENGTHS = Struct(">II")
_OVERHEAD = _PRELUDE.size + _CRC.size
_TEXT = 7


class Frame(NamedTuple):
    """One message of the stream."""

    headers: Mapping[str, Any]
    payload: bytes


class FrameReader:
    """Splits a stream into its frames. Holds one unfinished frame, of at most `max_frame_bytes`: a longer one is left
    out. After bytes that are no frame nothing more is read, because nobody can tell where the next one begins.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        decoder = _decoder()
        self.broken = decoder is None
        """The rest of the stream passes unread."""
        self._new_decoder = decoder
        self._max_frame_bytes = max_frame_bytes
        self._held = bytearray()
        self._skip = 0
        """How many of the next bytes belong to a frame that is left out."""

    @property
    def unfinished(self) -> int:
        """Bytes of the unfinished frame; 0 inside one that is left out."""
        return len(self._held)

    def push(self, chunk: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        frames: list[Frame] = []
        if self.broken:
            return frames
        self._held += chunk
        try:
            while self._next(frames):
                pass
        except Exception:  # noqa: BLE001 - botocore raises errors of many kinds for bytes that are no frame
            self.broken = True
            self._held.clear()
        return frames

    def _next(self, frames: list[Frame]) -> bool:
        """Take one step, if there are bytes enough for one. Raises ValueError, and what botocore raises, for a
        frame that is damaged.
        """
        held = self._held
        if self._skip:
            skipped = min(self._skip, len(held))
            del held[:skipped]
            self._skip -= skipped
            return not self._skip
        if len(held) < _PRELUDE.size:
            return False
        length, header_bytes, crc = _PRELUDE.unpack_from(held)
        if length > self._max_frame_bytes or header_bytes > MAX_HEADER_BYTES:
            if crc32(held[: _LENGTHS.size]) != crc or header_bytes + _OVERHEAD > length:
                raise ValueError("a damaged prelude")
            self._skip = length
            return True
        if length < header_bytes + _OVERHEAD:
            raise ValueError("a frame shorter than its parts")
        if len(held) < length:
            return False
        frame = bytes(held[:length])
        del held[:length]
        assert self._new_decoder is not None
        decoder = self._new_decoder()
        decoder.add_data(frame)
        message = decoder.next()
        frames.append(Frame(message.headers, message.payload))
        return True


class EventStreamReader(StreamReader):
    """Reads a stream of JSON events, each given to `absorb` as an object of one member, `{kind: payload}`, which is
    how boto3 hands them out. Bytes are passed on as they come, as the same object.
    """

    def __init__(self, absorb: Callable[[Report, Mapping[str, Any]], None]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._frames = FrameReader()

    def feed(self, chunk: bytes) -> bytes:
        for headers, payload in self._frames.push(chunk):
            if headers.get(":message-type") in ("exception", "error"):
                self.report.failed = True
                continue
            event = decode_object(payload)
            if event is not None:
                self._absorb(self.report, {str(headers.get(":event-type")): event})
        return chunk

    def finish(self) -> bytes:
        return b""

    @property
    def unfinished(self) -> int:
        return self._frames.unfinished


def encode_frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame. Raises ValueError for a header that is longer than a frame can tell."""
    head = b"".join(_encode_header(name.encode(), value.encode()) for name, value in headers.items())
    lengths = _LENGTHS.pack(_OVERHEAD + len(head) + len(payload), len(head))
    frame = lengths + _CRC.pack(crc32(lengths)) + head + payload
    return frame + _CRC.pack(crc32(frame))


def _encode_header(name: bytes, value: bytes) -> bytes:
    if len(name) > 255 or len(value) > 32_767:
        raise ValueError(f"the header {name[:40]!r} is too long for a frame")
    return bytes((len(name),)) + name + bytes((_TEXT,)) + len(value).to_bytes(2) + value


@cache
def _decoder() -> Callable[[], Any] | None:
    """The decoder of frames that botocore has; None, and an error in the log, where it is not installed."""
    try:
        from botocore.eventstream import EventStreamBuffer  # noqa: PLC0415 - an extra, needed by few
    except ImportError:
        logger.error(  # noqa: TRY400 - the cause says nothing more
            "event streams of Amazon Bedrock pass unread, and what they cost is estimated: install "
            "askii-middleware[bedrock]",
            extra=fields("bedrock_unread"),
        )
        return None
    made: Callable[[], Any] = EventStreamBuffer
    return made
