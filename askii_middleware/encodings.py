"""Content codings (RFC 9110, section 8.4), undone piece by piece: nothing here grows with what a few bytes unpack to.

gzip and deflate are the standard library's. br and zstd need the extra `compression`, and are imported where they
first occur; from Python 3.14 on zstd is the standard library's too. A piece has at most `PIECE_BYTES`; besides it a
decoder keeps its window: 32 kB (gzip, deflate), at most 8 MB (zstd: a larger one is refused, as RFC 9659 has it for
content codings), at most 16 MB (br, whose format allows no more).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from importlib import import_module
from typing import Any, Protocol

from .errors import MissingExtraError
from .log_fields import fields

logger = logging.getLogger(__name__)

PIECE_BYTES = 1 << 16
MAX_DECODED_BYTES = 64 << 20
"""Unpacking is work, and a few bytes can unpack to gigabytes: an answer that unpacks to more is read no further."""
MEMBER_BYTES = 1 << 12
"""What another member of an answer counts for, so that thousands of empty ones come to an end too."""
MAX_LAYERS = 2
EXTRA = "compression"

_GZIP, _ZLIB, _RAW = 31, 15, -15
_DEFLATE_METHOD = 8
_BROTLI_PIECE_BYTES = PIECE_BYTES // 4
"""The library stops at the end of the block that passes this: its first has 32 kB, its second 64 kB more."""
_ZSTD_WINDOW_LOG = 23


class BadEncodingError(ValueError):
    """The bytes are not what their coding says."""


class Unpacker(Protocol):
    """One coded member: `eof` once it is whole, and then `rest` is what came behind it."""

    @property
    def eof(self) -> bool: ...

    @property
    def rest(self) -> bytes: ...

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What these bytes unpack to. To be iterated to its end, or never used again. Raises BadEncodingError."""


class _Zlib:
    def __init__(self, window: int) -> None:
        self._inflater = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def rest(self) -> bytes:
        return self._inflater.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        inflater = self._inflater
        while not inflater.eof:
            try:
                piece = inflater.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise BadEncodingError(str(error)) from None
            if piece:
                yield piece
            data = inflater.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:  # after a full piece, more may wait inside the inflater
                return


class _BareDeflate(_Zlib):
    """Many servers send `deflate` without its zlib header: the first two bytes tell."""

    def __init__(self) -> None:
        super().__init__(_ZLIB)
        self._head: bytes | None = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._head is not None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            self._head = None
            if data[0] & 0x0F != _DEFLATE_METHOD or int.from_bytes(data[:2]) % 31:
                self._inflater = zlib.decompressobj(_RAW)
        yield from super().pieces(data)


class _Brotli:
    """br has no members: what follows its end is an error."""

    rest = b""

    def __init__(self) -> None:
        library = _brotli()
        if library is None:
            raise MissingExtraError(EXTRA, "reading br")
        self._error: type[Exception] = library.error
        self._decompressor: Any = library.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.is_finished())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        while True:
            try:
                piece: bytes = decompressor.process(data, output_buffer_limit=_BROTLI_PIECE_BYTES)
            except self._error as error:
                raise BadEncodingError(str(error)) from None
            if not piece:  # only this tells that nothing more waits inside
                return
            yield piece
            if decompressor.is_finished():
                return
            data = b""


class _Zstd:
    def __init__(self) -> None:
        library = _zstd()
        if library is None:
            raise MissingExtraError(EXTRA, "reading zstd")
        self._error: type[Exception] = library.ZstdError
        limit = {library.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._decompressor: Any = library.ZstdDecompressor(options=limit)

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._decompressor.unused_data)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        while not decompressor.eof:
            try:
                piece: bytes = decompressor.decompress(data, PIECE_BYTES)
            except self._error as error:
                raise BadEncodingError(str(error)) from None
            if piece:
                yield piece
            if decompressor.needs_input:
                return
            data = b""


@cache
def _brotli() -> Any:
    """The brotli library; None where it is missing, or older than 1.2, which cannot bound what it gives."""
    try:
        library: Any = import_module("brotli")
    except ImportError:
        return None
    return library if hasattr(library.Decompressor, "can_accept_more_data") else None


@cache
def _zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


_UNPACKERS: dict[bytes, Callable[[], Unpacker]] = {
    b"gzip": partial(_Zlib, _GZIP),
    b"x-gzip": partial(_Zlib, _GZIP),
    b"deflate": partial(_Zlib, _ZLIB),
    b"br": _Brotli,
    b"zstd": _Zstd,
}
_LIBRARIES = {b"br": _brotli, b"zstd": _zstd}


def codings(header: bytes) -> tuple[bytes, ...]:
    """The codings a `content-encoding` names, in the order they were applied; `identity` is none."""
    names = (word.strip().lower() for word in header.split(b","))
    return tuple(name for name in names if name not in (b"", b"identity"))


