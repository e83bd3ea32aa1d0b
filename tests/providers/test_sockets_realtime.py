"""Realtime sessions: which frames begin a response, what bounds it, and how it ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from askii_middleware.providers.base import InvalidRequestError
from askii_middleware.providers.socket_base import Session
from askii_middleware.usage import TokenUsage

from .socket_events import DONE, SERVER_EVENTS, ended, opened, receive, send


def realtime() -> Session:
    session = opened("/v1/realtime?model=gpt-realtime")
    session.opening()
    return session


def test_the_opening_s_hold_serves_the_first_response_and_later_ones_get_their_own() -> None:
    session = realtime()
    first = session.turns[0]
    assert send(session, {"type": "response.create"}) == [first]
    assert first.sure
    receive(session, {"type": "response.created", "response": {"id": "r1"}})
    assert ended(receive(session, SERVER_EVENTS[3])) is first
    (second,) = send(session, {"type": "response.create", "response": {"max_output_tokens": 50}})
    assert second is not first
    assert second.request.output_limit == 50
    assert second.request.input_estimate >= 10


def test_a_response_with_another_limit_is_held_for_anew() -> None:
    session = realtime()
    dropped, new = send(session, {"type": "response.create", "response": {"max_response_output_tokens": 9}})
    assert (dropped.ending, new.ending, new.request.output_limit) == ("dropped", None, 9)


@pytest.mark.parametrize("limit", ["lots", -1, 0, 1.5, True, [], {}])
def test_a_limit_that_nobody_could_read_is_refused(limit: Any) -> None:
    for event in (
        {"type": "response.create", "response": {"max_output_tokens": limit}},
        {"type": "session.update", "session": {"max_output_tokens": limit}},
    ):
        with pytest.raises(InvalidRequestError, match="max_output_tokens"):
            send(realtime(), event)


def test_a_session_s_limit_bounds_the_responses_after_it() -> None:
    session = realtime()
    dropped, new = send(session, {"type": "session.update", "session": {"max_output_tokens": 100}})
    assert (dropped.ending, new.request.output_limit) == ("dropped", 100)
    assert send(session, {"type": "session.update", "session": {"instructions": "be brief"}}) == []
    dropped, new = send(session, {"type": "session.update", "session": {"max_output_tokens": "inf"}})
    assert new.request.output_limit is None


def test_a_session_update_may_name_another_model() -> None:
    session = realtime()
    dropped, new = send(session, {"type": "session.update", "session": {"model": "gpt-realtime-mini"}})
    assert (dropped.ending, new.request.model, new.named) == ("dropped", "gpt-realtime-mini", True)
    frame = json.dumps({"type": "session.update", "big": 10**30, "session": {"model": "gpt-realtime-mini", "x": 1.50}})
    renamed = session.rewritten(new, frame, model="other", output_limit=None)
    assert renamed == '{"type":"session.update","big":1' + "0" * 30 + ',"session":{"model":"other","x":1.5}}'


@pytest.mark.parametrize("name", ["max_output_tokens", "max_response_output_tokens"])
def test_a_limit_is_written_as_the_server_spells_it_and_never_beyond_what_it_takes(name: str) -> None:
    session = realtime()
    receive(session, {"type": "session.created", "session": {"model": "gpt-realtime", name: "inf"}})
    frame = '{"type":"response.create","response":{"x":1.50}}'
    (turn,), _ = session.sent(frame)
    for limit, written in ((100, 100), (16_384, 4096)):
        rewritten = session.rewritten(turn, frame, model=None, output_limit=limit)
        assert rewritten == f'{{"type":"response.create","response":{{"x":1.50,"{name}":{written}}}}}'
    bare = session.rewritten(turn, b'{"type":"response.create"}', model=None, output_limit=5)
    assert bare == f'{{"type":"response.create","response":{{"{name}":5}}}}'.encode()


def test_a_model_that_was_replaced_stays_so_when_it_is_named_again() -> None:
    session = realtime()
    session.admitted(session.turns[0], "gpt-realtime-mini")
    changed, frame = session.sent('{"type": "session.update", "session": {"model": "gpt-realtime", "voice": "alloy"}}')
    assert changed == []
    assert frame == '{"type":"session.update","session":{"model":"gpt-realtime-mini","voice":"alloy"}}'
    untouched = '{"type": "session.update",  "session": {"voice": "alloy"}}'
    assert session.sent(untouched)[1] is untouched


def test_audio_is_held_for_where_its_end_begins_a_response() -> None:
    session = opened("/v1/realtime")
    receive(session, SERVER_EVENTS[0])
    (turn,) = send(session, {"type": "input_audio_buffer.append", "audio": "AAAA"})
    assert (turn.kind, turn.sure, turn.request.model) == ("speech", False, "gpt-realtime")
    assert send(session, {"type": "input_audio_buffer.append", "audio": "AAAA"}) == []
    assert receive(session, SERVER_EVENTS[1]) == []
    assert turn.begun
    assert session.sent(b"\x00\x01 audio")[0] == []


@pytest.mark.parametrize(
    "setting",
    [
        {"turn_detection": None},
        {"turn_detection": {"type": None}},
        {"turn_detection": {"type": "server_vad", "create_response": False}},
        {"audio": {"input": {"turn_detection": None}}},
    ],
)
def test_without_turn_detection_audio_begins_nothing(setting: dict[str, Any]) -> None:
    session = opened("/v1/realtime")
    receive(session, {"type": "session.updated", "session": {"model": "gpt-realtime", **setting}})
    assert send(session, {"type": "input_audio_buffer.append", "audio": "AAAA"}) == []


def test_a_response_that_nobody_asked_for_is_a_turn_when_it_begins() -> None:
    session = opened("/v1/realtime")
    (turn,) = receive(session, SERVER_EVENTS[1])
    assert (turn.begun, turn.ending) == (True, None)
    assert ended(receive(session, SERVER_EVENTS[3])) is turn


def test_responses_side_by_side_are_told_apart_by_their_id() -> None:
    session = realtime()
    first = session.turns[0]
    send(session, {"type": "response.create"})
    (second,) = send(session, {"type": "response.create", "response": {"conversation": "none"}})
    for number in (1, 2):
        receive(session, {"type": "response.created", "response": {"id": f"r{number}"}})
    receive(session, {"type": "response.output_text.delta", "response_id": "r2", "delta": "abcde"})
    assert (first.report.visible_bytes, second.report.visible_bytes) == (0, 5)
    done = {"type": "response.done", "response": {"id": "r2", "status": "completed", "usage": DONE}}
    assert ended(receive(session, done)) is second


@pytest.mark.parametrize("about", ["mine", None])
def test_an_error_takes_back_the_response_it_is_about(about: str | None) -> None:
    session = realtime()
    send(session, {"type": "response.create", "event_id": "mine"})
    turn = ended(receive(session, {"type": "error", "error": {"message": "busy", "event_id": about}}))
    assert turn.ending == "failed"
    send(session, {"type": "response.create", "event_id": "mine"})
    assert receive(session, {"type": "error", "error": {"message": "busy", "event_id": "another"}}) == []


@pytest.mark.parametrize(
    ("status", "usage", "ending"),
    [
        ("cancelled", None, "stopped"),
        ("cancelled", DONE, "done"),
        ("failed", None, "failed"),
        ("incomplete", DONE, "done"),
    ],
)
def test_how_a_response_ended_is_told(status: str, usage: Any, ending: str) -> None:
    session = realtime()
    send(session, {"type": "response.create"})
    receive(session, SERVER_EVENTS[1])
    event = {"type": "response.done", "response": {"id": "r1", "status": status, "usage": usage}}
    assert ended(receive(session, event)).ending == ending


def test_cached_audio_and_images_are_told_apart() -> None:
    session = realtime()
    usage = {
        "input_tokens": 100,
        "output_tokens": 20,
        "total_tokens": 120,
        "input_token_details": {
            "text_tokens": 40,
            "audio_tokens": 50,
            "image_tokens": 10,
            "cached_tokens": 30,
            "cached_tokens_details": {"text_tokens": 5, "audio_tokens": 21, "image_tokens": 4},
        },
        "output_token_details": {"text_tokens": 8, "audio_tokens": 12},
    }
    turn = ended(
        receive(session, {"type": "response.done", "response": {"id": "r", "status": "completed", "usage": usage}})
    )
    assert turn.report.usage == TokenUsage(
        input=35,
        cache_read=5,
        input_audio=29,
        cache_read_audio=21,
        input_image=6,
        cache_read_image=4,
        output=8,
        output_audio=12,
    )


def test_what_is_heard_is_transcribed_by_another_model() -> None:
    session = realtime()
    session.turns[0].begun = True
    send(
        session, {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}}
    )
    (turn,) = send(session, {"type": "input_audio_buffer.append", "audio": "AAAA"})
    assert (turn.kind, turn.request.model, turn.named) == ("transcription", "whisper-1", False)
    receive(session, {"type": "input_audio_buffer.committed", "item_id": "i1"})
    (following,) = send(session, {"type": "input_audio_buffer.append", "audio": "AAAA"})
    assert ended(receive(session, SERVER_EVENTS[5])) is turn
    assert turn.report.usage == TokenUsage(second=2)
    assert following.ending is None
    tokens = {"type": "tokens", "input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
    event = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "i2"}
    details = {"input_token_details": {"audio_tokens": 9, "text_tokens": 0}}
    turn = ended(receive(session, {**event, "usage": {**tokens, **details}}))
    assert turn.report.usage == TokenUsage(input_audio=9, output=4)


def test_a_transcription_session_has_no_responses() -> None:
    session = opened("/v1/realtime?intent=transcription")
    assert session.opening() is None
    kind = {"type": "transcription", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
    assert send(session, {"type": "session.update", "session": kind}) == []
    (turn,) = send(session, {"type": "input_audio_buffer.append", "audio": "AAAA"})
    assert (turn.kind, turn.request.model) == ("transcription", "gpt-4o-transcribe")
