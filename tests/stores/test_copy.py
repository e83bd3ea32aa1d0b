"""A ledger that moves to another engine in the middle of its life goes on there as if nothing had happened."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import redis

from askii_middleware.cli import main
from askii_middleware.errors import StoreError
from askii_middleware.stores import open_copier, open_store
from askii_middleware.stores.base import PARTITIONS, KeyRow, partition_of
from askii_middleware.stores.copying import (
    TABLES,
    Compared,
    Row,
    alive_workers,
    check_target,
    copy_ledger,
)

from .credit_support import draw, settle_from, use
from .support import DAY_S, Client, Clock, again, budget, dead, delivered

ENGINES = ["sqlite", "postgres", "redis"]
TENANTS = ["acme", "globex", "initech", "umbrella"]
CHANNEL = "alert:log"
Place = Callable[[str], str]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """URLs of new ledgers by engine."""
    made: dict[str, list[str]] = {}

    def url(engine: str) -> str:
        names = made.setdefault(engine, [])
        names.append(f"askii_copy_{os.getpid()}_{len(names)}")
        if engine == "sqlite":
            return f"sqlite:///{tmp_path / names[-1]}"
        server: str = request.getfixturevalue(f"{engine}_server")
        return f"{server}{'&' if '?' in server else '?'}namespace={names[-1]}"

    yield url
    if "postgres" in made:
        with psycopg.connect(request.getfixturevalue("postgres_server"), autocommit=True) as connection:
            for name in made["postgres"]:
                connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {name} CASCADE".encode())
    if "redis" in made:
        with redis.Redis.from_url(request.getfixturevalue("redis_server")) as client:
            for key in client.scan_iter(f"{{askii_copy_{os.getpid()}_*", count=1000):
                client.unlink(key)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a table takes several."""
    monkeypatch.setattr("askii_middleware.stores.copying.PAGE", 3)


async def live(client: Client) -> None:
    """Some of everything a ledger can hold, until no worker is left."""
    store, clock = client.store, client.clock
    for worker in ("w", "gone"):
        assert await store.heartbeat(worker, 600)
    await client.set(
        budget("tenant=*", 100_000, alert_at=(0.1, 0.9)),
        budget("tenant=globex", 5_000, soft=True),
        budget("tag=*", 50_000, max_values=1),
        budget("model=m", None),
    )
    await client.set(budget("user=ann", 7))
    assert await store.remove_budget("user=ann|daily")
    await client.refresh()
    await store.put_key(KeyRow(id="k1", sha256="a" * 64, tenant="acme", tags=("x",), expires_at_s=clock.now_s + DAY_S))
    await store.put_key(KeyRow(id="k2", sha256="b" * 64, tenant="globex", revoked=True))
    assert await store.put_item("suspended", "acme", b'{"why":"unpaid"}')
    assert await store.put_item("price", "m", b"\x00\xff", until_s=clock.now_s + 10 * DAY_S)
    assert await store.put_item("price", "n", b"1", until_s=clock.now_s + 1)
    await store.register_sinks(["lago"])
    await store.register_channels([CHANNEL])
    for number, tenant in enumerate(TENANTS * 3):
        # 0.15 coin for a nano-USD and thousandths: every charge leaves a fraction.
        await client.reserve(f"s{number}", tenant=tenant, rate="150.001")
        await client.settle(f"s{number}", 4_001 + number, tenant=tenant, rate="150.001")
    await client.settle("credit-note", -9_000_000, tenant="umbrella")
    await store.register_sinks(["log"])
    await client.settle("tagged", 10, values={"tag": "first"})
    await client.settle("unheld", 40, tenant="globex")
    initech = partition_of("initech")
    await client.deliver(
        "lago", delivered(1), dead(2), again(3, 7 * 86_400.0), again(2, 1.0, initech), delivered(3, initech)
    )
    lease = (await store.lease(CHANNEL, "me", 60))[0]
    first = await store.fetch_alerts(CHANNEL, 1)
    assert await store.acknowledge_alerts(CHANNEL, lease.token, first[0].seq)
    # Open calls of all kinds.
    calls: dict[str, dict[str, Any]] = {
        "open": {"deadline_s": 3000.0},
        "grown": {"deadline_s": 3000.0},
        "brief": {"deadline_s": 1.0},
        "dropped": {},
        "batch": {},
        "over": {"deadline_s": 3000.0},
        "crowded": {"values": {"tag": "second"}, "deadline_s": 3000.0},
        "left": {"worker": "gone", "deadline_s": 3000.0},
    }
    for name, options in calls.items():
        assert (await client.reserve(name, 200, **options)).candidate == 0
    assert (await client.extend("grown", 450, sequence=3)).granted
    await store.release("dropped")
    assert await client.defer("batch", "k:batch", for_s=25 * 3600.0)
    assert await client.defer("over", "k:over", for_s=60.0)
    # Credit, of which a part is used.
    drawn = await draw(client, 1, 5_000)
    await settle_from(client, "leased", 1_234, use(drawn))
    clock.advance(700)
    assert await store.heartbeat("last", 5)  # buries the others
    clock.advance(6)


