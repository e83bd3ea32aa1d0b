"""The guide about keys: every piece of their code, run with nothing changed but its import lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shlex
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Optional

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request
from pydantic import BaseModel

from askii_middleware import compat
from askii_middleware.compat import CostTracker, cost_tracker
from askii_middleware.compat.configuration import guide_settings

from ..support.service import soon
from .support import BLOCKS, NO_SEEDS, SEEDS, Block, client, records, run, runs

pytestmark = pytest.mark.skipif(not SEEDS.exists(), reason=NO_SEEDS)


# Billing Module Integration Guide ------------------------------------------------------------------------------------

ADMIN = "an-admin-token-for-tests"
MINE = {"Authorization": f"Bearer {ADMIN}"}
ROUTES = {"APIRouter": APIRouter, "Depends": Depends, "Header": Header, "HTTPException": HTTPException, "Query": Query}


class Key(SimpleNamespace):
    """A virtual key as the guide's own key module has it."""

    id: str
    user_id: str
    spent: float


class KeyAnswer(BaseModel):
    id: str
    spent: float

    @staticmethod
    def from_virtual_key(key: Key) -> KeyAnswer:
        return KeyAnswer(id=key.id, spent=key.spent)


class Keys:
    """The guide's key manager, with one key."""

    def get_key(self, key_id: str) -> Key | None:
        return Key(id=key_id, user_id="user123", spent=0.0) if key_id == "key_1" else None


def user(x_user_id: str = Header()) -> str:
    return x_user_id


def key_routes(block: Block) -> APIRouter:
    given = {"KeyManager": Keys, "KeyResponse": KeyAnswer, "get_current_user": user, "get_key_manager": Keys}
    router: APIRouter = run(block, router=APIRouter(), logger=logging.getLogger("guide"), **ROUTES, **given)["router"]
    return router


class Log:
    """The guide's logger, which takes fields as structlog's do."""

    def error(self, message: str, **fields: Any) -> None:
        pytest.fail(f"{message}: {fields}")


def spend(tokens: int, key_id: str = "key_1") -> None:
    cost_tracker.record_usage(key_id=key_id, model="gpt-4", provider="openai", input_tokens=tokens)


@runs("billing", 1)
def test_a_servers_tracker_and_the_processs_have_one_ledger(block: Block) -> None:
    server = run(block, Dict=dict, Any=Any)["AILBServer"]()
    server.cost_tracker.record_usage(key_id="key_1", model="gpt-4", provider="openai", input_tokens=1000)
    assert compat.get_cost_tracker().get_spend("key_1").total_cost == 0.03


@runs("billing", 3)
def test_a_key_may_go_on_until_its_budget_is_spent(block: Block) -> None:
    manager = run(block, Tuple=tuple, VirtualKey=Key)["KeyManager"]()
    manager.get_key = Keys().get_key
    cost_tracker.set_budget("key_1", 0.03)
    assert manager.get_key_with_budget_check("key_1")[1] is True
    spend(1000)
    assert manager.get_key_with_budget_check("key_1")[1] is False
    assert manager.get_key_with_budget_check("key_2") == (None, False)


@runs("billing", 4)
async def test_a_key_is_shown_with_what_it_has_spent(block: Block) -> None:
    cost_tracker.set_budget("key_1", 1.0)
    spend(2000)
    async with client(key_routes(block)) as session:
        shown = await session.get("/key_1", headers={"X-User-ID": "user123"})
        assert (shown.status_code, shown.json()) == (200, {"id": "key_1", "spent": 0.06})
        assert (await session.get("/key_1", headers={"X-User-ID": "user9"})).status_code == 403


@runs("billing", 5)
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
@pytest.mark.parametrize("days", [1, 7, 365])
async def test_a_keys_usage_is_told_by_model_and_provider(block: Block, days: int) -> None:
    spend(1000)
    spend(500)
    async with client(key_routes(block)) as session:
        told = (await session.get(f"/key_1/usage?days={days}", headers={"X-User-ID": "user123"})).json()
    start, end = (datetime.fromisoformat(told.pop(name)) for name in ("period_start", "period_end"))
    assert told == {
        "key_id": "key_1",
        "period_days": days,
        "total_cost": 0.045,
        "total_requests": 2,
        "total_tokens": 1500,
        "by_model": {"gpt-4": 0.045},
        "by_provider": {"openai": 0.045},
    }
    assert timedelta(days=days) <= end - start < timedelta(days=days, hours=1, minutes=1)


class Router:
    """The guide's request router, in front of a model that answers with 10 tokens."""

    async def route_request(self, **_: Any) -> tuple[str, dict[str, int]]:
        return "hello", {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30}


def chat_app(app: FastAPI) -> None:
    """Add the guide's endpoint to an application."""
    run(
        BLOCKS["billing", 2],
        app=app,
        ailb_server=SimpleNamespace(cost_tracker=CostTracker(), request_router=Router()),
        logger=Log(),
        Request=Request,
        Optional=Optional,
        time=time,
        **ROUTES,
    )


