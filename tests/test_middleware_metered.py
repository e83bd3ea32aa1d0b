"""Metered streams through the wrapped application: what passes, how a stream without room ends, what it costs.

Prices: 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .support.asgi import DONE, JSON, SSE, Scripted, ask, event, piece, plain, start
from .support.metered import (
    CHAT_BODY,
    CHAT_FAMILY,
    FAMILIES,
    GEMINI,
    GEMINI_BODY,
    IDS,
    LIMIT,
    MESSAGES,
    PLENTY,
    WORD,
    Endless,
    Family,
    book,
    chat_piece,
    cut_stream,
)


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
@pytest.mark.parametrize("split", [None, 1_000_000, 4_096, 61])
async def test_a_stream_without_room_ends_in_its_apis_own_form(family: Family, split: int | None) -> None:
    async with book() as run:
        app = Endless(family, split=split)
        answer, record = await cut_stream(family, run, app)
        assert isinstance(app.error, OSError)
        assert app.heard == {"type": "http.disconnect"}
        assert answer.body.count(family.end) == 1
        words = answer.body.count(WORD.encode())
        # All of what passed before the end is whole events of the upstream.
        passed = family.head + b"".join((family.between if n else b"") + family.piece(WORD) for n in range(words))
        assert answer.body.startswith(passed)
        assert family.end in answer.body[len(passed) :]
        assert 0 < record.cost_nano_usd <= LIMIT
        assert await run.spent() == record.cost_nano_usd


@pytest.mark.parametrize("family", FAMILIES[4:], ids=IDS[4:])
async def test_what_passed_before_a_cut_is_paid_for(family: Family) -> None:
    """With bytes as the upper bound of tokens: no more bytes than the budget pays tokens."""
    async with book() as run:
        answer, _ = await cut_stream(family, run, Endless(family, word="\u20acuro, "))
        assert answer.body.count(b"uro, ") * 8 <= 2_000


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
async def test_a_stream_with_room_passes_untouched_and_in_whole_events(family: Family) -> None:
    async with book(900_000_000) as run:
        data = list(itertools.islice(family.pieces(itertools.repeat(WORD)), 600))
        messages = [start((b"content-type", family.content_type)), *map(piece, data), piece(b"", more=False)]
        answer = await ask(run.around(Scripted(messages)), family.body, path=family.path)
        assert answer.body == b"".join(data)
        assert [m["body"] for m in answer.messages[1:-1] if m["body"]] == [d for d in data if d]
        assert (await run.record()).outcome != "cut"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FAMILIES), st.integers(20, 3_000), st.integers(3_000_000, 15_000_000))
def test_any_split_and_any_limit_end_a_stream_cleanly(family: Family, split: int, limit: int) -> None:
    async def run_it() -> None:
        async with book(limit) as run:
            answer, record = await cut_stream(family, run, Endless(family, split=split))
            assert record.cost_nano_usd <= limit
            assert answer.body.count(family.end) == 1

    asyncio.run(run_it())


async def test_a_cut_stream_costs_the_prompt_that_was_reported_and_the_output_that_was_counted() -> None:
    async with book() as run:
        answer, record = await cut_stream(FAMILIES[4], run, Endless(FAMILIES[4]))
        words = answer.body.count(WORD.encode())
        assert record.usage.input_tokens == 12
        assert record.usage.output_tokens == pytest.approx(words * 2, abs=4)
        assert record.estimated


async def test_one_event_larger_than_all_that_is_left_does_not_pass_and_is_not_charged_in_full() -> None:
    async with book(8_000_000) as run:
        script = [start(SSE), piece(chat_piece("small")), piece(chat_piece("LARGE" * 2_000)), piece(DONE, more=False)]
        answer = await ask(run.around(Scripted(script)), {**CHAT_BODY, "model": "llama3"})
        assert b"small" in answer.body
        assert b"LARGE" not in answer.body
        assert answer.body.count(CHAT_FAMILY.end) == 1
        record = await run.record()
        assert record.outcome == "cut"
        assert record.cost_nano_usd <= 8_000_000


async def test_counted_tokens_let_english_go_on_four_times_as_far_as_bytes() -> None:
    async with book() as run:
        app = Endless(CHAT_FAMILY, word=" another")
        answer, record = await cut_stream(CHAT_FAMILY, run, app)
        words = answer.body.count(b" another")
        assert words >= 1_800
        assert record.usage.output_tokens == pytest.approx(words, abs=2)


# Who is metered, and who is not ---------------------------------------------------------------------------------------


async def held_at_start(body: dict[str, Any], path: str = "/v1/chat/completions", **options: Any) -> int:
    """What is held when the application has the request."""
    found = 0

    async def look(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal found
        found = (await run.totals()).held_nano_usd
        await send(start(JSON, status=500))
        await send(piece(b"{}", more=False))

    async with book(900_000_000, **options) as run:
        await ask(run.around(Scripted([look])), body, path=path)
        await run.idle()
    return found


BOUND = PLENTY * 10_000


@pytest.mark.parametrize(
    "change",
    [
        {"model": "o3"},
        {"stream": False},
        {"prediction": {"type": "content", "content": "x"}},
        {"reasoning_effort": "high"},
        {"modalities": ["text", "audio"]},
    ],
)
async def test_what_may_be_billed_unseen_is_held_for_as_a_whole(change: dict[str, Any]) -> None:
    body = {k: v for k, v in {**CHAT_BODY, **change}.items() if k != "stream_options"}
    assert await held_at_start(body) >= BOUND


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {**FAMILIES[4].body, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("/v1/messages", {**FAMILIES[4].body, "thinking": {"type": "adaptive"}}),
        ("/v1/messages", {**FAMILIES[4].body, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("/v1/responses", {**FAMILIES[3].body, "tools": [{"type": "web_search"}]}),
        (GEMINI, {**GEMINI_BODY, "tools": [{"googleSearch": {}}]}),
        ("/v1/completions", {**FAMILIES[2].body, "best_of": 2}),
        ("/v1/chat/completions", {**CHAT_BODY, "tools": [{"type": "openrouter:web_search"}]}),
        (
            "/v2/chat",
            {**FAMILIES[9].body, "messages": [*MESSAGES, {"role": "tool", "tool_call_id": "1", "content": "x"}]},
        ),
        (
            FAMILIES[11].path,
            {**FAMILIES[11].body, "toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}},
        ),
    ],
)
async def test_thinking_and_tools_that_the_provider_runs_are_held_for_as_a_whole(
    path: str, body: dict[str, Any]
) -> None:
    assert await held_at_start(body, path) >= BOUND


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
async def test_a_visible_stream_begins_with_a_slice(family: Family) -> None:
    assert await held_at_start(family.body, family.path) <= BOUND // 4


async def test_the_policy_bound_holds_for_streams_as_a_whole() -> None:
    assert await held_at_start(CHAT_BODY, hold="bound") >= BOUND


async def test_in_shadow_nothing_is_cut() -> None:
    async with book(enforcement="shadow") as run:
        data = [chat_piece(WORD) for _ in range(3_000)]
        answer = await ask(run.around(Scripted([start(SSE), *map(piece, data), piece(DONE, more=False)])), CHAT_BODY)
        assert answer.body == b"".join(data) + DONE
        record = await run.record()
        assert record.outcome == "completed"
        assert record.cost_nano_usd > LIMIT


async def test_an_answer_is_asked_for_without_encoding() -> None:
    async with book() as run:
        app = Scripted([start(SSE), piece(DONE, more=False)])
        await ask(run.around(app, inject_usage=False), CHAT_BODY, headers=[(b"accept-encoding", b"gzip, br")])
        assert app.sent_headers[b"accept-encoding"] == b"identity"


async def test_an_answer_that_is_encoded_all_the_same_is_held_for_as_a_whole() -> None:
    body = gzip.compress(b"".join(chat_piece(WORD) for _ in range(100)) + DONE)
    script = [start(SSE, (b"content-encoding", b"gzip")), piece(body[:50]), piece(body[50:], more=False)]
    async with book(900_000_000) as run:
        answer = await ask(run.around(Scripted(script)), CHAT_BODY)
        assert answer.body == body
        assert (await run.record()).outcome == "completed"


async def test_an_encoded_answer_without_room_is_cut_before_it_begins() -> None:
    script = [start(SSE, (b"content-encoding", b"gzip")), piece(gzip.compress(chat_piece(WORD)), more=False)]
    async with book() as run:
        answer = await ask(run.around(Scripted(script)), CHAT_BODY)
        assert "content-encoding" not in answer.headers
        assert b'"finish_reason":"length"' in answer.body
        record = await run.record()
        assert record.outcome == "cut"
        assert record.usage.output_tokens == 0


async def test_an_application_that_does_not_stream_is_charged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1_990, "total_tokens": 2_000}
    reply = {"id": "c1", "object": "chat.completion", "model": "gpt-4o", "choices": [], "usage": usage}
    async with book() as run:
        with caplog.at_level(logging.WARNING):
            answer = await ask(run.around(Scripted(plain(reply))), CHAT_BODY)
        assert answer.json == reply
        assert (await run.record()).cost_nano_usd == 10 * 1_000 + 1_990 * 10_000
        assert "asked for a stream and got none" in caplog.text


async def test_the_length_of_a_stream_that_may_be_cut_is_not_promised() -> None:
    async with book() as run:
        script = [start(SSE, (b"content-length", b"14")), piece(DONE, more=False)]
        answer = await ask(run.around(Scripted(script)), CHAT_BODY)
        assert "content-length" not in answer.headers


@pytest.mark.parametrize("header", [(), ((b"content-type", b"text/plain; charset=utf-8"),)])
async def test_a_stream_that_does_not_say_that_it_is_one_is_cut_all_the_same(header: Any) -> None:
    """FastAPI's StreamingResponse has no content type unless it is given one."""
    script = [start(*header), *(piece(chat_piece(WORD)) for _ in range(3_000)), piece(DONE, more=False)]
    async with book() as run:
        answer = await ask(run.around(Scripted(script)), CHAT_BODY)
        assert answer.body.count(CHAT_FAMILY.end) == 1
        record = await run.record()
        assert record.outcome == "cut"
        assert record.cost_nano_usd <= LIMIT


