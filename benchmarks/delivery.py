"""How fast one worker delivers a backlog to a Lago that answers at once, and how long it blocks the event loop.

    python benchmarks/delivery.py                     # 100,000 records, SQLite, LagoSink in batches of 100
    python benchmarks/delivery.py --backlog 1000000   # and the memory while so many gather on disk

The receiver is a bare socket server in a process of its own. While the backlog drains, a task in the same event loop
ticks every millisecond: by how much a tick comes late, a request would have waited. On a machine that does other things
too, part of that is waiting for a processor; so it is also told how much processor time the event loop took meanwhile,
and in a run of its own, since measuring that costs some, the processor time of each callback.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.records import Charge, UsageCounts, UsageRecord, encode_settled_part
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores import open_store
from askii_middleware.stores.base import AggregateRow, Settlement, Store

TENANTS = 200
NOW_S = 1_767_225_600.0
TICK_S = 0.001
TARGET_RECORDS_PER_S = 10_000
TARGET_BLOCKED_MS = 2.0


def settlement(n: int) -> Settlement:
    """A call as the middleware records it."""
    tenant = f"tenant-{n % TENANTS}"
    record = UsageRecord(
        call_id=f"call-{n:08d}-7f3a9c",
        timestamp="2026-01-01T00:00:00.123Z",
        tenant=tenant,
        subscription=tenant,
        key="key_1",
        tags=("batch", "eu"),
        metadata={"feature": "search"},
        api="openai.chat",
        provider="openai",
        requested_model="gpt-4o",
        served_model="gpt-4o-mini",
        provider_request_id=f"chatcmpl-{n:024d}",
        stream=True,
        status=200,
        duration_ms=812.4,
        usage=UsageCounts(input_tokens=812, output_tokens=95, cached_input_tokens=64),
        charges=(
            Charge(bucket="input", quantity=748, nano_usd=112_200),
            Charge(bucket="cache_read", quantity=64, nano_usd=4_800),
            Charge(bucket="output", quantity=95, nano_usd=57_000),
        ),
        cost_nano_usd=174_000,
        price_version="2026-11-01",
        exchange_rate=1e6,
    )
    return Settlement(
        call_id=record.call_id,
        admitted_at_s=NOW_S,
        cost_nano_usd=record.cost_nano_usd,
        matches=(),
        windows={},
        rate=(1_000_000, 1),
        subscription=tenant,
        coins=174,
        pico_coins=0,
        tenant=tenant,
        aggregates=(AggregateRow(f"tenant={tenant}", "gpt-4o-mini", "openai", 1, 812, 95, record.cost_nano_usd),),
        record=encode_settled_part(record),
    )


async def record(store: Store, first: int, last: int) -> None:
    for start in range(first, last, 500):
        await store.settle_many([settlement(n) for n in range(start, min(start + 500, last))])


# The receiver --------------------------------------------------------------------------------------------------------


def answer() -> None:
    """Answer every request with 200, one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while chunk := connection.recv(1 << 20):
            data += chunk
            head, end, body = data.partition(b"\r\n\r\n")
            if end and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
                data = b""


@contextmanager
def receiver() -> Iterator[str]:
    with subprocess.Popen([sys.executable, __file__, "--answer"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/api/v1"
        process.kill()


# Measuring -----------------------------------------------------------------------------------------------------------


class Ticker:
    """How late a task gets its turn, in milliseconds."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self.busy_ms: list[float] = []
        """The part of it that the event loop's thread was running."""

    async def run(self) -> None:
        while True:
            before_s, cpu_s = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK_S)
            late_s = time.perf_counter() - before_s - TICK_S
            self.late_ms.append(late_s * 1e3)
            self.busy_ms.append(min(late_s, time.thread_time() - cpu_s) * 1e3)


class Callbacks:
    """The processor time of each callback of the event loop, in milliseconds."""

    def __init__(self) -> None:
        self.cpu_ms: list[float] = []
        self.longest = 0.0, ""

    @contextmanager
    def measured(self) -> Iterator[None]:
        run, taken, clock = asyncio.Handle._run, self.cpu_ms, time.thread_time_ns

        def measuring(handle: asyncio.Handle) -> None:
            before_ns = clock()
            run(handle)
            took_ms = (clock() - before_ns) / 1e6
            taken.append(took_ms)
            if took_ms > self.longest[0]:
                self.longest = took_ms, repr(handle)

        asyncio.Handle._run = measuring  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]


