"""Every refusal of the contract's table (§6): status, code, envelope and headers, and nothing that is not the caller's
to know.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import Budget, CostTracker
from askii_middleware.errors import StoreError
from askii_middleware.identity import Identity

from .support.asgi import CHAT, Answer, Scripted, ask, chat_answer, plain
from .support.ledgers import PRICES, Clock, Ledger, ledger

PATHS = {
    "openai": ("/v1/chat/completions", CHAT),
    "responses": ("/v1/responses", {"model": "big", "input": "hi", "max_output_tokens": 20}),
    "anthropic": ("/v1/messages", CHAT),
}
RESET = "2026-01-02T00:00:00Z"


@contextlib.asynccontextmanager
async def limited(*budgets: Budget, **options: Any) -> AsyncIterator[Ledger]:
    async with ledger(budgets=budgets, **options) as book:
        yield book


async def refusal(
    book: Ledger, kind: str = "openai", body: Any = None, **options: Any
) -> tuple[Answer, dict[str, Any]]:
    app = Scripted(plain(chat_answer()))
    path, asked = PATHS[kind]
    got = await ask(book.around(app, **options), asked if body is None else body, path=path)
    assert app.scopes == []
    assert got.headers["content-type"] == "application/json"
    assert got.headers["content-length"] == str(len(got.body))
    assert set(got.own_headers) == {"x-askii-call-id"}
    if kind == "anthropic":
        assert got.json["type"] == "error"
        assert got.json["request_id"] == got.own_headers["x-askii-call-id"]
    else:
        assert got.json.keys() == {"error"}
    error: dict[str, Any] = got.json["error"]
    return got, error


@pytest.mark.parametrize(
    ("kind", "error_type"),
    [("openai", "insufficient_quota"), ("responses", "insufficient_quota"), ("anthropic", "billing_error")],
)
async def test_a_spent_budget_is_402_in_the_envelope_of_the_api(kind: str, error_type: str) -> None:
    async with limited(Budget(scope="tenant=acme", limit_usd="0.0001")) as book:
        got, error = await refusal(book, kind)
        assert got.status == 402
        assert got.headers["x-should-retry"] == "false"
        assert "retry-after" not in got.headers
        assert error.pop("message").startswith("the daily budget of tenant=acme is spent: 0 USD spent and 0 USD held")
        assert error.pop("param", None) is None
        assert error == {
            "type": error_type,
            "code": "budget_exceeded",
            "reason": "spent",
            "scope_kind": "tenant",
            "resets_at": RESET,
        }
        assert book.metric("askii_refusals_total", scope_kind="tenant", reason="spent") == 1
        assert await book.nothing_happened()


async def test_the_status_of_a_spent_budget_can_be_chosen() -> None:
    async with limited(Budget(scope="tenant=acme", limit_usd=0)) as book:
        got, error = await refusal(book, budget_exceeded_status=429)
        assert (got.status, error["code"]) == (429, "budget_exceeded")
        assert got.headers["x-should-retry"] == "false"
        assert "retry-after" not in got.headers


@pytest.mark.parametrize("kind", PATHS)
async def test_a_held_budget_is_429_with_a_short_retry(kind: str) -> None:
    async with limited(Budget(scope="tenant=acme", limit_usd="0.001")) as book:
        release = asyncio.Event()

        async def waits(*_: Any) -> None:
            await release.wait()

        app = book.around(Scripted([waits, *plain(chat_answer())]))
        running = asyncio.create_task(ask(app))
        while not book.held:
            await asyncio.sleep(0)
        got, error = await refusal(book, kind)
        assert got.status == 429
        assert (error["code"], error["reason"], error["type"]) == ("budget_held", "held", "rate_limit_error")
        assert got.headers["retry-after"] == "1"
        assert got.headers["x-should-retry"] == "true"
        release.set()
        await running
        assert (await book.record()).cost_nano_usd == 60_000


async def test_a_total_budget_that_is_spent_resets_at_the_end_of_time() -> None:
    async with limited(Budget(scope="tenant=acme", limit_usd=0, period="total")) as book:
        _, error = await refusal(book)
        assert error["resets_at"] == "9999-12-31T23:59:59Z"


async def test_a_total_budget_that_is_not_spent_is_told_in_headers() -> None:
    async with limited(Budget(scope="tenant=acme", limit_usd=1, period="total")) as book:
        got = await ask(book.around(Scripted(plain(chat_answer()))))
        assert got.own_headers["x-askii-budget-reset"] == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("scope", "kind", "tells"),
    [
        ("tenant=acme", "tenant", True),
        ("tenant=*", "tenant", True),
        ("tenant=acme,model=big", "tenant,model", True),
        ("key=k1", "key", True),
        ("user=ann", "user", True),
        ("team=research", "team", False),
        ("global", "global", False),
        ("model=big", "model", False),
        ("tag=secret%2Ctenant", "tag", False),
    ],
)
async def test_only_budgets_of_the_callers_own_tell_amounts(scope: str, kind: str, *, tells: bool) -> None:
    who = Identity(tenant="acme", key="k1", user="ann", team="research", tags=("secret,tenant",))
    async with limited(Budget(scope=scope, limit_usd="0.0001")) as book:
        _, error = await refusal(book, identify=lambda _scope: who)
        assert error["scope_kind"] == kind
        assert ("0.0001" in error["message"]) == tells
        assert "secret" not in error["message"]


async def test_amounts_can_be_hidden_everywhere() -> None:
    async with limited(Budget(scope="tenant=acme", limit_usd="0.0007")) as book:
        got = await ask(book.around(Scripted(plain(chat_answer())), expose_amounts=False))
        assert got.own_headers.keys() == {"x-askii-call-id", "x-askii-model"}
        got, error = await refusal(book, body={**CHAT, "max_tokens": 500}, expose_amounts=False)
        assert error["message"] == "a tenant budget is spent"
        assert not any(character.isdigit() for character in error["message"])


@pytest.mark.parametrize("kind", PATHS)
async def test_invalid_requests_are_400(kind: str) -> None:
    async with ledger() as book:
        got, error = await refusal(book, kind, {**PATHS[kind][1], "model": 5})
        assert (got.status, error["code"], error["type"]) == (400, "invalid_request", "invalid_request_error")
        assert got.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("kind", PATHS)
async def test_models_without_a_price_are_400(kind: str) -> None:
    async with ledger() as book:
        got, error = await refusal(book, kind, {**PATHS[kind][1], "model": "nobody's"})
        assert (got.status, error["code"], error["type"]) == (400, "model_not_priced", "invalid_request_error")
        assert "nobody's" in error["message"]


@pytest.mark.parametrize(("kind", "error_type"), [("openai", "permission_error"), ("anthropic", "permission_error")])
async def test_models_that_a_key_may_not_call_are_403(kind: str, error_type: str) -> None:
    async with ledger() as book:
        who = Identity(tenant="acme", models=("mini",))
        got, error = await refusal(book, kind, identify=lambda _scope: who)
        assert (got.status, error["code"], error["type"]) == (403, "model_not_allowed", error_type)
        assert got.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("kind", "error_type"), [("openai", "invalid_request_error"), ("anthropic", "request_too_large")]
)
async def test_bodies_that_are_too_large_are_413(kind: str, error_type: str) -> None:
    async with ledger() as book:
        got, error = await refusal(book, kind, max_body_bytes=10)
        assert (got.status, error["code"], error["type"]) == (413, "request_too_large", error_type)


@pytest.mark.parametrize(("kind", "error_type"), [("openai", "server_error"), ("anthropic", "api_error")])
async def test_a_ledger_that_is_away_is_503_with_a_retry(kind: str, error_type: str) -> None:
    async with ledger() as book:

        async def away(_request: Any) -> Any:
            raise StoreError("the disk is on fire at /secret/path")

        store: Any = book.tracker.store
        store.reserve = away
        got, error = await refusal(book, kind)
        assert (got.status, error["code"], error["type"]) == (503, "ledger_unavailable", error_type)
        assert int(got.headers["retry-after"]) <= 5
        assert "secret" not in error["message"]
        assert book.metric("askii_refusals_total", scope_kind="ledger", reason="unavailable") == 1


async def test_a_ledger_that_never_opened_is_503_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    folder.write_text("a file is in the way")
    tracker = CostTracker(store=f"sqlite:///{folder / 'ledger.db'}", clock=Clock(), prices=PRICES)
    book = Ledger(tracker, Clock())
    await tracker.start(strict=False)
    try:
        got, error = await refusal(book)
        assert (got.status, error["code"]) == (503, "ledger_unavailable")
        folder.unlink()
        folder.mkdir()
        tracker._session._next_try_s = 0.0
        assert (await ask(book.around(Scripted(plain(chat_answer()))))).status == 200
    finally:
        await tracker.stop()


@pytest.mark.parametrize(
    "model", ["a\r\nset-cookie: x=1", "a\nb", "modèle ☃", "x" * 10_000, "\x7f", "<script>", "\u2028"]
)
async def test_no_model_name_can_break_out_of_headers_or_body(model: str) -> None:
    async with ledger(unknown_price="allow") as book:
        got = await ask(book.around(Scripted(plain(chat_answer()))), {**CHAT, "model": model})
        assert got.status == (400 if len(model) > 256 else 200)
        for name, value in got.start["headers"]:
            assert all(0x20 <= byte < 0x7F for byte in name + value)
            assert len(value) < 4096
    async with ledger() as book:
        got = await ask(book.around(Scripted(plain(chat_answer()))), {**CHAT, "model": model})
        assert got.status == 400
        assert len(got.body) < 4096
        assert got.json["error"]["message"]
