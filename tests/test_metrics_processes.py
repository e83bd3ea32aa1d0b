"""Several workers count and are scraped: with names of their own, forked, and with credit drawn ahead of need."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from askii_middleware.budgets import Budget
from askii_middleware.errors import ConfigurationError
from askii_middleware.settings import load_settings
from askii_middleware.tracker import CostTracker

from .support.service import Clock, opened
from .test_metrics import Samples, samples, scrape, value

ROOT = Path(__file__).parents[1]
START = """
    import os, sys
    from askii_middleware.metrics import Metrics
    from tests.test_metrics import FRESH, record
"""


def worker(folder: Path | None, script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of the application, with a folder in prometheus-client's multiprocess mode."""
    shared = {} if folder is None else {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **shared},
        stdout=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> Samples:
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return samples(text)


def series(found: Samples, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {labels: number for (metric, labels), number in found.items() if metric == name}


SHOW = """
    print(Metrics(max_series=20).render("")[0].decode())
"""


def test_workers_that_count_different_names_stay_under_the_bound_together_and_lose_nothing(tmp_path: Path) -> None:
    count = """
        metrics = Metrics(max_series=20)
        for number in range(30):
            metrics.settled(record(model="m" + sys.argv[1], tenant=f"t{sys.argv[1]}-{number}"), FRESH, 0.0)
            metrics.fell_back(f"m{sys.argv[1]}-{number}", "small", "budget")
        metrics.flush()
    """
    together = [worker(tmp_path, count, str(number)) for number in range(3)]
    assert [process.wait(timeout=60) for process in together] == [0, 0, 0]
    for process in together:
        process.communicate()
    found = told(worker(tmp_path, SHOW))
    costs = series(found, "llm_cost_usd_total")
    # As in one process: 18 pairs, two models whose tenants are folded, and what is folded whole.
    assert len(costs) == 21
    assert len([labels for labels in costs if dict(labels)["tenant_id"] != "other"]) == 18
    assert sum(round(usd * 10**9) for usd in costs.values()) == 90 * 20_000
    assert len(series(found, "llm_tokens_total")) == 42
    assert sum(series(found, "llm_tokens_total").values()) == 90 * 15
    moved = series(found, "askii_fallbacks_total")
    assert (len(moved), sum(moved.values())) == (21, 90)
    assert value(found, "askii_series_folded_total", metric="llm") == 90 - 18
    assert value(found, "askii_series_folded_total", metric="askii_fallbacks") == 90 - 20


def test_what_was_counted_just_before_a_fork_is_handed_over_by_the_parent_alone(tmp_path: Path) -> None:
    found = told(
        worker(
            tmp_path,
            """
            metrics = Metrics()
            call = record(tenant="parent")
            metrics.settled(call, FRESH, 0.001)
            for _ in range(3):
                if not os.fork():
                    metrics.settled(record(tenant="child"), FRESH, 0.001)
                    metrics.flush()
                    os._exit(0)
            assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
            print(metrics.render("")[0].decode())
            """,
        )
    )
    assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="parent") == 10
    assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="child") == 30
    assert value(found, "askii_requests_total", outcome="completed", api="openai.chat") == 4
    assert value(found, "askii_overhead_seconds_count", phase="settle") == 4


def test_a_forked_process_that_counts_for_itself_begins_without_what_its_parent_has_not_handed_over() -> None:
    found = told(
        worker(
            None,
            """
            metrics = Metrics()
            metrics.settled(record(tenant="parent"), FRESH, 0.001)
            if not os.fork():
                os._exit("parent" in metrics.render("")[0].decode())
            assert os.wait()[1] == 0
            print(metrics.render("")[0].decode())
            """,
        )
    )
    assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="parent") == 10


# The setting ---------------------------------------------------------------------------------------------------------


async def test_the_setting_metrics_labels_hides_tenants_from_counters_and_gauges(tmp_path: Path) -> None:
    config = tmp_path / "askii.toml"
    config.write_text(
        f"""
        store = "sqlite:///{tmp_path / "ledger.db"}"
        metrics_labels = ["model"]
        [[budgets]]
        scope = "tenant=*"
        limit_usd = 1
        [[budgets]]
        scope = "model=big"
        limit_usd = 2
        [pricing.big]
        input_usd_per_mtok = 1
        output_usd_per_mtok = 2
        """,
        encoding="utf-8",
    )
    async with CostTracker.from_settings(load_settings(str(config))) as tracker:
        for tenant in ("acme", "zoo"):
            await tracker.record_usage(tenant, "big", input_tokens=1000)
        found = await scrape(tracker)
    assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="other") == 2000
    assert not [labels for _, labels in found if {"acme", "zoo"} & {*dict(labels).values()}]
    assert not series(found, "budget_remaining_usd")
    assert series(found, "askii_budget_remaining_usd") == {(("period", "daily"), ("scope", "model=big")): 1.998}


def test_the_setting_metrics_labels_takes_no_other_labels(tmp_path: Path) -> None:
    config = tmp_path / "askii.toml"
    config.write_text('metrics_labels = ["user"]\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="metrics_labels"):
        load_settings(str(config))


# Leases --------------------------------------------------------------------------------------------------------------


async def test_with_leases_every_worker_gives_the_same_budgets_and_its_own_calls(tmp_path: Path) -> None:
    clock = Clock()
    options = {"clock": clock, "lease": True, "budgets": [Budget(scope="tenant=*", limit_usd=1)]}
    async with (
        opened("sqlite", tmp_path, **options) as one,
        opened("sqlite", tmp_path, **options) as other,
        opened("sqlite", tmp_path, clock=clock) as plain,
    ):
        for tracker, count in ((one, 3), (other, 5)):
            for _ in range(count):
                async with tracker.track_tokens(
                    "acme", "big", max_output_tokens=0, expected_input_tokens=1000
                ) as usage:
                    usage["input_tokens"] = 1000
        under_way = one.track_tokens("acme", "big", max_output_tokens=0, expected_input_tokens=1000)
        await under_way.__aenter__()
        found = [await scrape(tracker) for tracker in (one, other, plain)]
        shown = [
            {key: number for key, number in each.items() if key[0].startswith(("budget_", "askii_budget_"))}
            for each in found
        ]
        assert shown[0] == shown[1] == shown[2]
        # Spent, the call under way, and credit that is drawn: what another worker cannot have any more.
        (line,) = await plain.budget_enforcer.status("tenant=acme")
        assert int(line.spent_usd.scaleb(9)) == 8_000_000
        assert int(line.held_usd.scaleb(9)) >= 1_000_000
        assert value(found[0], "budget_remaining_usd", tenant_id="acme") == float(1 - line.spent_usd - line.held_usd)
        assert [
            value(each, "llm_tokens_total", model="big", direction="input", tenant_id="acme") for each in found
        ] == [3000, 5000, None]
        await under_way.__aexit__(None, None, None)
    async with opened("sqlite", tmp_path, clock=clock) as plain:
        assert value(await scrape(plain), "budget_remaining_usd", tenant_id="acme") == 0.991
