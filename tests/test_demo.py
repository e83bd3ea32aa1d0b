"""`askii demo`, as a newcomer runs it: one command, no network, and an account at the end that adds up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

MEMBERS = [
    *("calls", "downgraded", "refused", "ledger_nano_usd", "records_nano_usd"),
    *("lago_events", "lago_coins", "reconciled", "overspent_tenants"),
]


def demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASKII_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "askii_middleware.cli", "demo", "--json", "--port", "0", *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def account(out: str) -> dict[str, Any]:
    """The one object it prints, which must add up."""
    (line,) = out.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert list(result) == MEMBERS
    assert result["reconciled"] is True
    assert result["overspent_tenants"] == []
    assert result["calls"] == result["lago_events"] > 0
    assert result["ledger_nano_usd"] == result["records_nano_usd"] > 0
    # Three subscriptions, each within a coin (1,000 nano-USD) of what it was charged.
    assert abs(result["lago_coins"] * 1000 - result["ledger_nano_usd"]) < 3 * 1000
    return result


def test_the_demo_downgrades_refuses_reconciles_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--seconds", "4") as process:
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    result = account(out)
    assert result["downgraded"] > 0
    assert result["refused"] > 0
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_demo_early_and_it_still_reconciles(tmp_path: Path) -> None:
    with demo(tmp_path, "--seconds", "600") as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        places = re.fullmatch(r"gateway (http://\S+)/v1, dashboard \1/askii/, metrics (\1/metrics)\n", first)
        assert places, first + process.stderr.read()
        metrics = ""
        until_s = time.monotonic() + 20
        while "llm_tokens_total{" not in metrics and time.monotonic() < until_s:
            time.sleep(0.05)
            metrics = httpx.get(places[2], trust_env=False).text
        assert 'llm_tokens_total{direction="input",model="gpt-4o",tenant_id="acme"}' in metrics
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    account(out)
