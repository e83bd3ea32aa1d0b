"""What `askii` does with keys, prices, budgets, reports and tenants' data."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from askii_middleware.cli import main
from askii_middleware.cli_output import progress, show
from askii_middleware.identity import Identity
from askii_middleware.keys import KeyProblem, hash_secret
from askii_middleware.settings import load_settings
from askii_middleware.tracker import CostTracker


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Askii = Callable[..., Done]
CONFIG = """
store = "sqlite:///{folder}/askii.db"
[pricing.house]
input_usd_per_mtok = 1
output_usd_per_mtok = 2
[[budgets]]
scope = "tenant=acme"
limit_usd = 5
alert_at = [0.5]
[[keys]]
id = "declared"
sha256 = "{digest}"
tenant = "acme"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "askii.toml"
    path.write_text(CONFIG.format(folder=tmp_path, digest=hash_secret("sk-askii-declared")))
    return str(path)


@pytest.fixture
def askii(config: str, capsys: pytest.CaptureFixture[str]) -> Askii:
    def run(*arguments: str) -> Done:
        status = main([*arguments, "--config", config])
        return Done(status, *capsys.readouterr())

    return run


def use(config: str, work: Callable[[CostTracker], Coroutine[Any, Any, Any]]) -> Any:
    """Something a worker does."""

    async def run() -> Any:
        async with CostTracker.from_settings(load_settings(config)) as tracker:
            return await work(tracker)

    return asyncio.run(run())


def holder(config: str, secret: str) -> str | KeyProblem:
    async def find(tracker: CostTracker) -> Any:
        found = await tracker.keys.directory.find(secret)
        return found if isinstance(found, KeyProblem) else found.id

    found: str | KeyProblem = use(config, find)
    return found


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_with_all_that_it_may_say(askii: Askii, config: str) -> None:
    made = askii(
        *("keys", "add", "acme", "--id", "k", "--name", "Batch", "--user", "u", "--team", "t", "--tag", "a"),
        *("--tag", "b", "--model", "openai/GPT-4o", "--model", "house", "--expires", "2d", "--json"),
    )
    assert made.status == 0
    row = made.json
    assert {name: row[name] for name in ("id", "name", "user", "team", "tags", "models", "revoked")} == {
        "id": "k",
        "name": "Batch",
        "user": "u",
        "team": "t",
        "tags": "a,b",
        "models": "gpt-4o,house",
        "revoked": False,
    }
    left = datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=1, hours=23) < left <= timedelta(days=2)
    assert holder(config, row["secret"]) == "k"
    assert row["sha256"] == hash_secret(row["secret"])


@pytest.mark.parametrize("when", ["soon", "2001-01-01", "0d", "2026-13-01"])
def test_a_key_that_expires_at_no_moment_to_come_is_not_made(when: str, askii: Askii) -> None:
    done = askii("keys", "add", "acme", "--expires", when)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("askii: keys add: ")
    assert len(askii("keys", "list", "--json").json) == 1


def test_a_rotated_key_opens_with_both_secrets_unless_there_is_no_overlap(askii: Askii, config: str) -> None:
    first = askii("keys", "add", "acme", "--id", "k", "--json").json["secret"]
    done = askii("keys", "rotate", "k", "--overlap", "2h", "--json")
    assert f"the secret before opens it until {done.json['former_until']}\n" in done.err
    assert {row["id"]: row["former_until"] is None for row in askii("keys", "list", "--json").json}["k"] is False
    second = done.json["secret"]
    assert [holder(config, secret) for secret in (first, second)] == ["k", "k"]
    third = askii("keys", "rotate", "k", "--overlap", "0", "--json").json["secret"]
    assert [holder(config, secret) for secret in (first, second, third)] == [
        *[KeyProblem.UNKNOWN] * 2,
        "k",
    ]


def test_a_declared_key_is_rotated_into_the_ledger_and_listed_from_there(askii: Askii, config: str) -> None:
    assert [row["source"] for row in askii("keys", "list", "--json").json] == ["config"]
    secret = askii("keys", "rotate", "declared", "--json").json["secret"]
    assert [holder(config, one) for one in (secret, "sk-askii-declared")] == ["declared", "declared"]
    assert [row["source"] for row in askii("keys", "list", "--json").json] == ["store"]