async def test_plain_text_without_a_type_passes_piece_by_piece() -> None:
    script = [start(), *(piece(b"some words ") for _ in range(3)), piece(b"", more=False)]
    async with book(900_000_000) as run:
        answer = await ask(run.around(Scripted(script)), CHAT_BODY)
        assert [m["body"] for m in answer.messages[1:]] == [b"some words "] * 3 + [b""]


def hidden(tokens: int) -> list[bytes]:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    return [chat_piece("hi"), event({"id": "c1", "choices": [], "usage": usage}), DONE]


async def test_a_usage_that_tells_of_more_than_was_seen_is_held_for_and_charged() -> None:
    async with book(900_000_000) as run:
        app = Scripted([start(SSE), *map(piece, hidden(5_000)), piece(b"", more=False)])
        answer = await ask(run.around(app), {**CHAT_BODY, "model": "llama3"})
        assert answer.body == b"".join(hidden(5_000))
        record = await run.record()
        assert record.outcome == "completed"
        assert record.usage.output_tokens == 5_000


@pytest.mark.parametrize("with_the_end", [True, False])
async def test_a_stream_whose_own_end_has_passed_gets_no_second_one(with_the_end: bool) -> None:
    pieces = hidden(5_000)
    last = pieces.pop() if with_the_end else b""
    async with book() as run:
        app = Scripted([start(SSE), *map(piece, pieces), piece(last, more=False)])
        answer = await ask(run.around(app), {**CHAT_BODY, "model": "llama3"})
        assert answer.body == b"".join(hidden(5_000))
        assert answer.complete
        record = await run.record()
        assert record.outcome == "cut"
        assert record.cost_nano_usd <= LIMIT
