"""What boto3 makes of our refusals and stream errors, and of a stream that passed a reader."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import anthropic
import pytest

from askii_middleware.providers import find_apis
from askii_middleware.providers.base import Api, Refusal
from askii_middleware.providers.eventstream import encode_frame

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
from botocore.config import Config  # noqa: E402 - it comes with boto3
from botocore.exceptions import ClientError, EventStreamError  # noqa: E402

MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
MESSAGES = [{"role": "user", "content": [{"text": "hi"}]}]


def api(path: str) -> Api:
    return find_apis(f"/model/{MODEL}/{path}")[-1]


class Server(ThreadingHTTPServer):
    """Gives every request the same answer, and counts them."""

    answer: tuple[int, list[tuple[str, str]], bytes] = (200, [], b"{}")
    requests: ClassVar[list[str]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(self.path)
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in (*headers, ("content-length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests.clear()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(params=["legacy", "standard"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    made = boto3.session.Session().client(
        "bedrock-runtime",
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        config=Config(retries={"mode": request.param}, proxies={}),
    )
    yield made
    made.close()


def call(client: Any, path: str) -> Any:
    if path.startswith("converse"):
        send = client.converse if path == "converse" else client.converse_stream
        return send(modelId=MODEL, messages=MESSAGES)
    send = client.invoke_model if path == "invoke" else client.invoke_model_with_response_stream
    return send(modelId=MODEL, body=json.dumps({"prompt": "hi"}))


def refusal(status: int) -> Refusal:
    return Refusal(status=status, code="budget_exceeded", message="the budget is spent", call_id="c-1", reason="spent")


@pytest.mark.parametrize("path", ["converse", "converse-stream", "invoke", "invoke-with-response-stream"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(402, "ServiceQuotaExceededException"), (400, "ValidationException"), (403, "AccessDeniedException")],
)
def test_a_refusal_is_a_typed_error_after_one_request(
    client: Any, server: Server, path: str, status: int, kind: str
) -> None:
    body, headers = api(path).refusal(refusal(status))
    own = [(name.decode(), value.decode()) for name, value in headers]
    server.answer = (status, [*own, ("content-type", "application/json")], body)
    with pytest.raises(ClientError) as raised:
        call(client, path)
    assert type(raised.value) is getattr(client.exceptions, kind)
    assert raised.value.response["Error"] == {"Code": kind, "Message": "the budget is spent"}
    assert raised.value.response["ResponseMetadata"]["RequestId"] == "c-1"
    assert len(server.requests) == 1


@pytest.mark.parametrize("path", ["converse-stream", "invoke-with-response-stream"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(402, "ServiceQuotaExceededException"), (429, "throttlingException"), (503, "serviceUnavailableException")],
)
def test_a_stream_that_is_ended_raises_its_error_behind_what_came(
    client: Any, server: Server, path: str, status: int, code: str
) -> None:
    if path == "converse-stream":
        first = encode_frame({":event-type": "messageStart", ":message-type": "event"}, b'{"role":"assistant"}')
    else:
        first = encode_frame({":event-type": "chunk", ":message-type": "event"}, b'{"bytes":"e30="}')
    stream = first + api(path).stream_error(refusal(status))
    server.answer = (200, [("content-type", "application/vnd.amazon.eventstream")], stream)
    answer = call(client, path)
    events = iter(answer["stream" if path == "converse-stream" else "body"])
    assert next(events) in ({"messageStart": {"role": "assistant"}}, {"chunk": {"bytes": b"{}"}})
    with pytest.raises(EventStreamError) as raised:
        next(events)
    assert raised.value.response["Error"] == {"Code": code, "Message": "the budget is spent"}
    assert len(server.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [402, 429])
def test_anthropic_s_own_client_for_bedrock_raises_after_one_request(server: Server, status: int, stream: bool) -> None:
    body, headers = api("invoke").refusal(refusal(status))
    server.answer = (status, [(name.decode(), value.decode()) for name, value in headers], body)
    url = f"http://127.0.0.1:{server.server_port}"
    with (
        anthropic.AnthropicBedrock(
            aws_access_key="k", aws_secret_key="s", aws_region="us-east-1", base_url=url
        ) as anthropic_client,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        anthropic_client.messages.create(
            model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}], stream=stream
        )
    assert raised.value.status_code == status
    assert len(server.requests) == 1
