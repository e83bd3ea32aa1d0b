"""All operations, from which the routes and the OpenAPI document are made. The first route that fits wins."""

from __future__ import annotations

from typing import Any, Final

from . import alerts, budget_of_key, budgets, explain, keys, outbox, pricing, report, spend, stats, tenants
from .operation import Operation

OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    *stats.OPERATIONS,
    *spend.OPERATIONS,
    *budget_of_key.OPERATIONS,
    *budgets.OPERATIONS,
    *pricing.OPERATIONS,
    *keys.OPERATIONS,
    *report.OPERATIONS,
    *alerts.OPERATIONS,
    *explain.OPERATIONS,
    *outbox.OPERATIONS,
    *tenants.OPERATIONS,
)
