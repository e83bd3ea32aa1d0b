"""Encoded answers, read as they pass: gzip and deflate, unpacked in pieces that nobody keeps."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

PIECE_BYTES = 1 << 16
MAX_DECODED_BYTES = 64 << 20
"""Unpacking is work, and a few bytes can unpack to gigabytes: an answer that unpacks to more is read no further."""

ZLIB, RAW = 15, -15
WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": ZLIB}
"""The `wbits` of zlib for each encoding that is known here."""
_DEFLATE_METHOD = 8


class AnswerDecoder:
    """Reads along with an encoded answer. Bytes that do not decode, and a bomb, end the reading, not the answer; of an
    encoding that is not known nothing is read.
    """

    __slots__ = ("_head", "_inflater", "_left")

    def __init__(self, encoding: bytes) -> None:
        name = encoding.strip().lower()
        self._left = MAX_DECODED_BYTES if name in WINDOWS else 0
        self._inflater: Any = zlib.decompressobj(WINDOWS.get(name, ZLIB))
        # Many servers send `deflate` without its zlib header: the first two bytes tell.
        self._head: bytes | None = b"" if name == b"deflate" else None

    def feed(self, body: bytes) -> Iterator[bytes]:
        """What these bytes unpack to, in pieces."""
        if self._head is not None:
            body = self._head + body
            if len(body) < 2:
                self._head = body
                return
            self._head = None
            if body[0] & 0x0F != _DEFLATE_METHOD or int.from_bytes(body[:2]) % 31:
                self._inflater = zlib.decompressobj(RAW)
        for start in range(0, len(body), PIECE_BYTES):
            yield from self._pieces(body[start : start + PIECE_BYTES])

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        inflater = self._inflater
        while self._left > 0 and not inflater.eof:
            try:
                piece = inflater.decompress(data, PIECE_BYTES)
            except zlib.error:
                self._left = 0
                return
            if piece:
                self._left -= len(piece)
                yield piece
            data = inflater.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:  # after a full piece, more may wait inside the inflater
                return
