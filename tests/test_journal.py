"""Charges wait in the journal until the ledger has them, through crashes and full disks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.journal import RESERVED_BYTES, Entry, Journal
from askii_middleware.stores.base import Settlement


def settlement(number: int, *, size: int = 10) -> Settlement:
    return Settlement(
        call_id=f"call-{number}",
        admitted_at_s=1_767_225_600.0,
        cost_nano_usd=number,
        matches=(),
        windows={},
        rate=(1_000_000, 1),
        subscription="acme",
        coins=0,
        pico_coins=number,
        tenant="acme",
        aggregates=(),
        record=b"x" * size,
    )


def test_entries_come_back_whole_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.open()
    written = [Entry(settlement=settlement(1)), Entry(release="call-9"), Entry(settlement=settlement(2))]
    for entry in written:
        journal.append(entry)
    assert journal.read() == written
    journal.clear()
    assert journal.read() == []
    journal.append(written[1])
    assert journal.read() == [written[1]]
    journal.close()


def test_room_is_reserved_before_it_is_needed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.open()
    assert (tmp_path / "j.0").stat().st_blocks * 512 >= RESERVED_BYTES
    journal.close()


def test_two_processes_take_different_files_and_an_empty_one_disappears(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    first.open()
    second.open()
    assert first.own_path != second.own_path
    assert first.orphans() == []
    second.append(Entry(release="call-1"))
    second.close()
    (orphan,) = first.orphans()
    assert orphan.read() == [Entry(release="call-1")]
    orphan.discard()
    first.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_processs_entries_are_found_and_its_torn_line_is_not(tmp_path: Path) -> None:
    script = (
        "import os,sys;from askii_middleware.journal import Entry,Journal;"
        "j=Journal(sys.argv[1]);j.open();"
        "[j.append(Entry(release=f'call-{n}')) for n in range(3)];"
        'os.pwrite(j._file,b\'{"release":"torn\',j._end);os.kill(os.getpid(),9)'
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "j")], check=False)
    assert done.returncode == -9
    journal = Journal(tmp_path / "j")
    journal.open()
    # The dead process's file was the first one free, so it is our own now.
    assert [entry.release for entry in journal.read()] == ["call-0", "call-1", "call-2"]
    journal.append(Entry(release="call-3"))
    assert [entry.release for entry in journal.read()] == ["call-0", "call-1", "call-2", "call-3"]
    journal.clear()
    journal.close()


def test_a_full_journal_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", max_bytes=3000)
    journal.open()
    with pytest.raises(StoreError, match="journal is full"):  # noqa: PT012 - the loop is the point
        for number in range(100):
            journal.append(Entry(settlement=settlement(number, size=300)))
    kept = len(journal.read())
    assert 3 <= kept < 100
    assert not journal.full
    journal.clear()
    journal.close()


def test_a_damaged_block_is_passed_over_and_the_rest_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "j")
    journal.open()
    for number in range(3):
        journal.append(Entry(release=f"call-{number}"))
    lines = (tmp_path / "j.0").read_bytes().split(b"\n")
    with (tmp_path / "j.0").open("r+b") as file:
        file.seek(len(lines[0]) + 1)
        file.write(b"#" * len(lines[1]))
    assert [entry.release for entry in journal.read()] == ["call-0", "call-2"]
    assert "damaged" in caplog.text
    journal.clear()
    journal.close()


def test_large_journals_are_read_in_blocks(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.open()
    entries = [Entry(settlement=settlement(number, size=400_000)) for number in range(5)]
    for entry in entries:
        journal.append(entry)
    assert journal.pending_bytes > RESERVED_BYTES
    assert journal.read() == entries
    journal.clear()
    assert (tmp_path / "j.0").stat().st_size == RESERVED_BYTES
    journal.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="journal_path"):
        Journal(tmp_path / "file" / "j").open()
