"""What can go wrong between a store and its PostgreSQL server, on real servers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.stores import open_store
from askii_middleware.stores.base import PARTITIONS, DeadWorkerError, ShortCreditError, StaleFormsError, UnwritableError
from askii_middleware.stores.postgres import PostgresStore, migrations

from ..servers import Postgres, free_port
from .support import Client, Clock, budget

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresStore]:
    store = open_store(url, **options)
    assert isinstance(store, PostgresStore)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@contextmanager
def admin(url: str, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    """A connection of someone else to the same server."""
    with psycopg.connect(url.partition("?")[0], autocommit=True, **options) as connection:
        yield connection


def namespace_of(url: str) -> str:
    return url.rpartition("=")[2]


def with_options(url: str, **options: object) -> str:
    return "&".join((url, *(f"{name}={value}" for name, value in options.items())))


def backends(connection: psycopg.Connection[Any], name: str) -> list[int]:
    """Server processes of the connections with this application name."""
    rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchall()
    return sorted(pid for (pid,) in rows)


async def none_left(connection: psycopg.Connection[Any], name: str) -> None:
    until_s = time.monotonic() + 5
    while backends(connection, name):
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)


# Outages --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One that may be killed."""
    server = Postgres().start()
    yield server
    server.close()


async def test_a_killed_server_is_an_error_and_after_its_restart_all_is_there_without_one(server: Postgres) -> None:
    async with opened(f"{server.url}?namespace=killed") as store:
        await asyncio.gather(*(store.set_budget(budget(f"tenant=t{n}", n)) for n in range(20)))
        server.kill()
        for _ in range(3):
            with pytest.raises(StoreError, match="cannot be reached"):
                await store.ping()
        server.start()
        await store.ping()
        assert len(await store.budgets()) == 20


async def test_every_call_under_way_when_the_server_is_killed_ends_in_an_error(server: Postgres) -> None:
    async with opened(f"{server.url}?namespace=busy&pool_size=4") as store:
        other = psycopg.connect(server.url)
        other.execute("LOCK TABLE busy.meta")
        calls = [asyncio.ensure_future(store.ping()) for _ in range(10)]
        await asyncio.sleep(0.05)
        server.kill()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        other.close()
        assert {type(end) for end in ends} == {StoreError}
        server.start()
        await store.ping()


async def test_calls_that_are_repeated_until_they_are_answered_count_once_whatever_happens_to_the_server(
    server: Postgres,
) -> None:
    failures = done = 0

    async def settle(client: Client, numbers: Iterator[int]) -> None:
        nonlocal failures, done
        for n in numbers:
            while True:
                try:
                    await client.settle(f"c{n}", n, tenant=f"t{n % 7}")
                except StoreError:
                    failures += 1
                    await asyncio.sleep(0.005)
                else:
                    done += 1
                    break

    async with opened(f"{server.url}?namespace=counted", clock=Clock()) as store:
        await store.register_sinks(["s"])
        client, numbers = Client(store, Clock()), iter(range(600))
        settling = asyncio.gather(*(settle(client, numbers) for _ in range(30)))
        for part in (100, 300):
            while done < part:
                await asyncio.sleep(0.001)
            server.kill()
            await asyncio.to_thread(server.start)
        await settling
        assert failures
        totals = await store.totals()
        assert (totals.calls, totals.records) == (600, 600)
        assert totals.cost_nano_usd == totals.records_nano_usd == sum(range(600))
        entries = await store.fetch("s", range(PARTITIONS), 1000)
        assert sorted(entry.call_id for entry in entries) == sorted(f"c{n}" for n in range(600))
        for partition in {entry.partition for entry in entries}:
            seqs = [entry.seq for entry in entries if entry.partition == partition]
            assert seqs == list(range(1, len(seqs) + 1))


