"""Requests per second through the gateway, next to the provider directly and the proxy without the middleware.

    uv run python benchmarks/gateway.py

Three processes: the simulated provider, the gateway, and this one as the client with 32 connections. One worker each.
The ways are measured in turn, several times; the medians and their ratios are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

KEY = "sk-askii-" + "b" * 32
BODY = json.dumps(
    {
        "model": "gpt-4o",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "the ledger holds what the call may cost " * 46}],
    }
)
CONNECTIONS = 32


def listener() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    bound.listen(2048)
    return bound


def run_server(kind: str, bound: socket.socket, provider_url: str, folder: str) -> None:
    """One server process."""
    app: Any
    if kind == "provider":
        from askii_middleware.demo.provider import provider_app  # noqa: PLC0415 - in the child only

        app = provider_app()
    elif kind == "proxy":
        from askii_middleware.gateway import Proxy, Upstream  # noqa: PLC0415 - as above

        app = Proxy([Upstream(name="openai", url=f"{provider_url}/v1")])
    else:
        from askii_middleware import Budget, CostTracker  # noqa: PLC0415 - as above
        from askii_middleware.keys import hash_secret  # noqa: PLC0415 - as above
        from askii_middleware.serving import gateway  # noqa: PLC0415 - as above
        from askii_middleware.settings import Settings  # noqa: PLC0415 - as above
        from askii_middleware.stores.base import KeyRow  # noqa: PLC0415 - as above

        store = "memory://" if kind == "memory" else f"sqlite:///{Path(folder) / 'bench.db'}"
        tracker = CostTracker(store=store, budgets=[Budget(scope="tenant=*", limit_usd=100_000)])
        settings = Settings(
            store="memory://",
            keys=[KeyRow(id="bench", sha256=hash_secret(KEY), tenant="acme")],
            upstreams={"openai": {"url": f"{provider_url}/v1"}},
        )
        app = gateway(settings, tracker)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", access_log=False, server_header=False, date_header=False)
    )
    server.run([bound])


async def load(url: str, seconds: float) -> tuple[float, float]:
    """Requests per second and the median latency in ms."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    latencies: list[float] = []
    end_s = time.perf_counter() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:

        async def client() -> None:
            while (start_s := time.perf_counter()) < end_s:
                async with session.post(f"{url}/v1/chat/completions", data=BODY, headers=headers) as response:
                    await response.read()
                    if response.status != 200:
                        raise RuntimeError(f"status {response.status}: {await response.text()}")
                latencies.append(time.perf_counter() - start_s)

        start_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
        taken_s = time.perf_counter() - start_s
    return len(latencies) / taken_s, statistics.median(latencies) * 1000


async def wait_for(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            try:
                async with session.get(f"{url}/v1/models"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise RuntimeError(f"{url} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    processes = []
    urls: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind in ("provider", "proxy", "memory", "sqlite"):
                bound = listener()
                urls[kind] = f"http://127.0.0.1:{bound.getsockname()[1]}"
                process = context.Process(target=run_server, args=(kind, bound, urls["provider"], folder), daemon=True)
                process.start()
                processes.append(process)
            for url in urls.values():
                asyncio.run(wait_for(url))
            figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in urls}
            for _ in range(arguments.rounds):
                for kind, url in urls.items():
                    figures[kind].append(asyncio.run(load(url, arguments.seconds)))
            base = statistics.median(rps for rps, _ in figures["proxy"])
            print(f"{'way':<28} {'rps':>8} {'p50 ms':>8} {'of proxy':>9}")
            for kind, name in (
                ("provider", "provider directly"),
                ("proxy", "proxy alone"),
                ("memory", "gateway, memory://"),
                ("sqlite", "gateway, sqlite://"),
            ):
                rps = statistics.median(value for value, _ in figures[kind])
                latency = statistics.median(value for _, value in figures[kind])
                print(f"{name:<28} {rps:8.0f} {latency:8.2f} {rps / base:9.2f}")
        finally:
            for process in processes:
                process.terminate()
                process.join()


if __name__ == "__main__":
    main()
