"""Usage that is recorded after the fact, on the span of whoever records it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry.trace import INVALID_SPAN, use_span

from askii_middleware import Budget
from askii_middleware.errors import UnknownModelError
from askii_middleware.usage import TokenUsage

from .support.ledgers import Ledger, ledger
from .support.spans import Spans


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger(budgets=[Budget(scope="tenant=*", limit_usd="0.000001")]) as open_ledger:
        yield open_ledger


TOLD = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "big",
    "gen_ai.response.model": "big",
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.output_tokens": 3,
    "askii.call_id": "call-1",
    "askii.tenant": "acme",
    "askii.cost_usd": 37e-6,
    "askii.cost_coins": 37.0,
    "askii.outcome": "completed",
}


async def test_recorded_usage_is_told_on_the_current_span_like_any_finished_call(book: Ledger, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("own"):
        await book.tracker.record_usage(
            "acme", "big", input_tokens=7, output_tokens=3, call_id="call-1", provider="azure"
        )
    assert spans.named("own") == {**TOLD, "gen_ai.provider.name": "azure.ai.openai"}


async def test_parts_of_recorded_usage_are_told(book: Ledger, spans: Spans) -> None:
    usage = TokenUsage.from_totals(7, 3, cached_input_tokens=5)
    with spans.tracer.start_as_current_span("own"):
        await book.tracker.record_usage("acme", "big", usage=usage)
    told = spans.named("own")
    assert told["gen_ai.usage.input_tokens"] == 7
    assert told["gen_ai.usage.cache_read.input_tokens"] == 5


async def test_recorded_calls_on_one_span_add_up_and_a_repetition_adds_nothing(book: Ledger, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("own"):
        for call_id in ("call-0", "call-1", "call-1", "call-1"):
            await book.tracker.record_usage("acme", "big", input_tokens=7, output_tokens=3, call_id=call_id)
    assert spans.named("own") == {
        **TOLD,
        "gen_ai.usage.input_tokens": 14,
        "gen_ai.usage.output_tokens": 6,
        "askii.cost_usd": 74e-6,
        "askii.cost_coins": 74.0,
        "askii.calls": 2,
    }


async def test_a_call_that_was_not_charged_is_not_told(book: Ledger, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("own"), pytest.raises(UnknownModelError):
        await book.tracker.record_usage("acme", "nobodys-model", input_tokens=7)
    assert spans.named("own") == {}


async def test_without_a_span_recorded_usage_is_charged_all_the_same(book: Ledger, spans: Spans) -> None:
    with use_span(INVALID_SPAN):
        await asyncio.gather(*(book.tracker.record_usage("acme", "big", input_tokens=7) for _ in range(2)))
    assert not spans.all()
    assert (await book.tracker.store.totals()).calls == 2
