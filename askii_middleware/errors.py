"""The errors users meet. Every one says what happened and what to do about it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

Reason = Literal["spent", "held"]
"""Why a budget refused: the money is gone (`spent`), or running calls hold what is left (`held`)."""
LAST_S = 253_402_300_799
"""9999-12-31T23:59:59Z, for windows without an end: dates go no further."""


class AskiiError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigurationError(AskiiError):
    """A setting is missing, unknown or contradictory. The message names it."""


class MissingExtraError(AskiiError):
    """An optional dependency is needed and not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the extra {extra!r}: pip install 'askii-middleware[{extra}]'")
        self.extra = extra


class UnknownModelError(AskiiError):
    """A model has no price, and `unknown_price` is `"reject"`."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"model {model[:256]!r} has no price for such calls: set one with askii prices set or in "
            f'[pricing.{model[:256]!r}], or set unknown_price to "default" or "allow"'
        )
        self.model = model


class StoreError(AskiiError):
    """The ledger could not be read or written."""


class SinkError(AskiiError):
    """A sink is misconfigured or refused to start."""


class TenantSuspendedError(AskiiError):
    """The tenant is suspended: none of its calls may begin until somebody resumes it.

    Attributes:
        tenant: who is suspended.
        reason: what was said when it was; meant for operators, so clients are not told.
    """

    def __init__(self, tenant: str, reason: str = "") -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"the tenant {tenant!r} is suspended{why} (askii tenant resume lifts it)")
        self.tenant = tenant
        self.reason = reason


class BudgetExceededError(AskiiError):
    """No candidate model fits every budget that applies to the call.

    Attributes:
        current_cost: what is spent and held on the deciding budget, in coins at the call's rate.
        max_budget: its limit, in coins at the call's rate.
        message: the same with USD and coins.
        scope: the deciding budget's scope in text form, such as `tenant=acme`.
        reason: `spent` or `held`.
        resets_at: when the deciding budget's window ends.
    """

    def __init__(
        self,
        message: str,
        *,
        current_cost: float,
        max_budget: float,
        scope: str,
        reason: Reason,
        resets_at_s: float,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.current_cost = current_cost
        self.max_budget = max_budget
        self.scope = scope
        self.reason: Reason = reason
        self.resets_at = datetime.fromtimestamp(min(resets_at_s, LAST_S), UTC)


Denial = BudgetExceededError | TenantSuspendedError
"""What an admission answers with where a call may not begin."""
