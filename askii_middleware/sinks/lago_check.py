"""Looks at what Lago would accept and never bill: `askii check`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from .checking import Finding
from .lago_api import LagoApi, LagoApiError, Metric

AT_ONCE: Final = 8
"""Requests beside one another; Lago's cloud takes 500 a second."""
MAX_NAMED: Final = 50
"""Tenants to name in one line."""


async def check_metrics(api: LagoApi, metrics: Mapping[str, str]) -> list[Finding]:
    """Whether each metric (by code, with the property it must sum) exists and is made so."""
    findings: list[Finding] = []
    try:
        for code, field in metrics.items():
            findings.append(judge_metric(code, field, await api.metric(code), only=len(metrics) == 1))
    except LagoApiError as error:
        return [Finding("unreachable", str(error))]
    return findings


def judge_metric(code: str, field: str, found: Metric | None, *, only: bool) -> Finding:
    """A metric that is missing fails where nothing else is billed; of several, it may be left out on purpose."""
    if found is None:
        return Finding(
            "failed" if only else "warning", f"there is no metric {code}: its events are accepted and never billed"
        )
    if found.aggregation_type != "sum_agg" or found.field_name != field:
        return Finding(
            "failed",
            f"the metric {code} is {found.aggregation_type or 'nothing'} of {found.field_name or 'nothing'};"
            f" it must be sum_agg of {field}",
        )
    if found.recurring:
        return Finding("failed", f"the metric {code} is recurring: what one period used is billed again in the next")
    return Finding("ok", f"the metric {code} sums {field}")


async def check_subscriptions(api: LagoApi, subscriptions: Mapping[str, str]) -> list[Finding]:
    """Whether Lago has an active subscription for every tenant."""
    findings: list[Finding] = []
    nameless = [tenant for tenant, external_id in subscriptions.items() if not external_id.strip()]
    if nameless:
        findings.append(
            Finding("failed", f"no subscription is set for {_named(nameless)}: they go to the dead letters")
        )
    asked = {tenant: external_id for tenant, external_id in subscriptions.items() if external_id.strip()}
    turns = asyncio.Semaphore(AT_ONCE)

    async def known(external_id: str) -> bool:
        async with turns:
            return await api.subscription(external_id) is not None

    wanted = sorted(set(asked.values()))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {external_id: group.create_task(known(external_id)) for external_id in wanted}
    except* LagoApiError as errors:
        findings.append(Finding("unreachable", str(errors.exceptions[0])))
    if any(finding.result == "unreachable" for finding in findings):
        return findings
    unknown = [
        tenant if tenant == external_id else f"{tenant} ({external_id})"
        for tenant, external_id in asked.items()
        if not tasks[external_id].result()
    ]
    if unknown:
        findings.append(
            Finding(
                "failed",
                f"no active subscription for {_named(unknown)}: Lago accepts their events and never bills them",
            )
        )
    findings.append(Finding("ok", f"{len(asked) - len(unknown)} of {len(subscriptions)} tenants have a subscription"))
    return findings


def _named(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(sorted(names)[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
