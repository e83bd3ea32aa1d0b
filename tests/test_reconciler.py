"""Reconciliation against a store and a Lago: every difference is named, and what merely happens meanwhile is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from askii_middleware import reconciling, tenant_data
from askii_middleware.cli import main
from askii_middleware.errors import SinkError
from askii_middleware.reconciler import Reconciler, Reconciliation
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.auditing import Line
from askii_middleware.sinks.base import DELIVERED, Delivery, Sink, Verdict
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.lago_api import LagoApi
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.stores.base import SpendSums, Store
from askii_middleware.tracker import CostTracker

from .support.lago_server import KEY, LagoServer
from .support.service import NOW_S, Clock, make_tracker

# Against a store and a Lago -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def billed(tmp_path: Path, *sinks: Sink, **options: Any) -> AsyncIterator[tuple[CostTracker, LagoServer]]:
    clock = Clock()
    async with LagoServer(str(tmp_path / "lago.db"), clock=clock) as lago:
        lago_sink = LagoSink(lago.url, KEY, clock=clock)
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        async with make_tracker(url, clock=clock, sinks=[lago_sink, *sinks], budgets=[], **options) as tracker:
            yield tracker, lago


async def reconciled(tracker: CostTracker, **options: Any) -> Reconciliation:
    return await Reconciler(tracker.store, tracker.sinks, now_s=tracker.clock(), **options).run()


async def use(tracker: CostTracker, *calls: tuple[str, int]) -> None:
    for number, (tenant, tokens) in enumerate(calls):
        await tracker.record_usage(tenant, "big", input_tokens=tokens, call_id=f"{tenant}-{number}")


def told(found: Reconciliation, sink: int = 0) -> list[tuple[str, str, str | None, str | None]]:
    return [(d.kind, d.id, d.ours, d.theirs) for d in found.sinks[sink].findings.listed]


CALLS = (("acme", 1), ("acme", 2), ("globex", 3))


async def test_what_was_delivered_agrees_to_the_coin(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        await use(tracker, *CALLS)
        await tracker.flush()
        found = await reconciled(tracker)
        assert (found.agrees, found.records) == (True, 3)
        (account,) = found.sinks
        assert (account.lines, account.pending, account.dead, account.totals) == (3, 0, 0, {})
        assert told(found) == []


async def test_what_waits_is_pending_and_no_fault(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, lago):
        lago.faults.always = "500"
        await use(tracker, *CALLS)
        found = await reconciled(tracker)
        assert found.agrees
        assert told(found) == [
            ("pending", "acme-0", "1", None),
            ("pending", "acme-1", "2", None),
            ("pending", "globex-2", "3", None),
        ]
        ours, theirs = found.sinks[0].totals["acme", "askii_coins"]
        assert (ours.count, ours.value, theirs.count, theirs.value) == (2, 3, 0, 0)
        await tracker.stop(flush_s=0.05)


async def test_what_lago_lacks_has_besides_or_has_otherwise_is_named(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, lago):
        await use(tracker, *CALLS)
        await tracker.flush()
        lago.books._db.execute("DELETE FROM events WHERE transaction_id = 'acme-0'")
        changed = "UPDATE events SET properties = json_set(properties, '$.askii_coins', '7') WHERE transaction_id = ?"
        lago.books._db.execute(changed, ("globex-2",))
        event = {
            "transaction_id": "stranger",
            "external_subscription_id": "acme",
            "code": "askii_coins",
            "timestamp": f"{NOW_S:.3f}",
            "properties": {"askii_coins": "5"},
        }
        lago.books.take_single(event)
        lago.books.take_single({**event, "transaction_id": "of another metric", "code": "storage"})
        found = await reconciled(tracker)
        assert not found.agrees
        assert sorted(told(found)) == [
            ("different", "globex-2", "3", "7"),
            ("missing", "acme-0", "1", None),
            ("unknown", "stranger", None, "5"),
        ]
        assert {key[0] for key in found.sinks[0].totals} == {"acme", "globex"}


async def test_an_event_that_the_receiver_has_twice_is_a_difference(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        await use(tracker, *CALLS)
        await tracker.flush()
        seen_by(tracker, lambda line: [line] * (1 + (line.id == "acme-1")))
        found = await reconciled(tracker)
        assert told(found) == [("doubled", "acme-1", "2", "2 + 2")]
        assert not found.agrees


async def test_what_one_tenant_waits_for_excuses_no_other(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        put_off(tracker, "globex")
        await use(tracker, *CALLS)
        await tracker.flush()
        assert (await reconciled(tracker)).agrees
        seen_by(tracker, lambda line: [line] * (line.id != "acme-1"))
        missing = ("missing", "acme-1", "2", None)
        assert told(await reconciled(tracker, tenant="acme")) == [missing]
        assert sorted(told(await reconciled(tracker))) == [missing, ("pending", "globex-2", "3", None)]
        found = await reconciled(tracker, tenant="globex")
        assert (found.agrees, found.sinks[0].pending) == (True, 1)
        await tracker.stop(flush_s=0.05)


async def test_what_waits_for_a_shared_subscription_is_pending_whoever_used_it(tmp_path: Path) -> None:
    async with billed(tmp_path, subscription_of={"acme": "shared", "globex": "shared"}) as (tracker, _):
        put_off(tracker, "globex")
        await use(tracker, *CALLS)
        await tracker.flush()
        found = await reconciled(tracker, tenant="acme")
        assert told(found) == [("pending", "globex-2", "3", None)]
        await tracker.stop(flush_s=0.05)


async def test_what_was_used_before_a_sink_was_there_is_earlier_and_no_fault(tmp_path: Path) -> None:
    clock = Clock()
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with make_tracker(url, clock=clock, budgets=[]) as tracker:
        await use(tracker, *CALLS)
    async with billed(tmp_path) as (tracker, _):
        await tracker.record_usage("acme", "big", input_tokens=9, call_id="after")
        await tracker.adjust("globex", "0.001", reason="of an old call", ref="globex-2")
        await tracker.flush()
        found = await reconciled(tracker)
        assert [kind for kind, *_ in told(found)] == ["earlier"] * 3
        assert found.agrees
        seen_by(tracker, lambda _: [])
        found = await reconciled(tracker)
        assert found.sinks[0].findings.counts == {"earlier": 3, "missing": 2}


def seen_by(tracker: CostTracker, change: Callable[[Line], list[Line]]) -> None:
    """What the receiver has, changed."""
    sink: Any = tracker.sinks[0]
    lines = sink.lines

    async def changed(*args: Any, **options: Any) -> AsyncIterator[Line]:
        async for line in lines(*args, **options):
            for each in change(line):
                yield each

    sink.lines = changed


def put_off(tracker: CostTracker, tenant: str) -> None:
    """Its records wait for an hour, each for itself."""
    sink: Any = tracker.sinks[0]
    send = sink.send

    async def sent(records: Sequence[UsageRecord]) -> Delivery:
        verdicts = iter((await send([record for record in records if record.tenant != tenant])).verdicts)
        later = Verdict("again", "later", 3600.0)
        return Delivery(tuple(later if record.tenant == tenant else next(verdicts) for record in records))

    sink.send = sent


async def test_dead_letters_are_named_with_their_reason(tmp_path: Path) -> None:
    async with billed(tmp_path, subscription_of={"acme": "sub"}) as (tracker, _):
        await use(tracker, ("acme", 1), ("nobody", 2))
        await tracker.flush()
        found = await reconciled(tracker)
        (difference,) = found.sinks[0].findings.listed
        assert (difference.kind, difference.id, difference.detail) == (
            "dead letter",
            "nobody-1",
            "no subscription to bill",
        )
        assert found.sinks[0].dead == 1
        assert not found.agrees


class Refusing(MemorySink):
    """A receiver that cannot be asked."""

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        refused = Verdict("rejected", "unwanted")
        return Delivery(tuple(refused if record.tenant == "globex" else DELIVERED for record in records))


async def test_of_a_receiver_that_cannot_be_asked_the_outbox_tells(tmp_path: Path) -> None:
    async with billed(tmp_path, Refusing()) as (tracker, _):
        await use(tracker, *CALLS)
        await tracker.flush()
        found = await reconciled(tracker)
        assert found.sinks[0].findings.agrees
        (difference,) = found.sinks[1].findings.listed
        assert (difference.kind, difference.subscription, difference.id, difference.detail) == (
            *("dead letter", "globex", "globex-2", "unwanted"),
        )
        assert (found.sinks[1].audited, found.agrees) == (False, False)


async def test_the_ledgers_sums_are_held_against_its_records(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        await use(tracker, *CALLS)
        await tracker.flush()
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:
            ledger.execute("UPDATE aggregates SET cost_nano_usd = cost_nano_usd + 1 WHERE scope = 'tenant=globex'")
        found = await reconciled(tracker)
        (difference,) = found.ledger.listed
        assert (difference.subscription, difference.ours, difference.theirs) == ("globex", "3000", "3001")
        assert not found.agrees
        assert found.sinks[0].findings.agrees
        assert not (await reconciled(tracker, tenant="globex")).agrees
        assert (await reconciled(tracker, tenant="acme")).agrees


async def test_what_was_billed_to_a_tenant_that_was_erased_later_still_agrees(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, lago):
        await use(tracker, *CALLS)
        await tracker.flush()
        await tenant_data.deleted(tracker, "acme")
        assert (await reconciled(tracker)).agrees
        lago.books._db.execute("DELETE FROM events WHERE transaction_id = 'acme-0'")
        assert told(await reconciled(tracker)) == [("missing", "acme-0", "1", None)]


async def test_a_tenant_called_like_a_wildcard_is_reconciled_like_others(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        await use(tracker, ("*", 1000))
        await tracker.flush()
        assert (await reconciled(tracker)).agrees


async def test_corrections_are_reconciled_as_they_are_billed(tmp_path: Path) -> None:
    """A credit waits in the carry and sends nothing; what it takes back is missing from the next events."""
    async with billed(tmp_path) as (tracker, _):
        await use(tracker, *CALLS)
        await tracker.adjust("acme", "-0.000002", reason="goodwill")
        await tracker.adjust("globex", "0.000005", reason="forgotten")
        await tracker.record_usage("acme", "big", input_tokens=7, call_id="later")
        await tracker.flush()
        found = await reconciled(tracker)
        assert (found.agrees, found.records, found.sinks[0].lines) == (True, 6, 5)
        assert told(found) == []


async def test_one_tenant_and_a_time_can_be_asked_about(tmp_path: Path) -> None:
    async with billed(tmp_path, subscription_of={"acme": "shared", "beta": "shared", "globex": "g"}) as (tracker, lago):
        await use(tracker, ("acme", 1), ("beta", 2), ("globex", 3))
        await tracker.flush()
        lago.books._db.execute("DELETE FROM events WHERE transaction_id = 'globex-2'")
        assert (await reconciled(tracker, tenant="acme")).agrees
        assert (await reconciled(tracker, tenant="acme")).records == 1
        assert told(await reconciled(tracker, tenant="globex")) == [("missing", "globex-2", "3", None)]
        assert (await reconciled(tracker, tenant="nobody")).agrees
        tracker.clock.advance(7200)  # type: ignore[attr-defined]
        later = await reconciled(tracker, since_s=NOW_S + 3600)
        assert (later.records, later.agrees) == (0, True)
        assert not (await reconciled(tracker, since_s=NOW_S + 3599)).agrees


@pytest.mark.parametrize("buckets", [1, reconciling.BUCKETS])
async def test_what_happens_while_it_runs_is_no_difference(
    buckets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that are settled and delivered between any two steps."""
    monkeypatch.setattr(reconciling, "BUCKETS", buckets)
    async with billed(tmp_path) as (tracker, lago):
        await use(tracker, *CALLS)
        await tracker.flush()
        # One real difference, so that every step is taken.
        lago.books._db.execute("DELETE FROM events WHERE transaction_id = 'acme-0'")
        done = 0

        async def meanwhile() -> None:
            nonlocal done
            done += 1
            await tracker.record_usage("acme", "big", input_tokens=1, call_id=f"meanwhile-{done}")
            await tracker.flush()

        store = Watched(tracker.store, meanwhile)
        found = await Reconciler(store, tracker.sinks, now_s=tracker.clock()).run()  # type: ignore[arg-type]
        assert done > 5
        assert told(found) == [("missing", "acme-0", "1", None)]
        assert found.ledger.agrees


