"""Requests that travel together are each answered once, whatever becomes of the one that sends for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.postgres.together import LANES, Together


class Server:
    """Answers requests tenfold, when it is told to."""

    def __init__(self, *, most: int = 50, timeout_s: float = 5.0) -> None:
        self.sent: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.error: StoreError | None = None
        self.together: Together[int, int] = Together(self.send, most=most, timeout_s=timeout_s)

    async def send(self, requests: Sequence[int]) -> list[int]:
        self.sent.append(list(requests))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [10 * request for request in requests]

    def ask(self, *requests: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.together.ask(request)) for request in requests]


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_finds_the_way_free_takes_along_all_that_wait_up_to_a_bound() -> None:
    server = Server(most=4)
    asked = server.ask(*range(10))
    await turns()
    assert server.sent == [[0], [1]]
    server.may_answer.set()
    assert await asyncio.gather(*asked) == [10 * n for n in range(10)]
    assert sorted(request for sent in server.sent for request in sent) == list(range(10))
    assert len(server.sent) <= LANES + 3
    assert max(map(len, server.sent)) == 4


async def test_others_are_answered_although_the_sender_or_one_that_waits_is_cancelled() -> None:
    server = Server()
    asked = server.ask(*range(6))
    await turns()
    asked[0].cancel()  # sends
    asked[3].cancel()  # waits
    await turns()
    asked[2].cancel()  # was woken and sends by now
    await turns()
    server.may_answer.set()
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert [answer if isinstance(answer, int) else None for answer in answers] == [None, 10, None, None, 40, 50]


async def test_one_that_is_cancelled_in_the_moment_it_is_woken_wakes_the_next() -> None:
    server = Server()
    asked = server.ask(*range(5))
    await turns()
    waiting = server.together._waiting
    for task in asked[:LANES]:
        task.cancel()
    while not waiting[0][1].done():
        await asyncio.sleep(0)
    asked[LANES].cancel()
    server.may_answer.set()
    assert await asyncio.wait_for(asyncio.gather(*asked[LANES + 1 :]), 5) == [30, 40]


async def test_an_error_of_the_server_is_that_of_all_it_was_asked_for() -> None:
    server = Server()
    server.error = StoreError("down")
    asked = server.ask(*range(5))
    await turns()
    server.may_answer.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers == [server.error] * 5
    assert len(server.sent) <= LANES + 2


async def test_waiting_for_others_ends_with_the_time_out() -> None:
    server = Server(timeout_s=0.05)
    asked = server.ask(*range(4))
    for task in asked:
        with pytest.raises(StoreError, match="did not answer within"):
            await asyncio.wait_for(task, 5)
    server.may_answer.set()
    assert await server.together.ask(7) == 70
