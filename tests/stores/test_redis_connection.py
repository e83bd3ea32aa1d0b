"""The connection to Redis or Valkey: what travels together, what goes wrong alone, and how it comes back."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.stores.redis import RedisStore
from askii_middleware.stores.redis import connection as connections
from askii_middleware.stores.redis.wire import Refused, Wire, pack, parse

from ..servers import Valkey, free_port, running
from .support import NOON_S, Client, Clock


@pytest.fixture
async def redis_store(redis_url: str) -> AsyncIterator[RedisStore]:
    async with opened(redis_url) as store:
        yield store


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A server that a test may break."""
    with running(Valkey(tmp_path / "valkey", "--appendonly", "yes", "--appendfsync", "always")) as (server,):
        yield server


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, **options)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def fake(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """A server that answers each piece of what it reads in its own way; None: it hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            reply = answer(data)
            if reply is None:
                break
            writer.write(reply)
        writer.close()

    async with asyncio.timeout(10):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await asyncio.sleep(0.01)


async def seconds(of: Awaitable[Any]) -> float:
    """How long it takes to fail with a StoreError."""
    begun = time.monotonic()
    with pytest.raises(StoreError):
        await of
    return time.monotonic() - begun


# What travels together ------------------------------------------------------------------------------------------------


async def test_calls_of_one_tick_leave_in_one_write(redis_store: RedisStore) -> None:
    await redis_store.forms()
    wire = redis_store._link._wire
    assert wire is not None
    writes: list[int] = []
    transport = wire._transport

    class Counting:
        def write(self, data: bytes) -> None:
            assert transport is not None
            writes.append(data.count(b"EVALSHA"))
            transport.write(data)

    wire._transport = Counting()  # type: ignore[assignment]
    try:
        await asyncio.gather(*(redis_store.forms() for _ in range(100)))
        assert writes == [100]
    finally:
        wire._transport = transport


async def test_replies_find_their_callers(redis_store: RedisStore) -> None:
    async def echo(n: int) -> bytes:
        reply: bytes = await redis_store._link.call("ECHO", f"{n}" * (n % 40))
        return reply

    replies = await asyncio.gather(*map(echo, range(2000)))
    assert replies == [(f"{n}" * (n % 40)).encode() for n in range(2000)]


async def test_a_call_that_fails_fails_alone(redis_store: RedisStore) -> None:
    async def call(n: int) -> Any:
        return await redis_store._link.call(*(("ECHO", n) if n % 3 else ("NO-SUCH-COMMAND",)))

    replies = await asyncio.gather(*map(call, range(30)), return_exceptions=True)
    for n, reply in enumerate(replies):
        assert (reply == str(n).encode()) if n % 3 else isinstance(reply, StoreError)


async def test_callers_that_go_take_no_reply_from_those_that_stay(redis_store: RedisStore) -> None:
    rng = random.Random(5)
    for pause in (0, 0, 1, 2, 3):
        tasks = [asyncio.create_task(redis_store._link.call("ECHO", n)) for n in range(200)]
        for _ in range(pause):
            await asyncio.sleep(0)
        gone = set(rng.sample(range(200), 100))
        for n in gone:
            tasks[n].cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for n, reply in enumerate(replies):
            assert reply == str(n).encode() or (n in gone and isinstance(reply, asyncio.CancelledError))
    await redis_store.ping()


async def test_callers_that_go_while_it_connects_leave_the_connection_to_the_others(redis_url: str) -> None:
    store = RedisStore(redis_url)
    first, second = asyncio.create_task(store.ping()), asyncio.create_task(store.ping())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()
    await store.close()


async def test_a_reply_of_several_megabytes_arrives_whole(redis_store: RedisStore) -> None:
    big = os.urandom(3 << 20)
    await redis_store._call("HSET", "keys", "big", big)
    assert await redis_store._call("HGET", "keys", "big") == big


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(0, 6))
def test_replies_may_arrive_in_any_pieces(sizes: list[int], seed: int) -> None:
    replies = [
        b"$3\r\na\r\n\r\n",
        b":-7\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"+OK\r\n",
        b"*2\r\n*1\r\n:1\r\n$0\r\n\r\n",
        b"-ERR no\r\n",
    ]
    random.Random(seed).shuffle(replies)
    loop = asyncio.new_event_loop()
    try:
        wire = Wire(loop, b"")
        futures = [wire.send(b"", loop.time() + 60) for _ in replies]
        stream, at = b"".join(replies), 0
        for size in (*sizes, len(stream)):
            if at < len(stream):
                wire.data_received(stream[at : at + size])
                at += size
        for raw, future in zip(replies, futures, strict=True):
            expected, got = parse(raw, 0)[0], future.result()
            assert got.text == "ERR no" if isinstance(expected, Refused) else got == expected
        wire.end("LOST")
    finally:
        loop.close()


def test_a_command_is_packed_byte_for_byte() -> None:
    assert pack(("SET", b"\x00\r\n", 12, 0.1, "é\ud800", True)) == (
        b"*6\r\n$3\r\nSET\r\n$3\r\n\x00\r\n\r\n$2\r\n12\r\n$3\r\n0.1\r\n$5\r\n\xc3\xa9\xed\xa0\x80\r\n$1\r\n1\r\n"
    )


# Scripts --------------------------------------------------------------------------------------------------------------


async def test_a_server_that_forgot_its_scripts_is_told_them_again(redis_store: RedisStore) -> None:
    for _ in range(3):
        await redis_store._link.call("SCRIPT", "FLUSH")
        answers = await asyncio.gather(
            *(redis_store.forms() for _ in range(50)), *(redis_store.item_versions() for _ in range(50))
        )
        assert answers == [(0, [])] * 50 + [{}] * 50


# Trouble --------------------------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_the_time_out(own: Valkey) -> None:
    async with opened(own.url, timeout_s=0.3) as store:
        own.call("CLIENT", "PAUSE", 60_000, "WRITE")
        paused = await asyncio.gather(*(seconds(store.ping()) for _ in range(20)))
        assert all(0.25 < waited < 1 for waited in paused)
        with pytest.raises(StoreError, match=r"within 0\.3 s|did not answer in time \(is it overloaded"):
            await store.ping()
        own.call("CLIENT", "UNPAUSE")
        await store.ping()


async def test_a_host_that_swallows_everything_is_waited_for_no_longer_than_the_time_out() -> None:
    async with fake(lambda _: b"") as url:
        store = RedisStore(url, timeout_s=0.2)
        assert 0.15 < await seconds(store.open()) < 1
        await store.close()


async def test_a_server_that_is_not_there_is_an_error_at_once_and_found_when_it_comes(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey")
    store = RedisStore(server.url)
    for _ in range(3):
        assert await seconds(store.open()) < 1
    with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}.*is the server running there"):
        await store.open()
    with running(server):
        await store.open()
        await store.close()


async def test_after_a_kill_and_a_restart_it_goes_on_with_everything_that_was_answered(own: Valkey) -> None:
    clock = Clock()
    async with opened(own.url, timeout_s=2.0, clock=clock) as store:
        client = Client(store, clock)
        await store.register_sinks(["s"])
        await asyncio.gather(*(client.settle(f"c{n}", 10) for n in range(50)))
        for round_ in range(3):
            own.kill()
            assert await seconds(store.ping()) < 1
            own.start()
            await asyncio.gather(*(client.settle(f"r{round_}-{n}", 10) for n in range(50)))
        totals = await store.totals()
        assert (totals.calls, totals.cost_nano_usd, totals.records, totals.records_nano_usd) == (200, 2000, 200, 2000)
        assert len(await client.waiting("s", 1000)) == 200


async def test_a_kill_under_load_loses_no_settlement_that_was_answered_and_doubles_none(own: Valkey) -> None:
    clock = Clock()
    async with opened(own.url, timeout_s=1.0, clock=clock) as store:
        client, answered = Client(store, clock), 0

        async def settle(n: int) -> None:
            nonlocal answered
            for m in range(20):
                while True:
                    try:
                        await client.settle(f"{n}-{m}", 10)
                    except StoreError:
                        await asyncio.sleep(0.05)
                        continue
                    answered += 1
                    break

        async def crash() -> None:
            for _ in range(2):
                await asyncio.sleep(0.1)
                own.kill()
                await asyncio.to_thread(own.start)

        await asyncio.gather(crash(), *map(settle, range(20)))
        totals = await store.totals()
        assert answered == totals.calls == totals.records == 400
        assert totals.cost_nano_usd == totals.records_nano_usd == 4000


async def test_a_connection_that_is_cut_fails_what_is_on_it_and_nothing_else(own: Valkey) -> None:
    async with opened(own.url) as store:
        own.call("CLIENT", "PAUSE", 60_000, "WRITE")
        waiting = [asyncio.create_task(store.ping()) for _ in range(10)]
        await asyncio.sleep(0.05)
        own.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, StoreError)
            assert "the next call connects again" in str(result)
        own.call("CLIENT", "UNPAUSE")
        await store.ping()


async def test_a_full_server_refuses_whole_operations_and_goes_on_when_it_has_room(own: Valkey) -> None:
    clock = Clock()
    async with opened(own.url, clock=clock) as store:
        client = Client(store, clock)
        own.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreError, match=r"OOM.*maxmemory"):
            await client.settle("a", 10)
        assert await store.totals() == (0, 0, 0, 0, 0, 0)
        own.call("CONFIG", "SET", "maxmemory", "0")
        await client.settle("a", 10)
        assert (await store.totals()).calls == 1


async def test_a_full_server_is_pruned_all_the_same(own: Valkey) -> None:
    clock = Clock()
    async with opened(own.url, clock=clock) as store:
        await store.heartbeat("w", 30 * 86_400)
        await Client(store, clock).settle("a", 10)
        clock.advance(8 * 86_400)
        own.call("CONFIG", "SET", "maxmemory", "1")
        assert await store.heartbeat("w", 30 * 86_400)
        assert await store.records() == []


async def test_a_server_that_drops_keys_when_it_is_full_is_refused(own: Valkey) -> None:
    own.call("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    own.call("CONFIG", "SET", "maxmemory", "100mb")
    store = RedisStore(own.url)
    with pytest.raises(StoreError, match=r"maxmemory-policy is volatile-lru.*noeviction"):
        await store.open()
    await store.close()


async def test_a_server_that_anothers_script_blocks_says_so(own: Valkey) -> None:
    own.call("CONFIG", "SET", "busy-reply-threshold", "50")
    async with opened(own.url) as store:
        loop = asyncio.create_task(asyncio.to_thread(own.call, "EVAL", "while true do end", 0))
        await asyncio.sleep(0.2)
        with pytest.raises(StoreError, match=r"BUSY.*another client's script"):
            await store.ping()
        own.call("SCRIPT", "KILL")
        await loop
        await store.ping()


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("-LOADING reading\r\n", "reads its data after a start"),
        ("-READONLY no writes\r\n", "looks for its successor"),
        ("-MASTERDOWN away\r\n", "failover is under way"),
        ("-CLUSTERDOWN no\r\n", "majority"),
        ("-MOVED 5 127.0.0.1:1\r\n", "being rearranged"),
        ("-ASK 5 127.0.0.1:1\r\n", "being moved"),
        ("-NOAUTH who\r\n", "needs a password"),
        ("-NOPERM no\r\n", "rights"),
        ("-MISCONF disk\r\n", "snapshot"),
        ("-ERR whatever\r\n", "ERR whatever"),
        ("HTTP/1.1 400 Bad Request\r\n", "does not speak the Redis protocol"),
    ],
)
async def test_what_a_server_refuses_is_an_error_that_says_what_to_do(line: str, hint: str) -> None:
    async with fake(lambda _: line.encode()) as url:
        store = RedisStore(url, timeout_s=2.0)
        with pytest.raises(StoreError, match=hint):
            await store.ping()
        await store.close()


async def test_more_calls_than_a_server_answers_are_refused_rather_than_kept(
    own: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_WAITING", 10)
    async with opened(own.url) as store:
        await store.ping()
        own.call("CLIENT", "PAUSE", 60_000, "WRITE")
        waiting = [asyncio.create_task(store.ping()) for _ in range(10)]
        await asyncio.sleep(0.01)
        with pytest.raises(StoreError, match="too slow"):
            await store.ping()
        own.call("CLIENT", "UNPAUSE")
        await asyncio.gather(*waiting)


async def test_closing_waits_for_the_replies_that_are_due(redis_url: str) -> None:
    store = RedisStore(redis_url)
    await store.open()
    pings = [asyncio.create_task(store.ping()) for _ in range(5)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*pings)
    await store.close()


async def test_a_ledger_of_a_later_release_is_not_touched(redis_store: RedisStore, redis_url: str) -> None:
    await redis_store._call("HSET", "meta", "schema", 99)
    store = RedisStore(redis_url)
    with pytest.raises(StoreError, match="schema 99"):
        await store.open()
    await store.close()


# Processes and loops --------------------------------------------------------------------------------------------------


def test_one_store_serves_one_event_loop_after_the_other(redis_url: str) -> None:
    store = RedisStore(redis_url, clock=lambda: NOON_S)

    async def use(name: str) -> int:
        await store.open()
        await store.put_item("kind", name, b"1")
        found = len(await store.items("kind"))
        await store.close()
        return found

    assert [asyncio.run(use(name)) for name in "ab"] == [1, 2]


async def test_two_event_loops_at_once_are_refused(redis_store: RedisStore) -> None:
    await redis_store.ping()
    with pytest.raises(StoreError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(redis_store.ping()))
    await redis_store.ping()


FORKING = """
import asyncio, os, sys
from askii_middleware.stores.redis import RedisStore

store = RedisStore(sys.argv[1])
loop = asyncio.new_event_loop()
loop.run_until_complete(store.open())
mine = loop.run_until_complete(store._link.call("CLIENT", "ID"))
child = os.fork()
if not child:
    async def use():
        await store.ping()
        theirs = await store._link.call("CLIENT", "ID")
        await store.close()
        return theirs
    os._exit(0 if asyncio.run(use()) != mine else 3)
assert os.waitpid(child, 0)[1] == 0
assert loop.run_until_complete(store._link.call("CLIENT", "ID")) == mine
loop.run_until_complete(store.close())
loop.close()
print("fine")
"""


def test_a_forked_process_connects_for_itself_and_leaves_its_parents_connection_alone(redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING, redis_url], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


# URLs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:s3cret@h:1/2?namespace=n", "redis://h:1/2?namespace=n"),
        ("redis://:s3cret@h", "redis://h:6379?namespace=askii"),
        ("rediss://u:s3cret@[::1]:7?ssl_cert_reqs=none", "rediss://[::1]:7?namespace=askii"),
        (
            "redis+sentinel://u:s3cret@h:1,g/main/3?sentinel_password=s3cret",
            "redis+sentinel://h:1,g:26379/main/3?namespace=askii",
        ),
        ("redis+cluster://u:s3cret@h:1,g:2?namespace=x.y", "redis+cluster://h:1,g:2?namespace=x.y"),
    ],
)
def test_secrets_of_a_url_are_not_shown(url: str, shown: str) -> None:
    store = RedisStore(url)
    assert store.url == shown
    assert "s3cret" not in repr(store)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("redis://u:s3cret@h:port", "expected redis://"),
        ("redis://u:s3cret@h:1/x", "expected redis://"),
        ("redis://u:s3cret@h:1?namespace=a{b", "namespace"),
        ("redis://u:s3cret@h:1?namespace=", "namespace"),
        ("redis://u:s3cret@h:1?socket_timeout=1", "no option 'socket_timeout'"),
        ("redis://u:s3cret@h:1,g:2", "sentinel"),
        ("redis+sentinel://u:s3cret@h:1", "SERVICE"),
        ("redis+cluster://u:s3cret@h:1/4", "no database"),
        ("rediss://u:s3cret@h:1?ssl_ca_certs=/no/such/file", "expected rediss://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong) as error:
        RedisStore(url)
    assert "s3cret" not in str(error.value)


async def test_a_password_is_sent_and_a_wrong_one_is_an_error_that_does_not_show_it(own: Valkey) -> None:
    own.call("ACL", "SETUSER", "ann", "on", ">s3cret@/", "~*", "+@all")
    own.call("ACL", "SETUSER", "default", "resetpass", ">s3cret@/")
    for login in ("ann:s3cret%40%2F", ":s3cret%40%2F"):
        async with opened(f"redis://{login}@{own.address}/3?namespace=n") as store:
            await store.ping()
            assert await store._link.call("EXISTS", "{n}:meta") == 1
            assert b"db=3" in await store._link.call("CLIENT", "INFO")
    for login, hint in (("ann:wr0ng@", "check user and password"), ("", "needs a password")):
        store = RedisStore(f"redis://{login}{own.address}")
        with pytest.raises(StoreError, match=hint) as error:
            await store.open()
        assert "wr0ng" not in str(error.value)
        await store.close()


async def test_ledgers_of_one_server_know_nothing_of_each_other(redis_url: str, clock: Clock) -> None:
    one, two = RedisStore(f"{redis_url}_1", clock=clock), RedisStore(f"{redis_url}_2", clock=clock)
    await one.open()
    await two.open()
    await Client(one, clock).settle("a", 10)
    assert (await one.totals()).calls == 1
    assert (await two.totals()).calls == 0
    await one.close()
    await two.close()


# TLS ------------------------------------------------------------------------------------------------------------------


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    from ipaddress import ip_address  # noqa: PLC0415 - only here

    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ledger")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "cert.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(cert.public_bytes(serialization.Encoding.PEM) + pem)
    return path


async def test_tls_checks_the_servers_certificate(redis_server: str, tmp_path: Path) -> None:
    path = certificate(tmp_path)
    port = int(redis_server.rpartition(":")[2])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}?namespace=tls"
    async with opened(f"{url}&ssl_ca_certs={path}") as store:
        await asyncio.gather(*(store.ping() for _ in range(50)))
    stranger = RedisStore(url)
    with pytest.raises(StoreError, match="certificate"):
        await stranger.open()
    await stranger.close()
    server.close()
    await asyncio.sleep(0.05)


def test_free_ports_are_free() -> None:
    assert free_port() != free_port()
