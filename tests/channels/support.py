"""What the tests of channels share."""

from __future__ import annotations

from typing import Any

from askii_middleware.alerts import notice_of
from askii_middleware.channels import AlertNotice
from askii_middleware.currency import DEFAULT_RATE
from askii_middleware.stores.base import Alert

NOW_S = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""


def alert(seq: int = 1, **fields: Any) -> Alert:
    given: dict[str, Any] = {
        "seq": seq,
        "id": f"{seq:032x}",
        "budget": "tenant=*|daily",
        "scope": "tenant=acme",
        "period": "daily",
        "share_ppm": 900_000,
        "limit_nano_usd": 10_000_000_000,
        "spent_nano_usd": 9_100_000_000,
        "at_s": NOW_S + 3600.5,
        "resets_at_s": int(NOW_S) + 86_400,
    }
    return Alert(**{**given, **fields})


def notice(seq: int = 1, **fields: Any) -> AlertNotice:
    return notice_of(alert(seq, **fields), DEFAULT_RATE)
