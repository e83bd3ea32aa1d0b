"""Budgets, exact metering and billing for LLM traffic.

`AskiiMiddleware` wraps an ASGI application; `CostTracker` does the same for calls made in code. Names are imported on
first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .budgets import Budget as Budget
    from .budgets import Scope as Scope
    from .channels.base import AlertNotice as AlertNotice
    from .channels.callback import CallbackChannel as CallbackChannel
    from .channels.email import EmailChannel as EmailChannel
    from .channels.log import LogChannel as LogChannel
    from .channels.webhook import WebhookChannel as WebhookChannel
    from .corrections import AdjustmentError as AdjustmentError
    from .corrections import UnknownCallError as UnknownCallError
    from .currency import askii_coins_to_usd as askii_coins_to_usd
    from .currency import convert_budget_to_askii_coins as convert_budget_to_askii_coins
    from .currency import get_askii_coin_exchange_rate as get_askii_coin_exchange_rate
    from .currency import usd_to_askii_coins as usd_to_askii_coins
    from .decorator import Param as Param
    from .decorator import tracked as tracked
    from .default_tracker import get_cost_tracker as get_cost_tracker
    from .errors import AskiiError as AskiiError
    from .errors import BudgetExceededError as BudgetExceededError
    from .errors import ConfigurationError as ConfigurationError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import SinkError as SinkError
    from .errors import StoreError as StoreError
    from .errors import TenantSuspendedError as TenantSuspendedError
    from .errors import UnknownModelError as UnknownModelError
    from .identity import Identity as Identity
    from .middleware import AskiiMiddleware as AskiiMiddleware
    from .pricing import ModelPrice as ModelPrice
    from .pricing import PricingConfig as PricingConfig
    from .pricing import cost_per_token as cost_per_token
    from .records import UsageRecord as UsageRecord
    from .repricing import Repriced as Repriced
    from .settings import Settings as Settings
    from .settings import load_settings as load_settings
    from .sinks.lago import LagoSink as LagoSink
    from .sinks.log import LogSink as LogSink
    from .sinks.memory import MemorySink as MemorySink
    from .sinks.webhook import WebhookSink as WebhookSink
    from .tracker import CostTracker as CostTracker
    from .usage import TokenUsage as TokenUsage

_HOMES = {
    "budgets": ("Budget", "Scope"),
    "channels.base": ("AlertNotice",),
    "channels.callback": ("CallbackChannel",),
    "channels.email": ("EmailChannel",),
    "channels.log": ("LogChannel",),
    "channels.webhook": ("WebhookChannel",),
    "corrections": ("AdjustmentError", "UnknownCallError"),
    "currency": (
        "askii_coins_to_usd",
        "convert_budget_to_askii_coins",
        "get_askii_coin_exchange_rate",
        "usd_to_askii_coins",
    ),
    "decorator": ("Param", "tracked"),
    "errors": (
        "AskiiError",
        "BudgetExceededError",
        "ConfigurationError",
        "MissingExtraError",
        "SinkError",
        "StoreError",
        "TenantSuspendedError",
        "UnknownModelError",
    ),
    "identity": ("Identity",),
    "middleware": ("AskiiMiddleware",),
    "pricing": ("ModelPrice", "PricingConfig", "cost_per_token"),
    "records": ("UsageRecord",),
    "repricing": ("Repriced",),
    "settings": ("Settings", "load_settings"),
    "sinks.lago": ("LagoSink",),
    "sinks.log": ("LogSink",),
    "sinks.memory": ("MemorySink",),
    "sinks.webhook": ("WebhookSink",),
    "default_tracker": ("get_cost_tracker",),
    "tracker": ("CostTracker",),
    "usage": ("TokenUsage",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
