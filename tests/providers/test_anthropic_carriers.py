"""Anthropic's messages under Google Cloud's paths."""

from __future__ import annotations

import json
from typing import Any

import pytest

from askii_middleware.models import canonical
from askii_middleware.pricing import PriceBook
from askii_middleware.providers import choose_api, find_apis, find_template
from askii_middleware.providers.base import Api, Rewrite
from askii_middleware.providers.paths import Target

from .support import raw_fields

ROOT = "/v1/projects/p/locations/us-east5/publishers/anthropic/models"
BODY = {"anthropic_version": "vertex-2023-10-16", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def api_of(verb: str, body: dict[str, Any], model: str = "claude-sonnet-4-5@20250929") -> Api | None:
    return choose_api(find_apis(f"{ROOT}/{model}:{verb}"), raw_fields(body))


@pytest.mark.parametrize(("verb", "stream"), [("rawPredict", False), ("streamRawPredict", True)])
def test_the_path_says_the_model_and_whether_it_streams(verb: str, stream: bool) -> None:
    api = api_of(verb, BODY)
    assert api is not None
    path = f"{ROOT}/claude-sonnet-4-5@20250929:{verb}"
    assert find_template(api, path).name(Target(path, path.encode())) == "claude-sonnet-4-5@20250929"
    request = api.parse(raw_fields(BODY), 100)
    assert (request.stream, request.output_limit, request.model) == (stream, 9, None)
    assert (api.provider, api.family) == ("google", "anthropic")


def test_a_body_may_ask_for_a_stream_too() -> None:
    api = api_of("rawPredict", BODY)
    assert api is not None
    assert api.parse(raw_fields(BODY | {"stream": True}), 100).stream


def test_counting_tokens_is_no_call() -> None:
    body = {name: value for name, value in BODY.items() if name != "max_tokens"} | {"model": "claude-sonnet-4-5"}
    assert api_of("rawPredict", body, "count-tokens") is None


def test_a_generation_under_the_name_of_counting_is_one() -> None:
    assert api_of("rawPredict", BODY | {"model": "claude-sonnet-4-5"}, "count-tokens") is not None


def test_other_publishers_are_left_alone() -> None:
    assert find_apis("/v1/projects/p/locations/l/publishers/mistralai/models/mistral-large:rawPredict") == ()


def test_the_body_gets_no_model_and_keeps_every_other_byte() -> None:
    api = api_of("rawPredict", BODY)
    assert api is not None
    body = (
        b'{"anthropic_version":"v","max_tokens":9,"temperature":1.0e0,"messages":[{"role":"user","content":"\\u00e9"}]}'
    )
    request = api.parse(raw_fields(body), len(body))
    assert api.rewrite(request, Rewrite(model="claude-opus-4-8")) == body
    assert api.rewrite(request, Rewrite(model="x", output_limit=5)) == body.replace(b":9,", b":5,")
    assert api.accepts(request, "claude-opus-4-8")
    assert not api.accepts(request, "gemini-2.5-pro")


def test_answers_are_those_of_messages() -> None:
    api = api_of("rawPredict", BODY)
    assert api is not None
    answer = {
        "type": "message",
        "model": "claude-sonnet-4-5-20250929",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    report = api.read_body(json.dumps(answer).encode())
    assert report.usage is not None
    assert report.usage.total_tokens == 5
    assert not api.recognises(answer)


@pytest.mark.parametrize("name", ["claude-sonnet-4-5@20250929", "claude-opus-4-8", "claude-3-5-haiku@20241022"])
def test_the_names_have_google_s_prices(name: str) -> None:
    price = PriceBook().find(name, provider="google")
    assert price is not None
    assert price.provider == "google"
    assert canonical(name) == name