class Collections:
    """How long the collections of garbage took, in milliseconds, by generation."""

    def __init__(self) -> None:
        self.took_ms: tuple[list[float], list[float], list[float]] = ([], [], [])
        self._began_s = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
        else:
            self.took_ms[info["generation"]].append((time.perf_counter() - self._began_s) * 1e3)


class Drained(NamedTuple):
    seconds: float
    cpu_s: float
    ticks: Ticker
    callbacks: Callbacks
    collections: Collections


async def drain(store: Store, url: str, *, callbacks: bool) -> Drained:
    """Deliver all there is."""
    sink = LagoSink(url, "key", max_batch=100)
    ticks, calls, collections = Ticker(), Callbacks(), Collections()
    loop = DeliveryLoop(store, [sink], owner=f"bench-{os.getpid()}-{callbacks}")
    ticking = asyncio.create_task(ticks.run())
    gc.collect()
    gc.callbacks.append(collections)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    loop.start()
    if callbacks:
        with calls.measured():
            await _until_empty(store)
    else:
        await _until_empty(store)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    gc.callbacks.remove(collections)
    ticking.cancel()
    await loop.stop(1.0)
    await sink.close()
    return Drained(seconds, cpu_s, ticks, calls, collections)


async def _until_empty(store: Store) -> None:
    while sum((await store.pending()).values()):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.25)


def figures(values: Sequence[float]) -> str:
    ordered = sorted(values) or [0.0]
    p50, p99, p999 = (ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.99, 0.999))
    over = sum(value > TARGET_BLOCKED_MS for value in ordered)
    return (
        f"p50 {p50:.3f}  p99 {p99:.2f}  p99.9 {p999:.2f}  longest {ordered[-1]:.2f} ms"
        f"  ({over} of {len(ordered):,} above {TARGET_BLOCKED_MS:g} ms)"
    )


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def size_mb(folder: str) -> float:
    return sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6


async def measure_delivery(records: int, *, callbacks: bool, profile: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder, receiver() as url:
        store = open_store(f"sqlite:///{folder}/askii.db")
        await store.open()
        await store.register_sinks(["lago"])
        await record(store, 0, records)
        await store.close()  # merges what recording wrote: that is no part of delivery
        await store.open()
        before_mb = rss_mb()
        if profile:
            import cProfile  # noqa: PLC0415

            with cProfile.Profile() as profiler:
                found = await drain(store, url, callbacks=callbacks)
            profiler.dump_stats(profile)
        else:
            found = await drain(store, url, callbacks=callbacks)
        await store.close()
    if callbacks:
        print(f"  processor time of callbacks: {figures(found.callbacks.cpu_ms)}")
        print(f"  the longest: {found.callbacks.longest[1][:200]}")
        return
    rate = records / found.seconds
    verdict = "met" if rate >= TARGET_RECORDS_PER_S else f"missed; target {TARGET_RECORDS_PER_S:,}"
    print(f"  {records:,} records in {found.seconds:.2f} s: {rate:,.0f} records/s ({verdict})", end="")
    print(f", {found.cpu_s / records * 1e6:.1f} µs of processor each, memory +{rss_mb() - before_mb:.1f} MB")
    print(f"  a tick came late by: {figures(found.ticks.late_ms)}")
    print(f"  its loop ran for:    {figures(found.ticks.busy_ms)}")
    for generation, took_ms in enumerate(found.collections.took_ms):
        print(f"  garbage, generation {generation}: {len(took_ms)} times, longest {max(took_ms, default=0):.2f} ms")


async def measure_memory(backlog: int) -> None:
    """Record while nobody receives."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/askii.db")
        await store.open()
        sink = LagoSink("http://127.0.0.1:9/api/v1", "key")
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [sink], owner="bench", max_backoff_s=1.0)
        loop.start()
        step = max(backlog // 10, 1)
        for start in range(0, backlog, step):
            await record(store, start, min(start + step, backlog))
            pending = (await store.pending())["lago"]
            print(
                f"  {pending:>9,} records wait: {rss_mb():.1f} MB of memory, {size_mb(folder):,.0f} MB on disk",
                flush=True,
            )
        await loop.stop(0.0)
        await sink.close()
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--backlog", type=int, default=0, help="measure memory while so many records gather")
    parser.add_argument("--profile", help="write a profile of the draining to this file")
    options = parser.parse_args()
    print(f"load average {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {os.cpu_count()} processors")
    runs: list[Any] = [measure_delivery(options.records, callbacks=False, profile=options.profile)]
    runs.append(measure_delivery(options.records, callbacks=True))
    if options.backlog:
        runs.append(measure_memory(options.backlog))
    for run in runs:
        asyncio.run(run)


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        answer()
    else:
        main()
