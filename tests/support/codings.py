"""Content codings, and bombs in them."""

from __future__ import annotations

import sys
from functools import cache

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["br_bomb", "zstd", "zstd_bomb", "zstd_wide"]


@cache
def br_bomb(size: int = 16 << 20) -> bytes:
    """Some fifty bytes that unpack to `size`."""
    packer = brotli.Compressor(quality=5, lgwin=24)
    packed: bytes = packer.process(b"\0" * size) + packer.finish()
    return packed


@cache
def zstd_bomb(size: int = 16 << 20) -> bytes:
    return zstd.compress(b"\0" * size)


@cache
def zstd_wide() -> bytes:
    """A frame that wants a window of 16 MB."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 24}
    packer = zstd.ZstdCompressor(options=options)
    return packer.compress(b"hello") + packer.flush()