async def goes_on(client: Client) -> list[Any]:
    """Everything that can be asked, and what comes of going on."""
    store, clock = client.store, client.clock
    told: list[Any] = [(await store.forms())[1]]
    await client.refresh()
    told += [await store.budgets(), await store.keys(), await store.find_key("b" * 64)]
    told += [await store.items("suspended"), await store.items("price"), sorted(await store.item_versions())]
    told += [await client.spent_held_of(tenant) for tenant in TENANTS]
    told += [await client.status(tag=tag) for tag in ("first", "second", "third")]
    told += [await store.totals(), await store.credits(), await store.pending(), await store.records()]
    told += [await store.record("s3"), await store.record("nobody's")]
    told += [await store.operation("k:batch"), await store.overdue(10)]
    told += [await store.recent_alerts(100), await store.fetch_alerts(CHANNEL, 100)]
    told += [await store.dead_letters("lago"), await store.dead_letters("log")]
    told += [await store.spend(f"tenant={tenant}", 0, 2 * clock.now_s) for tenant in TENANTS]
    # Who is dead stays dead.
    told += [await store.heartbeat("w", 60), await store.heartbeat("gone", 60), await store.heartbeat("new", 600)]
    told += [await client.reserve(name, worker="new") for name in ("s1", "open", "dropped", "brief")]
    told += [await client.extend("grown", 600, sequence=4), await client.extend("batch", 300)]
    told += [await client.settle(name, 77) for name in ("s2", "open", "left", "batch", "crowded", "dropped", "leased")]
    told += [await client.settle("note", 9_000_001, tenant="umbrella"), await client.settle("x", 3, tenant="acme")]
    told += [await store.reclaim(), await client.spent_held_of("acme")]
    for sink in ("lago", "log"):
        leases = await store.lease(sink, "you", 60)
        told += [leases, await store.fetch(sink, range(PARTITIONS), 100)]
        told += [await store.acknowledge(sink, leases, [delivered(4)]), await store.retry_dead(sink)]
        clock.advance(1)
        told += [await store.fetch(sink, range(PARTITIONS), 100)]
    told += [await store.lease(CHANNEL, "you", 60), await store.pending(), await store.totals()]
    told += [await client.reserve(f"r{n}", 20_000, worker="new", tenant="umbrella") for n in range(6)]
    told += [await client.reserve("tagged-2", worker="new", values={"tag": "third"})]
    told += [await client.settle("big", 90_000, tenant="initech")]
    # Numbers of alerts ascend; where a crossing was reported before, some engines leave one out.
    told += [msgspec.structs.replace(alert, seq=0) for alert in await store.recent_alerts(100)]
    today = client.index.windows(clock.now_s)["daily|UTC"][0]
    told += [await store.records(5, 7), await store.top_spend("tenant=", today.start_s, today.end_s, 9)]
    return told


async def moved(source: str, target: str, clock: Clock) -> list[Compared]:
    one, other = open_copier(source, clock=clock), open_copier(target, clock=clock)
    await one.open()
    await other.open()
    try:
        await check_target(other)
        assert await alive_workers(one) == {}
        return await copy_ledger(one, other)
    finally:
        await one.close()
        await other.close()


async def lived(url: str, clock: Clock, work: Callable[[Client], Any] = live) -> Any:
    store = open_store(url, clock=clock)
    await store.open()
    try:
        return await work(Client(store, clock))
    finally:
        await store.close()


@pytest.mark.parametrize(("one", "other"), list(itertools.product(ENGINES, ENGINES)))
async def test_both_ledgers_go_on_identically(one: str, other: str, place: Place, clock: Clock) -> None:
    source, target = place(one), place(other)
    await lived(source, clock)
    found = await moved(source, target, clock)
    assert [table for table in found if not table.equal] == []
    sums = {table.table: (table.rows_to, table.nano_usd_to) for table in found}
    assert sums["records"] == (16, sum(range(4_001, 4_013)) - 9_000_000 + 10 + 40 + 1_234)
    assert sums["holds"][1] == 200 * 2  # of the two operations: their holds need no worker
    assert sums["credit"] == (1, 5_000 - 1_234)
    assert {name: rows for name, (rows, _) in sums.items() if not rows} == {}
    at_s = clock.now_s
    before = await lived(source, clock, goes_on)
    clock.now_s = at_s
    after = await lived(target, clock, goes_on)
    for number, (left, right) in enumerate(zip(before, after, strict=True)):
        assert left == right, number


