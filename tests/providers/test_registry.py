"""APIs are found by the end of a path under any mount prefix, and by what the body has."""

from __future__ import annotations

from pathlib import Path

import pytest

from askii_middleware.providers import APIS, choose_api, find_apis

from .support import raw_fields


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/chat/completions", ["openai.chat", "openai.completions"]),
        ("/chat/completions", ["openai.chat", "openai.completions"]),
        (
            "/openai/deployments/my-gpt/chat/completions",
            ["azure.chat", "azure.completions", "openai.chat", "openai.completions"],
        ),
        ("/v1beta/openai/chat/completions/", ["openai.chat", "openai.completions"]),
        ("/v1/completions", ["openai.completions"]),
        ("/v1/fim/completions", ["mistral.fim", "openai.completions"]),
        ("/api/v1/responses", ["openai.responses"]),
        ("/v1/responses/compact", ["openai.responses.compact"]),
        ("/v1/embeddings", ["openai.embeddings"]),
        ("/anthropic/v1/messages", ["anthropic.messages"]),
        ("/v1/messages/batches", ["anthropic.batches", "openai.batches"]),
        ("/model/us.anthropic.claude-sonnet-4-5-20250929-v1:0/converse", ["bedrock.converse"]),
        ("/v1beta/models/gemini-2.5-flash:generateContent", ["gemini.generate"]),
        ("/v1/xchat/completions", ["openai.completions"]),
    ],
)
def test_a_path_is_known_by_its_end(path: str, names: list[str]) -> None:
    assert [api.name for api in find_apis(path)] == names


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1/models", "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v1/responses/resp_1"),
        *("/v1/chat/completions/x", "/v1/mycompletions", "/v1/compact", "/xresponses"),
        *("/v1/models/gemini-2.5-flash:countTokens", "/V1/CHAT/COMPLETIONS"),
    ],
)
def test_other_paths_belong_to_nobody(path: str) -> None:
    assert find_apis(path) == ()


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", {"messages": []}, "openai.chat"),
        ("/v1/chat/completions", {"prompt": "x"}, "openai.completions"),
        ("/v1/chat/completions", {"messages": [], "prompt": "x"}, "openai.chat"),
        ("/v1/chat/completions", {"text": "x"}, None),
        ("/v1/completions", {"messages": []}, None),
        ("/v1/responses", {"input": "x"}, "openai.responses"),
        ("/v1/responses", {"prompt": {"id": "p"}}, "openai.responses"),
        ("/v1/responses", {"answer": "survey"}, None),
        ("/v1/responses/compact", {"previous_response_id": "r"}, "openai.responses.compact"),
        ("/v1/embeddings", {"input": "x"}, "openai.embeddings"),
        ("/v1/messages", {"messages": []}, "anthropic.messages"),
        ("/threads/t/messages", {"role": "user", "content": "x"}, None),
    ],
)
def test_the_body_decides_among_a_paths_apis(path: str, body: dict[str, object], name: str | None) -> None:
    found = choose_api(find_apis(path), raw_fields(body))
    assert (found and found.name) == name


def test_each_api_has_a_name_of_its_own_and_suffixes_that_are_whole_segments() -> None:
    assert len({api.name for api in APIS}) == len(APIS)
    assert all(suffix.startswith("/") and not suffix.endswith("/") for api in APIS for suffix in api.suffixes)


def test_the_documentation_names_every_api() -> None:
    text = (Path(__file__).parents[2] / "docs" / "providers.md").read_text("utf-8")
    assert [api.name for api in APIS if f"`{api.name}`" not in text] == []
