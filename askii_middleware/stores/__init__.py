"""Ledgers, by URL. Members are imported when one is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, MissingExtraError
from .base import Store

if TYPE_CHECKING:
    from .copying import Copier

__all__ = ["Store", "open_copier", "open_store"]

_SQLITE = "sqlite:///"
_REDIS = frozenset({"redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"})
_OPTIONS = frozenset({"sqlite_sync", "lock_timeout_s", "timeout_s"})


def open_store(url: str, *, clock: Callable[[], float] | None = None, **options: Any) -> Store:
    """Build the store a URL names; `Store.open` connects it.

    Args:
        url: `memory://`, `sqlite:///relative/path`, `sqlite:////absolute/path`, `postgresql://…`,
            `redis://[user:password@]host:port[/db]`, `rediss://…` (TLS), `redis+sentinel://host:port,host:port/SERVICE`
            or `redis+cluster://host:port,host:port`. On servers `namespace=NAME` tells ledgers apart.
        clock: Unix seconds; None: the engine's own.
        options: `sqlite_sync` (`normal` or `full`) and `lock_timeout_s` for SQLite; `timeout_s`, which bounds every
            operation of a store on a server. Stores they do not concern ignore them.

    Raises ConfigurationError.
    """
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise ConfigurationError(f"unknown store options {', '.join(sorted(unknown))}; known: {', '.join(_OPTIONS)}")
    if options.get("sqlite_sync", "normal") not in ("normal", "full"):
        raise ConfigurationError(f'sqlite_sync is "normal" or "full", not {options["sqlite_sync"]!r}')
    timeout_s = options.get("timeout_s", 5.0)
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ConfigurationError(f"timeout_s is a number of seconds above 0, not {timeout_s!r}")
    if url == "memory://":
        from .memory import MemoryStore  # noqa: PLC0415 - only the store that is used

        return MemoryStore(clock=clock or time.time)
    if url.startswith(_SQLITE):
        path = _sqlite_path(url)
        options.pop("timeout_s", None)
        from .sqlite import SQLiteStore  # noqa: PLC0415 - only the store that is used

        return SQLiteStore(path, clock=clock or time.time, **options)
    scheme = url.partition("://")[0]
    if scheme == "postgresql":
        from .postgres import PostgresStore  # noqa: PLC0415 - as above

        return PostgresStore(url, clock=clock, timeout_s=timeout_s)
    if scheme in _REDIS:
        try:
            from .redis import RedisStore  # noqa: PLC0415 - as above
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "redis":
                raise
            raise MissingExtraError("redis", f"a {scheme}:// store") from None
        return RedisStore(url, clock=clock, timeout_s=timeout_s)
    raise ConfigurationError(
        f"store {scheme!r}: expected memory://, sqlite:///path (three slashes, then the path), "
        "redis://…, rediss://…, redis+sentinel://…, redis+cluster://… or postgresql://…"
    )


def open_copier(url: str, *, clock: Callable[[], float] | None = None) -> Copier:
    """What brings a ledger up to date and copies it as a whole. Raises ConfigurationError.

    Args:
        url: as for `open_store`, but not in memory.
        clock: Unix seconds; None: the engine's own.
    """
    if url.startswith(_SQLITE):
        from .sqlite_copy import SQLiteCopier  # noqa: PLC0415 - as above

        return SQLiteCopier(_sqlite_path(url), clock=clock or time.time)
    scheme = url.partition("://")[0]
    if scheme.startswith("redis"):
        from .redis.copy import RedisCopier  # noqa: PLC0415 - as above

        return RedisCopier(url, clock=clock)
    if scheme == "postgresql":
        from .postgres.copy import PostgresCopier  # noqa: PLC0415 - as above

        return PostgresCopier(url, clock=clock)
    raise ConfigurationError(f"store {scheme}://: lives inside one running process, so there is nothing to do here")


def _sqlite_path(url: str) -> str:
    path = url.removeprefix(_SQLITE)
    if not path or path.startswith(":") or "?" in path or "\0" in path:
        raise ConfigurationError(f"store {url!r}: expected sqlite:///path; for a ledger in memory use memory://")
    return path
