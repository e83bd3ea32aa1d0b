"""`askii demo`: provider, gateway, Lago stand-in and clients in one process, on loopback, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..budgets import Budget
from ..errors import MissingExtraError
from ..keys import hash_secret, new_secret
from ..stores.base import KeyRow

try:
    import aiohttp
    import uvicorn
    from rich.console import Console
    from rich.live import Live
except ImportError as error:
    raise MissingExtraError("gateway", "askii demo") from error

from ..pricing import ModelPrice
from ..serving import METRICS_PATH, gateway
from ..settings import Settings
from ..sinks.lago import LagoSink
from ..tracker import CostTracker
from .lago import LagoLedger, lago_app
from .provider import provider_app
from .reconcile import Reconciliation, reconcile
from .screen import closing, frame
from .traffic import Tenant, run_tenant

if TYPE_CHECKING:
    from starlette.types import ASGIApp

HOST = "127.0.0.1"
LAGO_KEY = "demo-lago-key"
PROVIDER_KEY = "demo-provider-key"
FALLBACKS = {"gpt-4o": ["gpt-4o-mini", "local-llama"]}
REFRESH_S = 0.25
FLUSH_S = 20.0


def tenants() -> list[Tenant]:
    """Three tenants with fresh keys: within budget, short of it, and out of it."""
    chat, messages = "/v1/chat/completions", "/v1/messages"
    return [
        Tenant("acme", "within budget", new_secret(), "5", "gpt-4o", chat, 0.10),
        Tenant("globex", "short of it", new_secret(), "0.01", "gpt-4o", chat, 0.10),
        Tenant("initech", "out of it", new_secret(), "0.006", "claude-haiku-4-5", messages, 0.10),
    ]


def run_demo(*, seconds: float, port: int, as_json: bool) -> int:
    """Run the demo; 0 if everything reconciles."""
    result = asyncio.run(_demo(seconds, port, as_json=as_json))
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        closing(Console(), result)
    return 0 if result.reconciled else 1


async def _demo(seconds: float, port: int, *, as_json: bool) -> Reconciliation:
    people = tenants()
    lago = LagoLedger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="askii-demo-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            provider = await stack.enter_async_context(serve(provider_app(api_key=PROVIDER_KEY, delay_s=0.02)))
            lago_url = await stack.enter_async_context(serve(lago_app(api_key=LAGO_KEY, ledger=lago)))
            tracker = _tracker(folder, lago_url, people)
            await stack.enter_async_context(tracker)
            admin_token = secrets.token_urlsafe(16)
            app = gateway(_settings(provider, people, admin_token), tracker)
            url = await stack.enter_async_context(serve(app, port))
            places = {
                "gateway": f"{url}/v1",
                "an API key of it": people[0].secret,
                "dashboard": f"{url}/askii/",
                "its admin token": admin_token,
                "metrics": url + METRICS_PATH,
            }
            if as_json:
                print(f"gateway {url}/v1, dashboard {url}/askii/, metrics {url}{METRICS_PATH}", file=sys.stderr)
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
            async with asyncio.TaskGroup() as group:
                for tenant in people:
                    group.create_task(run_tenant(tenant, url, session, stop))
                await _watch(tracker, lago, people, places, stop, seconds=seconds, quiet=as_json)
                stop.set()
            await tracker.flush(FLUSH_S)
            return await reconcile(tracker, lago, people)


async def _watch(
    tracker: CostTracker,
    lago: LagoLedger,
    people: list[Tenant],
    places: dict[str, str],
    stop: asyncio.Event,
    *,
    seconds: float,
    quiet: bool,
) -> None:
    """Show the table until the time is over or somebody stops it."""
    end_s = asyncio.get_running_loop().time() + seconds
    console = Console(quiet=quiet)
    with Live(console=console, auto_refresh=False) as live:
        while not stop.is_set() and (left_s := end_s - asyncio.get_running_loop().time()) > 0:
            if not quiet:
                live.update(await frame(tracker, lago, people, places, left_s), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(REFRESH_S, left_s)):
                    await stop.wait()


def _tracker(folder: str, lago_url: str, people: list[Tenant]) -> CostTracker:
    return CostTracker(
        store=f"sqlite:///{Path(folder) / 'demo.db'}",
        sinks=[LagoSink(f"{lago_url}/api/v1", LAGO_KEY)],
        fallbacks=FALLBACKS,
        prices={"local-llama": ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=0, provider="local")},
        budgets=[Budget(scope=f"tenant={tenant.name}", limit_usd=tenant.limit_usd) for tenant in people],
    )


def _settings(provider_url: str, people: list[Tenant], admin_token: str) -> Settings:
    keys = [KeyRow(id=f"key_{tenant.name}", sha256=hash_secret(tenant.secret), tenant=tenant.name) for tenant in people]
    simulated: dict[str, Any] = {"url": f"{provider_url}/v1", "api_key": PROVIDER_KEY}
    return Settings(
        store="memory://",
        keys=keys,
        metrics_path=METRICS_PATH,
        api={"admin_token": admin_token},
        upstreams={
            "anthropic": {**simulated, "models": ["claude-*"], "provider": "anthropic"},
            "openai": {**simulated, "models": ["*"]},
        },
    )


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, port: int = 0) -> AsyncIterator[str]:
    """Run an application on loopback while the block lasts; yields its URL. A port in use gives way to a free one."""
    listener = _listener(port)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", access_log=False, lifespan="on", timeout_graceful_shutdown=5)
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # the demo handles Ctrl-C itself
    task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001 - `serve` would take the signals
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn tells it in no other way
        await asyncio.sleep(0.01)
    try:
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def _listener(port: int) -> socket.socket:
    # Without the protocol, asyncio does not know it for TCP and leaves Nagle's algorithm on: 40 ms for each answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.bind((HOST, 0))
    listener.listen(1024)
    return listener
