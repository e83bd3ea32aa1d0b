"""What goes wrong with files, disks, locks and processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores import open_store, sqlite_database
from askii_middleware.stores.base import Store, UnwritableError
from askii_middleware.stores.sqlite import SQLiteStore
from askii_middleware.stores.sqlite_errors import BusyError, explain

from .support import Client, Clock, budget
from .test_sqlite_processes import hear, running, tell


def at(path: Path, clock: Clock, **options: float | str) -> SQLiteStore:
    store = open_store(f"sqlite:///{path}", clock=clock, **options)
    assert isinstance(store, SQLiteStore)
    return store


@pytest.fixture
async def client(sqlite: Store, clock: Clock) -> Client:
    await sqlite.heartbeat("w", 3600)
    client = Client(sqlite, clock)
    client.declare(budget("tenant=*", 10**9))
    return client


# Files -------------------------------------------------------------------------------------------------------------


async def test_a_missing_directory_says_to_create_it(clock: Clock, tmp_path: Path) -> None:
    store = at(tmp_path / "missing" / "askii.db", clock)
    with pytest.raises(StoreError, match="create its directory"):
        await store.open()
    (tmp_path / "missing").mkdir()
    await store.open()
    await store.close()


async def test_a_file_that_is_no_database_is_left_alone(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    path.write_bytes(b"not a database, but long enough to be taken for a header" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a SQLite database"):
        await at(path, clock).open()
    assert path.read_bytes() == before


async def test_a_database_of_another_application_is_left_alone(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another application"):
        await at(path, clock).open()
    assert path.read_bytes() == before


async def test_a_newer_schema_asks_for_an_upgrade(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    store = at(path, clock)
    await store.open()
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"schema 99 .* upgrade"):
        await store.open()


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """File permissions do not bind root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("read_only", ["file", "directory"])
async def test_a_read_only_file_or_directory_says_so_and_what_to_do(clock: Clock, read_only: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "askii.db"
        store = at(path, clock)
        if read_only == "file":
            await store.open()
            await store.close()
            path.chmod(0o444)
            Path(folder).chmod(0o777)
        else:
            Path(folder).chmod(0o555)
        with unprivileged(), pytest.raises(StoreError, match="let this user write"):
            await store.open()
        Path(folder).chmod(0o755)
        if path.exists():
            path.chmod(0o644)
        await store.open()
        await store.close()


async def test_a_full_disk_refuses_whole_operations_and_the_next_works_when_there_is_room(client: Client) -> None:
    assert isinstance(client.store, SQLiteStore)
    front = client.store._db._front
    assert front is not None
    await client.reserve("held", 500)
    (pages,) = front.execute("PRAGMA page_count").fetchone()
    front.execute(f"PRAGMA max_page_count = {pages + 2}")
    filler = b'{"cost_nano_usd":10,"x":"' + b"x" * 3000 + b'"}'
    written = 0
    with contextlib.suppress(StoreError):
        while written < 20:
            await client.settle(f"c{written}", 10, record=filler)
            written += 1
    assert written < 20
    for _ in range(2):
        with pytest.raises(StoreError, match="disk is full"):
            await client.settle("held", 10, record=filler)
        assert (await client.store.totals())[:5] == (written, written * 10, written, written * 10, 500)
        assert await client.spent_held() == (written * 10, 500)
    front.execute("PRAGMA max_page_count = 1000000")
    assert not (await client.settle("held", 10, record=filler)).duplicate
    assert await client.spent_held() == (written * 10 + 10, 0)


async def test_a_disk_that_refuses_to_write_is_an_error_and_the_next_operation_works_when_it_recovers(
    client: Client, tmp_path: Path
) -> None:
    await client.reserve("held", 500)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "askii.db-wal").stat().st_size, hard))
    try:
        with pytest.raises(StoreError, match="reports an error"):
            await client.settle("held", 10)
        with pytest.raises(StoreError, match="reports an error"):
            await client.store.ping()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await client.spent_held() == (0, 500)
    assert not (await client.settle("held", 10)).duplicate
    assert await client.spent_held() == (10, 0)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_IOERR_FSYNC, "reports an error"),
        (sqlite3.SQLITE_CORRUPT, "restore"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "read-only"),
        (sqlite3.SQLITE_FULL, "free some space"),
        (sqlite3.SQLITE_MISUSE, "failed"),
    ],
)
def test_every_error_of_sqlite_says_what_to_do(code: int, advice: str) -> None:
    error = sqlite3.OperationalError("details")
    error.sqlite_errorcode = code
    explained = explain("askii.db", error)
    assert advice in str(explained)
    assert "askii.db" in str(explained)
    assert "details" in str(explained)
    assert not isinstance(explained, BusyError)


async def test_an_error_during_the_rollback_does_not_block_the_connection(client: Client) -> None:
    assert isinstance(client.store, SQLiteStore)
    front = client.store._db._front
    assert front is not None
    front.execute("BEGIN IMMEDIATE")  # as a ROLLBACK that failed would leave it
    front.execute("UPDATE meta SET value = 99 WHERE name = 'forms_version'")
    await client.settle("a", 10)
    assert (await client.store.forms())[0] == 0


