"""Opening sessions and sending them events."""

from __future__ import annotations

import json
from typing import Any

from askii_middleware.providers.socket_base import Session, Turn
from askii_middleware.providers.sockets import find_socket

DONE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
SERVER_EVENTS: list[dict[str, Any]] = [
    {"type": "session.created", "session": {"model": "gpt-realtime"}},
    {"type": "response.created", "response": {"id": "r1"}},
    {"type": "response.output_text.delta", "response_id": "r1", "delta": "hi"},
    {"type": "response.done", "response": {"id": "r1", "status": "completed", "usage": DONE}},
    {"type": "response.completed", "response": {"id": "r1", "status": "completed", "usage": DONE}},
    {"type": "conversation.item.input_audio_transcription.completed", "usage": {"type": "duration", "seconds": 1.5}},
    {"type": "error", "error": {"message": "no", "event_id": "e1"}},
    {"serverContent": {"modelTurn": {"parts": [{"text": "hi"}]}}},
    {"serverContent": {"turnComplete": True}, "usageMetadata": {"promptTokenCount": 7, "responseTokenCount": 3}},
]


def opened(path: str) -> Session:
    path, _, query = path.partition("?")
    api = find_socket(path)
    assert api is not None
    return api.session(query.encode())


def send(session: Session, event: Any) -> list[Turn]:
    return session.sent(json.dumps(event))[0]


def receive(session: Session, event: Any) -> list[Turn]:
    return session.received(json.dumps(event))


def ended(turns: list[Turn]) -> Turn:
    (turn,) = [turn for turn in turns if turn.ending is not None]
    return turn
