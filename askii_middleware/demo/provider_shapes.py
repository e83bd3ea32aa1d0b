"""The bodies a simulated provider answers with. Pure: a request in, an answer out, the same one every time.

Shapes follow the public API references of OpenAI (chat completions, completions, responses, embeddings) and Anthropic
(messages) as of 2026, and are checked by parsing them with both official SDKs. The words are drawn from the request's
digest, one token each; the counts obey the rules of the real APIs: cached and reasoning tokens are *parts* of
OpenAI's totals, cache reads and writes stand *outside* Anthropic's `input_tokens`, reasoning counts in the limit.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

CREATED_S = 1_767_225_600
"""Every simulated answer was made at this moment: 2026-01-01T00:00:00Z."""
NO_USAGE = "no-usage"
FINGERPRINT = "simulated"
MODELS = ("gpt-4o", "gpt-4o-mini", "o4-mini", "text-embedding-3-small", "claude-sonnet-5", "claude-haiku-4-5")

_OPENING = ("Simulated", " answer", ":", " nobody", " thought", " about", " this", ".")
_WORDS = (" amber", " boat", " cedar", " delta", " ember", " fjord", " grain", " harbour",
          " island", " juniper", " kettle", " lantern", " meadow", " north", " orchard", " pebble")  # fmt: skip
_UNREAD = frozenset({"url", "data", "image_url", "file_data", "file_id"})
"""Keys whose text is a reference or base64, which a tokenizer never sees as text."""

Fields = dict[str, Any]


class BadRequestError(ValueError):
    """The simulated provider answers 400 with this message, naming `param`."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Answer(msgspec.Struct, kw_only=True):
    """What was generated: visible words, one token each, after hidden reasoning."""

    id: str
    model: str
    words: list[str]
    reasoning_tokens: int
    input_tokens: int
    """The whole prompt, cached part included."""
    cached_tokens: int
    cut: bool
    """The output limit ended it."""
    choices: int

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def output_tokens(self) -> int:
        """Billed output over all choices."""
        return (len(self.words) + self.reasoning_tokens) * self.choices


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(map(_text_bytes, value))
    if isinstance(value, dict):
        return sum(_text_bytes(item) for key, item in value.items() if key not in _UNREAD)
    return 1 if isinstance(value, int) else 0