class Watched:
    """A store at whose every reading something happens first."""

    def __init__(self, store: Store, meanwhile: Any) -> None:
        self._store = store
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if name != "records" or not args[0] % 2:
                await self._meanwhile()
            return await inner(*args, **kwargs)

        return call


async def test_lago_that_cannot_be_asked_is_an_error(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        sink = LagoSink("http://127.0.0.1:9/api/v1", KEY)
        sink.api = lambda: _impatient(sink)  # type: ignore[method-assign]
        with pytest.raises(SinkError, match="GET /events"):
            await Reconciler(tracker.store, [sink], now_s=NOW_S).run()
        await sink.close()


def _impatient(sink: LagoSink) -> Any:
    async def sleep(_seconds: float) -> None:
        return

    return LagoApi(sink._connection, sleep=sleep)


class Endless:
    """A ledger and a receiver of many lines, made as they are read; one in a thousand is not there."""

    name = "endless"

    def __init__(self, count: int, record: UsageRecord) -> None:
        self.count = count
        self.record = record

    async def records(self, after: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        last = min(after + limit, self.count)
        made = (msgspec.structs.replace(self.record, call_id=f"call-{n}") for n in range(after + 1, last + 1))
        return [(after + 1 + n, msgspec.json.encode(each)) for n, each in enumerate(made)]

    async def top_spend(self, *_: Any) -> list[SpendSums]:
        return [SpendSums(f"tenant={self.record.tenant}", 0, 0, 0, self.record.cost_nano_usd * self.count)]

    async def pending(self) -> dict[str, int]:
        return {"endless": 0}

    async def fetch(self, *_: Any, **__: Any) -> list[Any]:
        return []

    items = fetch

    dead_letters = fetch

    def lines_of(self, record: UsageRecord) -> list[Line]:
        return [Line(record.subscription, record.call_id, "coins", str(record.askii_coins))]

    async def lines(self, *_: Any, **__: Any) -> AsyncIterator[Line]:
        for n in range(1, self.count + 1):
            if n % 1000:
                yield Line(self.record.subscription, f"call-{n}", "coins", str(self.record.askii_coins))

    async def close(self) -> None: ...


async def test_memory_is_bounded_however_many_lines_there_are(tmp_path: Path) -> None:
    async with billed(tmp_path) as (tracker, _):
        record = await tracker.record_usage("acme", "big", input_tokens=1)
    peaks = []
    for count in (2_000, 8_000):
        side: Any = Endless(count, record)
        tracemalloc.start()
        found = await Reconciler(side, [side], now_s=NOW_S, max_held=500).run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.sinks[0].findings.counts == {"missing": count // 1000}
    assert peaks[1] < peaks[0] + 300_000


# The command ----------------------------------------------------------------------------------------------------------


async def _command(tmp_path: Path, lago: LagoServer, *words: str) -> int:
    config = tmp_path / "askii.toml"
    config.write_text(
        f'store = "sqlite:///{tmp_path / "ledger.db"}"\n[sinks.lago]\nurl = "{lago.url}"\napi_key = "{KEY}"\n'
    )
    return await asyncio.to_thread(main, ["report", "--reconcile", "--config", str(config), *words])


async def test_the_command_ends_with_1_where_anything_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with billed(tmp_path) as (tracker, lago):
        await use(tracker, *CALLS)
        await tracker.flush()
        assert await _command(tmp_path, lago, "--json") == 0
        assert json.loads(capsys.readouterr().out)["reconciled"] is True
        assert await _command(tmp_path, lago) == 0
        assert "3 records: reconciled" in capsys.readouterr().out
        lago.books._db.execute("DELETE FROM events WHERE transaction_id = 'acme-0'")
        assert await _command(tmp_path, lago, "--json", "--tenant", "acme") == 1
        found = json.loads(capsys.readouterr().out)
        assert found["sinks"][0]["counts"] == {"missing": 1}
        assert found["sinks"][0]["differences"][0]["id"] == "acme-0"
        assert found["sinks"][0]["subscriptions"] == [
            {
                "subscription": "acme",
                "code": "askii_coins",
                "ours": {"count": 2, "sum": 3},
                "theirs": {"count": 1, "sum": 2},
            }
        ]
        assert await _command(tmp_path, lago) == 1
        out = capsys.readouterr().out
        assert "acme-0" in out
        assert "NOT reconciled" in out
        assert await _command(tmp_path, lago, "--tenant", "globex") == 0
        assert await _command(tmp_path, lago, "--tenant", "globex", "--since", "2099-01-01") == 0
        capsys.readouterr()
        assert await _command(tmp_path, lago, "--tenant", "globx") == 1
        done = capsys.readouterr()
        assert (done.out, done.err) == (
            "",
            "askii: report: nothing was ever charged to a tenant 'globx': there is nothing to compare\n",
        )
        assert await _command(tmp_path, lago, "--since", "yesterday") == 1
        assert "--since: 'yesterday' is not ISO 8601" in capsys.readouterr().err


async def test_what_retention_lets_go_is_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with billed(tmp_path) as (tracker, lago):
        monkeypatch.setattr(tracker.clock, "now_s", 1_600_000_000.0)
        await use(tracker, *CALLS)
        await tracker.flush()
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:
            ledger.execute("DELETE FROM records WHERE call_id = 'acme-0'")
        assert await _command(tmp_path, lago) == 1
        capsys.readouterr()
        monkeypatch.setenv("ASKII_RETENTION", '{"records_days": 90, "aggregates_days": 800}')
        assert await _command(tmp_path, lago, "--json", "--since", "2020-01-01") == 0
        assert "are left out: [retention] lets them go" in capsys.readouterr().err
        monkeypatch.setenv("ASKII_RETENTION", "{}")
        assert await _command(tmp_path, lago) == 1


def test_a_ledger_in_memory_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "askii.toml"
    config.write_text('store = "memory://"\n')
    assert main(["report", "--reconcile", "--config", str(config)]) == 1
    assert "memory:// lives inside one running process" in capsys.readouterr().err
