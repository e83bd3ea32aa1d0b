"""Which models and requests show all the output that they bill, and what an API's stream looks like when it is cut."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from askii_middleware.providers import APIS, find_apis
from askii_middleware.providers.base import Refusal
from askii_middleware.providers.gemini import StreamGenerateContentApi
from askii_middleware.providers.visible import claude_shows, shows_text
from askii_middleware.usage import Report

REFUSAL = Refusal(status=402, code="budget_exceeded", message="spent", call_id="call-1")


@pytest.mark.parametrize(
    "model",
    [
        *("gpt-4o", "GPT-4o-mini-2024-07-18", "openai/gpt-4.1", "gpt-3.5-turbo", "chatgpt-4o-latest", "gpt-5-chat"),
        *("ft:gpt-4o-mini", "gpt-oss-120b", "gemini-2.0-flash", "models/gemini-1.5-pro", "deepseek-reasoner"),
        *("meta-llama/llama-3.1-8b-instruct", "us.meta.llama3-1-8b-instruct-v1:0", "us.amazon.nova-pro-v1:0"),
        *("Qwen/Qwen3-32B", "mistral-large-2411", "kimi-k2-0905", "vllm/whatever", "ollama/mine"),
    ],
)
def test_models_that_show_all_they_bill(model: str) -> None:
    assert shows_text(model)


@pytest.mark.parametrize(
    "model",
    [
        *("o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5-mini", "gpt-5.1-chat", "gpt-6-sol", "gpt-7", "codex-mini"),
        *("grok-4", "grok-3", "gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-pro-preview", "magistral-medium"),
        *("gemini-2.0-flash-thinking-exp", "gpt-4o-audio-preview", "gpt-4o-search-preview", "my-deployment", ""),
        *("claude-opus-4-8", "amazon.nova-2-lite-v1:0", "openai/gpt-4o:online"),
    ],
)
def test_models_that_may_bill_what_nobody_sees(model: str) -> None:
    assert not shows_text(model)


@pytest.mark.parametrize(
    ("model", "thinking", "shows"),
    [
        ("claude-sonnet-4-5", None, True),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", None, True),
        ("claude-sonnet-4-5", {"type": "enabled", "budget_tokens": 1024}, False),
        ("claude-opus-4-7", {"type": "adaptive"}, False),
        ("claude-opus-4-7", {"type": "disabled"}, True),
        ("anthropic/claude-3.7-sonnet:thinking", None, False),
        ("anthropic/claude-sonnet-4:online", None, False),
        ("claude-fable-5", None, False),
        ("claude-fable-5", {"type": "disabled"}, True),
        ("gpt-4o", {"type": "disabled"}, False),
    ],
)
def test_claude_shows_all_where_it_does_not_think(model: str, thinking: Any, shows: bool) -> None:
    fields = {} if thinking is None else {"thinking": msgspec.Raw(json.dumps(thinking).encode())}
    assert claude_shows(model, fields) is shows


def request_shows(path: str, body: dict[str, Any], model: str) -> bool:
    raw = json.dumps(body).encode()
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    api = next(api for api in find_apis(path) if api.owns(fields))
    return api.shows_output(api.parse(fields, len(raw)), model)


@pytest.mark.parametrize(
    ("members", "shows"),
    [
        ({}, True),
        ({"tools": [{"type": "function", "name": "f"}]}, True),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"background": True}, False),
        ({"prompt": {"id": "p"}}, False),
        ({"reasoning": {"effort": "low"}}, False),
    ],
)
def test_a_response_shows_all_unless_the_provider_runs_tools_or_goes_on_behind_it(
    members: dict[str, Any], shows: bool
) -> None:
    assert request_shows("/v1/responses", {"model": "gpt-4o", "input": "hi", **members}, "gpt-4o") is shows


@pytest.mark.parametrize(
    ("members", "model", "shows"),
    [
        ({}, "gemini-2.0-flash", True),
        ({}, "gemini-2.5-flash", False),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}}, "gemini-2.5-flash", True),
        ({"generation_config": {"thinking_config": {"thinking_budget": 0}}}, "gemini-2.5-flash-lite", True),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}}, "gemini-2.5-pro", False),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 9}}}, "gemini-2.5-flash", False),
        ({"generationConfig": {"responseModalities": ["IMAGE"]}}, "gemini-2.0-flash", False),
        ({"tools": [{"functionDeclarations": []}]}, "gemini-2.0-flash", True),
        ({"tools": [{"codeExecution": {}}]}, "gemini-2.0-flash", False),
    ],
)
def test_gemini_shows_all_where_it_does_not_think(members: dict[str, Any], model: str, shows: bool) -> None:
    path = f"/v1beta/models/{model}:streamGenerateContent"
    assert request_shows(path, {"contents": [], **members}, model) is shows


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
def test_every_api_has_bytes_that_end_a_stream_even_before_it_began(api: Any) -> None:
    end = api.cut(Report(), REFUSAL)
    assert end
    assert api.stream_reader(hide_usage=False).feed(end) == end


def test_a_tools_name_and_frame_are_counted_the_same_on_every_way() -> None:
    function = {"name": "weather", "arguments": ""}
    choice = {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": function}]}, "finish_reason": None}
    chunk = json.dumps({"model": "m", "choices": [choice]}).encode()
    api = find_apis("/v1/chat/completions")[0]
    reader = api.stream_reader(hide_usage=False)
    for _ in range(2):  # the general way, then the fast one
        reader.feed(b"data: " + chunk + b"\n\n")
    assert reader.report.frame_tokens == 2 * (32 + len("weather"))


def test_text_is_handed_over_on_every_way_where_it_is_wanted() -> None:
    for path, data in (
        ("/v1/chat/completions", {"model": "m", "choices": [{"index": 0, "delta": {"content": "hé"}}]}),
        ("/v1/responses", {"type": "response.output_text.delta", "delta": "hé"}),
    ):
        event = b"data: " + json.dumps(data).encode() + b"\n\n"
        reader = find_apis(path)[0].stream_reader(hide_usage=False)
        reader.report.text = []
        for split in (len(event), len(event), 9):
            reader.feed(event[:split])
            reader.feed(event[split:])
        assert reader.report.text == ["hé"] * 3
        assert reader.report.visible_bytes == 9


@pytest.mark.parametrize(
    ("model", "shows"), [("gemini-2.5-flash", True), ("gemini-2.5-flash-image", False), ("gemini-2.5-flash-tts", False)]
)
def test_gemini_without_thinking_shows_its_text_and_nothing_else(model: str, shows: bool) -> None:
    config = {"thinkingConfig": {"thinkingBudget": 0}}
    body = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": config}
    fields = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}
    api = StreamGenerateContentApi()
    assert api.shows_output(api.parse(fields, 100), model) is shows
