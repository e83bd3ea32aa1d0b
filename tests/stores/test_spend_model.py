"""Sums over spans against plain addition, wherever the edges are: engines keep sums of their own for longer times."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import NamedTuple

import pytest

from askii_middleware.stores.base import AggregateRow, SpendRow, SpendSums

from .support import DAY_S, NOON_S, Client

LAST_HOUR = int(NOON_S + DAY_S / 2) // 3600
SCOPES = ("tenant=a", "tenant=b", "tenant=c", "tenant=a,user=u", "tenant=a,user=v", "global/1")


class Row(NamedTuple):
    hour: int
    scope: str
    model: str
    cost: int


def added(rows: list[Row]) -> list[int]:
    """Requests, input tokens, output tokens, nano-USD."""
    return [len(rows), 2 * len(rows), 3 * len(rows), sum(row.cost for row in rows)]


async def written(client: Client, rows: list[Row]) -> None:
    await client.store.settle_many(
        [
            client.settlement(
                f"c{n}", 1, at_s=hour * 3600 + 5, aggregates=(AggregateRow(scope, model, "p", 1, 2, 3, cost),)
            )
            for n, (hour, scope, model, cost) in enumerate(rows)
        ]
    )


@pytest.mark.parametrize("seed", range(3))
async def test_spans_and_ranks_are_what_their_hours_add_up_to(client: Client, seed: int) -> None:
    chance = Random(seed)
    rows = [
        Row(LAST_HOUR - chance.randrange(96), chance.choice(SCOPES), chance.choice("xyz"), chance.randrange(-50, 100))
        for _ in range(chance.randrange(20, 150))
    ]
    await written(client, rows)
    for _ in range(30):
        edges = sorted(LAST_HOUR - chance.randrange(-24, 110) for _ in range(chance.randrange(2, 9)))
        scopes = chance.sample(SCOPES, chance.randrange(1, 4))
        expected = []
        for first, last in pairwise(edges):
            here = [row for row in rows if first <= row.hour < last and row.scope in scopes]
            models = sorted({row.model for row in here})
            expected.append([SpendRow(m, "p", *added([row for row in here if row.model == m])) for m in models])
        assert await client.store.spend_over(scopes, [edge * 3600 for edge in edges]) == expected, edges
        for prefix in ("tenant=", "tenant=a,user="):
            here = [row for row in rows if edges[0] <= row.hour < edges[-1]]
            names = {row.scope for row in here if row.scope.startswith(prefix) and "," not in row.scope[len(prefix) :]}
            sums = [SpendSums(name, *added([row for row in here if row.scope == name])) for name in names]
            sums.sort(key=lambda one: (-one.cost_nano_usd, one.scope))
            found = await client.store.top_spend(prefix, edges[0] * 3600, edges[-1] * 3600, 2)
            assert found == sums[:2], (prefix, edges)
