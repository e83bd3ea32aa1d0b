"""Which requests the middleware takes for calls, and what it does with all others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from askii_middleware.metric_series import OTHER

from .support.asgi import CHAT, Scripted, ask, chat_answer, piece, plain, start
from .support.ledgers import Ledger, ledger


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger(max_series=3) as open_ledger:
        yield open_ledger


def answers() -> Scripted:
    return Scripted(plain(chat_answer()))


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/v1/chat/completions", ""),
        ("/v1/chat/completions/", ""),
        ("/api/v1/chat/completions", "/api"),
        ("/v1/chat/completions", "/api"),
        ("/v1//chat/completions", ""),
        ("/v1/chat//completions", ""),
        ("/V1/CHAT/COMPLETIONS", ""),
    ],
)
async def test_a_call_is_metered_under_any_mount(book: Ledger, path: str, root_path: str) -> None:
    await ask(book.around(answers()), path=path, root_path=root_path)
    assert (await book.record()).api == "openai.chat"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
async def test_other_methods_pass_untouched(book: Ledger, method: str) -> None:
    app = answers()
    got = await ask(book.around(app), b"not json", method=method)
    assert (got.own_headers, app.bodies, book.held) == ({}, [b"not json"], [])


async def test_what_is_not_metered_passes_message_by_message(book: Ledger) -> None:
    script = [start(status=201), piece(b"a"), piece(b""), piece(b"b", more=False)]
    app = Scripted(script)
    got = await ask(book.around(app), [b"x", b"y"], path="/upload")
    assert got.messages == script
    assert all(got_message is sent for got_message, sent in zip(got.messages, script, strict=True))


async def test_an_excluded_path_passes_and_an_included_one_is_metered(book: Ledger) -> None:
    middleware = book.around(answers(), routes={"include": ["/v1/*"], "exclude": ["/v1/internal/*"]})
    for path in ("/v1/internal/messages", "/v2/messages", "/v1/internal/chat/completions"):
        got = await ask(middleware, path=path, identify=None)
        assert got.own_headers == {}
    assert book.held == []
    await ask(middleware, path="/mount/v1/chat/completions", root_path="/mount")
    assert len(book.held) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/files", 404),
        ("DELETE", "/v1/files/1", 404),
        ("post", "/v1/files", 404),
        ("GET", "/v1/models", 200),
        ("HEAD", "/v1/models", 200),
        ("OPTIONS", "/v1/chat/completions", 200),
        ("POST", "/healthz", 200),
        ("POST", "/v1/chat/completions", 200),
    ],
)
async def test_unmetered_requests_can_be_denied(book: Ledger, method: str, path: str, status: int) -> None:
    app = answers()
    middleware = book.around(app, unmetered="deny", routes={"exempt": ["/healthz"]})
    got = await ask(middleware, path=path, method=method)
    assert got.status == status
    if status == 404:
        assert app.scopes == []
        assert got.json["error"]["code"] == "route_not_metered"
        assert got.headers["x-should-retry"] == "false"
        assert book.metric("askii_refusals_total", scope_kind="route", reason="unmetered") == 1


async def test_a_body_of_another_shape_is_denied_too(book: Ledger) -> None:
    app = answers()
    got = await ask(book.around(app, unmetered="deny"), {"comment": "hello"}, path="/guestbook/messages")
    assert (got.status, app.scopes) == (404, [])


async def test_unmetered_posts_are_counted_by_a_bounded_class_of_their_path(book: Ledger) -> None:
    middleware = book.around(answers())
    for path in ("/a/1", "/a/2", "/b", "/c", "/d", "/" + "e" * 500):
        await ask(middleware, path=path)
    await ask(middleware, path="/a", method="GET")
    assert book.metric("askii_unmetered_total", path_class="/a/{id}") == 2
    assert book.metric("askii_unmetered_total", path_class="/b") == 1
    assert book.metric("askii_unmetered_total", path_class=OTHER) == 2


# Metrics --------------------------------------------------------------------------------------------------------------


async def test_metrics_are_served_where_a_path_is_set(book: Ledger) -> None:
    app = answers()
    middleware = book.around(app, metrics_path="/metrics")
    await ask(middleware)
    for path, root_path in (("/metrics", ""), ("/api/metrics", "/api")):
        got = await ask(middleware, b"", path=path, method="GET", root_path=root_path)
        assert got.status == 200
        assert 'llm_cost_usd_total{model="big",tenant_id="acme"} 6e-05' in got.body.decode()
    assert len(app.scopes) == 1


async def test_metrics_are_the_applications_where_no_path_is_set(book: Ledger) -> None:
    app = answers()
    await ask(book.around(app), b"", path="/metrics", method="GET")
    assert len(app.scopes) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer wrong")], 401),
        ([(b"authorization", b"t0ken")], 401),
        ([(b"authorization", "Bearer ¡".encode())], 401),
        ([(b"authorization", b"Bearer t0ken")], 200),
    ],
)
async def test_metrics_behind_a_token_are_for_those_who_know_it(book: Ledger, headers: Any, status: int) -> None:
    middleware = book.around(answers(), metrics_path="/metrics", metrics_token="t0ken")
    got = await ask(middleware, b"", path="/metrics", method="GET", headers=headers)
    assert got.status == status
    assert (b"llm_" in got.body) == (status == 200)


async def test_names_that_nobody_can_print_do_not_break_the_metrics(book: Ledger) -> None:
    middleware = book.around(Scripted(plain({**chat_answer(), "model": "\ud800"})), metrics_path="/metrics")
    await ask(middleware, {**CHAT, "user": "\udfff"})
    await ask(middleware, path="/\ud800/x")
    got = await ask(middleware, b"", path="/metrics", method="GET")
    assert got.status == 200
    assert (await book.record()).served_model == "?"
