"""Sums of hours over days, on SQLite: see `days`, `standings` and `summed` in schema_6.sql."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .rules import hour_of
from .sqlite_database import Database
from .sqlite_sql import SQL

PIECE = 250
"""Rows that one transaction adds: some 5 ms, in which others wait."""
PIECES = 8
"""Transactions of one catching up, after each heartbeat: some 500,000 rows an hour in each worker."""
LENGTHS = (16, 4, 1)
"""Days that a row of `standings` is about."""


class Whole(NamedTuple):
    """Days, from one to before another, that count for a span."""

    span: int
    first: int
    last: int


class Part(NamedTuple):
    """Hours, from one to before another, that count for a span (`sign` 1) or are to be taken off (-1)."""

    span: int
    sign: int
    first: int
    last: int
    beyond: bool = False
    """Only the rows that are in no sum yet."""


def parts_of(edges: Sequence[int], summed_hour: int) -> tuple[list[Whole], list[Part]]:
    """What the spans between edges, in hours, are made of: the days whose midnights are nearest, and the hours between
    midnights and edges. `summed_hour`: the first hour that the days may lack rows of.
    """
    days: list[Whole] = []
    hours: list[Part] = []
    for span, (first, last) in enumerate(pairwise(edges)):
        begin, end = (first + 12) // 24, (last + 12) // 24
        if begin >= end:
            hours.append(Part(span, 1, first, last))
            continue
        days.append(Whole(span, begin, end))
        hours += [
            Part(span, 1, first, begin * 24),
            Part(span, -1, begin * 24, first),
            Part(span, 1, end * 24, last),
            Part(span, -1, last, end * 24),
            Part(span, 1, max(begin * 24, summed_hour), end * 24, beyond=True),
        ]
    return days, [part for part in hours if part.first < part.last]


class Run(NamedTuple):
    """Stretches of `length` days, numbered in such lengths, from one to before another, that count (`sign` 1) or are to
    be taken off (-1).
    """

    length: int
    sign: int
    first: int
    last: int


def runs_of(first: int, last: int, lengths: Sequence[int] = LENGTHS) -> list[Run]:
    """Days, from one to before another, as few stretches: the longest whose ends are nearest, and what is beside them.
    30 days are 6 on average.
    """
    if first > last:
        return [run._replace(sign=-run.sign) for run in runs_of(last, first, lengths)]
    length, *shorter = lengths
    begin, end = (first + length // 2) // length, (last + length // 2) // length
    found = [Run(length, 1, begin, end)] if begin < end else []
    if not shorter:
        return found
    if not found:
        return runs_of(first, last, shorter)
    return found + runs_of(first, begin * length, shorter) + runs_of(end * length, last, shorter)


async def catch_up(database: Database, now_s: float) -> None:
    """Add hours that are over to the sums: a bounded number of rows, in transactions of a bounded size."""
    for _ in range(PIECES):
        if await database.write_aside(lambda db: _add(db, hour_of(now_s))) < PIECE:
            return


def _add(db: sqlite3.Connection, before_hour: int) -> int:
    found = db.execute(SQL["not_summed"], (before_hour, PIECE)).fetchall()
    db.executemany(SQL["sum_up"], found)
    if found:
        db.execute(SQL["summed"], found[-1][:4])
    return len(found)
