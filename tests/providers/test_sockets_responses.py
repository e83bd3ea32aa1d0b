"""Responses over a WebSocket, and Gemini Live: which frames begin a response, what bounds it, and how it ended."""

from __future__ import annotations

from typing import Any

import pytest

from askii_middleware.providers.base import InvalidRequestError
from askii_middleware.providers.socket_base import Session, Turn
from askii_middleware.usage import TokenUsage

from ..support.sockets import LIVE_PATH
from .socket_events import DONE, SERVER_EVENTS, ended, opened, receive, send


def create(**more: Any) -> dict[str, Any]:
    return {"type": "response.create", "model": "gpt-4o", "input": "hi", **more}


def test_each_create_is_a_request_of_its_own() -> None:
    session = opened("/v1/responses")
    (turn,) = send(session, create(max_output_tokens=20))
    request = turn.request
    assert (turn.kind, turn.sure, request.model, request.output_limit) == ("text", True, "gpt-4o", 20)
    assert request.input_bound > 0
    assert not request.remote_input
    (turn,) = send(session, {"type": "response.create", "previous_response_id": "r", "input": "more"})
    assert (turn.request.model, turn.request.remote_input) == ("gpt-4o", True)
    with pytest.raises(InvalidRequestError, match="max_output_tokens"):
        send(session, create(max_output_tokens="lots"))


def test_rewriting_a_create_keeps_all_other_values() -> None:
    session = opened("/v1/responses")
    frame = (
        '{"type": "response.create", "model": "gpt-4o", "input": "hi", "seed": 1.50e3, "n": 123456789012345678901234}'
    )
    (turn,), passed = session.sent(frame)
    assert passed is frame
    renamed = session.rewritten(turn, frame, model="mini", output_limit=64)
    assert isinstance(renamed, str)
    assert renamed == (
        '{"type":"response.create","model":"mini","input":"hi","seed":1.50e3,"n":123456789012345678901234,'
        '"max_output_tokens":64}'
    )
    assert session.rewritten(turn, frame.encode(), model="mini", output_limit=64) == renamed.encode()


def test_lanes_run_side_by_side() -> None:
    session = opened("/v1/responses")
    (first,) = send(session, create(stream_id="a"))
    (second,) = send(session, create(stream_id="b"))
    receive(session, {"type": "response.created", "stream_id": "b", "response": {"id": "rb", "status": "in_progress"}})
    assert (first.begun, second.begun) == (False, True)
    receive(session, {"type": "response.created", "stream_id": "a", "response": {"id": "ra", "status": "in_progress"}})
    receive(session, {"type": "response.output_text.delta", "stream_id": "a", "delta": "abc"})
    assert (first.report.visible_bytes, second.report.visible_bytes) == (3, 0)
    done = {"id": "rb", "model": "gpt-4o-2024-08-06", "status": "completed", "usage": DONE}
    assert ended(receive(session, {"type": "response.completed", "stream_id": "b", "response": done})) is second
    assert second.report.usage == TokenUsage(input=7, output=3)
    assert (second.report.model, second.report.provider_request_id) == ("gpt-4o-2024-08-06", "rb")


def test_a_steered_response_may_have_a_successor() -> None:
    session = opened("/v1/responses")
    (first,) = send(session, create(max_output_tokens=20))
    receive(session, {"type": "response.created", "response": {"id": "r1", "status": "in_progress"}})
    (turn,) = send(session, {"type": "response.steer", "previous_response_id": "r1", "input": "shorter"})
    assert (turn.sure, turn.request.output_limit, turn.request.remote_input) == (False, 20, True)
    event = {"type": "response.incomplete", "response": {"id": "r1", "status": "incomplete", "usage": DONE}}
    assert ended(receive(session, event)) is first
    assert receive(session, {"type": "response.created", "response": {"id": "r2", "status": "in_progress"}}) == []
    assert turn.begun


