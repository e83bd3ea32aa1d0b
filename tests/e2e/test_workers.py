"""Servers with several workers, as people start them: they share the ledger, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from askii_middleware.records import decode_record
from tests.servers import Postgres, Valkey, running

from .books import opened
from .clients import LOOPBACK
from .gateways import clean_environment, secret_of, store_url, write_config
from .worker_signs import USED, connected

WORKERS = 3
ROOM = 60
COST = USED * 10_000
APP = "tests.e2e.worker_app:app"
CALL = {"model": "by-output", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": USED}
HEADERS = {"authorization": f"Bearer {secret_of('acme')}"}
PATIENCE_S = 30.0


def command(server: str, port: int) -> list[str]:
    """Each server's own command line. uvicorn and granian spawn their workers; gunicorn forks them, here after it has
    loaded the application.
    """
    python = [sys.executable, "-m"]
    if server == "uvicorn":
        return [*python, "uvicorn", APP, "--workers", str(WORKERS), "--port", str(port), "--log-level", "warning"]
    if server == "granian":
        options = ["--interface", "asgi", "--workers", str(WORKERS), "--port", str(port), "--log-level", "warning"]
        return [*python, "granian", *options, APP]
    options = ["--preload", "-k", "uvicorn_worker.UvicornWorker", "-w", str(WORKERS), "--log-level", "warning"]
    return [*python, "gunicorn", *options, "-b", f"127.0.0.1:{port}", APP]


class Served:
    """A server process with its workers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> int:
        """As a service manager would end it; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=20)


@contextlib.contextmanager
def started(server: str, folder: Path, **environment: str) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(server, port),
            cwd=folder,
            env=clean_environment(ASKII_CONFIG=str(folder / "askii.toml"), **environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Served(process, port, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def workers_of(served: Served, client: httpx.AsyncClient) -> dict[int, dict[str, Any]]:
    """What each worker says of itself, by process id, once all of them answer."""
    until_s = time.monotonic() + PATIENCE_S
    found: dict[int, dict[str, Any]] = {}
    while len(found) < WORKERS:
        assert time.monotonic() < until_s, served.log
        assert served.process.poll() is None, served.log
        with contextlib.suppress(httpx.TransportError):
            said = (await client.get(f"{served.url}/who")).json()
            found[said["pid"]] = said
        await asyncio.sleep(0.005)
    return found


def different(workers: dict[int, dict[str, Any]], what: str) -> bool:
    return len({said[what] for said in workers.values()}) == WORKERS


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of running servers, by kind of ledger."""
    postgres = Postgres().start()
    try:
        with running(Valkey(tmp_path_factory.mktemp("valkey"))) as (valkey,):
            yield {"redis": valkey.url, "postgres": postgres.url}
    finally:
        postgres.close()


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        *(("uvicorn", "sqlite"), ("granian", "sqlite"), ("gunicorn", "sqlite")),
        *(("uvicorn", "redis"), ("gunicorn", "redis"), ("granian", "postgres"), ("gunicorn", "postgres")),
    ],
)
async def test_workers_share_the_ledger_and_nothing_else(
    server: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = store_url(tmp_path)
    if kind != "sqlite":
        url = f"{request.getfixturevalue('databases')[kind]}?namespace={server}"
    write_config(
        tmp_path,
        {},
        budgets={"acme": str(ROOM * COST / 1e9)},
        settings={"store": url, "journal_path": str(tmp_path / "journal")},
        tables=f'[sinks.log]\npath = "{tmp_path / "usage.jsonl"}"\n',
    )
    before = {"USED_EARLY": "1"} if server == "gunicorn" else {}
    limits = httpx.Limits(max_connections=20, max_keepalive_connections=0)
    with started(server, tmp_path, **before) as served:
        async with httpx.AsyncClient(**LOOPBACK, limits=limits) as client:
            workers = await workers_of(served, client)
            calls = [
                client.post(f"{served.url}/v1/chat/completions", json=CALL, headers=HEADERS) for _ in range(2 * ROOM)
            ]
            answers = await asyncio.gather(*calls)
        assert {said["loaded_by"] == said["pid"] for said in workers.values()} == {server != "gunicorn"}
        for what in ("worker", "owner", "journal", "jitter"):
            assert different(workers, what), (what, workers)
        # What a parent had open before it forked stays open in its children, who must not even close it.
        parents = set(connected(served.process.pid))
        sockets = [inode for said in workers.values() for inode in said["sockets"] if inode not in parents]
        assert len(sockets) == len(set(sockets))
        answered = [answer for answer in answers if answer.status_code == 200]
        assert len(answered) == ROOM
        # What a call holds is what it costs: as many fit, whoever comes first, and the others find it spent or held.
        assert {answer.status_code for answer in answers} <= {200, 402, 429}
        assert len({answer.headers["x-pid"] for answer in answered}) > 1
        assert await asyncio.to_thread(served.stop) in (0, -signal.SIGTERM)
        assert "Traceback" not in served.log
    early = 1 if before else 0
    async with opened(url) as books:
        records = await books.records()
        assert len(records) == ROOM + early
        assert await books.check() == (ROOM + early) * COST
        assert (await books.store.totals()).held_nano_usd == 0
        assert set(records) >= {answer.headers["x-askii-call-id"] for answer in answered}
        lines = (tmp_path / "usage.jsonl").read_bytes().splitlines()
        assert sorted(decode_record(line).call_id for line in lines) == sorted(records)
        assert await books.store.pending() == {"log": 0}
    # Who was killed or ended without closing left its file, empty, to the next start.
    assert len(list(tmp_path.glob("journal*"))) == early
