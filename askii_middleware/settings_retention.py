"""`[retention]`: for how long the ledger keeps what nobody needs any more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .settings_tables import Number, Table

Days = Annotated[int, Number, Field(ge=8, le=36_500)]
"""Budgets, late charges and repeated ones look back 8 days at most."""


class RetentionSettings(Table):
    """`[retention]`. None: for good."""

    records_days: Days | None = None
    """Usage records that every sink has got."""
    aggregates_days: Days | None = None
    """Hourly sums, which reports are made of."""
