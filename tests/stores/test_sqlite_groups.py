"""Writes that share one transaction, and processes that share one file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import UnwritableError
from askii_middleware.stores.sqlite_database import Database
from askii_middleware.stores.sqlite_groups import Courtesy

INSERT = "INSERT INTO numbers VALUES (?)"


@pytest.fixture(params=[False, True], ids=["normal", "full"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(str(tmp_path / "askii.db"), full_sync=request.param, lock_timeout_s=0.5)
    await database.open()
    await database.write(lambda db: db.execute("CREATE TABLE numbers (number INTEGER CHECK (number < 100))"))
    yield database
    await database.close()


async def put(db: Database, number: int) -> int:
    def work(connection: sqlite3.Connection) -> int:
        connection.execute(INSERT, (number,))
        return number

    return await db.write(work)


async def numbers(db: Database) -> list[int]:
    return [n for (n,) in await db.read(lambda c: c.execute("SELECT number FROM numbers ORDER BY rowid").fetchall())]


async def test_all_writes_of_a_tick_are_written_in_their_order(db: Database) -> None:
    assert await asyncio.gather(*(put(db, n) for n in range(99))) == list(range(99))
    assert await numbers(db) == list(range(99))


async def test_the_writes_of_a_tick_share_transactions(db: Database) -> None:
    before = db._commits
    await asyncio.gather(*(put(db, n) for n in range(60)))
    assert db._commits - before <= 2


async def test_one_that_fails_takes_back_its_own_changes_only(db: Database) -> None:
    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (50,))
        raise ZeroDivisionError

    def too_much(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (51,))
        connection.execute(INSERT, (100,))

    answers = await asyncio.gather(
        put(db, 1), put(db, 2), db.write(breaks), db.write(too_much), put(db, 3), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [int, int, ZeroDivisionError, UnwritableError, int]
    assert await numbers(db) == [1, 2, 3]


async def test_a_write_that_is_cancelled_before_its_turn_is_never_made(db: Database) -> None:
    holder = sqlite3.connect(db.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    first = asyncio.create_task(put(db, 0))
    await asyncio.sleep(0.01)
    async with db._here().turn:  # the group that is tried is put back, and no next one begins
        tasks = [asyncio.create_task(put(db, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0.01)
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
    holder.execute("ROLLBACK")
    holder.close()
    assert await asyncio.gather(first, *tasks[:2]) == [0, 1, 2]
    assert tasks[2].cancelled()
    assert await numbers(db) == [0, 1, 2]


async def test_a_group_that_cannot_begin_is_refused_in_time(db: Database) -> None:
    holder = sqlite3.connect(db.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(*(put(db, n) for n in range(5)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreError}
    assert "gave up after 0.5 s" in str(answers[0])
    holder.execute("ROLLBACK")
    holder.close()
    assert await put(db, 7) == 7
    assert await numbers(db) == [7]


async def test_the_process_that_has_waited_for_long_goes_first(tmp_path: Path) -> None:
    one, other = Courtesy(str(tmp_path / "askii.db")), Courtesy(str(tmp_path / "askii.db"))
    assert not one.is_asked()
    other.claim()
    assert one.is_asked()
    assert not other.is_asked()
    one.claim()  # not granted while the other has it
    assert one.is_asked()
    other.yield_claim()
    assert not one.is_asked()
    one.close()
    other.close()


async def test_nobody_waits_for_ever_for_a_process_that_asked(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "askii.db"))
    await database.open()
    other = Courtesy(str(tmp_path / "askii.db"))
    other.claim()
    await asyncio.wait_for(database.write(lambda db: db.execute("CREATE TABLE numbers (number INTEGER)")), 5)
    other.close()
    await database.close()


async def test_a_lock_that_nobody_makes_use_of_is_soon_ignored(tmp_path: Path) -> None:
    now_s = 0.0
    one = Courtesy(str(tmp_path / "askii.db"), lambda: now_s)
    other = Courtesy(str(tmp_path / "askii.db"))
    other.claim()
    assert one.is_asked()
    one.ignore()
    assert not one.is_asked()
    now_s = 10.0
    assert one.is_asked()
    one.close()
    other.close()
    other.claim()  # closed: nothing to claim, and nobody asks
    assert not other.is_asked()


def test_a_loop_that_ends_while_a_write_waits_ends_the_write(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "askii.db"))

    async def leave() -> asyncio.Task[object]:
        await database.open()
        holder = sqlite3.connect(database.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(database.write(lambda db: db.execute("CREATE TABLE numbers (number INTEGER)")))
        await asyncio.sleep(0.02)
        holder.close()
        return waiting

    waiting = asyncio.run(leave())
    assert waiting.cancelled()
    asyncio.run(database.close())
