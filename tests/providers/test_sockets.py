"""Sockets: which frames begin a response, what bounds it, what the recorded sessions used, and what odd frames do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.base import InvalidRequestError, Refusal
from askii_middleware.providers.socket_base import MAX_OPEN_TURNS, Frame, Session, Turn, read_frame
from askii_middleware.providers.sockets import SOCKET_APIS, find_socket
from askii_middleware.usage import TokenUsage

from .support import CORPUS, NO_CORPUS

LIVE_PATH = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
REFUSAL = Refusal(status=402, code="budget_exceeded", message="the money is spent", call_id="call-1")
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


def recorded() -> list[dict[str, Any]]:
    manifest = CORPUS / "manifest.json"
    if not manifest.exists():
        return []
    return [entry for entry in json.loads(manifest.read_text())["entries"] if entry["http_status"] == 101]


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


# Recorded sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not recorded(), reason=NO_CORPUS)
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("entry", recorded(), ids=lambda entry: entry["file"])
def test_a_recorded_session_yields_exactly_what_it_used(entry: dict[str, Any], as_bytes: bool) -> None:
    session = opened(entry["request_path"])
    session.opening()
    over: list[TokenUsage] = []
    models = set()
    for line in (CORPUS / entry["file"]).read_text().splitlines():
        event = json.loads(line)
        text = json.dumps(event["data"])
        frame: Frame = text.encode() if as_bytes else text
        changed = session.sent(frame)[0] if event["direction"] == "sent" else session.received(frame)
        for turn in changed:
            models.add(turn.request.model)
            if turn.ending is not None:
                assert (turn.ending, turn.begun) == ("done", True)
                assert turn.report.usage is not None
                over.append(turn.report.usage)
    expected = entry["expected"]
    assert session.turns == []
    assert len(over) == (entry["extra"].get("responses") or 1)
    assert sum(usage.input_tokens for usage in over) == expected["input_tokens"]
    assert sum(usage.output_tokens for usage in over) == expected["output_tokens"]
    assert sum(usage.cached_input_tokens for usage in over) == (expected["cached_input_tokens"] or 0)
    assert sum(usage.reasoning for usage in over) == (expected["reasoning_tokens"] or 0)
    assert sum(usage.audio_input_tokens for usage in over) == (expected["audio_in"] or 0)
    assert sum(usage.output_audio for usage in over) == (expected["audio_out"] or 0)
    assert sum(usage.second for usage in over) == entry["extra"].get("billable_audio_seconds", 0)
    assert {model.removeprefix("models/") for model in models if model} == {entry["request_model"]}


# Which sockets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/realtime", "openai.realtime"),
        ("/openai/v1/realtime/", "openai.realtime"),
        ("/voice-live/realtime", "openai.realtime"),
        ("/V1/Realtime", "openai.realtime"),
        ("/mounted/v1/responses", "openai.responses"),
        (LIVE_PATH, "gemini.live"),
        ("/ws/google.cloud.aiplatform.v1.LlmBidiService/BidiGenerateContent", "gemini.live"),
        ("/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateContentConstrained", "gemini.live"),
        ("/v1/realtime/sessions", None),
        ("/v1/unrealtime", None),
        ("/chat", None),
    ],
)
def test_a_socket_is_known_by_the_end_of_its_path(path: str, name: str | None) -> None:
    found = find_socket(path)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    "path", ["/v1/realtime?model=gpt-realtime", "/openai/realtime?api-version=1&deployment=gpt-realtime"]
)
def test_a_realtime_query_names_the_model(path: str) -> None:
    turn = opened(path).opening()
    assert turn is not None
    assert (turn.request.model, turn.request.remote_input, turn.request.media) == ("gpt-realtime", True, True)


def test_a_query_with_two_models_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="several"):
        opened("/v1/realtime?model=a&model=b")
    assert opened("/v1/realtime?model=a&model=a").model == "a"


def test_renaming_the_query_changes_only_the_model() -> None:
    api = find_socket("/v1/realtime")
    assert api is not None
    assert api.renamed_query(b"x=%41&model=gpt-realtime&y", "gpt realtime/&") == b"x=%41&model=gpt+realtime/%26&y"
    assert api.renamed_query(b"m%6Fdel=a&deployment=a", "b") == b"m%6Fdel=b&deployment=b"


# Realtime ------------------------------------------------------------------------------------------------------------


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


# Responses -----------------------------------------------------------------------------------------------------------


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


# Gemini Live ---------------------------------------------------------------------------------------------------------


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


# All of them ---------------------------------------------------------------------------------------------------------


def test_refusals_look_as_each_sdk_expects_them() -> None:
    frames = {api.name: api.error_frame(REFUSAL) for api in SOCKET_APIS}
    realtime_error = json.loads(frames["openai.realtime"] or "")
    assert realtime_error["type"] == "error"
    assert realtime_error["event_id"]
    assert realtime_error["error"]["code"] == "budget_exceeded"
    assert realtime_error["error"]["type"] == "insufficient_quota"
    responses_error = json.loads(frames["openai.responses"] or "")
    assert (responses_error["type"], responses_error["status"]) == ("error", 402)
    assert responses_error["error"]["message"] == "the money is spent"
    assert frames["gemini.live"] is None


@pytest.mark.parametrize("path", ["/v1/realtime?model=m", "/v1/responses", LIVE_PATH])
def test_a_client_cannot_have_any_number_of_responses_open(path: str) -> None:
    session = opened(path)
    session.opening()

    def ask_often() -> None:
        for number in range(MAX_OPEN_TURNS + 2):
            send(session, {"setup": {"model": "m"}} if path == LIVE_PATH else create(stream_id=str(number)))

    if path == LIVE_PATH:
        ask_often()
    else:
        with pytest.raises(InvalidRequestError, match="open"):
            ask_often()
    assert len(session.turns) <= MAX_OPEN_TURNS


@pytest.mark.parametrize("path", ["/v1/realtime?model=m", "/v1/responses", LIVE_PATH])
def test_a_server_that_begins_any_number_of_responses_costs_no_memory(path: str) -> None:
    session = opened(path)
    for number in range(3 * MAX_OPEN_TURNS):
        receive(session, {"type": "response.created", "stream_id": str(number), "response": {"id": str(number)}})
        receive(session, SERVER_EVENTS[7])
    assert len(session.turns) <= MAX_OPEN_TURNS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def mutate(value: Any, path: list[int], new: Any) -> Any:
    """The same value with something else in one place."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = mutate(value[key], path[1:], new)
    return changed


