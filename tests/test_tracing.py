"""Calls on OpenTelemetry's spans: through the real middleware, its ASGI instrumentation, and a caller's own spans.

Prices: 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanKind, StatusCode, use_span

from askii_middleware import Budget
from askii_middleware.currency import NANO
from askii_middleware.errors import BudgetExceededError
from askii_middleware.tracing import Trace, provider_name

from .support.asgi import (
    CHAT,
    DONE,
    SSE,
    Client,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    piece,
    plain,
    start,
)
from .support.ledgers import Ledger, ledger
from .support.metered import FAMILIES, Endless
from .support.metered import book as scarce
from .support.servers import serving
from .support.service import soon
from .support.sockets import Provider, booked, socket_to
from .support.sockets import ask as converse
from .support.spans import Spans, said

ROOT = Path(__file__).parents[1]
PROMPT = "the-prompt-nobody-may-read"
ASK = {**CHAT, "messages": [{"role": "user", "content": PROMPT}]}
BUDGETS = [Budget(scope="tenant=*", limit_usd=10), Budget(scope="tenant=poor", limit_usd="0.000001")]


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger(budgets=BUDGETS, fallbacks={"dear": ["mini"]}) as open_ledger:
        yield open_ledger


ASKED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "big",
    "gen_ai.request.max_tokens": 20,
    "askii.tenant": "acme",
}
USED = {
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.output_tokens": 3,
    "askii.cost_usd": 37e-6,
    "askii.cost_coins": 37.0,
}


async def test_the_servers_span_tells_what_a_plain_answer_was_and_cost(book: Ledger, spans: Spans) -> None:
    answer = await ask(spans.around(book.around(Scripted(plain(chat_answer(7, 3))))), ASK)
    (span,) = spans.servers()
    record = await book.record()
    assert span == {
        **ASKED,
        **USED,
        "askii.call_id": answer.own_headers["x-askii-call-id"],
        "askii.outcome": "completed",
        "gen_ai.response.model": record.served_model,
        "gen_ai.response.id": record.provider_request_id,
    }


async def test_a_stream_whose_span_ends_with_its_last_byte_tells_its_cost(book: Ledger, spans: Spans) -> None:
    script = [start(SSE), piece(chat_chunk("hi")), piece(chat_usage(7, 3) + DONE, more=False)]
    book.slow = asyncio.Event()  # the charge is written long after the span is over
    asked = asyncio.create_task(ask(spans.around(book.around(Scripted(script))), {**ASK, "stream": True}))
    while not spans.servers():
        await asyncio.sleep(0)
    book.slow.set()
    await asked
    (span,) = spans.servers()
    assert span.items() >= {**ASKED, **USED, "gen_ai.request.stream": True, "askii.outcome": "completed"}.items()
    assert (await book.record()).cost_nano_usd == 37_000


async def test_no_span_holds_a_prompt(book: Ledger, spans: Spans) -> None:
    await ask(spans.around(book.around(Scripted(plain(chat_answer(7, 3))))), ASK)
    await ask(spans.around(book.around(Scripted([RuntimeError("no")]))), ASK)
    await ask(spans.around(book.around(Scripted([]), identify=lambda _scope: "poor")), ASK)
    assert len(spans.servers()) == 3
    assert PROMPT not in "".join(span.to_json() for span in spans.all())


async def test_a_refusal_is_an_error_of_the_requests_span(book: Ledger, spans: Spans) -> None:
    answer = await ask(spans.around(book.around(Scripted([]), identify=lambda _scope: "poor")), ASK)
    (server,) = [span for span in spans.all() if span.kind is SpanKind.SERVER]
    assert answer.status == 402
    assert server.status.status_code is StatusCode.ERROR
    assert said(server) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "big",
        "askii.tenant": "poor",
        "askii.call_id": answer.own_headers["x-askii-call-id"],
        "askii.outcome": "refused",
        "askii.refusal.reason": "spent",
        "askii.refusal.scope": "tenant",
        "error.type": "budget_exceeded",
    }


async def test_a_request_without_an_identity_is_an_error_too(book: Ledger, spans: Spans) -> None:
    answer = await ask(spans.around(book.around(Scripted([]), identify=lambda _scope: None)), ASK)
    (span,) = spans.servers()
    assert answer.status == 401
    assert (span["error.type"], span["askii.outcome"]) == ("unauthorized", "refused")
    assert "gen_ai.request.model" not in span


async def test_an_answer_that_costs_nothing_is_released(book: Ledger, spans: Spans) -> None:
    await ask(spans.around(book.around(Scripted(plain({"error": {"message": "no"}}, status=500)))), ASK)
    (span,) = spans.servers()
    assert span["askii.outcome"] == "released"
    assert "askii.cost_usd" not in span


async def test_a_stream_that_breaks_off_is_told_on_a_span_that_still_records(book: Ledger, spans: Spans) -> None:
    script = [start(SSE), piece(chat_chunk("hello")), piece(chat_chunk("more")), OSError("gone")]
    client = Client([b'{"model":"big","stream":true,"max_tokens":20,"messages":[{"role":"user","content":"hi"}]}'])
    with spans.tracer.start_as_current_span("own"):
        await ask(book.around(Scripted(script)), client=client)
    record = await book.record()
    span = spans.named("own")
    assert span["askii.outcome"] == record.outcome == "upstream_error"
    assert span["askii.estimated"] is True
    assert span["askii.cost_usd"] == record.cost_nano_usd / NANO > 0


async def test_a_stream_that_was_cut_says_so_and_what_it_cost(spans: Spans) -> None:
    async with scarce() as run:
        await ask(spans.around(run.around(Endless(FAMILIES[0]))), FAMILIES[0].body, path=FAMILIES[0].path)
        record = await run.record()
    (span,) = spans.servers()
    assert span["askii.outcome"] == record.outcome == "cut"
    assert span["askii.cost_usd"] == record.cost_nano_usd / NANO > 0


async def test_the_responses_of_a_socket_add_up_on_its_span(spans: Spans) -> None:
    async with booked() as run:
        async with serving(spans.around(run.around(Provider()))) as url:
            async with socket_to(url, "/v1/realtime?model=mini") as socket:
                for _ in range(3):
                    await converse(socket, {"type": "response.create"})
            await soon(spans.servers)
        charged = await run.spent()
    (span,) = spans.servers()
    assert span["askii.calls"] == 3
    assert span["askii.cost_usd"] == charged / NANO > 0


async def test_a_fallback_names_both_models_and_why(spans: Spans) -> None:
    budgets = [Budget(scope="tenant=*", limit_usd=10), Budget(scope="tenant=acme,model=big", limit_usd="0.000001")]
    async with ledger(budgets=budgets, fallbacks={"big": ["mini"]}) as book:
        await ask(spans.around(book.around(Scripted(plain(chat_answer(7, 3, model="mini"))))), ASK)
        (span,) = spans.servers()
    assert span["gen_ai.request.model"] == "big"
    assert span["askii.model"] == span["gen_ai.response.model"] == "mini"
    assert span["askii.fallback_reason"] == "budget"
    assert span["askii.cost_usd"] == 3.7e-6


# Calls in code --------------------------------------------------------------------------------------------------------


async def one_call(book: Ledger, counts: tuple[int, int] = (7, 3), model: str = "big") -> None:
    async with book.tracker.track_tokens("acme", model, expected_input_tokens=9, max_output_tokens=20) as usage:
        usage.record(chat_answer(*counts, model=model))


async def test_a_callers_own_span_tells_of_its_call(book: Ledger, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("own"):
        await one_call(book)
    span = spans.named("own")
    asked = {name: value for name, value in ASKED.items() if name != "gen_ai.provider.name"}
    assert span.items() >= {**asked, **USED, "askii.call_id": (await book.record()).call_id}.items()


async def test_calls_in_one_span_add_up_to_what_was_charged(book: Ledger, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("own"):
        await asyncio.gather(one_call(book, (7, 3)), one_call(book, (70, 30)), one_call(book, (1, 1), "mini"))
    span = spans.named("own")
    charged = sum(record.cost_nano_usd for record in await book.records())
    assert charged == 37_000 + 370_000 + 1_100
    assert span["askii.cost_usd"] == charged / NANO
    assert (span["askii.calls"], span["gen_ai.usage.input_tokens"], span["gen_ai.usage.output_tokens"]) == (3, 78, 34)


async def test_a_block_inside_a_request_speaks_on_its_own_span_and_is_counted_once(book: Ledger, spans: Spans) -> None:
    async def step(*_: Any) -> None:
        with spans.tracer.start_as_current_span("inner"):
            await one_call(book)

    await ask(spans.around(book.around(Scripted([step, *plain(chat_answer(7, 3))]))), ASK)
    (server,), inner = spans.servers(), spans.named("inner")
    assert inner["askii.call_id"] == server["askii.call_id"] == (await book.record()).call_id
    assert inner.items() >= USED.items()
    assert "askii.cost_usd" not in server


async def test_a_block_that_gives_up_leaves_the_word_to_the_requests_span(book: Ledger, spans: Spans) -> None:
    async def step(*_: Any) -> None:
        with spans.tracer.start_as_current_span("inner"), pytest.raises(RuntimeError):
            async with book.tracker.track_tokens("acme", "big", expected_input_tokens=9, max_output_tokens=9):
                raise RuntimeError

    await ask(spans.around(book.around(Scripted([step, *plain(chat_answer(7, 3))]))), ASK)
    (server,) = spans.servers()
    assert server.items() >= USED.items()
    assert "askii.cost_usd" not in spans.named("inner")


async def test_a_block_that_is_refused_leaves_the_error_to_its_caller(book: Ledger, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("own"), pytest.raises(BudgetExceededError):
        await book.tracker.track_tokens("poor", "big", expected_input_tokens=9).__aenter__()
    (span,) = spans.all()
    assert span.status.status_code is StatusCode.UNSET
    assert said(span).items() >= {"askii.refusal.reason": "spent", "askii.refusal.scope": "tenant"}.items()


async def test_a_span_that_is_over_is_left_alone_and_the_charge_is_written(
    book: Ledger, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    span = spans.tracer.start_span("own")
    with use_span(span):
        block = book.tracker.track_tokens("acme", "big", expected_input_tokens=9, max_output_tokens=9)
        usage = await block.__aenter__()
    span.end()
    with caplog.at_level(logging.WARNING):
        usage.record(chat_answer(7, 3))
        await block.__aexit__(None, None, None)
    assert caplog.records == []  # as the SDK writes where an attribute is set too late
    assert (await book.record()).cost_nano_usd == 37_000


async def test_concurrent_requests_do_not_mix(book: Ledger, spans: Spans) -> None:
    class Echo:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            number = int(scope["query_string"])
            await receive()
            for _ in range(number % 5):
                await asyncio.sleep(0)
            for message in plain(chat_answer(number, 1)):
                await send(message)

    app = spans.around(book.around(Echo(), identify=lambda scope: f"t{scope['query_string'].decode()}"))
    await asyncio.gather(*(ask(app, ASK, query_string=str(number).encode()) for number in range(1, 41)))
    found = {
        (span["askii.tenant"], span["gen_ai.usage.input_tokens"], span["askii.cost_usd"]) for span in spans.servers()
    }
    assert found == {(f"t{number}", number, (number + 10) / 1e6) for number in range(1, 41)}
    ids = {record.tenant: record.call_id for record in await book.records()}
    assert {span["askii.tenant"]: span["askii.call_id"] for span in spans.servers()} == ids


# Settings, and spans of others ----------------------------------------------------------------------------------------


async def test_the_tenant_can_be_left_out(spans: Spans) -> None:
    async with ledger(budgets=BUDGETS, trace_tenant=False) as book:
        await ask(spans.around(book.around(Scripted(plain(chat_answer(7, 3))))), ASK)
    (span,) = spans.servers()
    assert span["askii.cost_usd"] == 37e-6
    assert "askii.tenant" not in span


async def test_traces_can_be_off(spans: Spans) -> None:
    async with ledger(budgets=BUDGETS, traces="off") as book:
        await ask(spans.around(book.around(Scripted(plain(chat_answer(7, 3))))), ASK)
    assert spans.servers() == [{}]


@pytest.mark.parametrize("method", ["set_attributes", "is_recording"])
async def test_a_span_that_raises_costs_no_call_and_is_told_once(
    method: str, book: Ledger, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    span = spans.tracer.start_span("own")
    monkeypatch.setattr(span, method, broken)
    with use_span(span):
        await one_call(book)
        await one_call(book)
    assert [record.cost_nano_usd for record in await book.records()] == [37_000, 37_000]
    assert [getattr(line, "askii_event", None) for line in caplog.records] == ["span_failed"]


async def test_a_span_that_cannot_be_a_key_costs_no_call_and_tells_of_it(book: Ledger) -> None:
    class Plain(NonRecordingSpan):
        __hash__ = None  # type: ignore[assignment]  # as of a dataclass

        def __init__(self) -> None:
            super().__init__(INVALID_SPAN_CONTEXT)
            self.attributes: dict[str, Any] = {}

        def is_recording(self) -> bool:
            return True

        def set_attributes(self, attributes: Any) -> None:
            self.attributes.update(attributes)

    span = Plain()
    with use_span(span):
        await one_call(book)
    assert [record.cost_nano_usd for record in await book.records()] == [37_000]
    assert span.attributes["askii.cost_usd"] == 37e-6


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**53)), max_size=30))
def test_the_sums_of_a_span_are_those_of_each_calls_last_word(words: list[tuple[int, int]]) -> None:
    class Recording:
        def is_recording(self) -> bool:
            return True

    sums: dict[str, float] = {}
    traces = [Trace(Recording(), sums, None) for _ in range(5)]  # type: ignore[arg-type]
    last: dict[int, int] = {}
    for call, cost in words:
        traces[call].add({"askii.cost_nano_usd": cost})
        last[call] = cost
    assert sums.get("askii.cost_nano_usd", 0) == sum(last.values())


@pytest.mark.parametrize(
    ("provider", "api", "name"),
    [
        ("google", "gemini.generate", "gcp.gemini"),
        ("google", "vertex.embeddings", "gcp.vertex_ai"),
        ("anthropic", "anthropic.vertex", "gcp.vertex_ai"),
        ("anthropic", "anthropic.messages", "anthropic"),
        ("anthropic", "bedrock.converse", "aws.bedrock"),
        ("openai", "azure.chat", "azure.ai.openai"),
        ("x-ai", "openai.chat", "x_ai"),
        ("ollama", "ollama.chat", "ollama"),
    ],
)
def test_providers_have_the_names_of_the_conventions(provider: str, api: str, name: str) -> None:
    assert provider_name(provider, api) == name


CALL = """
import asyncio
from askii_middleware import Budget, CostTracker
from askii_middleware.pricing import ModelPrice

async def main():
    prices = {"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10)}
    async with CostTracker(store="memory://", prices=prices, TRACES) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=9, max_output_tokens=9) as usage:
            usage["input_tokens"] += 7
        assert (await tracker.store.totals()).calls == 1

asyncio.run(main())
"""
BLOCKER = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opentelemetry":
            raise AssertionError(f"{name} was looked for")
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("traces", ["auto", "off"])
def test_nothing_of_opentelemetry_is_imported_or_looked_for(traces: str) -> None:
    script = BLOCKER + CALL.replace("TRACES", f"traces={traces!r}")
    script += '\nassert not [name for name in sys.modules if name.startswith("opentelemetry")]\n'
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
