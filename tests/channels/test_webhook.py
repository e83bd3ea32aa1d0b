"""Alerts to a real HTTP server, signed as Standard Webhooks has it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
from typing import Any, NamedTuple

import httpx
import pytest

from askii_middleware.channels import WebhookChannel
from askii_middleware.channels.base import AlertError
from askii_middleware.errors import ConfigurationError
from askii_middleware.signing import signature, signing_key

from ..support.servers import serving
from .support import NOW_S, notice

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Got(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Endpoint:
    """Answers with the statuses it was given, then 204; None: no answer at all."""

    def __init__(self, *statuses: int | None) -> None:
        self.statuses = list(statuses)
        self.got: list[Got] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        self.got.append(Got(scope["method"], path, headers, body))
        status = self.statuses.pop(0) if self.statuses else 204
        if status is None:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        answer: Any = [(b"location", b"/elsewhere")] if 300 <= status < 400 else []
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": b""})


async def test_an_alert_is_posted_as_json_and_signed_over_its_exact_bytes() -> None:
    endpoint = Endpoint()
    async with serving(endpoint, lifespan="off") as url:
        await WebhookChannel(f"{url}/hook?key=1", SECRET, clock=lambda: NOW_S + 0.9).send(notice(5))
    (got,) = endpoint.got
    assert (got.method, got.path, got.headers["content-type"]) == ("POST", "/hook?key=1", "application/json")
    assert json.loads(got.body) == {
        "type": "budget.alert",
        "timestamp": "2026-01-01T01:00:00Z",
        "data": json.loads(notice(5).json()),
    }
    assert got.headers["webhook-id"] == notice(5).id
    assert got.headers["webhook-timestamp"] == "1767225600"
    signed = f"{notice(5).id}.1767225600.".encode() + got.body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert got.headers["webhook-signature"] == f"v1,{expected}"


def test_the_signature_is_that_of_the_specifications_example() -> None:
    """The test vector that the reference libraries of Standard Webhooks share."""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_without_a_secret_nothing_is_signed() -> None:
    endpoint = Endpoint()
    async with serving(endpoint, lifespan="off") as url:
        await WebhookChannel(url).send(notice())
    assert "webhook-signature" not in endpoint.got[0].headers


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410, 429, 500, 503])
async def test_only_2xx_takes_an_alert_and_nothing_is_followed(status: int) -> None:
    endpoint = Endpoint(status)
    async with serving(endpoint, lifespan="off") as url:
        channel = WebhookChannel(url, SECRET)
        with pytest.raises(AlertError, match=f"answered {status}"):
            await channel.send(notice())
        await channel.send(notice())
    assert [got.headers["webhook-id"] for got in endpoint.got] == [notice().id] * 2


@pytest.mark.parametrize("status", [204, 307, 500])
async def test_the_key_in_a_url_is_not_logged(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(Endpoint(status), lifespan="off") as url:
        channel = WebhookChannel(f"{url.replace('//', '//me:s3cret@')}/hook/s3cret?key=s3cret")
        with contextlib.suppress(AlertError):
            await channel.send(notice())
        assert not logging.getLogger("httpx").filters
    assert "s3cret" not in caplog.text


async def test_an_endpoint_that_does_not_answer_or_is_not_there_raises_in_time() -> None:
    endpoint = Endpoint(None)
    async with serving(endpoint, lifespan="off") as url:
        async with asyncio.timeout(10):
            with pytest.raises((TimeoutError, httpx.TimeoutException)):
                await WebhookChannel(url, timeout_s=0.1).send(notice())
    with pytest.raises(httpx.ConnectError):
        await WebhookChannel(url).send(notice())


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "plain text",
        "whsec_not base64!",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        SECRET[6:],
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="whsec_ and the base64") as failed:
        WebhookChannel("http://127.0.0.1:1/", secret)
    assert len(secret) < 7 or secret[6:] not in str(failed.value)


@pytest.mark.parametrize("url", ["", "ftp://host/", "host/path", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="begins with http"):
        WebhookChannel(url)
