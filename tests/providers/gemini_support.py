"""Requests and answers of Gemini's APIs for several test modules."""

from __future__ import annotations

import json
from typing import Any

from askii_middleware.providers import choose_api, find_apis
from askii_middleware.providers.base import Api, CallRequest, Refusal
from askii_middleware.usage import Report

from .support import raw_fields

GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
HELLO: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
SPENT = Refusal(
    status=402,
    code="budget_exceeded",
    message="the budget of tenant acme is spent",
    reason="spent",
    scope_kind="tenant",
    resets_at="2026-01-02T00:00:00Z",
    call_id="call-1",
)


def parsed(path: str, body: dict[str, Any] | bytes) -> tuple[Api, CallRequest]:
    """The API that takes a body sent to a path, and what it reads from it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = raw_fields(data)
    api = choose_api(find_apis(path), fields)
    assert api is not None
    return api, api.parse(fields, len(data))


def absorbed(api: Api, *answers: dict[str, Any]) -> Report:
    report = Report()
    for answer in answers:
        api.absorb(report, answer)
    return report


def read(api: Api, answer: dict[str, Any]) -> Report:
    """A whole answer; read in one piece and in small ones it says the same."""
    body = json.dumps(answer).encode()
    whole = api.read_body(body)
    for size in (1, 7, 64):
        reader = api.body_reader()
        for at in range(0, len(body), size):
            reader.feed(body[at : at + size])
        reader.finish()
        passed = reader.report
        assert (passed.usage, passed.model, passed.service_tier) == (whole.usage, whole.model, whole.service_tier)
        assert (passed.deferred, passed.provider_request_id) == (whole.deferred, whole.provider_request_id)
        assert (passed.failed, passed.finished) == (whole.failed, whole.finished)
    return whole


def metadata(**counts: Any) -> dict[str, Any]:
    return {"promptTokenCount": 10, "candidatesTokenCount": 4, "totalTokenCount": 14} | counts
