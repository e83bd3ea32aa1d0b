"""How far streams overspend a budget, and how much of it they can use, under four ways of enforcing it.

    uv run python benchmarks/overshoot.py

128 streams at a time, spread over 3 worker processes that share one SQLite file, call a provider that sends one token
to a chunk and its exact usage at the end; how long answers are is heavy-tailed (log-normal). Clients call again as
soon as they are answered, until a call is refused with 402. Every policy meets the same calls:

- `after`: the spend is looked at before a call and counted after it, without holds, as most gateways do;
- `estimate`, `bound`, `metered`: this project's `hold` policies.

Overshoot is what the ledger settled beyond the limit; usable is what was settled, of the limit, when the first call was
refused as spent and none was running; a refusal is false if the money left would have paid for the smallest call that
may begin: its prompt and a least slice. `first chunk` is what the worker adds to the first chunk of a stream, and
`wait` how long any later chunk was kept, both as medians over the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from askii_middleware import AskiiMiddleware, Budget, CostTracker
from askii_middleware.options import LEAST_SLICE_TOKENS
from askii_middleware.pricing import ModelPrice
from askii_middleware.providers.bounds import TEMPLATE_TOKENS
from askii_middleware.tokens import count_tokens, encoding_of

POLICIES = ("after", "estimate", "bound", "metered")
MODEL = "gpt-4o"
PRICE = ModelPrice(input_usd_per_mtok="2.5", output_usd_per_mtok=10)
IN, OUT = 2_500, 10_000
"""Nano-USD for each token."""
PROMPT_TOKENS = 24
MAX_TOKENS = 4_096
ENCODING = "o200k_base"
TENANT = "acme"
WORDS = (" the", " ledger", " holds", " what", " a", " call", " may", " cost", " and", " settles", " it", " by", " use")


class Plan(NamedTuple):
    """One experiment. All of it follows from the seed."""

    policy: str
    database: str
    limit_nano_usd: int
    streams: int
    workers: int
    median_tokens: int
    sigma: float
    chunk_s: float
    seed: int


@dataclass
class Result:
    """What one worker's clients met."""

    answers: Counter[str] = field(default_factory=Counter)
    first_us: list[float] = field(default_factory=list)
    later_us: list[float] = field(default_factory=list)


def lengths(plan: Plan, worker: int) -> Any:
    """How long answers are: the same for every policy, and never longer than asked for."""
    rng = random.Random(plan.seed * 1_000 + worker)
    while True:
        yield min(max(int(rng.lognormvariate(0, plan.sigma) * plan.median_tokens), 1), MAX_TOKENS)


class Provider:
    """One token to a chunk, a pause after every few, and the exact usage at the end. A client that leaves ends it, as
    it ends a provider's generation.
    """

    def __init__(self, plan: Plan, worker: int) -> None:
        self._lengths = lengths(plan, worker)
        self._pause_s = plan.chunk_s
        self._head = {"id": "c1", "object": "chat.completion.chunk", "created": 1767225600, "model": MODEL}
        self._chunks = [
            self._event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            for word in WORDS
        ]

    def _event(self, members: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({**self._head, **members}, separators=(",", ":")).encode() + b"\n\n"

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        await receive()
        tokens = next(self._lengths)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        chunks = self._chunks
        for number in range(tokens):
            await send({"type": "http.response.body", "body": chunks[number % len(chunks)], "more_body": True})
            if number % 8 == 7:
                await asyncio.sleep(self._pause_s)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await send({"type": "http.response.body", "body": self._event({"choices": [end]}), "more_body": True})
        last = self._event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last})


BODY = json.dumps(
    {
        "model": MODEL,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Explain how a budget holds under many streams."}],
    }
).encode()


class Call:
    """One client's call: what it was answered, and how long the worker kept its chunks."""

    def __init__(self) -> None:
        self.status = 0
        self.cut = False
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": BODY, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif b'"finish_reason":"length"' in message.get("body", b""):
            self.cut = True


def timed(app: Any, result: Result) -> Any:
    """How long the first chunk of a stream, and each later one, is kept on its way out."""

    async def around(scope: Any, receive: Any, send: Any) -> None:
        chunks = 0

        async def watch(message: dict[str, Any]) -> None:
            nonlocal chunks
            began = time.perf_counter()
            await send(message)
            if message["type"] == "http.response.body":
                chunks += 1
                (result.first_us if chunks == 1 else result.later_us).append((time.perf_counter() - began) * 1e6)

        await app(scope, receive, watch)

    return around


def scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8_000),
        "state": {},
    }


async def client(plan: Plan, worker: int, gateway: Any, tracker: CostTracker, stop: Any, result: Result) -> None:
    """Calls until the budget is spent. Clients that are told to wait do so, and try again."""
    rng = random.Random(f"{plan.seed} {worker} {time.monotonic_ns()}")
    while not stop.is_set():
        if plan.policy == "after":
            spent = sum(row.cost_nano_usd for row in await tracker.store.spend(f"tenant={TENANT}", 0, 2**40))
            if spent >= plan.limit_nano_usd:
                result.answers["spent"] += 1
                stop.set()
                return
        call = Call()
        await gateway(scope(), call.receive, call.send)
        if call.status == 402:
            result.answers["spent"] += 1
            stop.set()
        elif call.status == 429:
            result.answers["held"] += 1
            await asyncio.sleep(0.02 + 0.08 * rng.random())
        elif call.cut:
            result.answers["cut"] += 1
        else:
            result.answers["whole" if call.status == 200 else f"status {call.status}"] += 1


