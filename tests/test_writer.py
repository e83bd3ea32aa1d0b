"""Charges reach the ledger exactly once, whatever the store and the disk do meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.errors import StoreError
from askii_middleware.journal import Entry, Journal
from askii_middleware.stores.base import Settlement
from askii_middleware.writer import MAX_UNWRITTEN, LedgerWriter

from .stores.support import Client, budget
from .stores.support import Clock as SupportClock
from .support.service import NOW_S, Clock, FaultyStore, both_stores, cancelled_at, faulty

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 0.05


def settlement(number: int, *, cost: int | None = None, record: bytes = b'{"cost_nano_usd":0}') -> Settlement:
    return Settlement(
        call_id=f"call-{number}",
        admitted_at_s=1_767_225_600.0,
        cost_nano_usd=number if cost is None else cost,
        matches=(),
        windows={},
        rate=(1_000_000, 1),
        subscription="acme",
        coins=0,
        pico_coins=0,
        tenant="acme",
        aggregates=(("tenant=acme", "big", "", 1, 1, 0, number if cost is None else cost),),  # type: ignore[arg-type]
        record=record,
    )


async def written(store: FaultyStore) -> tuple[int, int]:
    totals = await store.inner.totals()
    assert totals.calls == totals.records
    return totals.calls, totals.cost_nano_usd


class FullDisk(Journal):
    """A journal on a disk without room, until `room` is set."""

    room = False

    def append(self, entry: Entry) -> None:
        if not self.room:
            raise StoreError("journal cannot be written: No space left on device")
        super().append(entry)


class Book:
    """A writer over a store that fails on command."""

    def __init__(self, store: FaultyStore, journal: Journal | None) -> None:
        self.store = store
        self.journal = journal
        self.errors: list[str] = []
        self.writer = LedgerWriter(store, journal, settle_timeout_s=TIMEOUT_S, on_store_error=self.errors.append)

    async def __aenter__(self) -> Self:
        await self.store.inner.open()
        await self.writer.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.writer.drain(1.0)
        await self.writer.close()
        await self.store.inner.close()


def book(kind: str, folder: Path, *, journal: bool | type[Journal] = True, turns: int = 0) -> Book:
    kept = None
    if journal:
        made = Journal if journal is True else journal
        kept = made(folder / "j", max_bytes=4000)
    return Book(faulty(kind, folder, Clock(), turns=turns), kept)


@pytest.mark.parametrize("fault", ["fail", "after", "hang", "hang after", RuntimeError("defect")])
@pytest.mark.parametrize("journal", [True, False])
@both_stores
async def test_a_charge_the_store_did_not_take_in_time_is_written_once_later(
    kind: str, journal: bool, fault: Any, tmp_path: Path
) -> None:
    async with book(kind, tmp_path, journal=journal) as b:
        b.store.faults["settle"] = [fault]
        answers: list[Any] = []
        assert await b.writer.settle(settlement(7), answers.append) is None
        assert answers == [None]
        assert b.errors == ["settle"]
        assert b.writer.waiting
        assert await b.writer.replay() == 1
        assert await written(b.store) == (1, 7)
        assert not b.writer.waiting
        assert await b.writer.replay() == 0


@pytest.mark.parametrize("fault", ["fail", "after", "hang", "hang after"])
@both_stores
async def test_a_release_the_store_did_not_take_is_repeated(kind: str, fault: str, tmp_path: Path) -> None:
    async with book(kind, tmp_path) as b:
        b.store.faults["release"] = [fault]
        await b.writer.release("call-1")
        assert b.errors == ["release"]
        assert await b.writer.replay() == 1
        assert b.store.calls.count("release") == 2


@pytest.mark.parametrize("doubtful", [True, False])
async def test_a_hold_that_comes_after_its_release_is_released_again(doubtful: bool, tmp_path: Path) -> None:
    store = faulty("sqlite", tmp_path, Clock())
    writer = LedgerWriter(store, None, settle_timeout_s=TIMEOUT_S)
    await store.open()
    await store.heartbeat("w", 3600)
    client = Client(store, SupportClock(NOW_S), [budget("tenant=*", 100)])
    (writer.release_doubtful if doubtful else writer.release_soon)("late")
    await writer.replay()
    await writer.drain(1.0)
    assert not writer.waiting
    await client.reserve("late", 100)
    assert await client.spent_held() == (0, 100)
    await asyncio.sleep(2 * TIMEOUT_S)
    await writer.replay()
    assert await client.spent_held() == (0, 0)
    released = store.calls.count("release")
    await writer.replay()
    assert store.calls.count("release") == released == 2
    await store.close()


@both_stores
async def test_replay_stops_while_the_store_is_away_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    async with book(kind, tmp_path) as b:
        b.store.down = True
        for number in range(1, 4):
            await b.writer.settle(settlement(number))
        assert await b.writer.replay() == 0
        b.store.down = False
        b.store.faults["settle"] = ["ok", "after"]
        assert await b.writer.replay() == 0
        await b.writer.settle(settlement(4))
        assert await b.writer.replay() == 3
        assert await written(b.store) == (4, 10)


@both_stores
async def test_what_is_journaled_during_a_replay_is_not_forgotten_by_it(kind: str, tmp_path: Path) -> None:
    async with book(kind, tmp_path, turns=3) as b:
        b.store.down = True
        await asyncio.gather(*(b.writer.settle(settlement(n)) for n in range(1, 4)))
        b.store.down = False
        replay = asyncio.create_task(b.writer.replay())
        await asyncio.sleep(0)
        assert b.journal is not None
        await asyncio.to_thread(b.journal.append, Entry(settlement=settlement(4)))
        assert await replay == 4
        assert await written(b.store) == (4, 10)
        assert b.journal.pending_bytes == 0


async def test_two_replays_at_once_are_one_and_outlive_who_asked(tmp_path: Path) -> None:
    async with book("sqlite", tmp_path, turns=2) as b:
        b.store.down = True
        await b.writer.settle(settlement(1))
        b.store.down = False
        assert set(await asyncio.gather(b.writer.replay(), b.writer.replay())) == {1}
        assert b.store.calls.count("settle") == 2
        b.store.down = True
        await b.writer.settle(settlement(2))
        b.store.down = False
        for step in range(3):
            await cancelled_at(step, b.writer.replay())
        await b.writer.drain(1.0)
        assert await written(b.store) == (2, 3)


@both_stores
async def test_a_cancelled_caller_cancels_no_write(kind: str, tmp_path: Path) -> None:
    async with book(kind, tmp_path, turns=2) as b:
        count = 0
        for step in range(20):
            still = await cancelled_at(step, b.writer.settle(settlement(step + 1)))
            await b.writer.drain(1.0)
            calls, _ = await written(b.store)
            # Before its first step the settlement has not begun: that is the caller's loss, not the writer's.
            assert calls == count + (step > 0)
            count = calls
            if not still:
                break
        else:
            pytest.fail("never ended")
        assert not b.writer.waiting


async def test_a_write_cut_short_by_the_end_of_its_event_loop_is_in_the_journal(tmp_path: Path) -> None:
    store = faulty("memory", tmp_path, Clock())
    writer = LedgerWriter(store, Journal(tmp_path / "j"), settle_timeout_s=60.0)
    store.faults["settle"] = ["hang"]
    store.faults["release"] = ["hang"]

    async def forgetful() -> None:
        await writer.open()
        writer.release_soon("call-9")
        task = asyncio.create_task(writer.settle(settlement(5)))
        await asyncio.sleep(0.01)
        task.cancel()

    await asyncio.to_thread(asyncio.run, forgetful())
    assert writer.waiting
    assert await writer.replay() == 2
    assert await written(store) == (1, 5)
    await writer.close()


# Full disks ----------------------------------------------------------------------------------------------------------


async def test_a_full_journal_refuses_new_calls_until_it_is_replayed(tmp_path: Path) -> None:
    async with book("sqlite", tmp_path) as b:
        b.store.down = True
        number = 0
        while b.writer.refuses is None:
            number += 1
            await b.writer.settle(settlement(number))
        assert number > 5
        assert "neither the store nor the journal" in b.writer.refuses or "journal is full" in b.writer.refuses
        # Calls that were running settle all the same.
        await b.writer.settle(settlement(number + 1))
        b.store.down = False
        await b.writer.replay()
        assert b.writer.refuses is None
        total = number + 1
        assert await written(b.store) == (total, total * (total + 1) // 2)


@both_stores
async def test_with_no_room_in_store_and_journal_charges_stay_in_memory_and_new_calls_are_refused(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with book(kind, tmp_path, journal=FullDisk) as b:
        b.store.down = True
        await asyncio.gather(*(b.writer.settle(settlement(n)) for n in range(1, 6)))
        assert b.writer.refuses is not None
        assert "refusing new calls" in caplog.text
        assert await b.writer.replay() == 0
        b.store.down = False
        assert await b.writer.replay() == 5
        assert b.writer.refuses is None
        assert await written(b.store) == (5, 15)


async def test_when_the_disk_has_room_again_charges_move_from_memory_to_the_journal(tmp_path: Path) -> None:
    async with book("memory", tmp_path, journal=FullDisk) as b:
        assert isinstance(b.journal, FullDisk)
        b.store.down = True
        await b.writer.settle(settlement(1))
        await b.writer.settle(settlement(2))
        b.journal.room = True
        assert await b.writer.replay() == 0
        assert b.writer.refuses is None
        assert [entry.settlement.cost_nano_usd for entry in b.journal.read() if entry.settlement] == [1, 2]
        b.store.down = False
        await b.writer.replay()
        assert await written(b.store) == (2, 3)


async def test_without_a_journal_memory_is_bounded_by_refusing(tmp_path: Path) -> None:
    async with book("memory", tmp_path, journal=False) as b:
        b.store.down = True
        logging.getLogger("askii_middleware.writer").setLevel(logging.CRITICAL)
        try:
            for number in range(MAX_UNWRITTEN):
                assert b.writer.refuses is None
                await b.writer.settle(settlement(number))
        finally:
            logging.getLogger("askii_middleware.writer").setLevel(logging.NOTSET)
        assert b.writer.refuses == "too many charges wait for the store"


# What can never be written --------------------------------------------------------------------------------------------


@both_stores
async def test_a_charge_the_store_refuses_for_good_is_parked_and_named(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with book(kind, tmp_path) as b:
        assert await b.writer.settle(settlement(1, cost=MAX_NANO_USD + 1)) is None
        assert b.errors == ["settle", "rejected"]
        assert not b.writer.waiting
        assert b.writer.refuses is None
        (line,) = (tmp_path / "j.rejected").read_text().splitlines()
        parked = json.loads(line)
        assert parked["settlement"]["cost_nano_usd"] == MAX_NANO_USD + 1
        assert "outside" in parked["reason"]
        assert "call call-1" in caplog.text
        assert "j.rejected" in caplog.text
        assert await written(b.store) == (0, 0)


@pytest.mark.parametrize("defect", [False, True])
@both_stores
async def test_a_poisoned_entry_does_not_stand_in_the_way_of_the_others(
    kind: str, defect: bool, tmp_path: Path
) -> None:
    async with book(kind, tmp_path) as b:
        b.store.down = True
        for number in (1, 2, 3):
            # 2 can never be booked, by its amount or by a defect of the store.
            cost = MAX_NANO_USD + 1 if number == 2 and not defect else number
            await b.writer.settle(settlement(number, cost=cost))
        b.store.down = False
        b.store.faults["settle"] = ["ok", KeyError("defect") if defect else "ok"]
        assert await b.writer.replay() == 3
        assert await written(b.store) == (2, 4)
        assert not b.writer.waiting
        assert len((tmp_path / "j.rejected").read_text().splitlines()) == 1


async def test_a_defect_while_the_store_is_away_parks_nothing(tmp_path: Path) -> None:
    async with book("memory", tmp_path) as b:
        b.store.faults["settle"] = ["fail", OSError("connection reset")]
        b.store.faults["ping"] = ["fail"]
        await b.writer.settle(settlement(1))
        assert await b.writer.replay() == 0
        assert await b.writer.replay() == 1
        assert await written(b.store) == (1, 1)


async def test_a_place_for_the_parked_that_cannot_be_written_still_leaves_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "j.rejected").mkdir()
    async with book("memory", tmp_path) as b:
        await b.writer.settle(settlement(1, cost=MAX_NANO_USD + 1))
        assert f"cost_nano_usd={MAX_NANO_USD + 1}" in caplog.text
        assert b.writer.refuses is None


# The journals of others ----------------------------------------------------------------------------------------------

DIES = """
import os, sys
from askii_middleware.journal import Entry, Journal
from tests.test_writer import settlement
journals = [Journal(sys.argv[1]) for _ in range(2)]
for place, journal in enumerate(journals):
    journal.open()
    for number in range(1, 4):
        journal.append(Entry(settlement=settlement(place * 3 + number)))
os.kill(os.getpid(), 9)
"""


@both_stores
async def test_journals_of_a_killed_process_are_replayed_once(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path / "j")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -9
    async with book(kind, tmp_path) as b:
        # The first orphan's file was free, so it is our own by now.
        b.store.faults["settle"] = ["ok", "ok", "ok", "fail"]
        assert await b.writer.replay() == 3
        with pytest.raises(StoreError):
            await b.writer.adopt_orphans()
        assert await b.writer.adopt_orphans() == 3
        assert await b.writer.adopt_orphans() == 0
        assert await written(b.store) == (6, 21)


async def test_an_orphan_that_nobody_closes_is_let_go(tmp_path: Path) -> None:
    dead, first, second = (Journal(tmp_path / "j") for _ in range(3))
    dead.open()
    dead.append(Entry(release="call-1"))
    assert dead._file is not None
    dead.close()
    first.open()
    assert first.own_path == tmp_path / "j.0"
    second.open()
    first.close()
    assert [orphan.path.name for orphan in second.orphans()] == ["j.0"]
    (again,) = second.orphans()
    assert again.read() == [Entry(release="call-1")]
    again.discard()
    second.close()