async def test_a_value_sqlite_cannot_hold_is_an_error_and_changes_nothing(client: Client) -> None:
    for wrong in ({"tenant": "\ud800"}, {"aggregates": (("tenant=acme", "m", "p", 1, 10**30, 0, 5),)}):
        with pytest.raises(UnwritableError, match="cannot hold"):
            await client.settle("a", 5, **wrong)
    assert (await client.store.totals())[:4] == (0, 0, 0, 0)


async def test_operations_before_open_and_after_close_say_so(clock: Clock, tmp_path: Path) -> None:
    store = at(tmp_path / "askii.db", clock)
    await store.close()
    for _ in range(2):
        for command in (store.ping, store.totals, store.forms):
            with pytest.raises(StoreError, match="not open"):
                await command()
        await store.open()
        await store.close()
        await store.close()


async def test_a_closed_store_leaves_one_file_and_opens_again_with_all_in_it(clock: Clock, tmp_path: Path) -> None:
    store = at(tmp_path / "askii.db", clock)
    for n in range(3):
        await store.open()
        await Client(store, clock).settle(f"c{n}", 10)
        await store.close()
        assert [path.name for path in tmp_path.iterdir()] == ["askii.db"]
    await store.open()
    assert (await store.totals()).records == 3
    await store.close()


# Locks -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[asyncio.Event]:
    """Another process writes until the event is set."""
    async with running("hold", str(path)) as holder:
        assert await hear(holder) == "ready"
        free = asyncio.Event()

        async def let_go() -> None:
            await free.wait()
            await tell(holder)

        task = asyncio.create_task(let_go())
        yield free
        free.set()
        await task


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_while_another_process_writes_operations_wait_and_the_loop_goes_on(
    sync: str, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "askii.db"
    store = at(path, clock, sqlite_sync=sync)
    await store.open()
    await store.heartbeat("w", 60)
    client = Client(store, clock)
    async with locked(path) as free:
        waiting = [asyncio.create_task(client.reserve(f"c{n}")) for n in range(20)]
        for _ in range(100):  # could not end if the loop were blocked until `free` is set
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in waiting)
        assert (await store.totals()).held_nano_usd == 0  # readers never wait
        free.set()
        answers = await asyncio.gather(*waiting)
    assert [answer.candidate for answer in answers] == [0] * 20
    assert (await store.totals()).held_nano_usd == 2000
    await store.close()


