"""The guide about tenants: every piece of their code, run with nothing changed but its import lines."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, Request
from pydantic import BaseModel

from askii_middleware import compat
from askii_middleware.compat import cost_tracker

from ..support.service import soon
from .support import BLOCKS, NO_SEEDS, SEEDS, Block, client, records, run, runs

pytestmark = pytest.mark.skipif(not SEEDS.exists(), reason=NO_SEEDS)


# Cost Tracking Integration Guide -------------------------------------------------------------------------------------


class Counts(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Completion(BaseModel):
    model: str
    usage: Counts


class Service:
    """Stands for the guide's model service, which uses 120 tokens and answers with 30."""

    async def complete(self, *_: Any, model: str = "gpt-4", **__: Any) -> Completion:
        return Completion(model=model, usage=Counts(prompt_tokens=120, completion_tokens=30))


class Chat(BaseModel):
    model: str
    messages: list[dict[str, str]]
    temperature: float = 1.0


GPT_4 = 120 * 30_000 + 30 * 60_000
"""What one call of the service costs, in nano-USD."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    module: Any = ModuleType("src.app.services.llm_service")
    module.LLMService = Service
    for name in ("src", "src.app", "src.app.services"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "src.app.services.llm_service", module)
    return Service()


@runs("tracking", 0, 2)
async def test_the_endpoint_is_charged_and_its_tenant_sees_it(block: Block, service: Service) -> None:
    chat = run(block, ChatCompletionRequest=Chat)["router"]
    stats = run(BLOCKS["tracking", 2], router=APIRouter(), Request=Request, cost_tracker=cost_tracker)["router"]
    await cost_tracker.budget_enforcer.set_daily_budget("acme", 32.86)
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}
    async with client(chat, stats, tenant="acme") as session:
        said = await session.post("/api/v1/chat/completions", json=body)
        assert (said.status_code, said.json()["usage"]["completion_tokens"]) == (200, 30)
        usage = (await session.get("/api/v1/usage/stats")).json()["current_usage"]
    assert usage["tokens_by_model"] == {"gpt-4": 150}
    assert (usage["cost_today_usd"], usage["budget_remaining_usd"]) == (GPT_4 / 1e9, 32.8546)
    assert usage["budget_utilization_percent"] == pytest.approx(100 * 0.0054 / 32.86)
    (record,) = await asyncio.to_thread(records)
    assert (record.tenant, record.cost_nano_usd, record.askii_coins) == ("acme", GPT_4, 5400)


@runs("tracking", 1)
def test_a_days_budget_is_made_of_a_months(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(block, cost_tracker=cost_tracker, logger=logging.getLogger("guide"))
    assert "Set budget for acme-corp: $32.85/day" in caplog.text
    stats = asyncio.run(cost_tracker.get_tenant_stats("acme-corp"))
    assert stats["remaining_budget_usd"] == 32.851511169


@runs("tracking", 3)
def test_prices_of_ones_own_are_per_thousand_tokens(block: Block) -> None:
    tracker = run(block)["custom_tracker"]
    calculate = tracker.cost_calculator.calculate
    assert asyncio.run(calculate(model="custom-model", input_tokens=1000, output_tokens=500)) == 0.04
    assert tracker.calculate_cost("custom-local", 1000, 1000) == 0.0004
    assert tracker.calculate_cost("gpt-4", 1000, 0) == 0.03


@runs("tracking", 4)
async def test_a_batch_whose_counts_come_after_the_block_is_charged(block: Block) -> None:
    async def process_item(item: int) -> Any:
        return SimpleNamespace(tokens=item * 100)

    names = run(block, cost_tracker=cost_tracker, List=list, Item=int, process_item=process_item)
    await names["process_batch"]("acme", [1, 2, 3])
    await soon(lambda: asyncio.to_thread(records))
    (record,) = await asyncio.to_thread(records)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (600, 0)
    assert (record.cost_nano_usd, record.estimated) == (600 * 30_000, False)


@runs("tracking", 5)
async def test_a_stream_is_charged_by_what_its_chunks_said(block: Block) -> None:
    async def llm_stream() -> AsyncIterator[Any]:
        for text, tokens in (("a", 0), ("b", 10), ("c", 25)):
            yield SimpleNamespace(text=text, usage=SimpleNamespace(completion_tokens=tokens) if tokens else None)

    names = run(block, cost_tracker=cost_tracker, count_input_tokens=lambda: 40, llm_stream=llm_stream)
    seen = [chunk.text async for chunk in names["stream_response"]("acme", "gpt-4")]
    assert seen == ["a", "b", "c"]
    (record,) = await asyncio.to_thread(records)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (40, 35)
    assert record.cost_nano_usd == 40 * 30_000 + 35 * 60_000


@runs("tracking", 6)
async def test_a_route_by_complexity_is_charged_at_its_model_or_the_fallback(block: Block, service: Service) -> None:
    route = run(block, cost_tracker=cost_tracker, llm_service=service)["smart_route"]
    for complexity in ("simple", "complex"):
        await route("acme", complexity)
    await cost_tracker.budget_enforcer.set_daily_budget("acme", 0.05)
    cost_tracker.budget_enforcer.fallback_model = "gpt-3.5-turbo"
    await route("acme", "critical")
    found = [(record.served_model, record.fallback_reason) for record in await asyncio.to_thread(records)]
    assert found == [("gpt-3.5-turbo", None), ("gpt-4", None), ("gpt-3.5-turbo", "budget")]
    await cost_tracker.budget_enforcer.set_daily_budget("acme", 0)
    with pytest.raises(compat.BudgetExceededError):
        await route("acme", "simple")