@given(
    events=st.lists(
        st.tuples(st.sampled_from(SERVER_EVENTS), st.lists(st.integers(0, 9), max_size=4), JSON), max_size=8
    ),
    path=st.sampled_from(["/v1/realtime?model=m", "/v1/responses", LIVE_PATH]),
    as_bytes=st.booleans(),
)
def test_no_frame_of_a_server_raises_or_counts_below_zero(events: list[Any], path: str, as_bytes: bool) -> None:
    session = opened(path)
    session.opening()
    for event, place, value in events:
        frame = json.dumps(mutate(event, place, value) if place else event)
        for turn in session.received(frame.encode() if as_bytes else frame):
            usage = turn.report.usage
            if usage is not None:
                assert min(getattr(usage, name) for name in usage.__struct_fields__) >= 0
    assert len(session.turns) <= MAX_OPEN_TURNS


@given(
    event=st.sampled_from(
        [
            create(stream_id="a"),
            {"type": "response.steer", "input": "x"},
            {
                "type": "session.update",
                "session": {"model": "m", "audio": {"input": {"transcription": {"model": "w"}}}},
            },
            {"type": "input_audio_buffer.append", "audio": "AAAA"},
            {"setup": {"model": "m", "generationConfig": {"maxOutputTokens": 5}}},
            SAY,
        ]
    ),
    place=st.lists(st.integers(0, 9), max_size=4),
    value=JSON,
    path=st.sampled_from(["/v1/realtime?model=m", "/v1/responses", LIVE_PATH]),
)
def test_a_frame_of_a_client_is_taken_or_refused(event: Any, place: list[int], value: Any, path: str) -> None:
    session = opened(path)
    frame = json.dumps(mutate(event, place, value))
    try:
        turns, passed = session.sent(frame)
    except InvalidRequestError:
        return
    assert passed is frame
    for turn in turns:
        session.rewritten(turn, frame, model="other", output_limit=7)


@given(st.binary(max_size=64) | st.text(max_size=32))
def test_any_message_passes(frame: Frame) -> None:
    for api in SOCKET_APIS:
        session = api.session(b"")
        assert session.sent(frame)[1] is frame
        session.received(frame)
    read_frame(frame)