async def test_a_store_whose_server_is_not_there_yet_works_from_the_moment_it_is(server: Postgres) -> None:
    store = open_store(f"{server.url}?namespace=early")
    server.kill()
    with pytest.raises(StoreError, match="see that the server runs"):
        await store.open()
    with pytest.raises(StoreError, match="see that the server runs"):
        await store.ping()
    server.start()
    await store.ping()
    await store.close()


async def test_connections_that_the_server_closed_meanwhile_are_replaced_unnoticed(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, application_name="closed")) as store:
        await asyncio.gather(*(store.ping() for _ in range(20)))
        with admin(postgres_url) as other:
            before = backends(other, "closed")
            assert len(before) == 8
            other.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) AS pid", (before,))
            await asyncio.gather(*(store.ping() for _ in range(20)))
            assert set(before).isdisjoint(backends(other, "closed"))


async def test_a_server_that_says_nothing_is_an_error_after_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_store(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/db", timeout_s=0.2)
        began_s = time.monotonic()
        with pytest.raises(StoreError, match=r"did not answer within 0\.2 s"):
            await store.open()
        assert time.monotonic() - began_s < 1
        await store.close()


async def test_a_server_that_stops_in_mid_answer_is_an_error_after_the_time_out(server: Postgres) -> None:
    url = f"{server.url}?namespace=stopped&pool_size=1&application_name=stopped"
    async with opened(url, timeout_s=1.0) as store:
        with admin(server.url) as other:
            (pid,) = backends(other, "stopped")
            os.kill(pid, 19)
            try:
                began_s = time.monotonic()
                with pytest.raises(StoreError, match="did not answer"):
                    await store.ping()
                assert time.monotonic() - began_s < 3
                await store.ping()  # on a new connection
            finally:
                os.kill(pid, 18)


async def test_a_lock_that_someone_else_holds_is_an_error_after_the_time_out(postgres_url: str) -> None:
    async with opened(postgres_url, timeout_s=1.0) as store:
        with admin(postgres_url) as other:
            other.execute(f"BEGIN; LOCK TABLE {namespace_of(postgres_url)}.meta")
            with pytest.raises(StoreError, match=r"is locked by|did not answer"):
                await store.ping()
            other.execute("COMMIT")
            await store.ping()


# The bounded pool -----------------------------------------------------------------------------------------------------


async def test_there_are_never_more_connections_than_the_url_says(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, pool_size=3, application_name="three")) as store:
        await asyncio.gather(*(store.ping() for _ in range(200)))
        with admin(postgres_url) as other:
            assert len(backends(other, "three")) == 3


async def test_waiting_for_a_connection_ends_with_the_time_out(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, pool_size=1), timeout_s=1.0) as store:
        with admin(postgres_url) as other:
            other.execute(f"BEGIN; LOCK TABLE {namespace_of(postgres_url)}.meta")
            ends = await asyncio.gather(*(store.ping() for _ in range(5)), return_exceptions=True)
            assert {type(end) for end in ends} == {StoreError}
            other.execute("COMMIT")
            await store.ping()


async def test_a_caller_that_is_cancelled_leaves_nothing_that_others_could_read(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, pool_size=2)) as store:
        for n in range(40):
            call = asyncio.ensure_future(store.budgets())
            for _ in range(n % 7):
                await asyncio.sleep(0)
            call.cancel()
            assert [await store.forms() for _ in range(3)] == [(0, [])] * 3
            await asyncio.gather(call, return_exceptions=True)
        await asyncio.gather(*(store.ping() for _ in range(10)))


async def test_a_statement_whose_caller_gave_up_is_ended_by_the_server(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, application_name="gave-up"), timeout_s=0.5) as store:
        with admin(postgres_url) as locking, admin(postgres_url) as other:
            locking.execute(f"BEGIN; LOCK TABLE {namespace_of(postgres_url)}.meta")
            call = asyncio.ensure_future(store.ping())
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert len(backends(other, "gave-up")) == 1
            await none_left(other, "gave-up")