@pytest.mark.parametrize("engine", ENGINES)
async def test_where_an_engine_has_let_old_records_go_delivery_goes_on_with_the_next(
    engine: str, place: Place, clock: Clock
) -> None:
    source, target = place("redis"), place(engine)

    async def long_ago(client: Client) -> None:
        await client.store.register_sinks(["lago"])
        for number in range(5):
            await client.settle(f"s{number}")
        await client.settle("elsewhere", tenant="globex")
        globex = partition_of("globex")
        await client.deliver("lago", *map(delivered, (1, 3, 4, 5)), dead(2, "no plan"), delivered(1, globex))
        clock.advance(9 * DAY_S)
        assert await client.store.heartbeat("w", 5)
        assert await client.store.records() == []
        clock.advance(6)

    async def next_ones(client: Client) -> list[Any]:
        store = client.store
        told: list[Any] = [await store.dead_letters("lago"), await store.pending()]
        told += [await client.settle("new"), await client.settle("other", tenant="globex"), await store.pending()]
        told += [await client.waiting("lago"), await store.retry_dead("lago"), await client.waiting("lago")]
        return [*told, await store.totals()]

    await lived(source, clock, long_ago)
    assert all(table.equal for table in await moved(source, target, clock))
    at_s = clock.now_s
    before = await lived(source, clock, next_ones)
    clock.now_s = at_s
    assert await lived(target, clock, next_ones) == before
    assert before[5] == ["new", "other"]


@pytest.mark.parametrize(("one", "other"), list(itertools.product(["sqlite", "postgres"], ENGINES)))
async def test_what_was_pruned_still_counts_in_the_copy(one: str, other: str, place: Place, clock: Clock) -> None:
    source, target = place(one), place(other)

    async def long_ago(client: Client) -> Any:
        store = client.store
        await store.register_sinks(["lago"])
        for number in range(5):
            await client.settle(f"s{number}", 10, at_s=clock.now_s - DAY_S)
        await client.deliver("lago", *map(delivered, (1, 2, 3)), dead(4))
        clock.advance(3 * DAY_S)
        bound_s = clock.now_s - 2 * DAY_S
        assert await store.prune(records_before_s=bound_s, aggregates_before_s=bound_s, limit=9) == 3 + 1
        return await store.totals()

    async def next_one(client: Client) -> list[Any]:
        store = client.store
        told: list[Any] = [await store.totals(), await store.pending(), await client.waiting("lago")]
        await client.settle("new", 7)
        return [*told, await store.totals(), await store.latest("acme", 9), await store.retry_dead("lago")]

    before = await lived(source, clock, long_ago)
    assert all(table.equal for table in await moved(source, target, clock))
    at_s = clock.now_s
    here = await lived(source, clock, next_one)
    clock.now_s = at_s
    assert await lived(target, clock, next_one) == here
    assert here[0] == before
    assert before[:4] == (5, 50, 5, 50)
    assert here[3][:4] == (6, 57, 6, 57)


# What a copy refuses, and what is left of one that was cut short ------------------------------------------------------


class CutError(Exception):
    """The machine goes down."""


async def cut_short(source: str, target: str, clock: Clock) -> None:
    def progress(_what: str, table: str, _rows: int) -> None:
        if table == "records":
            raise CutError

    one, other = open_copier(source, clock=clock), open_copier(target, clock=clock)
    await one.open()
    await other.open()
    with pytest.raises(CutError):
        await copy_ledger(one, other, progress)
    await one.close()
    await other.close()


