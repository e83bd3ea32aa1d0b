"""Ollama's own API: chat, generate, and both of its embeddings.

Streams unless told not to: one JSON object a line, the last of which has `done: true` and the counts. The prompt's
count is missing where the prompt was cached, which is not 0: only what was generated is known then. A count of 0 is
left out, too.
Source: ollama SDK 0.6 (`_types.py`), ollama's `api/types.go` and `docs/api.md`, recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import NOTHING_USED, Report, TokenUsage
from .base import Api, CallRequest, InvalidRequestError, Kind, Refusal, Rewrite, StreamReader
from .body import BodyReader, read_body
from .bounds import BYTES_PER_TOKEN, LIKELY_IMAGE_TOKENS, OPENAI_IMAGE_TOKENS, TEMPLATE_TOKENS, TOOLS_TOKENS
from .counts import MAX_COUNT, count, member, text, text_bytes
from .fields import (
    DECODE_ERRORS,
    MAX_OUTPUT_LIMIT,
    encode_members,
    is_set,
    raw_value,
    read_bool,
    read_model,
    read_raw_object,
    read_value,
)
from .json_lines_reader import JsonLinesReader
from .openai_common import details, retry_headers
from .openai_stream import CALL_TOKENS

LIMIT = "num_predict"
_NO_TIME = "1970-01-01T00:00:00Z"
_UNLOADING = ("load", "unload")
"""Why a call ended that only moved the model into or out of memory."""


class OllamaApi(Api):
    """What they have in common. The model has to be in the body: other applications have paths like these, too."""

    provider = "ollama"
    kind: Kind = "text"
    stream_types = (b"application/x-ndjson",)
    answer_members = frozenset(("model", "done", "done_reason", "prompt_eval_count", "eval_count", "error"))
    streams = True
    nothing: Mapping[str, object] = {}
    """The member of a line that holds its text, with none in it."""
    required: tuple[str, ...]
    """The members that make a call of a request, besides the model."""

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return is_set(fields, "model") and any(name in fields for name in self.required)

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        images, payload_bytes = _images(fields)
        overhead = TEMPLATE_TOKENS + (TOOLS_TOKENS if is_set(fields, "tools") else 0)
        return CallRequest(
            model=read_model(fields),
            stream=self.streams and (not is_set(fields, "stream") or read_bool(fields, "stream")),
            output_limit=_output_limit(fields) if self.streams else 0,
            input_bound=body_bytes - payload_bytes + overhead + images * OPENAI_IMAGE_TOKENS,
            input_estimate=max((body_bytes - payload_bytes) // BYTES_PER_TOKEN + images * LIKELY_IMAGE_TOKENS, 1),
            media=images > 0,
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None:
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None and self.streams:
            options = read_raw_object(fields, "options") | {LIMIT: raw_value(change.output_limit)}
            fields["options"] = msgspec.Raw(encode_members(options))
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return OllamaReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.model = text(answer, "model") or report.model
        if answer.get("error"):
            report.failed = True
        if answer.get("done") is True:
            report.finished = True
        _absorb_counts(report, answer)
        report.frame_tokens += _frames(answer)
        if report.usage is None:  # else nothing needs counting, or it is counted already
            for piece in (answer.get("response"), answer.get("thinking"), *_message(answer)):
                size = text_bytes(piece)
                report.visible_bytes += size
                report.visible_deltas += size > 0

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode(_error(refusal)), retry_headers(refusal)

    def shows_output(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - thinking passes too
        return self.streams

    def cut(self, report: Report, refusal: Refusal) -> bytes:  # noqa: ARG002 - lines have no id
        line = {"model": report.model or "", "created_at": _NO_TIME, **self.nothing}
        return msgspec.json.encode({**line, "done": True, "done_reason": "length"}) + b"\n"

    def stream_error(self, refusal: Refusal) -> bytes:
        return msgspec.json.encode(_error(refusal)) + b"\n"


class OllamaChatApi(OllamaApi):
    """`POST …/api/chat`."""

    name = "ollama.chat"
    family = "ollama.chat"
    suffixes = ("/api/chat",)
    nothing: Mapping[str, object] = {"message": {"role": "assistant", "content": ""}}
    required = ("messages",)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "done" in answer and "message" in answer


class OllamaGenerateApi(OllamaApi):
    """`POST …/api/generate`. Without a prompt it only loads the model."""

    name = "ollama.generate"
    family = "ollama.generate"
    suffixes = ("/api/generate",)
    nothing: Mapping[str, object] = {"response": ""}
    required = ("prompt", "images")

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "done" in answer and isinstance(answer.get("response"), str)  # in Gemini's operations it is an object


class OllamaEmbedApi(OllamaApi):
    """`POST …/api/embed`, and the older `…/api/embeddings`, which counts nothing."""

    name = "ollama.embed"
    family = "ollama.embed"
    kind = "embedding"
    suffixes = ("/api/embed", "/api/embeddings")
    default_output_limit = 0
    streams = False
    required = ("input", "prompt")

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "prompt_eval_count" in answer and "done" not in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        super().absorb(report, answer)
        report.finished = report.finished or report.usage is not None


class OllamaReader(JsonLinesReader):
    """A stream of lines, nearly all of which hold one piece of text."""

    def _ordinary(self, line: bytes) -> bool:
        try:
            answer = _decode_line(line)
        except DECODE_ERRORS:
            return False
        if answer.done is not False or answer.error or answer.tool_calls or self.report.model is None:
            return False
        message = answer.message or _NO_MESSAGE
        if message.tool_calls:
            return False
        report = self.report
        for piece in (message.content, message.thinking, answer.response, answer.thinking):
            if piece:
                report.visible_bytes += len(piece) if piece.isascii() else len(piece.encode())
                report.visible_deltas += 1
        return True


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: Any = None


class _Line(msgspec.Struct, gc=False):
    done: bool | None = None
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: Any = None
    error: Any = None


_NO_MESSAGE = _Message()
_decode_line = msgspec.json.Decoder(_Line).decode


def _absorb_counts(report: Report, answer: Mapping[str, Any]) -> None:
    prompt, generated = _counted(answer, "prompt_eval_count"), _counted(answer, "eval_count")
    if prompt is not None:
        report.usage = TokenUsage(input=prompt, output=generated or 0)
        report.generated_tokens = None
    elif generated is not None:
        report.generated_tokens = generated
    elif answer.get("done") is True and answer.get("done_reason") in _UNLOADING:
        report.usage = NOTHING_USED


def _counted(answer: Mapping[str, Any], name: str) -> int | None:
    found = count(answer.get(name))
    return found if found is not None and 0 <= found <= MAX_COUNT else None


def _message(answer: Mapping[str, Any]) -> list[object]:
    """The pieces of text in a message; arguments of tools are objects here, and count as they would be written."""
    message = member(answer, "message")
    calls = message.get("tool_calls")
    pieces = [message.get("content"), message.get("thinking")]
    for call in calls if isinstance(calls, list) else ():
        arguments = member(call, "function").get("arguments") if isinstance(call, dict) else None
        if isinstance(arguments, dict):
            pieces.append(_as_written(arguments))
    return pieces


def _frames(answer: Mapping[str, Any]) -> int:
    calls = member(answer, "message").get("tool_calls")
    return CALL_TOKENS * len(calls) if isinstance(calls, list) else 0


def _as_written(arguments: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(arguments).decode()
    except (TypeError, ValueError, RecursionError):  # numbers and strings that only the standard library reads
        return repr(arguments)


def _output_limit(fields: Mapping[str, msgspec.Raw]) -> int | None:
    """`options.num_predict`: -1, and in fact everything below 1, means no limit."""
    if "options" not in fields:
        return None
    limit = read_value(read_raw_object(fields, "options"), LIMIT)
    if limit is None:
        return None
    if type(limit) is not int or not -MAX_OUTPUT_LIMIT <= limit <= MAX_OUTPUT_LIMIT:
        raise InvalidRequestError(f"options.{LIMIT} must be an integer up to {MAX_OUTPUT_LIMIT}")
    return limit if limit > 0 else None


def _images(fields: Mapping[str, msgspec.Raw]) -> tuple[int, int]:
    """How many images stand in a request, and the bytes of their base64, which is no text."""
    lists = [read_value(fields, "images")]
    raw = fields.get("messages")
    if raw is not None and b"images" in bytes(raw):
        messages = read_value(fields, "messages")
        if isinstance(messages, list):
            lists += [message.get("images") for message in messages if isinstance(message, dict)]
    images = [image for found in lists if isinstance(found, list) for image in found if type(image) is str]
    return len(images), sum(len(image) for image in images)


def _error(refusal: Refusal) -> dict[str, str]:
    return {"error": refusal.message, "code": refusal.code} | details(refusal)
