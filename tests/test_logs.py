"""Log lines: fields for queries on every one, and one line for many events of a kind."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import AskiiMiddleware, Budget
from askii_middleware.errors import BudgetExceededError, StoreError
from askii_middleware.log_fields import fields, shown
from askii_middleware.logs import EventLog, WrongTokens
from askii_middleware.stores.base import UnwritableError
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.tracker import CostTracker

from .support.asgi import Scripted, ask, chat_answer, plain
from .support.formatters import FORMATTERS
from .support.ledgers import PRICES, START_S, Clock, ledger
from .support.service import FaultyStore

ROOT = Path(__file__).parents[1]
LEVELS = {"debug": "D", "info": "I", "warning": "W", "error": "E", "exception": "E+"}


def denial(scope: str = "tenant=acme", reason: Any = "spent") -> BudgetExceededError:
    return BudgetExceededError(
        "no", current_cost=1, max_budget=1, scope=scope, reason=reason, resets_at_s=START_S + 86_400
    )


def known(record: logging.LogRecord) -> dict[str, Any]:
    return {name.removeprefix("askii_"): value for name, value in vars(record).items() if name.startswith("askii_")}


def events(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [known(record) for record in caplog.records if known(record).get("event") == event]


# Every line -----------------------------------------------------------------------------------------------------------


def log_calls() -> Iterator[tuple[str, int, ast.Call]]:
    for path in sorted((ROOT / "askii_middleware").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            func = node.func if isinstance(node, ast.Call) else None
            if isinstance(func, ast.Attribute) and func.attr in LEVELS and isinstance(func.value, ast.Name):
                assert isinstance(node, ast.Call)
                if func.value.id.endswith("logger"):
                    yield path.name, node.lineno, node


def test_every_line_has_an_event_and_a_text_that_is_no_value() -> None:
    found = list(log_calls())
    assert len(found) > 50
    for name, line, call in found:
        where = f"{name}:{line}"
        assert isinstance(call.args[0], ast.Constant), f"{where}: arguments stand beside the text, not in it"
        extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
        assert isinstance(extra, ast.Call), f"{where}: extra=fields(...) is missing"
        assert ast.unparse(extra.func) == "fields", where
        assert isinstance(extra.args[0], ast.Constant), where


def test_the_documents_list_every_event_with_its_levels_and_fields() -> None:
    levels: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for _, _, call in log_calls():
        assert isinstance(call.func, ast.Attribute)
        extra = next(keyword.value for keyword in call.keywords if keyword.arg == "extra")
        assert isinstance(extra, ast.Call)
        event = ast.literal_eval(extra.args[0])
        traced = any(keyword.arg == "exc_info" for keyword in call.keywords)
        levels.setdefault(event, set()).add(LEVELS[call.func.attr] + "+" * traced)
        named.setdefault(event, set()).update(keyword.arg or "" for keyword in extra.keywords)
    table = (ROOT / "docs/logs.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [\w., ]+ \| ([\w+, ]+) \| ([\w, ]*)\|", table, re.MULTILINE)
    listed = {
        event: (set(level.split(", ")), set(filter(None, text.strip().split(", ")))) for event, level, text in rows
    }
    assert listed == {event: (levels[event], named[event]) for event in levels}
    assert [event for event, _, _ in rows] == sorted(levels)


def test_no_field_meets_a_name_of_the_record() -> None:
    own = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
    assert not own & set(fields("e", **dict.fromkeys(sorted(own), "x")))


def test_fields_leave_out_what_is_not_known_and_cut_what_is_long() -> None:
    assert fields("e", tenant=None, count=0, model="m" * 300) == {
        "askii_event": "e",
        "askii_count": 0,
        "askii_model": "m" * 256,
    }


def test_text_of_others_cannot_look_like_a_line_of_its_own() -> None:
    assert shown("acme") == "acme"
    assert "\n" not in shown("acme\nERROR all is lost")
    assert len(shown("x" * 10_000)) < 300


# Many of a kind -------------------------------------------------------------------------------------------------------


def test_a_tenants_refusals_are_one_line_a_minute_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = EventLog(clock=clock)
    for number in range(500):
        log.refused("acme", denial(reason="held" if number % 5 == 4 else "spent"), f"call-{number}")
        log.refused("zeta", denial("tenant=zeta"), f"other-{number}")
    log.tick()
    assert caplog.records == []
    clock.now_s += 60
    log.tick()
    acme = {
        "event": "budget_exceeded",
        "tenant": "acme",
        "scope": "tenant=acme",
        "reason": "spent",
        "count": 500,
        "held_count": 100,
        "resets_at": "2026-01-02T00:00:00Z",
        "call_id": "call-0",
    }
    zeta = {**acme, "tenant": "zeta", "scope": "tenant=zeta", "held_count": 0, "call_id": "other-0"}
    assert [known(record) for record in caplog.records] == [acme, zeta]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    log.tick()
    log.flush()
    assert len(caplog.records) == 2


def test_a_refusal_of_the_next_minute_does_not_wait_for_a_tick(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(START_S + 59)
    log = EventLog(clock=clock)
    log.refused("acme", denial(), "one")
    clock.now_s += 1
    log.refused("acme", denial(), "two")
    log.flush()
    assert [(line["count"], line["call_id"]) for line in events(caplog, "budget_exceeded")] == [(1, "one"), (1, "two")]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=200))
def test_no_refusal_is_lost_and_no_minute_has_more_lines_than_the_bound(asked: list[tuple[int, int]]) -> None:
    clock, lines = Clock(), list[tuple[int, str | None, int]]()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = known(record)
            lines.append((minute, told.get("tenant"), told["count"]))

    log, handler, logger = (
        EventLog(clock=clock, max_tenants=5),
        Collect(),
        logging.getLogger("askii_middleware.budgets"),
    )
    logger.addHandler(handler)
    minute = 0
    try:
        for tenant, later_s in asked:
            clock.now_s += later_s
            log.tick()
            minute = int(clock.now_s // 60)
            log.refused(f"t{tenant}", denial(), "c")
        log.flush()
    finally:
        logger.removeHandler(handler)
    assert sum(count for _, _, count in lines) == len(asked)
    assert max(Counter(minute for minute, _, _ in lines).values(), default=0) <= 6
    assert len({(minute, tenant) for minute, tenant, _ in lines}) == len(lines)


def test_a_store_that_is_away_is_told_at_once_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = EventLog(clock=clock)
    for number in range(1000):
        log.store_failed("reserve", StoreError("away"), f"call-{number}")
    log.store_failed("heartbeat", TimeoutError())
    first = {"event": "store_failed", "operation": "reserve", "call_id": "call-0", "error_type": "StoreError"}
    beat = {"event": "store_failed", "operation": "heartbeat", "error_type": "TimeoutError"}
    assert [known(record) for record in caplog.records] == [first, beat]
    assert "(TimeoutError)" in caplog.records[1].getMessage()
    clock.now_s += 60
    log.tick()
    assert [known(record) for record in caplog.records[2:]] == [
        {"event": "store_failing", "operation": "reserve", "count": 999}
    ]


async def test_refused_requests_and_blocks_are_told_together_when_the_tracker_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ledger(budgets=[Budget(scope="tenant=*", limit_usd="0.000001")]) as book:
        app = book.around(Scripted([]))
        ids = [(await ask(app)).own_headers["x-askii-call-id"] for _ in range(30)]
        with pytest.raises(BudgetExceededError):
            await book.tracker.track_tokens("acme", "big", expected_input_tokens=9).__aenter__()
        assert events(caplog, "budget_exceeded") == []
    (line,) = events(caplog, "budget_exceeded")
    assert (line["count"], line["call_id"], line["scope"]) == (31, ids[0], "tenant=acme")


async def test_an_outage_is_a_line_or_two_for_each_operation_not_for_each_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FaultyStore(MemoryStore())  # type: ignore[abstract]
    async with CostTracker(store=store, prices=PRICES, on_store_error="allow") as tracker:
        app = AskiiMiddleware(Scripted(plain(chat_answer())), tracker=tracker, identify=lambda _scope: "acme")
        store.down = True
        answers = [await ask(app) for _ in range(40)]
        store.down = False
    assert {answer.status for answer in answers} == {200}
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 8
    counted = Counter({line["operation"]: line["count"] for line in events(caplog, "store_failing")})
    counted.update(line["operation"] for line in events(caplog, "store_failed"))
    assert (counted["reserve"], counted["settle"]) == (40, 40)


# Money ----------------------------------------------------------------------------------------------------------------


async def test_a_charge_tells_usd_coins_and_rate_at_debug_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", "2.5e6")
    async with ledger() as book:
        caplog.set_level(logging.INFO, logger="askii_middleware")
        await ask(book.around(Scripted(plain(chat_answer(7, 3)))))
        assert caplog.records == []
        caplog.set_level(logging.DEBUG, logger="askii_middleware")
        answer = await ask(book.around(Scripted(plain(chat_answer(7, 3)))))
    call_id = answer.own_headers["x-askii-call-id"]
    assert events(caplog, "converted") == [
        {
            "event": "converted",
            "call_id": call_id,
            "tenant": "acme",
            "usd": "0.000037",
            "coins": "92.5",
            "exchange_rate": 2_500_000.0,
        }
    ]
    text = f"call {call_id}: 0.000037 USD = 92.5 Askii Coins at 2500000.0 coins per USD"
    assert text in [record.getMessage() for record in caplog.records]


async def test_a_callers_own_call_id_cannot_look_like_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="askii_middleware")
    store = FaultyStore(MemoryStore())  # type: ignore[abstract]
    async with CostTracker(store=store, prices=PRICES) as tracker:
        store.faults["settle"] = ["ok", "fail", RuntimeError("defect"), UnwritableError("no")]
        for number in range(4):
            await tracker.record_usage("acme", "big", input_tokens=1, call_id=f"{number}\nERROR all is lost")
    said = {getattr(line, "askii_event", "") for line in caplog.records}
    assert {"converted", "write_waits", "store_failed", "charge_rejected"} <= said
    assert [line.getMessage() for line in caplog.records if "\n" in line.getMessage()] == []


# Formatters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FORMATTERS)
def test_json_formatters_show_the_fields_of_hostile_names_in_one_line(make: Any) -> None:
    stream, logger = io.StringIO(), logging.getLogger("askii_middleware.budgets")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make())
    logger.addHandler(handler)
    names = ["a\nb", 'q"uote', "\x1b[31m", "\u2028", "\U0001f600" * 9, "%s %d {x}", "x" * 250]
    try:
        log = EventLog(clock=Clock())
        for name in names:
            log.refused(name, denial(f"tenant={name}"), "call-1")
        log.flush()
    finally:
        logger.removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().split("\n") if line]
    assert [line["askii_tenant"] for line in lines] == names
    assert {(line["askii_event"], line["askii_count"], line["askii_call_id"]) for line in lines} == {
        ("budget_exceeded", 1, "call-1")
    }
    assert all(line.get("message", line.get("event", "")).isprintable() for line in lines)


def test_wrong_tokens_are_one_line_a_minute_even_where_the_clock_was_set_back() -> None:
    clock = Clock()
    tokens = WrongTokens(clock)
    counts = []
    for step in (0, 1, 58.5, 0.5, 1, -3600, 1):
        clock.now_s += step
        counts.append(tokens.note())
    assert counts == [1, None, None, 3, None, 2, None]
