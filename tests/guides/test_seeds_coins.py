"""The three guides about coins: every piece of their code, run with nothing changed but its import lines."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import compat
from askii_middleware.compat import cost_tracker

from ..support.lago_server import KEY, LagoServer
from .support import BLOCKS, NO_SEEDS, SEEDS, Block, adapted, run, runs

pytestmark = pytest.mark.skipif(not SEEDS.exists(), reason=NO_SEEDS)


# Askii Coin Integration Guide ----------------------------------------------------------------------------------------


@runs("integration", 1)
def test_the_rate_and_one_dollar_are_shown(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    run(block)
    assert capsys.readouterr().out == "Exchange rate: 1 USD = 1,000,000 Askii Coins\n$1.0 = 1,000,000 Askii Coins\n"


@runs("integration", 2)
def test_a_completion_costs_its_tokens_in_coins(block: Block) -> None:
    assert run(block)["cost"] == 100 * 0.5 + 50 * 1.5


@runs("integration", 3)
def test_a_list_of_requests_is_summed_up(block: Block) -> None:
    results = run(block)["results"]
    assert [line["cost_askii_coins"] for line in results["individual_costs"]] == [125, 200 * 30 + 100 * 60]
    assert results["total_cost_askii_coins"] == 12_125


@runs("integration", 4)
def test_a_users_budget_manager_approves_and_subtracts(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    manager = run(block)["user_budget"]
    assert capsys.readouterr().out == "Request approved\nRemaining budget: 9,500,000 Askii Coins\n"
    assert (manager.can_afford(9_500_000), manager.can_afford(9_500_001)) == (True, False)


@runs("integration", 5)
def test_a_teams_budget_manager_sums_its_users(block: Block) -> None:
    status = run(block)["status"]
    assert (status["budget_askii_coins"], status["spend_askii_coins"]) == (100_000_000, 3_000_000)
    assert (status["remaining_askii_coins"], status["within_budget"]) == (97_000_000, True)
    assert status["user_spends"] == {"user1": 1_000_000, "user2": 2_000_000}


@contextlib.asynccontextmanager
async def lago(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[LagoServer]:
    """A local Lago, named by the variables that the guides' logger reads."""
    async with LagoServer(str(folder / "lago.db")) as server:
        monkeypatch.setenv("LAGO_API_BASE", server.url.removesuffix("/api/v1"))
        monkeypatch.setenv("LAGO_API_KEY", KEY)
        yield server


async def delivered(block: Block, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, dict[str, Any]]:
    """Run a block and give the events that Lago has then, by subscription."""
    async with lago(monkeypatch, folder) as server:
        names = await asyncio.to_thread(run, block)
        await cost_tracker.act(lambda core: core.flush())
        found = {event.subscription: event._asdict() for event in server.books.events()}
        assert server.books.count == len(found)
        await asyncio.to_thread(cost_tracker.close)
        return {**found, "names": names}


