"""Who pays: decided before the body is read, never by what a client may claim, and not lost where it comes too late."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import Budget
from askii_middleware.identity import Identity
from askii_middleware.keys import hash_secret
from askii_middleware.stores.base import KeyRow

from .support.asgi import (
    CHAT,
    DONE,
    Client,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    http_scope,
    plain,
    stream,
)
from .support.ledgers import START_S, Ledger, ledger

GOOD, GONE, OLD, NARROW = (f"sk-askii-{name}" for name in ("good", "gone", "old", "narrow"))
KEYS = (
    KeyRow(id="k1", sha256=hash_secret(GOOD), tenant="acme", user="ann", team="research", tags=("batch",)),
    KeyRow(id="k2", sha256=hash_secret(GONE), tenant="acme", revoked=True),
    KeyRow(id="k3", sha256=hash_secret(OLD), tenant="acme", expires_at_s=START_S - 1),
    KeyRow(id="k4", sha256=hash_secret(NARROW), tenant="acme", models=("big",)),
)
BEARER = (b"authorization", b"Bearer " + GOOD.encode())
SPOOFED = (b"x-tenant-id", b"victim")


@pytest.fixture(params=["memory", "sqlite"])
async def book(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'ledger.db'}"
    async with ledger(url) as open_ledger:
        yield open_ledger


def answers() -> Scripted:
    return Scripted(plain(chat_answer()))


def unread() -> Client:
    """A client whose body must not be asked for."""
    client = Client()

    async def receive() -> Any:
        pytest.fail("the body was read")

    client.receive = receive  # type: ignore[method-assign]
    return client


# Keys -----------------------------------------------------------------------------------------------------------------


async def test_a_key_says_who_pays(book: Ledger) -> None:
    await ask(book.around(answers(), identity={}, keys=KEYS), headers=[BEARER])
    record = await book.record()
    assert (record.tenant, record.key, record.user, record.team, record.tags) == (
        "acme",
        "k1",
        "ann",
        "research",
        ("batch",),
    )


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ([], "missing"),
        ([(b"authorization", b"Bearer sk-askii-nobody")], "unknown"),
        ([(b"x-api-key", GONE.encode())], "revoked"),
        ([(b"api-key", OLD.encode())], "expired"),
        ([BEARER, (b"x-api-key", GONE.encode())], "ambiguous"),
        ([(b"authorization", b"Basic " + GOOD.encode())], "malformed"),
        ([(b"Authorization", b"bearer")], "missing"),
        ([(b"authorization", b"Bearer sk-proj-foreign")], "missing"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_missing_or_bad_key_is_401_before_the_body_is_read(
    book: Ledger, headers: list[tuple[bytes, bytes]], kind: str, path: str
) -> None:
    app = answers()
    got = await ask(book.around(app, identity={}, keys=KEYS), client=unread(), headers=headers, path=path)
    assert (got.status, app.scopes, book.held) == (401, [], [])
    assert got.headers["x-should-retry"] == "false"
    assert got.headers["www-authenticate"] == "Bearer"
    error = got.json["error"]
    assert error["type"] == "authentication_error"
    assert error["code"] == "unauthorized"
    assert ("type" in got.json) == (path == "/v1/messages")
    assert book.metric("askii_refusals_total", scope_kind="identity", reason=kind) == 1


async def test_a_bad_key_is_no_default_tenant(book: Ledger) -> None:
    middleware = book.around(answers(), identity={}, keys=KEYS, default_tenant="anybody")
    assert (await ask(middleware, headers=[(b"authorization", b"Bearer sk-askii-nobody")])).status == 401
    assert (await ask(middleware, headers=[(b"authorization", b"Bearer sk-proj-foreign")])).status == 200
    assert (await book.record()).tenant == "anybody"


async def test_a_refusal_never_repeats_the_secret(book: Ledger) -> None:
    got = await ask(book.around(answers(), identity={}), headers=[(b"authorization", b"Bearer sk-askii-s3cret")])
    assert b"s3cret" not in got.body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (CHAT, 200),
        ({**CHAT, "model": "openai/BIG"}, 200),
        ({**CHAT, "model": "big-2025-01-01"}, 200),
        ({**CHAT, "model": "mini"}, 403),
        ({**CHAT, "tools": [{"type": "advisor_1", "model": "mini"}]}, 403),
        ({**CHAT, "fallbacks": [{"model": "mini"}]}, 403),
    ],
)
async def test_a_key_for_some_models_opens_no_others(book: Ledger, body: dict[str, Any], status: int) -> None:
    app = Scripted(plain({"usage": {"input_tokens": 1, "output_tokens": 1}, "type": "message", "model": "big"}))
    headers = [(b"x-api-key", NARROW.encode())]
    got = await ask(book.around(app, identity={}, keys=KEYS), body, headers=headers, path="/v1/messages")
    assert got.status == status
    if status == 403:
        assert got.json["error"]["code"] == "model_not_allowed"
        assert got.json["error"]["type"] == "permission_error"
        assert book.held == []


# Headers and state ----------------------------------------------------------------------------------------------------


async def test_a_tenant_header_from_anywhere_else_than_a_trusted_proxy_is_nothing(book: Ledger) -> None:
    identity = {"sources": ["header:x-tenant-id"], "trusted_proxies": ["10.0.0.0/8"]}
    middleware = book.around(answers(), identity=identity)
    assert (await ask(middleware, headers=[SPOOFED], client=unread())).status == 401


async def test_a_tenant_header_from_a_trusted_proxy_counts_and_two_are_refused(book: Ledger) -> None:
    identity = {"sources": ["header:x-tenant-id"], "trusted_proxies": ["10.0.0.0/8"]}
    middleware = book.around(answers(), identity=identity)
    scope = http_scope(headers=[(b"x-tenant-id", b"acme")])
    assert (await ask(middleware, scope={**scope, "client": ("10.1.2.3", 1)})).status == 200
    assert (await book.record()).tenant == "acme"
    scope = http_scope(headers=[(b"x-tenant-id", b"acme"), SPOOFED])
    assert (await ask(middleware, scope={**scope, "client": ("10.1.2.3", 1)})).status == 401


async def test_without_the_source_no_header_says_anything(book: Ledger) -> None:
    middleware = book.around(answers(), identity={}, keys=KEYS)
    await ask(middleware, headers=[BEARER, SPOOFED, (b"x-askii-tenant", b"victim")])
    assert (await book.record()).tenant == "acme"


async def test_the_state_of_an_outer_middleware_says_who_pays(book: Ledger) -> None:
    app = answers()
    state = {"tenant_id": "acme", "user_id": 7, "team_id": "research"}
    await ask(book.around(app, identity={"sources": ["state"]}), state=state)
    record = await book.record()
    assert (record.tenant, record.user, record.team) == ("acme", "7", "research")


# A callable -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["acme", Identity(tenant="acme"), {"tenant": "acme"}])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_callable_says_who_pays(book: Ledger, given: Any, *, asynchronous: bool) -> None:
    async def later(_scope: Any) -> Any:
        await asyncio.sleep(0)
        return given

    await ask(book.around(answers(), identify=later if asynchronous else lambda _scope: given))
    assert (await book.record()).tenant == "acme"


@pytest.mark.parametrize("given", [None, ""])
async def test_a_callable_that_finds_nobody_is_401_or_the_default_tenant(book: Ledger, given: Any) -> None:
    assert (await ask(book.around(answers(), identify=lambda _scope: given), client=unread())).status == 401
    await ask(book.around(answers(), identify=lambda _scope: given, default_tenant="anybody"))
    assert (await book.record()).tenant == "anybody"


async def test_a_callable_that_raises_is_the_servers_to_log(book: Ledger) -> None:
    def broken(_scope: Any) -> str:
        raise LookupError("no database")

    got = await ask(book.around(answers(), identify=broken), client=unread())
    assert isinstance(got.error, LookupError)
    assert book.held == []


async def test_a_callable_is_not_asked_on_routes_that_are_not_metered(book: Ledger) -> None:
    got = await ask(book.around(answers(), identify=lambda _scope: pytest.fail("asked")), path="/health", method="GET")
    assert got.status == 200


# Too late -------------------------------------------------------------------------------------------------------------


def depends(tenant: Any, *script: Any, **more: Any) -> Scripted:
    """An application whose dependency finds the tenant, as FastAPI's `Depends` does: after the middleware."""

    async def dependency(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"].update({"tenant_id": tenant, **more})

    return Scripted([dependency, *script])


STATE = {"sources": ["key", "state"]}


async def test_a_tenant_that_appears_later_is_charged_instead_of_the_default_one(
    book: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    app = depends("acme", *plain(chat_answer()), user_id="ann")
    middleware = book.around(app, identity=STATE, keys=KEYS, default_tenant="anybody")
    with caplog.at_level(logging.ERROR):
        got = await ask(middleware)
    record = await book.record()
    assert (record.tenant, record.user, record.subscription, record.cost_nano_usd) == ("acme", "ann", "acme", 60_000)
    assert record.call_id == got.headers["x-askii-call-id"] + ".late"
    assert await book.spent("tenant=acme") == 60_000
    assert await book.spent("tenant=anybody") == 0
    assert book.released == [got.headers["x-askii-call-id"]]
    assert book.metric("askii_late_identity_total") == 1
    (line,) = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR]
    assert "must run first" in line
    assert "'anybody'" in line


async def test_a_tenant_that_appears_later_pays_for_its_stream(book: Ledger) -> None:
    app = depends("acme", *stream(chat_chunk("a"), chat_usage(), DONE))
    await ask(book.around(app, identity=STATE, default_tenant="anybody"), {**CHAT, "stream": True})
    assert (await book.record()).tenant == "acme"


async def test_a_tenant_that_appears_later_pays_above_its_limit(book: Ledger) -> None:
    await book.tracker.budget_enforcer.set_budget(Budget(scope="tenant=acme", limit_usd=0))
    got = await ask(book.around(depends("acme", *plain(chat_answer())), identity=STATE, default_tenant="anybody"))
    assert got.status == 200
    assert (await book.record()).cost_nano_usd == 60_000
    (state,) = await book.tracker.budget_enforcer.status("tenant=acme")
    assert state.spent_usd == Decimal("0.00006")


async def test_a_state_that_cannot_be_read_later_loses_no_charge(
    book: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        @property
        def tenant_id(self) -> str:
            raise LookupError("no session")

    async def breaks(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"] = Broken()

    app = Scripted([breaks, *plain(chat_answer())])
    got = await ask(book.around(app, identity=STATE, default_tenant="anybody"))
    assert got.status == 200
    record = await book.record()
    assert (record.tenant, record.cost_nano_usd) == ("anybody", 60_000)
    assert (await book.totals()).held_nano_usd == 0
    assert "could not be read" in caplog.text


async def test_nobody_pays_for_an_error_also_where_a_tenant_appears_later(book: Ledger) -> None:
    app = depends("acme", *plain({"error": {}}, status=500))
    await ask(book.around(app, identity=STATE, default_tenant="anybody"))
    assert await book.nothing_happened()
    assert len(book.released) == 1


async def test_a_tenant_that_appears_later_pays_also_where_the_client_leaves(book: Ledger) -> None:
    running = asyncio.Event()

    async def hangs(*_: Any) -> None:
        running.set()
        await asyncio.Event().wait()

    middleware = book.around(depends("acme", hangs), identity=STATE, default_tenant="anybody")
    task = asyncio.create_task(ask(middleware))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = await book.record()
    assert (record.tenant, record.outcome) == ("acme", "client_disconnected")


@pytest.mark.parametrize("tenant", [None, "", "anybody", "x" * 300, ["acme"], "a\0b", b"acme"])
async def test_a_state_that_names_nobody_leaves_the_charge_with_the_default_tenant(book: Ledger, tenant: Any) -> None:
    await ask(book.around(depends(tenant, *plain(chat_answer())), identity=STATE, default_tenant="anybody"))
    assert (await book.record()).tenant == "anybody"
    assert book.metric("askii_late_identity_total") == 0


async def test_a_key_is_not_overruled_by_a_state_that_comes_later(book: Ledger) -> None:
    app = depends("other", *plain(chat_answer()))
    await ask(book.around(app, identity=STATE, keys=KEYS, default_tenant="anybody"), headers=[BEARER])
    assert (await book.record()).tenant == "acme"
    assert book.metric("askii_late_identity_total") == 0


async def test_where_the_state_is_no_source_it_says_nothing_later_either(book: Ledger) -> None:
    await ask(book.around(depends("acme", *plain(chat_answer())), identity={}, default_tenant="anybody"))
    assert (await book.record()).tenant == "anybody"


async def test_a_block_knows_the_tenant_that_has_appeared(book: Ledger) -> None:
    async def calls_a_model(_scope: Any, _receive: Any, send: Any) -> None:
        async with book.tracker.track_tokens(None, "big", expected_input_tokens=9, max_output_tokens=9) as usage:
            usage.record(chat_answer())
        for message in plain({"answer": "hello"}):
            await send(message)

    await ask(book.around(depends("acme", calls_a_model), identity=STATE, default_tenant="anybody"))
    record = await book.record()
    assert (record.tenant, record.cost_nano_usd) == ("acme", 60_000)
    assert await book.spent("tenant=anybody") == 0
