"""The contract of admission and settlement, over a SQLite ledger with leases: the same tests, the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.admission import BudgetState
from askii_middleware.leased import LeasedStore
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Store
from tests.stores.support import Client, Clock
from tests.stores.test_extend import *  # noqa: F403 - they are collected here once more
from tests.stores.test_first_calls import *  # noqa: F403 - as above
from tests.stores.test_operations import *  # noqa: F403 - as above
from tests.stores.test_reserve import *  # noqa: F403 - as above
from tests.stores.test_settle import *  # noqa: F403 - as above
from tests.stores.test_settle_many import *  # noqa: F403 - as above
from tests.stores.test_workers import *  # noqa: F403 - as above

DIFFERENT = (
    # What a dead worker had drawn counts as held, here until the end of its window.
    "test_a_hold_that_does_not_count_any_more_is_not_revived",
    "test_the_hold_of_an_operation_can_grow_without_its_worker",
    # A draw that is under way may take what an extension at the same moment would have got.
    "test_an_extension_takes_what_is_left_if_that_is_enough_and_else_nothing",
    # They draw credit themselves.
    "test_each_call_is_settled_as_if_alone_and_in_this_order",
    "test_one_that_can_never_be_written_keeps_none_of_the_others_from_being_written",
)
for _name in DIFFERENT:
    del globals()[_name]


class Tidy(LeasedStore):
    """Gives idle credit back before anybody looks, so that what is held is what calls hold."""

    async def status(self, *asked: Any) -> list[BudgetState]:
        await self._draw(everything=True)
        return await super().status(*asked)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(clock: Clock, tmp_path: Path) -> AsyncIterator[Store]:
    store = Tidy(open_store(f"sqlite:///{tmp_path / 'askii.db'}", clock=clock))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def client(store: Store, clock: Clock) -> Client:
    await store.heartbeat("w", 30 * 86_400)
    return Client(store, clock)
