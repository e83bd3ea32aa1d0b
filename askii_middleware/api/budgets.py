"""Budgets on any scope, and the lines that bind a scope now."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from ..budget_status import BudgetStatus, plain
from ..budgets import Budget, Scope
from ..currency import nano_to_usd_text
from ..known_budgets import budgets_on, known_budgets
from .budget_of_key import Period
from .operation import Answer, Asked, Body, Exact, Limit, NoBody, NoQuery, Operation, Query, Text
from .problems import judged, not_found

ScopeText = Annotated[str, Field(min_length=1, max_length=2048)]
"""`tenant=acme,model=gpt-4o`, or `global`."""
Amount = Annotated[Decimal, Field(ge=0, max_digits=60, decimal_places=30)]


class BudgetAnswer(Answer):
    """A budget. Amounts are exact; null: no limit of that kind."""

    scope: str
    period: str
    limit_usd: Exact | None
    limit_coins: Exact | None
    zone: str
    alert_at: tuple[float, ...]
    soft: bool
    max_values: int | None
    enabled: bool
    source: Literal["store", "config"]


class BudgetsAnswer(Answer):
    """A page of budgets by scope and period. `next`: what to send as `after` for the next page; null: none is left."""

    budgets: tuple[BudgetAnswer, ...]
    next: str | None


class BudgetLineAnswer(Answer):
    """A budget that binds a scope, and how it stands. Amounts are exact; null: no limit."""

    scope: str
    period: str
    limit_usd: Exact | None
    spent_usd: Exact
    held_usd: Exact
    remaining_usd: Exact | None
    limit_coins: Exact | None
    spent_coins: Exact
    held_coins: Exact
    remaining_coins: Exact | None
    resets_at: datetime
    source: Literal["store", "config"]
    zone: str
    soft: bool
    status: Literal["ok", "caution", "warning", "exceeded"]


class BudgetLinesAnswer(Answer):
    """The budgets that bind a scope."""

    scope: str
    can_make_request: bool
    budgets: tuple[BudgetLineAnswer, ...]


class BudgetsQuery(Query):
    """`after`: where the page before ended."""

    scope: ScopeText | None = None
    after: Annotated[str, Field(max_length=4096)] = ""
    limit: Limit = 100


class BudgetStatusQuery(Query):
    scope: ScopeText


class BudgetQuery(Query):
    scope: ScopeText
    period: Period = "daily"


class BudgetBody(Body):
    """A budget to set. Amounts may be numbers or, exactly, strings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"scope": "tenant=acme", "limit_usd": "32.86", "period": "daily", "alert_at": [0.8, 1.0]}]
        }
    )

    scope: ScopeText
    limit_usd: Amount | None = None
    """With `limit_coins` null too: no limit, which exempts from budgets on `*`; 0: nothing at all."""
    limit_coins: Amount | None = None
    period: Period = "daily"
    zone: Text = "UTC"
    alert_at: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(max_length=20)] = ()
    soft: bool = False
    max_values: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    enabled: bool = True


class RemovedAnswer(Answer):
    """A budget set at run time is gone. `now`: the declared one that applies again, if there is one."""

    removed: Literal[True]
    now: BudgetAnswer | None


async def list_budgets(asked: Asked[BudgetsQuery, NoBody]) -> BudgetsAnswer:
    query, tracker = asked.query, asked.desk.tracker
    await tracker.ready()
    if query.scope is None:
        found = await known_budgets(tracker, after=query.after, limit=query.limit + 1)
    else:
        with judged("scope"):
            scope = tracker.names.scope(Scope.parse(query.scope)).text
        found = await budgets_on(tracker, scope, after=query.after, limit=query.limit + 1)
    page = found[: query.limit]
    return BudgetsAnswer(
        budgets=tuple(_shown(each.budget, each.source) for each in page),
        next=page[-1].budget.key if len(found) > len(page) else None,
    )


async def put_budget(asked: Asked[NoQuery, BudgetBody]) -> BudgetAnswer:
    body, tracker = asked.body, asked.desk.tracker
    with judged("body"):
        budget = Budget(**body.model_dump())
        await tracker.budget_enforcer.set_budget(budget)
    return _shown(tracker.names.budget(budget), "store")


async def remove_budget(asked: Asked[BudgetQuery, NoBody]) -> RemovedAnswer:
    query, tracker = asked.query, asked.desk.tracker
    with judged("scope"):
        scope = Scope.parse(query.scope)
        removed = await tracker.budget_enforcer.remove_budget(scope, query.period)
    if not removed:
        raise not_found()
    declared = tracker.index.declared.get(f"{tracker.names.scope(scope)}|{query.period}")
    return RemovedAnswer(removed=True, now=None if declared is None else _shown(declared, "config"))


async def budget_status(asked: Asked[BudgetStatusQuery, NoBody]) -> BudgetLinesAnswer:
    with judged("scope"):
        summary = await asked.desk.tracker.get_budget_status(asked.query.scope)
    return BudgetLinesAnswer(
        scope=summary.scope,
        can_make_request=summary.can_make_request,
        budgets=tuple(map(line_answer, summary.budgets)),
    )


def line_answer(line: BudgetStatus) -> BudgetLineAnswer:
    """A line for JSON."""
    return BudgetLineAnswer(**{**line.table(), "resets_at": line.resets_at})


def _shown(budget: Budget, source: Any) -> BudgetAnswer:
    terms = budget.terms
    return BudgetAnswer(
        scope=str(budget.scope),
        period=budget.period,
        limit_usd=None if terms.limit_nano_usd is None else nano_to_usd_text(terms.limit_nano_usd),
        limit_coins=None if terms.limit_coins is None else plain(Decimal(terms.limit_coins)),
        zone=budget.zone,
        alert_at=budget.alert_at,
        soft=budget.soft,
        max_values=terms.max_values,
        enabled=budget.enabled,
        source=source,
    )


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/budgets",
        name="list_budgets",
        summary="All budgets, stored and declared, or those of one scope.",
        handler=list_budgets,
        query=BudgetsQuery,
        answer=BudgetsAnswer,
    ),
    Operation(
        method="PUT",
        path="/api/billing/budgets",
        name="put_budget",
        summary="Set or replace the budget of a scope and period. Spend is kept.",
        handler=put_budget,
        body=BudgetBody,
        answer=BudgetAnswer,
    ),
    Operation(
        method="DELETE",
        path="/api/billing/budgets",
        name="remove_budget",
        summary="Forget a budget that was set at run time.",
        handler=remove_budget,
        query=BudgetQuery,
        answer=RemovedAnswer,
    ),
    Operation(
        method="GET",
        path="/api/billing/budgets/status",
        name="get_budget_status",
        summary="The budgets that bind a call of a scope, and how they stand.",
        handler=budget_status,
        query=BudgetStatusQuery,
        answer=BudgetLinesAnswer,
    ),
)
