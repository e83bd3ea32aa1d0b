"""OpenAI's realtime API, and those that speak it (Azure, xAI): `ws …/realtime?model=`.

- The model stands in the query (`deployment` with Azure), else the server's `session.created` names it.
- `response.create` begins a response, and so does the end of speech in what is heard, where turn detection is on (as it
  is by default): one is then held for as soon as audio is sent. The prompt, all of the conversation, is at the server.
- `response.done` has the usage, xAI beside its `response`. The transcription of what was heard is another model's, and
  billed separately: in `conversation.item.input_audio_transcription.completed`, by tokens or by seconds.
- A transcription session (`?intent=transcription`, or a session of that type) has no responses at all.

Source: openai SDK 3.54 (`types/realtime/`, `types/beta/realtime/`), OpenAI's reference of client and server events,
recorded sessions of OpenAI and xAI (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote_plus, unquote_plus

import msgspec

from ..usage import TokenUsage
from .base import Api, CallRequest, InvalidRequestError, Refusal
from .counts import member, text, text_bytes
from .fields import (
    MAX_OUTPUT_LIMIT,
    checked_model,
    decode_object,
    encode_members,
    raw_value,
    read_raw_object,
    read_text,
)
from .realtime_usage import realtime_usage, transcription_usage
from .socket_base import MISSING, Frame, Session, SocketApi, Turn, TurnEnd, like, member_at, read_frame

_MODEL_NAMES = ("model", "deployment")
_LIMITS = ("max_output_tokens", "max_response_output_tokens")
_HEARD = frozenset(("input_audio_buffer.append", "input_audio_buffer.commit"))
_CONFIGURES = frozenset(("session.update", "transcription_session.update"))
_CONFIGURED = frozenset(
    f"{session}.{verb}" for session in ("session", "transcription_session") for verb in ("created", "updated")
)
_AUDIO = frozenset(("response.output_audio.delta", "response.audio.delta"))
_COMPLETED = "conversation.item.input_audio_transcription.completed"
_FAILED = "conversation.item.input_audio_transcription.failed"
_COMMITTED = "input_audio_buffer.committed"
_READ = _CONFIGURED | {"response.created", "response.done", _COMPLETED, _FAILED, _COMMITTED, "error"}
"""The events that say something about a turn, or about what begins one."""
_TRANSCRIBER = "whisper-1"
"""What transcribes where the session asks for it and names no model."""
_LARGEST_LIMIT = 4096
"""The largest number that may stand as a limit; `inf` is the model's own."""
_LONGEST = TokenUsage(second=3600)
"""Where seconds of audio are billed: a session lives an hour at the most, so nothing in it is longer."""
_AUDIO_CHARS_PER_BYTE_OF_TEXT = 800
"""A token of spoken output is 50 ms: 2,400 bytes of PCM, 3,200 characters of base64; one of text is four bytes."""


class _Event(msgspec.Struct, gc=False):
    """What is needed of the events that come by the hundred."""

    type: str = ""
    response_id: str | None = None
    delta: str | None = None


_read_event = msgspec.json.Decoder(_Event).decode


class RealtimeSocket(SocketApi):
    """`envelope`: an API of the same makers, whose form of refusals is used."""

    name = "openai.realtime"
    family = "openai.realtime"
    provider = "openai"
    suffixes = ("/realtime",)

    def __init__(self, envelope: Api) -> None:
        self._envelope = envelope

    def session(self, query: bytes) -> Session:
        return RealtimeSession(query)

    def renamed_query(self, query: bytes, model: str) -> bytes:
        pairs = [pair.partition(b"=") for pair in query.split(b"&")]
        name = quote_plus(model, safe="/").encode()
        return b"&".join(key + b"=" + name if _is_name(key) else key + sign + value for key, sign, value in pairs)

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return self._envelope.refusal(refusal)

    def error_frame(self, refusal: Refusal) -> str:
        error = read_raw_object({"body": msgspec.Raw(self._envelope.refusal(refusal)[0])}, "body")["error"]
        details = read_raw_object({"error": error}, "error") | {"event_id": msgspec.Raw(b"null")}
        event = {"type": raw_value("error"), "event_id": raw_value(f"event_{refusal.call_id}")}
        return encode_members(event | {"error": msgspec.Raw(encode_members(details))}).decode()


