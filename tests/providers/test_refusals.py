"""Refusals in each API's own envelope, as the official SDKs take them over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import openai
import pytest

from askii_middleware.providers import APIS
from askii_middleware.providers.base import Refusal

from .support import api, chat_chunk, event

SPENT = Refusal(
    status=402,
    code="budget_exceeded",
    message="the budget of tenant acme is spent",
    reason="spent",
    scope_kind="tenant",
    resets_at="2026-01-02T00:00:00Z",
    call_id="call-1",
)
HELD = Refusal(status=429, code="budget_held", message="held", reason="held", retry_after_s=1, call_id="call-1")
DOWN = Refusal(status=503, code="ledger_unavailable", message="down", retry_after_s=2, call_id="call-1")
NO_RETRY = [(b"x-should-retry", b"false")]


class Stub(ThreadingHTTPServer):
    """Answers every request with the same bytes and counts them."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: tuple[int, bytes, list[tuple[bytes, bytes]]] = (200, b"", [])
        self.requests = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        self.server.requests += 1
        self.rfile.read(int(self.headers["content-length"]))
        status, body, headers = self.server.answer
        self.send_response(status)
        kind = "application/json" if status != 200 else "text/event-stream"
        for name, value in [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *headers]:
            self.send_header(name.decode(), value.decode())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def openai_client(stub: Stub) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="x", base_url=f"{stub.url}/v1") as client:
        yield client


@pytest.fixture
def anthropic_client(stub: Stub) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="x", base_url=stub.url) as client:
        yield client


def test_an_openai_refusal_has_its_envelope_and_what_ours_adds() -> None:
    body, headers = api("openai.chat").refusal(SPENT)
    assert json.loads(body) == {
        "error": {
            "message": "the budget of tenant acme is spent",
            "type": "insufficient_quota",
            "param": None,
            "code": "budget_exceeded",
            "reason": "spent",
            "scope_kind": "tenant",
            "resets_at": "2026-01-02T00:00:00Z",
        }
    }
    assert headers == NO_RETRY


def test_an_anthropic_refusal_has_its_envelope_and_what_ours_adds() -> None:
    body, headers = api("anthropic.messages").refusal(SPENT)
    assert json.loads(body) == {
        "type": "error",
        "error": {
            "type": "billing_error",
            "message": "the budget of tenant acme is spent",
            "code": "budget_exceeded",
            "reason": "spent",
            "scope_kind": "tenant",
            "resets_at": "2026-01-02T00:00:00Z",
        },
        "request_id": "call-1",
    }
    assert headers == NO_RETRY


@pytest.mark.parametrize(
    ("status", "code", "openai_type", "anthropic_type"),
    [
        (401, "unauthorized", "authentication_error", "authentication_error"),
        (402, "budget_exceeded", "insufficient_quota", "billing_error"),
        (429, "budget_exceeded", "insufficient_quota", "billing_error"),
        (429, "budget_held", "rate_limit_error", "rate_limit_error"),
        (400, "model_not_priced", "invalid_request_error", "invalid_request_error"),
        (400, "invalid_request", "invalid_request_error", "invalid_request_error"),
        (403, "tenant_suspended", "permission_error", "permission_error"),
        (404, "route_not_metered", "invalid_request_error", "not_found_error"),
        (413, "request_too_large", "invalid_request_error", "request_too_large"),
        (503, "ledger_unavailable", "server_error", "api_error"),
    ],
)
def test_each_status_has_the_type_its_provider_would_give(
    status: int, code: str, openai_type: str, anthropic_type: str
) -> None:
    refusal = Refusal(status=status, code=code, message="m", call_id="c")
    for one in (one for one in APIS if one.name.startswith(("openai.", "azure.", "anthropic."))):
        body, _ = one.refusal(refusal)
        error = json.loads(body)["error"]
        assert error["type"] == (anthropic_type if one.name.startswith("anthropic.") else openai_type)
        assert error["code"] == code
        assert "reason" not in error


