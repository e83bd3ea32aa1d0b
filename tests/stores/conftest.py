from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from askii_middleware.stores import open_store
from askii_middleware.stores.base import Store

from .postgres_support import KeptLedger
from .support import Client, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_ledger(postgres_server: str) -> Iterator[KeptLedger]:
    ledger = KeptLedger(postgres_server, f"askii_test_{os.getpid()}")
    yield ledger
    ledger.close()


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
