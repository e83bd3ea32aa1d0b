"""Gemini Live: `ws …BidiGenerateContent`, at AI Studio and at Vertex.

- The first frame is `{"setup": {"model": …}}`. What the client says after it (`clientContent`, `realtimeInput`,
  `toolResponse`) may begin a turn of the model; the conversation lives at the server.
- A turn ends with `serverContent.turnComplete`. Its usage stands in `usageMetadata`, mostly of that same frame, and is
  the turn's own, not the session's. Several of one turn: what grew since the last one replaces it; another prompt was
  another generation, and counts besides.
- There is no error event: the server closes with a code and a reason, which is what the SDK raises.

Source: google-genai SDK 3.4 (`types.py`: `LiveServerMessage`, `LiveClientMessage`; `live.py`), recorded sessions
(2026-11), and reports of sessions of several turns in the public trackers of google-genai and pydantic-ai.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import Api, CallRequest, InvalidRequestError, Refusal
from .counts import text, text_bytes
from .fields import (
    MAX_OUTPUT_LIMIT,
    checked_model,
    decode_object,
    encode_members,
    raw_value,
    read_raw_object,
    read_value,
)
from .gemini_common import either, gemini_usage, served_tier
from .socket_base import Frame, Session, SocketApi, Turn, like, read_frame

_INPUTS = (("clientContent", "client_content"), ("toolResponse", "tool_response"), ("realtimeInput", "realtime_input"))
_CONFIGS = ("generationConfig", "generation_config")
_LIMITS = ("maxOutputTokens", "max_output_tokens")
_LARGEST_LIMIT = 8192
"""The largest output of the Live models that are documented; a larger number is refused by those."""
_AUDIO_CHARS_PER_BYTE_OF_TEXT = 640
"""A token of spoken output is 40 ms: 1,920 bytes of PCM, 2,560 characters of base64; one of text is four bytes."""


class LiveSocket(SocketApi):
    """`envelope`: an API of the same makers, whose form of refusals is used."""

    name = "gemini.live"
    family = "gemini.live"
    provider = "google"
    suffixes = ("BidiGenerateContent", "BidiGenerateContentConstrained")

    def __init__(self, envelope: Api) -> None:
        self._envelope = envelope

    def session(self, query: bytes) -> Session:  # noqa: ARG002 - it says nothing about the model
        return LiveSession()

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return self._envelope.refusal(refusal)

    def error_frame(self, refusal: Refusal) -> None:  # noqa: ARG002 - the reason of the close tells it
        return None


class LiveSession(Session):
    def __init__(self) -> None:
        super().__init__()
        self._asked: str | None = None
        self._limit: int | None = None
        self._context = 0
        self._complete: Turn | None = None
        """A turn that is complete but for its usage."""
        self._prompt: Any = None
        """The prompt's size as the open turn's last usage told it."""
        self._earlier = TokenUsage()
        """What earlier generations of the open turn used."""
        self._last: Any = None
        """The last `usageMetadata` of a turn that is over: one that is repeated counts once."""

    def sent(self, frame: Frame) -> tuple[list[Turn], Frame]:
        fields = read_frame(frame)
        if fields is None:
            return [], frame
        if "setup" in fields:
            return self._setup(fields), frame
        found = [name for names in _INPUTS for name in names if name in fields]
        if not found:
            return [], frame
        if "realtime" not in found[0]:
            self._context += len(frame) // 4
        asks = _asks(fields, found[0])
        turn = next((turn for turn in self.turns if turn is not self._complete), None)
        if turn is not None:
            turn.sure = turn.sure or asks
            return [], frame
        return [self.add(Turn(self._request(), "speech", sure=asks))], frame

    def _setup(self, fields: dict[str, msgspec.Raw]) -> list[Turn]:
        setup = read_raw_object(fields, "setup")
        model = read_value(setup, "model")
        if type(model) is not str or not model:
            raise InvalidRequestError("setup.model must be a string")
        self.model = self._asked = checked_model(model)
        configs = [read_raw_object(setup, name) for name in _CONFIGS if name in setup]
        limits = [read_value(config, name) for config in configs for name in _LIMITS if name in config]
        if len(configs) > 1 or len(limits) > 1:
            raise InvalidRequestError("setup.generationConfig says the same thing twice")
        limit = limits[0] if limits else None
        if type(limit) is str and limit.isdecimal() and len(limit) < 12:  # protobuf's JSON takes numbers as strings
            limit = int(limit)
        if limit is not None and (type(limit) is not int or not 0 <= limit <= MAX_OUTPUT_LIMIT):
            raise InvalidRequestError("setup.generationConfig.maxOutputTokens must be a number of tokens")
        self._limit = limit or None
        self._context = len(bytes(fields["setup"])) // 4
        dropped = [self.end(turn, "dropped") for turn in list(self.turns) if not turn.begun]
        return [*dropped, self.add(Turn(self._request(), "speech", named=True))]

    def rewritten(self, turn: Turn, frame: Frame, *, model: str | None, output_limit: int | None) -> Frame:  # noqa: ARG002 - there is one place for it
        fields = read_frame(frame) or {}
        if "setup" not in fields:
            return frame
        setup = read_raw_object(fields, "setup")
        if model is not None:
            head, slash, _ = (self._asked or "").rpartition("/")
            setup["model"] = raw_value(head + slash + model.rpartition("/")[2])
        if output_limit is not None:
            name = _CONFIGS["generation_config" in setup]
            config = read_raw_object(setup, name)
            config[_LIMITS["_" in name]] = raw_value(min(output_limit, _LARGEST_LIMIT))
            setup[name] = msgspec.Raw(encode_members(config))
        return like(frame, encode_members(fields | {"setup": msgspec.Raw(encode_members(setup))}))

    def _request(self) -> CallRequest:
        return CallRequest(
            model=self.model,
            stream=True,
            output_limit=self._limit,
            input_estimate=self._context,
            media=True,
            remote_input=True,
            fields={},
        )

    def received(self, frame: Frame) -> list[Turn]:
        message = decode_object(frame.encode(errors="surrogatepass") if isinstance(frame, str) else frame)
        if message is None:
            return []
        changed: list[Turn] = []
        content = either(message, "serverContent")
        content = content if isinstance(content, dict) else {}
        speaks = any(either(content, name) is not None for name in ("modelTurn", "outputTranscription"))
        if speaks or either(message, "toolCall") is not None:
            self._count(self._speaking(changed), content)
        metadata = either(message, "usageMetadata")
        if isinstance(metadata, dict) and metadata:
            self._used(metadata, changed)
        if either(content, "turnComplete") is True:
            self._turn_complete(changed)
        return changed

    def _speaking(self, changed: list[Turn]) -> Turn:
        if self._complete is not None:  # its usage did not come any more
            self._finish(self._complete, changed)
        turn = self.turns[0] if self.turns else self.adopt(Turn(self._request(), "speech"), changed)
        turn.begun = True
        return turn

    @staticmethod
    def _count(turn: Turn, content: Mapping[str, Any]) -> None:
        report = turn.report
        spoken = either(content, "outputTranscription")
        size = text_bytes(spoken.get("text")) if isinstance(spoken, dict) else 0
        answer = either(content, "modelTurn")
        parts = answer.get("parts") if isinstance(answer, dict) else None
        for piece in parts if isinstance(parts, list) else ():
            if isinstance(piece, dict):
                size += text_bytes(piece.get("text"))
                data = either(piece, "inlineData")
                audio = data.get("data") if isinstance(data, dict) else None
                report.visible_bytes += len(audio) // _AUDIO_CHARS_PER_BYTE_OF_TEXT if type(audio) is str else 0
        report.visible_bytes += size
        report.visible_deltas += size > 0

    def _used(self, metadata: Mapping[str, Any], changed: list[Turn]) -> None:
        usage = gemini_usage(metadata)
        if usage is None or (not self.turns and metadata == self._last):
            return
        turn = self._complete or (self.turns[0] if self.turns else self.adopt(Turn(self._request(), "speech"), changed))
        turn.begun = True
        report = turn.report
        prompt = either(metadata, "promptTokenCount")
        if report.usage is not None and prompt != self._prompt:
            self._earlier = report.usage
        self._prompt = prompt
        self._last = metadata
        report.usage = _sum(self._earlier, usage)
        report.service_tier = served_tier(metadata) or report.service_tier
        self._context = usage.total_tokens
        if turn is self._complete:
            self._finish(turn, changed)

    def _turn_complete(self, changed: list[Turn]) -> None:
        if not self.turns:
            return
        turn = self.turns[-1]
        if self._complete is not None and turn is not self._complete:
            self._finish(self._complete, changed)
        if not turn.begun and not turn.sure:  # the end of a turn that was settled already
            return
        turn.begun = True
        self._complete = turn
        if turn.report.usage is not None:
            self._finish(turn, changed)

    def _finish(self, turn: Turn, changed: list[Turn]) -> None:
        self._complete, self._prompt, self._earlier = None, None, TokenUsage()
        turn.report.provider_request_id = text({"id": turn.id}, "id")
        changed.append(self.end(turn, "done"))


def absorb_message(report: Report, message: Mapping[str, Any]) -> bool:
    """Merge one message of the server, where somebody records it by itself: its usage is that of one turn. False for
    what is no such message.
    """
    content = either(message, "serverContent")
    if content is None and either(message, "toolCall") is None:
        return False
    metadata = either(message, "usageMetadata")
    report.usage = gemini_usage(metadata) or report.usage
    if isinstance(metadata, dict):
        report.service_tier = served_tier(metadata) or report.service_tier
    done = isinstance(content, dict) and either(content, "turnComplete") is True
    report.finished = report.finished or done
    return True


def _asks(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    """Whether what the client says is whole, so that the model will answer. What is heard live has no such end."""
    if name.startswith("tool"):
        return True
    value = decode_object(fields[name]) or {}
    return either(value, "turnComplete") is True if name.startswith("client") else "text" in value


def _sum(first: TokenUsage, second: TokenUsage) -> TokenUsage:
    if first == TokenUsage():
        return second
    fields = {name: getattr(first, name) + getattr(second, name) for name in TokenUsage.__struct_fields__}
    return TokenUsage(**fields | {"anomalous": first.anomalous or second.anomalous})