@runs("integration", 6)
async def test_one_event_reaches_lago(block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = await delivered(block, monkeypatch, tmp_path)
    event = found["customer-123"]
    assert event["code"] == "askii_coins"
    assert event["properties"]["askii_coins"] == "1500000"
    assert len(event["properties"]["call_id"]) == 36


@runs("integration", 7)
async def test_a_batch_of_events_reaches_lago(block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = await delivered(block, monkeypatch, tmp_path)
    del found["names"]
    sums = {name: event["properties"]["askii_coins"] for name, event in found.items()}
    assert sums == {"customer-1": "1000000", "customer-2": "2000000", "customer-3": "500000"}
    assert [found[f"customer-{n}"]["properties"]["call_id"] for n in (1, 2, 3)] == ["call-1", "call-2", "call-3"]


@runs("integration", 8)
def test_the_cost_report_has_both_currencies(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(block)["report"]
    assert capsys.readouterr().out == "Total cost: 3,000,000 Askii Coins ($3.00 USD)\n"
    assert [line["cost_usd"] for line in report["breakdown"]] == [1.0, 2.0]
    assert report["exchange_rate"] == 1_000_000


@runs("integration", 9)
def test_the_budget_monitor_warns_at_nine_tenths(block: Block) -> None:
    names = run(block)
    assert (names["alert"]["utilization_percent"], names["alert"]["status"]) == (90.0, "warning")
    at = {coins: names["monitor"].check_budget_utilization("u", 10.0, coins)["status"] for coins in (7.9e6, 8e6, 1e7)}
    assert list(at.values()) == ["ok", "caution", "exceeded"]


@runs("integration", 10)
def test_the_guides_own_unit_tests_pass(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "test_guide.py"
    path.write_text(adapted(block.text))
    environment = {"PYTHONPATH": str(Path(compat.__file__).parents[2]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.count("2 passed") >= 1
    assert "failed" not in done.stdout


@runs("integration", 11)
def test_the_guides_end_to_end_test_passes_with_lago_replaced(block: Block) -> None:
    run(block)


@runs("integration", 12)
def test_a_safe_check_compares_coins_with_dollars(block: Block) -> None:
    check = run(block)["safe_budget_check"]
    assert [check(1.0, 1_000_000), check(1.0, 1_000_001), check(None, 10**12)] == [True, False, True]
    assert check(float("nan"), 1) is False


@runs("integration", 13)
def test_a_conversion_is_logged_with_its_rate(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(block)["log_currency_conversion"](2.5, 2_500_000)
    assert "$2.5 -> 2,500,000 Askii Coins (rate: 1,000,000)" in caplog.text


@runs("integration", 14)
@pytest.mark.parametrize(("name", "rate"), [("development", 1000), ("staging", 100_000), ("production", 1_000_000)])
def test_each_environment_has_its_rate(block: Block, name: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", name)
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", run(block)["get_environment_config"]()["exchange_rate"])
    assert compat.get_askii_coin_exchange_rate() == rate
    assert compat.usd_to_askii_coins(2.0) == 2 * rate


def exports(block: Block) -> list[str]:
    """The rates that a shell block sets."""
    lines = [line.strip() for line in block.text.splitlines()]
    return [line.partition("=")[2] for line in lines if line.startswith("export ASKII_COIN_EXCHANGE_RATE=")]


@runs("integration", 0)
def test_the_rate_comes_from_the_environment(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    (rate,) = exports(block)
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", rate)
    assert compat.usd_to_askii_coins(1.5) == 1_500_000


# Askii Coin Virtual Currency System ----------------------------------------------------------------------------------


@runs("system", 0, 3)
def test_rates_may_have_exponents(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rate in [*exports(block), *exports(BLOCKS["system", 3])]:
        monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", rate)
        found.append(compat.usd_to_askii_coins(1.0))
    assert found == [500_000, 500_000, 500_000, 2_000_000, 1_234_567]


@runs("system", 1, 2, 4, 5, 13, 14)
def test_the_currency_systems_examples_print_what_they_say(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    run(block)
    for place in (2, 4, 5, 13, 14):
        run(BLOCKS["system", place])
    assert capsys.readouterr().out.splitlines() == [
        "Current exchange rate: 1 USD = 1,000,000 Askii Coins",
        "1 USD = 1,000,000 Askii Coins",
        "Budget: $10.0 USD = 10,000,000 Askii Coins",
        "Cost: 125 Askii Coins",
        "Current rate: 1,000,000",
        "$0.001 = 1,000 Askii Coins",
    ]


@runs("system", 6)
async def test_the_currency_systems_event_reaches_lago(
    block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = await delivered(block, monkeypatch, tmp_path)
    properties = found["customer-123"]["properties"]
    assert (properties["askii_coins"], properties["call_id"]) == ("1500000", "unique-call-id")


@runs("system", 7)
def test_invalid_rates_fall_back_to_a_million(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in run(block)["invalid_rates"]:
        monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", text)
        assert compat.get_askii_coin_exchange_rate() == 1_000_000


@runs("system", 8)
def test_no_budget_stays_none_and_none_stays_nothing(block: Block) -> None:
    assert run(block)["result"] == 0.0
    assert compat.convert_budget_to_askii_coins(None) is None


@runs("system", 9, 10, 11)
def test_commands_that_run_another_projects_tests_stand_for_these(block: Block) -> None:
    assert all("pytest" in BLOCKS["system", place].text for place in (block.place, 10, 11))


@runs("system", 12)
def test_verbose_turns_debug_messages_on(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    try:
        run(block)
        compat.usd_to_askii_coins(2.0)
        assert "2.0 USD = 2000000.0 Askii Coins" in caplog.text
    finally:
        compat.set_verbose = False  # type: ignore[attr-defined]
    caplog.clear()
    compat.usd_to_askii_coins(3.0)
    assert "3.0 USD" not in caplog.text


# Askii Coin API Reference --------------------------------------------------------------------------------------------


@runs("reference", 0, 1, 2, 3, 10, 11, 12, 13, 14)
def test_the_references_examples_print_what_they_say(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    run(block)
    for place in (1, 2, 3, 10, 11, 12, 13, 14):
        run(BLOCKS["reference", place])
    assert capsys.readouterr().out.splitlines() == [
        "$1.50 = 1,500,000 Askii Coins",
        "Current rate: 1 USD = 1,000,000 Askii Coins",
        "$100 budget = 100,000,000 Askii Coins",
        "No budget limit: None",
        "Cost: 125 Askii Coins",
        "Exchange rate: 1 USD = 1,000,000 Askii Coins",
        "$0.001 = 1,000 Askii Coins",
        "$0.01 = 10,000 Askii Coins",
        "$0.1 = 100,000 Askii Coins",
        "$1.0 = 1,000,000 Askii Coins",
        "$10.0 = 10,000,000 Askii Coins",
        "User within budget: True",
        "Request cost: 14 Askii Coins",
        "Converted amount: 1,500,000 Askii Coins",
        "Budget configuration valid: True",
    ]


@runs("reference", 4, 5)
def test_the_proxys_check_can_be_imported(block: Block) -> None:
    names = run(block)
    run(BLOCKS["reference", 5])
    token = names["UserAPIKeyAuth"](spend=500_000, max_budget=0.5)
    with pytest.raises(compat.BudgetExceededError) as refused:
        asyncio.run(names["_virtual_key_max_budget_check"](token, None))
    assert (refused.value.current_cost, refused.value.max_budget) == (500_000, 500_000)


@runs("reference", 6, 7)
async def test_the_references_event_has_the_documented_fields(
    block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = await delivered(block, monkeypatch, tmp_path)
    event = found["customer-123"]
    assert event["code"] == "askii_coins"
    # Documented as a number and an ISO date; Lago wants a text and Unix seconds.
    assert '"askii_coins": 1500000' in BLOCKS["reference", 7].text
    assert event["properties"]["askii_coins"] == "1500000"


@runs("reference", 8)
def test_a_refusal_can_be_caught_and_shown(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    run(block, litellm=compat)
    text = adapted(block.text).replace("pass\n", "raise refusal\n")
    refusal = compat.BudgetExceededError(
        "spent", current_cost=2e6, max_budget=1e6, scope="tenant=acme", reason="spent", resets_at_s=0
    )
    run(block._replace(text=text), litellm=compat, refusal=refusal)
    assert capsys.readouterr().out.splitlines() == [
        "Budget exceeded!",
        "Current cost: 2,000,000 Askii Coins",
        "Budget limit: 1,000,000 Askii Coins",
        "Message: spent",
    ]


@runs("reference", 9)
def test_the_references_rates_are_read(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for rate in exports(block):
        monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", rate)
        assert compat.get_askii_coin_exchange_rate() == 500_000
