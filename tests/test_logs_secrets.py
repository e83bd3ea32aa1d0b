"""What a request brings is in no log line: no prompt, no key, no metadata."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from askii_middleware import AskiiMiddleware, Budget
from askii_middleware.errors import BudgetExceededError
from askii_middleware.journal import Entry
from askii_middleware.keys import hash_secret, new_secret
from askii_middleware.settings import Settings
from askii_middleware.stores.base import KeyRow, Settlement, UnwritableError
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.tracker import CostTracker

from .support.asgi import CHAT, DONE, SSE, Scripted, ask, chat_answer, chat_chunk, piece, plain, start
from .support.formatters import FORMATTERS
from .support.ledgers import PRICES, START_S
from .support.service import FaultyStore

PROMPT, ANSWER, METADATA, FOREIGN = "prompt-0f3a", "answer-91bc", "metadata-7d2e", "sk-foreign-55aa"


async def hostile_run(secret: str, store: FaultyStore) -> None:
    """All that a request can bring: keys, prompts, errors that repeat them, refusals, cuts, outages."""
    keys = [KeyRow(id="k", sha256=hash_secret(secret), tenant="acme")]
    settings = Settings(store="memory://", keys=keys, default_tenant="nobody")
    budgets = [Budget(scope="tenant=acme", limit_usd="0.05"), Budget(scope="tenant=poor", limit_usd=0)]
    prices = {**PRICES, "gpt-4o": PRICES["big"]}
    async with CostTracker(store=store, prices=prices, budgets=budgets, settle_timeout_s=1) as tracker:

        async def one(*script: Any, **more: Any) -> None:
            app = AskiiMiddleware(Scripted(list(script)), tracker=tracker, settings=settings)
            body = {**CHAT, "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT, **more}
            for bearer in (secret, secret + "x", FOREIGN):
                await ask(app, body, headers=[(b"authorization", b"Bearer " + bearer.encode())])

        told = chat_answer(7, 3, choices=[{"index": 0, "message": {"role": "assistant", "content": ANSWER}}])
        stream = [start(SSE), *(piece(chat_chunk(ANSWER)) for _ in range(40)), piece(DONE, more=False)]
        await one(*plain(told))
        await one(*stream, stream=True, max_tokens=5000)
        await one(RuntimeError(f"could not answer {PROMPT} with {secret}"))
        await one(start(SSE), piece(chat_chunk(ANSWER)), ValueError(PROMPT), stream=True)
        await one(*plain({"error": {"message": PROMPT}}, status=500))
        await one(*plain(b"{" + ANSWER.encode()))
        await one(model=f"no-such-{FOREIGN}")
        for limit in (9, 10_000_000):
            try:
                async with tracker.track_tokens(
                    "acme", "big", expected_input_tokens=limit, max_output_tokens=9, metadata={"note": METADATA}
                ) as usage:
                    usage.record(chat_answer(7, 3, model="mini"))
            except BudgetExceededError:
                continue
        store.down = True
        await one(*plain(told))
        store.down = False
        store.faults["settle"] = [RuntimeError("defect"), UnwritableError("too much")]
        for _ in range(2):
            async with tracker.track_tokens(
                "acme", "mini", expected_input_tokens=9, max_output_tokens=9, metadata={"note": METADATA}
            ) as usage:
                usage.record(chat_answer(7, 3, model="mini"))

        async def goes_on(_scope: Any, _receive: Any, send: Any) -> None:
            await send(start(SSE))
            try:
                for _ in range(2000):
                    await send(piece(chat_chunk(ANSWER * 9)))
            except OSError:
                raise ValueError(PROMPT) from None

        await one(goes_on, model="gpt-4o", stream=True, max_tokens=16_000)


@pytest.mark.parametrize("make", FORMATTERS)
async def test_no_line_of_a_hostile_run_holds_a_prompt_a_key_or_metadata(make: Any) -> None:
    secret, stream = new_secret(), io.StringIO()
    logger, handler = logging.getLogger("askii_middleware"), logging.StreamHandler(stream)
    handler.setFormatter(make())
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        await hostile_run(secret, FaultyStore(MemoryStore()))  # type: ignore[abstract]
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
    text = stream.getvalue()
    seen = {json.loads(line)["askii_event"] for line in text.splitlines()}
    assert seen >= {"converted", "budget_exceeded", "store_failed", "store_broke", "model_mismatch"}
    assert seen >= {"stream_cut", "application_failed", "charge_rejected", "ledger_unavailable", "write_waits"}
    for planted in (secret, secret[9:], PROMPT, ANSWER, METADATA, FOREIGN):
        assert planted not in text


def test_a_bill_to_be_booked_by_hand_says_what_it_takes_and_not_what_callers_noted() -> None:
    settlement = Settlement(
        call_id="c-1",
        admitted_at_s=START_S,
        cost_nano_usd=37_000,
        matches=(),
        windows={},
        rate=(1_000_000, 1),
        subscription="sub",
        coins=37,
        pico_coins=0,
        tenant="acme",
        aggregates=(),
        record=b'{"metadata":{"note":"' + METADATA.encode() + b'"}',
    )
    bill = Entry(settlement=settlement).bill
    assert bill == (
        "tenant='acme' subscription='sub' cost_nano_usd=37000 coins=37 pico_coins=0 admitted_at_s=1767225600.0"
    )
