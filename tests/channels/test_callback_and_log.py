"""Alerts to functions and to the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable
from functools import partial

import pytest

from askii_middleware.channels import AlertNotice, CallbackChannel, LogChannel
from askii_middleware.channels.base import AlertError

from .support import notice


async def test_the_log_gets_one_warning_with_everything(caplog: pytest.LogCaptureFixture) -> None:
    await LogChannel().send(notice(3))
    (line,) = caplog.records
    assert (line.name, line.levelno) == ("askii_middleware.alerts", logging.WARNING)
    assert line.getMessage() == f"{notice(3).text} (alert {notice(3).id})"


async def test_an_async_function_runs_on_the_event_loop() -> None:
    seen: list[tuple[AlertNotice, int]] = []

    class Told:
        async def __call__(self, alert: AlertNotice) -> None:
            await asyncio.sleep(0)
            seen.append((alert, threading.get_ident()))

    await CallbackChannel(Told()).send(notice(1))
    await CallbackChannel(Told().__call__).send(notice(2))
    await CallbackChannel(partial(Told().__call__)).send(notice(3))
    here = threading.get_ident()
    assert seen == [(notice(1), here), (notice(2), here), (notice(3), here)]


async def test_a_plain_function_may_block_because_it_runs_in_a_thread() -> None:
    seen: list[int] = []
    done = threading.Event()

    def told(_alert: AlertNotice) -> None:
        assert done.wait(10)
        seen.append(threading.get_ident())

    sending = asyncio.create_task(CallbackChannel(told).send(notice()))
    await asyncio.sleep(0)
    done.set()
    await sending
    assert seen != [threading.get_ident()]


async def test_a_plain_function_that_gives_back_a_coroutine_is_awaited() -> None:
    seen: list[str] = []

    async def later(alert: AlertNotice) -> None:
        seen.append(alert.id)

    def soon(alert: AlertNotice) -> Awaitable[None]:
        return later(alert)

    await CallbackChannel(soon).send(notice(1))
    assert seen == [notice(1).id]


async def test_a_thread_that_hangs_is_never_joined_by_a_second_one() -> None:
    release = threading.Event()
    entered: list[str] = []

    def stuck(alert: AlertNotice) -> None:
        entered.append(alert.id)
        release.wait(10)

    channel = CallbackChannel(stuck)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await channel.send(notice(1))
    with pytest.raises(AlertError, match="still busy"):
        await channel.send(notice(1))
    release.set()
    async with asyncio.timeout(10):
        while len(entered) < 2:
            try:
                await channel.send(notice(2))
            except AlertError:
                await asyncio.sleep(0.002)
    assert entered == [notice(1).id, notice(2).id]
