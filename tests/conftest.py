"""What holds for all tests."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings

from .servers import Postgres, Valkey, running

# A machine under load is slow now and then; a property that needs a bound in time measures it itself.
settings.register_profile("askii", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("askii")

NAMESPACES = itertools.count(1)
MEMORY, ROOM_BYTES = "/dev/shm", 1 << 30

# Ledgers of tests lie in memory where there is room: most of them live for milliseconds, and a disk takes longer for
# their fsyncs than they live. TMPDIR says otherwise. What `kill -9` leaves is the same in both.
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
    tempfile.tempdir = MEMORY

gc.disable()  # until all is imported


def pytest_collection_finish() -> None:
    """What was imported stays: no collection has to look at its million objects again, here or in a fork."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
