"""`router`: the billing endpoints inside a FastAPI application."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from askii_middleware import compat
from askii_middleware.compat import cost_tracker

ADMIN = {"Authorization": "Bearer an-admin-token-for-tests"}


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setenv("ASKII_API", json.dumps({"admin_token": "an-admin-token-for-tests"}))
    app = FastAPI()
    app.include_router(compat.router)

    @app.get("/api/other")
    def other() -> str:
        return "the application's own"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as session:
        yield session


async def test_a_key_created_here_has_its_budget_and_spend_there(client: httpx.AsyncClient) -> None:
    created = await cost_tracker.act(lambda core: core.keys.create("acme", key_id="k1", user="ann"))
    set_to = {"key_id": "k1", "max_budget": 0.5, "alert_threshold": 0.8, "period": "daily", "enabled": True}
    assert (await client.put("/api/billing/budget/k1", json=set_to, headers=ADMIN)).status_code == 200
    await asyncio.to_thread(cost_tracker.record_usage, "k1", "gpt-4", "openai", 10_000)
    told = (await client.get("/api/billing/spend/k1?period=daily", headers=ADMIN)).json()
    assert (told["total_cost"], told["total_requests"], told["by_provider"]) == (0.3, 1, {"openai": 0.3})
    assert (await asyncio.to_thread(cost_tracker.get_budget_status, "k1")).remaining == 0.2
    own = {"Authorization": f"Bearer {created.secret}"}
    assert (await client.get("/api/billing/budget/k1", headers=own)).json()["can_make_request"] is True
    assert (await client.put("/api/billing/budget/k1", json=set_to, headers=own)).status_code == 404


async def test_a_stranger_learns_nothing_and_a_user_needs_the_admin_token(client: httpx.AsyncClient) -> None:
    await cost_tracker.act(lambda core: core.keys.create("acme", key_id="k1", user="ann"))
    assert (await client.get("/api/billing/spend/k1")).status_code == 401
    assert (await client.get("/api/billing/spend/k1", headers={"X-User-ID": "ann"})).status_code == 401
    for headers, status in (
        ({**ADMIN, "X-User-ID": "ann"}, 200),
        ({**ADMIN, "X-User-ID": "bob"}, 404),
    ):
        assert (await client.get("/api/billing/spend/k1?period=daily", headers=headers)).status_code == status
    missing = await client.get("/api/billing/spend/none", headers=ADMIN)
    hidden = await client.get("/api/billing/spend/k1", headers={**ADMIN, "X-User-ID": "bob"})
    assert missing.json() == hidden.json()


async def test_the_applications_other_routes_stay_its_own(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/other")).json() == "the application's own"
    assert (await client.get("/api/keys", headers=ADMIN)).status_code == 404


async def test_many_requests_at_once_are_answered_across_the_event_loops(client: httpx.AsyncClient) -> None:
    await cost_tracker.act(lambda core: core.keys.create("acme", key_id="k1"))
    answers = await asyncio.gather(*[client.get("/api/billing/budget/k1", headers=ADMIN) for _ in range(50)])
    assert {answer.status_code for answer in answers} == {200}
    assert cost_tracker.tracker.loop is not asyncio.get_running_loop()


def test_without_fastapi_the_rest_works_and_the_router_names_its_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from askii_middleware import compat, MissingExtraError\n"
        "assert compat.cost_per_token('gpt-4', 1000, 0) == 30_000\n"
        "try: compat.router\n"
        "except MissingExtraError as error: print(error)\n"
    )
    root = str(Path(compat.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "compat.router needs the extra 'fastapi'" in done.stdout
    assert list(tmp_path.iterdir()) == []
