"""Usage records as JSON lines in a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord

from .base import BACK_OFF, DELIVERED, Delivery, Verdict

_encode = msgspec.json.Encoder().encode


class LogSink:
    """Appends one line per record. At least once: after a crash between write and acknowledgement the same records
    stand there twice, with the same `call_id`.

    The file is opened for every batch, so it may be rotated away. A last line without its newline (the disk was full
    or the power went) is ended first, so that it spoils no other.

    Args:
        path: the file; its folder must exist.
        fsync: make every batch survive the loss of power before it counts as delivered.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fsync: bool = False, name: str = "log", max_batch: int = 100
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.path = Path(path)
        self.fsync = fsync
        if not self.path.parent.is_dir():
            raise SinkError(f"the folder of {self.path} does not exist: create it or change the path of sink {name!r}")
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
        with self.path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(lines)
            file.flush()
            if self.fsync:
                os.fsync(file.fileno())

    async def close(self) -> None:
        """Let a running write end by itself; a thread that hangs is not waited for."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False)