async def test_closing_lets_calls_come_to_their_end_and_closes_every_connection(postgres_url: str) -> None:
    store = open_store(with_options(postgres_url, pool_size=2, application_name="closing"))
    await store.open()
    calls = [asyncio.ensure_future(store.ping()) for _ in range(50)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*calls) == [None] * 50
    with admin(postgres_url) as other:
        await none_left(other, "closing")
    await store.ping()  # a closed store may be used again
    await store.close()


def test_a_store_serves_one_event_loop_after_the_other(postgres_url: str) -> None:
    store = open_store(postgres_url)

    async def use() -> None:
        await asyncio.gather(*(store.ping() for _ in range(20)))

    for _ in range(3):
        asyncio.run(use())
    asyncio.run(store.close())


FORK = """
import asyncio, os, sys
from askii_middleware.stores import open_store
store = open_store(sys.argv[1])

async def pids(last=False):
    found = {await store._call("own_pid") for _ in range(3)}
    if last:
        await store.close()
    return found

before = asyncio.run(pids())
child = os.fork()
if child == 0:
    try:
        assert asyncio.run(pids()).isdisjoint(before)
        assert asyncio.run(pids(last=True)).isdisjoint(before)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, len(before), asyncio.run(pids(last=True)) == before)
"""


async def test_a_forked_child_neither_uses_nor_closes_its_parents_connections(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    with admin(postgres_url) as other:
        name = f"{namespace_of(postgres_url)}.own_pid"
        other.execute(f"CREATE FUNCTION {name}() RETURNS bigint LANGUAGE sql AS 'SELECT pg_backend_pid()::bigint'")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, with_options(postgres_url, pool_size=1)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("0 1 True\n", "")


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        ("53100", StoreError, "the server's disk is full: free some space"),
        ("53300", StoreError, "lower pool_size in the URL"),
        ("57014", StoreError, "someone cancelled the statement"),
        ("57P01", StoreError, "the server is stopping or starting"),
        ("55P03", StoreError, "locked by a long transaction"),
        ("42501", StoreError, "let this user create and own the schema"),
        ("42P01", StoreError, "another version of askii-middleware"),
        ("40P01", StoreError, "failed: wrong"),
        ("22003", UnwritableError, "cannot hold this: wrong"),
        ("23514", UnwritableError, "cannot hold this: wrong"),
        ("AS001", StoreError, "^wrong$"),
        ("AS002", UnwritableError, "^wrong$"),
        ("AS003", StaleFormsError, "^wrong$"),
        ("AS004", DeadWorkerError, "^wrong$"),
        ("AS005", ShortCreditError, "^wrong$"),
    ],
)
async def test_an_error_of_the_server_says_what_to_do(
    postgres_url: str, code: str, kind: type[Exception], advice: str
) -> None:
    await define(
        postgres_url,
        "fail(code text) RETURNS void",
        "BEGIN RAISE EXCEPTION 'wrong' USING ERRCODE = code; END",
    )
    async with opened(postgres_url) as store:
        with pytest.raises(StoreError, match=advice) as caught:
            await store._call("fail", code)
        assert type(caught.value) is kind
        await store.ping()


async def define(url: str, signature: str, body: str) -> None:
    """Add a function to a ledger."""
    async with opened(url):
        pass
    with admin(url) as other:
        other.execute(f"CREATE FUNCTION {namespace_of(url)}.{signature} LANGUAGE plpgsql AS $${body}$$".encode())


async def test_a_call_that_the_server_undid_to_end_a_deadlock_is_sent_again(postgres_url: str) -> None:
    await define(
        postgres_url,
        "unlucky() RETURNS bigint",
        f"BEGIN IF nextval('{namespace_of(postgres_url)}.record_numbers') < 4 THEN "
        "RAISE EXCEPTION 'victim' USING ERRCODE = '40P01'; END IF; RETURN 7; END",
    )
    async with opened(postgres_url) as store:
        assert await store._call("unlucky") == 7


