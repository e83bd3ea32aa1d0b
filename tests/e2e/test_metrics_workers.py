"""Servers with several workers: whichever of them is scraped answers for all, also for those that are gone."""

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

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from .clients import http_client
from .gateways import clean_environment, secret_of, serve, write_config
from .test_serve import refused_start
from .test_workers import APP, CALL, HEADERS
from .upstreams import Watched
from .worker_signs import USED

WORKERS = 4
PATIENCE_S = 30.0


@contextlib.contextmanager
def started(server: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """A server's URL and its log."""
    write_config(folder, {}, budgets={"acme": "1"}, settings={"metrics_path": "/metrics"})
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    options = ["--workers", str(WORKERS), "--port", port, "--log-level", "warning"]
    if server == "granian":
        options += ["--interface", "asgi", "--respawn-failed-workers"]
    (folder / "metrics").mkdir()
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", server, *options, APP],
            cwd=folder,
            env=clean_environment(
                ASKII_CONFIG=str(folder / "askii.toml"), PROMETHEUS_MULTIPROC_DIR=str(folder / "metrics")
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def pids(url: str, log: Path, count: int, *, but: int = 0) -> set[int]:
    """The processes of so many workers."""
    until_s, found = time.monotonic() + PATIENCE_S, set[int]()
    while len(found) < count:
        assert time.monotonic() < until_s, log.read_text(errors="replace")
        with contextlib.suppress(httpx.TransportError):
            async with http_client() as client:  # a new connection, so any of them
                found.add(int((await client.get(f"{url}/pid")).headers["x-pid"]))
                found.discard(but)
        await asyncio.sleep(0.01)  # they need the processor to start
    return found


async def counted(url: str) -> dict[str, float]:
    """Sums of what any worker tells, by metric, and in how many series."""
    async with http_client() as client:
        answer = await client.get(url)
    assert answer.status_code == 200
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
            found[f"{sample.name}#"] = found.get(f"{sample.name}#", 0.0) + 1
    return found


async def call(url: str, count: int) -> None:
    for _ in range(count):
        async with http_client() as client:
            answer = await client.post(f"{url}/v1/chat/completions", json=CALL, headers=HEADERS)
            assert answer.status_code == 200, answer.text


async def told(url: str, calls: int) -> dict[str, float]:
    """What is told once so many calls are: a worker that was just busy takes up to a second."""
    until_s = time.monotonic() + PATIENCE_S
    while (found := await counted(url)).get("askii_requests_total") != calls:
        assert time.monotonic() < until_s, found
        await asyncio.sleep(0.05)
    return found


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
async def test_any_worker_tells_the_sum_of_all_and_it_outlives_them(server: str, tmp_path: Path) -> None:
    with started(server, tmp_path) as (url, log):
        workers = await pids(url, log, WORKERS)
        await call(url, 24)
        await told(f"{url}/metrics", 24)
        for found in [await counted(f"{url}/metrics") for _ in range(8)]:
            assert found["llm_tokens_total"] == 24 * USED
            assert found["llm_cost_usd_total"] == pytest.approx(24 * USED * 1e-5)
            assert found["askii_overhead_seconds_count"] == 2 * 24
            assert (found["budget_remaining_usd#"], found["budget_limit_usd"]) == (1, 1)
            assert found["budget_remaining_usd"] == pytest.approx(1 - 24 * USED * 1e-5)
        killed = min(workers)
        os.kill(killed, signal.SIGKILL)
        assert len(await pids(url, log, WORKERS, but=killed)) == WORKERS
        for found in [await counted(f"{url}/metrics") for _ in range(8)]:
            assert found["llm_tokens_total"] == 24 * USED
        await call(url, 8)
        found = await told(f"{url}/metrics", 32)
        assert found["llm_tokens_total"] == 32 * USED


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_metrics_port_serves_all_workers_metrics_and_nothing_else_does(
    workers: int, simulated: tuple[str, Watched], tmp_path: Path
) -> None:
    port = free_port()
    write_config(
        tmp_path,
        {"up": (f"{simulated[0]}/v1", ["*"])},
        budgets={"acme": "1"},
        settings={"metrics_port": port, "metrics_token": "s3cret"},
    )
    with serve(tmp_path, "--workers", str(workers)) as (url, _):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        for _ in range(6):
            async with http_client() as client:
                answer = await client.post(
                    f"{url}/v1/chat/completions",
                    json=body,
                    headers={"authorization": f"Bearer {secret_of('acme')}"},
                )
                assert answer.status_code == 200, answer.text
        scrape = f"http://127.0.0.1:{port}/metrics"
        until_s, total = time.monotonic() + PATIENCE_S, 0.0
        async with http_client() as client:
            assert (await client.get(scrape)).status_code == 401
            assert (await client.get(f"{url}/metrics")).status_code == 401  # of the gateway: nobody's key
            while total != 6:
                assert time.monotonic() < until_s
                answer = await client.get(scrape, headers={"authorization": "Bearer s3cret"})
                total = sum(
                    sample.value
                    for family in text_string_to_metric_families(answer.text)
                    for sample in family.samples
                    if sample.name == "askii_requests_total"
                )


def test_a_metrics_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused_start(tmp_path, "--port", "0", ASKII_METRICS_PORT=port)
    assert line.startswith(f"askii: metrics_port: cannot listen on 127.0.0.1 port {port}: ")


def test_workers_cannot_share_a_metrics_port_that_the_system_would_choose(tmp_path: Path) -> None:
    line = refused_start(tmp_path, "--port", "0", "--workers", "2", ASKII_METRICS_PORT="0")
    assert line == "askii: metrics_port: several workers cannot share port 0; give a number"
