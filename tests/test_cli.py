"""`askii` as its users see it: exit statuses, exact amounts, and errors in one line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from askii_middleware.cli import main
from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.errors import BudgetExceededError
from askii_middleware.keys import SECRET_PREFIX, hash_secret
from askii_middleware.settings import load_settings
from askii_middleware.tracker import CostTracker

from .support.servers import serving

ROOT = Path(__file__).parents[1]

CONFIG = """
store = "sqlite:///ledger.db"

[pricing."local-llama"]
input_usd_per_mtok = 0.0371
output_usd_per_mtok = 0

[[budgets]]
scope = "tenant=*"
limit_usd = 10

[[keys]]
id = "declared"
sha256 = "{digest}"
tenant = "acme"
models = ["gpt-4o"]
"""


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Askii = Callable[..., Done]


@pytest.fixture
def askii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Askii:
    """Run the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("ASKII_"):
            monkeypatch.delenv(name)

    def run(*arguments: str) -> Done:
        status = main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(status, out, err)

    return run


@pytest.fixture
def configured(askii: Askii, tmp_path: Path) -> Askii:
    (tmp_path / "askii.toml").write_text(CONFIG.format(digest="ab" * 32))
    return askii


def with_ledger(work: Callable[[CostTracker], Any]) -> Any:
    async def run() -> Any:
        async with CostTracker.from_settings(load_settings()) as tracker:
            return await work(tracker)

    return asyncio.run(run())


# Budgets -------------------------------------------------------------------------------------------------------------


def test_budget_status_has_the_contracts_members_with_exact_decimals(configured: Askii) -> None:
    assert configured("budget", "set", "tenant=acme", "--usd", "0.1", "--period", "total").status == 0
    with_ledger(lambda tracker: tracker.record_usage("acme", "local-llama", input_tokens=1_000_000))
    lines = configured("budget", "status", "tenant=acme", "--json").json
    assert [list(line) for line in lines] == [
        [
            *("scope", "period", "limit_usd", "spent_usd", "held_usd", "remaining_usd"),
            *("limit_coins", "spent_coins", "held_coins", "remaining_coins", "resets_at", "source"),
            *("zone", "soft", "status"),
        ]
    ] * 2
    daily, total = lines
    assert daily | {"resets_at": ""} == {
        "scope": "tenant=acme",
        "period": "daily",
        "limit_usd": "10",
        "spent_usd": "0.0371",
        "held_usd": "0",
        "remaining_usd": "9.9629",
        "limit_coins": "10000000",
        "spent_coins": "37100",
        "held_coins": "0",
        "remaining_coins": "9962900",
        "resets_at": "",
        "source": "config",
        "zone": "UTC",
        "soft": False,
        "status": "ok",
    }
    assert daily["resets_at"].endswith("T00:00:00Z")
    assert (total["limit_usd"], total["remaining_usd"], total["source"]) == ("0.1", "0.0629", "store")
    assert total["resets_at"] == "9999-12-31T23:59:59Z"


def test_an_exempt_tenant_has_no_limit_and_amounts_are_plain(configured: Askii) -> None:
    assert configured("budget", "set", "tenant=acme", "--usd", "none").status == 0
    (line,) = configured("budget", "status", "tenant=acme", "--json").json
    assert (line["limit_usd"], line["remaining_usd"], line["limit_coins"], line["spent_usd"]) == (None, None, None, "0")
    small = configured("budget", "set", "tenant=acme", "--usd", "1e-9", "--json").json
    assert small["limit_usd"] == "0.000000001"


def test_budgets_are_listed_with_where_they_come_from_and_removed(configured: Askii) -> None:
    configured("budget", "set", "tenant=acme", "--coins", "1e7", "--zone", "Europe/Berlin")
    configured("budget", "set", "tenant=*", "--usd", "20")
    rows = configured("budget", "list", "--json").json
    assert [(row["scope"], row["limit_usd"], row["limit_coins"], row["zone"], row["source"]) for row in rows] == [
        ("tenant=*", "20", None, "UTC", "store"),
        ("tenant=acme", None, "10000000", "Europe/Berlin", "store"),
    ]
    assert configured("budget", "rm", "tenant=*", "--json").json == {"removed": True, "budget": "tenant=*|daily"}
    rows = configured("budget", "list", "--json").json
    assert (rows[0]["scope"], rows[0]["limit_usd"], rows[0]["source"]) == ("tenant=*", "10", "config")
    gone = configured("budget", "rm", "tenant=*")
    assert (gone.status, "declared ones are removed in askii.toml" in gone.err) == (1, True)
    table = configured("budget", "list").out.splitlines()
    columns = ["scope", "period", "zone", "limit_usd", "limit_coins", "alert_at", "soft", "max_values", "enabled"]
    assert table[0].split() == [*columns, "source"]
    assert table[1].split() == ["tenant=*", "daily", "UTC", "10", "-", "-", "False", "-", "True", "config"]


