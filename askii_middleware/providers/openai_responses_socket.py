"""OpenAI responses over a WebSocket: `ws …/responses`.

- Each `response.create` of the client is a request as its HTTP API has it (without `stream`), and names its model.
- The events are those of its stream. `stream_id` names a lane: responses of one lane follow each other, those of
  several run side by side, and each event names its lane.
- `response.steer` queues input; the server may then begin a further response by itself, with the settings of the last.
- An error is `{"type": "error", "status", "error": {…}}`.

Source: openai SDK 3.54 (`types/responses/responses_client_event.py`, `responses_server_event.py`,
`response_steer_event.py`) and OpenAI's guide to the WebSocket mode (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .base import Api, CallRequest, Refusal, Rewrite
from .counts import member, text
from .fields import decode_object, encode_members, raw_value, read_raw_object, read_text
from .socket_base import Frame, Session, SocketApi, Turn, like, read_frame

_ENDS = frozenset(f"response.{name}" for name in ("completed", "incomplete", "failed", "cancelled"))
_READ = _ENDS | {"response.created", "error"}
"""The events that say something about a turn."""


class _Event(msgspec.Struct, gc=False):
    """What is needed of the events that come by the hundred."""

    type: str = ""
    delta: str | None = None
    stream_id: str | None = None


_read_event = msgspec.json.Decoder(_Event).decode


class ResponsesSocket(SocketApi):
    """`api`: the same over HTTP, which reads requests and events."""

    def __init__(self, api: Api) -> None:
        self.name = api.name
        self.family = api.family
        self.provider = api.provider
        self.suffixes = api.suffixes
        self._api = api

    def session(self, query: bytes) -> Session:  # noqa: ARG002 - it says nothing about the model
        return ResponsesSession(self._api)

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return self._api.refusal(refusal)

    def error_frame(self, refusal: Refusal) -> str:
        error = read_raw_object({"body": msgspec.Raw(self._api.refusal(refusal)[0])}, "body")["error"]
        return encode_members(
            {"type": raw_value("error"), "status": raw_value(refusal.status), "error": error}
        ).decode()


class ResponsesSession(Session):
    def __init__(self, api: Api) -> None:
        super().__init__()
        self._api = api
        self._last: dict[str | None, CallRequest] = {}
        """The last request of each lane that was seen lately."""

    def sent(self, frame: Frame) -> tuple[list[Turn], Frame]:
        fields = read_frame(frame)
        kind = None if fields is None else read_text(fields, "type")
        if fields is None or kind not in ("response.create", "response.steer"):
            return [], frame
        if kind == "response.steer":
            return self._steer(len(frame)), frame
        lane = read_text(fields, "stream_id")
        request = self._api.parse(
            fields, len(frame) if isinstance(frame, bytes) else len(frame.encode(errors="replace"))
        )
        request.stream = True
        request.model = request.model or self.model
        self.model = request.model
        turn = self.add(Turn(request, "text", sure=True, named=True))
        turn.lane = lane
        turn.event_id = read_text(fields, "event_id")
        self._last.pop(lane, None)
        self._last[lane] = request
        while len(self._last) > 2 * len(self.turns) + 8:
            self._last.pop(next(iter(self._last)))
        return [turn], frame

    def _steer(self, size: int) -> list[Turn]:
        """Input that may make the server begin a further response: one is held for."""
        if not self._last or self.waiting("text") is not None:
            return []
        turn = self._successor(next(reversed(self._last.values())))
        turn.request.input_bound += size
        return [self.add(turn)]

    def _successor(self, request: CallRequest) -> Turn:
        whole = msgspec.structs.replace(request, remote_input=True, model=self.model or request.model, fields={})
        return Turn(whole, "text")

    def rewritten(self, turn: Turn, frame: Frame, *, model: str | None, output_limit: int | None) -> Frame:
        if not turn.request.fields:
            return frame
        return like(frame, self._api.rewrite(turn.request, Rewrite(model=model, output_limit=output_limit)))

    def received(self, frame: Frame) -> list[Turn]:
        try:
            event = _read_event(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            event = _Event()
        if event.delta is not None:
            turn = self._begun(event.stream_id)
            if turn is not None:
                self._api.absorb(turn.report, {"type": event.type, "delta": event.delta})
            return []
        if event.type and event.type not in _READ:
            return []
        answer = decode_object(frame.encode(errors="surrogatepass") if isinstance(frame, str) else frame)
        return [] if answer is None else self._absorb(answer)

    def _begun(self, lane: str | None) -> Turn | None:
        return next((turn for turn in self.turns if turn.begun and turn.lane == lane), None)

    def _absorb(self, event: Mapping[str, Any]) -> list[Turn]:
        changed: list[Turn] = []
        kind, lane = event.get("type"), text(event, "stream_id")
        if kind == "response.created":
            before = self._begun(lane)
            if before is not None and before.report.failed:
                changed.append(self.end(before, "failed"))
            turn = self.waiting("text", lane)
            if turn is None:
                turn = self.adopt(self._successor(self._last.get(lane) or _nothing(self.model)), changed)
            turn.begun, turn.lane, turn.id = True, lane, text(member(event, "response"), "id")
            self._api.absorb(turn.report, event)
        elif type(kind) is str and kind in _ENDS:
            turn = self._begun(lane) or self.waiting("text", lane)
            if turn is None:
                turn = self._successor(self._last.get(lane) or _nothing(self.model))
            turn.begun = True
            self._api.absorb(turn.report, event)
            changed.append(self.end(turn, "failed" if turn.report.failed else "done"))
        elif kind == "error":
            # It may be about another frame: a turn that has begun goes on until its own end, or the next one's
            # beginning.
            begun = self._begun(lane)
            turn = next((t for t in self.turns if t.sure and not t.begun and t.lane == lane), None)
            if begun is not None:
                begun.report.failed = True
            elif turn is not None:
                turn.report.failed = True
                changed.append(self.end(turn, "failed"))
        return changed


def _nothing(model: str | None) -> CallRequest:
    return CallRequest(model=model, stream=True, remote_input=True, fields={})