@pytest.mark.parametrize("engine", ENGINES)
async def test_nobody_can_use_what_a_copy_that_was_cut_short_has_left_until_it_is_repeated(
    engine: str, place: Place, clock: Clock
) -> None:
    source, target = place("sqlite"), place(engine)
    await lived(source, clock)
    await cut_short(source, target, clock)
    store = open_store(target, clock=clock)
    with pytest.raises(StoreError, match=r"has not come to its end.*run askii copy-store again"):
        await store.open()
    await store.close()
    assert all(table.equal for table in await moved(source, target, clock))
    at_s = clock.now_s
    before = await lived(source, clock, goes_on)
    clock.now_s = at_s
    assert await lived(target, clock, goes_on) == before


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_ledger_that_holds_anything_is_no_target(engine: str, place: Place, clock: Clock) -> None:
    source, target = place("sqlite"), place(engine)
    await lived(source, clock)

    async def one_key(client: Client) -> None:
        await client.store.put_key(KeyRow(id="k", sha256="a" * 64, tenant="acme"))

    await lived(target, clock, one_key)
    with pytest.raises(StoreError, match=r"is not empty .it has keys."):
        await moved(source, target, clock)

    async def has_key(client: Client) -> list[str]:
        return [row.id for row in await client.store.keys()]

    assert await lived(target, clock, has_key) == ["k"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_row_that_is_missing_or_different_on_the_other_side_shows(
    engine: str, place: Place, clock: Clock
) -> None:
    """The proof reads the target again: what did not arrive there is not believed."""
    source, target = place("sqlite"), place(engine)
    await lived(source, clock)
    one, other = open_copier(source, clock=clock), open_copier(target, clock=clock)
    await one.open()
    await other.open()
    load = other.load

    seen: set[str] = set()

    async def lossy(table: str, rows: Sequence[Row]) -> None:
        if table not in seen and table == "carries":
            rows = [rows[0]._replace(pico_coins=rows[0].pico_coins + 1), *rows[1:]]
        await load(table, rows[1:] if table not in seen and table == "aggregates" else rows)
        seen.add(table)

    other.load = lossy  # type: ignore[method-assign]
    found = {table.table: table for table in await copy_ledger(one, other)}
    assert await other.unfinished()
    await one.close()
    await other.close()
    assert {name for name, table in found.items() if not table.equal} == {"carries", "aggregates"}
    sums = found["aggregates"]
    assert sums.rows_to == sums.rows_from - 1
    assert sums.nano_usd_from != sums.nano_usd_to


# The command ---------------------------------------------------------------------------------------------------------


def by_hand(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    return status, *capsys.readouterr()


def test_the_command_copies_and_shows_both_sides(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = place("sqlite"), place("redis")
    clock = Clock(time.time() - 7200)
    asyncio.run(lived(source, clock))
    monkeypatch.setenv("TARGET", target)
    status, out, err = by_hand(capsys, "copy-store", source, "env:TARGET", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["equal"] is True
    assert [row["table"] for row in told["tables"]] == [table.name for table in TABLES]
    records = next(row for row in told["tables"] if row["table"] == "records")
    assert records["rows_from"] == records["rows_to"] == 16
    assert records["usd_from"] == records["usd_to"] == "-0.008950638"
    # Once more: there is something now.
    status, out, err = by_hand(capsys, "copy-store", source, target)
    assert (status, out) == (1, "")
    assert "is not empty" in err


def test_living_workers_are_waited_for_unless_forced(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = place("sqlite"), place("sqlite")

    async def beats(client: Client) -> None:
        assert await client.store.heartbeat("somebody", 60)

    asyncio.run(lived(source, Clock(time.time()), beats))
    status, out, err = by_hand(capsys, "copy-store", source, target)
    assert (status, out) == (1, "")
    assert "1 workers of" in err
    assert "somebody" in err
    status, out, _ = by_hand(capsys, "copy-store", source, target, "--force")
    assert status == 0
    assert out.splitlines()[0].split() == ["table", "rows_from", "rows_to", "usd_from", "usd_to", "equal"]


def test_a_password_in_a_url_is_never_shown(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    status, out, err = by_hand(capsys, "copy-store", place("sqlite"), "redis://user:hunter2@127.0.0.1:1/0")
    assert status == 1
    assert "hunter2" not in out + err


def test_a_ledger_is_not_copied_into_itself(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    url = place("sqlite")
    assert by_hand(capsys, "copy-store", url, url)[0] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_migrate_says_what_it_would_do_does_it_and_has_nothing_to_do_then(
    engine: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "askii.toml").write_text(f'store = "{place(engine)}"\n')
    config = ("--json", "--config", str(tmp_path / "askii.toml"))
    told = []
    for options in (("--check",), (), (), ("--check",)):
        status, out, _ = by_hand(capsys, "migrate", *options, *config)
        row = json.loads(out)
        told.append((status, row["from"], row["to"] - (row["from"] or 0) > 0, row["result"]))
    known = told[-1][1]
    assert told == [
        (1, None, True, "to be migrated"),
        (0, None, True, "migrated"),
        (0, known, False, "nothing to do"),
        (0, known, False, "nothing to do"),
    ]


def test_a_ledger_in_memory_can_neither_be_migrated_nor_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setenv("ASKII_STORE", "memory://")
    assert by_hand(capsys, "migrate")[0] == 1
    assert (
        "memory://: lives inside one running process" in by_hand(capsys, "copy-store", "memory://", place("sqlite"))[2]
    )
