"""Usage records as JSON lines in a file."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord

from .base import BACK_OFF, DELIVERED, Delivery, NumberFormat, Verdict

_encode = msgspec.json.Encoder().encode
_MODE = 0o666  # less the umask, as `open` has it
MAX_KEEP: Final = 1000


class LogSink:
    """Appends one line per record. At least once: after a crash between write and acknowledgement the same records
    stand there twice, with the same `call_id`.

    Several processes may write to one file: each batch is appended under a lock on the file. The file is opened for
    every batch, so others may rotate it too. A last line without its newline (the disk was full, the power or the
    process went) is ended first, so that it spoils no other.

    Args:
        path: the file; its folder must exist.
        rotate_bytes: a batch that would make the file larger begins a new one; what was written is then `<path>.1`,
            what was that `<path>.2`, and so on. A batch is never split. None: never.
        keep: how many rotated files stay; the oldest is replaced.
        fsync: make every batch survive the loss of power before it counts as delivered.
    """

    number_format: NumberFormat = "integer"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotate_bytes: int | None = None,
        keep: int = 10,
        fsync: bool = False,
        name: str = "log",
        max_batch: int = 100,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.path = Path(path)
        self.rotate_bytes = rotate_bytes
        self.keep = keep
        self.fsync = fsync
        if not self.path.parent.is_dir():
            raise SinkError(f"the folder of {self.path} does not exist: create it or change the path of sink {name!r}")
        if rotate_bytes is not None and rotate_bytes < 1:
            raise SinkError(f"rotate_bytes of sink {name!r} is a number of bytes above 0, not {rotate_bytes}")
        if not 1 <= keep <= MAX_KEEP:
            raise SinkError(f"keep of sink {name!r} is 1 to {MAX_KEEP} files, not {keep}")
        self._thread: ThreadPoolExecutor | None = None
        self._writing: asyncio.Future[None] | None = None

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        if self._writing is not None and not self._writing.done():
            # A thread cannot be cancelled: the batch that timed out is still being written. A second writer beside
            # it could mix up the lines.
            waits = Verdict("again", f"{self.path} is still busy with an earlier batch")
            return Delivery((waits,) * len(records), pause_s=BACK_OFF)
        lines = b"".join([_encode(record) + b"\n" for record in records])
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"askii-sink-{self.name}")
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._append, lines)
        try:
            await asyncio.shield(self._writing)
        except OSError as error:
            failed = Verdict("again", f"cannot write {self.path}: {error.strerror}")
            return Delivery((failed,) * len(records), pause_s=BACK_OFF, alarm=failed.reason)
        return Delivery((DELIVERED,) * len(records))

    def _append(self, lines: bytes) -> None:
        while True:
            with self._locked() as fd:
                size = os.fstat(fd).st_size
                if self.rotate_bytes is None or not size or size + len(lines) <= self.rotate_bytes:
                    self._write(fd, size, lines)
                    return
                self._write(fd, size, b"")  # ends a torn line
                with contextlib.suppress(FileNotFoundError):  # somebody else has rotated it: look again
                    self._rotate()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file that has the name, open for appending and locked against all that append to it."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if self._has_the_name(fd):
                    yield fd
                    return
            finally:
                os.close(fd)

    def _has_the_name(self, fd: int) -> bool:
        """Whether nobody has rotated the file while the lock was waited for."""
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _write(self, fd: int, size: int, lines: bytes) -> None:
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        left = memoryview(lines)
        while left:  # a disk that fills up takes a part, and refuses the rest with its reason
            left = left[os.write(fd, left) :]
        if self.fsync:
            os.fsync(fd)
            if not size:
                self._sync_folder()

    def _rotate(self) -> None:
        """Make room for `.1` and rename the file to it, with the lock held. Each step is one rename, and no file is
        ever without a name: a crash in between leaves a gap in the numbers, which the next rotation fills.
        """
        numbered = [self.path.with_name(f"{self.path.name}.{n}") for n in range(1, self.keep + 1)]
        free = next((n for n, path in enumerate(numbered) if not path.exists()), self.keep - 1)
        for n in range(free, 0, -1):
            numbered[n - 1].replace(numbered[n])
        self.path.replace(numbered[0])
        if self.fsync:
            self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def close(self) -> None:
        """Let a running write end by itself; a thread that hangs is not waited for."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False)
