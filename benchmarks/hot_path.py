"""What a call costs besides the application, in one process, and what a streamed chunk costs.

    uv run python benchmarks/hot_path.py

A bare ASGI application answers a 2 kB chat request with 1 kB of JSON; the same calls then go through the middleware,
over each store, one after the other. Both run in turn, so that a change of the machine's speed hits both; the figure
is the median of the differences between neighbouring rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from askii_middleware import AskiiMiddleware, Budget, CostTracker

App = Callable[[Any, Any, Any], Awaitable[None]]

REQUEST = json.dumps(
    {
        "model": "gpt-4o",
        "max_tokens": 200,
        "temperature": 0.2,
        "messages": [
            {"role": "system", "content": "You answer in one short paragraph."},
            {"role": "user", "content": "the ledger holds what the call may cost " * 46},
        ],
    }
).encode()
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "gpt-4o-2024-11-20",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a hold is replaced by the charge " * 19},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 420,
            "completion_tokens": 95,
            "total_tokens": 515,
            "prompt_tokens_details": {"cached_tokens": 64},
        },
    }
).encode()
STREAM_REQUEST = json.dumps({**json.loads(REQUEST), "stream": True}).encode()


def chunk(text: str, *, usage: bool) -> bytes:
    body: dict[str, Any] = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": "gpt-4o-2024-11-20",
        "system_fingerprint": "fp_bench",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    if usage:
        body["usage"] = None
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


async def answer_once(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": ANSWER})


def streaming(chunks: int, *, usage: bool) -> App:
    one = chunk(" token", usage=usage)
    last = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":420,"completion_tokens":95,"total_tokens":515}}\n\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(chunks):
            await send({"type": "http.response.body", "body": one, "more_body": True})
        await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


def scope_of(body: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"user-agent", b"bench"),
            (b"x-tenant-id", b"acme"),
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {"tenant_id": "acme"},
    }


async def one_call(app: App, body: bytes) -> None:
    message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> dict[str, Any]:
        return message

    async def send(_message: Any) -> None:
        return None

    await app(scope_of(body), receive, send)


async def per_call_us(app: App, body: bytes, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        await one_call(app, body)
    return (time.perf_counter() - start) / calls * 1e6


async def compare(name: str, bare: App, wrapped: App, body: bytes, *, calls: int, rounds: int, units: int = 1) -> None:
    for app in (bare, wrapped):
        await per_call_us(app, body, max(calls // 10, 5))
    differences = []
    for _ in range(rounds):
        without = await per_call_us(bare, body, calls)
        differences.append((await per_call_us(wrapped, body, calls) - without) / units)
    print(f"{name:<44} {statistics.median(differences):9.2f}   {min(differences):9.2f}   {max(differences):9.2f}")


def wrap(app: App, tracker: CostTracker, **options: Any) -> App:
    return AskiiMiddleware(app, tracker=tracker, identity={"sources": ["state"]}, **options)


async def run(calls: int, rounds: int) -> None:
    print(f"{'added cost, microseconds':<44} {'median':>9}   {'min':>9}   {'max':>9}")
    budgets = [Budget(scope="tenant=*", limit_usd=1000)]
    with tempfile.TemporaryDirectory() as folder:
        for name, url in (("memory://", "memory://"), ("sqlite://", f"sqlite:///{Path(folder) / 'bench.db'}")):
            async with CostTracker(store=url, budgets=budgets) as tracker:
                app = wrap(answer_once, tracker)
                await compare(f"per call, {name}", answer_once, app, REQUEST, calls=calls, rounds=rounds)
        async with CostTracker(store="memory://", budgets=budgets) as tracker:
            chunks = 2000
            for title, usage, inject in (
                ("per streamed chunk, nothing to hide", False, False),
                ("per streamed chunk, usage asked for and hidden", True, True),
            ):
                bare = streaming(chunks, usage=usage)
                app = wrap(bare, tracker, inject_usage=inject)
                await compare(title, bare, app, STREAM_REQUEST, calls=3, rounds=rounds, units=chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    try:
        import uvloop  # noqa: PLC0415 - without it the figure is asyncio's own
    except ImportError:
        asyncio.run(run(arguments.calls, arguments.rounds))
    else:
        uvloop.run(run(arguments.calls, arguments.rounds))


if __name__ == "__main__":
    main()
