"""What is older than it has to be leaves the ledger, a bounded number of rows at a time, once an hour."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from .errors import ConfigurationError
from .log_fields import fields
from .stores.base import Store
from .waiting import bounded

logger = logging.getLogger(__name__)

EVERY_S: Final = 3600.0
AT_ONCE: Final = 5000
DAY_S: Final = 86_400.0
MIN_DAYS: Final = 8
_KIND: Final = "retention"
_NAME: Final = "turn"


class Retention:
    """Prunes one ledger. Of all workers one does it in each hour: whoever takes the turn.

    Args:
        records_days: for how long delivered records are kept; None: for good.
        aggregates_days: for how long hourly sums are kept; None: for good.
    """

    def __init__(
        self,
        store: Store,
        *,
        records_days: int | None,
        aggregates_days: int | None,
        clock: Callable[[], float],
        answer_timeout_s: float,
    ) -> None:
        for name, days in (("records_days", records_days), ("aggregates_days", aggregates_days)):
            if days is not None and days < MIN_DAYS:
                raise ConfigurationError(f"{name}: {days} is less than {MIN_DAYS}: so far charges may look back")
        self._store = store
        self._records_days = records_days
        self._aggregates_days = aggregates_days
        self._clock = clock
        self._answer_timeout_s = answer_timeout_s
        self._next_s = float("-inf")
        self._more = False

    async def tend(self) -> None:
        """Drop what is too old, if it is time. Raises StoreError and TimeoutError."""
        now_s = self._clock()
        if self._records_days is None and self._aggregates_days is None:
            return
        # A clock that was set back must not put it off for long.
        if not self._more and self._next_s - EVERY_S <= now_s < self._next_s:
            return
        self._next_s = now_s + EVERY_S
        if not self._more and not await bounded(
            self._store.put_item(_KIND, _NAME, b"{}", until_s=now_s + EVERY_S, only_new=True), self._answer_timeout_s
        ):
            return
        self._more = False
        dropped = await bounded(
            self._store.prune(
                records_before_s=self._before(self._records_days, now_s),
                aggregates_before_s=self._before(self._aggregates_days, now_s),
                limit=AT_ONCE,
            ),
            self._answer_timeout_s,
        )
        self._more = dropped >= AT_ONCE
        if dropped:
            logger.info("retention: %d rows were old enough to go", dropped, extra=fields("pruned", count=dropped))

    @staticmethod
    def _before(days: int | None, now_s: float) -> float | None:
        return None if days is None else now_s - days * DAY_S
