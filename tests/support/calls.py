"""Calls as the tracker makes them, for tests of what comes after."""

from __future__ import annotations

from typing import Any

from askii_middleware.calls import Call, CallSpec
from askii_middleware.currency import DEFAULT_RATE
from askii_middleware.identity import Identity


def make_call(**changes: Any) -> Call:
    """An admitted call of tenant acme: prompt at most 400 tokens (100 expected), answer at most 50."""
    spec = CallSpec(model="gpt-4o", api="openai.chat", provider="openai", input_tokens=400, input_estimate=100)
    fields: dict[str, Any] = {
        "id": "call-1",
        "spec": spec,
        "identity": Identity(tenant="acme"),
        "model": "gpt-4o",
        "price": None,
        "held_nano_usd": 1_500_000,
        "held": True,
        "input_bound": 400,
        "output_bound": 50,
        "covered_tokens": 50,
        "write_output_limit": None,
        "clamped": False,
        "matches": (),
        "windows": {},
        "rate": DEFAULT_RATE,
        "admitted_at_s": 1_767_225_600.123,
        "started_s": 0.0,
    }
    return Call(**{**fields, **changes})
