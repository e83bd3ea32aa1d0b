"""Ledgers that earlier versions wrote."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest

from askii_middleware.aggregates import EVERYTHING
from askii_middleware.errors import StoreError
from askii_middleware.stores import open_store
from askii_middleware.stores.base import KeyRow, SpendRow, partition_of
from askii_middleware.stores.sqlite_schema import APPLICATION_ID
from askii_middleware.stores.sqlite_sql import STEPS

from .credit_support import drawn_line
from .support import NOON_S, Client, Clock

OLD_BUDGETS = [
    (
        "tenant=*|daily",
        "tenant",
        "daily",
        "UTC",
        1000,
        '{"scope":"tenant=*","limit_usd":"0.000001","alert_at":[0.5,1]}',
    ),
    ("end_user=*|daily", "end_user", "daily", "UTC", 50, '{"scope":"end_user=*","limit_usd":"5e-8","alert_at":[]}'),
]


def old_ledger(path: Path, version: int) -> None:
    """A file as that version made it, with a worker, a carry, an open call and two budgets."""
    with contextlib.closing(sqlite3.connect(path)) as old:
        for step in STEPS[:version]:
            old.executescript(step)
        old.executescript(f"PRAGMA user_version = {version}; PRAGMA application_id = {APPLICATION_ID}")
        old.execute("INSERT INTO workers VALUES ('w', ?, NULL)", (NOON_S + 60,))
        old.execute("INSERT INTO carries VALUES ('acme', 7)")
        old.execute("UPDATE meta SET value = 1 WHERE name = 'forms_version'")
        counter = "tenant=acme|daily|UTC|1767225600"
        old.execute(
            "INSERT INTO holds VALUES ('open', 'held', ?, 'w', 100, ?, 0, ?, x'80', x'7b7d')",
            (NOON_S + 600, f'[["{counter}",1767312000]]', NOON_S),
        )
        old.execute("INSERT INTO counters VALUES (?, 'w', 100, 1767312000)", (counter,))
        for key, shape, period, zone, limit, budget in OLD_BUDGETS:
            whole = budget[:-1] + ',"limit_coins":null,"period":"daily","zone":"UTC","enabled":true}'
            old.execute(
                "INSERT INTO budgets VALUES (?, ?, ?, ?, ?, NULL, 1, ?)", (key, shape, period, zone, limit, whole)
            )
        old.commit()


@pytest.mark.parametrize("version", [1, 2])
async def test_a_ledger_of_an_earlier_version_opens_and_keeps_what_is_in_it(
    version: int, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "askii.db"
    old_ledger(path, version)
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.refresh()
    assert await client.spent_held() == (0, 100)
    assert (await client.extend("open", 250)).hold_nano_usd == 250
    await client.reserve("a")
    assert await client.defer("a")
    assert await client.store.operation("k:a") is not None
    await client.settle("open", 250)
    assert await client.spent_held() == (250, 100)
    await client.store.close()
    with contextlib.closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
        assert new.execute("SELECT coins, pico_coins FROM carries").fetchall() == [(0, 250_000_000_007)]


async def test_budgets_of_an_earlier_version_report_and_bound_invented_values_from_now_on(
    clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "askii.db"
    old_ledger(path, 2)
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.refresh()
    assert [(b.key, b.alert_at, b.max_values) for b in await client.store.budgets()] == [
        ("end_user=*|daily", (), None),
        ("tenant=*|daily", (0.5, 1), None),
    ]
    await client.settle("open", 500)
    assert [alert.share_ppm for alert in await client.alerts()] == [500_000]
    await client.store.close()
    with contextlib.closing(sqlite3.connect(path)) as new:
        assert new.execute("SELECT key, max_values, alert_at_ppm FROM budgets ORDER BY key").fetchall() == [
            ("end_user=*|daily", 10_000, None),
            ("tenant=*|daily", None, "[500000,1000000]"),
        ]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_worker_of_an_earlier_version_draws_credit_beside_what_its_calls_hold(
    version: int, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "askii.db"
    old_ledger(path, version)
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.refresh()
    line = await drawn_line(client, 1, 9999)
    assert (line.granted_nano_usd, line.state.held_nano_usd) == (900, 1000)
    assert (await client.settle("open", -1000)).coins == 0
    assert await client.store.item_versions() == {}
    await client.store.close()
    with contextlib.closing(sqlite3.connect(path)) as new:
        assert new.execute("SELECT coins, pico_coins FROM carries").fetchall() == [(-1, 7)]


async def test_an_old_ledger_that_was_brought_up_to_date_has_the_schema_of_a_new_one(
    clock: Clock, tmp_path: Path
) -> None:
    schemas = []
    for name in ("old.db", "new.db"):
        if name == "old.db":
            old_ledger(tmp_path / name, 1)
        store = open_store(f"sqlite:///{tmp_path / name}", clock=clock)
        await store.open()
        await store.close()
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as file:
            schemas.append(file.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall())
    assert schemas[0] == schemas[1]


async def test_keys_and_records_of_version_5_are_found_by_what_came_later(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.create_function("partition_of", 1, partition_of, deterministic=True)
        for step in STEPS[:5]:
            old.executescript(step)
        old.executescript(f"PRAGMA user_version = 5; PRAGMA application_id = {APPLICATION_ID}")
        for number, tenant in enumerate(("acme", "other", "acme")):
            row = KeyRow(id=f"k{number}", sha256=f"{number:064x}", tenant=tenant)
            old.execute("INSERT INTO keys VALUES (?, ?, ?)", (row.id, row.sha256, msgspec.json.encode(row)))
            old.execute(
                "INSERT INTO records (call_id, tenant, candidate, admitted_at_s, record, partition, place) "
                "VALUES (?, ?, 0, ?, ?, ?, ?)",
                (f"c{number}", tenant, NOON_S, b'{"cost_nano_usd":7}', partition_of(tenant), 1 + number // 2),
            )
        old.commit()
    store = open_store(f"sqlite:///{path}", clock=clock)
    await store.open()
    assert [row.id for row in await store.keys(tenant="acme")] == ["k0", "k2"]
    first = await store.find_key(f"{0:064x}")
    assert first == KeyRow(id="k0", sha256=f"{0:064x}", tenant="acme")
    await store.put_key(msgspec.structs.replace(first, sha256="aa" * 32, former_sha256=first.sha256))
    assert await store.find_key("aa" * 32) == await store.find_key(f"{0:064x}")
    with pytest.raises(StoreError, match="k1"):
        await store.put_key(KeyRow(id="k1", sha256=first.sha256, tenant="other"))
    assert [seq for seq, _ in await store.latest("acme", 9)] == [3, 1]
    # Their age is that of their calls, since nobody wrote down when they were settled.
    clock.advance(9 * 86_400)
    assert await store.prune(records_before_s=clock.now_s - 8 * 86_400, aggregates_before_s=None, limit=9) == 1
    assert [seq for seq, _ in await store.records()] == [2, 3]
    totals = await store.totals()
    assert (totals.records, totals.records_nano_usd) == (3, 21)
    await store.close()


async def test_the_sums_of_everything_hold_the_hours_before_there_were_any(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.create_function("partition_of", 1, partition_of, deterministic=True)
        for step in STEPS[:5]:
            old.executescript(step)
        old.executescript(f"PRAGMA user_version = 5; PRAGMA application_id = {APPLICATION_ID}")
        hour = NOON_S // 3600
        for scope in ("tenant=acme", "tenant=other", "user=u", "key=k"):
            old.execute("INSERT INTO aggregates VALUES (?, ?, 'm', 'p', 1, 2, 3, -4)", (hour, scope))
            old.execute("INSERT INTO aggregates VALUES (?, ?, 'm2', 'p', 1, 2, 3, 5)", (hour + 1, scope))
        old.commit()
    store = open_store(f"sqlite:///{path}", clock=clock)
    await store.open()
    spans = await store.spend_over(EVERYTHING, (NOON_S, NOON_S + 3600, NOON_S + 7200))
    assert spans == [[SpendRow("m", "p", 2, 4, 6, -8)], [SpendRow("m2", "p", 2, 4, 6, 10)]]
    assert (await store.totals())[:2] == (4, 2)
    await store.close()
