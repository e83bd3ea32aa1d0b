"""Starting `askii serve`: from a URL alone, with several workers, and in vain."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .books import opened
from .calls import MESSAGES
from .clients import http_client, sdks
from .gateways import clean_environment, serve, store_url, write_config
from .upstreams import Watched

HEALTH = ("/healthz", "/readyz", "/metrics")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_url_is_all_it_needs(workers: int, simulated: tuple[str, Watched], tmp_path: Path) -> None:
    prices = json.dumps({"tiny": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}})
    options = ("--upstream", f"{simulated[0]}/v1", "--workers", str(workers))
    with serve(tmp_path, *options, ASKII_DEFAULT_TENANT="acme", ASKII_PRICING=prices) as (url, gateway):
        async with sdks(url, "anything") as sdk, opened(store_url(tmp_path)) as books, http_client() as client:
            answer = await sdk.openai.chat.completions.create(model="tiny", messages=MESSAGES)
            record = await books.record(sdk.wire.call_id)
            assert answer.usage is not None
            assert record.cost_nano_usd == answer.usage.prompt_tokens * 1000 + answer.usage.completion_tokens * 2000
            assert (record.tenant, record.provider) == ("acme", "openai")
            assert [(await client.get(url + path)).status_code for path in HEALTH] == [200, 200, 200]
        said = gateway.log.splitlines()
        assert await asyncio.to_thread(gateway.stop) == 0
    assert said[0].startswith("askii 0.")
    assert said[1] == "warning: no budget is declared that limits anything: only those of askii budget set do"
    assert said[2:] == [f"askii: serving on {url}"]
    assert simulated[1].seen[-1].headers[b"authorization"] == b"Bearer anything"


async def test_it_says_where_the_dashboard_is(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        {"up": ("http://127.0.0.1:1/v1", ["*"])},
        budgets={},
        tables='[api]\nadmin_token = "env:ASKII_ADMIN_TOKEN"\npath = "/desk"',
    )
    with serve(tmp_path, ASKII_ADMIN_TOKEN="0123456789abcdef") as (url, gateway):
        async with http_client() as client:
            assert (await client.get(f"{url}/desk/")).headers["location"] == "/desk/sign-in"
        said = gateway.log.splitlines()
        assert await asyncio.to_thread(gateway.stop) == 0
    assert said[2:] == [
        "no key is declared, and there is no default_tenant: only keys of askii keys add open the gateway",
        f"askii: serving on {url}",
        f"askii: dashboard and API on {url}/desk/",
    ]


def refused_start(folder: Path, *options: str, **environment: str) -> str:
    """What `askii serve` says when it does not start, in one line."""
    write_config(folder, {"up": ("http://127.0.0.1:1/v1", ["*"])}, budgets={"acme": "1"})
    command = [sys.executable, "-m", "askii_middleware.cli", "serve", *options]
    ended = subprocess.run(
        command, cwd=folder, env=clean_environment(**environment), capture_output=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert ended.stdout == b""
    (line,) = ended.stderr.decode().splitlines()
    return line


def test_two_workers_on_a_ledger_in_memory_are_refused(tmp_path: Path) -> None:
    line = refused_start(tmp_path, "--workers", "2", ASKII_STORE="memory://")
    assert line.startswith("askii: store: memory:// is one process's own, and there are 2 workers")


def test_a_fallback_without_a_price_is_said_before_any_worker_starts(tmp_path: Path) -> None:
    line = refused_start(tmp_path, "--workers", "2", ASKII_FALLBACKS='{"gpt-4o": ["nobody-knows-me"]}')
    assert line.startswith("askii: fallbacks: 'nobody-knows-me' (for 'gpt-4o') has no price")


def test_a_taken_port_is_said_in_one_line(tmp_path: Path, unused_tcp_port: int) -> None:
    with socket.create_server(("127.0.0.1", unused_tcp_port)):
        line = refused_start(tmp_path, "--workers", "2", "--port", str(unused_tcp_port))
    assert line == f"askii: cannot listen on 127.0.0.1 port {unused_tcp_port}: Address already in use"
