"""Azure's deployments: OpenAI's formats under paths that name the deployment."""

from __future__ import annotations

import json
from typing import Any

import pytest

from askii_middleware.providers import choose_api, find_apis, find_template
from askii_middleware.providers.base import Api, CallRequest, Rewrite
from askii_middleware.providers.openai_azure import AZURE_APIS, AzureChatApi
from askii_middleware.providers.paths import Target
from askii_middleware.usage import TokenUsage

from .support import CORPUS, NO_CORPUS, cut, feed, raw_fields

DEPLOYED = "/openai/deployments/my-gpt"
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": []},
    "/completions": {"prompt": "x"},
    "/embeddings": {"input": "x"},
    "/images/generations": {"prompt": "x"},
    "/images/edits": {"prompt": "x", "image": {"file_bytes": 1}},
    "/audio/speech": {"input": "x"},
    "/audio/transcriptions": {"file": {"file_bytes": 1}},
    "/audio/translations": {"file": {"file_bytes": 1}},
}


def chosen(path: str, body: dict[str, Any]) -> Api:
    api = choose_api(find_apis(path), raw_fields(body))
    assert api is not None
    return api


@pytest.mark.parametrize("end", BODIES)
def test_a_deployments_path_names_the_model(end: str) -> None:
    path = DEPLOYED + end
    api = chosen(path, BODIES[end])
    assert api in AZURE_APIS
    assert (api.provider, api.names_deployment, api.names_model_in_path) == ("azure", True, True)
    template = find_template(api, path)
    target = Target(path, path.encode())
    assert template.name(target) == "my-gpt"
    assert template.renamed(target, "a/b") == Target(
        path.replace("my-gpt", "a/b"), path.replace("my-gpt", "a%2Fb").encode()
    )


@pytest.mark.parametrize("end", BODIES)
def test_each_deployments_api_is_of_the_family_of_the_one_without(end: str) -> None:
    plain = chosen("/openai/v1" + end, BODIES[end])
    deployed = chosen(DEPLOYED + end, BODIES[end])
    assert (plain.family, plain.kind) == (deployed.family, deployed.kind)
    assert plain.provider == "openai"
    assert not plain.names_model_in_path


@pytest.mark.parametrize("path", ["/models/chat/completions", "/openai/v1/chat/completions"])
def test_paths_without_a_deployment_are_openais(path: str) -> None:
    assert chosen(path, {"messages": []}).name == "openai.chat"
    assert chosen("/openai/v1/responses", {"input": "x"}).name == "openai.responses"


def rewritten(body: bytes, change: Rewrite) -> bytes:
    api = AzureChatApi()
    return api.rewrite(api.parse(raw_fields(body), len(body)), change)


def test_a_model_is_written_only_where_the_body_has_one() -> None:
    change = Rewrite(model="gpt-4o-mini")
    assert rewritten(b'{"messages":[],"seed":1.0e2}', change) == b'{"messages":[],"seed":1.0e2}'
    assert rewritten(b'{"model":null,"messages":[]}', change) == b'{"model":null,"messages":[]}'
    assert rewritten(b'{"model":"my-gpt","messages":[]}', change) == b'{"model":"gpt-4o-mini","messages":[]}'


def test_limits_and_usage_are_written_as_for_openai() -> None:
    body = b'{"messages":[],"stream":true,"max_tokens":9}'
    out = rewritten(body, Rewrite(model="o4-mini", output_limit=5, inject_usage=True))
    assert json.loads(out) == {
        "messages": [],
        "stream": True,
        "max_completion_tokens": 5,
        "stream_options": {"include_usage": True},
    }


def request(**body: Any) -> CallRequest:
    return AzureChatApi().parse(raw_fields({"messages": [], **body}), 100)


def test_usage_is_not_asked_for_together_with_data_sources() -> None:
    api = AzureChatApi()
    assert api.injects_usage(request(stream=True), "gpt-4o")
    assert not api.injects_usage(request(stream=True, data_sources=[{"type": "azure_search"}]), "gpt-4o")


@pytest.mark.parametrize(
    ("query", "takes"),
    [
        (b"api-version=2024-10-21", True),
        (b"api-version=2024-09-01-preview", True),
        (b"x=1&api-version=2025-04-01-preview", True),
        (b"api-version=2024-08-01-preview", False),
        (b"api-version=2023-05-15", False),
        (b"api-version=2025-01-01&api-version=2023-05-15", False),
        (b"api-version=preview", True),
        (b"api-version=v1", True),
        (b"api-version=", True),
        (b"", True),
        (b"\xff%zz", True),
    ],
)
def test_old_versions_are_not_asked_for_usage(query: bytes, takes: bool) -> None:
    assert AzureChatApi().query_takes_usage(query) is takes


@pytest.mark.parametrize(
    ("file", "end", "usage", "model"),
    [
        ("chat_deployment_path.json", "/chat/completions", TokenUsage(input=15, output=24), "gpt-35-turbo"),
        ("embeddings_deployment_path.json", "/embeddings", TokenUsage(input=8), "text-embedding-3-large"),
    ],
)
def test_recorded_answers_of_deployments_yield_their_usage(file: str, end: str, usage: TokenUsage, model: str) -> None:
    path = CORPUS / "azure_openai" / file
    if not path.exists():
        pytest.skip(NO_CORPUS)
    body = path.read_bytes()
    api = chosen(DEPLOYED + end, BODIES[end])
    for size in (1, 7, 64, 1000, len(body)):
        reader = api.body_reader()
        assert feed(reader, cut(body, size)) == body
        assert reader.report.usage == usage
        assert reader.report.model == model


def test_the_recorded_answer_of_model_inference_is_clamped() -> None:
    path = CORPUS / "azure_ai_inference" / "grok_cached_gt_prompt.json"
    if not path.exists():
        pytest.skip(NO_CORPUS)
    usage = chosen("/models/chat/completions", {"messages": []}).read_body(path.read_bytes()).usage
    assert usage == TokenUsage(cache_read=7, output=1, anomalous=True)


def test_the_sdk_names_the_deployment_in_path_and_body() -> None:
    openai = pytest.importorskip("openai")
    httpx2 = pytest.importorskip("httpx2")
    seen: list[Any] = []

    def answer(call: Any) -> Any:
        seen.append(call)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return httpx2.Response(200, json={"id": "c", "object": "chat.completion", "choices": [], "usage": usage})

    with openai.AzureOpenAI(
        azure_endpoint="http://local",
        api_key="k",
        api_version="2024-10-21",
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    ) as client:
        client.chat.completions.create(model="my-gpt", messages=[{"role": "user", "content": "x"}])
    url = seen[0].url
    api = chosen(url.path, json.loads(seen[0].content))
    assert api.name == "azure.chat"
    assert find_template(api, url.path).name(Target(url.path, url.raw_path.partition(b"?")[0])) == "my-gpt"
    assert json.loads(seen[0].content)["model"] == "my-gpt"
    assert AzureChatApi().query_takes_usage(url.query)
