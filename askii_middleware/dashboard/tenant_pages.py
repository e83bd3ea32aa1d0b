"""Tenants: who there is, and one of them with its budgets, its days, its models and its latest calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from ..budgets import Scope
from ..identity import Identity
from ..records import decode_record
from ..tenants import MAX_REASON_CHARS
from .standings import days_back, lines_of, tenant_scope, today_date, top_tenants
from .visits import PageError, Visit

if TYPE_CHECKING:
    from ..usage_report import ReportLine

DAYS = 30
LISTED = 50
LATEST = 15
MODELS = 50
DONE = {
    "suspended": "The tenant is suspended: its calls are refused from now on. Running calls go on.",
    "resumed": "The tenant may make calls again.",
    "active": "The tenant was not suspended.",
}


async def listed(visit: Visit) -> Response:
    """Those who spent most in the last 30 days, those who are suspended, and a way to any other."""
    await visit.tracker.ready()
    states = await visit.tracker.tenant_states()
    return visit.page(
        "tenants.html",
        title="Tenants",
        days=DAYS,
        tenants=await top_tenants(visit.tracker, DAYS, LISTED),
        states=states[:LISTED],
        more_states=max(len(states) - LISTED, 0),
    )


async def page(visit: Visit) -> Response:
    """One tenant. There is a page for every name that can be one, whether it has called or not."""
    tracker, tenant = visit.tracker, _tenant(visit.asked("name"))
    await tracker.ready()
    now_s = tracker.clock()
    report = await tracker.usage_report(
        Scope(tenant=tenant), first=days_back(now_s, DAYS).date(), last=today_date(now_s).date()
    )
    (lines,) = await lines_of(tracker, [{"tenant": tenant}])
    calls = [decode_record(record) for _, record in await tracker.store.latest(tenant, LATEST)]
    return visit.page(
        "tenant.html",
        title=tenant,
        tenant=tenant,
        scope=tenant_scope(tenant),
        days=DAYS,
        lines=lines,
        report=report,
        models=report.by_model[:MODELS],
        chart=_chart(report.by_day),
        states=[state for state in await tracker.tenant_states() if state.tenant == tenant],
        calls=calls,
        done=DONE.get(visit.asked("done")),
        max_reason=MAX_REASON_CHARS,
    )


async def suspend(visit: Visit) -> Response:
    """Refuse a tenant's calls from now on."""
    tenant = _tenant(visit.field("tenant"))
    await visit.tracker.suspend_tenant(tenant, reason=visit.field("reason"))
    return visit.to("/tenant", name=tenant, done="suspended")


async def resume(visit: Visit) -> Response:
    """Let a tenant make calls again."""
    tenant = _tenant(visit.field("tenant"))
    lifted = await visit.tracker.resume_tenant(tenant)
    return visit.to("/tenant", name=tenant, done="resumed" if lifted else "active")


def _tenant(text: str) -> str:
    try:
        return Identity(tenant=text).tenant
    except ValueError as error:
        raise PageError(404, "No such tenant", f"There can be no tenant of this name: {error}.") from None


def _chart(days: tuple[ReportLine, ...]) -> dict[str, list[str] | list[float]]:
    """Dates and USD, for drawing only."""
    return {"days": [day.value for day in days], "usd": [day.cost_nano_usd / 1e9 for day in days]}
