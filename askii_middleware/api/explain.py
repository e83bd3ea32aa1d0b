"""What would be answered to a call now, and why."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ..budget_status import BudgetStatus
from ..explanations import CandidateExplanation, Explanation
from ..identity import MAX_TAGS, Identity
from ..stores.base import KeyRow
from .access import KeyHolder, Principal
from .budgets import BudgetLineAnswer, line_answer
from .operation import ADMIN_OR_KEY, Answer, Asked, Exact, NoBody, Operation, Query, Text
from .own import is_own
from .problems import invalid, judged, not_found

MAX_TOKENS: Final = 100_000_000
OTHERS_DECIDE: Final = "a budget that this key does not own has no room for it"
NOT_TOLD: Final = "refused; the operator of this service knows more"

Verdict = Literal["whole", "clamped", "metered", "refused"]


class CandidateAnswer(Answer):
    """One model the call could go to. Amounts are exact."""

    model: str
    provider: str | None
    input_tokens: int
    output_tokens: int
    hold_usd: Exact
    hold_coins: Exact
    least_usd: Exact | None
    fits: bool
    wins: bool
    verdict: Verdict
    tokens: int | None
    reason: Literal["spent", "held"] | None
    deciding: BudgetLineAnswer | None
    why: str
    budgets: tuple[BudgetLineAnswer, ...]


class ExplainAnswer(Answer):
    """What would be answered to a call now. Amounts are exact. A key's holder sees only budgets of its own."""

    tenant: str
    model: str
    mode: Literal["enforce", "shadow", "off"]
    mode_why: str
    verdict: Verdict
    winner: str | None
    called: str | None
    hold_usd: Exact
    hold_coins: Exact
    reason: Literal["spent", "held"] | None
    deciding: BudgetLineAnswer | None
    why: str
    candidates: tuple[CandidateAnswer, ...]


class ExplainQuery(Query):
    """Who would call what. A key's holder asks for itself and leaves `tenant`, `key`, `user`, `team` and `tag` out."""

    model: Text
    tenant: Text | None = None
    key: Text | None = None
    user: Text | None = None
    team: Text | None = None
    tag: Text | None = None
    input_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0
    output_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    provider: Text | None = None
    deployment: Text | None = None
    stream: bool = False


async def explain(asked: Asked[ExplainQuery, NoBody]) -> ExplainAnswer:
    query, principal = asked.query, asked.principal
    who = _who(principal, query)
    with judged("model"):
        explanation = await asked.desk.tracker.explain(
            who,
            query.model,
            input_tokens=query.input_tokens,
            output_tokens=query.output_tokens,
            provider=query.provider,
            deployment=query.deployment,
            stream=query.stream,
        )
    return _answer(explanation, principal.row if isinstance(principal, KeyHolder) else None)


def _who(principal: Principal, query: ExplainQuery) -> Identity:
    if not isinstance(principal, KeyHolder):
        if query.tenant is None:
            raise invalid("tenant", "is required with the admin token")
        tags = () if query.tag is None else (query.tag,)
        return Identity(tenant=query.tenant, key=query.key, user=query.user, team=query.team, tags=tags)
    row = principal.row
    own = (
        (query.tenant, row.tenant),
        (query.key, row.id),
        (query.user, row.user),
        (query.team, row.team),
        (query.tag, row.tags[0] if len(row.tags) == 1 else None),
    )
    if any(value not in (None, mine) for value, mine in own):
        raise not_found()
    return Identity(
        tenant=row.tenant, key=row.id, user=row.user, team=row.team, tags=row.tags[:MAX_TAGS], models=row.models
    )


def _answer(explanation: Explanation, row: KeyRow | None) -> ExplainAnswer:
    """For JSON; for a key's holder (`row`) without what budgets of others say."""
    table = explanation.table()
    table["candidates"] = tuple(_candidate(each, row) for each in explanation.candidates)
    table["deciding"] = _line(explanation.deciding, row)
    if row is not None:
        if explanation.deciding is not None and table["deciding"] is None:
            table["why"] = OTHERS_DECIDE
        elif explanation.verdict == "refused" and explanation.deciding is None:
            table["why"] = NOT_TOLD  # such as a suspension, whose reason is meant for operators
    return ExplainAnswer(**table)


def _candidate(each: CandidateExplanation, row: KeyRow | None) -> CandidateAnswer:
    table: dict[str, Any] = each.table()
    table["deciding"] = _line(each.deciding, row)
    table["budgets"] = tuple(line for each_line in each.budgets if (line := _line(each_line, row)) is not None)
    if row is not None and each.deciding is not None and table["deciding"] is None:
        table["why"] = OTHERS_DECIDE
    return CandidateAnswer(**table)


def _line(line: BudgetStatus | None, row: KeyRow | None) -> BudgetLineAnswer | None:
    if line is None or (row is not None and not is_own(row, line.scope)):
        return None
    return line_answer(line)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/explain",
        name="explain",
        summary="What would be answered to a call now, and why. Nothing is held.",
        handler=explain,
        query=ExplainQuery,
        answer=ExplainAnswer,
        who=ADMIN_OR_KEY,
    ),
)
