"""A provider that is not one: OpenAI's and Anthropic's APIs over canned words, for the demo, tests and benchmarks.

Every answer says that it is simulated: in the header `x-simulated-provider`, in its ids, in `system_fingerprint` and in
its text. The same seed and the same request bytes give the same bytes back. Model names with a meaning:

- `error-500`: a 500 with an error body.
- `die-mid-stream`: the connection breaks after half of the answer, streamed or not.
- `no-usage`: an answer without counts, even where the client asked for them.
- `slow`: waits `slow_s` (a stream: in its middle), or until the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from . import provider_shapes as shapes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LABEL: Final = (b"x-simulated-provider", b"true")
_MAX_BODY_BYTES: Final = 64 << 20
_REQUIRED: Final = {
    "/chat/completions": ("model", "messages"),
    "/completions": ("model", "prompt"),
    "/responses": ("model", "input"),
    "/embeddings": ("model", "input"),
    "/messages": ("model", "messages", "max_tokens"),
}


class SimulatedCrashError(RuntimeError):
    """Raised on purpose by the model `die-mid-stream`, so that the server breaks the connection."""


class _ClientLeftError(Exception):
    """The client went away; there is nobody to answer."""


def provider_app(
    *, api_key: str | None = None, seed: int = 0, delay_s: float = 0.0, slow_s: float = 30.0
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI app that answers as OpenAI and Anthropic would, with made-up words and lawful counts.

    `api_key`: what the client must send, as Bearer or `x-api-key`; None asks for nothing. `delay_s`: the wait before an
    answer, and again spread over a stream's chunks. `slow_s`: how long the model `slow` waits.
    """
    return _Provider(api_key, seed, delay_s, slow_s)


class _Provider:
    def __init__(self, api_key: str | None, seed: int, delay_s: float, slow_s: float) -> None:
        self._key = None if api_key is None else api_key.encode()
        self._digest_key = seed.to_bytes(8, "big", signed=True)
        self._delay_s = delay_s
        self._slow_s = slow_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1011, "reason": "the simulated provider has no websockets"})
        else:
            try:
                await self._answer(scope, receive, send)
            except _ClientLeftError:
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        path = scope["path"].rstrip("/")
        anthropic = path.endswith("/messages") or b"anthropic-version" in headers
        body = await _read(receive)
        if body is None:
            return await _error(send, 413, "the request is too large", anthropic=anthropic)
        if self._key is not None and not self._admits(headers):
            return await _error(send, 401, "unknown API key", anthropic=anthropic, code="invalid_api_key")
        if scope["method"] in {"GET", "HEAD"} and path.endswith("/models"):
            return await _json(send, 200, shapes.models(anthropic=anthropic))
        suffix = next((suffix for suffix in _REQUIRED if path.endswith(suffix)), None)
        if suffix is None:
            return await _error(send, 404, f"no such route: {path[:256]}", anthropic=anthropic)
        if scope["method"] != "POST":
            return await _error(send, 405, "only POST is answered here", anthropic=anthropic)
        digest = blake2b(body, key=self._digest_key, person=suffix.encode()[:16]).digest()
        try:
            fields = _parse(body, _REQUIRED[suffix])
            if fields["model"] == "error-500":
                return await _error(send, 500, "the simulated server had an error", anthropic=anthropic)
            whole, events = _compose(suffix, fields, digest, self._digest_key)
        except shapes.BadRequestError as error:
            return await _error(send, 400, str(error), anthropic=anthropic, param=error.param)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        request_id = (b"request-id" if anthropic else b"x-request-id", b"req_sim_" + digest.hex()[:24].encode())
        if events is None:
            return await self._whole(receive, send, fields["model"], msgspec.json.encode(whole), request_id)
        return await self._stream(receive, send, fields["model"], list(events), request_id)

    def _admits(self, headers: dict[bytes, bytes]) -> bool:
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return self._key in (bearer, headers.get(b"x-api-key"))

    async def _whole(
        self, receive: Receive, send: Send, model: str, body: bytes, request_id: tuple[bytes, bytes]
    ) -> None:
        if model == "slow":
            await self._wait_or_leave(receive)
        await _start(send, 200, b"application/json", request_id, (b"content-length", b"%d" % len(body)))
        if model == "die-mid-stream":
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            raise SimulatedCrashError("half of a simulated answer was sent, as asked for")
        await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, receive: Receive, send: Send, model: str, events: list[bytes], request_id: tuple[bytes, bytes]
    ) -> None:
        await _start(send, 200, b"text/event-stream; charset=utf-8", request_id, (b"cache-control", b"no-cache"))
        pause_s = self._delay_s / len(events)
        for number, event in enumerate(events):
            if number == len(events) // 2:
                if model == "die-mid-stream":
                    raise SimulatedCrashError("half of a simulated stream was sent, as asked for")
                if model == "slow":
                    await self._wait_or_leave(receive)
            if pause_s:
                await asyncio.sleep(pause_s)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _wait_or_leave(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._slow_s):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return
        raise _ClientLeftError


def _parse(body: bytes, required: tuple[str, ...]) -> shapes.Fields:
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise shapes.BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise shapes.BadRequestError("the body must be a JSON object")
    for name in required:
        if fields.get(name) is None:
            raise shapes.BadRequestError(f"missing required parameter: {name}", name)
    if not isinstance(fields["model"], str):
        raise shapes.BadRequestError("model must be a string", "model")
    return fields


def _compose(
    suffix: str, fields: shapes.Fields, digest: bytes, key: bytes
) -> tuple[shapes.Fields, Iterator[bytes] | None]:
    """The whole answer, and its events where the request asks for a stream."""
    streamed = fields.get("stream") is True
    if suffix == "/embeddings":
        return shapes.embeddings(fields, key), None
    if suffix == "/messages":
        answer = shapes.generate(fields, digest, prompt=("system", "tools", "messages"), limits=("max_tokens",))
        return shapes.message(fields, answer), shapes.message_stream(fields, answer) if streamed else None
    if suffix == "/responses":
        answer = shapes.generate(
            fields, digest, prompt=("instructions", "tools", "input"), limits=("max_output_tokens",)
        )
        return shapes.response(answer), shapes.response_stream(answer) if streamed else None
    chat = suffix == "/chat/completions"
    answer = shapes.generate(
        fields,
        digest,
        prompt=("tools", "messages") if chat else ("prompt",),
        limits=("max_completion_tokens", "max_tokens") if chat else ("max_tokens",),
        choices=shapes.choices(fields),
    )
    options = fields.get("stream_options")
    include_usage = isinstance(options, dict) and options.get("include_usage") is True
    events = shapes.completion_stream(answer, chat=chat, include_usage=include_usage) if streamed else None
    return shapes.completion(answer, chat=chat), events


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None beyond 64 MiB."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeftError
        part: bytes = message.get("body", b"")
        body = body + part if body else part
        if len(body) > _MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


async def _start(send: Send, status: int, content_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    all_headers = [(b"content-type", content_type), _LABEL, *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})


async def _json(send: Send, status: int, payload: shapes.Fields) -> None:
    body = msgspec.json.encode(payload)
    await _start(send, status, b"application/json", (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.body", "body": body})


async def _error(
    send: Send, status: int, message: str, *, anthropic: bool, code: str | None = None, param: str | None = None
) -> None:
    text = f"{message} (simulated provider)"
    if anthropic:
        kinds = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 500: "api_error"}
        kind = kinds.get(status, "invalid_request_error")
        return await _json(send, status, {"type": "error", "error": {"type": kind, "message": text}})
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return await _json(send, status, {"error": {"message": text, "type": kind, "param": param, "code": code}})
