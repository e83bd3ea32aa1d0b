"""`@tracked`: every kind of function, from every kind of thread, and the loop that serves it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import Budget, BudgetExceededError, ConfigurationError, CostTracker, Param, tracked
from askii_middleware.counting import Usage
from askii_middleware.portal import run_sync

from .support.service import (
    Clock,
    amounts,
    assert_balanced,
    both_stores,
    faulty,
    make_tracker,
    opened,
    records_of,
    soon,
    url_of,
)

ROOT = Path(__file__).parents[1]


def answer(prompt: int = 10, completion: int = 5, model: str = "big") -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def pieces(count: int) -> list[dict[str, Any]]:
    """A stream's chunks: `count` of text, then the usage."""
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "big"}
    texts = [{**base, "choices": [{"index": 0, "delta": {"content": f"w{n}"}}]} for n in range(count)]
    usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
    return [*texts, {**base, "choices": [], "usage": usage}]


# Asynchronous functions -----------------------------------------------------------------------------------------------


@both_stores
async def test_an_async_functions_answer_is_charged_and_returned(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=50, max_output_tokens=5)
        async def ask(question: str) -> dict[str, Any]:
            """Ask."""
            assert await amounts(tracker) == (0, 60_000)
            return answer(len(question), 1)

        assert inspect.iscoroutinefunction(ask)
        assert (ask.__name__, ask.__doc__) == ("ask", "Ask.")
        assert await ask("hello") == answer(5, 1)
        assert await amounts(tracker) == (7000, 0)
        await assert_balanced(tracker)


