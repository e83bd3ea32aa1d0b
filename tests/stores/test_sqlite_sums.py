"""Sums of days and of longer stretches on SQLite: whatever is written when, they add up to what the hours do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.stores import sqlite_reading as reading
from askii_middleware.stores import sqlite_sums as sums
from askii_middleware.stores.base import AggregateRow, SpendRow, SpendSums, partition_of
from askii_middleware.stores.rules import is_one
from askii_middleware.stores.sqlite import SQLiteStore
from askii_middleware.stores.sqlite_schema import _split
from askii_middleware.stores.sqlite_sql import SQL, STEPS

from .support import DAY_S, NOON_S, Client, Clock

HOURS = 24 * 40
SCOPES = ("global/3", "tenant=a", "tenant=a,user=u", "tenant=b", "user=u")
PREFIXES = ("tenant=", "user=", "tenant=a,user=", "key=")

at_hours = st.one_of(st.sampled_from((0, 1, 24)), st.integers(0, HOURS))
edges = st.lists(st.integers(-30, HOURS + 30), min_size=2, max_size=6).map(sorted)
rows = st.tuples(at_hours, st.sampled_from(SCOPES), st.sampled_from("mn"), st.integers(-5, 9))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(rows, min_size=1, max_size=12)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("sum"), at_hours),
    ),
    max_size=12,
)
Rows = dict[tuple[int, str, str, str], list[int]]


@contextmanager
def ledger() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.create_function("partition_of", 1, partition_of, deterministic=True)
        for step in STEPS:
            for statement in _split(step):
                db.execute(statement)
        yield db


def change(db: sqlite3.Connection, kept: Rows, kind: str, what: object) -> None:
    if kind == "add":
        for hour, scope, model, cost in what:  # type: ignore[attr-defined]
            db.execute(SQL["aggregate"], (hour, scope, model, "p", 1, 2, 3, cost))
            known = kept.setdefault((hour, scope, model, "p"), [0, 0, 0, 0])
            known[:] = [a + b for a, b in zip(known, (1, 2, 3, cost), strict=True)]
    elif kind == "drop" and kept:
        gone = sorted(kept)[what % len(kept)]  # type: ignore[operator]
        db.execute(SQL["drop_hour"], gone)
        del kept[gone]
    elif kind == "sum":
        with mock.patch.object(sums, "PIECE", 3):
            sums._add(db, what)  # type: ignore[arg-type]


def added(found: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*found, strict=True)]


def check(db: sqlite3.Connection, kept: Rows, asked: list[int]) -> None:
    for scopes in (SCOPES[:1], SCOPES):
        expected = []
        for first, last in pairwise(asked):
            here = {key: row for key, row in kept.items() if first <= key[0] < last and key[1] in scopes}
            expected.append(
                [
                    SpendRow(model, "p", *added([row for key, row in here.items() if key[2] == model]))
                    for model in sorted({key[2] for key in here})
                ]
            )
        assert reading.spend_over(db, scopes, [3600 * edge for edge in asked]) == expected
    for prefix in PREFIXES:
        here = {k: row for k, row in kept.items() if asked[0] <= k[0] < asked[-1] and is_one(prefix, k[1])}
        top = [
            SpendSums(scope, *added([row for key, row in here.items() if key[1] == scope]))
            for scope in {key[1] for key in here}
        ]
        top.sort(key=lambda row: (-row.cost_nano_usd, row.scope))
        assert reading.top_spend(db, prefix, 3600 * asked[0], 3600 * asked[-1], 9) == top


@given(steps, edges)
@settings(deadline=None, max_examples=150)
def test_sums_are_those_of_the_hours_whatever_is_written_dropped_or_added_up_when(
    done: list[tuple[str, object]], asked: list[int]
) -> None:
    with ledger() as db:
        kept: Rows = {}
        for kind, what in done:
            change(db, kept, kind, what)
        check(db, kept, asked)
        sums._add(db, HOURS + 1)
        check(db, kept, asked)
        for _ in range(len(kept)):
            change(db, kept, "drop", 0)
        check(db, kept, asked)
        # Nothing is left of rows that are gone.
        assert db.execute("SELECT count(*) FROM days").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM standings").fetchone() == (0,)


def test_the_last_row_that_was_added_up_may_change_go_and_come_back() -> None:
    with ledger() as db:
        kept: Rows = {}
        for kind, what in (("add", [(30, "tenant=a", "m", 5)]), ("sum", 40), ("add", [(30, "tenant=a", "m", 2)])):
            change(db, kept, kind, what)
        check(db, kept, [24, 48])
        change(db, kept, "drop", 0)
        change(db, kept, "add", [(30, "tenant=a", "m", 4)])
        assert db.execute("SELECT sum(cost_nano_usd) FROM days").fetchone() == (4,)
        check(db, kept, [24, 48])


@given(edges, st.integers(-50, HOURS + 50))
def test_the_parts_of_spans_are_the_spans(asked: list[int], summed_hour: int) -> None:
    days, parts = sums.parts_of(asked, summed_hour)
    for number, (first, last) in enumerate(pairwise(asked)):
        counted = dict.fromkeys(range(first, last), 0)
        for whole in days:
            for hour in range(whole.first * 24, whole.last * 24) if whole.span == number else ():
                counted[hour] = counted.get(hour, 0) + (hour < summed_hour)
        for part in parts:
            for hour in range(part.first, part.last) if part.span == number else ():
                if not part.beyond or hour >= summed_hour:
                    counted[hour] = counted.get(hour, 0) + part.sign
        assert all(times == (first <= hour < last) for hour, times in counted.items())


@given(st.integers(-100, 1000), st.integers(0, 500))
def test_the_runs_of_days_are_the_days_and_few(first: int, length: int) -> None:
    runs = sums.runs_of(first, first + length)
    counted = dict.fromkeys(range(first, first + length), 0)
    for run in runs:
        for day in range(run.first * run.length, run.last * run.length):
            counted[day] = counted.get(day, 0) + run.sign
    assert all(times == (first <= day < first + length) for day, times in counted.items())
    assert sum(run.last - run.first for run in runs) <= length // 16 + 9


async def test_upkeep_adds_up_hours_that_are_over_and_the_present_one_stays_as_it_is(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "askii.db"), clock=Clock())
    await store.open()
    client = Client(store, Clock())
    for hour in range(50):
        row = AggregateRow("tenant=acme", "m", "p", 1, 2, 3, 1)
        await client.settle(f"c{hour}", 1, at_s=NOON_S - 3600 * hour, aggregates=(row,))
    with closing(sqlite3.connect(tmp_path / "askii.db")) as db:
        # Nobody's hold may wait for it.
        assert await store.heartbeat("w", 60)
        assert db.execute("SELECT sum(hours) FROM days").fetchone() == (None,)
        await store.tend()
        assert db.execute("SELECT sum(hours) FROM days").fetchone() == (49,)
    midnight_s = NOON_S - DAY_S / 2
    found = await store.spend_over(["tenant=acme"], [midnight_s - DAY_S, midnight_s, midnight_s + DAY_S])
    assert [[row.requests for row in span] for span in found] == [[24], [13]]
    await store.close()
