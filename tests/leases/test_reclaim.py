"""`askii budget reclaim`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from askii_middleware.cli import main
from askii_middleware.stores import open_store
from tests.stores.credit_support import draw
from tests.stores.support import Client, Clock, budget


async def _drawn(path: Path) -> None:
    """Tenants acme and bell had a worker that is long dead, and acme has one that lives."""
    clock = Clock(time.time() - 3600)
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.set(budget("tenant=*", 1000, period="total"))
    await client.store.heartbeat("dead", 60)
    await draw(client, 1, 300, holder="dead")
    await draw(client, 2, 200, holder="dead", tenant="bell")
    await client.store.heartbeat("alive", 86_400)
    await draw(client, 1, 400, holder="alive")
    await client.store.close()


@pytest.mark.parametrize(("scope", "amounts"), [(["tenant=bell"], [200]), ([], [300, 200]), (["tenant=none"], [])])
def test_reclaim_takes_the_credit_of_dead_workers_and_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scope: list[str], amounts: list[int]
) -> None:
    import asyncio  # noqa: PLC0415 - the command runs a loop of its own

    asyncio.run(_drawn(tmp_path / "askii.db"))
    config = tmp_path / "askii.toml"
    config.write_text(f'store = "sqlite:///{tmp_path / "askii.db"}"\nlease = true\n')
    command = ["budget", "reclaim", *scope, "--json", "--config", str(config)]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["worker"] for row in rows] == ["dead"] * len(amounts)
    assert [row["reclaimed_usd"] for row in rows] == [f"0.{amount:09d}".rstrip("0") for amount in amounts]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == []
