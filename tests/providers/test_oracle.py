"""Another reader of the same answers: `genai-prices` extracts usage from them, too. Where it reads an answer rightly we
say the same, and where not the reason stands here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from genai_prices.data import providers as catalogue

from askii_middleware.providers.fields import decode_object
from askii_middleware.providers.sse import Framer
from askii_middleware.usage import Report
from tests.support.mutations import event_stream_frames
from tests.support.recordings import Recording, recordings

from .support import NO_CORPUS
from .test_any_split import apis_of, read, readers

RECORDINGS = recordings()
pytestmark = pytest.mark.skipif(not RECORDINGS, reason=NO_CORPUS)

FLAVORS = {
    "anthropic/json": ("anthropic", "default"),
    "anthropic/stream": ("anthropic", "default"),
    "azure_ai_inference": ("azure", "chat"),
    "azure_openai/chat": ("azure", "chat"),
    "azure_openai/embeddings": ("azure", "embeddings"),
    "azure_openai/responses": ("azure", "responses"),
    "bedrock/converse": ("aws", "default"),
    "bedrock/invoke_claude": ("aws", "anthropic"),
    "cohere/v2_chat": ("cohere", "default"),
    "deepseek": ("deepseek", "chat"),
    "gateway": ("anthropic", "default"),
    "gemini/json": ("google", "default"),
    "gemini/stream": ("google", "default"),
    "gemini/openai_compat": ("google", "chat"),
    "groq": ("groq", "default"),
    "mistral": ("mistral", "default"),
    "openai_batches": ("openai", "responses"),
    "openai_chat": ("openai", "chat"),
    "openai_completions": ("openai", "chat"),
    "openai_embeddings": ("openai", "embeddings"),
    "openai_images": ("openai", "images"),
    "openai_responses": ("openai", "responses"),
    "openrouter": ("openrouter", "chat"),
    "perplexity": ("perplexity", "default"),
    "vertex": ("google", "default"),
    "vllm": ("openai", "chat"),
    "xai": ("x-ai", "responses"),
}
"""By the beginning of a recording's name: the catalogue's provider and the flavour of its extractor. All others it has
no extractor for.
"""
SILENT = {
    "openai_chat/stream_no_usage.sse",
    "openai_responses/json_background_queued_no_usage.json",
    "openai_responses/input_tokens_count.json",
    "openai_responses/error_insufficient_quota.json",
    "openrouter/error_429.json",
}
"""Answers without usage: both find none."""
DIFFERENT: dict[str, tuple[str, dict[str, int]]] = {
    "mistral/chat_audio_additive.json": (
        "the audio comes on top of prompt_tokens, as total_tokens shows; the oracle leaves it out",
        {"input_tokens": 384, "input_audio_tokens": 375},
    ),
    "azure_ai_inference/grok_cached_gt_prompt.json": (
        "163 cached tokens of a prompt of 7 cannot be: no more than the prompt is cached",
        {"cache_read_tokens": 7},
    ),
    "gemini/openai_compat_total_only.json": (
        "completion_tokens leaves the thoughts out, which are billed: total_tokens has them",
        {"output_tokens": 74},
    ),
    "openrouter/stream_error_with_usage.sse": (
        "11 reasoning tokens of 10 generated cannot be",
        {"output_reasoning_tokens": 10},
    ),
}
"""Where we say something else, why, and what."""
ORACLES = {provider.id: provider for provider in catalogue}


def flavor(recording: Recording) -> tuple[str, str] | None:
    return next((found for start, found in FLAVORS.items() if recording.name.startswith(start)), None)


def answers(recording: Recording) -> Iterator[Any]:
    """The decoded answer, or the events of a stream, and what these wrap."""
    texts = [recording.text]
    if recording.name.endswith(".sse"):
        framer = Framer()
        texts = [block.data for block in framer.push(recording.text) + framer.finish() if block.data is not None]
    elif recording.name.endswith(".bin") and recording.streamed:
        texts = [payload for _, payload in event_stream_frames(recording.text)]
    for text in texts:
        answer = decode_object(text)
        if answer is not None:
            yield answer
            yield from (
                answer[name] for name in ("response", "message", "x_groq") if isinstance(answer.get(name), dict)
            )


def merged(recording: Recording) -> list[Any]:
    """Anthropic's streams tell usage in two events, the later one cumulative: the oracle is given the two in one."""
    found = list(answers(recording))
    if recording.name.startswith("anthropic/stream"):
        usage: dict[str, Any] = {}
        for answer in found:
            usage |= {name: value for name, value in (answer.get("usage") or {}).items() if value is not None}
        return [{"usage": usage}]
    return found


def oracle(recording: Recording) -> dict[str, int] | None:
    """What the oracle reads: of a stream, the last event that it can read."""
    known = flavor(recording)
    assert known is not None
    found = None
    for answer in merged(recording):
        try:
            _, found = ORACLES[known[0]].extract_usage(answer, api_flavor=known[1])
        except ValueError:  # how it says that there is no usage in it
            continue
    return None if found is None else {name: int(value or 0) for name, value in found.__dict__.items()}


def ours(report: Report) -> dict[str, int]:
    usage = report.usage
    assert usage is not None
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h,
        "output_reasoning_tokens": usage.reasoning,
        "input_audio_tokens": usage.audio_input_tokens,
        "output_audio_tokens": usage.output_audio,
        "input_image_tokens": usage.input_image + usage.cache_read_image,
        "output_image_tokens": usage.output_image,
        "web_searches": usage.web_search,
    }


COMPARED = [(r, api) for r in RECORDINGS if not r.is_socket and flavor(r) for api in apis_of(r)[:1]]


@pytest.mark.parametrize(("recording", "api"), COMPARED, ids=lambda p: getattr(p, "name", None))
def test_the_oracle_says_the_same_where_it_is_right(recording: Recording, api: Any) -> None:
    (make,) = readers(api, recording)
    report = read(make(), [recording.text])
    told = oracle(recording)
    if recording.name in SILENT:
        assert told is None
        assert report.usage is None
        return
    assert told is not None
    mine = ours(report)
    theirs = {name: told.get(name, mine[name] if name == "output_tokens" else 0) for name in mine}
    theirs |= DIFFERENT.get(recording.name, ("", {}))[1]
    assert mine == theirs


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_oracle_still_differs_where_we_say_so(name: str) -> None:
    (recording,) = [r for r in RECORDINGS if r.name == name]
    told = oracle(recording)
    assert told is not None
    reason, right = DIFFERENT[name]
    assert reason
    assert all(told.get(bucket, 0) != value for bucket, value in right.items()), json.dumps(told)


def test_the_oracle_is_asked_of_half_of_all_answers_at_least() -> None:
    asked = [r for r in RECORDINGS if flavor(r) and not r.is_socket]
    assert len(asked) * 2 > len(RECORDINGS)
    for start in FLAVORS:
        assert any(r.name.startswith(start) for r in asked), start
