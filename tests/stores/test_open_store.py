from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError, MissingExtraError
from askii_middleware.stores import open_store
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.stores.postgres import PostgresStore
from askii_middleware.stores.redis import RedisStore
from askii_middleware.stores.sqlite import SQLiteStore


def test_a_url_names_a_store() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    assert isinstance(open_store("sqlite:///askii.db"), SQLiteStore)
    assert open_store("sqlite:////var/askii.db").url == "sqlite:////var/askii.db"
    assert open_store("memory://").url == "memory://"


async def test_three_slashes_are_relative_and_four_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///relative.db", f"sqlite:///{tmp_path}/absolute.db"):
        store = open_store(url)
        await store.open()
        await store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absolute.db", "relative.db"]


REDIS_URLS = [
    "redis://host",
    "rediss://user:secret@host:1/2?namespace=n",
    "redis+sentinel://user:secret@one:1,two:2/main",
    "redis+cluster://user:secret@one:1,two:2",
]


@pytest.mark.parametrize("url", REDIS_URLS)
def test_a_url_of_redis_names_its_store_and_is_shown_without_its_secrets(url: str) -> None:
    store = open_store(url, timeout_s=1.5, sqlite_sync="full")
    assert isinstance(store, RedisStore)
    assert store.url.partition("://")[0] == url.partition("://")[0]
    assert "secret" not in store.url


def test_a_url_of_postgresql_names_its_store_and_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://user:secret@host/db"
    store = open_store(url, timeout_s=1.5, sqlite_sync="full")
    assert isinstance(store, PostgresStore)
    assert store.url == "postgresql://host/db?namespace=askii"
    for name in [name for name in sys.modules if name.startswith("askii_middleware.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[postgres\]") as error:
        open_store(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", REDIS_URLS)
def test_a_url_whose_extra_is_not_installed_names_the_extra(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("askii_middleware.stores.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[redis\]") as error:
        open_store(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("scheme", ["redis+other", "redis+sentinels", "redis3"])
def test_a_scheme_that_only_looks_like_redis_is_refused(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        open_store(f"{scheme}://host/x")


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), "5"])
def test_a_time_out_that_is_none_is_refused(timeout_s: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s"):
        open_store("redis://host", timeout_s=timeout_s)


@pytest.mark.parametrize(
    "url",
    ["", "askii.db", "sqlite://askii.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///a?b=c", "mysql://u:secret@h"],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///path") as error:
        open_store(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("options", [{"sqlite_sink": "full"}, {"sqlite_sync": "of"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        open_store("memory://", **options)


def test_options_of_another_store_are_ignored() -> None:
    assert isinstance(open_store("memory://", sqlite_sync="full", lock_timeout_s=1.0), MemoryStore)


def test_a_store_that_is_not_used_is_not_imported() -> None:
    code = "import sys, askii_middleware.stores as s; s.open_store('memory://'); print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