async def test_literals_parameters_and_callables_say_who_pays_for_what(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(
            model=Param("model"),
            tenant_id=lambda who, *_args, **_more: who.upper(),
            tracker=tracker,
            expected_input_tokens=lambda _who, text, **_more: len(text),
            max_output_tokens=Param("limit"),
        )
        async def ask(who: str, text: str, limit: int = 7, *, model: str = "big") -> dict[str, Any]:
            assert await amounts(tracker, f"tenant={who.upper()}") == (0, 2000 + 2000 * limit)
            return answer(1, 1, model)

        await ask("acme", "hi")
        await ask("emca", "hi", limit=1)
        assert await amounts(tracker, "tenant=ACME") == (3000, 0)
        assert await amounts(tracker, "tenant=EMCA") == (3000, 0)


async def test_the_admitted_model_is_passed_on(tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=*", limit_usd="0.001")]
    async with opened("memory", tmp_path, budgets=budgets, fallbacks={"big": ["small"]}) as tracker:
        seen = []

        @tracked(
            model=Param("model"), tenant_id="acme", tracker=tracker, expected_input_tokens=5000, max_output_tokens=0
        )
        async def ask(model: str = "big") -> dict[str, Any]:
            seen.append(model)
            return answer(1, 1, model)

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10**9)
        async def refused(model: str) -> None:
            seen.append(model)

        await ask()
        await ask("big")
        await ask(model="small")
        assert seen == ["small"] * 3
        with pytest.raises(BudgetExceededError):
            await refused()  # type: ignore[call-arg]
        assert seen == ["small"] * 3
        assert await amounts(tracker) == (900, 0)


async def test_functions_may_count_for_themselves(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, usage="usage", expected_input_tokens=1)
        async def named(text: str, usage: Usage | None = None) -> str:
            assert usage is not None
            usage["input_tokens"] = 4
            return text

        @tracked(model="big", tenant_id="acme", tracker=tracker, usage="counts", expected_input_tokens=1)
        def gathered(**more: Any) -> str:
            more["counts"]["input_tokens"] = 5
            return "plain text is no response"

        assert await named("ok") == "ok"
        await asyncio.to_thread(gathered)
        assert await amounts(tracker) == (9000, 0)


async def test_mistakes_are_found_before_anything_is_held(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ConfigurationError, match="has no parameter 'who'"):

            @tracked(model="big", tenant_id=Param("who"), tracker=tracker)
            async def unknown(whom: str) -> None: ...

        with pytest.raises(ConfigurationError, match="needs a model"):

            @tracked(model=None, tracker=tracker)
            async def without() -> None: ...

        @tracked(model="big", tenant_id="acme", tracker=tracker)
        async def ask(question: str) -> None:
            raise AssertionError

        with pytest.raises(TypeError, match="question"):
            await ask()  # type: ignore[call-arg]
        assert "reserve" not in tracker.metrics.render("")[0].decode()
        await assert_balanced(tracker)


async def test_an_exception_releases_and_passes(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=1)
        async def fails() -> None:
            raise KeyError("provider down")

        with pytest.raises(KeyError, match="provider down"):
            await fails()
        assert await amounts(tracker) == (0, 0)
        assert len(tracker.deferrals) == 0


async def test_methods_are_decorated_like_functions(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        class Service:
            tenant = "acme"

            @tracked(model="big", tenant_id=lambda self, *_: self.tenant, tracker=tracker, expected_input_tokens=1)
            async def ask(self, question: str) -> dict[str, Any]:
                return answer(len(question), 0)

        await Service().ask("hello")
        assert await amounts(tracker) == (5000, 0)


# Generators ----------------------------------------------------------------------------------------------------------


@both_stores
async def test_an_async_generators_chunks_are_charged_and_passed_on(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        async def stream(count: int) -> AsyncIterator[dict[str, Any]]:
            for piece in pieces(count):
                yield piece

        assert inspect.isasyncgenfunction(stream)
        assert [piece async for piece in stream(3)] == pieces(3)
        assert await amounts(tracker) == (16_000, 0)


async def test_an_async_generator_gets_what_is_sent_and_thrown_in(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        closed = []

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10, usage="usage")
        async def echo(usage: Any = None) -> Any:
            usage["input_tokens"] = 1
            got = None
            try:
                while True:
                    try:
                        got = yield got
                    except KeyError as error:
                        got = f"caught {error}"
            finally:
                closed.append(True)

        items = echo()
        assert await anext(items) is None
        assert await items.asend("a") == "a"
        assert await items.athrow(KeyError("b")) == "caught 'b'"
        with pytest.raises(ValueError, match="c"):
            await items.athrow(ValueError("c"))
        assert closed == [True]
        assert await amounts(tracker) == (1000, 0)


async def test_an_async_generator_that_is_closed_early_costs_its_prompt_and_what_was_seen(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        closed = []

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        async def stream(*, text: bool) -> AsyncIterator[Any]:
            try:
                for piece in pieces(5):
                    yield "plain" if text else piece
            finally:
                closed.append(True)

        for text in (False, True):
            items = stream(text=text)
            await anext(items)
            await anext(items)
            await items.aclose()  # type: ignore[attr-defined]
        assert closed == [True, True]
        first, second = await records_of(tracker)
        assert (first.usage.input_tokens, first.usage.output_tokens) == (10, 2)
        assert (second.usage.input_tokens, second.usage.output_tokens) == (10, 0)
        assert {(r.outcome, r.estimated) for r in (first, second)} == {("client_disconnected", True)}
        assert (await amounts(tracker))[1] == 0


async def test_a_generator_that_breaks_before_its_first_item_costs_nothing(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        async def stream() -> AsyncIterator[str]:
            if tracker:
                raise ConnectionError
            yield ""

        with pytest.raises(ConnectionError):
            await anext(stream())
        assert await amounts(tracker) == (0, 0)


async def test_a_sync_generator_keeps_its_protocol(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        def echo() -> Generator[Any, Any, dict[str, Any]]:
            got = None
            while got != "end":
                try:
                    got = yield got
                except KeyError as error:
                    got = f"caught {error}"
            return answer(3, 0)

        def use() -> None:
            items = echo()
            assert next(items) is None
            assert items.send("a") == "a"
            assert items.throw(KeyError("b")) == "caught 'b'"
            with pytest.raises(StopIteration) as stopped:
                items.send("end")
            assert stopped.value.value == answer(3, 0)

        assert inspect.isgeneratorfunction(echo)
        await asyncio.to_thread(use)
        assert await amounts(tracker) == (3000, 0)


async def test_a_sync_generator_closed_early_or_left_to_the_collector_settles(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        def stream() -> Iterator[Any]:
            yield from pieces(5)

        def use() -> Iterator[Any]:
            items = stream()
            next(items)
            next(items)
            return items

        items = await asyncio.to_thread(use)
        await asyncio.to_thread(items.close)  # type: ignore[attr-defined]
        assert await amounts(tracker) == (14_000, 0)
        # The second one dies on the tracker's own loop, which cannot wait for itself.
        items = await asyncio.to_thread(use)
        del items
        gc.collect()
        await soon(lambda: _spent(tracker, 28_000))
        await assert_balanced(tracker)


async def _spent(tracker: CostTracker, nano_usd: int) -> bool:
    return await amounts(tracker) == (nano_usd, 0)


# Threads, loops, processes -------------------------------------------------------------------------------------------


@both_stores
async def test_a_sync_function_in_a_thread_is_served_by_the_trackers_loop(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        def ask() -> dict[str, Any]:
            return answer(1, 0)

        await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(20)))
        assert await amounts(tracker) == (20_000, 0)
        await assert_balanced(tracker)


async def test_a_sync_function_on_the_trackers_own_loop_says_what_to_do(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
        def ask() -> None:
            raise AssertionError

        with pytest.raises(RuntimeError, match="to_thread"):
            ask()
        await assert_balanced(tracker)


def test_synchronous_code_without_any_loop_gets_one(tmp_path: Path) -> None:
    tracker = make_tracker(url_of("sqlite", tmp_path))

    @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10)
    def ask() -> dict[str, Any]:
        return answer(1, 0)

    @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10**7)
    def refused() -> None: ...

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(BudgetExceededError):
        refused()
    assert run_sync(tracker, lambda: amounts(tracker)) == (8000, 0)
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(tracker.ready())
    run_sync(tracker, tracker.stop)
    assert asyncio.run(_reopened(tracker)) == (8000, 0)


async def _reopened(tracker: CostTracker) -> tuple[int, int]:
    async with tracker:
        return await amounts(tracker)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A run in the background of a shell may have been started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("fault", ["hang", "hang after"])
def test_an_interrupt_while_a_hold_is_placed_leaves_none(fault: str, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    tracker = make_tracker(store, clock=clock, settle_timeout_s=60.0)
    store.faults["reserve"] = [fault]

    @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=10, max_output_tokens=0)
    def ask() -> None:
        raise AssertionError

    async def held() -> int:
        return (await store.inner.totals()).held_nano_usd

    def is_waiting() -> bool:
        return "reserve" in store.calls and (fault == "hang" or bool(run_sync(tracker, held)))

    def interrupt() -> None:
        give_up_s = time.monotonic() + 10
        while time.monotonic() < give_up_s and not is_waiting():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ask()
    thread.join()
    run_sync(tracker, tracker.flush)
    assert run_sync(tracker, held) == 0
    run_sync(tracker, tracker.stop)


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONASYNCIODEBUG": "0"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_script_that_just_ends_has_charged_and_delivered_everything(tmp_path: Path) -> None:
    done = run_script(
        """
        from askii_middleware import CostTracker, LogSink, ModelPrice, tracked

        tracker = CostTracker(
            store="sqlite:///ledger.db",
            sinks=[LogSink("usage.jsonl")],
            prices={"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)},
        )

        @tracked(model="big", tenant_id="acme", tracker=tracker, expected_input_tokens=7, max_output_tokens=0)
        def ask():
            return "no usage: its hold is charged at the end"

        ask()
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1, done.stderr
    lines = (tmp_path / "usage.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert '"cost_nano_usd":7000' in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.db", "usage.jsonl"]


def test_a_forked_process_gets_a_loop_and_a_ledger_of_its_own(tmp_path: Path) -> None:
    done = run_script(
        """
        import os, sys, warnings
        from askii_middleware import CostTracker, ModelPrice, tracked
        from askii_middleware.portal import run_sync

        warnings.simplefilter("ignore", DeprecationWarning)
        tracker = CostTracker(
            store="sqlite:///ledger.db", prices={"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)}
        )

        @tracked(model="big", tenant_id="acme", tracker=tracker, usage="usage", expected_input_tokens=7)
        def ask(usage=None):
            usage["input_tokens"] = 1

        ask()
        child = os.fork()
        ask()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print(run_sync(tracker, tracker.store.totals).cost_nano_usd)
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3000\n", "", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.db"]
