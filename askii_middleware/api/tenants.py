"""Tenants: how they stand, suspended and resumed, their data handed out and deleted."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from ..budget_status import summed_up
from ..budgets import scope_text
from ..errors import StoreError
from ..tenant_data import deleted, exported
from ..tenants import MAX_REASON_CHARS, TenantState
from .budgets import BudgetLineAnswer, line_answer
from .operation import Answer, Asked, Body, Download, NoBody, NoQuery, Operation, file_part
from .problems import conflict, judged


class SuspensionAnswer(Answer):
    """Why a tenant is suspended, and since when."""

    cause: Literal["operator", "subscription", "wallet"]
    reason: str
    at: str
    about: str | None


class TenantAnswer(Answer):
    """A tenant: its suspensions, and the budgets that bind a call of it."""

    tenant: str
    state: Literal["active", "suspended"]
    suspensions: tuple[SuspensionAnswer, ...]
    can_make_request: bool
    budgets: tuple[BudgetLineAnswer, ...]


class SuspendedAnswer(Answer):
    tenant: str
    state: Literal["suspended"]


class ResumedAnswer(Answer):
    """`was_suspended`: whether there was anything to lift."""

    tenant: str
    state: Literal["active"]
    was_suspended: bool


class DeletedAnswer(Answer):
    """How much of a tenant's data was erased. The tenant stays suspended."""

    tenant: str
    records: int
    aggregates: int
    keys: int
    budgets: int


class SuspendBody(Body):
    """`reason` is for operators; clients are not told."""

    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


async def get_tenant(asked: Asked[NoQuery, NoBody]) -> TenantAnswer:
    tracker, tenant = asked.desk.tracker, asked.path["tenant"]
    suspensions = [state for state in await tracker.tenant_states() if state.tenant == tenant]
    values = {"tenant": tenant}
    states = await tracker.read_lines(values)
    summary = summed_up(tenant, await tracker.told(states, tracker.index.matches(values)))
    return TenantAnswer(
        tenant=tenant,
        state="suspended" if suspensions else "active",
        suspensions=tuple(map(_suspension, suspensions)),
        can_make_request=summary.can_make_request and not suspensions,
        budgets=tuple(map(line_answer, summary.budgets)),
    )


async def suspend_tenant(asked: Asked[NoQuery, SuspendBody]) -> SuspendedAnswer:
    tenant = asked.path["tenant"]
    with judged("reason"):
        await asked.desk.tracker.suspend_tenant(tenant, reason=asked.body.reason)
    return SuspendedAnswer(tenant=tenant, state="suspended")


async def resume_tenant(asked: Asked[NoQuery, NoBody]) -> ResumedAnswer:
    tenant = asked.path["tenant"]
    lifted = await asked.desk.tracker.resume_tenant(tenant)
    return ResumedAnswer(tenant=tenant, state="active", was_suspended=lifted)


async def export_tenant(asked: Asked[NoQuery, NoBody]) -> Download:
    await asked.desk.tracker.ready()
    tenant = asked.path["tenant"]
    lines = exported(asked.desk.tracker, tenant)
    name = f"askii-{file_part(scope_text({'tenant': tenant}))}.jsonl"
    return Download("application/x-ndjson", name, (line + b"\n" async for line in lines))


async def delete_tenant(asked: Asked[NoQuery, NoBody]) -> DeletedAnswer:
    tracker, tenant = asked.desk.tracker, asked.path["tenant"]
    await tracker.ready()
    try:
        erased = await deleted(tracker, tenant)
    except StoreError as error:
        await tracker.ping()  # a ledger that answers has refused: records still wait for a sink
        raise conflict(str(error)) from None
    asked.desk.access.forget()
    return DeletedAnswer(tenant=tenant, **erased._asdict())


def _suspension(state: TenantState) -> SuspensionAnswer:
    return SuspensionAnswer(cause=state.cause, reason=state.reason, at=state.at, about=state.about)


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/api/tenants/{tenant}/suspend",
        name="suspend_tenant",
        summary="Refuse a tenant's calls until it is resumed. Calls that run go on.",
        handler=suspend_tenant,
        body=SuspendBody,
        answer=SuspendedAnswer,
    ),
    Operation(
        method="POST",
        path="/api/tenants/{tenant}/resume",
        name="resume_tenant",
        summary="Lift all suspensions of a tenant, whoever set them.",
        handler=resume_tenant,
        answer=ResumedAnswer,
    ),
    Operation(
        method="GET",
        path="/api/tenants/{tenant}/export",
        name="export_tenant",
        summary="All that the ledger has of a tenant, a JSON object on each line.",
        handler=export_tenant,
        answer=None,
        downloads=("application/x-ndjson",),
    ),
    Operation(
        method="GET",
        path="/api/tenants/{tenant}",
        name="get_tenant",
        summary="A tenant's suspensions and budgets.",
        handler=get_tenant,
        answer=TenantAnswer,
    ),
    Operation(
        method="DELETE",
        path="/api/tenants/{tenant}",
        name="delete_tenant",
        summary="Suspend a tenant and erase what the ledger has of it; sums and open deliveries keep what they need.",
        handler=delete_tenant,
        answer=DeletedAnswer,
        conflicts=True,
    ),
)
