"""The demo, and a real Prometheus that scrapes it, for as long as a block lasts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from askii_middleware.cli_grafana import RULES, shipped
from askii_middleware.demo import run as demo_run
from askii_middleware.demo.lago import LagoLedger, lago_app
from askii_middleware.demo.provider import provider_app
from askii_middleware.demo.traffic import Tenant, run_tenant
from askii_middleware.serving import gateway
from askii_middleware.tracker import CostTracker

START_S = 30.0
JOB = "askii"


def program(name: str) -> str:
    """The path of a program of Debian's package `prometheus`; the test is skipped where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package `prometheus` has it)")
    return found


@dataclass
class Demo:
    """The running demo: the parts of `askii demo`, with an end that its user chooses."""

    url: str
    tracker: CostTracker
    tenants: list[Tenant]
    session: aiohttp.ClientSession
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    traffic: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Let the tenants send their calls."""
        self.traffic = [
            asyncio.create_task(run_tenant(tenant, self.url, self.session, self.stop)) for tenant in self.tenants
        ]

    async def scrape(self, accept: str = "text/plain") -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{self.url}/metrics", headers={"accept": accept})
        assert answer.status_code == 200
        return answer.text

    async def quiet(self) -> None:
        """End the traffic and deliver what waits: from here on no figure changes."""
        self.stop.set()
        await asyncio.gather(*self.traffic)
        await self.tracker.flush(20)


@contextlib.asynccontextmanager
async def running_demo(folder: Path, *, started: bool = True) -> AsyncIterator[Demo]:
    """The demo with its ledger in `folder`; its traffic begins at once, or when `start` is called."""
    tenants = demo_run.tenants()
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(
            demo_run.serve(provider_app(api_key=demo_run.PROVIDER_KEY, delay_s=0.02))
        )
        lago = await stack.enter_async_context(demo_run.serve(lago_app(api_key=demo_run.LAGO_KEY, ledger=LagoLedger())))
        tracker = await stack.enter_async_context(demo_run._tracker(str(folder), lago, tenants))
        app = gateway(demo_run._settings(provider, tenants, "a-token-that-nobody-uses"), tracker)
        url = await stack.enter_async_context(demo_run.serve(app))
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        demo = Demo(url, tracker, tenants, session)
        if started:
            demo.start()
        try:
            yield demo
        finally:
            await demo.quiet()


class Prometheus:
    """A running server's query API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v1/", trust_env=False)

    async def get(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer. Raises AssertionError with what the server says about a refused query."""
        answer = await self._client.get(path, params=parameters)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body}"
        return body["data"]

    async def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of an expression now; floats are shown exactly by the server."""
        data = await self.get("query", query=expr)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    async def by(self, label: str, expr: str) -> dict[str, float]:
        """The values by one label, which must tell them apart."""
        found = await self.query(expr)
        values = {labels[label]: value for labels, value in found}
        assert len(values) == len(found)
        return values

    async def has_since(self, time_s: float, metric: str = "askii_store_up") -> None:
        """Wait until a sample of `metric` can be asked for that was taken after `time_s` (Unix)."""
        async with asyncio.timeout(START_S):
            while not any(value > time_s for _, value in await self.query(f"timestamp({metric})")):
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self._client.aclose()


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target_url: str) -> AsyncIterator[Prometheus]:
    """A server with the shipped rules that scrapes `target_url` each second, on a free port of loopback."""
    found = program("prometheus")
    (folder / RULES).write_text(shipped(RULES))
    target = target_url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "prometheus.log"
    with _process(
        log,
        *(found, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        "--web.listen-address=127.0.0.1:0",
    ) as process:
        server = Prometheus(await asyncio.to_thread(_ready, process, log))
        try:
            yield server
        finally:
            await server.close()


@contextlib.contextmanager
def _process(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Its URL once it answers, as its log tells it."""
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        said = log.read_text()
        listening = re.search(r'msg="Listening on" address=(\S+)', said)
        if listening and "Server is ready" in said:
            return f"http://{listening[1]}"
        time.sleep(0.05)
    raise RuntimeError(f"prometheus did not start:\n{log.read_text()}")
