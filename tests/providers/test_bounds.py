"""The bound of a prompt holds for any model: text by its bytes, media by their largest documented size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from askii_middleware.providers.base import InvalidRequestError
from askii_middleware.providers.bounds import (
    ANTHROPIC_IMAGE_TOKENS,
    AUDIO_CHARS_PER_TOKEN,
    AUDIO_WINDOW_TOKENS,
    OPENAI_IMAGE_TOKENS,
    OPENAI_LOW_IMAGE_TOKENS,
    TEMPLATE_TOKENS,
    TOOLS_TOKENS,
)

from .support import parse

DATA = "A" * 40_000
URL = "data:image/png;base64," + DATA
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def extra(name: str, body: dict[str, Any]) -> tuple[int, bool]:
    """What the bound has beyond the bytes of the body, and whether more input is elsewhere."""
    request = parse(name, body)
    return request.input_bound - len(json.dumps(body).encode()) - TEMPLATE_TOKENS, request.remote_input


def chat(*parts: object, **members: Any) -> tuple[int, bool]:
    return extra("openai.chat", {"model": "m", "messages": [{"role": "user", "content": list(parts)}], **members})


def claude(*parts: object, **members: Any) -> tuple[int, bool]:
    return extra(
        "anthropic.messages", {"model": "m", "messages": [{"role": "user", "content": list(parts)}], **members}
    )


def responses(*items: object, **members: Any) -> tuple[int, bool]:
    return extra("openai.responses", {"model": "m", "input": list(items), **members})


def text(*, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": "hello"}


def test_text_is_bounded_by_its_bytes() -> None:
    assert chat(text(), {"type": "refusal", "refusal": "no"}) == (0, False)
    assert chat("odd") == (0, False)
    assert claude(text(), {"type": "thinking", "thinking": "hm", "signature": "x"}) == (0, False)
    assert responses({"role": "user", "content": "hi"}, {"type": "message", "content": [text(kind="input_text")]}) == (
        0,
        False,
    )
    for name, member in (
        ("openai.chat", "messages"),
        ("openai.responses", "input"),
        ("openai.completions", "prompt"),
        ("openai.embeddings", "input"),
    ):
        value: object = [{"role": "user", "content": "grüße"}] if name == "openai.chat" else "grüße"
        assert extra(name, {"model": "m", member: value}) == (0, False)


@pytest.mark.parametrize(
    ("part", "tokens", "payload"),
    [
        ({"type": "image_url", "image_url": {"url": URL}}, OPENAI_IMAGE_TOKENS, len(URL)),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, OPENAI_LOW_IMAGE_TOKENS, len(URL)),
        ({"type": "image_url", "image_url": {"url": "https://example.test/a.png"}}, OPENAI_IMAGE_TOKENS, 0),
        ({"type": "image_url", "image_url": "https://example.test/a.png"}, OPENAI_IMAGE_TOKENS, 0),
        ({"image_url": {"url": URL}}, OPENAI_IMAGE_TOKENS, len(URL)),
        (
            {"type": "input_audio", "input_audio": {"data": DATA, "format": "mp3"}},
            AUDIO_WINDOW_TOKENS + len(DATA) // AUDIO_CHARS_PER_TOKEN,
            len(DATA),
        ),
    ],
)
def test_media_of_a_chat_count_by_documented_size_instead_of_their_base64(
    part: object, tokens: int, payload: int
) -> None:
    assert chat(text(), part) == (tokens - payload, False)
    assert chat(part, part) == (2 * (tokens - payload), False)


def test_files_and_whatever_is_unknown_are_elsewhere() -> None:
    assert chat({"type": "file", "file": {"file_id": "file-1"}}) == (0, True)
    assert chat({"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}}) == (-len(DATA), True)
    assert chat({"type": "video_url", "video_url": {"url": "https://example.test"}}) == (0, True)
    assert chat({"type": "hologram"}) == (0, True)
    assert chat({"type": "input_audio", "input_audio": {"id": "a"}}) == (0, True)
    assert chat({"type": ["image_url"]}) == (0, True)
    spoken = {"model": "m", "messages": [{"role": "assistant", "content": None, "audio": {"id": "audio_1"}}]}
    assert extra("openai.chat", spoken) == (0, True)


def test_images_of_anthropic_count_by_documented_size() -> None:
    inline = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
    remote = {"type": "image", "source": {"type": "url", "url": "https://example.test/a.png"}}
    assert claude(inline) == (ANTHROPIC_IMAGE_TOKENS - len(DATA), False)
    assert claude(remote) == (ANTHROPIC_IMAGE_TOKENS, False)
    assert claude({"type": "tool_result", "tool_use_id": "t", "content": [text(), inline]}) == (
        ANTHROPIC_IMAGE_TOKENS - len(DATA),
        False,
    )


def test_documents_of_anthropic_are_elsewhere_unless_they_are_text() -> None:
    assert claude({"type": "document", "source": {"type": "text", "data": "hello"}}) == (0, False)
    assert claude({"type": "document", "source": {"type": "content", "content": [text()]}}) == (0, False)
    assert claude(
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": DATA}}
    ) == (-len(DATA), True)
    for source in ({"type": "url", "url": "https://example.test"}, {"type": "file", "file_id": "f"}):
        assert claude({"type": "document", "source": source}) == (0, True)
    assert claude({"type": "container_upload", "file_id": "f"}) == (0, True)


def test_what_a_model_wrote_into_a_tool_call_is_text_even_if_it_looks_like_an_image() -> None:
    fake = {"type": "image", "source": {"type": "base64", "data": DATA}}
    assert claude({"type": "tool_use", "id": "t", "name": "f", "input": {"content": [fake]}}) == (0, False)


def test_images_in_any_item_of_responses_count() -> None:
    picture = {"type": "input_image", "image_url": URL, "detail": "high"}
    one = (OPENAI_IMAGE_TOKENS - len(URL), False)
    assert responses({"role": "user", "content": [text(kind="input_text"), picture]}) == one
    assert responses({"type": "function_call_output", "call_id": "c", "output": [picture]}) == one
    assert (
        responses({"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}) == one
    )
    assert responses({"type": "image_generation_call", "result": DATA}) == (OPENAI_IMAGE_TOKENS - len(DATA), False)
    assert responses({"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}) == (
        OPENAI_IMAGE_TOKENS,
        False,
    )
    assert responses({"role": "user", "content": [{"type": "input_file", "file_data": DATA}]}) == (-len(DATA), True)
    assert responses({"type": "item_reference", "id": "msg_1"}) == (0, True)
    assert responses({"type": "reasoning", "encrypted_content": "x"}, {"type": "function_call", "arguments": "{}"}) == (
        0,
        False,
    )


@pytest.mark.parametrize(
    ("name", "member", "value"),
    [
        ("openai.responses", "previous_response_id", "resp_1"),
        ("openai.responses", "conversation", {"id": "conv_1"}),
        ("openai.responses", "prompt", {"id": "pmpt_1"}),
        ("openai.chat", "web_search_options", {}),
        ("openai.chat", "data_sources", [{}]),
        ("anthropic.messages", "mcp_servers", [{"url": "https://example.test"}]),
        ("anthropic.messages", "context_management", {"edits": []}),
    ],
)
def test_what_a_request_refers_to_is_elsewhere(name: str, member: str, value: object) -> None:
    body = {"model": "m", "input": "x"} if name == "openai.responses" else {"model": "m", "messages": []}
    assert extra(name, {**body, member: value}) == (0, True)
    assert extra(name, {**body, member: None}) == (0, False)


def test_tools_add_their_instructions_and_those_of_the_server_add_input_of_their_own() -> None:
    assert chat(text(), tools=[FUNCTION, FUNCTION]) == (TOOLS_TOKENS, False)
    assert chat(text(), tools=[]) == (0, False)
    assert chat(text(), tools=None) == (0, False)
    assert chat(text(), functions=[{"name": "f"}]) == (TOOLS_TOKENS, False)
    assert chat(text(), tools=[{"type": "web_search"}]) == (2 * TOOLS_TOKENS, True)
    assert responses(tools=[{"type": "function", "name": "f"}, {"type": "mcp"}]) == (2 * TOOLS_TOKENS, True)
    assert claude(text(), tools=[{"name": "f", "input_schema": {}}]) == (TOOLS_TOKENS, False)
    assert claude(text(), tools=[{"type": "bash_20250124", "name": "bash"}]) == (2 * TOOLS_TOKENS, False)
    assert claude(text(), tools=[{"type": "web_search_20250305", "name": "web_search"}]) == (2 * TOOLS_TOKENS, True)
    assert claude(text(), tools=["odd"]) == (2 * TOOLS_TOKENS, True)


def test_contents_of_another_type_are_walked_all_the_same() -> None:
    part = {"type": "image_url", "image_url": {"url": URL}}
    body = {"model": "m", "messages": [{"role": "user", "content": part}, "odd", {"role": "user", "content": 5}]}
    assert extra("openai.chat", body) == (OPENAI_IMAGE_TOKENS - len(URL), False)


def test_nesting_without_end_is_refused_or_counted_as_elsewhere() -> None:
    nested: object = "x"
    for _ in range(30):
        nested = [{"type": "tool_result", "content": nested}]
    assert extra("anthropic.messages", {"model": "m", "messages": [{"role": "user", "content": nested}]}) == (0, True)
    deep = b'{"model":"m","messages":[{"content":' + b"[" * 20_000 + b"]" * 20_000 + b"}]}"
    with pytest.raises((InvalidRequestError, RecursionError)):
        parse("openai.chat", deep)


def test_the_estimate_counts_text_at_four_bytes_a_token() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}]}
    request = parse("openai.chat", body)
    assert request.input_estimate == -(-len(json.dumps(body).encode()) // 4)
    assert not request.media


def test_the_estimate_counts_an_image_by_its_size_and_not_as_text() -> None:
    image = {"type": "image_url", "image_url": {"url": URL}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image]}]}
    request = parse("openai.chat", body)
    assert 1_000 <= request.input_estimate < 1_100
    assert request.media


def test_a_spoken_answer_is_held_at_the_price_of_audio() -> None:
    body = {"model": "m", "messages": [], "modalities": ["text", "audio"], "audio": {"voice": "alloy"}}
    assert parse("openai.chat", body).media
