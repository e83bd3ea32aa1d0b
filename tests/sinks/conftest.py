from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from askii_middleware.stores.base import Store
from askii_middleware.stores.memory import MemoryStore

from .support import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[Store]:
    store = MemoryStore(clock=clock)
    await store.open()
    yield store
    await store.close()
