"""The official SDKs, each as its users call it, against a provider that gives recorded answers.

Every call is one function from a base URL to plain values (dumps of what the SDK gave out), so that the same call can
be made of the provider itself and of what stands in front of it. SDKs are imported when they are used, for some take
seconds; a test whose SDK is missing is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from .recordings import MESSAGES

Run = Callable[[str], Any]
TEXT = MESSAGES[0]["content"]
AUDIO = ("a.mp3", b"ID3" + bytes(range(256)))
CLAUDE = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
TURNS = [{"role": "user", "content": [{"text": TEXT}]}]
LIMIT = 4000
"""Tokens of output, where a call sets a limit: enough to need room in a budget."""


class Call(NamedTuple):
    """One call of an SDK. `recording` is the answer it gets, by its name in the manifest."""

    sdk: str
    name: str
    recording: str
    run: Run

    @property
    def id(self) -> str:
        return f"{self.sdk} {self.name}"


def dump(value: Any) -> Any:
    """What an SDK gave out, as plain values."""
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    if hasattr(value, "model_dump"):
        return type(value).__name__, value.model_dump(warnings=False)
    return value


# OpenAI and Groq -----------------------------------------------------------------------------------------------------


def openai(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("openai")

        with sdk.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return dump(call(client))

    return run


def azure(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("openai")

        with sdk.AzureOpenAI(azure_endpoint=url, api_key="none", api_version="2024-10-21") as client:
            return dump(call(client))

    return run


def groq(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("groq")

        with sdk.Groq(base_url=url, api_key="none") as client:
            return dump(call(client))

    return run


# Anthropic -----------------------------------------------------------------------------------------------------------


def anthropic(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("anthropic")

        with sdk.Anthropic(base_url=url, api_key="none") as client:
            return dump(call(client))

    return run


# Google --------------------------------------------------------------------------------------------------------------


def genai(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("google.genai")

        with closing(sdk.Client(api_key="none", http_options={"base_url": url})) as client:
            said = dump(call(client))
        return without(said, "headers", "sdk_http_response")

    return run


# Mistral, Cohere, Ollama ---------------------------------------------------------------------------------------------


def mistral(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("mistralai.client")

        with sdk.Mistral(api_key="none", server_url=url) as client:
            return dump(call(client))

    return run


def cohere(call: Callable[[Any], Any], *, version: int = 2) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("cohere")

        with (sdk.ClientV2 if version == 2 else sdk.Client)(api_key="none", base_url=url) as client:
            return dump(call(client))

    return run


def ollama(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        sdk = pytest.importorskip("ollama")

        with sdk.Client(host=url) as client:
            return dump(call(client))

    return run


# Amazon --------------------------------------------------------------------------------------------------------------


def bedrock(call: Callable[[Any], Any]) -> Run:
    def run(url: str) -> Any:
        boto3 = pytest.importorskip("boto3")

        keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
        with closing(boto3.client("bedrock-runtime", endpoint_url=url, **keys)) as client:
            said = call(client)
            for name, value in said.items():
                if name in ("stream", "body"):
                    said[name] = value.read() if hasattr(value, "read") else list(value)
        # Headers and the date: of each answer its own.
        return {name: value for name, value in said.items() if name != "ResponseMetadata"}

    return run


def without(value: Any, *names: str) -> Any:
    """The value without members of these names, at any depth."""
    if isinstance(value, dict):
        return {name: without(member, *names) for name, member in value.items() if name not in names}
    if isinstance(value, list | tuple):
        return [without(item, *names) for item in value]
    return value


USAGE = {"include_usage": True}
CALLS = [
    Call(
        "openai",
        "chat",
        "openai_chat/chat_cached_gzip.bin",
        openai(
            lambda c: c.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_completion_tokens=LIMIT)
        ),
    ),
    Call(
        "openai",
        "chat stream",
        "openai_chat/stream_tools_include_usage.sse",
        openai(
            lambda c: list(
                c.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, stream_options=USAGE)
            )
        ),
    ),
    Call(
        "openai",
        "chat stream without usage",
        "openai_chat/stream_no_usage.sse",
        openai(lambda c: list(c.chat.completions.create(model="gpt-4", messages=MESSAGES, stream=True))),
    ),
    Call(
        "openai",
        "completion",
        "openai_completions/completion.json",
        openai(lambda c: c.completions.create(model="davinci-002", prompt=TEXT, max_tokens=LIMIT)),
    ),
    Call(
        "openai",
        "response",
        "openai_responses/json_reasoning.json",
        openai(lambda c: c.responses.create(model="gpt-5-nano", input=TEXT)),
    ),
    Call(
        "openai",
        "response stream",
        "openai_responses/stream_reasoning_priority.sse",
        openai(lambda c: list(c.responses.create(model="gpt-5", input=TEXT, stream=True))),
    ),
    Call(
        "openai",
        "embeddings",
        "openai_embeddings/embedding_b64.json",
        openai(lambda c: c.embeddings.create(model="text-embedding-3-small", input=TEXT)),
    ),
    Call(
        "openai",
        "image",
        "openai_images/generation_gpt_image_1.json",
        openai(lambda c: c.images.generate(model="gpt-image-1", prompt=TEXT)),
    ),
    Call(
        "openai",
        "transcription",
        "openai_audio/transcribe_tokens_json.json",
        openai(lambda c: c.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO)),
    ),
    Call(
        "openai",
        "transcription stream",
        "openai_audio/transcribe_stream.sse",
        openai(lambda c: list(c.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO, stream=True))),
    ),
    Call(
        "openai azure",
        "chat",
        "azure_openai/chat_deployment_path.json",
        azure(lambda c: c.chat.completions.create(model="my-gpt", messages=MESSAGES, max_tokens=LIMIT)),
    ),
    Call(
        "anthropic",
        "message",
        "anthropic/json_web_search.json",
        anthropic(lambda c: c.messages.create(model="claude-haiku-4-5", max_tokens=LIMIT, messages=MESSAGES)),
    ),
    Call(
        "anthropic",
        "message stream",
        "anthropic/stream_web_search.sse",
        anthropic(
            lambda c: list(
                c.messages.create(model="claude-haiku-4-5", max_tokens=LIMIT, messages=MESSAGES, stream=True)
            )
        ),
    ),
    Call(
        "google-genai",
        "content",
        "gemini/json_thinking.json",
        genai(lambda c: c.models.generate_content(model="gemini-2.5-flash", contents=TEXT)),
    ),
    Call(
        "google-genai",
        "content stream",
        "gemini/stream_file_search_not_monotone.sse",
        genai(lambda c: list(c.models.generate_content_stream(model="gemini-2.5-flash", contents=TEXT))),
    ),
    Call(
        "google-genai",
        "embeddings",
        "gemini/embed_001_no_usage.json",
        genai(lambda c: c.models.embed_content(model="gemini-embedding-001", contents=[TEXT, TEXT])),
    ),
    Call(
        "google-genai interactions",
        "create",
        "gemini_interactions/json_google_search.json",
        genai(lambda c: c.interactions.create(model="gemini-2.5-flash", input=TEXT)),
    ),
    Call(
        "mistralai",
        "chat",
        "mistral/chat_audio_additive.json",
        mistral(lambda c: c.chat.complete(model="voxtral-small-latest", messages=MESSAGES, max_tokens=LIMIT)),
    ),
    Call(
        "mistralai",
        "chat stream",
        "vllm/stream_v0_24.sse",
        mistral(lambda c: list(c.chat.stream(model="mistral-small-latest", messages=MESSAGES, max_tokens=LIMIT))),
    ),
    Call(
        "mistralai",
        "embeddings",
        "mistral/embedding.json",
        mistral(lambda c: c.embeddings.create(model="mistral-embed", inputs=[TEXT])),
    ),
    Call(
        "cohere",
        "chat",
        "cohere/v2_chat.json",
        cohere(lambda c: c.chat(model="command-a-03-2025", messages=MESSAGES, max_tokens=LIMIT)),
    ),
    Call(
        "cohere",
        "chat stream v1",
        "cohere/v1_chat_stream_json.ndjson",
        cohere(lambda c: list(c.chat_stream(model="command-r-08-2024", message=TEXT, max_tokens=LIMIT)), version=1),
    ),
    Call(
        "cohere",
        "rerank",
        "cohere/v2_rerank.json",
        cohere(lambda c: c.rerank(model="rerank-english-v3.0", query=TEXT, documents=["a", "b", "c", "d", "e"])),
    ),
    Call("ollama", "chat", "ollama/chat.json", ollama(lambda c: c.chat(model="llama3", messages=MESSAGES))),
    Call(
        "ollama",
        "chat stream",
        "ollama/chat_stream.ndjson",
        ollama(lambda c: list(c.chat(model="llama3", messages=MESSAGES, stream=True))),
    ),
    Call(
        "ollama",
        "generate stream",
        "ollama/generate_stream_prompt_eval_count_absent.ndjson",
        ollama(lambda c: list(c.generate(model="llama3", prompt=TEXT, stream=True))),
    ),
    Call(
        "groq",
        "chat",
        "deepseek/chat_cache_hit.json",
        groq(lambda c: c.chat.completions.create(model="llama-3.1-8b-instant", messages=MESSAGES, max_tokens=LIMIT)),
    ),
    Call(
        "groq",
        "chat stream",
        "groq/stream_x_groq_only.sse",
        groq(lambda c: list(c.chat.completions.create(model="llama3-8b-8192", messages=MESSAGES, stream=True))),
    ),
    Call(
        "boto3",
        "converse",
        "bedrock/converse_cache_write.json",
        bedrock(lambda c: c.converse(modelId=CLAUDE, messages=TURNS, inferenceConfig={"maxTokens": LIMIT})),
    ),
    Call(
        "boto3",
        "converse stream",
        "bedrock/converse_stream_claude.bin",
        bedrock(lambda c: c.converse_stream(modelId=CLAUDE, messages=TURNS)),
    ),
    Call(
        "boto3",
        "invoke",
        "bedrock/invoke_cohere_headers_only.json",
        bedrock(lambda c: c.invoke_model(modelId="cohere.command-r-v1:0", body=b'{"message":"hi"}')),
    ),
    Call(
        "boto3",
        "invoke stream",
        "bedrock/invoke_stream_titan.bin",
        bedrock(
            lambda c: c.invoke_model_with_response_stream(
                modelId="amazon.titan-text-lite-v1", body=b'{"inputText":"hi"}'
            )
        ),
    ),
]
"""The manifest has no stream of Mistral's own; vLLM's has the same shape."""