def _is_name(key: bytes) -> bool:
    return unquote_plus(key.decode("latin-1")) in _MODEL_NAMES


class RealtimeSession(Session):
    def __init__(self, query: bytes) -> None:
        super().__init__()
        values = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        names = {value for key, value in values if key in _MODEL_NAMES and value}
        if len(names) > 1:
            raise InvalidRequestError("model: the query names several")
        self.model = checked_model(names.pop()) if names else None
        self._asked = self.model
        """The model as the client knows it."""
        self._served: str | None = None
        self._limit: int | None = None
        self._limit_name = _LIMITS[0]
        """As the server spells it."""
        self._answers_speech = True
        self._transcriber: str | None = None
        self._responds = ("intent", "transcription") not in values
        self._context = 0
        """Tokens of the conversation as far as they are known: what the next prompt is likely to have."""

    def opening(self) -> Turn | None:
        if self.model is None or not self._responds:
            return None
        return self.add(Turn(self._request(self._limit), "speech", named=True))

    def admitted(self, turn: Turn, model: str) -> None:
        if turn.kind == "speech":
            super().admitted(turn, model)

    # The client's frames ---------------------------------------------------------------------------------------------

    def sent(self, frame: Frame) -> tuple[list[Turn], Frame]:
        fields = read_frame(frame)
        kind = None if fields is None else read_text(fields, "type")
        if kind in _HEARD or (fields is None and isinstance(frame, bytes)):
            return self._heard(), frame
        if fields is None:
            return [], frame
        self._context += len(frame) // 4
        if kind == "response.create":
            return self._create(fields), frame
        if kind in _CONFIGURES:
            return self._update(fields, frame)
        return [], frame

    def _heard(self) -> list[Turn]:
        """Audio came: a response may follow, and a transcription will. Only one response speaks at a time."""
        new = []
        if self._responds and self._answers_speech and not any(turn.kind == "speech" for turn in self.turns):
            new.append(self.add(Turn(self._request(self._limit), "speech")))
        if self._transcriber is not None and self.waiting("transcription") is None:
            new.append(self.add(self._transcription()))
        return new

    def _create(self, fields: dict[str, msgspec.Raw]) -> list[Turn]:
        response = _object(fields, "response")
        own = _limit(response, strict=True)
        limit = self._limit if own is MISSING else own
        changed: list[Turn] = []
        event_id = read_text(fields, "event_id")
        held = self.waiting("speech")
        if held is not None and not held.sure:
            if held.request.output_limit == limit:
                held.sure, held.event_id = True, event_id
                return [held]
            changed.append(self.end(held, "dropped"))  # what was held for is not what is asked for
        turn = self.add(Turn(self._request(limit), "speech", sure=True))
        turn.event_id = event_id
        return [*changed, turn]

    def _update(self, fields: dict[str, msgspec.Raw], frame: Frame) -> tuple[list[Turn], Frame]:
        session = _object(fields, "session")
        limit = self._limit
        self._configure(session, strict=True)
        named = text(session, "model")
        changed = []
        if self._responds and (self._limit != limit or (named is not None and named != self._asked)):
            changed = [self.end(turn, "dropped") for turn in list(self.turns) if not (turn.begun or turn.sure)]
            if named is not None and named != self._asked:
                self.model = self._asked = checked_model(named)
            if self.model is not None:
                turn = Turn(self._request(self._limit), "speech", named=named is not None)
                changed.append(self.add(turn))
        elif named is not None and self.model not in (named, None):
            frame = _renamed(frame, self.model)
        return changed, frame

    def rewritten(self, turn: Turn, frame: Frame, *, model: str | None, output_limit: int | None) -> Frame:  # noqa: ARG002 - there is one place for it
        fields = read_frame(frame) or {}
        kind = read_text(fields, "type")
        if kind == "response.create" and output_limit is not None:
            response = read_raw_object(fields, "response")
            response[self._limit_name] = raw_value(min(output_limit, _LARGEST_LIMIT))
            return like(frame, encode_members(fields | {"response": msgspec.Raw(encode_members(response))}))
        return _renamed(frame, model) if kind in _CONFIGURES and model is not None else frame

    def _request(self, limit: int | None) -> CallRequest:
        return CallRequest(
            model=self.model,
            stream=True,
            output_limit=limit,
            input_estimate=self._context,
            media=True,
            remote_input=True,
            units=_LONGEST,
            fields={},
        )

    def _transcription(self) -> Turn:
        request = CallRequest(
            model=self._transcriber,
            stream=True,
            media=True,
            remote_input=True,
            units=_LONGEST,
            fields={},
        )
        return Turn(request, "transcription")

    # The server's frames ---------------------------------------------------------------------------------------------

    def received(self, frame: Frame) -> list[Turn]:
        try:
            event = _read_event(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            event = _Event()  # members of other types, which the full reading takes as they are
        else:
            if event.delta is not None and event.type.startswith("response."):
                self._count(event)
                return []
        if event.type and event.type not in _READ:
            return []
        answer = decode_object(frame.encode(errors="surrogatepass") if isinstance(frame, str) else frame)
        return [] if answer is None else self._absorb(answer)

    def _count(self, event: _Event) -> None:
        turn = self._begun(event.response_id)
        if turn is None or not event.delta:
            return
        size = len(event.delta) // _AUDIO_CHARS_PER_BYTE_OF_TEXT if event.type in _AUDIO else text_bytes(event.delta)
        turn.report.visible_bytes += size
        turn.report.visible_deltas += event.type not in _AUDIO

    def _absorb(self, event: Mapping[str, Any]) -> list[Turn]:
        kind = text(event, "type")
        if kind in _CONFIGURED:
            session = member(event, "session")
            self._configure(session, strict=False)
            self._served = text(session, "model") or self._served
            if self.model is None and self._responds:
                self.model = self._asked = self._served
        elif kind == "response.created":
            return self._created(member(event, "response"))
        elif kind == "response.done":
            return self._done(event, member(event, "response"))
        elif kind == _COMMITTED:
            turn = self.waiting("transcription")
            if turn is not None:
                turn.begun = True
        elif kind in (_COMPLETED, _FAILED):
            return self._transcribed(event)
        elif kind == "error":
            return self._failed(member(event, "error"))
        return []

    def _begun(self, response_id: str | None) -> Turn | None:
        begun = [turn for turn in self.turns if turn.begun and turn.kind == "speech"]
        return next((turn for turn in begun if turn.id == response_id), begun[0] if len(begun) == 1 else None)

    def _created(self, response: Mapping[str, Any]) -> list[Turn]:
        changed: list[Turn] = []
        turn = self.waiting("speech") or self.adopt(Turn(self._request(self._limit), "speech"), changed)
        turn.begun = True
        turn.id = text(response, "id")
        return changed

    def _done(self, event: Mapping[str, Any], response: Mapping[str, Any]) -> list[Turn]:
        changed: list[Turn] = []
        found = text(response, "id") or text(event, "response_id")
        turn = self._begun(found) or self.waiting("speech")
        if turn is None:
            turn = Turn(self._request(self._limit), "speech")
        turn.begun = True
        report = turn.report
        report.provider_request_id = found
        report.model = self._served
        report.usage = realtime_usage(member(response, "usage")) or realtime_usage(member(event, "usage"))
        status = response.get("status")
        report.failed = status == "failed"
        if report.usage is not None:
            self._context = report.usage.total_tokens
        ended: TurnEnd = "failed" if report.failed else "done"
        if status == "cancelled" and report.usage is None:
            ended = "stopped"
        changed.append(self.end(turn, ended))
        return changed

    def _transcribed(self, event: Mapping[str, Any]) -> list[Turn]:
        pending = [turn for turn in self.turns if turn.kind == "transcription"]
        turn = next((turn for turn in pending if turn.begun), pending[0] if pending else self._transcription())
        if turn.request.model is None:
            turn.request.model = _TRANSCRIBER
        turn.begun = True
        report = turn.report
        report.provider_request_id = text(event, "item_id")
        report.usage = transcription_usage(member(event, "usage"))
        size = text_bytes(event.get("transcript"))
        report.visible_bytes, report.visible_deltas = size, int(size > 0)
        nothing = event.get("type") == _FAILED or (report.usage is None and not size)
        return [self.end(turn, "failed" if nothing else "done")]

    def _failed(self, error: Mapping[str, Any]) -> list[Turn]:
        """An error, mostly about one of the client's frames. If that asked for a response there will be none; should
        one begin all the same, it is held for then.
        """
        about = text(error, "event_id")
        asked = [turn for turn in self.turns if turn.sure and not turn.begun and turn.kind == "speech"]
        refused = [turn for turn in asked if turn.event_id == about] if about is not None else asked
        return [self.end(refused[0], "failed")] if refused else []

    # What a session is set to ----------------------------------------------------------------------------------------

    def _configure(self, session: Mapping[str, Any], *, strict: bool) -> None:
        """Take over the settings that are there. `strict`: raise InvalidRequestError for those nobody could read."""
        limit = _limit(session, strict=strict)
        if limit is not MISSING:
            self._limit = limit
        if not strict:
            self._limit_name = next((name for name in _LIMITS if name in session), self._limit_name)
        detection = member_at(session, "audio", "input", "turn_detection")
        if detection is MISSING:
            detection = member_at(session, "turn_detection")
        if detection is not MISSING:
            self._answers_speech = _answers(detection)
        transcription = member_at(session, "audio", "input", "transcription")
        if transcription is MISSING:
            transcription = member_at(session, "input_audio_transcription")
        if isinstance(transcription, dict):
            self._transcriber = text(transcription, "model") or _TRANSCRIBER
        elif transcription is not MISSING:
            self._transcriber = None
        if session.get("type") == "transcription" or session.get("object") == "realtime.transcription_session":
            self._responds = False


def _answers(detection: object) -> bool:
    """Whether the end of speech begins a response. xAI writes `{"type": null}` for none."""
    return (
        isinstance(detection, dict)
        and detection.get("type", "") is not None
        and detection.get("create_response") is not False
    )


def _object(fields: Mapping[str, msgspec.Raw], name: str) -> Mapping[str, Any]:
    raw = fields.get(name)
    found = None if raw is None or bytes(raw) == b"null" else decode_object(raw)
    if found is None and raw is not None and bytes(raw) != b"null":
        raise InvalidRequestError(f"{name} must be an object")
    return found or {}


def _limit(settings: Mapping[str, Any], *, strict: bool) -> Any:
    """Tokens a response may have; None for as many as the model can, `MISSING` where nothing is said."""
    value = next((settings[name] for name in _LIMITS if name in settings), MISSING)
    if value is MISSING or value is None or value == "inf":
        return None if value == "inf" or value is None else MISSING
    if type(value) is int and 1 <= value <= MAX_OUTPUT_LIMIT:
        return value
    if strict:
        raise InvalidRequestError(f"{_LIMITS[0]} must be a number of tokens or 'inf'")
    return MISSING


def _renamed(frame: Frame, model: str) -> Frame:
    """A `session.update` with another model in its session."""
    fields = read_frame(frame) or {}
    session = read_raw_object(fields, "session") | {"model": raw_value(model)}
    return like(frame, encode_members(fields | {"session": msgspec.Raw(encode_members(session))}))