def test_keys_are_listed_for_one_tenant_without_their_secrets(askii: Askii) -> None:
    secret = askii("keys", "add", "globex", "--id", "g", "--json").json["secret"]
    done = askii("keys", "list", "--tenant", "globex")
    assert [line.split()[0] for line in done.out.splitlines()] == ["id", "g"]
    assert re.search(r" 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ ", done.out)  # no microseconds
    assert secret not in done.out
    assert hash_secret(secret) not in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rotate", "nobody"), "no key has the id 'nobody'"),
        (("revoke", "nobody"), "no key has the id 'nobody'"),
        (("rotate", "declared", "--overlap", "90d"), "keys rotate: an overlap takes 0 to 31 days"),
        (("add", "acme", "--id", "a/b"), "keys add: a key's id has"),
    ],
)
def test_what_cannot_be_done_with_a_key_is_said_in_one_line(
    arguments: tuple[str, ...], message: str, askii: Askii
) -> None:
    done = askii("keys", *arguments)
    assert done.status == 1
    assert message in done.err
    assert done.err.count("\n") == 1


# Budgets -------------------------------------------------------------------------------------------------------------


def test_a_budget_is_disabled_and_enabled_and_keeps_what_else_it_says(askii: Askii) -> None:
    off = askii("budget", "set", "tenant=acme", "--disable", "--json").json
    assert (off["limit_usd"], off["alert_at"], off["enabled"], off["source"]) == ("5", "0.5", False, "store")
    assert askii("budget", "status", "tenant=acme", "--json").json == []
    on = askii("budget", "set", "tenant=acme", "--enable", "--soft", "--json").json
    assert (on["limit_usd"], on["enabled"], on["soft"]) == ("5", True, True)
    assert askii("budget", "set", "tenant=acme", "--no-soft", "--json").json["soft"] is False
    assert askii("budget", "set", "tenant=acme", "--usd", "7", "--disable", "--json").json["enabled"] is False


def test_only_a_budget_that_is_there_can_be_changed(askii: Askii) -> None:
    done = askii("budget", "set", "tenant=globex", "--disable")
    assert (done.status, done.out) == (1, "")
    assert "no budget 'tenant=globex|daily' to change: give --usd or --coins" in done.err


# Prices --------------------------------------------------------------------------------------------------------------


def test_a_price_is_set_listed_charged_and_removed(askii: Askii, config: str) -> None:
    done = askii("prices", "set", "house", "--input", "3.5", "--output", "0.000001", "--json")
    assert done.json["input_usd_per_mtok"] == "3.5"
    rows = askii("prices", "list", "--json").json
    assert rows == [
        {"model": "house", "input_usd_per_mtok": "3.5", "output_usd_per_mtok": "0.000001", "source": "store"}
    ]
    record = use(config, lambda tracker: tracker.record_usage("acme", "house", input_tokens=2))
    assert record.cost_nano_usd == 7_000
    shown = askii("price", "house", "--json").json
    assert (shown["input_usd_per_mtok"], shown["source"]) == ("3.5", "store")
    assert askii("prices", "set", "azure/house", "--input", "4").status == 0
    assert askii("prices", "rm", "house", "--json").json == {"model": "house", "removed": 2}
    again = askii("prices", "rm", "house")
    assert (again.status, "no such price" in again.err) == (1, True)
    assert askii("price", "house", "--json").json["source"] == "configuration"


def test_a_price_that_may_be_in_the_wrong_unit_needs_an_option_that_is_named(askii: Askii) -> None:
    done = askii("prices", "set", "dear", "--input", "2000")
    assert (done.status, "check the unit, or set --allow-high" in done.err) == (1, True)
    assert askii("prices", "set", "dear", "--input", "2000", "--allow-high").status == 0


