"""`askii adjust` and `askii reprice`: what they print, and that doing them twice does nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.cli import main
from askii_middleware.settings import load_settings
from askii_middleware.tracker import CostTracker

ROOT = Path(__file__).parents[1]
PRICES = '[pricing."m"]\ninput_usd_per_mtok = {}\noutput_usd_per_mtok = 2\n'


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A ledger with two calls of `acme`, of 1,000,000 nano-USD each."""
    path = tmp_path / "askii.toml"
    path.write_text(
        f'store = "sqlite:///{tmp_path / "askii.db"}"\n{PRICES.format(1)}[sinks.log]\npath = "{tmp_path}/u.jsonl"\n'
    )

    async def use() -> None:
        async with CostTracker.from_settings(load_settings(path)) as tracker:
            for call_id in ("c1", "c2"):
                await tracker.record_usage("acme", "m", input_tokens=1000, call_id=call_id)

    asyncio.run(use())
    return str(path)


def told(config: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    """What a command that succeeds says as JSON, and what it adds."""
    assert main([*arguments, "--json", "--config", config]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def failed(config: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--config", config]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("askii: ")
    assert len(err.splitlines()) == 1
    return err


def test_a_credit_is_told_and_a_repeated_command_says_that_it_did_nothing(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("adjust", "acme", "-0.0004", "--reason", "slow", "--ref", "c1")
    first, silence = told(config, capsys, *command)
    assert first == {
        "id": first["id"],
        "call_id": "c1~adjustment~1",
        "tenant": "acme",
        "subscription": "acme",
        "usd": "-0.0004",
        "askii_coins": 0,
        "reason": "slow",
        "reference": "c1",
        "timestamp": first["timestamp"],
        "repeated": False,
    }
    assert silence == ""
    again, notice = told(config, capsys, *command)
    assert again == {**first, "repeated": True}
    assert notice == "askii: this was done before, so nothing was changed; another --id does it once more\n"
    other, _ = told(config, capsys, *command, "--id", "second")
    assert (other["id"], other["call_id"], other["repeated"]) == ("second", "c1~adjustment~2", False)


def test_without_a_call_every_command_is_another_adjustment_whose_id_is_told(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("adjust", "acme", "0.25", "--reason", "fee")
    ids = {told(config, capsys, *command)[0]["id"] for _ in range(2)}
    assert len(ids) == 2
    again, _ = told(config, capsys, *command, "--id", ids.pop())
    assert again["repeated"] is True


def test_more_than_the_call_has_cost_takes_force(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("adjust", "acme", "-0.0011", "--reason", "r", "--ref", "c1")
    assert "0.001 are left: 0.0011 USD are more than can be credited to it" in failed(config, capsys, *command)
    assert told(config, capsys, *command, "--force")[0]["usd"] == "-0.0011"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acme", "1e3"), "'1e3' is not an amount in USD: write it plainly"),
        (("acme", "nan"), "'nan' is not an amount"),
        (("acme", "0"), "changes nothing"),
        (("acme", "0.0000000001"), "is not an amount"),
        (("acme", "99999999"), "more than a counter holds (9007199.254740991)"),
        (("", "1"), "an identity needs a tenant"),
        (("a\0b", "1"), "without NUL"),
        (("acme", "-1", "--ref", "c9"), "the ledger has no record of the call 'c9'"),
        (("other", "-0.0001", "--ref", "c1"), "is not one of the tenant 'other'"),
        (("acme", "-0.0001", "--id", "x" * 300), "1 to 256 characters"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_why(
    arguments: tuple[str, ...], message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(config, capsys, "adjust", *arguments, "--reason", "r")


def test_a_store_in_memory_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.toml"
    path.write_text('store = "memory://"\n')
    assert "lives inside one running process" in failed(str(path), capsys, "adjust", "acme", "1", "--reason", "r")
    command = ("reprice", "--model", "m", "--since", "2020-01-01")
    assert "lives inside one running process" in failed(str(path), capsys, *command)


def test_budget_status_shows_the_lower_spend(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "set", "tenant=acme", "--usd", "1", "--period", "total", "--config", config]) == 0
    assert main(["adjust", "acme", "0.5", "--reason", "fee", "--config", config]) == 0
    assert main(["adjust", "acme", "-0.2", "--reason", "less", "--config", config]) == 0
    capsys.readouterr()
    (line,), _ = told(config, capsys, "budget", "status", "tenant=acme")
    assert (line["spent_usd"], line["remaining_usd"]) == ("0.3", "0.7")


def at_another_price(config: str) -> None:
    path = Path(config)
    path.write_text(path.read_text().replace("input_usd_per_mtok = 1\n", "input_usd_per_mtok = 3\n"))


def test_repricing_tells_sums_and_what_it_could_not_price(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    at_another_price(config)
    assert main(["adjust", "acme", "-0.0001", "--reason", "r", "--ref", "c1", "--config", config]) == 0
    capsys.readouterr()
    command = ("reprice", "--model", "m", "--since", "2020-01-01")
    planned, _ = told(config, capsys, *command, "--dry-run")
    assert planned == {
        "dry_run": True,
        "records_read": 3,
        "adjusted": 2,
        "usd": "0.004",
        "unchanged": 0,
        "capped": 0,
        "sums": [{"tenant": "acme", "model": "m", "calls": 2, "usd": "0.004"}],
        "skipped": [
            {
                "reason": "an adjustment by hand, which stays as it is",
                "count": 1,
                "examples": ["c1~adjustment~1"],
            }
        ],
    }
    done, _ = told(config, capsys, *command)
    assert done == {**planned, "dry_run": False, "records_read": 5}
    again, _ = told(config, capsys, *command)
    assert (again["adjusted"], again["usd"], again["unchanged"], again["sums"]) == (0, "0", 2, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "typo"), "no record in this span has the model 'typo' (2 records read)"),
        (("--model", "m", "--tenant", "globex"), "no record of the tenant 'globex' in this span has the model 'm'"),
        (("--model", "m", "--until", "2020-01-02"), "no record in this span has the model 'm'"),
    ],
)
def test_repricing_what_is_in_no_record_fails_and_says_so(
    arguments: tuple[str, ...], message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(config, capsys, "reprice", "--since", "2020-01-01", *arguments)


def test_an_adjustment_that_no_sink_will_bill_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "askii.toml"
    path.write_text(f'store = "sqlite:///{tmp_path / "askii.db"}"\n')
    _, err = told(str(path), capsys, "adjust", "acme", "-1", "--reason", "goodwill")
    assert err == "askii: no sink is registered in this ledger, so no sink will ever bill this\n"


def test_repricing_in_plain_text(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    at_another_price(config)
    command = [
        "reprice",
        "--model",
        "m",
        "--since",
        "2020-01-01T00:00:00Z",
        "--until",
        "2100-01-01",
        "--config",
        config,
    ]
    assert main(["adjust", "acme", "0.0001", "--reason", "r", "--ref", "c1", "--config", config]) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tenant  model  calls  usd",
        "acme    m      2      0.004",
        "2 calls would get adjustments of 0.004 USD in all; 0 need none",
        "not priced again: 1 records: an adjustment by hand, which stays as it is (c1~adjustment~1)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "yesterday"), "--since takes a date or a moment such as 2026-01-31"),
        (("--since", "2026-01-02", "--until", "31.12."), "--until takes a date"),
        (("--since", "2026-01-02", "--until", "2026-01-01"), "ends before it begins"),
    ],
)
def test_a_span_that_is_none_is_refused(
    arguments: tuple[str, ...], message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(config, capsys, "reprice", "--model", "m", *arguments)


def test_on_a_terminal_it_shows_how_far_it_is(config: str, tmp_path: Path) -> None:
    at_another_price(config)
    shown, terminal = pty.openpty()
    command = [sys.executable, "-m", "askii_middleware", "reprice", "--model", "m", "--since", "2020-01-01"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    with os.fdopen(shown, "rb", buffering=0) as reader, os.fdopen(terminal, "wb") as writer:
        done = subprocess.run(
            [*command, "--config", config, "--json"],
            stdout=subprocess.PIPE,
            stderr=writer,
            check=True,
            cwd=tmp_path,
            env=environment,
        )
        text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", reader.read(65_536))
    assert b"4 records read" in text
    assert json.loads(done.stdout)["adjusted"] == 2
