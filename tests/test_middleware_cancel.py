"""Cancelled, or deserted by its client, at every single moment of a request: never a hold that nobody gives back, never
two records, never a charge and a release of one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import AskiiMiddleware
from askii_middleware.stores import open_store

from .support.asgi import (
    CHAT,
    DONE,
    Client,
    Interrupted,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    http_scope,
    plain,
    stream,
)
from .support.ledgers import Clock, Ledger, ledger

STREAM = {**CHAT, "stream": True}
BLOCK_ANSWER = chat_answer(7, 3)
MAX_STEPS = 200


@pytest.fixture(params=["memory", "sqlite in threads"])
async def book(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    if request.param == "memory":
        async with ledger() as found:
            yield found
        return
    clock = Clock()
    store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}", clock=clock, sqlite_sync="full")
    async with ledger(store, clock=clock) as found:
        yield found


def with_block(book: Ledger, model: str) -> Scripted:
    """An application that calls a model in code, and answers with it."""

    async def calls_a_model(_scope: Any, _receive: Any, send: Any) -> None:
        async with book.tracker.track_tokens("acme", model, expected_input_tokens=9, max_output_tokens=9) as usage:
            await asyncio.sleep(0)
            usage.record(BLOCK_ANSWER)
        for message in plain({"answer": "hello"}):
            await send(message)

    return Scripted([calls_a_model])


def with_late_tenant() -> Scripted:
    """An application whose tenant is known only after the call was admitted."""

    async def dependency(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"]["tenant_id"] = "acme"

    return Scripted([dependency, *plain(chat_answer())])


APPS: dict[str, tuple[dict[str, Any], Callable[[Ledger], Scripted]]] = {
    "plain": (CHAT, lambda _book: Scripted(plain(chat_answer()))),
    "stream": (STREAM, lambda _book: Scripted(stream(chat_chunk("a"), chat_chunk(reason="stop"), chat_usage(), DONE))),
    "error": (CHAT, lambda _book: Scripted(plain({"error": {}}, status=500))),
    "raises": (CHAT, lambda _book: Scripted([RuntimeError("no")])),
    "late tenant": (CHAT, lambda _book: with_late_tenant()),
    "block": (CHAT, lambda book: with_block(book, "big")),
    "block that replaces the request's hold": (CHAT, lambda book: with_block(book, "mini")),
}


async def cancelled_at(app: AskiiMiddleware, body: dict[str, Any], step: int) -> bool:
    """One request, cancelled where it waits for the `step`-th time. False: it did not wait that often."""
    raw = json.dumps(body).encode()
    client = Client([raw[:9], raw[9:]])
    run = Interrupted(app(http_scope(), client.receive, client.send), step)

    async def request() -> None:
        await run

    with contextlib.suppress(asyncio.CancelledError, RuntimeError):
        await asyncio.create_task(request())
    return run.reached


@pytest.mark.parametrize("kind", APPS)
async def test_a_cancellation_at_any_moment_leaves_one_end_of_the_call(book: Ledger, kind: str) -> None:
    body, make = APPS[kind]
    options = {"default_tenant": "anybody", "identity": {"sources": ["state"]}} if kind == "late tenant" else {}
    app = book.around(make(book), **options)
    seen = 0
    for step in range(1, MAX_STEPS):
        reached = await cancelled_at(app, body, step)
        await book.idle()
        book.check_once()
        assert (await book.totals()).held_nano_usd == 0, f"step {step}"
        records = await book.records()
        assert len(records) - seen <= 1, f"step {step}"
        seen = len(records)
        if not reached:
            break
    else:
        pytest.fail("the request never came to its end")
    assert step > 3
    if "replaces" not in kind:  # there the store itself releases the hold that is replaced
        assert set(book.held) <= {*book.settled, *book.released}


@pytest.mark.parametrize("kind", ["plain", "stream", "error"])
@pytest.mark.parametrize("raises", [True, False])
async def test_a_client_that_leaves_at_any_message_leaves_one_end_of_the_call(
    book: Ledger, kind: str, *, raises: bool
) -> None:
    body, make = APPS[kind]
    app = book.around(make(book))
    for leaves_after in range(8):
        client = Client([json.dumps(body).encode()], leaves_after=leaves_after, raises=raises)
        await ask(app, client=client)
        await book.idle()
        book.check_once()
        assert (await book.totals()).held_nano_usd == 0
    records = await book.records()
    assert len(records) == (0 if kind == "error" else 8)
    assert all(record.cost_nano_usd > 0 for record in records)


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("broken"), asyncio.CancelledError()])
@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_an_error_out_of_send_at_any_message_leaves_one_end_of_the_call(
    book: Ledger, kind: str, error: BaseException
) -> None:
    body, make = APPS[kind]
    app = book.around(make(book))
    for fails_at in range(6):
        sent = 0
        client = Client([json.dumps(body).encode()])
        into = client.send

        async def send(message: Any, fails_at: int = fails_at, into: Any = into) -> None:
            nonlocal sent
            sent += 1
            if sent > fails_at:
                raise error
            await into(message)

        client.send = send  # type: ignore[method-assign]
        with contextlib.suppress(asyncio.CancelledError):
            await ask(app, client=client)
        await book.idle()
        book.check_once()
        assert (await book.totals()).held_nano_usd == 0
    assert len(await book.records()) == 6


async def test_two_cancellations_in_a_row_are_no_worse_than_one(book: Ledger) -> None:
    body, make = APPS["stream"]
    app = book.around(make(book))
    raw = json.dumps(body).encode()
    for step in range(1, 40):
        client = Client([raw])

        async def twice(step: int = step, client: Client = client) -> None:
            inner = Interrupted(app(http_scope(), client.receive, client.send), step)

            async def request() -> None:
                await inner

            await Interrupted(request(), step + 1)

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(twice())
        await book.idle()
        book.check_once()
        assert (await book.totals()).held_nano_usd == 0, f"step {step}"
