"""Spans of whole days, as they are in a time zone."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field

from ..budgets import window

Day = Annotated[date, Field(ge=date(1970, 1, 1), le=date(9000, 1, 1))]


def today_in(zone: str, now_s: float) -> date:
    """The day it is in a zone. Raises ConfigurationError for what is no zone."""
    start_s, _ = window("daily", zone, now_s)
    return datetime.fromtimestamp(start_s, ZoneInfo(zone)).date()


def days_of(period: str, zone: str, now_s: float) -> tuple[date, date]:
    """The first and the last day of the present day, week or month."""
    start_s, end_s = window(period, zone, now_s)
    tz = ZoneInfo(zone)
    return datetime.fromtimestamp(start_s, tz).date(), datetime.fromtimestamp(end_s - 1, tz).date()


def last_days(days: int, zone: str, now_s: float) -> tuple[date, date]:
    """The last so many days, today included."""
    today = today_in(zone, now_s)
    return today - timedelta(days=days - 1), today
