"""Log lines of what can happen thousands of times a minute: refusals and store outages as one line with a count.

Both tables are bounded, and written when their minute is over (see `tick`) and at the end (`flush`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .currency import nano_to_coins_text, nano_to_usd_text
from .log_fields import fields, shown

if TYPE_CHECKING:
    from .calls import Call
    from .errors import BudgetExceededError

budget_logger = logging.getLogger("askii_middleware.budgets")
store_logger = logging.getLogger("askii_middleware.store")
money_logger = logging.getLogger("askii_middleware.money")

MAX_TENANTS = 1000
MINUTE_S = 60


@dataclass(slots=True)
class _Refusals:
    """A tenant's refusals of one minute. Scope, reason, end of the window and call are those of the first."""

    scope: str
    reason: str
    resets_at: str
    call_id: str
    count: int = 0
    held: int = 0


class WrongTokens:
    """Counts requests that showed no valid credentials, for one line a minute at most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self._told_at_s: float | None = None

    def note(self) -> int | None:
        """There was another. How many the line to write now stands for; None: write none yet."""
        self._count += 1
        now_s = self._clock()
        if self._told_at_s is not None and 0 <= now_s - self._told_at_s < MINUTE_S:
            return None
        count, self._count, self._told_at_s = self._count, 0, now_s
        return count


class EventLog:
    """Counts events by minute and writes them.

    Args:
        clock: Unix seconds.
        max_tenants: so many have lines of their own in one minute; all further ones share one.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, max_tenants: int = MAX_TENANTS) -> None:
        self._clock = clock
        self._max_tenants = max_tenants
        self._minute = -1
        self._refused: dict[str | None, _Refusals] = {}
        """By tenant; None: those beyond `max_tenants`."""
        self._failed: dict[str, int] = {}
        """By operation, how often the store failed since the line that told of the first time in this minute."""

    def refused(self, tenant: str, error: BudgetExceededError, call_id: str) -> None:
        """A budget has refused a call."""
        self.tick()
        key = tenant if tenant in self._refused or len(self._refused) < self._max_tenants else None
        found = self._refused.get(key)
        if found is None:
            resets_at = error.resets_at.isoformat().replace("+00:00", "Z")
            found = self._refused[key] = _Refusals(error.scope, error.reason, resets_at, call_id)
        found.count += 1
        found.held += error.reason == "held"

    def store_failed(self, operation: str, error: BaseException, call_id: str | None = None) -> None:
        """The store did not do something: told at once the first time in a minute, then counted."""
        self.tick()
        if operation in self._failed:
            self._failed[operation] += 1
            return
        self._failed[operation] = 0
        store_logger.warning(
            "%s: the store did not take its %s (%s); further ones are counted for a minute",
            "this worker" if call_id is None else f"call {shown(call_id)}",
            operation,
            str(error) or type(error).__name__,
            extra=fields("store_failed", operation=operation, call_id=call_id, error_type=type(error).__name__),
        )

    def tick(self) -> None:
        """Write what was counted, if its minute is over."""
        minute = int(self._clock() // MINUTE_S)
        if minute != self._minute:
            self.flush()
            self._minute = minute

    def flush(self) -> None:
        """Write what was counted until now."""
        refused, self._refused = self._refused, {}
        failed, self._failed = self._failed, {}
        for tenant, found in refused.items():
            budget_logger.warning(
                "%s: calls refused in a minute: %d, of these because running calls hold what is left: %d; the first "
                "was %s, refused by %s until %s",
                "further tenants" if tenant is None else f"tenant {shown(tenant)}",
                found.count,
                found.held,
                found.call_id,
                shown(found.scope),
                found.resets_at,
                extra=fields(
                    "budget_exceeded",
                    tenant=tenant,
                    scope=found.scope,
                    reason=found.reason,
                    count=found.count,
                    held_count=found.held,
                    resets_at=found.resets_at,
                    call_id=found.call_id,
                ),
            )
        for operation, count in failed.items():
            if count:
                store_logger.warning(
                    "the store did not take %d more of %s within a minute",
                    count,
                    operation,
                    extra=fields("store_failing", operation=operation, count=count),
                )


def log_charge(call: Call, cost_nano_usd: int) -> None:
    """A charge's way from USD to coins. Costs a look at the level unless DEBUG is on."""
    if money_logger.isEnabledFor(logging.DEBUG):
        usd, coins = nano_to_usd_text(cost_nano_usd), nano_to_coins_text(cost_nano_usd, call.rate)
        money_logger.debug(
            "call %s: %s USD = %s Askii Coins at %r coins per USD",
            shown(call.id),
            usd,
            coins,
            call.rate.value,
            extra=fields(
                "converted",
                call_id=call.id,
                tenant=call.identity.tenant,
                usd=usd,
                coins=coins,
                exchange_rate=call.rate.value,
            ),
        )