def test_a_file_in_litellms_format_sets_prices_digit_by_digit(askii: Askii, tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"new": {"mode": "chat", "input_cost_per_token": 0.00000123456789012345678}}')
    assert askii("prices", "load", str(file), "--json").json == {"set": 1, "models": ["new"]}
    (row, *_) = [row for row in askii("prices", "list", "--json").json if row["model"] == "new"]
    assert row["input_usd_per_mtok"].rstrip("0") == "1.23456789012345678"
    file.write_text('{"new": {"mode": "chat", "input_cost_per_token": 5e-07, "output_cost_per_token": 1e-04}}')
    assert askii("prices", "load", str(file)).status == 0
    head, *rows = (line.split() for line in askii("prices", "list").out.splitlines())
    assert head == ["model", "provider", "input", "output", "cache_read", "cache_write", "more", "source"]
    assert ["new", "-", "0.5", "100", "-", "-", "-", "store"] in rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[]", "is not a table of models"),
        ('{"m": {"input_usd_per_mtok": 5000}}', "'m': input_usd_per_mtok: 5000 USD per million is more than 1000"),
        (None, "cannot read"),
    ],
)
def test_a_file_of_prices_that_cannot_be_used_changes_nothing(
    content: str | None, message: str, askii: Askii, tmp_path: Path
) -> None:
    file = tmp_path / "prices.json"
    if content is not None:
        file.write_text(content)
    done = askii("prices", "load", str(file))
    assert done.status == 1
    assert message in done.err
    assert [row["source"] for row in askii("prices", "list", "--json").json] == ["config"]


def test_to_ask_for_a_price_makes_no_ledger(askii: Askii, tmp_path: Path) -> None:
    assert askii("price", "house", "--json").json["source"] == "configuration"
    assert not (tmp_path / "askii.db").exists()


# Reports -------------------------------------------------------------------------------------------------------------


def some_usage(config: str) -> None:
    async def record(tracker: CostTracker) -> None:
        for user, tokens in (("=ann", 1000), ("bob", 500)):
            await tracker.record_usage(Identity(tenant="acme", user=user), "house", input_tokens=tokens)
        await tracker.record_usage("globex", "house", output_tokens=5)

    use(config, record)


def test_a_report_has_the_month_so_far_in_both_currencies(askii: Askii, config: str) -> None:
    some_usage(config)
    table = askii("report", "--json").json
    assert table["total"] == {
        "value": "total",
        "requests": 3,
        "input_tokens": 1500,
        "output_tokens": 5,
        "cost_usd": "0.00151",
        "cost_askii_coins": "1510",
    }
    today = datetime.now(UTC).date()
    assert table["by_day"][0]["value"] == today.replace(day=1).isoformat()
    assert [line["value"] for line in table["by_tenant"]] == ["acme", "globex"]
    done = askii("report", "tenant=globex", "--from", today.isoformat(), "--to", today.isoformat(), "--zone", "UTC")
    assert done.out.splitlines()[1].split() == ["total", "total", "1", "0", "5", "0.00001", "10"]
    assert done.out.splitlines()[-1] == f"tenant=globex, {today} to {today} (UTC); 1 USD is 1,000,000 coins"


