"""Ledgers, by URL. Members are imported when one is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError
from .base import Store

__all__ = ["Store", "open_store"]

_SQLITE = "sqlite:///"
_OPTIONS = frozenset({"sqlite_sync", "lock_timeout_s"})


def open_store(url: str, *, clock: Callable[[], float] = time.time, **options: Any) -> Store:
    """Build the store a URL names; `Store.open` connects it.

    Args:
        url: `memory://`, `sqlite:///relative/path` or `sqlite:////absolute/path`.
        clock: Unix seconds.
        options: `sqlite_sync` (`normal` or `full`) and `lock_timeout_s`; stores they do not concern ignore them.

    Raises ConfigurationError.
    """
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise ConfigurationError(f"unknown store options {', '.join(sorted(unknown))}; known: {', '.join(_OPTIONS)}")
    if options.get("sqlite_sync", "normal") not in ("normal", "full"):
        raise ConfigurationError(f'sqlite_sync is "normal" or "full", not {options["sqlite_sync"]!r}')
    if url == "memory://":
        from .memory import MemoryStore  # noqa: PLC0415 - only the store that is used

        return MemoryStore(clock=clock)
    if url.startswith(_SQLITE):
        path = url.removeprefix(_SQLITE)
        if not path or path.startswith(":") or "?" in path or "\0" in path:
            raise ConfigurationError(f"store {url!r}: expected sqlite:///path; for a ledger in memory use memory://")
        from .sqlite import SQLiteStore  # noqa: PLC0415 - only the store that is used

        return SQLiteStore(path, clock=clock, **options)
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss", "postgresql"):
        raise ConfigurationError(f"store: this version has no {scheme}:// store yet; use sqlite:///path or memory://")
    raise ConfigurationError(f"store {scheme!r}: expected memory:// or sqlite:///path (three slashes, then the path)")
