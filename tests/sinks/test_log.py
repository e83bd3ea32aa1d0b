from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.errors import SinkError
from askii_middleware.records import decode_record
from askii_middleware.sinks.base import BACK_OFF, DELIVERED
from askii_middleware.sinks.log import LogSink
from askii_middleware.stores.base import Store

from .support import FakeClock, drain, put, record, worker_for


async def test_each_record_is_one_line_that_reads_back_as_the_record(tmp_path: Path) -> None:
    sink = LogSink(tmp_path / "usage.jsonl")
    records = [record(n, model="line\nbreak \u2028 é") for n in range(5)]
    assert (await sink.send(records[:3])).verdicts == (DELIVERED,) * 3
    await sink.send(records[3:])
    await sink.close()
    lines = (tmp_path / "usage.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [decode_record(line) for line in lines] == records


async def test_a_line_has_the_bytes_that_the_ledger_keeps(tmp_path: Path, store: Store, clock: FakeClock) -> None:
    sink = LogSink(tmp_path / "usage.jsonl")
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(3)))
    await drain(worker, clock)
    await sink.close()
    kept = [each for _, each in await store.records()]
    assert (tmp_path / "usage.jsonl").read_bytes() == b"".join(each + b"\n" for each in kept)


@pytest.mark.parametrize("torn", [b'{"kind":"usage","call_', b"x"])
async def test_a_torn_last_line_is_ended_so_that_it_spoils_no_other(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "usage.jsonl"
    whole = msgspec.json.encode(record(1)) + b"\n"
    path.write_bytes(whole + torn)
    sink = LogSink(path)
    await sink.send([record(2)])
    await sink.send([record(3)])
    await sink.close()
    lines = path.read_bytes().splitlines()
    assert lines[1] == torn
    assert [decode_record(line).call_id for line in (lines[0], *lines[2:])] == [
        "call-00001",
        "call-00002",
        "call-00003",
    ]


async def test_a_rotated_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    sink = LogSink(path)
    await sink.send([record(1)])
    path.rename(tmp_path / "usage.jsonl.1")
    await sink.send([record(2)])
    await sink.close()
    assert json.loads(path.read_text())["call_id"] == "call-00002"


async def test_with_fsync_a_batch_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((os.fstat(fd).st_ino, os.fstat(fd).st_size)))
    sink = LogSink(tmp_path / "usage.jsonl", fsync=True)
    sizes = []
    for n in range(2):
        await sink.send([record(n)])
        sizes.append((tmp_path / "usage.jsonl").stat().st_size)
    await sink.close()
    file, folder = (tmp_path / "usage.jsonl").stat().st_ino, tmp_path.stat().st_ino
    # A file that is new has its name on the disk, too.
    assert [(inode, size if inode == file else None) for inode, size in synced] == [
        (file, sizes[0]),
        (folder, None),
        (file, sizes[1]),
    ]


async def test_a_file_that_cannot_be_written_holds_the_records_with_an_alarm(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.mkdir()
    sink = LogSink(path)
    delivery = await sink.send([record(1), record(2)])
    assert [verdict.result for verdict in delivery.verdicts] == ["again", "again"]
    assert delivery.pause_s == BACK_OFF
    assert delivery.alarm == f"cannot write {path}: Is a directory"
    path.rmdir()
    assert (await sink.send([record(1)])).verdicts == (DELIVERED,)
    await sink.close()


async def test_a_full_disk_leaves_whole_lines_after_it_has_room_again(
    tmp_path: Path, store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usage.jsonl"
    sink = LogSink(path)
    append, room = sink._append, iter([40, 0])

    def full(lines: bytes) -> None:
        left = next(room, None)
        if left is None:
            append(lines)
            return
        append(lines[:left])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sink, "_append", full)
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(3)))
    assert len(await drain(worker, clock)) == 2
    await sink.close()
    torn, *whole = path.read_bytes().splitlines()
    assert len(torn) == 40
    assert [decode_record(line).call_id for line in whole] == ["call-00000", "call-00001", "call-00002"]


async def test_a_hanging_disk_blocks_neither_the_event_loop_nor_mixes_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    sink = LogSink(tmp_path / "usage.jsonl")
    release, append = threading.Event(), sink._append

    def hang(lines: bytes) -> None:
        release.wait(10)
        append(lines)

    monkeypatch.setattr(sink, "_append", hang)
    await store.register_sinks(["log"])
    options: dict[str, Any] = {"lease_s": 5.0, "send_timeout_s": 0.02, "base_backoff_s": 0.01}
    loop = DeliveryLoop(store, [sink], owner="w1", **options)
    await put(store, *(record(n) for n in range(3)))
    loop.start()
    before_s = asyncio.get_running_loop().time()
    assert await loop.flush(0.2) is False
    assert asyncio.get_running_loop().time() - before_s < 1.0
    release.set()
    assert await loop.stop(5.0) is True
    await sink.close()
    ids = [decode_record(line).call_id for line in (tmp_path / "usage.jsonl").read_bytes().splitlines()]
    assert ids == ["call-00000", "call-00001", "call-00002"] * (len(ids) // 3)  # at least once, never mixed
    assert len(ids) >= 3


async def test_it_can_be_closed_twice_and_used_after(tmp_path: Path) -> None:
    sink = LogSink(tmp_path / "usage.jsonl")
    await sink.close()
    await sink.send([record(1)])
    await sink.close()
    await sink.close()
    await sink.send([record(2)])
    await sink.close()
    assert len((tmp_path / "usage.jsonl").read_bytes().splitlines()) == 2


def test_a_folder_that_does_not_exist_is_refused_at_construction(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="does not exist"):
        LogSink(tmp_path / "no" / "usage.jsonl")