def _count(value: Any) -> int:
    """About four bytes a token, and three tokens of framing a message."""
    messages = len(value) if isinstance(value, list) else 1
    return -(-_text_bytes(value) // 4) + 3 * messages


def _limit(fields: Fields, *names: str) -> int | None:
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadRequestError(f"{name} must be an integer of at least 1", name)
        return value
    return None


def generate(
    fields: Fields, digest: bytes, *, prompt: tuple[str, ...], limits: tuple[str, ...], choices: int = 1
) -> Answer:
    """The answer to a request whose prompt stands in the fields `prompt`, bounded by the first of `limits` set."""
    model = fields["model"]
    limit = _limit(fields, *limits)
    if limit is None:
        limit = 1 << 20
    reasons = model.startswith(("o1", "o3", "o4", "gpt-5", "gpt-6"))
    reasoning = min(64 * (1 + digest[0] % 3), limit) if reasons else 0
    wanted = len(_OPENING) + 4 + digest[1] % 40
    visible = min(wanted, limit - reasoning)
    words = [*_OPENING, *(_WORDS[digest[2 + i % 14] + i & 15] for i in range(wanted - len(_OPENING)))]
    input_tokens = 3 + sum(_count(fields[name]) for name in prompt if fields.get(name) is not None)
    return Answer(
        id=digest.hex()[:24],
        model=model,
        words=words[:visible],
        reasoning_tokens=reasoning,
        input_tokens=input_tokens,
        # OpenAI caches prompts from 1,024 tokens on, in steps of 128; here every other such prompt was seen before.
        cached_tokens=input_tokens // 128 * 128 if input_tokens >= 1024 and digest[3] & 1 else 0,
        cut=visible < wanted,
        choices=choices,
    )


def choices(fields: Fields) -> int:
    """How many answers `n` asks for: at most 128, as the real API allows."""
    count = _limit(fields, "n") or 1
    if count > 128:
        raise BadRequestError("n must be at most 128", "n")
    return count


def _sse(payload: Any, event: str | None = None) -> bytes:
    line = b"data: " + msgspec.json.encode(payload) + b"\n\n"
    return line if event is None else b"event: " + event.encode() + b"\n" + line


def _openai_usage(answer: Answer) -> Fields:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": answer.reasoning_tokens * answer.choices,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _completion(answer: Answer, *, chat: bool, streamed: bool, choices: list[Fields]) -> Fields:
    kind = ("chat.completion" if chat else "text_completion") + (".chunk" if chat and streamed else "")
    prefix = "chatcmpl" if chat else "cmpl"
    return {
        "id": f"{prefix}-sim-{answer.id}",
        "object": kind,
        "created": CREATED_S,
        "model": answer.model,
        "choices": choices,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def completion(answer: Answer, *, chat: bool) -> Fields:
    """A whole answer of `/chat/completions` (`chat`) or `/completions`."""
    finish = "length" if answer.cut else "stop"
    content: Fields = {"text": answer.text}
    if chat:
        content = {"message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}}
    choices = [{"index": i, **content, "logprobs": None, "finish_reason": finish} for i in range(answer.choices)]
    body = _completion(answer, chat=chat, streamed=False, choices=choices)
    if answer.model != NO_USAGE:
        body["usage"] = _openai_usage(answer)
    return body


def completion_stream(answer: Answer, *, chat: bool, include_usage: bool) -> Iterator[bytes]:
    """The same as server-sent events. With `include_usage` each chunk says `usage: null` and a last one, without
    choices, has the counts; otherwise no chunk has the key.
    """
    include_usage = include_usage and answer.model != NO_USAGE

    def chunk(index: int, delta: Fields, finish: str | None = None) -> bytes:
        choice = {"index": index, **delta, "logprobs": None, "finish_reason": finish}
        body = _completion(answer, chat=chat, streamed=True, choices=[choice])
        if include_usage:
            body["usage"] = None
        return _sse(body)

    for index in range(answer.choices):
        if chat:
            yield chunk(index, {"delta": {"role": "assistant", "content": "", "refusal": None}})
        for word in answer.words:
            yield chunk(index, {"delta": {"content": word}} if chat else {"text": word})
        yield chunk(index, {"delta": {}} if chat else {"text": ""}, "length" if answer.cut else "stop")
    if include_usage:
        yield _sse({**_completion(answer, chat=chat, streamed=True, choices=[]), "usage": _openai_usage(answer)})
    yield b"data: [DONE]\n\n"


def response(answer: Answer) -> Fields:
    """A whole answer of `/responses`."""
    status = "incomplete" if answer.cut else "completed"
    item = {
        "id": f"msg_sim_{answer.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}],
    }
    usage = {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens * answer.choices},
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    return {
        "id": f"resp_sim_{answer.id}",
        "object": "response",
        "created_at": CREATED_S,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if answer.cut else None,
        "model": answer.model,
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "service_tier": "default",
        "metadata": {"simulated": "true"},
        "usage": None if answer.model == NO_USAGE else usage,
    }


def response_stream(answer: Answer) -> Iterator[bytes]:
    """The same as numbered events; the last one carries the whole response with its usage."""
    whole = response(answer)
    item = whole["output"][0]
    begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    part = {**item["content"][0], "text": ""}
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    events: list[Fields] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in answer.words),
        {"type": "response.output_text.done", **at, "text": answer.text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": item["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.incomplete" if answer.cut else "response.completed", "response": whole},
    ]
    for number, event in enumerate(events):
        yield _sse({**event, "sequence_number": number}, event["type"])


def embeddings(fields: Fields, key: bytes) -> Fields:
    """Unit vectors, the same for the same text, model and `key`; in base64 they are little-endian float32."""
    given = fields["input"]
    inputs: list[Any] = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    size = _limit(fields, "dimensions") or 1536
    if size > 4096:
        raise BadRequestError("dimensions must be at most 4096", "dimensions")
    packed = fields.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(inputs):
        seeded = blake2b(msgspec.json.encode([fields["model"], text]), key=key).digest()
        signs = [1.0 if seeded[i >> 3 & 63] >> (i & 7) & 1 else -1.0 for i in range(size)]
        raw = struct.pack(f"<{size}f", *(sign / size**0.5 for sign in signs))
        vector = base64.b64encode(raw).decode() if packed else list(struct.unpack(f"<{size}f", raw))
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(len(text) if isinstance(text, list) else max(1, -(-_text_bytes(text) // 4)) for text in inputs)
    body: Fields = {"object": "list", "data": data, "model": fields["model"]}
    if fields["model"] != NO_USAGE:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return body


def _anthropic_usage(fields: Fields, answer: Answer) -> Fields:
    # Nothing is cached unless the request marks a breakpoint; then all but the last 16 tokens are written or read.
    marked = max(0, answer.input_tokens - 16) if b'"cache_control"' in msgspec.json.encode(fields) else 0
    read = marked if answer.id[0] in "02468ace" else 0
    written = marked - read
    return {
        "input_tokens": answer.input_tokens - marked,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": answer.output_tokens,
        "service_tier": "standard",
    }


def message(fields: Fields, answer: Answer) -> Fields:
    """A whole answer of Anthropic's `/messages`."""
    body: Fields = {
        "id": f"msg_sim_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": "max_tokens" if answer.cut else "end_turn",
        "stop_sequence": None,
    }
    if answer.model != NO_USAGE:
        body["usage"] = _anthropic_usage(fields, answer)
    return body


def message_stream(fields: Fields, answer: Answer) -> Iterator[bytes]:
    """The same as named events: the prompt's counts come first, the output's (cumulative) last."""
    whole = message(fields, answer)
    begun = {**whole, "content": [], "stop_reason": None}
    end: Fields = {
        "type": "message_delta",
        "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
    }
    if "usage" in whole:
        begun["usage"] = {**whole["usage"], "output_tokens": 1}
        end["usage"] = {"output_tokens": answer.output_tokens}
    events: list[Fields] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in answer.words
        ),
        {"type": "content_block_stop", "index": 0},
        end,
        {"type": "message_stop"},
    ]
    for event in events:
        yield _sse(event, event["type"])


def models(*, anthropic: bool) -> Fields:
    """The list of `/models`, in the shape of the API whose headers the client sends."""
    if anthropic:
        lifecycle = {"status": "active"}
        data = [
            {
                "type": "model",
                "id": name,
                "display_name": f"{name} (simulated)",
                "created_at": "2026-01-01T00:00:00Z",
                "lifecycle": lifecycle,
            }
            for name in MODELS
        ]
        return {"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": CREATED_S, "owned_by": "simulated"} for name in MODELS],
    }
