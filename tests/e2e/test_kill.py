"""`kill -9` of the gateway at any moment: nothing is charged twice, nothing is billed twice, nothing stays held."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from askii_middleware.demo.lago import LagoLedger, lago_app
from askii_middleware.demo.provider import provider_app
from tests.support.servers import serving

from .books import Books, opened
from .calls import MESSAGES
from .clients import LOOPBACK
from .forked import Nursery, nursery
from .gateways import clean_environment, secret_of, serve, store_url, write_config

KILLS = 50
LANES = 2
"""Gateways at a time: while one dies, the other goes on on the same ledger."""
CLIENTS = 4
"""At each gateway."""
HOLD_TTL_S = 1.0
TENANTS = ("acme", "globex")
CALLS = [
    ("/v1/chat/completions", {"model": "house", "max_tokens": 60}),
    ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 60}),
]
"""Models without a tokenizer of their own, which would take most of a gateway's short life to load."""


class Load:
    """Clients that call until their gateway is gone, and the ids of the calls whose whole answer they got."""

    def __init__(self) -> None:
        self.answered: set[str] = set()

    async def run(self, url: str, client: httpx.AsyncClient, choice: random.Random) -> None:
        while True:
            path, body = choice.choice(CALLS)
            headers = {"authorization": f"Bearer {secret_of(choice.choice(TENANTS))}"}
            try:
                answer = await client.post(
                    url + path,
                    json={**body, "messages": MESSAGES, "stream": choice.random() < 0.5},
                    headers=headers,
                )
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            self.answered.add(answer.headers["x-askii-call-id"])


def expire_lease(database: Path, pid: int) -> None:
    """As if the time had passed for which a dead gateway's right to deliver, and its share, still stand: 30 s."""
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        connection.execute("UPDATE sinks SET lease_until_s = 0 WHERE owner LIKE ?", (f"{pid}-%",))
        connection.execute("DELETE FROM askers WHERE owner LIKE ?", (f"{pid}-%",))


async def kill_again_and_again(born: Nursery, folder: Path, load: Load, choice: random.Random, kills: int) -> None:
    for _ in range(kills):
        gateway = born.launch(folder)
        try:
            url = await asyncio.to_thread(gateway.wait_until_ready)
            async with httpx.AsyncClient(**LOOPBACK) as client:
                clients = [asyncio.create_task(load.run(url, client, choice)) for _ in range(CLIENTS)]
                await asyncio.sleep(choice.uniform(0, 0.3))
                gateway.kill()
                await asyncio.gather(*clients)
        finally:
            gateway.kill()
        expire_lease(folder / "askii.db", gateway.pid)


def budget_lines(folder: Path, tenant: str) -> list[dict[str, Any]]:
    """What `askii budget status` says."""
    command = [sys.executable, "-m", "askii_middleware.cli", "budget", "status", f"tenant={tenant}", "--json"]
    ended = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, check=True, timeout=30)
    lines: list[dict[str, Any]] = json.loads(ended.stdout)
    return lines


async def delivered(books: Books, lago: LagoLedger) -> None:
    """Wait until the holds of the dead have expired and everything that is due was delivered."""
    async with asyncio.timeout(30):
        while True:
            totals = await books.store.totals()
            if not totals.held_nano_usd and await books.store.pending() == {"lago": 0}:
                return
            await asyncio.sleep(0.05)


async def test_50_kills_under_load_leave_ledger_records_and_lago_events_equal(tmp_path: Path) -> None:
    lago, load = LagoLedger(), Load()
    async with (
        serving(provider_app(delay_s=0.02), lifespan="off") as provider,
        serving(lago_app(api_key="lago-key", ledger=lago)) as lago_url,
    ):
        write_config(
            tmp_path,
            {
                "anthropic": (f"{provider}/v1", ["claude-*"]),
                "openai": (f"{provider}/v1", ["*"]),
            },
            budgets=dict.fromkeys(TENANTS, "100"),
            settings={"hold_ttl_s": HOLD_TTL_S},
            tables=f'[sinks.lago]\nurl = "{lago_url}/api/v1"\napi_key = "lago-key"\n',
        )
        with nursery() as born:
            await asyncio.gather(
                *(kill_again_and_again(born, tmp_path, load, random.Random(n), KILLS // LANES) for n in range(LANES))
            )
        async with opened(store_url(tmp_path)) as books:
            with serve(tmp_path) as (_, last):
                await delivered(books, lago)
                lines = {tenant: await asyncio.to_thread(budget_lines, tmp_path, tenant) for tenant in TENANTS}
                assert await asyncio.to_thread(last.stop) == 0
            records = await books.records()
            await books.check()
            totals = await books.store.totals()
            dead = await books.store.dead_letters("lago")
    with contextlib.closing(sqlite3.connect(tmp_path / "askii.db")) as connection:
        lost = {call_id for (call_id,) in connection.execute("SELECT call_id FROM holds WHERE state = 'lost'")}
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(records) > KILLS // 2
    assert lost, "no kill fell into a call: the test shows nothing"
    assert totals.lost == len(lost)
    assert not lost & records.keys()
    assert load.answered <= lost | records.keys()
    assert dead == []
    assert lago.unbilled == []
    assert sorted(event.transaction_id for event in lago.events.values()) == sorted(records)
    assert lago.total_coins == sum(record.askii_coins for record in records.values())
    for tenant in TENANTS:
        (line,) = lines[tenant]
        spent = sum(record.cost_nano_usd for record in records.values() if record.tenant == tenant)
        assert Decimal(line["spent_usd"]) * 10**9 == spent
        assert Decimal(line["held_usd"]) == 0
        assert abs(lago.coins(tenant) - Decimal(spent) / 1000) < 1
    assert list(tmp_path.glob("*.journal*")) == []
