"""Rotation, and several writers of one file."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from askii_middleware.errors import SinkError
from askii_middleware.records import decode_record
from askii_middleware.sinks.base import BACK_OFF, Traits, traits_of
from askii_middleware.sinks.log import LogSink
from askii_middleware.stores.base import Store

from .support import FakeClock, drain, put, record, worker_for

LINE = len(msgspec.json.encode(record(0))) + 1


def ids(*paths: Path) -> list[str]:
    return [decode_record(line).call_id for path in paths for line in path.read_bytes().splitlines()]


def calls(*numbers: int) -> list[str]:
    return [f"call-{number:05d}" for number in numbers]


async def test_a_file_that_somebody_else_moves_away_while_it_is_rotated_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, elsewhere = tmp_path / "usage.jsonl", tmp_path / "elsewhere"
    sink = LogSink(path, rotate_bytes=2 * LINE)
    await sink.send([record(0), record(1)])
    rotate = sink._rotate

    def too_late() -> None:
        path.rename(elsewhere)
        rotate()

    monkeypatch.setattr(sink, "_rotate", too_late)
    delivery = await sink.send([record(2)])
    assert [verdict.result for verdict in delivery.verdicts] == ["delivered"]
    assert ids(elsewhere, path) == calls(0, 1, 2)


async def test_a_batch_that_would_make_the_file_too_large_begins_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    sink = LogSink(path, rotate_bytes=4 * LINE)
    for n in range(0, 10, 2):
        await sink.send([record(n), record(n + 1)])
    await sink.close()
    one, two = tmp_path / "usage.jsonl.1", tmp_path / "usage.jsonl.2"
    assert sorted(tmp_path.iterdir()) == [path, one, two]
    assert (ids(two), ids(one), ids(path)) == (calls(0, 1, 2, 3), calls(4, 5, 6, 7), calls(8, 9))


async def test_a_batch_larger_than_a_file_may_be_is_written_whole(tmp_path: Path) -> None:
    sink = LogSink(tmp_path / "usage.jsonl", rotate_bytes=LINE)
    await sink.send([record(n) for n in range(5)])
    await sink.send([record(5)])
    await sink.close()
    assert ids(tmp_path / "usage.jsonl.1") == calls(*range(5))
    assert ids(tmp_path / "usage.jsonl") == calls(5)


@pytest.mark.parametrize("keep", [1, 3])
async def test_only_so_many_rotated_files_stay_and_they_are_the_newest(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "usage.jsonl"
    sink = LogSink(path, rotate_bytes=LINE, keep=keep)
    for n in range(10):
        await sink.send([record(n)])
    await sink.close()
    rotated = [tmp_path / f"usage.jsonl.{n}" for n in range(1, keep + 1)]
    assert sorted(tmp_path.iterdir()) == [path, *rotated]
    assert ids(path, *rotated) == calls(*range(9, 8 - keep, -1))


@pytest.mark.parametrize("missing", [1, 2, 3])
async def test_a_crash_in_the_middle_of_a_rotation_costs_no_file_at_the_next_one(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "usage.jsonl"
    sink = LogSink(path, rotate_bytes=LINE, keep=4)
    for n in range(4):
        await sink.send([record(n)])
    # The crash: those above were moved up, what was to take their place was not.
    for n in range(3, missing - 1, -1):
        (tmp_path / f"usage.jsonl.{n}").rename(tmp_path / f"usage.jsonl.{n + 1}")
    await sink.send([record(4)])
    await sink.close()
    rotated = [tmp_path / f"usage.jsonl.{n}" for n in range(1, 5)]
    assert ids(path, *rotated) == calls(4, 3, 2, 1, 0)


async def test_a_torn_last_line_is_ended_before_the_file_is_put_away(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b"x" * LINE)
    sink = LogSink(path, rotate_bytes=LINE)
    await sink.send([record(1)])
    await sink.close()
    assert (tmp_path / "usage.jsonl.1").read_bytes() == b"x" * LINE + b"\n"
    assert ids(path) == calls(1)


async def test_with_fsync_the_names_of_a_rotation_are_on_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = LogSink(tmp_path / "usage.jsonl", rotate_bytes=LINE, fsync=True)
    await sink.send([record(0)])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    await sink.send([record(1)])
    await sink.close()
    old, new = ((tmp_path / name).stat().st_ino for name in ("usage.jsonl.1", "usage.jsonl"))
    folder = tmp_path.stat().st_ino
    assert synced == [old, folder, new, folder]


async def test_a_full_disk_pauses_with_an_alarm_and_leaves_whole_lines_once_it_has_room(
    tmp_path: Path, store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usage.jsonl"
    write, room = os.write, [LINE + 40, 5]

    def full(fd: int, data: bytes) -> int:
        """Takes what there is room for, as a real disk does, then nothing more."""
        if not room:
            return write(fd, data)
        left = room[0]
        if left == 0:
            room.pop(0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, data[:left])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", full)
    sink = LogSink(path)
    first = await sink.send([record(0), record(1)])
    assert (first.pause_s, first.suspect) == (BACK_OFF, False)
    assert first.alarm == f"cannot write {path}: No space left on device"
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(3)))
    pauses = await drain(worker, clock)
    await sink.close()
    assert len(pauses) == 1
    lines = path.read_bytes().splitlines()
    whole = [line for line in lines if line.endswith(b"}")]
    assert [len(line) for line in lines if line not in whole] == [40, 4]  # each torn line ended by its successor
    assert [decode_record(line).call_id for line in whole] == calls(0, 0, 1, 2)


WRITER = """
import asyncio, sys
from pathlib import Path
from askii_middleware.sinks.log import LogSink
from tests.sinks.support import record

