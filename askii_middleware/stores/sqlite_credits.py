"""Credit in the hands of workers, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import sqlite3

from .base import CreditRow, Drawn, DrawRequest, Promotion
from .lines import Line, lines_for
from .rules import answer_draw, check_draw, check_forms, check_promotion, check_worker, scope_of
from .sqlite_counters import crowding, present_reader, terms
from .sqlite_ledger import is_known, place
from .sqlite_sql import SQL


def draw(db: sqlite3.Connection, request: DrawRequest, now_s: float) -> Drawn:
    """See `Store.draw`."""
    holder = request.holder
    forms_version, version, alive_until_s, drawn = db.execute(SQL["drawing"], (holder,)).fetchone()
    check_forms(request, forms_version)
    check_worker(holder, alive_until_s, now_s)
    check_draw(request)
    stored = terms(db, [tuple([ask.match for ask in request.asks])])
    parts = [lines_for(ask.match, stored, request.windows, now_s, request.rate) for ask in request.asks]

    def granted(counter: str) -> int:
        return _credit(db, counter, holder)[0]

    def give(line: Line, nano_usd: int) -> None:
        db.execute(SQL["give_credit"], (line.counter, holder, nano_usd, line.end_s))

    is_new = request.sequence > drawn
    if is_new:
        db.execute(SQL["drew"], (holder, request.sequence))
        db.executemany(SQL["take_credit"], [(counter, holder, nano_usd) for counter, nano_usd in request.returns])
    read = present_reader(db, now_s)
    lines = answer_draw(request, parts, crowding(db), read, granted, give if is_new else None)
    return Drawn(now_s, version, lines)


def promote(db: sqlite3.Connection, promotion: Promotion, now_s: float) -> None:
    """See `Store.promote`."""
    call_id, (holder, counters, _) = promotion.call_id, promotion.credit
    if is_known(db, call_id):
        return
    _, _, alive_until_s, _ = db.execute(SQL["drawing"], (holder,)).fetchone()
    check_worker(holder, alive_until_s, now_s)

    def left(counter: str) -> int:
        granted, used = _credit(db, counter, holder)
        return granted - used

    taken = check_promotion(promotion, left, present_reader(db, now_s))
    db.executemany(SQL["take_credit"], [(counter, holder, nano_usd) for counter, nano_usd in taken])
    place(db, call_id, holder, counters, promotion.admission, now_s + promotion.deadline_s, promotion.about)


def rows(db: sqlite3.Connection, now_s: float) -> list[CreditRow]:
    """See `Store.credits`."""
    return [CreditRow(*row)._replace(alive=bool(row[-1])) for row in db.execute(SQL["credits"], (now_s,))]


def reclaim(db: sqlite3.Connection, scope: str | None, now_s: float) -> list[CreditRow]:
    """See `Store.reclaim`."""
    taken = [row for row in rows(db, now_s) if not row.alive and (scope is None or scope_of(row.counter) == scope)]
    db.executemany(SQL["reclaim"], [(row.counter, row.holder) for row in taken])
    return taken


def _credit(db: sqlite3.Connection, counter: str, holder: str) -> tuple[int, int]:
    """Granted and used."""
    row: tuple[int, int] | None = db.execute(SQL["credit"], (counter, holder)).fetchone()
    return (0, 0) if row is None else row
