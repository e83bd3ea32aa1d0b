"""Gateways that start fast: forked from a process that has imported everything already.

For tests that start dozens of them and kill each; what starts is the same command with the same memory to itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from askii_middleware import catalogue, cli, tokens

from .gateways import ROOT, clean_environment, ready_url

PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


class Forked:
    """A gateway that somebody else is the parent of."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self._log = log
        self._alive = os.pidfd_open(pid)

    def wait_until_ready(self) -> str:
        """Its URL. Raises RuntimeError with its log where it ends instead."""
        return ready_url(self._log, has_ended=lambda: self._ends_within(0))

    def kill(self) -> None:
        """SIGKILL, to it and its workers; returns when it is gone. May be repeated."""
        if self._alive < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if not self._ends_within(10_000):
            raise RuntimeError(f"process {self.pid} does not die")
        os.close(self._alive)
        self._alive = -1

    def _ends_within(self, milliseconds: int) -> bool:
        ending = select.poll()
        ending.register(self._alive, select.POLLIN)
        return bool(ending.poll(milliseconds))


class Nursery:
    """The process that gateways are forked from."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def launch(self, folder: Path) -> Forked:
        """Start `askii serve` as `gateways.launch` does, and do not wait for it."""
        log = folder / f"serve-{time.monotonic_ns()}.log"
        log.touch()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), str(log)]) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), log)


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery while the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.forked"],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


def main() -> None:
    """Fork a gateway for each line that asks for one, and tell its process id."""
    for module in ("cli_serve", "serving", "gateway", "stores.sqlite", "sinks.lago", "metrics_listener"):
        import_module(f"askii_middleware.{module}")
    for module in ("uvicorn", "uvicorn.loops.uvloop", "uvicorn.protocols.http.httptools_impl", "uvicorn.lifespan.on"):
        import_module(module)
    catalogue.load()
    tokens.warm()
    libc = ctypes.CDLL(None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        folder, log = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no test run that is broken off leaves a gateway behind
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os._exit(cli.main(["serve", "--port", "0"]))


if __name__ == "__main__":
    main()
