"""The demo's clients: three tenants with different budgets and habits."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORDS = "budget ledger token coin tenant gateway stream meter invoice window settle reserve".split()  # noqa: SIM905


@dataclass(slots=True)
class Tenant:
    """One tenant of the demo and what became of its calls."""

    name: str
    story: str
    secret: str
    limit_usd: str
    model: str
    path: str
    pause_s: float
    calls: int = 0
    downgraded: int = 0
    refused: int = 0
    failed: int = 0
    served: dict[str, int] = field(default_factory=dict)


async def run_tenant(tenant: Tenant, gateway_url: str, session: aiohttp.ClientSession, until: asyncio.Event) -> None:
    """Send calls, streamed and not, until told to stop."""
    choice = random.Random(tenant.name)
    while not until.is_set():
        await one_call(tenant, gateway_url, session, choice)
        try:
            async with asyncio.timeout(tenant.pause_s * choice.uniform(0.5, 1.5)):
                await until.wait()
        except TimeoutError:
            pass


async def one_call(tenant: Tenant, gateway_url: str, session: aiohttp.ClientSession, choice: random.Random) -> None:
    """One call through the gateway; its headers say what the gateway decided."""
    prompt = " ".join(choice.choices(WORDS, k=choice.randint(20, 60)))
    body: dict[str, Any] = {
        "model": tenant.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": choice.randint(60, 200),
        "stream": choice.random() < 0.5,
    }
    headers = {"authorization": f"Bearer {tenant.secret}", "content-type": "application/json"}
    try:
        async with session.post(gateway_url + tenant.path, data=json.dumps(body), headers=headers) as response:
            await response.read()
    except (aiohttp.ClientError, TimeoutError):
        tenant.failed += 1
        return
    if response.status == 200:
        tenant.calls += 1
        model = response.headers.get("x-askii-model", tenant.model)
        tenant.served[model] = tenant.served.get(model, 0) + 1
        if "x-askii-fallback-reason" in response.headers:
            tenant.downgraded += 1
    elif response.status in (402, 429):
        tenant.refused += 1
    else:
        tenant.failed += 1
