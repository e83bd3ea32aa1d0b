"""`askii outbox`: what a person does when records do not arrive."""

from __future__ import annotations

import asyncio
import io
import json
import stat
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from askii_middleware import cli_outbox
from askii_middleware.cli import main
from askii_middleware.delivery import DeliveryLoop
from askii_middleware.delivery_age import DESPITE_AGE, TOO_OLD
from askii_middleware.records import decode_record
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, Delivery, Verdict
from askii_middleware.stores.base import PARTITIONS, Outcome, Store
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.stores.sqlite import SQLiteStore

from .sinks.support import ScriptedSink, put, record

T = TypeVar("T")


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Askii = Callable[..., Done]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    (tmp_path / "askii.toml").write_text(
        f'store = "sqlite:///{tmp_path / "askii.db"}"\n[sinks.log]\npath = "{tmp_path / "usage.jsonl"}"\n'
        '[sinks.lago]\nurl = "https://lago.example.com/api/v1"\napi_key = "k"\nevents = ["coins", "tokens"]\n'
    )
    return tmp_path / "askii.db"


@pytest.fixture
def askii(ledger: Path, capsys: pytest.CaptureFixture[str]) -> Askii:
    def run(*arguments: str) -> Done:
        status = main(["outbox", *arguments, "--config", str(ledger.parent / "askii.toml")])
        return Done(status, *capsys.readouterr())

    return run