async def test_a_statement_that_someone_cancelled_is_an_error(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, application_name="victim", pool_size=1)) as store:
        with admin(postgres_url) as other:
            other.execute(f"BEGIN; LOCK TABLE {namespace_of(postgres_url)}.meta")
            call = asyncio.ensure_future(store.ping())
            await asyncio.sleep(0.05)
            (pid,) = backends(other, "victim")
            other.execute("SELECT pg_cancel_backend(%s)", (pid,))
            with pytest.raises(StoreError, match="cancelled the statement"):
                await call
            other.execute("COMMIT")
            await store.ping()
            assert backends(other, "victim") == [pid]


async def test_a_read_only_server_is_an_error_that_names_the_primary(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    async with opened(with_options(postgres_url, options="-cdefault_transaction_read_only=on")) as store:
        with pytest.raises(StoreError, match="is read-only: name the primary"):
            await store.ping()
        assert await store.budgets() == []


async def test_a_server_without_free_connections_is_an_error_that_names_the_pool_size(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    role = namespace_of(postgres_url)
    with admin(postgres_url) as other:
        other.execute(f"CREATE ROLE {role} LOGIN SUPERUSER CONNECTION LIMIT 0".encode())
        other.execute(f"ALTER ROLE {role} NOSUPERUSER".encode())
        store = open_store(postgres_url.replace("postgres@", f"{role}@", 1))
        with pytest.raises(StoreError, match="lower pool_size in the URL"):
            await store.open()
        await store.close()
        other.execute(f"DROP ROLE {role}".encode())


async def test_text_that_is_not_utf_8_or_holds_a_nul_is_unwritable(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        for name in ("\ud800", "a\0b"):
            with pytest.raises(UnwritableError):
                await store.put_item("price", name, b"1")
        assert await store.items("price") == []


async def test_no_message_and_no_url_shows_a_secret(postgres_url: str) -> None:
    secret = "hunter2-geheim"
    port = free_port()
    for url in (
        f"postgresql://me:{secret}@127.0.0.1:{port}/db",
        f"postgresql://127.0.0.1:{port}/db?password={secret}&user=me&namespace=x",
        postgres_url.replace("postgres@", f"nobody-known:{secret}@", 1),
        postgres_url.replace("/postgres?", f"/{secret}?password={secret}&", 1),
    ):
        store = open_store(url)
        with pytest.raises(StoreError) as caught:
            await store.open()
        if f"/{secret}?" not in url:
            assert secret not in f"{store.url} {vars(store)} {caught.value} {caught.value!r}"
        assert "me:" not in store.url
        await store.close()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("namespace=Askii", "lower-case"),
        ("namespace=a;drop", "lower-case"),
        ("namespace=", "lower-case"),
        ("namespace=pg_catalog", "pg_"),
        ("namespace=" + "a" * 42, "at most 41"),
        ("pool_size=0", "pool_size is a number from 1"),
        ("pool_size=many", "pool_size is a number from 1"),
        ("pool_size=1001", "pool_size is a number from 1"),
        ("prepare=maybe", "prepare is true or false"),
        ("unknown_option=s3cret", "cannot be read"),
    ],
)
def test_a_url_with_a_mistake_is_refused_without_showing_its_secrets(query: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_store(f"postgresql://me:s3cret@db.example/askii?{query}")
    assert "s3cret" not in str(caught.value)


def test_the_url_that_is_shown_has_the_place_and_nothing_else() -> None:
    store = open_store(
        "postgresql://me:pw@db1.example:5433,db2.example/ask%20ii?sslmode=require&namespace=eu&pool_size=2"
    )
    assert store.url == "postgresql://db1.example:5433,db2.example/ask%20ii?namespace=eu"


# The schema -----------------------------------------------------------------------------------------------------------


async def test_workers_that_start_at_once_on_an_empty_database_all_come_up(postgres_url: str) -> None:
    stores = [open_store(with_options(postgres_url, pool_size=1)) for _ in range(12)]
    await asyncio.gather(*(store.open() for store in stores))
    await stores[0].set_budget(budget("tenant=a", 1))
    assert [len(await store.budgets()) for store in stores] == [1] * 12
    await asyncio.gather(*(store.close() for store in stores))


async def test_an_older_schema_is_refused_with_the_command_that_brings_it_up_to_date(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres_url) as store:
        await store.set_budget(budget("tenant=a", 1))
    monkeypatch.setattr(migrations, "VERSION", 2)
    store = PostgresStore(postgres_url)
    with pytest.raises(StoreError, match=r"has schema 1 and needs 2: .* run `askii migrate`"):
        await store.open()
    await asyncio.gather(store.migrate(), store.migrate())
    await store.open()
    assert len(await store.budgets()) == 1
    await store.close()


async def test_a_newer_schema_is_refused(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    with admin(postgres_url) as other:
        other.execute(f"UPDATE {namespace_of(postgres_url)}.meta SET value = 99 WHERE name = 'schema'".encode())
    store = PostgresStore(postgres_url)
    for asked in (store.open(), store.migrate()):
        with pytest.raises(StoreError, match=r"has schema 99 .* upgrade askii-middleware"):
            await asked
    await store.close()


async def test_a_schema_of_another_application_is_left_alone(postgres_url: str) -> None:
    namespace = namespace_of(postgres_url)
    with admin(postgres_url) as other:
        other.execute(f"CREATE SCHEMA {namespace}; CREATE TABLE {namespace}.customers (id int)".encode())
        store = open_store(postgres_url)
        with pytest.raises(StoreError, match="tables of another application: name another namespace"):
            await store.open()
        await store.close()
        tables = other.execute("SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace", (namespace,))
        assert tables.fetchall() == [("customers",)]


async def test_a_user_who_owns_an_empty_schema_needs_no_other_right(postgres_url: str) -> None:
    name = namespace_of(postgres_url)
    with admin(postgres_url) as other:
        other.execute(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA {name} AUTHORIZATION {name}".encode())
        async with opened(postgres_url.replace("postgres@", f"{name}@", 1)) as store:
            await store.set_budget(budget("tenant=a", 1))
        other.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


async def prepared(store: PostgresStore) -> int:
    """How many statements the only connection keeps."""
    count = b"SELECT count(*) FROM pg_prepared_statements"
    return int(await store._connections.use(lambda connection: connection.script(count)) or b"-1")


async def test_without_prepared_statements_all_works_and_none_is_left(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, prepare="false", pool_size=1)) as store:
        await store.set_budget(budget("tenant=a", 1))
        assert len(await store.budgets()) == 1
        assert await prepared(store) == 0
    async with opened(with_options(postgres_url, pool_size=1)) as store:
        await store.ping()
        await store.ping()
        assert await prepared(store) == 2


# Copies of budgets ----------------------------------------------------------------------------------------------------


async def test_the_copy_of_the_terms_follows_the_edits_of_others(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        await one.load_terms()
        assert (one._terms.version, one._terms.terms) == (0, {})
        await two.set_budget(budget("tenant=a", 1))
        await two.set_budget(budget("tenant=b", 2))
        await one.load_terms()
        assert {key: terms.limit_nano_usd for key, terms in one._terms.terms.items()} == {
            "tenant=a|daily": 1,
            "tenant=b|daily": 2,
        }
        await two.remove_budget("tenant=a|daily")
        await two.set_budget(budget("tenant=b", 3))
        version = one._terms.version
        await asyncio.gather(one.load_terms(), one.load_terms())
        assert one._terms.version >= version + 2
        assert {key: terms.limit_nano_usd for key, terms in one._terms.terms.items()} == {"tenant=b|daily": 3}
        await two.set_budget(budget("tenant=a", 4))
        await one.load_terms()
        assert one._terms.terms["tenant=a|daily"].limit_nano_usd == 4