def is_known(coding: bytes) -> bool:
    """It can be undone, if need be with the extra `compression`."""
    return coding in _UNPACKERS


def is_readable(coding: bytes) -> bool:
    """It can be undone with what is installed."""
    return coding in _UNPACKERS and (coding not in _LIBRARIES or _LIBRARIES[coding]() is not None)


def unpacker(coding: bytes, *, lenient: bool = False) -> Unpacker:
    """A fresh unpacker for a known coding; `lenient` takes deflate without its header as well. Raises
    MissingExtraError.
    """
    return _BareDeflate() if lenient and coding == b"deflate" else _UNPACKERS[coding]()


class AnswerDecoder:
    """Reads along with an encoded answer, of up to two codings one over the other. Bytes that do not decode, and a
    bomb, end the reading, not the answer. Of a coding that cannot be read here nothing is read, and the log says so
    once.

    Members of gzip and frames of zstd that follow each other are read as one: some servers end one per event. What
    follows the end of an answer and is no such member is not read.

    Args:
        encoding: the answer's `content-encoding`; of several headers, joined by commas.
        limit: read no further than this many unpacked bytes.
    """

    __slots__ = ("_layers", "_left", "_names")

    def __init__(self, encoding: bytes, limit: int | None = None) -> None:
        names = codings(encoding)[::-1]
        self._names = names
        self._left = MAX_DECODED_BYTES if limit is None else limit
        self._layers: list[Unpacker] = []
        if len(names) <= MAX_LAYERS and all(map(is_readable, names)):
            self._layers = [unpacker(name, lenient=True) for name in names]
        else:
            _tell_unread(b", ".join(reversed(names))[:40])

    def feed(self, body: bytes) -> Iterator[bytes]:
        """What these bytes unpack to, in pieces."""
        if not self._names:
            yield body
            return
        try:
            for start in range(0, len(body), PIECE_BYTES):
                if not self._layers:
                    return
                yield from self._unpack(0, body[start : start + PIECE_BYTES])
        except BadEncodingError:
            self._layers.clear()

    def _unpack(self, depth: int, data: bytes) -> Iterator[bytes]:
        layers = self._layers
        while data and layers:
            layer = layers[depth]
            if layer.eof:
                self._left -= MEMBER_BYTES
                layer = layers[depth] = unpacker(self._names[depth], lenient=True)
            for piece in layer.pieces(data):
                self._left -= len(piece)
                if self._left < 0:
                    layers.clear()
                    return
                if depth + 1 < len(layers):
                    yield from self._unpack(depth + 1, piece)
                else:
                    yield piece
                if not layers:
                    return
            data = layer.rest if layer.eof else b""


@lru_cache(maxsize=16)
def _tell_unread(names: bytes) -> None:
    shown = names.decode("latin-1")
    missing = [name for name in codings(names) if is_known(name) and not is_readable(name)]
    if missing:
        advice = f"install askii-middleware[{EXTRA}]"
    else:
        advice = "let the application send gzip, deflate, br, zstd or none"
    logger.warning(
        "answers in content-encoding %r cannot be read, so their cost is an estimate: %s",
        shown,
        advice,
        extra=fields("encoding_unreadable"),
    )


def readable_accept_encoding(value: bytes) -> bytes:
    """An `accept-encoding` without the codings that cannot be read here, each other as it was given. The same object
    where nothing changes: also where nothing that the client takes would be left.
    """
    return _readable(value) if len(value) <= 256 else _without_unreadable(value)


def _without_unreadable(value: bytes) -> bytes:
    words = [word for word in value.split(b",") if word.strip()]
    weights = [_weight(word) for word in words]
    named = {name for name, _ in weights}
    kept: list[bytes] = []
    for word, (name, refused) in zip(words, weights, strict=True):
        if refused or name == b"identity" or is_readable(name):
            kept.append(word)
        elif name == b"*" and b"gzip" not in named:  # any other, but of those only one that can be read here
            kept.append(word.replace(b"*", b"gzip", 1))
    if kept == words:
        return value
    if any(not refused and name != b"identity" for name, refused in map(_weight, kept)):
        return b",".join(kept).strip()
    plain_refused = any(refused and name in (b"identity", b"*") for name, refused in weights)
    if plain_refused and (b"identity", False) not in weights:
        return value
    return b",".join(kept).strip() or b"identity"


_readable = lru_cache(maxsize=256)(_without_unreadable)


def _weight(word: bytes) -> tuple[bytes, bool]:
    """A coding's name, and whether its weight of 0 rules it out."""
    name, _, parameters = word.partition(b";")
    weight = parameters.strip().lower().removeprefix(b"q=").strip()
    return name.strip().lower(), bool(weight) and not weight.strip(b"0.")
