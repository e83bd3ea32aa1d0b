"""Sockets of every format: which ones they are, what the recorded sessions used, and what odd frames do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.base import InvalidRequestError, Refusal
from askii_middleware.providers.socket_base import MAX_OPEN_TURNS, Frame, read_frame
from askii_middleware.providers.sockets import SOCKET_APIS, find_socket
from askii_middleware.usage import TokenUsage

from ..support.sockets import LIVE_PATH, recorded
from .socket_events import SERVER_EVENTS, opened, receive, send
from .support import CORPUS, NO_CORPUS

REFUSAL = Refusal(status=402, code="budget_exceeded", message="the money is spent", call_id="call-1")
SAY = {"clientContent": {"turns": [{"parts": [{"text": "hi"}]}], "turnComplete": True}}


def create(**more: Any) -> dict[str, Any]:
    return {"type": "response.create", "model": "gpt-4o", "input": "hi", **more}


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