def test_a_report_as_csv_runs_no_formula(askii: Askii, config: str) -> None:
    some_usage(config)
    done = askii("report", "tenant=acme", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out, newline="")))
    assert [row["value"] for row in rows if row["part"] == "user"] == ["'=ann", "bob"]
    assert rows[0]["cost_usd"] == "0.0015"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tenant=acme,model=house",), "spend is kept for"),
        (("--from", "yesterday"), "--from takes a day such as"),
        (("--from", "2026-01-02", "--to", "2026-01-01"), "2026-01-02 to 2026-01-01 is no span of 1 to 400 days"),
        (("--zone", "Mars/Olympus"), "time zone 'Mars/Olympus' is unknown"),
        (("--csv", "--json"), "give --csv or --json"),
        (("--since", "2026-01-01"), "--since counts only with --reconcile"),
        (("--tenant", "acme"), "--tenant counts only with --reconcile"),
        (("tenant=acme", "--reconcile"), "scope counts only without --reconcile"),
        (("--csv", "--reconcile"), "--csv counts only without --reconcile"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(arguments: tuple[str, ...], message: str, askii: Askii) -> None:
    done = askii("report", *arguments)
    assert (done.status, done.out) == (1, "")
    assert message in done.err


# Tenants -------------------------------------------------------------------------------------------------------------


def test_a_tenants_data_is_exported_to_a_new_file_for_its_owner_alone(
    askii: Askii, config: str, tmp_path: Path
) -> None:
    some_usage(config)
    askii("keys", "add", "acme", "--id", "k")
    file = tmp_path / "acme.jsonl"
    assert askii("tenant", "export", "acme", str(file), "--json").json == {
        "tenant": "acme",
        "lines": 4,
        "file": str(file),
    }
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert sorted(kinds) == ["day", "key", "usage", "usage"]
    assert file.stat().st_mode & 0o777 == 0o600
    nobody = askii("tenant", "export", "acne")
    assert (nobody.out, nobody.err) == ("", "askii: the ledger has nothing of a tenant 'acne'\n")
    again = askii("tenant", "export", "acme", str(file))
    assert (again.status, "tenant export: cannot create" in again.err) == (1, True)


def test_a_tenants_data_is_deleted_only_when_it_is_meant(
    askii: Askii, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_usage(config)
    monkeypatch.setattr(sys, "stdin", io.StringIO("no\n"))
    done = askii("tenant", "delete", "acme")
    assert (done.status, done.out) == (1, "")
    assert "nothing was deleted" in done.err
    assert askii("tenant", "show", "acme", "--json").json[0]["state"] == "active"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert askii("tenant", "delete", "acme").status == 0
    again = askii("tenant", "delete", "acme", "--yes", "--json")
    assert (again.json["tenant"], again.json["records"]) == ("acme", 0)
    assert "1 keys of this tenant are declared in askii.toml, such as 'declared': they are revoked" in again.err
    assert askii("tenant", "show", "acme", "--json").json[0]["state"] == "suspended"
    assert askii("report", "tenant=acme", "--json").json["total"]["requests"] == 0
    assert askii("report", "--json").json["total"]["requests"] == 3


def test_what_is_no_tenant_is_told_in_one_line(askii: Askii) -> None:
    for action in ("export", "suspend"):
        done = askii("tenant", action, "x" * 257)
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert done.err.startswith(f"askii: tenant {action}: tenant must be text")


# Output --------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_tables_are_richs_and_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Terminal())
    show([{"name": "[red]x[/red]\x1b[2J", "usd": "1.5"}, {"name": "y", "usd": None}], as_json=False)
    told = sys.stdout.getvalue()  # type: ignore[union-attr]
    assert "[red]x[/red]\\x1b[2J" in told
    assert "─" in told
    assert "\x1b[2J" not in told


def test_on_a_terminal_columns_that_say_nothing_leave_their_room_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Terminal())
    show([{"id": "key_1", "user": None, "created_at": "2026-01-31T12:00:00Z"}], as_json=False)
    head, _, row = sys.stdout.getvalue().split("\n")[1:4]  # type: ignore[union-attr]
    assert (head.split(), row.split()) == (["id", "created", "at"], ["key_1", "2026-01-31T12:00:00Z"])


def test_a_table_too_wide_for_the_terminal_becomes_a_list_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Terminal())
    names = ("id", "limit_usd", "spent_usd", "held_usd", "resets_at")
    show([dict.fromkeys(names, f"[b]{n}[/b]-2026-01-31T12:00:00Z") for n in range(2)], as_json=False)
    lines = sys.stdout.getvalue().splitlines()  # type: ignore[union-attr]
    assert [line.rstrip() for line in lines] == [
        *(f"{name.replace('_', ' '):<9}  [b]0[/b]-2026-01-31T12:00:00Z" for name in names),
        "",
        *(f"{name.replace('_', ' '):<9}  [b]1[/b]-2026-01-31T12:00:00Z" for name in names),
        "",
    ]


def test_without_rich_tables_are_columns_of_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("rich.console", "rich.box", "rich.progress"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show([{"name": "x", "usd": "1.5"}], as_json=False)
    assert capsys.readouterr().out == "name  usd\nx     1.5\n"
    with progress("lines") as on_progress:
        on_progress(3)
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("records read") as on_progress:
        on_progress(3)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("records read") as on_progress:
        on_progress(1234)
    assert "1234 records read" in sys.stderr.getvalue()  # type: ignore[union-attr]