def test_a_budget_set_on_the_command_line_binds_a_running_worker(configured: Askii) -> None:
    async def work() -> None:
        async with CostTracker.from_settings(load_settings()) as tracker:
            block = tracker.track_tokens("acme", "local-llama", expected_input_tokens=1000, max_output_tokens=0)
            async with block as usage:
                usage["input_tokens"] = 1000
            assert (
                await asyncio.to_thread(main, ["budget", "set", "tenant=acme", "--usd", "0", "--period", "weekly"]) == 0
            )
            with pytest.raises(BudgetExceededError, match="weekly"):
                await tracker.track_tokens("acme", "local-llama", expected_input_tokens=1).__aenter__()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget", "set", "tenant=acme", "--usd", "lots"], "limit_usd: 'lots' is not a number"),
        (["budget", "set", "tenant=acme", "--usd", "-1"], "limit_usd"),
        (["budget", "set", "tenant=acme", "--coins", "nan"], "limit_coins"),
        (["budget", "set", "colour=red", "--usd", "1"], "scope 'colour=red'"),
        (["budget", "set", "tenant=acme", "--usd", "1", "--period", "hourly"], "period 'hourly'"),
        (["budget", "set", "tenant=acme", "--usd", "1", "--zone", "Nowhere/City"], "time zone"),
        (["budget", "status", "acme"], "scope 'acme'"),
        (["budget", "rm", "tenant="], "scope 'tenant='"),
        (["budget", "list", "--config", "none.toml"], "'none.toml' does not exist"),
        (["keys", "add", ""], "tenant"),
        (["keys", "add", "acme", "--id", "declared"], "'declared' exists"),
        (["keys", "revoke", "nobody"], "no key has the id 'nobody'"),
        (["price", "nobody-knows"], "has no price"),
        (["convert", "inf"], "inf is not an amount"),
        (["convert", "-5"], "not an amount of at least 0"),
        (["serve", "--port", "0"], "no upstream"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_on_stderr(configured: Askii, arguments: list[str], message: str) -> None:
    done = configured(*arguments)
    assert (done.status, done.out) == (1, "")
    assert message in done.err
    assert done.err.startswith("askii: ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["frob"], ["budget"], ["budget", "set", "tenant=acme"], ["convert", "much"], ["demo", "--seconds", "0"]],
)
def test_wrong_usage_ends_with_status_2(askii: Askii, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        askii(*arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(("arguments", "named"), [((), "serve"), (("keys",), "rotate"), (("outbox",), "forget")])
def test_a_command_that_needs_another_shows_which_there_are(
    arguments: tuple[str, ...], named: str, askii: Askii, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        askii(*arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"\n    {named} " in err


def test_a_ledger_in_memory_cannot_be_reached(askii: Askii, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKII_STORE", "memory://")
    for arguments in (["budget", "list"], ["budget", "set", "tenant=a", "--usd", "1"], ["keys", "list"]):
        done = askii(*arguments)
        assert (done.status, "cannot reach it" in done.err) == (1, True)


def test_a_ledger_that_cannot_be_opened_is_an_error_with_advice(askii: Askii, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKII_STORE", "sqlite:////nowhere/at/all/ledger.db")
    done = askii("budget", "list")
    assert (done.status, "create its directory" in done.err) == (1, True)


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_keys_secret_is_shown_once_and_its_hash_kept(configured: Askii) -> None:
    made = configured("keys", "add", "acme", "--user", "u1", "--team", "t1", "--json")
    key = made.json
    assert key["secret"].startswith(SECRET_PREFIX)
    assert key["sha256"] == hash_secret(key["secret"])
    assert "shown only now" in made.err
    named = configured("keys", "add", "other", "--id", "mine", "--json").json
    assert named["id"] == "mine"
    listed = configured("keys", "list", "--json")
    assert key["secret"] not in listed.out
    rows = {row["id"]: row for row in listed.json}
    assert set(rows) == {key["id"], "mine", "declared"}
    assert (rows[key["id"]]["tenant"], rows[key["id"]]["user"], rows[key["id"]]["team"]) == ("acme", "u1", "t1")
    assert (rows["declared"]["source"], rows["declared"]["models"], rows["mine"]["source"]) == (
        "config",
        "gpt-4o",
        "store",
    )


def test_a_revoked_key_stays_revoked_wherever_it_is_declared(configured: Askii) -> None:
    for key in ("declared", configured("keys", "add", "acme", "--json").json["id"]):
        assert configured("keys", "revoke", key, "--json").json == {"id": key, "revoked": True}
        (row,) = [row for row in configured("keys", "list", "--json").json if row["id"] == key]
        assert (row["revoked"], row["source"], row["tenant"]) == (True, "store", "acme")


# Prices and coins -----------------------------------------------------------------------------------------------------


def test_prices_are_exact_and_say_where_they_come_from(configured: Askii) -> None:
    own = configured("price", "local-llama", "--json").json
    assert (own["input_usd_per_mtok"], own["output_usd_per_mtok"], own["source"]) == ("0.0371", "0", "configuration")
    listed = configured("price", "openai/GPT-4o-2024-11-20", "--json").json
    assert (listed["model"], listed["provider"]) == ("gpt-4o", "openai")
    assert (listed["input_usd_per_mtok"], listed["cache_read_usd_per_mtok"]) == ("2.5", "1.25")
    assert listed["source"].startswith("genai-prices ")


def test_amounts_convert_both_ways_at_the_current_rate(askii: Askii, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "2e6")
    assert askii("convert", "1.5", "--json").json == {"usd": 1.5, "askii_coins": 3e6, "exchange_rate": 2e6}
    assert askii("convert", "500000", "--coins", "--json").json == {
        "usd": 0.25,
        "askii_coins": 500_000.0,
        "exchange_rate": 2e6,
    }


# Check ---------------------------------------------------------------------------------------------------------------


def findings(done: Done) -> dict[str, tuple[str, str]]:
    return {row["check"]: (row["result"], row["detail"]) for row in done.json}


def test_a_sound_configuration_passes(configured: Askii) -> None:
    done = configured("check", "--json")
    assert done.status == 0
    assert findings(done) == {
        "exchange rate": ("ok", ""),
        "configuration": ("ok", "askii.toml"),
        "store": ("ok", "sqlite:///ledger.db"),
        "journal": ("ok", f"{Path('ledger.db.journal').absolute()}.*"),
    }


@pytest.mark.parametrize("rate", ["invalid", "", "0", "-1", "inf", "nan"])
def test_an_invalid_exchange_rate_fails(configured: Askii, monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setenv(RATE_VARIABLE, rate)
    done = configured("check", "--json")
    assert (done.status, findings(done)["exchange rate"][0]) == (1, "failed")


def test_what_is_wrong_in_the_configuration_or_the_store_fails(
    askii: Askii, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "askii.toml").write_text("stoer = 1\n")
    done = askii("check", "--json")
    assert (done.status, findings(done)["configuration"][0]) == (1, "failed")
    assert "stoer" in done.out
    (tmp_path / "askii.toml").write_text('[fallbacks]\n"gpt-4o" = ["nobody-knows"]\n')
    done = askii("check", "--json")
    assert (done.status, "nobody-knows" in findings(done)["configuration"][1]) == (1, True)
    (tmp_path / "askii.toml").write_text('store = "sqlite:////nowhere/x.db"\n')
    done = askii("check", "--json")
    assert (done.status, findings(done)["store"][0]) == (1, "failed")


def test_what_should_worry_is_a_warning(askii: Askii, tmp_path: Path) -> None:
    (tmp_path / "askii.db.journal.rejected").write_text("{}\n")
    done = askii("check", "--json")
    assert done.status == 0
    assert findings(done)["budgets"] == ("warning", "no budget limits anything")
    assert "askii.db.journal.rejected" in findings(done)["journal"][1]


def test_models_of_an_upstream_without_a_price_are_named(askii: Askii, monkeypatch: pytest.MonkeyPatch) -> None:
    async def upstream(scope: Any, _receive: Any, send: Any) -> None:
        keys = dict(scope["headers"])
        allowed = keys.get(b"authorization") == b"Bearer up-key" and scope["path"] == "/v1/models"
        body = json.dumps({"data": [{"id": "gpt-4o"}, {"id": "home-grown"}]}).encode()
        await send({"type": "http.response.start", "status": 200 if allowed else 401, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def run(key: str) -> Done:
        async with serving(upstream, lifespan="off") as url:
            table = {"openai": {"url": f"{url}/v1", "api_key": key}}
            monkeypatch.setenv("ASKII_UPSTREAMS", json.dumps(table))
            return await asyncio.to_thread(askii, "check", "--json")

    done = asyncio.run(run("up-key"))
    details = [row["detail"] for row in done.json if row["check"] == "upstream openai"]
    assert (done.status, details) == (0, ["2 models", "without a price: home-grown"])
    done = asyncio.run(run("wrong-key"))
    assert "cannot be listed" in findings(done)["upstream openai"][1]
    assert "wrong-key" not in done.out


# The command itself ---------------------------------------------------------------------------------------------------


def command(*arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASKII_")}
    return subprocess.run(
        [sys.executable, "-m", "askii_middleware", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        text=True,
        check=False,
        timeout=60,
        **{"capture_output": True, **options},
    )


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = command("--version", folder=tmp_path)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "askii", "")
    done = command("price", "nobody-knows", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = command("check", folder=tmp_path, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# Words, alerts and explanations ---------------------------------------------------------------------------------------


def test_a_budgets_status_says_how_far_it_is_used_in_a_word(configured: Askii) -> None:
    configured("budget", "set", "tenant=acme", "--usd", "0.04", "--soft", "--alert-at", "0.5,1", "--json")
    with_ledger(lambda tracker: tracker.record_usage("acme", "local-llama", input_tokens=1_000_000))
    (line,) = configured("budget", "status", "tenant=acme", "--json").json
    assert (line["status"], line["soft"], line["zone"], line["spent_usd"]) == ("warning", True, "UTC", "0.0371")
    assert configured("budget", "status", "tenant=*").err.startswith("askii: scope 'tenant=*': `*` has a counter")


def test_what_a_budget_reports_and_bounds_is_set_and_listed(configured: Askii) -> None:
    shown = configured(
        *("budget", "set", "end_user=*,model=openai/GPT-4o-2024-11-20", "--usd", "1"),
        *("--alert-at", "0.8,0.9,1", "--max-values", "50", "--soft", "--json"),
    ).json
    assert (shown["scope"], shown["alert_at"], shown["max_values"], shown["soft"]) == (
        *("end_user=*,model=gpt-4o", "0.8,0.9,1"),
        *(50, True),
    )
    listed = configured("budget", "list", "--json").json
    assert shown in listed
    assert configured("budget", "rm", "end_user=*,model=gpt-4o-2024-11-20", "--json").json["removed"] is True


def test_an_alert_on_the_command_line_reaches_the_log(configured: Askii, caplog: pytest.LogCaptureFixture) -> None:
    configured("budget", "set", "tenant=acme", "--usd", "0.04", "--alert-at", "0.9")

    async def spend_and_flush(tracker: CostTracker) -> None:
        await tracker.record_usage("acme", "local-llama", input_tokens=1_000_000)
        await tracker.flush()

    with_ledger(spend_and_flush)
    assert [r.getMessage()[:46] for r in caplog.records if r.name == "askii_middleware.alerts"] == [
        "warning: tenant=acme has spent 90 % of its dai"
    ]


def test_a_call_is_explained_as_a_sentence_and_as_json(configured: Askii) -> None:
    configured("budget", "set", "tenant=acme", "--usd", "0.01")
    told = configured("budget", "explain", "acme", "local-llama", "--input-tokens", "100000")
    assert told.status == 0
    first, _, candidate, *table = told.out.splitlines()
    assert first == "enforce (enforcement is enforce): local-llama: its hold of 0.00371 USD fits"
    assert candidate == "local-llama: whole: its hold of 0.00371 USD fits"
    assert table[1].split()[:3] == ["tenant=acme", "daily", "0.01"]
    refused = configured("budget", "explain", "acme", "local-llama", "--input-tokens", "1000000", "--json").json
    assert (refused["verdict"], refused["reason"], refused["winner"]) == ("refused", "spent", None)
    assert (refused["deciding"]["scope"], refused["deciding"]["source"]) == ("tenant=acme", "store")
    held = with_ledger(lambda tracker: tracker.store.totals()).held_nano_usd
    assert held == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget", "explain", "acme", "nobody-knows"], "'nobody-knows' has no price"),
        (["budget", "explain", "acme", "local-llama", "--input-tokens", "-1"], "budget explain: input_tokens"),
        (["budget", "explain", "", "local-llama"], "budget explain: an identity needs a tenant"),
        (["budget", "set", "tenant=acme", "--usd", "1", "--alert-at", "2"], "alert_at"),
        (["budget", "set", "tenant=*", "--usd", "1", "--max-values", "0"], "max_values"),
    ],
)
def test_what_cannot_be_explained_or_set_is_said_in_one_line(
    arguments: list[str], message: str, configured: Askii
) -> None:
    done = configured(*arguments)
    assert (done.status, done.out) == (1, "")
    assert message in done.err