@runs("billing", 2)
async def test_the_chat_endpoint_records_usage_and_refuses_with_402(block: Block) -> None:
    app = FastAPI()
    chat_app(app)
    key = "key_from_api_key_validation"
    hello = {"messages": [{"role": "user", "content": "hello there"}], "session_id": "s1"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as session:
        said = await session.post("/v1/chat/completions", json=hello, headers={"X-Preferred-Model": "gpt-4"})
        assert (said.status_code, said.json()["model"]) == (200, "gpt-4")
        said = await session.post("/v1/chat/completions", json=hello)
        assert said.json()["model"] == "gpt-3.5-turbo"
        await asyncio.to_thread(cost_tracker.set_budget, key, 0.0005)
        refused = await session.post("/v1/chat/completions", json={**hello, "model": "gpt-4"})
        assert (refused.status_code, refused.json()) == (402, {"detail": "Budget exceeded for this API key"})
    first, second = await asyncio.to_thread(records)
    assert (first.key, first.provider, first.cost_nano_usd) == (key, "openai", 20 * 30_000 + 10 * 60_000)
    assert (second.served_model, second.cost_nano_usd) == ("gpt-3.5-turbo", 20 * 500 + 10 * 1500)
    assert (first.metadata["session_id"], first.metadata["route"]) == ("s1", "/v1/chat/completions")


@runs("billing", 6)
async def test_the_alert_task_finds_a_key_over_its_threshold(block: Block) -> None:
    sent: list[tuple[str, float]] = []
    rounds = asyncio.Event()
    forever = asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert seconds == 300
        if rounds.is_set():
            await forever.wait()
        rounds.set()

    async def send_budget_alert(key_id: str, status: Any) -> None:
        sent.append((key_id, status.percent_used))

    await asyncio.to_thread(cost_tracker.set_budget, "key_1", 1.0, alert_threshold=0.5)
    await asyncio.to_thread(spend, 20_000)
    # The guide's example inside the loop stands in comments.
    lines = [re.sub(r"^( *)# (?=for |    )", r"\1", line) for line in block.text.splitlines()]
    text = "\n".join(lines).replace("and not status.alert_sent", "and status.alert_sent")
    names = run(
        block._replace(text=text),
        keys_with_budgets=["key_1", "key_2"],
        ailb_server=SimpleNamespace(cost_tracker=cost_tracker),
        send_budget_alert=send_budget_alert,
        logger=logging.getLogger("guide"),
    )
    names["asyncio"] = SimpleNamespace(sleep=sleep, create_task=asyncio.create_task)
    server = SimpleNamespace()
    await names["startup"](server)
    await soon(lambda: sent)
    server.alert_task.cancel()
    # The ledger has reported the crossing by itself: with the guide's own condition nothing would be sent twice.
    assert sent == [("key_1", 60.0)]


@runs("billing", 7)
def test_the_billing_variables_are_read(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in block.text.splitlines():
        name, sign, value = line.partition("=")
        if sign:
            monkeypatch.setenv(name, value)
    settings = guide_settings()
    assert (settings.enforcement, settings.alerts.email_from) == ("enforce", "billing@example.com")
    assert (settings.alerts.smtp_host, settings.alerts.smtp_port) == ("smtp.example.com", 587)


def commands(block: Block) -> list[httpx.Request]:
    """The curl commands of a shell block."""
    found = []
    for line in block.text.replace("\\\n", " ").split("\ncurl ")[1:]:
        words = iter(shlex.split(line.split("\n\n")[0], comments=True))
        method, headers, body, url = "GET", {}, None, ""
        for word in words:
            if word == "-X":
                method = next(words)
            elif word == "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = next(words)
            else:
                url = word
        found.append(httpx.Request(method, url, headers=headers, content=body))
    return found


@runs("billing", 0, 8, 9)
async def test_the_billing_routes_answer_the_guides_commands(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKII_API", json.dumps({"admin_token": ADMIN}))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = run(block, FastAPI=FastAPI, lifespan=lifespan)["app"]
    chat_app(app)
    await cost_tracker.act(lambda core: core.keys.create("acme", key_id="key_test_123", user="user123"))
    chat, spent = commands(BLOCKS["billing", 8])
    put, status = commands(BLOCKS["billing", 9])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8080") as session:
        assert (await session.send(chat)).json()["usage"]["total_tokens"] == 30
        await asyncio.to_thread(spend, 100, "key_test_123")
        # Without the admin token, X-User-ID says nothing.
        assert (await session.send(spent)).status_code == 401
        for request in (spent, put, status):
            request.headers.update(MINE)
        told = (await session.send(spent)).json()
        assert (told["total_cost"], told["total_requests"], told["total_tokens"]) == (0.003, 1, 100)
        assert (await session.send(put)).status_code == 200
        shown = (await session.send(status)).json()
        assert (shown["max_budget"], shown["alert_threshold"], shown["period"]) == (0.01, 0.5, "daily")
        assert shown["can_make_request"] is True
        await asyncio.to_thread(spend, 400, "key_test_123")
        shown = (await session.send(status)).json()
        assert (shown["can_make_request"], shown["alert_triggered"]) == (False, True)
        other = httpx.Request("GET", status.url, headers={**MINE, "X-User-ID": "user9"})
        assert (await session.send(other)).status_code == 404
    assert await asyncio.to_thread(cost_tracker.check_budget, "key_test_123", 0.0001) is False
