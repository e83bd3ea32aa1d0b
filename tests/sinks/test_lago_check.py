"""`askii check` against Lago: what it would accept and never bill is named before it happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.cli import main
from askii_middleware.cli_check_sinks import known_tenants
from askii_middleware.settings import Settings
from askii_middleware.sinks.checking import Checked, Finding
from askii_middleware.sinks.lago import TOKEN_CODES, LagoSink
from askii_middleware.sinks.lago_api import Metric
from askii_middleware.sinks.lago_check import judge_metric
from askii_middleware.sinks.log import LogSink
from askii_middleware.tracker import CostTracker
from tests.support.lago_server import KEY, LagoServer

from .support import unused_port


async def check(server: LagoServer, subscriptions: dict[str, str], **options: Any) -> list[Finding]:
    sink = LagoSink(server.url, options.pop("api_key", KEY), **options)
    try:
        return await sink.check(subscriptions)
    finally:
        await sink.close()


async def test_all_is_well_where_the_metric_sums_the_coins_and_every_tenant_has_a_subscription(tmp_path: Path) -> None:
    async with LagoServer(str(tmp_path / "lago.db"), subscriptions=["acme", "sub-2"]) as server:
        assert await check(server, {"acme": "acme", "globex": "sub-2"}) == [
            Finding("ok", "the metric askii_coins sums askii_coins"),
            Finding("ok", "2 of 2 tenants have a subscription"),
        ]


async def test_tenants_that_lago_would_never_bill_are_named(tmp_path: Path) -> None:
    async with LagoServer(str(tmp_path / "lago.db"), subscriptions=["acme"]) as server:
        tenants = {"acme": "acme", "globex": "sub-9", "initech": "initech", "nobody": " "}
        assert (await check(server, tenants))[1:] == [
            Finding("failed", "no subscription is set for nobody: they go to the dead letters"),
            Finding(
                "failed",
                "no active subscription for globex (sub-9), initech: Lago accepts their events and never bills them",
            ),
            Finding("ok", "1 of 4 tenants have a subscription"),
        ]
        many = {f"t{n}": f"t{n}" for n in range(60)}
        assert "and 10 more: Lago accepts" in (await check(server, many))[1].detail
        assert (await check(server, tenants, only_tenants=["acme"]))[1:] == [
            Finding("ok", "1 of 1 tenants have a subscription")
        ]


@pytest.mark.parametrize(
    ("found", "only", "expected"),
    [
        (Metric("c", "sum_agg", "coins"), True, ("ok", "the metric c sums coins")),
        (
            Metric("c", "sum_agg", "coins", recurring=True),
            True,
            ("failed", "the metric c is recurring: what one period used is billed again in the next"),
        ),
        (None, True, ("failed", "there is no metric c: its events are accepted and never billed")),
        (None, False, ("warning", "there is no metric c: its events are accepted and never billed")),
        (
            Metric("c", "count_agg", ""),
            True,
            ("failed", "the metric c is count_agg of nothing; it must be sum_agg of coins"),
        ),
        (
            Metric("c", "sum_agg", "value"),
            False,
            ("failed", "the metric c is sum_agg of value; it must be sum_agg of coins"),
        ),
        (
            Metric("c", "max_agg", "coins"),
            True,
            ("failed", "the metric c is max_agg of coins; it must be sum_agg of coins"),
        ),
        (Metric("c", "", ""), True, ("failed", "the metric c is nothing of nothing; it must be sum_agg of coins")),
    ],
)
def test_a_metric_is_judged_by_what_it_sums(found: Metric | None, only: bool, expected: tuple[str, str]) -> None:
    assert judge_metric("c", "coins", found, only=only) == expected


async def test_of_several_token_metrics_the_missing_ones_are_a_warning(tmp_path: Path) -> None:
    metrics = {"llm_input_tokens": "value", "llm_output_tokens": "tokens"}
    async with LagoServer(str(tmp_path / "lago.db"), metrics=metrics, subscriptions=[]) as server:
        found = await check(server, {}, events="tokens")
    results = [finding.result for finding in found]
    assert results == ["ok", "failed", *["warning"] * (len(TOKEN_CODES) - 2), "ok"]
    assert found[1].detail == "the metric llm_output_tokens is sum_agg of tokens; it must be sum_agg of value"


async def test_a_wrong_key_is_one_finding_and_no_more_is_asked(tmp_path: Path) -> None:
    async with LagoServer(str(tmp_path / "lago.db")) as server:
        found = await check(server, {"acme": "acme"}, api_key="another-key")
    assert found == [Finding("unreachable", "GET /billable_metrics: HTTP 401: check the API key")]


def test_sinks_without_a_receiver_to_ask_are_not_asked(tmp_path: Path) -> None:
    assert not isinstance(LogSink(tmp_path / "usage.jsonl"), Checked)
    assert isinstance(LagoSink("https://lago.example.com/api/v1", KEY), Checked)


async def test_the_tenants_are_those_with_a_key_a_budget_or_spend(tmp_path: Path) -> None:
    digest = "0" * 64
    settings = Settings(
        store=f"sqlite:///{tmp_path / 'ledger.db'}",
        default_tenant="house",
        keys=[
            {"id": "a", "sha256": digest, "tenant": "with-key"},
            {"id": "b", "sha256": digest[1:] + "1", "tenant": "gone", "revoked": True},
        ],
        budgets=[
            {"scope": "tenant=with-budget,model=gpt-4o", "limit_usd": 1},
            {"scope": "tenant=*", "limit_usd": 1},
            {"scope": "team=x", "limit_usd": 1},
        ],
    )
    async with CostTracker.from_settings(settings) as tracker:
        await tracker.record_usage("spender", "gpt-4o", input_tokens=1000)
        assert await known_tenants(settings, tracker) == ["house", "spender", "with-budget", "with-key"]


CONFIG = """
store = "sqlite:///ledger.db"
[[budgets]]
scope = "tenant=globex"
limit_usd = 1
[sinks.lago]
url = "{url}"
api_key = "{key}"
events = ["coins", "tokens"]
token_codes = {{ input = "llm_input_tokens" }}
properties = {{ env = "prod", team = "{{team}}" }}
"""


@pytest.fixture
def askii_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)

    def run(url: str, key: str = KEY) -> tuple[int, list[tuple[str, str, str]], str]:
        (tmp_path / "askii.toml").write_text(CONFIG.format(url=url, key=key))
        status = main(["check", "--json"])
        out = capsys.readouterr().out
        rows = [tuple(row.values()) for row in json.loads(out) if row["check"].startswith("sink")]
        return status, rows, out

    return run


def test_the_command_says_what_lago_does_not_know(askii_check: Callable[..., Any], tmp_path: Path) -> None:
    async def run() -> Any:
        metrics = {"askii_coins": "askii_coins"}
        async with LagoServer(str(tmp_path / "lago.db"), subscriptions=["acme"], metrics=metrics) as server:
            return await asyncio.to_thread(askii_check, server.url)

    status, rows, _ = asyncio.run(run())
    unknown = "no active subscription for globex: Lago accepts their events and never bills them"
    assert (status, rows) == (
        1,
        [
            ("sink lago", "ok", "the metric askii_coins sums askii_coins"),
            ("sink lago", "failed", unknown),
            ("sink lago", "ok", "0 of 1 tenants have a subscription"),
            (
                "sink lago-tokens",
                "failed",
                "there is no metric llm_input_tokens: its events are accepted and never billed",
            ),
            ("sink lago-tokens", "failed", unknown),
            ("sink lago-tokens", "ok", "0 of 1 tenants have a subscription"),
        ],
    )


def test_a_lago_that_cannot_be_reached_fails_the_check(
    askii_check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.sinks.lago_api.MAX_TRIES", 1)
    status, rows, out = askii_check(f"http://127.0.0.1:{unused_port()}/api/v1", "lago-secret-1")
    assert status == 1
    assert [row[:2] for row in rows] == [("sink lago", "failed"), ("sink lago-tokens", "failed")]
    assert "ConnectError" in rows[0][2]
    assert "lago-secret-1" not in out
