"""What a type checker must see. Checked by mypy with all other tests, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from decimal import Decimal
from typing import Any, assert_type

from askii_middleware import Budget, CostTracker, Identity, Param, Scope, UsageRecord, tracked
from askii_middleware.budget_status import BudgetStatus
from askii_middleware.counting import Usage
from askii_middleware.reports import SpendSummary


@tracked(model="gpt-4o", tenant_id=Param("tenant"))
async def answer(tenant: str, question: str, *, words: int = 10) -> str:
    return f"{tenant}{question}{words}"


@tracked(model=Param("model"), tenant_id=lambda tenant, model: tenant, usage="usage")
def count(tenant: str, model: str, usage: Usage | None = None) -> int:
    return len(tenant + model)


@tracked(model="gpt-4o", max_output_tokens=5)
async def stream(question: str) -> AsyncIterator[bytes]:
    yield question.encode()


@tracked(model="gpt-4o")
def words(question: str) -> Iterator[str]:
    yield question


class Service:
    @tracked(model="gpt-4o", tenant_id="acme")
    async def ask(self, question: str) -> float:
        return float(question)


async def functions_keep_their_types() -> None:
    assert_type(await answer("acme", "why", words=3), str)
    assert_type(count("acme", "gpt-4o"), int)
    assert_type(words("why"), Iterator[str])
    async for piece in stream("why"):
        assert_type(piece, bytes)
    assert_type(await Service().ask("1"), float)
    kept: Callable[[str, str], Coroutine[Any, Any, str]] = answer
    del kept


async def wrong_calls_are_found() -> None:
    await answer("acme")  # type: ignore[call-arg]
    await answer("acme", "why", words="3")  # type: ignore[arg-type]
    count(1, "gpt-4o")  # type: ignore[arg-type]
    words()  # type: ignore[call-arg]
    tracked(tenant_id="acme")  # type: ignore[call-arg]
    tracked(model=1)  # type: ignore[arg-type]


async def the_trackers_answers_have_types(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "gpt-4o", expected_input_tokens=800) as usage:
        assert_type(usage, Usage)
        assert_type(usage.model, str)
        usage["output_tokens"] += 3
    assert_type(await tracker.record_usage(Identity(tenant="acme"), "gpt-4o", input_tokens=1), UsageRecord)
    assert_type(await tracker.get_spend(Scope(tenant="acme"), "daily"), SpendSummary)
    assert_type(await tracker.check_budget("tenant=acme", "0.5"), bool)
    assert_type(await tracker.budget_enforcer.status(Scope()), list[BudgetStatus])
    assert_type((await tracker.budget_enforcer.status(Scope()))[0].limit_usd, Decimal | None)
    await tracker.budget_enforcer.set_budget(Budget(scope=Scope(tenant="acme"), limit_usd=1))
    CostTracker(unknown_price="never")  # type: ignore[arg-type]
    CostTracker(on_store_error="hope")  # type: ignore[arg-type]
