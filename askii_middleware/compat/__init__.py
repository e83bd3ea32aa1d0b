"""The names and shapes of the guides users already follow, over our tracker: their code runs with its import lines
changed to this module. docs/guides.md says what stands where, and what differs on purpose.

Nothing is read or opened by the import: the process's ledger is when the first of these is used.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..currency import (
    askii_coins_to_usd,
    convert_budget_to_askii_coins,
    get_askii_coin_exchange_rate,
    usd_to_askii_coins,
)
from ..errors import BudgetExceededError
from ..pricing import PricingConfig, cost_per_token
from .checks import RouterBudgetLimiting, TeamRow, UserAPIKeyAuth, _team_max_budget_check, _virtual_key_max_budget_check
from .lago import LagoLogger
from .model_pricing import MODEL_PRICING
from .shapes import BudgetPeriod, KeyBudget
from .tracker import CostTracker, cost_tracker, get_cost_tracker

if TYPE_CHECKING:
    from .routes import router as router

__all__ = [
    "MODEL_PRICING",
    "BudgetExceededError",
    "BudgetPeriod",
    "CostTracker",
    "KeyBudget",
    "LagoLogger",
    "PricingConfig",
    "RouterBudgetLimiting",
    "TeamRow",
    "UserAPIKeyAuth",
    "_team_max_budget_check",
    "_virtual_key_max_budget_check",
    "askii_coins_to_usd",
    "convert_budget_to_askii_coins",
    "cost_per_token",
    "cost_tracker",
    "get_askii_coin_exchange_rate",
    "get_cost_tracker",
    "usd_to_askii_coins",
]


class _Module(ModuleType):
    """So that `compat.set_verbose = True` does something."""

    @property
    def set_verbose(self) -> bool:
        """Whether this package's loggers pass on what they say for debugging."""
        return logging.getLogger("askii_middleware").getEffectiveLevel() <= logging.DEBUG

    @set_verbose.setter
    def set_verbose(self, verbose: bool) -> None:
        logging.getLogger("askii_middleware").setLevel(logging.DEBUG if verbose else logging.NOTSET)

    @property
    def router(self) -> Any:
        """The billing endpoints for `app.include_router`. Raises MissingExtraError without FastAPI."""
        return import_module(".routes", __name__).router


sys.modules[__name__].__class__ = _Module
