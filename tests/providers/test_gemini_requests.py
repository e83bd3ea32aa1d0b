"""What a Gemini request says about its own size, and what may be changed in it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from askii_middleware.providers import find_apis, find_template
from askii_middleware.providers.base import InvalidRequestError, Rewrite
from askii_middleware.providers.bounds import TEMPLATE_TOKENS, TOOLS_TOKENS
from askii_middleware.providers.gemini_bounds import IMAGE_TOKENS
from askii_middleware.providers.paths import Target

from .gemini_support import GENERATE, HELLO, STREAM, parsed

VERTEX = "/v1/projects/p/locations/us-central1"


@pytest.mark.parametrize(
    ("path", "name", "model"),
    [
        (GENERATE, "gemini.generate", "gemini-2.5-flash"),
        (STREAM, "gemini.stream_generate", "gemini-2.5-flash"),
        ("/v1beta/tunedModels/my-tune-1:generateContent", "gemini.tuned", "my-tune-1"),
        (
            f"/x{VERTEX}/publishers/google/models/gemini-3-pro-preview:streamGenerateContent",
            "gemini.stream_generate",
            0,
        ),
        (f"{VERTEX}/endpoints/1234567890:generateContent", "gemini.tuned", "1234567890"),
        (f"{VERTEX}/endpoints/1234567890:streamGenerateContent", "gemini.stream_tuned", "1234567890"),
    ],
)
def test_the_path_tells_the_api_the_model_and_whether_it_streams(path: str, name: str, model: str | int) -> None:
    api, request = parsed(path, HELLO)
    assert api.name == name
    assert request.stream == ("stream" in name)
    assert request.model is None
    assert find_template(api, path).name(Target(path, path.encode())) == (model or "gemini-3-pro-preview")
    assert api.names_deployment == ("tuned" in name)
    assert api.accepts(request, "gemini-2.5-flash-lite") != api.names_deployment


def test_counting_tokens_is_free_and_claude_on_vertex_is_not_ours() -> None:
    assert find_apis("/v1beta/models/gemini-2.5-flash:countTokens") == ()
    claude = find_apis(f"{VERTEX}/publishers/anthropic/models/claude-sonnet-4:rawPredict")
    assert all(api.family != "gemini" for api in claude)


@pytest.mark.parametrize(
    ("body", "limit", "choices"),
    [
        ({}, None, 1),
        ({"generationConfig": None}, None, 1),
        ({"generationConfig": {"maxOutputTokens": 77}}, 77, 1),
        ({"generationConfig": {"maxOutputTokens": None, "candidateCount": 3}}, None, 3),
        ({"generation_config": {"max_output_tokens": 77, "candidate_count": 2}}, 77, 2),
        ({"generationConfig": {"max_output_tokens": 5, "maxOutputTokens": 9}}, 9, 1),
        ({"generationConfig": {"maxOutputTokens": 5}, "generation_config": {"max_output_tokens": 9}}, 9, 1),
        ({"generationConfig": {"maxOutputTokens": 5}, "generation_config": {"candidateCount": 4}}, None, 4),
        ({"generationConfig": {"maxOutputTokens": 0}}, None, 1),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 500}, "maxOutputTokens": 9}}, 9, 1),
    ],
)
def test_limits_are_read_in_both_spellings_and_the_larger_bounds(
    body: dict[str, Any], limit: int | None, choices: int
) -> None:
    _, request = parsed(GENERATE, {**HELLO, **body})
    assert (request.output_limit, request.choices) == (limit, choices)


@pytest.mark.parametrize("value", ["lots", "5", -1, 10**30, True, 5.0, [], {}], ids=repr)
def test_a_limit_that_is_no_count_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"^generationConfig.maxOutputTokens must be an integer from"):
        parsed(GENERATE, {**HELLO, "generationConfig": {"maxOutputTokens": value}})
    with pytest.raises(InvalidRequestError, match=r"^generation_config.candidate_count must be an integer from"):
        parsed(GENERATE, {**HELLO, "generation_config": {"candidate_count": value}})


def test_a_config_that_is_no_object_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"^generationConfig must be an object"):
        parsed(GENERATE, {**HELLO, "generationConfig": [1]})


def test_a_new_limit_changes_nothing_else() -> None:
    body = (
        b'{"contents":[{"parts":[{"text":"caf\\u00e9 \xf0\x9f\x98\x80"}]}],"x":12345678901234567890123,'
        b'"generationConfig":{"temperature":1.0,"maxOutputTokens": 9 ,"seed":1e2}}'
    )
    api, request = parsed(GENERATE, body)
    limited = body.replace(b'"maxOutputTokens": 9 ', b'"maxOutputTokens":300')
    assert api.rewrite(request, Rewrite(output_limit=300)) == limited
    assert api.rewrite(request, Rewrite(model="gemini-2.5-pro")) == body


@pytest.mark.parametrize(
    ("body", "config"),
    [
        ({}, {"generationConfig": {"maxOutputTokens": 7}}),
        ({"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 7}}),
        ({"generationConfig": {"topK": 1}}, {"generationConfig": {"topK": 1, "maxOutputTokens": 7}}),
        ({"generation_config": {"topK": 1}}, {"generation_config": {"topK": 1, "max_output_tokens": 7}}),
        ({"generationConfig": {"max_output_tokens": 1}}, {"generationConfig": {"max_output_tokens": 7}}),
        (
            {"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 2}, "generation_config": {}},
            {
                "generationConfig": {"maxOutputTokens": 7, "max_output_tokens": 7},
                "generation_config": {"max_output_tokens": 7},
            },
        ),
    ],
)
def test_a_limit_is_written_where_it_will_be_read(body: dict[str, Any], config: dict[str, Any]) -> None:
    api, request = parsed(GENERATE, {**HELLO, **body})
    assert json.loads(api.rewrite(request, Rewrite(output_limit=7))) == {**HELLO, **config}


def image(size: int, mime_type: str = "image/png") -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(bytes(size)).decode()}}


def parts(*given: object, **members: object) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": list(given)}], **members}


def test_text_is_bounded_by_its_bytes() -> None:
    body = parts({"text": "h" * 5000}, systemInstruction={"parts": [{"text": "be kind"}]})
    _, request = parsed(GENERATE, body)
    assert request.input_bound == len(json.dumps(body)) + TEMPLATE_TOKENS
    assert not request.media
    assert not request.remote_input


@pytest.mark.parametrize("spelling", ["inlineData", "inline_data"])
def test_an_image_counts_by_its_documented_size_not_as_text(spelling: str) -> None:
    data = base64.b64encode(bytes(60_000)).decode()
    body = parts({spelling: {"mime_type" if "_" in spelling else "mimeType": "image/png", "data": data}})
    _, request = parsed(GENERATE, body)
    assert request.input_bound == len(json.dumps(body)) - len(data) + IMAGE_TOKENS + TEMPLATE_TOKENS
    assert request.input_estimate < 1_100
    assert request.media
    assert not request.remote_input


def test_an_image_inside_of_a_functions_answer_counts_as_one() -> None:
    body = parts({"functionResponse": {"name": "look", "response": {}, "parts": [image(60_000)]}})
    assert parsed(GENERATE, body)[1].input_bound < IMAGE_TOKENS + TEMPLATE_TOKENS + 300


def test_audio_counts_at_least_its_tokens_at_the_lowest_bit_rate() -> None:
    seconds = 600
    _, request = parsed(GENERATE, parts(image(seconds * 1_000, "audio/mp3")))  # 8 kbit/s
    assert request.input_bound >= 32 * seconds
    assert request.input_bound < 32 * seconds * 2
    assert request.media


def test_a_text_file_is_text() -> None:
    body = parts(image(3_000, "text/csv"))
    _, request = parsed(GENERATE, body)
    assert request.input_bound == len(json.dumps(body)) + TEMPLATE_TOKENS
    assert not request.remote_input


@pytest.mark.parametrize(
    "body",
    [
        parts({"fileData": {"fileUri": "https://example.test/v"}}),
        parts({"file_data": {"file_uri": "https://example.test/v"}}),
        parts(image(10, "video/mp4")),
        parts(image(10, "application/pdf")),
        parts({"inlineData": {"mimeType": "image/png"}}),
        parts({"text": "x"}, cachedContent="cachedContents/1"),
        parts({"text": "x"}, cached_content="cachedContents/1"),
        parts({"text": "x"}, tools=[{"googleSearch": {}}]),
        parts({"text": "x"}, tools=[{"functionDeclarations": [], "urlContext": {}}]),
        parts({"text": "x"}, tools=[{"code_execution": {}}]),
        parts({"text": "x"}, tools={"fileSearch": {}}),
    ],
    ids=lambda body: json.dumps(body)[:90],
)
def test_what_is_not_in_the_request_is_remote(body: dict[str, Any]) -> None:
    assert parsed(GENERATE, body)[1].remote_input


def test_functions_are_not_remote_and_cost_an_overhead() -> None:
    body = parts({"text": "x"}, tools=[{"functionDeclarations": [{"name": "f"}]}], cachedContent=None)
    _, request = parsed(GENERATE, body)
    assert not request.remote_input
    assert request.input_bound == len(json.dumps(body)) + TEMPLATE_TOKENS + 2 * TOOLS_TOKENS


@pytest.mark.parametrize("contents", ["hi", None, 5, [["x"]], [{"parts": "x"}], [{"parts": [None, {"inlineData": 5}]}]])
def test_odd_contents_are_bounded_all_the_same(contents: object) -> None:
    _, request = parsed(GENERATE, {"contents": contents})
    assert request.input_bound > 0


def test_contents_without_end_are_remote() -> None:
    nested: dict[str, Any] = {"inlineData": {}}
    for _ in range(30):
        nested = {"parts": [nested]}
    assert parsed(GENERATE, {"contents": [nested]})[1].remote_input


@pytest.mark.parametrize(
    ("config", "media"),
    [
        ({"responseModalities": ["TEXT"]}, False),
        ({"responseModalities": ["TEXT", "IMAGE"]}, True),
        ({"response_modalities": ["audio"]}, True),
    ],
)
def test_asking_for_images_or_speech_is_asking_for_media(config: dict[str, Any], *, media: bool) -> None:
    assert parsed(GENERATE, {**HELLO, "generationConfig": config})[1].media == media


def test_the_tier_and_a_labelled_user_are_read() -> None:
    _, request = parsed(GENERATE, {**HELLO, "serviceTier": "FLEX", "labels": {"end_user": "u1", "team": "x"}})
    assert (request.service_tier, request.end_user) == ("flex", "u1")
    assert parsed(GENERATE, {**HELLO, "labels": [1]})[1].end_user is None
