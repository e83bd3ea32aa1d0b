"""The same commands to a ledger in memory and to one whose engine decides by itself: the same answers.

And commands that meet the exact edges of the rules often: limits, holds, marks and shares of the same amount.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from askii_middleware.admission import Candidate
from askii_middleware.budgets import Budget
from askii_middleware.errors import AskiiError
from askii_middleware.stores import open_store

from .support import Client, Clock, budget

Command = Callable[[Client], Awaitable[Any]]
CALLS = st.sampled_from(["a", "b", "c"])
HALF_OR_WHOLE = st.sampled_from([50, 50, 100])


EDGE_BUDGETS = st.builds(
    budget,
    # The first two are on the same counter of a call.
    st.sampled_from(["tenant=acme,model=*", "tenant=*,model=m", "global"]),
    st.sampled_from([100, 100, 200]),
    soft=st.sampled_from([False, False, True]),
    alert_at=st.sampled_from([(), (0.5, 1.0)]),
)


@st.composite
def edge_commands(drawn: st.DrawFn) -> Command:
    name, amount = drawn(CALLS), drawn(HALF_OR_WHOLE)
    kind = drawn(st.sampled_from(["reserve", "reserve", "reserve", "settle", "settle", "extend", "release", "budget"]))
    if kind == "reserve":
        least, ppm = drawn(st.sampled_from([None, 50])), drawn(st.sampled_from([500_000, 1_000_000]))
        replaces, count = drawn(st.sampled_from([None, "a", "b"])), drawn(st.integers(1, 2))

        def reserve(client: Client) -> Awaitable[Any]:
            matches = client.matches()
            candidates = tuple(Candidate(f"m{n}", amount, matches, least) for n in range(count))
            other = None if replaces == name else replaces
            return client.reserve(name, candidates=candidates, downgrade_at_ppm=ppm, replaces=other)

        return reserve
    if kind == "settle":
        cost = drawn(st.sampled_from([amount, amount, -50]))
        return lambda client: client.settle(name, cost)
    if kind == "budget":
        new = drawn(EDGE_BUDGETS)
        return lambda client: client.set(new)
    if kind == "extend":
        sequence = drawn(st.integers(1, 3))
        return lambda client: client.extend(name, amount + 50, amount, sequence=sequence)
    return lambda client: client.store.release(name)


edges = {
    "started": st.lists(EDGE_BUDGETS, min_size=1, max_size=4),
    "commands": st.lists(edge_commands(), min_size=3, max_size=8),
}


async def answer_of(client: Client, command: Command) -> Any:
    try:
        return await command(client)
    except AskiiError as error:
        return type(error)


async def seen(client: Client) -> Any:
    """All that a reader sees of the money."""
    states = [await client.status(t, end_user=u, model=m) for t in ("acme", "other") for u, m in (("ann", "big"),)]
    alerts = [(alert.id, alert.spent_nano_usd) for alert in await client.alerts()]
    return states, await client.store.totals(), await client.store.credits(), alerts


async def compare(
    url: str,
    started: Sequence[Budget],
    commands: Sequence[Command],
    before_each: Callable[[int], None] = lambda n: None,
) -> None:
    """`url`: a ledger that nobody has used. `before_each`: is told which command comes."""
    clients = []
    for its_url in ("memory://", url):
        clock = Clock()
        clients.append(Client(open_store(its_url, clock=clock), clock))
    try:
        for client in clients:
            await client.store.open()
            await client.store.heartbeat("w", 3600)
            await client.set(*started)
        for n, command in enumerate(commands):
            before_each(n)
            expected, answer = [await answer_of(client, command) for client in clients]
            assert answer == expected
        expected, answer = [await seen(client) for client in clients]
        assert answer == expected
    finally:
        for client in clients:
            await client.store.close()
