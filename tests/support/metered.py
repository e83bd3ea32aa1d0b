"""Every API that streams text, endless streams of each, and a ledger with little room.

Prices: 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from askii_middleware import Budget
from askii_middleware.pricing import ModelPrice
from askii_middleware.providers.eventstream import CONTENT_TYPE, encode_frame
from askii_middleware.records import UsageRecord

from .asgi import SSE, Answer, ask, event, piece, start
from .ledgers import Ledger, ledger

MODELS = (
    *("gpt-4o", "gpt-3.5-turbo-instruct", "claude-opus-4-8", "gemini-2.0-flash", "llama3", "command-r"),
    *("codestral", "amazon.nova-pro-v1:0", "o3", "mistral-small"),
)
PRICE = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10)
OPTIONS: dict[str, Any] = {"prices": dict.fromkeys(MODELS, PRICE)}
LIMIT = 20_000_000
"""Nano-USD: a short prompt and at most 2,000 tokens."""
PLENTY = 16_000
WORD = "abcdefg "
MESSAGES = [{"role": "user", "content": "hi"}]


def book(limit_nano_usd: int = LIMIT, **options: Any) -> contextlib.AbstractAsyncContextManager[Ledger]:
    budgets = [Budget(scope="tenant=*", limit_usd=f"0.{limit_nano_usd:09d}")]
    return ledger(**{**OPTIONS, "budgets": budgets, **options})


# Every API that streams text ------------------------------------------------------------------------------------------


def chat_piece(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [choice]})


def completion_piece(text: str) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return event({"id": "c1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})


def response_piece(text: str) -> bytes:
    kind = "response.output_text.delta"
    return event({"type": kind, "item_id": "i", "output_index": 0, "content_index": 0, "delta": text}, kind)


def message_piece(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")


def message_head() -> bytes:
    usage = {"input_tokens": 12, "output_tokens": 1}
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "claude-opus-4-8", "content": []}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    head = {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}
    return event({"type": "message_start", "message": head}, "message_start") + event(block, "content_block_start")


def gemini_json(text: str) -> bytes:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    return json.dumps({"candidates": [candidate], "modelVersion": "gemini-2.0-flash", "responseId": "r1"}).encode()


def nova_piece(text: str) -> bytes:
    head = {":event-type": "contentBlockDelta", ":content-type": "application/json", ":message-type": "event"}
    return encode_frame(head, json.dumps({"contentBlockIndex": 0, "delta": {"text": text}}).encode())


def lines(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@dataclass(frozen=True)
class Family:
    """An API: its request, how a piece of text comes in its streams, and what its end looks like when it was cut."""

    name: str
    path: str
    body: dict[str, Any]
    head: bytes
    piece: Callable[[str], bytes]
    end: bytes
    content_type: bytes = SSE[1]
    between: bytes = b""

    def pieces(self, words: Iterator[str]) -> Iterator[bytes]:
        yield self.head
        for number, word in enumerate(words):
            yield (self.between if number else b"") + self.piece(word)


CHAT_BODY: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": PLENTY, "stream": True}
CHAT_BODY["stream_options"] = {"include_usage": True}
GEMINI = "/v1beta/models/gemini-2.0-flash:streamGenerateContent"
GEMINI_BODY = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": PLENTY}}
FAMILIES = (
    Family("chat", "/v1/chat/completions", CHAT_BODY, b"", chat_piece, b'"finish_reason":"length"'),
    Family(
        "chat, usage asked for by us",
        "/v1/chat/completions",
        {k: v for k, v in CHAT_BODY.items() if k != "stream_options"},
        *(b"", chat_piece, b'"finish_reason":"length"'),
    ),
    Family(
        "completions",
        "/v1/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "hi", "max_tokens": PLENTY, "stream": True},
        *(b"", completion_piece, b'"finish_reason":"length"'),
    ),
    Family(
        "responses",
        "/v1/responses",
        {"model": "gpt-4o", "input": "hi", "max_output_tokens": PLENTY, "stream": True},
        *(b"", response_piece, b'"status":"incomplete"'),
    ),
    Family(
        "messages",
        "/v1/messages",
        {"model": "claude-opus-4-8", "messages": MESSAGES, "max_tokens": PLENTY, "stream": True},
        *(message_head(), message_piece, b'"stop_reason":"max_tokens"'),
    ),
    Family(
        "gemini", GEMINI, GEMINI_BODY, b"", lambda text: b"data: " + gemini_json(text) + b"\r\n\r\n", b'"MAX_TOKENS"'
    ),
    Family(
        "gemini, as an array",
        *(GEMINI, GEMINI_BODY, b"[", gemini_json, b'"MAX_TOKENS"'),
        content_type=b"application/json",
        between=b"\n,\r\n",
    ),
    Family(
        "ollama chat",
        "/api/chat",
        {"model": "llama3", "messages": MESSAGES, "options": {"num_predict": PLENTY}},
        b"",
        lambda text: lines(model="llama3", message={"role": "assistant", "content": text}, done=False),
        b'"done_reason":"length"',
        content_type=b"application/x-ndjson",
    ),
    Family(
        "ollama generate",
        "/api/generate",
        {"model": "llama3", "prompt": "hi", "options": {"num_predict": PLENTY}},
        b"",
        lambda text: lines(model="llama3", response=text, done=False),
        b'"done_reason":"length"',
        content_type=b"application/x-ndjson",
    ),
    Family(
        "cohere",
        "/v2/chat",
        {"model": "command-r", "messages": MESSAGES, "max_tokens": PLENTY, "stream": True},
        b"",
        lambda text: event({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}}),
        b'"MAX_TOKENS"',
    ),
    Family(
        "mistral",
        "/v1/fim/completions",
        {"model": "codestral", "prompt": "hi", "max_tokens": PLENTY, "stream": True},
        *(b"", chat_piece, b'"finish_reason":"length"'),
    ),
    Family(
        "converse",
        "/model/amazon.nova-pro-v1:0/converse-stream",
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": PLENTY}},
        *(b"", nova_piece, b'"stopReason":"max_tokens"'),
        content_type=CONTENT_TYPE,
    ),
)
IDS = [family.name for family in FAMILIES]
CHAT_FAMILY = FAMILIES[0]


class Endless:
    """An application that streams until it is told that its client is gone."""

    def __init__(self, family: Family, *, split: int | None = None, word: str = WORD, most: int = 20_000) -> None:
        self.family = family
        self.split = split
        self.word = word
        self.most = most
        self.error: BaseException | None = None
        self.heard: dict[str, Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start((b"content-type", self.family.content_type)))
        try:
            for data in self._chunks():
                await send(piece(data))
            raise AssertionError("never cut")
        except OSError as error:
            self.error = error
            self.heard = await receive()
            with contextlib.suppress(OSError):
                await send(piece(b"more"))
            raise

    def _chunks(self) -> Iterator[bytes]:
        whole = self.family.pieces(itertools.repeat(self.word, self.most))
        if self.split is None:
            yield from whole
            return
        held = b""
        for data in whole:
            held += data
            while len(held) >= self.split:
                yield held[: self.split]
                held = held[self.split :]


async def cut_stream(family: Family, run: Ledger, app: Endless) -> tuple[Answer, UsageRecord]:
    answer = await ask(run.around(app), family.body, path=family.path)
    assert answer.error is None
    assert answer.complete
    record = await run.record()
    assert record.outcome == "cut"
    return answer, record