def on(path: Path, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do something with the ledger, as another process would."""

    async def run() -> T:
        store = SQLiteStore(str(path))
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def now_text(age_s: float = 0.0) -> str:
    return datetime.fromtimestamp(time.time() - age_s, UTC).isoformat(timespec="milliseconds")


async def one_round(store: Store, sink: ScriptedSink, *, owner: str = "host-1:77") -> None:
    await store.register_sinks([sink.name])
    await DeliveryLoop(store, [sink], owner=owner).workers[0].round()


async def troubled(store: Store) -> None:
    """Sink `log`: call 0 delivered, 1 rejected, 2 to wait on its own, 3 and 4 not sent yet."""
    await store.register_sinks(["log"])
    await put(store, *(record(n, timestamp=now_text(7200 - n)) for n in range(3)))
    verdicts = (DELIVERED, Verdict("rejected", "no such code"), Verdict("again", "busy", 3600.0))
    sink = ScriptedSink("log", [Delivery(verdicts)])
    worker = DeliveryLoop(store, [sink], owner="host-1:77").workers[0]
    await worker.round()
    await worker.give_back()
    await put(store, record(3, timestamp=now_text(600)), record(4, timestamp=now_text(5), subscription="globex"))


def test_status_tells_what_waits_since_when_and_what_was_refused(ledger: Path, askii: Askii) -> None:
    on(ledger, troubled)
    on(ledger, lambda store: store.register_sinks(["forgotten"]))
    done = askii("status", "--json")
    assert done.status == 0
    forgotten, log = done.json
    assert 7198 <= log.pop("oldest_age_s") <= 7230  # also one that waits for its own moment
    assert log == {
        "sink": "log",
        "configured": True,
        "pending": 3,
        "dead": 1,
        "failures": 0,
        "retry_at": None,
        "leases": None,
    }
    assert forgotten == {
        **log,
        "sink": "forgotten",
        "configured": False,
        "pending": 0,
        "dead": 0,
        "oldest_age_s": None,
    }


def test_status_tells_who_delivers_and_how_long_a_pause_lasts(ledger: Path, askii: Askii) -> None:
    async def away(store: Store) -> None:
        sink = ScriptedSink("log", [Delivery((Verdict("again", "HTTP 429"),), 240.0)])
        await store.register_sinks(["log"])
        await put(store, record(0))
        await one_round(store, sink)

    on(ledger, away)
    (row,) = askii("status", "--json").json
    assert row["leases"] == f"host-1:77 ({PARTITIONS})"
    assert row["failures"] == 0
    assert 200 < datetime.fromisoformat(row["retry_at"]).timestamp() - time.time() <= 241
    text = askii("status").out.splitlines()
    assert text[0].split() == [
        *("sink", "configured", "pending", "oldest_age_s", "dead", "failures", "retry_at", "leases")
    ]


def test_failures_in_a_row_are_shown(ledger: Path, askii: Askii) -> None:
    async def broken(store: Store) -> None:
        await store.register_sinks(["log"])
        await put(store, record(0))
        await one_round(store, ScriptedSink("log", [Delivery((Verdict("again", "HTTP 500"),), BACK_OFF)]))

    on(ledger, broken)
    assert askii("status", "--json").json[0]["failures"] == 1


def test_an_empty_outbox_has_an_empty_status(askii: Askii) -> None:
    assert askii("status", "--json").json == []
    assert askii("status").out == "nothing\n"


def test_dead_shows_each_letter_with_its_reason_and_its_attempts(ledger: Path, askii: Askii) -> None:
    on(ledger, troubled)
    (row,) = askii("dead", "log", "--json").json
    assert abs(datetime.fromisoformat(row.pop("first_attempt")).timestamp() - time.time()) < 30
    assert abs(datetime.fromisoformat(row.pop("last_attempt")).timestamp() - time.time()) < 30
    assert row == {"call_id": "call-00001", "tenant": "acme", "attempts": 1, "reason": "no such code"}


def test_retry_makes_dead_letters_due_and_says_how_many(ledger: Path, askii: Askii) -> None:
    on(ledger, troubled)
    assert askii("retry", "log", "--json").json == {"sink": "log", "retried": 1}
    assert askii("dead", "log", "--json").json == []
    assert askii("status", "--json").json[0]["pending"] == 4
    assert askii("retry", "log").out.split() == ["sink", "log", "retried", "0"]


def test_retry_says_that_what_was_too_old_needs_another_word(ledger: Path, askii: Askii) -> None:
    async def old(store: Store) -> None:
        await store.register_sinks(["log"])
        await put(store, record(0))
        leases = await store.lease("log", "w", 30.0)
        (entry,) = await store.fetch("log", range(PARTITIONS), 9)
        dead = Outcome(entry.partition, entry.seq, "dead", f"{TOO_OLD}99 s")
        await store.acknowledge("log", leases, [dead])

    on(ledger, old)
    done = askii("retry", "log", "--json")
    assert done.json == {"sink": "log", "retried": 1}
    assert "1 of them were too old to be sent" in done.err
    assert on(ledger, lambda store: store.items(DESPITE_AGE)) == []
    done = askii("retry", "log", "--despite-age")
    assert done.err == ""
    assert [item.name for item in on(ledger, lambda store: store.items(DESPITE_AGE))] == ["log"]


def test_export_has_every_dead_letter_and_all_that_waits_as_whole_records(ledger: Path, askii: Askii) -> None:
    on(ledger, troubled)
    done = askii("export", "log")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["state"], row["call_id"], row["tenant"], row["attempts"]) for row in rows[:1]] == [
        ("dead", "call-00001", "acme", 1)
    ]
    assert rows[0]["reason"] == "no such code"
    waiting = sorted(row["call_id"] for row in rows if row["state"] == "pending")
    assert waiting == ["call-00002", "call-00003", "call-00004"]
    for row in rows:
        assert decode_record(json.dumps(row["record"]).encode()).call_id == row["call_id"]
    assert (done.status, done.err) == (0, "")
    assert askii("status", "--json").json[0]["pending"] == 3  # nothing was changed


def test_export_makes_a_new_file_for_its_owner_alone_and_never_overwrites_one(
    ledger: Path, askii: Askii, tmp_path: Path
) -> None:
    on(ledger, troubled)
    file = tmp_path / "left.jsonl"
    done = askii("export", "log", str(file), "--json")
    assert done.json == {"sink": "log", "dead": 1, "pending": 3, "file": str(file)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert len(before.splitlines()) == 4
    done = askii("export", "log", str(file))
    assert (done.status, done.err) == (1, f"askii: outbox export: cannot create {file}: File exists\n")
    assert file.read_bytes() == before


def test_an_export_that_misses_something_ends_with_1(
    ledger: Path, askii: Askii, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(ledger, troubled)

    async def delivered_meanwhile(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr(SQLiteStore, "fetch", delivered_meanwhile)
    done = askii("export", "log")
    assert done.status == 1
    assert "3 more waited and are not in it" in done.err


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_that_shows_nothing_is_refused(ledger: Path, askii: Askii, limit: str) -> None:
    on(ledger, troubled)
    with pytest.raises(SystemExit) as refused:
        askii("dead", "log", "--limit", limit)
    assert refused.value.code == 2


def test_what_others_named_or_answered_does_not_reach_the_terminal_raw(ledger: Path, askii: Askii) -> None:
    async def rude(store: Store) -> None:
        await store.register_sinks(["log"])
        await put(store, record(0, subscription="acme\u202e\x1b[2J"))
        await one_round(store, ScriptedSink("log", [Delivery((Verdict("rejected", "no\x1b[31m\nyes ä"),))]))

    on(ledger, rude)
    out = askii("dead", "log").out
    assert out.count("\n") == 2
    assert r"acme\u202e\x1b[2J" in out
    assert r"no\x1b[31m\nyes ä" in out
    assert not {"\x1b", "\u202e"} & set(out)
    error = askii("dead", "l\x1bg").err
    assert error.endswith("there are log\n")
    assert "\x1b" not in error


def test_dead_letters_are_counted_as_far_as_they_are_loaded(
    ledger: Path, askii: Askii, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_outbox, "COUNTED", 2)

    async def refused(store: Store) -> None:
        await store.register_sinks(["log"])
        await put(store, *(record(n) for n in range(3)))
        await one_round(store, ScriptedSink("log", [Delivery((Verdict("rejected", f"{TOO_OLD}9 s"),) * 3)]))

    on(ledger, refused)
    assert askii("status", "--json").json[0]["dead"] == "2 or more"
    done = askii("retry", "log", "--json")
    assert done.json == {"sink": "log", "retried": 3}
    assert "2 of the first 2 were too old" in done.err


@pytest.mark.parametrize("sink", ["log", "lago", "lago-tokens"])
def test_a_configured_sink_is_not_forgotten(ledger: Path, askii: Askii, sink: str) -> None:
    on(ledger, lambda store: store.register_sinks([sink]))
    done = askii("forget", sink, "--yes")
    assert done.status == 1
    assert f"sink '{sink}' is configured" in done.err
    assert sink in on(ledger, lambda store: store.pending())


def test_a_sink_that_somebody_delivers_to_is_not_forgotten(ledger: Path, askii: Askii) -> None:
    on(ledger, lambda store: one_round(store, ScriptedSink("own")))
    done = askii("forget", "own", "--yes")
    assert (done.status, done.err) == (1, "askii: outbox forget: host-1:77 delivers to sink 'own': stop it first\n")


async def leave(store: Store) -> None:
    await store.register_sinks(["old"])
    await put(store, record(0), record(1))


@pytest.mark.parametrize(
    ("answer", "forgets"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_forgetting_asks_first_and_takes_only_a_yes(
    ledger: Path, askii: Askii, monkeypatch: pytest.MonkeyPatch, answer: str, forgets: bool
) -> None:
    on(ledger, leave)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    done = askii("forget", "old", "--json")
    assert "forget sink 'old', 2 records that wait and 0 dead letters? [y/N]" in done.err
    assert done.status == (0 if forgets else 1)
    assert (done.json if forgets else done.out) == (
        {"sink": "old", "forgotten": True, "pending": 2, "dead": 0} if forgets else ""
    )
    assert ("old" not in on(ledger, lambda store: store.pending())) is forgets


def test_with_yes_nothing_is_asked(ledger: Path, askii: Askii) -> None:
    on(ledger, leave)
    done = askii("forget", "old", "--yes")
    assert (done.status, done.err) == (0, "")
    assert on(ledger, lambda store: store.pending()) == {}


@pytest.mark.parametrize("command", ["retry", "dead", "export", "forget"])
def test_a_sink_without_a_place_is_named_with_those_that_have_one(ledger: Path, askii: Askii, command: str) -> None:
    on(ledger, troubled)
    done = askii(command, "logg")
    assert (done.status, done.out, done.err) == (1, "", "askii: outbox: no sink is called 'logg'; there are log\n")


def test_a_ledger_in_memory_is_out_of_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "askii.toml").write_text('store = "memory://"\n')
    assert main(["outbox", "status", "--config", str(tmp_path / "askii.toml")]) == 1
    assert "lives inside one running process" in capsys.readouterr().err


async def test_both_ledgers_of_one_machine_tell_the_same_places(tmp_path: Path) -> None:
    clock = time.time
    found = []
    for store in (MemoryStore(clock=clock), SQLiteStore(str(tmp_path / "ledger.db"))):
        await store.open()
        await store.register_sinks(["log"])
        before = await store.places("log")
        leases = await store.lease("log", "w1", 60.0)
        await store.acknowledge("log", leases, [], retry_at_s=4e9, failures=3)
        after = await store.places("log")
        assert before is not None
        assert after is not None
        assert all(place.owner is None for place in before)
        assert all(place.lease_until_s > time.time() for place in after)
        found.append(([place.partition for place in before], [place._replace(lease_until_s=0) for place in after]))
        await store.close()
    assert found[0] == found[1]
    assert found[0][0] == list(range(PARTITIONS))
    assert {place[1:] for place in found[0][1]} == {("w1", 0, 4e9, 3)}
