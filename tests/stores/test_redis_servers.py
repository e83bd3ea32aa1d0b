"""Which servers a ledger takes, and what it tells of those it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.redis import RedisStore

from ..servers import Valkey, running
from .test_redis_connection import fake


def answering(info: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(info), info)


async def test_a_server_that_is_too_old_for_the_scripts_is_refused(tmp_path: Path) -> None:
    def old(data: bytes) -> bytes:
        if b"INFO" in data:
            return answering(b"# Server\r\nredis_version:6.2.14\r\n# Memory\r\nmaxmemory:0")
        return b":0\r\n" if b"HEXISTS" in data else answering(b"1")

    async with fake(old) as url:
        store = RedisStore(url, timeout_s=2.0)
        with pytest.raises(StoreError, match=r"Redis 6\.2\.14: Redis 7 or Valkey 7\.2 is the least"):
            await store.open()
        await store.close()


async def test_a_server_that_takes_no_scripts_with_flags_is_told_as_too_old_where_it_may_not_be_asked() -> None:
    async with fake(lambda data: b"-NOSCRIPT none\r\n" * (1 + data.count(b"SCRIPT"))) as url:
        store = RedisStore(url, timeout_s=2.0)
        with pytest.raises(StoreError, match=r"NOSCRIPT.*Redis 7 or Valkey 7\.2 is the least"):
            await store.ping()
        await store.close()


@pytest.mark.parametrize("password", ["s3cret", "s3cret" * 40])
async def test_a_server_without_logins_does_not_make_the_error_show_the_password(tmp_path: Path, password: str) -> None:
    with running(Valkey(tmp_path / "valkey", "--rename-command", "AUTH", "")) as (server,):
        store = RedisStore(f"redis://ann:{password}@{server.address}")
        with pytest.raises(StoreError, match="unknown command 'AUTH'") as error:
            await store.open()
        assert "s3cret" not in str(error.value)
        await store.close()


async def test_what_a_server_says_is_shown_without_the_password() -> None:
    async with fake(lambda _: b"-ERR AUTH s3cret is too much\r\n") as url:
        store = RedisStore(url.replace("://", "://:s3cret@"), timeout_s=2.0)
        with pytest.raises(StoreError, match=r"ERR AUTH \*\*\* is too much"):
            await store.ping()
        await store.close()