async def work(plan: Plan, worker: int, ready: Any, stop: Any) -> Result:
    result = Result()
    options: dict[str, Any] = {"enforcement": "off"} if plan.policy == "after" else {"hold": plan.policy}
    limit = f"{plan.limit_nano_usd // 10**9}.{plan.limit_nano_usd % 10**9:09d}"
    tracker = CostTracker(
        store=f"sqlite:///{plan.database}",
        budgets=[Budget(scope="tenant=*", limit_usd=limit, period="total")],
        prices={MODEL: PRICE},
        journal_path=f"{plan.database}.journal",
        **options,
    )
    async with tracker:
        gateway = AskiiMiddleware(
            timed(Provider(plan, worker), result), tracker=tracker, identify=lambda _scope: TENANT, inject_usage=False
        )
        await asyncio.to_thread(ready.wait)
        share = plan.streams // plan.workers + (worker < plan.streams % plan.workers)
        await asyncio.gather(*(client(plan, worker, gateway, tracker, stop, result) for _ in range(share)))
    return result


def run_worker(plan: Plan, worker: int, ready: Any, stop: Any, results: Any) -> None:
    try:
        import uvloop  # noqa: PLC0415 - without it the figure is asyncio's own
    except ImportError:
        result = asyncio.run(work(plan, worker, ready, stop))
    else:
        result = uvloop.run(work(plan, worker, ready, stop))
    results.put((dict(result.answers), result.first_us[:20_000], result.later_us[:100_000]))


class Row(NamedTuple):
    """What one policy came to."""

    policy: str
    overshoot: float
    usable: float
    false_refusals: int
    held: int
    cut: int
    whole: int
    other: int
    first_us: float
    later_us: float
    seconds: float


async def charged(database: str) -> int:
    tracker = CostTracker(store=f"sqlite:///{database}", prices={MODEL: PRICE}, journal_path=f"{database}.journal")
    async with tracker:
        rows = await tracker.store.spend(f"tenant={TENANT}", 0, 2**40)
        return sum(row.cost_nano_usd for row in rows)


def smallest_nano_usd() -> int:
    """What the smallest call that may begin is held for: the bound of its prompt and a least slice."""
    counted = count_tokens(BODY, ENCODING) if encoding_of(MODEL) else None
    return ((len(BODY) if counted is None else counted) + TEMPLATE_TOKENS) * IN + LEAST_SLICE_TOKENS * OUT


def experiment(plan: Plan) -> Row:
    context = multiprocessing.get_context("spawn")
    ready, stop, results = context.Barrier(plan.workers), context.Event(), context.Queue()
    began = time.perf_counter()
    workers = [
        context.Process(target=run_worker, args=(plan, number, ready, stop, results)) for number in range(plan.workers)
    ]
    for process in workers:
        process.start()
    answers: Counter[str] = Counter()
    first: list[float] = []
    later: list[float] = []
    for _ in workers:
        found, firsts, laters = results.get(timeout=600)
        answers.update(found)
        first += firsts
        later += laters
    for process in workers:
        process.join()
    total = asyncio.run(charged(plan.database))
    limit = plan.limit_nano_usd
    left = limit - total
    false = answers["spent"] if plan.policy != "after" and left >= smallest_nano_usd() else 0
    known = {"spent", "held", "cut", "whole"}
    return Row(
        plan.policy,
        max(total - limit, 0) / limit,
        min(total, limit) / limit,
        false,
        answers["held"],
        answers["cut"],
        answers["whole"],
        sum(count for name, count in answers.items() if name not in known),
        statistics.median(first) if first else 0.0,
        statistics.median(later) if later else 0.0,
        time.perf_counter() - began,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--limit-usd", type=float, default=2.0)
    parser.add_argument("--median-tokens", type=int, default=150)
    parser.add_argument("--sigma", type=float, default=1.1)
    parser.add_argument("--chunk-s", type=float, default=0.02, help="pause after every 8 tokens")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    arguments = parser.parse_args()
    print(
        f"{arguments.streams} streams, {arguments.workers} workers, a budget of {arguments.limit_usd} USD, "
        f"answers of {arguments.median_tokens} tokens in the median and {MAX_TOKENS} at most"
    )
    print(
        f"{'policy':<10}{'overshoot':>10}{'usable':>9}{'false 402':>11}{'held 429':>10}{'cut':>6}{'whole':>7}"
        f"{'other':>7}{'first chunk':>13}{'later':>10}{'time':>8}"
    )
    for policy in arguments.policies:
        with tempfile.TemporaryDirectory() as folder:
            row = experiment(
                Plan(
                    policy,
                    str(Path(folder) / "ledger.db"),
                    round(arguments.limit_usd * 1e9),
                    arguments.streams,
                    arguments.workers,
                    arguments.median_tokens,
                    arguments.sigma,
                    arguments.chunk_s,
                    arguments.seed,
                )
            )
        print(
            f"{row.policy:<10}{row.overshoot:>10.2%}{row.usable:>9.2%}{row.false_refusals:>11}{row.held:>10}"
            f"{row.cut:>6}{row.whole:>7}{row.other:>7}{row.first_us:>10.0f} us{row.later_us:>7.1f} us"
            f"{row.seconds:>6.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
