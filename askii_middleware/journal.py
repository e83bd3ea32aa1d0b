"""Where settlements wait while the store cannot be reached: an append-only file, one JSON line each, fsynced.

Each process writes a file of its own, `<path>.<n>`, held by a lock for as long as it lives, so that a later process
can tell an orphan and replay it. Some room is allocated in advance: when the disk runs full, the ledger and the
journal usually share it, and what a call cost must still find a place. What the store will never take is parked in
`<path>.rejected`, for a person to look at, so that it does not stand in the way of the rest.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs

import msgspec

from .errors import StoreError
from .log_fields import fields
from .stores.base import Operation, Settlement

logger = logging.getLogger(__name__)

RESERVED_BYTES = 1 << 20
MAX_FILES = 256


def journal_beside(url: str) -> str | None:
    """The default place of a ledger's journal: beside an SQLite file; for a ledger on a server
    `<namespace>-journal-<digest>` in the working directory, so that no two ledgers share one. Credentials in the URL do
    not count. A ledger in memory needs none.
    """
    if url.startswith("sqlite:///"):
        return url.removeprefix("sqlite:///") + ".journal"
    if url.startswith("memory://"):
        return None
    server, _, options = url.partition("?")
    scheme, _, place = server.partition("://")
    namespace = parse_qs(options).get("namespace", ["askii"])[-1]
    ledger = f"{scheme}://{place.rpartition('@')[2]}?{namespace}"
    return f"{namespace}-journal-{sha256(ledger.encode()).hexdigest()[:8]}"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A settlement, the id of a hold to release, or an operation to keep."""

    settlement: Settlement | None = None
    release: str | None = None
    operation: Operation | None = None

    @property
    def call_id(self) -> str:
        if self.settlement is not None:
            return self.settlement.call_id
        return self.operation.call_id if self.operation is not None else str(self.release)

    @property
    def tenant(self) -> str | None:
        """None for a release, which does not say."""
        found = self.settlement or self.operation
        return None if found is None else found.tenant

    @property
    def bill(self) -> str:
        """What it takes to book this by hand. Not the record: what callers put into it is theirs."""
        if self.settlement is None:
            return "a hold to release" if self.operation is None else f"an operation of the tenant {self.tenant!r}"
        due = self.settlement
        return (
            f"tenant={due.tenant!r} subscription={due.subscription!r} cost_nano_usd={due.cost_nano_usd} "
            f"coins={due.coins} pico_coins={due.pico_coins} admitted_at_s={due.admitted_at_s}"
        )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class _Rejected(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry with the reason it was refused for."""

    reason: str
    settlement: Settlement | None = None
    release: str | None = None
    operation: Operation | None = None


class Journal:
    """Blocking file work: call it from threads.

    Args:
        path: prefix of the files.
        max_bytes: beyond it `append` raises StoreError, and admission refuses new calls.
    """

    def __init__(self, path: str | Path, *, max_bytes: int = 64 << 20) -> None:
        self.path = Path(path)
        """What the files begin with."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._file: int | None = None
        self._pid = 0
        self._end = 0
        self.own_path: Path | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for replay in this process's file."""
        return self._end if self._is_mine else 0

    @property
    def _is_mine(self) -> bool:
        """After a fork the file is still the parent's."""
        return self._file is not None and self._pid == os.getpid()

    @property
    def rejected_path(self) -> Path:
        """Where `park` puts entries."""
        return self.path.with_name(f"{self.path.name}.rejected")

    @property
    def full(self) -> bool:
        return self._end >= self._max_bytes

    def open(self) -> None:
        """Take the first file nobody holds. Raises StoreError where none can be opened."""
        with self._lock:
            self._open()

    def _open(self) -> None:
        if self._file is not None:
            if self._pid == os.getpid():
                return
            # The file is the parent process's, which goes on writing it.
            os.close(self._file)
            self._file, self._end = None, 0
        for number in range(MAX_FILES):
            path = self.path.with_name(f"{self.path.name}.{number}")
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except PermissionError:
                continue  # another user's
            except OSError as error:
                raise StoreError(f"journal {path} cannot be opened: {error.strerror}; check journal_path") from error
            if not _locked(file):
                os.close(file)
                continue
            self._file, self._pid, self.own_path = file, os.getpid(), path
            self._end = _used(file)
            try:
                os.posix_fallocate(file, 0, max(RESERVED_BYTES, self._end))
            except OSError as error:
                logger.warning(
                    "journal %s: no room could be reserved: %s",
                    path,
                    error.strerror,
                    extra=fields("journal_unreserved"),
                )
            return
        raise StoreError(
            f"{MAX_FILES} journals {self.path}.* are in use or may not be opened: set another journal_path for this "
            "process, in a directory where this user may write"
        )

    def append(self, entry: Entry) -> None:
        """Write and fsync one entry. Raises StoreError when full or failing; a torn line is never left behind."""
        with self._lock:
            self._open()
            file = self._file
            assert file is not None
            line = _encode(entry) + b"\n"
            if self._end + len(line) > self._max_bytes:
                raise StoreError("the journal is full: bring the store back, or raise journal_max_bytes")
            try:
                written = 0
                while written < len(line):
                    written += os.pwrite(file, line[written:], self._end + written)
                os.fdatasync(file)
            except OSError as error:
                raise StoreError(f"journal {self.own_path} cannot be written: {error.strerror}") from error
            self._end += len(line)

    def read(self, end: int | None = None) -> list[Entry]:
        """This process's entries in the order they were written, up to an earlier `pending_bytes`."""
        with self._lock:
            if not self._is_mine or self._file is None or self._end == 0:
                return []
            return _entries(self._file, self._end if end is None else min(end, self._end))

    def clear(self, end: int | None = None) -> bool:
        """Forget the entries that `read` gave: they are in the ledger now. False, and nothing is forgotten, where
        more were written since `pending_bytes` was `end`.
        """
        with self._lock:
            if not self._is_mine or self._file is None or self._end == 0:
                return True
            if end is not None and self._end != end:
                return False
            # The room stays allocated; zeros after the end mark it as free.
            try:
                os.pwrite(self._file, b"\0" * min(self._end, RESERVED_BYTES), 0)
                if self._end > RESERVED_BYTES:
                    os.ftruncate(self._file, RESERVED_BYTES)
                os.fdatasync(self._file)
            except OSError as error:
                raise StoreError(f"journal {self.own_path} cannot be cleared: {error.strerror}") from error
            self._end = 0
            return True

    def park(self, entry: Entry, reason: str) -> Path:
        """Put an entry that can never be written beside the journal. Returns the file. Raises StoreError."""
        path = self.rejected_path
        line = _encode(_Rejected(reason, entry.settlement, entry.release, entry.operation)) + b"\n"
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size + len(line) > self._max_bytes:
                    raise StoreError(f"{path} is full: look at what is in it and move it away")
                os.write(file, line)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error
        return path

    def waiting(self) -> tuple[int, int]:
        """Entries and bytes in all journals of this prefix, those of other processes too."""
        names = {f"{self.path.name}.{number}" for number in range(MAX_FILES)}
        entries = size = 0
        found: list[Path] = []
        with suppress(OSError):  # a folder that is not there, or not ours to read, has none
            found = [path for path in self.path.parent.iterdir() if path.name in names]
        for path in found:
            with suppress(OSError), path.open("rb") as file:
                while block := file.read(1 << 20):
                    used = block.partition(b"\0")[0]
                    entries += used.count(b"\n")
                    size += len(used)
                    if len(used) < len(block):
                        break
        return entries, size

    def orphans(self) -> list[Orphan]:
        """Journals of processes that are gone, each locked until it is closed."""
        found = []
        for number in range(MAX_FILES):
            path = self.path.with_name(f"{self.path.name}.{number}")
            if path == self.own_path or not path.exists():
                continue
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue  # gone, or another user's: that one's processes adopt it
            if _locked(file):
                found.append(Orphan(file, path))
            else:
                os.close(file)
        return found

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                if self._end == 0 and self.own_path is not None and self._pid == os.getpid():
                    # Unlinked while still locked: nobody else can have taken it.
                    self.own_path.unlink(missing_ok=True)
                os.close(self._file)
                self._file = None


class Orphan:
    """The journal of a process that ended before it could replay it. Locked until it is closed or forgotten."""

    def __init__(self, file: int, path: Path) -> None:
        self._file: int | None = file
        self.path = path

    def __del__(self) -> None:
        self.close()

    def read(self) -> list[Entry]:
        assert self._file is not None
        return _entries(self._file, _used(self._file))

    def discard(self) -> None:
        """Its entries are in the ledger now."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave it for another time."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _locked(file: int) -> bool:
    """Whether the file is ours now. One that its owner unlinked in the moment before the lock does not count."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(file).st_nlink > 0


def _used(file: int) -> int:
    """Bytes up to the end of the last whole line."""
    size = os.fstat(file).st_size
    end = position = 0
    while position < size:
        block = os.pread(file, 1 << 20, position)
        if not block:
            break
        used = block.partition(b"\0")[0]
        newline = used.rfind(b"\n")
        if newline >= 0:
            end = position + newline + 1
        if len(used) < len(block):
            break
        position += len(block)
    return end


def _entries(file: int, end: int) -> list[Entry]:
    entries = []
    position = 0
    data = b""
    while position < end:
        block = os.pread(file, min(1 << 20, end - position), position)
        position += len(block)
        data += block
        *lines, data = data.split(b"\n")
        for line in lines:
            try:
                entries.append(_decode(line))
            except msgspec.DecodeError:
                # A block that never reached the disk before a power loss reads as garbage; what is whole still counts.
                logger.error(  # noqa: TRY400
                    "journal: a damaged line of %d bytes was passed over",
                    len(line),
                    extra=fields("journal_damaged", bytes=len(line)),
                )
    return entries