async def test_nobody_overtakes_an_operation_that_waits(client: Client, tmp_path: Path) -> None:
    order: list[str] = []

    async def settle(name: str) -> None:
        await client.settle(name, 1)
        order.append(name)

    with contextlib.closing(sqlite3.connect(tmp_path / "askii.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        tasks = [asyncio.create_task(settle(f"c{n}")) for n in range(10)]
        await asyncio.sleep(0.01)
        other.execute("COMMIT")
        await settle("latecomer")
    await asyncio.gather(*tasks)
    assert order == [*(f"c{n}" for n in range(10)), "latecomer"]


async def test_what_cannot_be_settled_at_once_is_left_alone(client: Client, clock: Clock, tmp_path: Path) -> None:
    settlement = client.settlement("a", 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "askii.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert client.store.settle_at_once(settlement) is None
        waiting = asyncio.create_task(client.settle("b", 1))
        await asyncio.sleep(0.01)
        other.execute("COMMIT")
        assert client.store.settle_at_once(settlement) is None  # b comes first
        await waiting
    assert client.store.settle_at_once(settlement) == (0, False, False)
    full = at(tmp_path / "askii.db", clock, sqlite_sync="full")
    await full.open()
    assert full.settle_at_once(client.settlement("c", 1)) is None  # it would wait for the disk
    await full.close()


async def test_a_read_waits_while_another_thread_uses_the_connection(client: Client) -> None:
    assert isinstance(client.store, SQLiteStore)
    lock = client.store._db._front_lock
    lock.acquire()
    task = asyncio.create_task(client.store.forms())
    await asyncio.sleep(0.01)
    assert not task.done()
    lock.release()
    assert await task == (0, [])


async def test_waiting_ends_with_an_error_after_the_lock_timeout(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    store = at(path, clock, lock_timeout_s=0.05)
    await store.open()
    client = Client(store, clock)
    async with locked(path):
        began_s = time.monotonic()
        answers = await asyncio.gather(*(client.settle(f"c{n}", 1) for n in range(50)), return_exceptions=True)
        assert time.monotonic() - began_s < 1  # all wait for the same lock: not one time-out after the other
        assert all("locked by another process" in str(a) and "gave up after 0.05 s" in str(a) for a in answers)
        with pytest.raises(StoreError, match="locked"):
            await at(path, clock, lock_timeout_s=0.05).open()
    assert not (await client.settle("c0", 1)).duplicate
    await store.close()


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_a_cancelled_operation_has_happened_or_not_and_the_next_command_sees_which(
    sync: str, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "askii.db"
    store = at(path, clock, sqlite_sync=sync)
    await store.open()
    await store.heartbeat("w", 60)
    client = Client(store, clock)
    async with locked(path) as free:
        task = asyncio.create_task(client.reserve("a"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        free.set()
    for n in range(30):
        task = asyncio.create_task(client.reserve(f"b{n}"))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await store.release(f"b{n}")
    await store.release("a")
    assert (await store.totals()).held_nano_usd == 0
    assert not (await client.settle("a", 5)).duplicate
    await store.close()


async def test_a_cancellation_waits_for_the_thread_even_if_it_is_repeated(clock: Clock, tmp_path: Path) -> None:
    store = at(tmp_path / "askii.db", clock)
    await store.open()
    release, finished = threading.Event(), []

    def slow(db: sqlite3.Connection) -> None:
        release.wait(5)
        finished.append(db.execute("SELECT 1").fetchone())

    task = asyncio.create_task(store._db.write_aside(slow))
    for _ in range(3):
        await asyncio.sleep(0.005)
        task.cancel()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == [(1,)]
    await store.close()


async def test_closing_lets_waiting_operations_end_first(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    store = at(path, clock)
    await store.open()
    client = Client(store, clock)
    async with locked(path) as free:
        tasks = [asyncio.create_task(client.settle(f"c{n}", 1)) for n in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.01)
        free.set()
        await closing
    assert [settled.duplicate for settled in await asyncio.gather(*tasks)] == [False] * 3


async def test_a_long_read_delays_no_write(client: Client) -> None:
    assert isinstance(client.store, SQLiteStore)
    reading, done = threading.Event(), threading.Event()

    def long(db: sqlite3.Connection) -> int:
        count: int = db.execute("SELECT count(*) FROM records").fetchone()[0]
        reading.set()
        assert done.wait(5)
        return count

    task = asyncio.create_task(client.store._db.read_aside(long))
    await asyncio.to_thread(reading.wait, 5)
    for n in range(10):
        await client.settle(f"c{n}", 1)
    assert await client.store.heartbeat("w", 60)
    assert not task.done()
    done.set()
    assert await task == 0


def test_loops_in_two_threads_share_a_store(clock: Clock, tmp_path: Path) -> None:
    store = at(tmp_path / "askii.db", clock)
    asyncio.run(store.open())
    client = Client(store, clock)

    async def settle(prefix: str) -> None:
        for n in range(100):
            await asyncio.gather(client.settle(f"{prefix}{n}", 1), client.settle(f"{prefix}{n}", 1))

    threads = [threading.Thread(target=lambda prefix=prefix: asyncio.run(settle(prefix))) for prefix in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asyncio.run(store.totals())[:4] == (200, 200, 200, 200)
    asyncio.run(store.close())


# Processes ---------------------------------------------------------------------------------------------------------


async def test_a_fork_must_open_the_store_itself(client: Client) -> None:
    async def in_child() -> None:
        with pytest.raises(StoreError, match="fork"):
            await client.store.ping()
        await client.store.open()
        await client.settle("child", 1)
        await client.store.close()

    await client.settle("parent", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads and forks mix badly is the point
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(in_child())
            status = 0
        finally:
            os._exit(status)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert status == 0
    assert (await client.store.totals()).records == 2


async def test_closing_after_a_fork_leaves_the_parents_connections_alone(client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(client.store.close())
            status = 0
        finally:
            os._exit(status)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert status == 0
    await client.settle("parent", 1)
    assert (await client.store.totals()).records == 1


# Checkpoints -------------------------------------------------------------------------------------------------------


async def test_the_wal_is_merged_in_the_background_and_stays_small(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(client.store, SQLiteStore)
    monkeypatch.setattr(sqlite_database, "CHECKPOINT_EVERY", 20)
    for n in range(500):
        await client.settle(f"c{n}", 1)
        checkpoint = client.store._db._checkpointing
        if checkpoint is not None:
            await asyncio.wrap_future(checkpoint)
    assert (tmp_path / "askii.db-wal").stat().st_size < 2_000_000  # 500 calls write some 12 MB
    assert (tmp_path / "askii.db").stat().st_size > 100_000
    assert (await client.store.totals()).records == 500


async def test_a_checkpoint_that_cannot_finish_breaks_nothing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(client.store, SQLiteStore)
    monkeypatch.setattr(sqlite_database, "CHECKPOINT_EVERY", 5)
    with contextlib.closing(sqlite3.connect(tmp_path / "askii.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM records").fetchone()
        for n in range(50):
            await client.settle(f"c{n}", 1)
            await asyncio.sleep(0)
        checkpoint = client.store._db._checkpointing
        assert checkpoint is not None
        await asyncio.wrap_future(checkpoint)
    assert (await client.store.totals()).records == 50


async def test_a_checkpoint_that_fails_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(client.store, SQLiteStore)
    broken = sqlite3.connect(":memory:")
    broken.close()
    client.store._db._merge_wal(broken)
    assert "checkpoint" in caplog.text
    assert (await client.store.totals()).records == 0