async def main(path: str, name: str, batches: int) -> None:
    sink = LogSink(path, rotate_bytes=20_000, keep=1000)
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(batches):
        await sink.send([record(call_id=f"{name}-{n}-{k}") for k in range(3)])
        print(n, flush=True)
    await sink.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def start(path: Path, name: str, batches: int) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(batches)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_processes_that_write_and_rotate_one_file_lose_double_and_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    writers = [start(path, f"w{n}", 150) for n in range(3)]
    for writer in writers:
        go(writer)
    for writer in writers:
        writer.communicate(timeout=20)
        assert writer.returncode == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) > 40
    assert max(file.stat().st_size for file in files) <= 20_000
    assert Counter(ids(*files)) == Counter(f"w{w}-{n}-{k}" for w in range(3) for n in range(150) for k in range(3))


def test_a_writer_killed_at_any_moment_blocks_nobody_and_what_it_acknowledged_is_there(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    acknowledged = -1
    killed = start(path, "killed", 100_000)
    other = start(path, "other", 100)
    go(killed)
    go(other)
    assert killed.stdout is not None
    for line in killed.stdout:
        acknowledged = int(line)
        if acknowledged >= 60:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate(timeout=10)
    other.communicate(timeout=20)
    assert other.returncode == 0
    lines = [line for file in tmp_path.iterdir() for line in file.read_bytes().splitlines()]
    seen = {decode_record(line).call_id for line in lines if line.endswith(b"}")}
    assert len([line for line in lines if not line.endswith(b"}")]) <= 1
    assert {f"other-{n}-{k}" for n in range(100) for k in range(3)} <= seen
    assert {f"killed-{n}-{k}" for n in range(acknowledged + 1) for k in range(3)} <= seen


async def test_two_sinks_in_one_process_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    sinks = [LogSink(path, rotate_bytes=3 * LINE, keep=1000, name=f"s{n}") for n in range(2)]
    for n in range(40):
        await asyncio.gather(*(sink.send([record(1000 + 100 * s + n)]) for s, sink in enumerate(sinks)))
    for sink in sinks:
        await sink.close()
    found = Counter(ids(*tmp_path.iterdir()))
    assert found == Counter(f"call-{1000 + 100 * s + n:05d}" for s in range(2) for n in range(40))


@pytest.mark.parametrize("options", [{"rotate_bytes": 0}, {"rotate_bytes": -1}, {"keep": 0}, {"keep": 1001}])
def test_bounds_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(SinkError, match=next(iter(options))):
        LogSink(tmp_path / "usage.jsonl", **options)  # type: ignore[arg-type]


def test_a_log_has_numbers_as_they_are_and_never_forgets(tmp_path: Path) -> None:
    assert traits_of(LogSink(tmp_path / "x")) == Traits("integer", None, None)
