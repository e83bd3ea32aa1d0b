"""The budget of one key, in the shape of the guides."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from ..admission import PPM
from ..budgets import Budget, scope_text
from ..currency import NANO, nano_to_coins_text, nano_to_usd_text
from ..standing import share_used
from ..stores.base import KeyRow
from .key_budget import KeyBudget, read_key_budget
from .keys import visible_key
from .operation import ADMIN_OR_KEY, Answer, Asked, Body, Exact, NoBody, NoQuery, Operation, Query, spelled
from .problems import invalid, judged

PERIOD_PATTERN: Final = r"^(daily|weekly|monthly|yearly|total|[1-9][0-9]{0,4}[mhd])$"
Period = Annotated[
    str,
    *spelled(PERIOD_PATTERN, "daily, weekly, monthly, yearly, total, or a length as in 30m, 12h or 7d"),
]


class KeyBudgetAnswer(Answer):
    """A key's budget, and how it stands. Plain numbers are USD for reading; strings are exact.

    `alert_threshold` is the lowest share of the limit whose crossing is reported; 0: none is.
    """

    key_id: str
    max_budget: float | None
    """None: no limit."""
    alert_threshold: Annotated[float, Field(ge=0, le=1)]
    period: str
    enabled: bool
    source: Literal["store", "config"] | None
    """None: there is no budget on this key, nor on each key."""
    zone: str
    current_spend: float
    remaining: float | None
    can_make_request: bool
    """Whether all budgets that bind the key, its tenant's too, have something left, and nothing else refuses it."""
    alert_triggered: bool
    limit_usd: Exact | None
    limit_coins: Exact | None
    spent_usd: Exact
    spent_coins: Exact
    held_usd: Exact
    remaining_usd: Exact | None
    remaining_coins: Exact | None
    resets_at: datetime


class KeyBudgetQuery(Query):
    """Of several periods one; without it, the one with the least left."""

    period: Period | None = None


class KeyBudgetBody(Body):
    """A limit on a key. The key's budgets over other periods stay as they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"key_id": "key_1", "max_budget": 5.0, "alert_threshold": 0.8, "period": "daily", "enabled": True}
            ]
        }
    )

    key_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """If it is given: the same as in the path."""
    max_budget: Annotated[Decimal, Field(ge=0, le=9_000_000, max_digits=40, decimal_places=30)] | None
    """USD; None: no limit, whatever holds for each key."""
    alert_threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    period: Period = "daily"
    enabled: bool = True


async def get_key_budget(asked: Asked[KeyBudgetQuery, NoBody]) -> KeyBudgetAnswer:
    key = await visible_key(asked)
    return await _answer(asked, key.row, asked.query.period)


async def put_key_budget(asked: Asked[NoQuery, KeyBudgetBody]) -> KeyBudgetAnswer:
    key, body, tracker = await visible_key(asked), asked.body, asked.desk.tracker
    if body.key_id not in (None, key.row.id):
        raise invalid("key_id", "is not the key of the path")
    known = (await read_key_budget(tracker, key.row, body.period)).budget
    with judged("body"):
        budget = Budget(
            scope=scope_text({"key": key.row.id}),
            limit_usd=body.max_budget,
            period=body.period,
            alert_at=(body.alert_threshold,) if body.alert_threshold > 0 else (),
            zone="UTC" if known is None else known.zone,
            enabled=body.enabled,
        )
        await tracker.budget_enforcer.set_budget(budget)
    return await _answer(asked, key.row, body.period)


async def _answer(
    asked: Asked[KeyBudgetQuery, NoBody] | Asked[NoQuery, KeyBudgetBody], row: KeyRow, period: str | None
) -> KeyBudgetAnswer:
    tracker = asked.desk.tracker
    state, rate = await read_key_budget(tracker, row, period), tracker.rates.current()
    limit, left = state.limit_nano_usd, state.left_nano_usd
    threshold = _threshold(state)
    return KeyBudgetAnswer(
        key_id=row.id,
        max_budget=None if limit is None else limit / NANO,
        alert_threshold=threshold,
        period=state.period,
        enabled=state.budget is not None and state.budget.enabled,
        source=state.source,
        zone=state.zone,
        current_spend=state.spent_nano_usd / NANO,
        remaining=None if left is None else left / NANO,
        can_make_request=state.can_make_request,
        alert_triggered=threshold > 0 and limit is not None and share_used(state.spent_nano_usd, limit) >= threshold,
        limit_usd=None if limit is None else nano_to_usd_text(limit),
        limit_coins=None if limit is None else nano_to_coins_text(limit, rate),
        spent_usd=nano_to_usd_text(state.spent_nano_usd),
        spent_coins=nano_to_coins_text(state.spent_nano_usd, rate),
        held_usd=nano_to_usd_text(state.held_nano_usd),
        remaining_usd=None if left is None else nano_to_usd_text(left),
        remaining_coins=None if left is None else nano_to_coins_text(left, rate),
        resets_at=state.resets_at,
    )


def _threshold(state: KeyBudget) -> float:
    shares = () if state.budget is None else state.budget.terms.alert_at_ppm
    return min(shares) / PPM if shares else 0.0


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/budget/{key_id}",
        name="get_key_budget",
        summary="A key's budget, and how it stands.",
        handler=get_key_budget,
        query=KeyBudgetQuery,
        answer=KeyBudgetAnswer,
        who=ADMIN_OR_KEY,
        for_user=True,
    ),
    Operation(
        method="PUT",
        path="/api/billing/budget/{key_id}",
        name="put_key_budget",
        summary="Limit a key. What it has spent counts on.",
        handler=put_key_budget,
        body=KeyBudgetBody,
        answer=KeyBudgetAnswer,
        for_user=True,
    ),
)
