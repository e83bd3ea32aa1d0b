"""Answers and streams with `choices`: chat completions, completions, and every provider that speaks like them.

An ordinary chunk is decoded into the few members below (0.5 µs), which tells exactly whether anything but text is in
it. Everything else (the first chunks, usage, finish reasons, errors, odd framing) takes the general way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import Refusal
from .counts import member, text_bytes
from .dialects import ANSWER_DIALECTS
from .fields import DECODE_ERRORS
from .jsonscan import without_members
from .openai_common import absorb_cost, absorb_head, is_error, openai_usage
from .sse import Block, SseReader

_UNSET = msgspec.UNSET
_PIECES = ("content", "reasoning_content", "reasoning", "refusal")
_HEAD_EVENTS = 8
"""So many events at most are searched for the model's name; some providers never send one."""
_USAGE_NULLS = (b',"usage":null', b', "usage": null')


CALL_TOKENS = 32
"""What a call of a tool is billed at most beside its name and arguments."""


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None
    name: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    reasoning_details: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: dict[str, Any] | msgspec.UnsetType | None = _UNSET
    error: Any = None
    x_groq: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def absorb_choices(report: Report, answer: Mapping[str, Any]) -> None:
    """Merge a whole answer or a chunk. A later usage replaces an earlier one: all providers that send several send
    cumulative ones.
    """
    absorb_head(report, answer)
    if is_error(answer):
        report.failed = True
    usage = _absorb_usage(report, answer.get("usage"))
    for mark, absorb in ANSWER_DIALECTS:
        if mark in answer:
            elsewhere = absorb(report, answer)
            if usage is None:
                usage = _absorb_usage(report, elsewhere)
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if choice.get("finish_reason"):
            report.finished = True
            if usage is None and "usage" in choice:  # where Moonshot's streams have it that were not asked for any
                usage = _absorb_usage(report, choice["usage"])
        if usage is not None and "delta" not in choice:
            continue  # a whole answer that says what it used: nothing needs counting
        for piece in _choice_pieces(report, choice):
            size = text_bytes(piece)
            if size:
                report.visible_bytes += size
                report.visible_deltas += 1
                if report.text is not None and type(piece) is str:
                    report.text.append(piece)


def _absorb_usage(report: Report, reported: object) -> TokenUsage | None:
    usage = openai_usage(reported)
    if usage is not None:
        report.usage = usage
        absorb_cost(report, reported)
    return usage