@pytest.mark.parametrize("one", APIS, ids=lambda one: one.name)
def test_only_what_passes_soon_says_when_to_try_again(one: Any) -> None:
    for refusal, wanted in (
        (HELD, [(b"retry-after", b"1"), (b"x-should-retry", b"true")]),
        (DOWN, [(b"retry-after", b"2"), (b"x-should-retry", b"true")]),
        (SPENT, NO_RETRY),
    ):
        body, headers = one.refusal(refusal)
        # Amazon's errors have their type in a header besides.
        assert [header for header in headers if not header[0].startswith(b"x-amzn-")] == wanted
        assert refusal.message in json.dumps(json.loads(body))


@pytest.mark.parametrize("status", [402, 429])
def test_the_openai_sdk_sends_one_request_and_raises_with_code_and_type(
    stub: Stub, openai_client: openai.OpenAI, status: int
) -> None:
    refusal = Refusal(status=status, code="budget_exceeded", message="spent", call_id="c")
    stub.answer = (status, *api("openai.chat").refusal(refusal))
    with pytest.raises(openai.APIStatusError) as caught:
        openai_client.chat.completions.create(model="gpt-4o", messages=[])
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (
        status,
        "budget_exceeded",
        "insufficient_quota",
    )
    assert stub.requests == 1


@pytest.mark.parametrize("status", [402, 429])
def test_the_anthropic_sdk_sends_one_request_and_raises_with_the_body(
    stub: Stub, anthropic_client: anthropic.Anthropic, status: int
) -> None:
    refusal = Refusal(status=status, code="budget_exceeded", message="spent", call_id="c")
    stub.answer = (status, *api("anthropic.messages").refusal(refusal))
    with pytest.raises(anthropic.APIStatusError) as caught:
        anthropic_client.messages.create(
            model="claude-sonnet-5", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
        )
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "billing_error"
    assert stub.requests == 1


def test_an_error_in_mid_stream_ends_a_chat_with_the_sdks_error(stub: Stub, openai_client: openai.OpenAI) -> None:
    stub.answer = (200, event(chat_chunk("a")) + api("openai.chat").stream_error(SPENT), [])
    stream = openai_client.chat.completions.create(model="gpt-4o", messages=[], stream=True)
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError, match="the budget of tenant acme is spent") as caught:
        next(stream)
    assert caught.value.code == "budget_exceeded"


def test_an_error_in_mid_stream_ends_responses_with_the_sdks_error(stub: Stub, openai_client: openai.OpenAI) -> None:
    delta = {"type": "response.output_text.delta", "delta": "a", "sequence_number": 1}
    stub.answer = (200, event(delta, name=delta["type"]) + api("openai.responses").stream_error(SPENT), [])  # type: ignore[arg-type]
    stream = openai_client.responses.create(model="gpt-5", input="hi", stream=True)
    assert next(stream).type == "response.output_text.delta"
    with pytest.raises(openai.APIError, match="the budget of tenant acme is spent"):
        next(stream)


def test_an_error_in_mid_stream_ends_messages_with_the_sdks_error(
    stub: Stub, anthropic_client: anthropic.Anthropic
) -> None:
    stub.answer = (200, event({"type": "ping"}, name="ping") + api("anthropic.messages").stream_error(SPENT), [])
    stream = anthropic_client.messages.create(
        model="claude-sonnet-5", max_tokens=5, messages=[{"role": "user", "content": "hi"}], stream=True
    )
    with pytest.raises(anthropic.APIStatusError, match="the budget of tenant acme is spent"):
        list(stream)


@pytest.mark.parametrize("one", APIS, ids=lambda one: one.name)
def test_our_own_error_event_is_read_as_a_failure(one: Any) -> None:
    reader = one.stream_reader(hide_usage=False)
    reader.feed(one.stream_error(SPENT))
    assert reader.report.failed
    assert one.read_body(one.refusal(SPENT)[0]).failed
