"""What the sessions of a PostgreSQL ledger must not take over from the server, its role or another event loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence

import psycopg
import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores import open_copier, open_store
from askii_middleware.stores.base import KeyRow, UnwritableError
from askii_middleware.stores.copying import ItemRow
from askii_middleware.stores.postgres import PostgresStore
from askii_middleware.stores.postgres.address import parse
from askii_middleware.stores.postgres.together import Together

from .support import Client, Clock, budget
from .test_postgres_connection import admin, backends, namespace_of, none_left, opened, with_options

REPEATABLE_READ = "-cdefault_transaction_isolation%3Drepeatable%5C%20read"


# Isolation ------------------------------------------------------------------------------------------------------------


async def test_a_limit_holds_where_the_default_isolation_is_repeatable_read(postgres_url: str) -> None:
    url, clock = with_options(postgres_url, options=REPEATABLE_READ), Clock()
    async with opened(url, clock=clock) as one, opened(url, clock=clock) as two:
        level = await one._connections.use(lambda link: link.script(b"SHOW transaction_isolation"))
        assert level == b"read committed"
        clients = [Client(one, clock), Client(two, clock)]
        await clients[0].set(budget("tenant=*", 1000))
        for client in clients:
            await client.refresh()
        await one.heartbeat("w", 600)
        for part in range(5):
            await asyncio.gather(*(clients[n % 2].reserve(f"{part}-{n}", tenant=f"t{part}") for n in range(40)))
            assert await clients[0].spent_held(f"t{part}") == (0, 1000)


async def test_where_sessions_keep_no_settings_another_isolation_is_refused(postgres_url: str) -> None:
    async with opened(with_options(postgres_url, prepare="false")):
        pass
    store = open_store(with_options(postgres_url, prepare="false", options=REPEATABLE_READ))
    with pytest.raises(StoreError, match="transactions are repeatable read and have to be read committed: ALTER ROLE"):
        await store.open()
    await store.close()


# Versions -------------------------------------------------------------------------------------------------------------


async def test_an_edit_after_a_restore_that_lost_edits_is_seen_by_those_who_knew_the_lost_ones(
    postgres_url: str,
) -> None:
    clock = Clock()
    async with opened(postgres_url, clock=clock) as one, opened(postgres_url, clock=clock) as two:
        client, other = Client(one, clock), Client(two, clock)
        await client.set(budget("tenant=acme", 100))
        with admin(postgres_url) as server:
            server.execute(f"SET search_path = {namespace_of(postgres_url)}".encode())
            server.execute("CREATE TABLE kept AS SELECT * FROM budgets; CREATE TABLE kept_meta AS SELECT * FROM meta")
            await client.set(budget("tenant=acme", 10**6), budget("tag=*", 1))
            await other.refresh()
            assert len(await other.status(tag="x")) == 2
            lost = await two.forms()
            server.execute("TRUNCATE budgets, meta; INSERT INTO budgets SELECT * FROM kept")
            server.execute("INSERT INTO meta SELECT * FROM kept_meta")
        await client.set(budget("tenant=acme", 0), budget("user=*", 7))
        assert [state.limit_nano_usd for state in await other.status()] == [0]
        assert (await two.forms())[0] > lost[0]


async def test_removing_a_budget_that_is_not_there_is_no_edit(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await store.set_budget(budget("tenant=a", 1))
        await store.load_terms()
        before = store._terms.version
        assert not await store.remove_budget("tenant=b|daily")
        await store.load_terms()
        assert store._terms.version == before
        assert await store.remove_budget("tenant=a|daily")
        await store.load_terms()
        assert store._terms.version > before
        assert store._terms.terms == {}


# Connecting -----------------------------------------------------------------------------------------------------------


async def test_a_silent_first_host_leaves_time_for_the_second(postgres_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = postgres_url.replace("@", f"@127.0.0.1:{silent.getsockname()[1]},", 1)
        began_s = time.monotonic()
        async with opened(url) as store:
            await store.ping()
        assert time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    ("place", "options", "connect_timeout"),
    [("one", "", None), ("one,two", "", "2"), ("one,two", "&connect_timeout=9", "9"), ("a,b,c,d,e,f", "", "1")],
)
def test_only_several_hosts_share_the_time_out_and_the_url_has_its_way(
    place: str, options: str, connect_timeout: str | None
) -> None:
    conninfo = parse(f"postgresql://{place}/db?namespace=a{options}").conninfo_within(6.0)
    assert psycopg.conninfo.conninfo_to_dict(conninfo).get("connect_timeout") == connect_timeout


async def test_a_statement_that_waits_for_a_lock_ends_also_where_sessions_keep_no_settings(postgres_url: str) -> None:
    url = with_options(postgres_url, prepare="false", application_name="unbounded")
    async with opened(url, timeout_s=0.5) as store:
        await store.ping()
        with admin(postgres_url) as other, admin(postgres_url) as locking:
            locking.execute(f"BEGIN; LOCK TABLE {namespace_of(postgres_url)}.meta")
            call = asyncio.ensure_future(store.ping())
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert backends(other, "unbounded")
            await none_left(other, "unbounded")
            with pytest.raises(StoreError):
                await store.ping()
            locking.execute("COMMIT")
            await store.ping()
            assert await store._connections.use(lambda link: link.script(b"SHOW lock_timeout")) == b"0"


# Event loops ----------------------------------------------------------------------------------------------------------


async def test_another_event_loop_is_refused_while_this_one_has_requests_under_way_and_they_are_answered() -> None:
    may_answer = asyncio.Event()

    async def send(requests: Sequence[int]) -> list[int]:
        await may_answer.wait()
        return [10 * request for request in requests]

    together = Together(send, most=50, timeout_s=5.0)
    asked = [asyncio.create_task(together.ask(n)) for n in range(6)]
    await asyncio.sleep(0.01)
    with pytest.raises(StoreError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(together.ask(7)))
    may_answer.set()
    assert await asyncio.wait_for(asyncio.gather(*asked), 5) == [10 * n for n in range(6)]


async def test_two_event_loops_at_once_are_refused(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        with pytest.raises(StoreError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(store.ping()))
        await store.ping()


def test_requests_that_a_loop_left_behind_when_it_ended_do_not_bar_the_next_one() -> None:
    async def never(requests: Sequence[int]) -> list[int]:
        await asyncio.Event().wait()
        return list(requests)

    together = Together(never, most=50, timeout_s=5.0)
    loop = asyncio.new_event_loop()
    left = [loop.create_task(together.ask(n)) for n in range(6)]
    loop.run_until_complete(asyncio.sleep(0.01))

    async def answered() -> int:
        async def send(requests: Sequence[int]) -> list[int]:
            return list(requests)

        together._send = send
        return await together.ask(7)

    assert asyncio.run(answered()) == 7
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_a_copy_of_text_that_postgresql_cannot_hold_says_so(postgres_url: str, text: str) -> None:
    copier = open_copier(postgres_url)
    await copier.open()
    try:
        with pytest.raises(UnwritableError, match="cannot hold this"):
            await copier.load("items", [ItemRow("price", text, b"1", None)])
        with pytest.raises(UnwritableError):
            await copier.load("keys", [KeyRow(id=text, sha256="a" * 64, tenant="acme")])
    finally:
        await copier.close()


async def test_a_settlement_with_text_that_is_not_utf_8_is_unwritable_and_those_beside_it_are_charged(
    postgres_url: str,
) -> None:
    async with opened(postgres_url, clock=Clock()) as store:
        assert isinstance(store, PostgresStore)
        client = Client(store, Clock())
        bad, good = client.settlement("bad", 1, subscription="\ud800"), client.settlement("good", 2)
        with pytest.raises(UnwritableError, match="no text that is not UTF-8"):
            await store.settle(bad)
        first, second = await store.settle_many([bad, good])
        assert isinstance(first, UnwritableError)
        assert not isinstance(second, UnwritableError)
        with pytest.raises(UnwritableError, match="no text that is not UTF-8"):
            await client.reserve("\ud800")
        assert (await store.totals()).cost_nano_usd == 2