def _choice_pieces(report: Report, choice: Mapping[str, Any]) -> list[object]:
    """What a choice adds; what the calls in it are billed besides goes into the report."""
    # Perplexity repeats the whole message beside each delta.
    piece = member(choice, "delta", "message")
    calls = piece.get("tool_calls")
    functions = (
        [member(call, "function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    functions.append(member(piece, "function_call"))
    for function in functions:
        name = function.get("name")
        if name:
            report.frame_tokens += CALL_TOKENS + text_bytes(name)
    generated = [piece.get(name) for name in _PIECES] + [choice.get("text")]
    if not piece.get("reasoning"):  # OpenRouter's form of the same, which some send alone
        generated += _details(piece.get("reasoning_details"))
    return generated + [_arguments(function.get("arguments")) for function in functions]


def _details(entries: object) -> list[object]:
    return [
        entry.get(name)
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
        for name in ("text", "summary", "data")
    ]


def _arguments(value: object) -> object:
    """Some servers send the arguments of a call as an object."""
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else value


class ChoicesReader(SseReader):
    """A stream of chunks with `choices`. Nothing is hidden."""

    def __init__(self, absorb: Callable[[Report, Mapping[str, Any]], None] = absorb_choices) -> None:
        super().__init__(absorb)
        self._heads_left = _HEAD_EVENTS
        self._reason_seen = False

    def feed(self, chunk: bytes) -> bytes:
        if self._framer.idle:
            if self._like_the_last(chunk):
                return chunk
            if chunk[-2:] == b"\n\n" and chunk[:6] == b"data: ":
                data = chunk[6:-2]
                if b"\n" not in data and b"\r" not in data and self._ordinary(data):
                    self._learn(chunk, data)
                    return chunk
        return super().feed(chunk)

    def _piece_of(self, data: bytes) -> str | None:
        choices = _decode_chunk(data).choices
        delta = choices[0].delta if len(choices) == 1 else None
        if delta is None or not delta.content or _says_more(delta):
            return None
        return delta.content

    def finish(self) -> bytes:
        out = super().finish()
        self.report.finished = self.report.finished or self._reason_seen
        return out

    def _ordinary(self, data: bytes) -> bool:
        return self._text_only(data) is not None

    def _text_only(self, data: bytes) -> _Chunk | None:
        if self._heads_left:
            return None
        try:
            event = _decode_chunk(data)
        except DECODE_ERRORS:
            return None
        usage = event.usage
        if not (usage is None or usage is _UNSET) or event.error or event.x_groq:
            return None
        report = self.report
        text = report.text
        choices = event.choices
        if len(choices) == 1:  # nearly every chunk: one piece of content
            choice = choices[0]
            delta = choice.delta
            if delta is not None and delta.content and choice.finish_reason is None and not _says_more(delta):
                content = delta.content
                report.visible_bytes += len(content) if content.isascii() else len(content.encode())
                report.visible_deltas += 1
                if text is not None:
                    text.append(content)
                return event
        size = pieces = 0
        for choice in choices:
            delta = choice.delta
            if choice.finish_reason or (delta is not None and delta.reasoning_details and not delta.reasoning):
                return None
        for choice in choices:
            delta = choice.delta
            if delta is None:
                generated: tuple[str | None, ...] = (choice.text,)
            else:
                generated = (delta.content, delta.reasoning_content, delta.reasoning, delta.refusal)
                if delta.tool_calls or delta.function_call:
                    generated += _called(report, delta)
            for piece in generated:
                if piece:
                    size += len(piece) if piece.isascii() else len(piece.encode())
                    pieces += 1
                    if text is not None:
                        text.append(piece)
        report.visible_bytes += size
        report.visible_deltas += pieces
        return event

    def _event(self, data: bytes) -> Mapping[str, Any] | None:
        event = super()._event(data)
        if event is not None:
            # One choice's finish reason ends the stream only if nothing follows: others may still be running.
            self._reason_seen = self._reason_seen or self.report.finished
            self.report.finished = False
            if self._heads_left:
                self._heads_left = 0 if self.report.model is not None else self._heads_left - 1
        return event


def _says_more(delta: _Delta) -> bool:
    """Whether there is anything besides content."""
    return not (
        delta.reasoning_content is None
        and delta.reasoning is None
        and delta.refusal is None
        and delta.tool_calls is None
        and delta.function_call is None
        and not delta.reasoning_details
    )


def _called(report: Report, delta: _Delta) -> tuple[str | None, ...]:
    """The arguments of the calls in a delta; what they are billed besides goes into the report."""
    functions = [call.function for call in delta.tool_calls or () if call.function]
    if delta.function_call:
        functions.append(delta.function_call)
    for function in functions:
        if function.name:
            report.frame_tokens += CALL_TOKENS + len(function.name.encode())
    return tuple(function.arguments for function in functions)


def cut_choices(report: Report, refusal: Refusal, kind: str) -> bytes:
    """A last chunk whose finish reason is `length`, for each choice, and the end. `kind` is its `object`."""
    piece: dict[str, Any] = {"text": ""} if kind == "text_completion" else {"delta": {}}
    chunk = {
        "id": report.provider_request_id or refusal.call_id,
        "object": kind,
        "created": 0,
        "model": report.model or "",
        "choices": [{"index": index, **piece, "finish_reason": "length"} for index in range(report.choices)],
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\ndata: [DONE]\n\n"


class HidingReader(ChoicesReader):
    """Takes out again what a client did not ask for: the chunk that has usage and no choices, and `"usage": null` in
    every other chunk. Events are held back until they are complete, for their last byte may be the reason to drop them.
    """

    _max_event_bytes = 1_048_576  # the client waits for what is held back

    def feed(self, chunk: bytes) -> bytes:
        if chunk[-2:] == b"\n\n" and chunk[:6] == b"data: " and self._framer.idle:
            data = chunk[6:-2]
            event = None if b"\n" in data or b"\r" in data else self._text_only(data)
            if event is not None:
                if event.usage is _UNSET:
                    return chunk
                return _without_null(chunk) or chunk[:6] + without_members(data, "usage") + b"\n\n"
        out = b"".join([self._seen(block) for block in self._framer.push(chunk)])
        return chunk if out == chunk else out

    def finish(self) -> bytes:
        out = b"".join([self._seen(block) for block in self._framer.finish()])
        super().finish()
        return out

    @property
    def unfinished(self) -> int:
        return 0  # it is held back here

    def _seen(self, block: Block) -> bytes:
        """What the client gets of a block."""
        if block.data is None:
            return block.raw
        chunk = self._text_only(block.data)
        if chunk is not None:
            if chunk.usage is _UNSET:
                return block.raw
            return _without_null(block.raw) or _rewritten(block, without_members(block.data, "usage"))
        event = self._event(block.data)
        if event is None or "usage" not in event:
            return block.raw
        if event["usage"] is not None:
            # Usage beside choices is what the provider sends to everybody; asking adds a chunk of its own.
            return b"" if event.get("choices") == [] else block.raw
        return _rewritten(block, without_members(block.data, "usage"))


def _without_null(raw: bytes) -> bytes | None:
    """One event without its `"usage":null`, if that is certain to stand at the top level: where only the object's own
    brace opens before it or closes after it (a brace in a string or a comment can only make this look false).
    """
    for spelling in _USAGE_NULLS:
        at = raw.rfind(spelling)
        if at > 0:
            end = at + len(spelling)
            certain = raw.count(b"}", end) == 1 or raw.count(b"{", 0, at) == 1
            return raw[:at] + raw[end:] if certain else None
    return None


def _rewritten(block: Block, data: bytes) -> bytes:
    """The event with other data; its other lines and its line ends stay. Data that came in several lines goes out in
    as many as it still has.
    """
    if block.data is not None and block.raw.count(block.data) == 1:
        return block.raw.replace(block.data, data)
    lines = block.raw.splitlines(keepends=True)
    first = next((line for line in lines if line.startswith(b"data:")), b"")
    end = first[len(first.rstrip(b"\r\n")) :]
    kept = [line for line in lines if not line.startswith(b"data:")]
    return b"".join([*[b"data: " + part + end for part in data.split(b"\n")], *kept])
