"""Mistral's own APIs: fill-in-the-middle, agents, OCR and conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS, choose_api, find_apis
from askii_middleware.providers.base import CallRequest, InvalidRequestError, Refusal, Rewrite
from askii_middleware.usage import Report, TokenUsage

from .support import USAGE, chat_chunk, cut, cut_at, event, feed, raw_fields

AGENT = "ag:8e2706f0:20250101:bot"
CONNECTED = {"prompt_tokens": 188, "completion_tokens": 55, "total_tokens": 7355, "connector_tokens": 7112}
EVENTS: list[dict[str, Any]] = [
    {"type": "conversation.response.started", "conversation_id": "conv_1"},
    {"type": "tool.execution.started", "id": "t", "name": "web_search", "arguments": "{}"},
    {"type": "message.output.delta", "id": "m", "role": "assistant", "model": "mistral-medium-2505", "content": "Grüß"},
    {"type": "message.output.delta", "id": "m", "content": {"type": "text", "text": "ab"}},
    {"type": "message.output.delta", "id": "m", "content": {"type": "tool_reference", "tool": "web_search"}},
    {"type": "conversation.response.done", "usage": {**CONNECTED, "connectors": {"web_search": 1}}},
]
STREAM = b"".join(event(one, name=str(one["type"])) for one in EVENTS)


def parsed(path: str, body: dict[str, Any]) -> CallRequest:
    return find_apis(path)[0].parse(raw_fields(body), len(json.dumps(body)))


def streamed(path: str, stream: bytes, size: int = 1 << 20) -> Report:
    reader = find_apis(path)[0].stream_reader(hide_usage=True)
    for chunk in cut(stream, size):
        assert reader.feed(chunk) is chunk
    assert reader.finish() == b""
    return reader.report


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/fim/completions", {"prompt": "x"}, "mistral.fim"),
        ("/v1/agents/completions", {"messages": [], "agent_id": AGENT}, "mistral.agents"),
        ("/v1/agents/completions", {"messages": []}, None),
        ("/v1/ocr", {"document": {"type": "document_url"}}, "mistral.ocr"),
        ("/v1/ocr", {"document": "scan"}, None),
        ("/v1/conversations", {"inputs": "x"}, "mistral.conversations"),
        ("/mistral/v1/conversations/conv_1", {"inputs": "x"}, "mistral.conversations"),
        ("/v1/conversations/conv_1/restart", {"inputs": "x", "from_entry_id": "e"}, "mistral.conversations"),
        ("/v1/conversations", {"items": []}, None),  # OpenAI's, which costs nothing
        ("/v1/conversations/conv_1/items", {"items": []}, None),
        ("/v1/chat/completions", {"messages": []}, "openai.chat"),
        ("/v1/embeddings", {"input": "x"}, "openai.embeddings"),
    ],
)
def test_a_request_is_known_by_its_path_and_its_members(path: str, body: dict[str, Any], name: str | None) -> None:
    found = choose_api(find_apis(path), raw_fields(body))
    assert (found and found.name) == name


def test_a_request_tells_its_size() -> None:
    body = {"model": "codestral-2508", "prompt": "def f(", "suffix": "return", "max_tokens": 9, "stream": True}
    request = parsed("/v1/fim/completions", body)
    assert (request.model, request.output_limit, request.stream, request.remote_input) == (
        "codestral-2508",
        9,
        True,
        False,
    )
    assert request.input_bound >= len(json.dumps(body))
    assert not find_apis("/v1/fim/completions")[0].injects_usage(request, "codestral-2508")


def test_an_agent_is_called_by_its_id_and_by_no_other_model() -> None:
    api = find_apis("/v1/agents/completions")[0]
    request = parsed("/v1/agents/completions", {"agent_id": AGENT, "messages": [], "n": 2, "max_tokens": 5})
    assert (request.model, request.choices, request.output_limit, request.remote_input) == (AGENT, 2, 5, True)
    assert api.accepts(request, AGENT)
    assert not api.accepts(request, "mistral-small")
    rewritten = json.loads(api.rewrite(request, Rewrite(model="mistral-small", output_limit=3)))
    assert rewritten == {"agent_id": AGENT, "messages": [], "n": 2, "max_tokens": 3}


@pytest.mark.parametrize(
    ("document", "pages", "most"),
    [
        ({"type": "image_url", "image_url": "https://x"}, None, 1),
        ({"type": "document_url", "document_url": "https://x"}, None, 1000),
        ({"type": "document_url", "document_url": "https://x"}, [0, 1, 5], 3),
        ({"type": "document_url", "document_url": "https://x"}, "0-5", 1000),
        ({"type": "file", "file_id": "f"}, None, 1000),
        ({"type": "file", "file_id": "f"}, list(range(5000)), 1000),
    ],
)
def test_ocr_is_bounded_by_pages(document: dict[str, Any], pages: Any, most: int) -> None:
    request = parsed("/v1/ocr", {"model": "mistral-ocr-latest", "document": document, "pages": pages})
    assert request.units == TokenUsage(page=most)
    assert (request.output_limit, request.input_bound) == (0, 0)


def test_a_conversation_may_name_a_model_an_agent_or_neither() -> None:
    body = {"inputs": [{"role": "user", "content": "x"}], "completion_args": {"max_tokens": 7}}
    started = parsed("/v1/conversations", {**body, "model": "mistral-medium", "stream": True})
    assert (started.model, started.output_limit, started.stream, started.remote_input) == (
        "mistral-medium",
        7,
        True,
        False,
    )
    agent = parsed("/v1/conversations", {**body, "agent_id": AGENT})
    assert (agent.model, agent.remote_input) == (AGENT, True)
    appended = parsed("/v1/conversations/conv_1", body)
    assert (appended.model, appended.remote_input) == (None, True)
    searched = parsed("/v1/conversations", {**body, "model": "m", "tools": [{"type": "web_search"}]})
    assert searched.remote_input
    api = find_apis("/v1/conversations")[0]
    assert api.accepts(started, "mistral-small")
    assert not api.accepts(agent, "mistral-small")


def test_a_rewrite_changes_model_and_limit_and_no_other_byte() -> None:
    body = b'{"inputs": "\\u00fc","model":"a","completion_args":{"temperature":0.70, "max_tokens":9},"store":false}'
    api = find_apis("/v1/conversations")[0]
    request = api.parse(raw_fields(body), len(body))
    assert api.rewrite(request, Rewrite(model="b", output_limit=5)) == (
        b'{"inputs":"\\u00fc","model":"b","completion_args":{"temperature":0.70,"max_tokens":5},"store":false}'
    )
    bare = api.parse(raw_fields({"inputs": "x"}), 9)
    assert json.loads(api.rewrite(bare, Rewrite(model="b", output_limit=5))) == {
        "inputs": "x",
        "completion_args": {"max_tokens": 5},
    }


@pytest.mark.parametrize(
    ("path", "body", "member"),
    [
        ("/v1/fim/completions", {"prompt": "x", "max_tokens": "9"}, "max_tokens"),
        ("/v1/agents/completions", {"messages": [], "agent_id": 3}, "agent_id"),
        ("/v1/conversations", {"inputs": "x", "completion_args": 3}, "completion_args"),
        ("/v1/conversations", {"inputs": "x", "completion_args": {"max_tokens": 0.5}}, "max_tokens"),
        ("/v1/ocr", {"document": {}, "pages": 3}, "pages"),
    ],
)
def test_a_member_that_would_make_the_bound_wrong_is_refused_by_name(
    path: str, body: dict[str, Any], member: str
) -> None:
    with pytest.raises(InvalidRequestError, match=member):
        parsed(path, body)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_a_conversations_stream_ends_with_its_usage(size: int) -> None:
    assert streamed("/v1/conversations", STREAM, size) == Report(
        usage=TokenUsage(input=7300, output=55, web_search=1),
        model="mistral-medium-2505",
        provider_request_id="conv_1",
        finished=True,
        visible_bytes=2 + 6 + 2,
        visible_deltas=3,
    )


def test_a_whole_conversation_names_its_model_in_its_outputs() -> None:
    answer = {
        "object": "conversation.response",
        "conversation_id": "conv_1",
        "outputs": [{"type": "tool.execution"}, {"type": "message.output", "content": "hi", "model": "mistral-medium"}],
        "usage": {**CONNECTED, "connectors": None},
    }
    api = find_apis("/v1/conversations")[0]
    expected = Report(
        usage=TokenUsage(input=7300, output=55),
        model="mistral-medium",
        provider_request_id="conv_1",
        finished=True,
    )
    assert api.read_body(json.dumps(answer).encode()) == expected
    reader = api.body_reader()
    feed(reader, cut(json.dumps(answer).encode(), 3))
    assert reader.report == expected


def test_an_error_event_is_a_failure() -> None:
    event_of_theirs = {"type": "conversation.response.error", "message": "boom", "code": 500}
    assert streamed("/v1/conversations", event(event_of_theirs, name="conversation.response.error")).failed


@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_fill_in_the_middle_streams_like_chat(size: int) -> None:
    stream = event(chat_chunk("ab")) + event(
        chat_chunk(choices=[{"index": 0, "delta": {"content": "c"}, "finish_reason": "stop"}], usage=USAGE)
    )
    report = streamed("/v1/fim/completions", stream + event("[DONE]"), size)
    assert (report.usage, report.finished, report.visible_bytes) == (TokenUsage(input=10, output=4), True, 3)


@pytest.mark.parametrize(
    ("pages", "usage"),
    [
        (3, TokenUsage(page=3)),
        (0, TokenUsage()),
        (-1, TokenUsage(anomalous=True)),
        ("3", None),
        (None, None),
        (10**30, None),
    ],
)
def test_ocr_bills_the_pages_it_read(pages: object, usage: TokenUsage | None) -> None:
    body = {"pages": [{"markdown": "x" * 999}], "model": "mistral-ocr-2505", "usage_info": {"pages_processed": pages}}
    report = find_apis("/v1/ocr")[0].read_body(json.dumps(body).encode())
    assert (report.usage, report.model) == (usage, "mistral-ocr-2505")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (402, "budget_exceeded", "insufficient_quota"),
        (429, "budget_held", "rate_limited"),
        (400, "x", "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/fim/completions", "/v1/agents/completions", "/v1/ocr", "/v1/conversations"])
def test_a_refusal_has_mistrals_envelope(path: str, status: int, code: str, kind: str) -> None:
    api = find_apis(path)[0]
    refusal = Refusal(status=status, code=code, message="no", reason="spent", call_id="c")
    body, headers = api.refusal(refusal)
    assert json.loads(body) == {
        "object": "error",
        "message": "no",
        "type": kind,
        "param": None,
        "code": code,
        "reason": "spent",
    }
    assert headers == [(b"x-should-retry", b"false")]
    assert api.read_body(body).failed
    assert streamed(path, api.stream_error(refusal)).failed


@pytest.mark.parametrize(
    "answer",
    [*EVENTS, {"object": "conversation.response", "outputs": []}, {"pages": [], "model": "m", "usage_info": {}}],
)
def test_each_answer_is_recognised_by_one_api_of_mistral(answer: dict[str, Any]) -> None:
    names = [api.name for api in APIS if api.recognises(answer)]
    assert len(names) == 1
    assert names[0].startswith("mistral.")


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split_of_a_stream_says_the_same(places: list[int]) -> None:
    api = find_apis("/v1/conversations")[0]
    whole, split = api.stream_reader(hide_usage=False), api.stream_reader(hide_usage=False)
    assert feed(whole, [STREAM]) == feed(split, cut_at(STREAM, places)) == STREAM
    assert whole.report == split.report
