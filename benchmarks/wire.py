"""What reading the wire formats costs: per streamed chunk, per 100 kB of request and of answer, per open stream.

    uv run python benchmarks/wire.py

Everything runs in one process, each time the bare application and the wrapped one in turn, so that a change of the
machine's speed hits both; what counts is the time of this thread, not of others. A figure is the median of the
differences between neighbouring rounds. What grows with the size of a body is the difference between a large one and a
small one, so that the cost of a call is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import random
import statistics
import time
import timeit
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from askii_middleware import AskiiMiddleware, Budget, CostTracker
from askii_middleware.providers import find_apis

App = Callable[[Any, Any, Any], Awaitable[None]]
TARGETS = {"chunk": 1.0, "request": 180.0, "answer": 90.0, "stream": 8.0}
"""Microseconds, and for `stream` kB."""
PIECE = 65_536
"""How much of a body a server hands over at a time."""
SMALL, LARGE = 4_000, 404_000
PER = 100_000

CHAT_PATH, MESSAGES_PATH = "/v1/chat/completions", "/v1/messages"
MODELS = {CHAT_PATH: "gpt-4o", MESSAGES_PATH: "claude-sonnet-4-5"}
_random = random.Random(7)
_VOCABULARY = (
    *("the", "ledger", "holds", "what", "a", "call", "may", "cost", "and", "then", "settles", "it", "by", "what"),
    *("it", "has", "cost", "in", "fact"),
)


def words(size: int) -> str:
    """Prose: a line of some seventy characters, one in four with a quoted word, one in eight with a dash."""
    lines: list[str] = []
    for number in range(size // 60 + 1):
        line = " ".join(_random.choices(_VOCABULARY, k=15))
        lines.append(line.replace("cost", '"cost"', number % 4 == 0).replace(" and ", " \u2013 ", number % 8 == 0))
    return "\n".join(lines)[:size]


def event(data: dict[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def chat_stream(chunks: int) -> list[bytes]:
    """As OpenAI streams an answer when it is asked for usage."""
    head = {"id": "chatcmpl-BKkHvTlPWWYUdKuDjmSgfAfwoYZBI", "object": "chat.completion.chunk", "created": 1767225600}
    head |= {"model": "gpt-4o-2024-08-06", "service_tier": "default", "system_fingerprint": "fp_f5bdcc3276"}
    empty = {"logprobs": None, "finish_reason": None}
    deltas = [{"index": 0, "delta": {"content": f" token{n % 90}"}, **empty} for n in range(chunks)]
    usage = {"prompt_tokens": 420, "completion_tokens": chunks, "total_tokens": 420 + chunks}
    return [
        *(event({**head, "choices": [delta], "usage": None}) for delta in deltas),
        event({**head, "choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    ]


def messages_stream(chunks: int) -> list[bytes]:
    """As Anthropic streams an answer."""
    usage = {"input_tokens": 420, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    message = {"id": "msg_01", "type": "message", "role": "assistant", "model": MODELS[MESSAGES_PATH], "content": []}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": chunks}}
    return [
        event({"type": "message_start", "message": {**message, "usage": usage}}, "message_start"),
        event(block, "content_block_start"),
        *(
            event(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f" token{n % 90}"}},
                "content_block_delta",
            )
            for n in range(chunks)
        ),
        event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        event(end, "message_delta"),
        event({"type": "message_stop"}, "message_stop"),
    ]


STREAMS = {CHAT_PATH: chat_stream, MESSAGES_PATH: messages_stream}


# Requests and answers -------------------------------------------------------------------------------------------------


def text_request(path: str, size: int, *, stream: bool = False) -> bytes:
    turns = [{"role": ("user", "assistant")[n % 2], "content": words(2000)} for n in range(size // 2000)]
    return request(path, turns, stream=stream)


def image_request(path: str, size: int) -> bytes:
    """A picture in a data URI (or Anthropic's block) and a question."""
    picture = base64.b64encode(_PICTURE + bytes(_random.randbytes(size * 3 // 4))).decode()
    if path == MESSAGES_PATH:
        source = {"type": "base64", "media_type": "image/png", "data": picture}
        image: dict[str, Any] = {"type": "image", "source": source}
    else:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    return request(path, [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}])


_PICTURE = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000400000003000802000000")
"""How a PNG of 1024 x 768 pixels begins."""


def request(path: str, turns: list[dict[str, Any]], *, stream: bool = False) -> bytes:
    body: dict[str, Any] = {"model": MODELS[path], "max_tokens": 200, "messages": turns}
    if stream:
        body["stream"] = True
        if path == CHAT_PATH:
            body["stream_options"] = {"include_usage": True}
    return json.dumps(body, ensure_ascii=False).encode()


def answer(path: str, size: int) -> bytes:
    if path == MESSAGES_PATH:
        content = [{"type": "text", "text": words(size)}]
        usage = {"input_tokens": 420, "output_tokens": 95}
        body: dict[str, Any] = {"id": "msg_01", "type": "message", "model": MODELS[path], "content": content}
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": words(size)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 420, "completion_tokens": 95, "total_tokens": 515}
        body = {"id": "chatcmpl-1", "object": "chat.completion", "model": MODELS[path], "choices": [choice]}
    return json.dumps({**body, "usage": usage}, ensure_ascii=False).encode()


def pieces(body: bytes) -> list[bytes]:
    return [body[at : at + PIECE] for at in range(0, len(body), PIECE)]


def answering(content_type: bytes, parts: list[bytes]) -> App:
    messages: list[dict[str, Any]] = [{"type": "http.response.body", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send(start)
        for message in messages:
            await send(message)

    return app


def scope_of(path: str, body: bytes) -> dict[str, Any]:
    length = (b"content-length", str(len(body)).encode())
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), length],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {"tenant_id": "acme"},
    }


async def one_call(app: App, path: str, body: bytes) -> None:
    parts = iter(pieces(body))
    left = len(body)

    async def receive() -> dict[str, Any]:
        nonlocal left
        part = next(parts)
        left -= len(part)
        return {"type": "http.request", "body": part, "more_body": left > 0}

    async def send(_message: Any) -> None:
        return None

    await app(scope_of(path, body), receive, send)


# Measuring ------------------------------------------------------------------------------------------------------------


async def per_call_us(app: App, path: str, body: bytes, calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        await one_call(app, path, body)
    return (time.thread_time() - start) / calls * 1e6


def show(name: str, figures: list[float], target: str, unit: str = "us") -> None:
    median, limit = statistics.median(figures), TARGETS[target]
    verdict = "" if median <= limit else "  (missed)"
    print(f"{name:<58} {median:9.2f} {min(figures):9.2f} {max(figures):9.2f} {limit:7.0f} {unit}{verdict}", flush=True)


class Bench:
    def __init__(self, tracker: CostTracker, rounds: int) -> None:
        self._tracker = tracker
        self._rounds = rounds

    def wrap(self, app: App) -> App:
        return AskiiMiddleware(app, tracker=self._tracker, identity={"sources": ["state"]})

    async def differences(self, bare: App, path: str, body: bytes, calls: int) -> list[float]:
        """What a call costs more through the middleware, one figure a round."""
        wrapped = self.wrap(bare)
        found = []
        for _ in range(self._rounds + 1):
            without = await per_call_us(bare, path, body, calls)
            found.append(await per_call_us(wrapped, path, body, calls) - without)
        return found[1:]

    def reader(self, path: str, chunks: int) -> None:
        """The reader alone, beyond a loop that does nothing."""
        (api, *_) = find_apis(path)
        stream = STREAMS[path](chunks)
        figures = []
        for _ in range(self._rounds + 1):
            reader = api.stream_reader(hide_usage=False)
            start = time.thread_time()
            for chunk in stream:
                reader.feed(chunk)
            middle = time.thread_time()
            for chunk in stream:
                len(chunk)
            figures.append((2 * middle - start - time.thread_time()) / len(stream) * 1e6)
            reader.finish()
        show(f"per chunk, the reader alone, {api.name}", figures[1:], "chunk")

    async def chunk(self, path: str, chunks: int) -> None:
        body = text_request(path, 4000, stream=True)
        long = answering(b"text/event-stream", STREAMS[path](chunks))
        short = answering(b"text/event-stream", STREAMS[path](10))
        calls = await self.differences(short, path, body, 20)
        streams = await self.differences(long, path, body, 2)
        figures = [(one - other) / (chunks - 10) for one, other in zip(streams, calls, strict=True)]
        show(f"per chunk, through the middleware, {path}", figures, "chunk")

    async def growth(
        self, name: str, target: str, path: str, small: tuple[App, bytes], large: tuple[App, bytes]
    ) -> None:
        units = (LARGE - SMALL) / PER
        base = await self.differences(small[0], path, small[1], 40)
        more = await self.differences(large[0], path, large[1], 20)
        show(f"{name}, {path}", [(one - other) / units for one, other in zip(more, base, strict=True)], target)

    async def sizes(self, path: str) -> None:
        app = answering(b"application/json", [answer(path, 1000)])
        for name, make in (("text", text_request), ("an image", image_request)):
            small, large = make(path, SMALL), make(path, LARGE)
            await self.growth(f"per 100 kB of request, {name}", "request", path, (app, small), (app, large))
        body = text_request(path, 2000)
        small_app = answering(b"application/json", pieces(answer(path, SMALL)))
        large_app = answering(b"application/json", pieces(answer(path, LARGE)))
        await self.growth("per 100 kB of answer", "answer", path, (small_app, body), (large_app, body))

    async def memory(self, path: str, streams: int) -> None:
        """What an open stream keeps, in the middle of its answer."""
        parts = STREAMS[path](60)
        body = text_request(path, 4000, stream=True)

        async def kept(wrap: Callable[[App], App]) -> float:
            gate, all_wait, waiting = asyncio.Event(), asyncio.Event(), 0

            async def app(scope: Any, receive: Any, send: Any) -> None:
                nonlocal waiting
                await receive()
                headers = [(b"content-type", b"text/event-stream")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for part in parts[:40]:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                waiting += 1
                if waiting == streams:
                    all_wait.set()
                await gate.wait()
                for part in parts[40:]:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

            outer = wrap(app)
            # A first call, so that nothing that is made once is counted.
            gate.set()
            await one_call(outer, path, body)
            gate.clear()
            waiting = 0
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            tasks = [asyncio.create_task(one_call(outer, path, body)) for _ in range(streams)]
            await all_wait.wait()
            gc.collect()
            found = (tracemalloc.get_traced_memory()[0] - before) / streams / 1024
            gate.set()
            await asyncio.gather(*tasks)
            return found

        tracemalloc.start()
        figures = []
        for _ in range(3):
            without = await kept(lambda app: app)
            figures.append(await kept(self.wrap) - without)
        tracemalloc.stop()
        show(f"per open stream, {path}", figures, "stream", "kB")


async def run(rounds: int, chunks: int, streams: int) -> None:
    sample = chat_stream(1)[0][6:-2]
    decode = timeit.timeit(lambda: json.loads(sample), timer=time.thread_time, number=20_000) / 20_000 * 1e6
    print(f"for comparison: json.loads of one chat chunk takes {decode:.2f} us here")
    print(f"{'added':<58} {'median':>9} {'min':>9} {'max':>9} {'target':>7}")
    async with CostTracker(store="memory://", budgets=[Budget(scope="tenant=*", limit_usd=100_000)]) as tracker:
        bench = Bench(tracker, rounds)
        for path in STREAMS:
            bench.reader(path, chunks)
            await bench.chunk(path, chunks)
        for path in STREAMS:
            await bench.sizes(path)
        for path in STREAMS:
            await bench.memory(path, streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunks", type=int, default=5000)
    parser.add_argument("--streams", type=int, default=1000)
    arguments = parser.parse_args()
    try:
        import uvloop  # noqa: PLC0415 - without it the figure is asyncio's own
    except ImportError:
        asyncio.run(run(arguments.rounds, arguments.chunks, arguments.streams))
    else:
        uvloop.run(run(arguments.rounds, arguments.chunks, arguments.streams))


if __name__ == "__main__":
    main()
