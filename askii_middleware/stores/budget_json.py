"""A budget as every ledger keeps it: as JSON, amounts as exact decimal text."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from ..budgets import Budget

_AMOUNTS: Final = ("limit_usd", "limit_coins")
_AS_THEY_ARE: Final = ("period", "zone", "alert_at", "soft", "max_values", "enabled")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def written(budget: Budget) -> bytes:
    """A budget as JSON."""
    amounts = {name: getattr(budget, name) for name in _AMOUNTS}
    return _encode(
        {
            "scope": str(budget.scope),
            **{name: None if amount is None else str(amount) for name, amount in amounts.items()},
            **{name: getattr(budget, name) for name in _AS_THEY_ARE},
        }
    )


def read(text: bytes | str) -> Budget:
    """What `written` wrote."""
    return from_row(_decode(text))


def from_row(row: Mapping[str, Any]) -> Budget:
    """`read` of JSON that is decoded already."""
    amounts = {name: None if row[name] is None else Decimal(row[name]) for name in _AMOUNTS}
    return Budget(**{**row, **amounts, "alert_at": tuple(row["alert_at"])})