def test_an_error_ends_the_response_of_its_lane() -> None:
    session = opened("/v1/responses")
    send(session, create(stream_id="a"))
    (other,) = send(session, create(stream_id="b"))
    event = {"type": "error", "status": 400, "stream_id": "b", "error": {"message": "no", "type": "x", "code": None}}
    turn = ended(receive(session, event))
    assert turn is other
    assert turn.ending == "failed"


def live(**config: Any) -> tuple[Session, Turn]:
    session = opened(LIVE_PATH)
    assert session.opening() is None
    (turn,) = send(session, {"setup": {"model": "models/gemini-live", "generationConfig": config}})
    return session, turn


SAY = {"clientContent": {"turns": [{"parts": [{"text": "hi"}]}], "turnComplete": True}}
COMPLETE = {"serverContent": {"turnComplete": True}}


def told(prompt: int, answer: int, **more: Any) -> dict[str, Any]:
    counts = {"promptTokenCount": prompt, "responseTokenCount": answer, "totalTokenCount": prompt + answer}
    return {"usageMetadata": {**counts, **more}}


def test_the_setup_names_the_model_and_the_limit() -> None:
    session, turn = live(maxOutputTokens=200)
    assert (turn.request.model, turn.request.output_limit, turn.named) == ("models/gemini-live", 200, True)
    frame = '{"setup": {"model": "models/gemini-live", "x": 1e400, "generationConfig": {"temperature": 0.50}}}'
    renamed = session.rewritten(turn, frame, model="gemini-small", output_limit=99)
    assert renamed == (
        '{"setup":{"model":"models/gemini-small","x":1e400,'
        '"generationConfig":{"temperature":0.50,"maxOutputTokens":99}}}'
    )


@pytest.mark.parametrize(
    "setup",
    [
        {},
        {"model": 5},
        {"model": "m", "generationConfig": []},
        {"model": "m", "generationConfig": {"maxOutputTokens": "lots"}},
        {"model": "m", "generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 6}},
        {"model": "m", "generationConfig": {}, "generation_config": {"max_output_tokens": 6}},
    ],
)
def test_a_setup_that_nobody_could_bound_is_refused(setup: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"setup|generationConfig"):
        send(opened(LIVE_PATH), {"setup": setup})


def test_each_turn_has_its_own_usage() -> None:
    session, first = live()
    assert send(session, SAY) == []
    assert first.sure
    receive(session, SERVER_EVENTS[7])
    assert ended(receive(session, COMPLETE | told(143, 19))) is first
    (second,) = send(session, SAY)
    assert ended(receive(session, COMPLETE | told(181, 24))) is second
    assert first.report.usage == TokenUsage(input=143, output=19)
    assert second.report.usage == TokenUsage(input=181, output=24)
    assert second.request.input_estimate >= 162


def test_a_turn_s_growing_usage_counts_once_and_several_generations_count_each() -> None:
    session, turn = live()
    send(session, SAY)
    receive(session, told(100, 5))
    receive(session, told(100, 9))
    receive(session, {"toolCall": {"functionCalls": []}})
    assert send(session, {"toolResponse": {"functionResponses": []}}) == []
    receive(session, told(130, 4))
    assert ended(receive(session, COMPLETE | told(130, 8))) is turn
    assert turn.report.usage == TokenUsage(input=230, output=17)


def test_usage_may_follow_its_turn() -> None:
    session, turn = live()
    send(session, SAY)
    receive(session, SERVER_EVENTS[7])
    assert receive(session, COMPLETE) == []
    (following,) = send(session, {"realtimeInput": {"audio": {"data": "AAAA"}}})
    assert ended(receive(session, told(10, 2))) is turn
    assert receive(session, told(10, 2)) == []
    assert following.ending is None


def test_a_turn_whose_usage_never_came_ends_when_the_next_one_speaks() -> None:
    session, turn = live()
    send(session, SAY)
    receive(session, SERVER_EVENTS[7])
    receive(session, COMPLETE)
    send(session, SAY)
    assert ended(receive(session, SERVER_EVENTS[7])) is turn
    assert (turn.report.usage, turn.report.visible_bytes) == (None, 2)
