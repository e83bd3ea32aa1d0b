"""Stored budgets, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection

import msgspec

from ..budgets import Budget
from .budget_json import read, written
from .rules import form_of
from .sqlite_sql import SQL

_ALL = -1
"""SQLite's word for no limit."""
_encode = msgspec.json.Encoder().encode


def put(db: sqlite3.Connection, budget: Budget) -> None:
    """See `Store.set_budget`."""
    terms = budget.terms
    before = db.execute(SQL["form_of"], (budget.key,)).fetchone()
    form = form_of(budget)
    known = _has_form(db, form)
    db.execute(
        SQL["set_budget"],
        (
            budget.key,
            *form,
            terms.limit_nano_usd,
            terms.limit_coins,
            terms.enabled,
            terms.soft,
            terms.max_values,
            _encode(terms.alert_at_ppm).decode() if terms.alert_at_ppm else None,
            written(budget).decode(),
        ),
    )
    db.execute(SQL["edited"])
    if not known or (before is not None and not _has_form(db, before)):
        db.execute(SQL["new_forms"])


def remove(db: sqlite3.Connection, key: str) -> bool:
    """See `Store.remove_budget`."""
    form = db.execute(SQL["form_of"], (key,)).fetchone()
    if form is None:
        return False
    db.execute(SQL["remove_budget"], (key,))
    db.execute(SQL["edited"])
    if not _has_form(db, form):
        db.execute(SQL["new_forms"])
    return True


def _has_form(db: sqlite3.Connection, form: tuple[str, str, str]) -> bool:
    return bool(db.execute(SQL["has_form"], form).fetchone()[0])


def some(db: sqlite3.Connection, after: str, limit: int | None, contains: str) -> list[Budget]:
    """See `Store.budgets`."""
    asked = (after, contains, _ALL if limit is None else max(limit, 0))
    return [read(text) for (text,) in db.execute(SQL["budgets"], asked)]


def of(db: sqlite3.Connection, keys: Collection[str]) -> list[Budget]:
    """See `Store.budgets_of`."""
    return [read(text) for (text,) in db.execute(SQL["budgets_of"], (_encode(list(keys)).decode(),))]


def on(db: sqlite3.Connection, named: Callable[[str], bool]) -> list[str]:
    """The keys of those whose scopes are `named`."""
    return [key for (key,) in db.execute(SQL["budget_keys"]) if named(key.rpartition("|")[0])]
