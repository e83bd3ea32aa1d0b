"""google-genai takes our refusals as its own typed errors, and reads from recorded bodies the counts that we report."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from askii_middleware.providers.base import Refusal
from askii_middleware.providers.response import record_into
from askii_middleware.usage import Report

from .gemini_support import GENERATE, HELLO, SPENT, STREAM, metadata, parsed
from .support import CORPUS, NO_CORPUS, event

genai = pytest.importorskip("google.genai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

API = parsed(GENERATE, HELLO)[0]
STREAM_API = parsed(STREAM, HELLO)[0]
INTERACTIONS_API = parsed("/v1beta/interactions", {"model": "m", "input": "x"})[0]
HELD = Refusal(status=429, code="budget_held", message="held", reason="held", retry_after_s=1, call_id="call-1")


class Stub(ThreadingHTTPServer):
    """Answers every request with the same bytes and counts them."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: tuple[int, str, bytes, list[tuple[bytes, bytes]]] = (200, "application/json", b"{}", [])
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        status, kind, body, headers = self.server.answer
        self.send_response(status)
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
def client(stub: Stub) -> Iterator[Any]:
    options = genai.types.HttpOptions(base_url=f"http://127.0.0.1:{stub.server_address[1]}")
    client = genai.Client(api_key="x", http_options=options)
    yield client
    client.close()


@pytest.mark.parametrize("refusal", [SPENT, HELD], ids=lambda refusal: str(refusal.status))
def test_a_refusal_is_the_sdks_client_error_after_one_request(stub: Stub, client: Any, refusal: Refusal) -> None:
    body, headers = API.refusal(refusal)
    stub.answer = (refusal.status, "application/json", body, headers)
    with pytest.raises(genai.errors.ClientError) as caught:
        client.models.generate_content(model="gemini-2.5-flash", contents="hi")
    assert (caught.value.code, caught.value.status) == (refusal.status, "RESOURCE_EXHAUSTED")
    assert caught.value.message == refusal.message
    assert caught.value.details["error"]["details"][0]["metadata"]["code"] == refusal.code
    with pytest.raises(genai.errors.ClientError):
        list(client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi"))
    sent = [path.partition("?")[0].rpartition("/")[2] for path in stub.paths]
    assert sent == ["gemini-2.5-flash:generateContent", "gemini-2.5-flash:streamGenerateContent"]


def test_an_error_in_a_stream_is_the_sdks_client_error(stub: Stub, client: Any) -> None:
    first = {"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": metadata()}
    body = event(first, end=b"\r\n") + STREAM_API.stream_error(SPENT)
    stub.answer = (200, "text/event-stream", body, [])
    seen = []
    with pytest.raises(genai.errors.ClientError) as caught:
        seen.extend(client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi"))
    assert (caught.value.code, caught.value.message) == (402, SPENT.message)
    assert len(seen) <= 1
    reader = STREAM_API.stream_reader(hide_usage=False)
    reader.feed(body)
    reader.finish()
    assert reader.report.failed


def test_an_interactions_refusal_is_a_typed_error_after_one_request(stub: Stub, client: Any) -> None:
    body, headers = INTERACTIONS_API.refusal(SPENT)
    stub.answer = (402, "application/json", body, headers)
    with pytest.raises(Exception, match="the budget of tenant acme is spent") as caught:
        client.interactions.create(model="gemini-2.5-flash", input="hi")
    assert getattr(caught.value, "status_code", None) == 402  # the SDK keeps the class private
    assert type(caught.value).__name__ == "APIStatusError"
    assert len(stub.paths) == 1


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize("name", ["json_thinking", "json_tool_use_prompt", "json_tts_audio_out"])
def test_the_sdks_counts_of_a_recorded_answer_are_ours(stub: Stub, client: Any, name: str) -> None:
    body = (CORPUS / f"gemini/{name}.json").read_bytes()
    stub.answer = (200, "application/json", body, [])
    response = client.models.generate_content(model="gemini-2.5-flash", contents="hi")
    _same(response, API.read_body(body))


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize("name", ["gemini/stream_file_search_not_monotone", "vertex/stream"])
def test_the_sdks_last_counts_of_a_recorded_stream_are_ours(stub: Stub, client: Any, name: str) -> None:
    body = (CORPUS / f"{name}.sse").read_bytes()
    stub.answer = (200, "text/event-stream", body, [])
    chunks = list(client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi"))
    reader = STREAM_API.stream_reader(hide_usage=False)
    reader.feed(body)
    reader.finish()
    _same(chunks[-1], reader.report)
    recorded = Report()
    for chunk in chunks:
        record_into(recorded, chunk)
    assert recorded.usage == reader.report.usage
    assert recorded.model == reader.report.model


def _same(response: Any, report: Report) -> None:
    counts, usage = response.usage_metadata, report.usage
    assert usage is not None
    assert usage.input_tokens == counts.prompt_token_count + (counts.tool_use_prompt_token_count or 0)
    assert usage.reasoning == (counts.thoughts_token_count or 0)
    assert usage.output_tokens == (counts.candidates_token_count or 0) + usage.reasoning
    assert usage.total_tokens == counts.total_token_count
    assert report.model == response.model_version
    assert report.provider_request_id == response.response_id
    recorded = Report()
    record_into(recorded, response)
    assert recorded.usage == usage


def test_the_error_envelope_is_an_object_with_a_list_of_details() -> None:
    error = json.loads(API.refusal(SPENT)[0])["error"]
    assert (error["code"], error["status"], error["message"]) == (402, "RESOURCE_EXHAUSTED", SPENT.message)
    (info,) = error["details"]
    assert info["@type"].endswith("google.rpc.ErrorInfo")
    assert info["metadata"]["reason"] == "spent"
    assert info["metadata"]["scope_kind"] == "tenant"
