from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from askii_middleware.stores import open_store
from askii_middleware.stores.base import Store

from ..servers import Postgres, Valkey, running
from .postgres_support import KeptLedger
from .support import Client, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


NAMESPACES = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server for the whole run."""
    given = os.environ.get("ASKII_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    server = Postgres().start()
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def postgres_ledger(postgres_server: str) -> Iterator[KeptLedger]:
    ledger = KeptLedger(postgres_server, f"askii_test_{os.getpid()}")
    yield ledger
    ledger.close()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a ledger that nobody has used."""
    namespace = f"askii_test_{os.getpid()}_{next(NAMESPACES)}"
    yield f"{postgres_server}{'&' if '?' in postgres_server else '?'}namespace={namespace}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {namespace} CASCADE")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey server for the whole run."""
    given = os.environ.get("ASKII_TEST_REDIS_URL")
    if given:
        yield given
        return
    with running(Valkey(tmp_path_factory.mktemp("valkey"))) as (server,):
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """URL of a ledger that nobody has used."""
    namespace = f"askii_test_{os.getpid()}_{next(NAMESPACES)}"
    yield f"{redis_server}{'&' if '?' in redis_server else '?'}namespace={namespace}"
    with redis.Redis.from_url(redis_server) as connection:
        for key in connection.scan_iter(f"{{{namespace}}}:*", count=1000):
            connection.unlink(key)


@pytest.fixture(params=["memory", "sqlite", "sqlite-full", "postgres", "redis"])
async def store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Store]:
    """Every member of the family, open. `sqlite-full` runs each write in a thread."""
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'askii.db'}"
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_ledger").emptied().url
    store = open_store(url, clock=clock, sqlite_sync="full" if request.param == "sqlite-full" else "normal")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def sqlite(clock: Clock, tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{tmp_path / 'askii.db'}", clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def client(store: Store, clock: Clock) -> Client:
    """A client of every store, whose worker `w` lives for 30 days."""
    await store.heartbeat("w", 30 * 86_400)
    return Client(store, clock)
