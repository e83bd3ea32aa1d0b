"""Finding the guides' code, changing its import lines, and running it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from askii_middleware.compat import CostTracker, cost_tracker
from askii_middleware.records import UsageRecord, decode_record

SEEDS = Path(__file__).parents[2] / ".." / "shared" / "seeds"
NO_SEEDS = "the guides (../shared/seeds) are not here"

TITLES = {
    "Askii Coin Integration Guide": "integration",
    "Askii Coin Virtual Currency System": "system",
    "Askii Coin API Reference": "reference",
    "Billing Module Integration Guide": "billing",
    "Cost Tracking Integration Guide": "tracking",
}
COMPAT = "askii_middleware.compat"
MODULES = (
    "litellm.cost_calculator",
    "litellm.proxy.auth.auth_checks",
    "litellm.proxy._types",
    "moneta.lago_logger",
    "app.billing.tracker",
    "app.billing.models",
    "app.billing.routes",
    "src.app.monitoring.cost_tracker",
)
"""What the guides import from, and here is one module."""
_MODULE = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, MODULES)) + r")(?![\w])")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced piece of a guide."""

    guide: str
    place: int
    kind: str
    text: str


def blocks() -> Iterator[Block]:
    """All of all guides; none where they are not here."""
    for path in sorted(SEEDS.glob("*.txt")):
        text = path.read_text("utf-8")
        guide = TITLES[text.partition("\n")[0].lstrip("# ").strip()]
        for place, found in enumerate(_FENCE.finditer(text)):
            yield Block(guide, place, found[1], found[2])


BLOCKS = {(block.guide, block.place): block for block in blocks()}
RUN: set[tuple[str, int]] = set()
"""The blocks that some test runs."""


def runs(guide: str, *places: int) -> Callable[[Any], Any]:
    """A test of these blocks of a guide: it gets the first as `block`, the others under `BLOCKS`."""
    RUN.update((guide, place) for place in places)
    found = BLOCKS.get((guide, places[0]))
    return pytest.mark.parametrize("block", [pytest.param(found, id=f"{guide}-{places[0]}")])


def adapted(text: str) -> str:
    """A guide's code with its import lines changed, and nothing else."""
    return re.sub(r"^import litellm$", f"import {COMPAT} as litellm", _MODULE.sub(COMPAT, text), flags=re.MULTILINE)


def run(block: Block, /, **given: Any) -> dict[str, Any]:
    """Run a block as a module, with an event loop where it awaits at the top. What it has defined then."""
    return execute(adapted(block.text), given)


def execute(text: str, given: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "guide", **given}
    code = compile(text, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:

        async def whole() -> None:
            await eval(code, names)

        asyncio.run(whole())
    else:
        exec(code, names)
    return names


def records(tracker: CostTracker = cost_tracker) -> list[UsageRecord]:
    async def read(core: Any) -> list[UsageRecord]:
        await core.ready()
        return [decode_record(record) for _, record in await core.store.records()]

    return tracker.run(read)


@contextlib.asynccontextmanager
async def client(*routers: APIRouter, tenant: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Requests to an application of these routes, in which somebody has found the tenant."""
    app = FastAPI()
    for router in routers:
        app.include_router(router)

    async def identified(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {} if tenant is None else {"tenant_id": tenant}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(identified), base_url="http://app.test") as session:
        yield session
