"""A store with leases as its callers see it, over SQLite and an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import CostTracker, ModelPrice
from askii_middleware.admission import Admission, ReserveRequest
from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.journal import Journal
from askii_middleware.leased import LeasedStore
from askii_middleware.leased.delegating import DelegatingStore
from askii_middleware.settings import load_settings
from askii_middleware.stores import open_store
from askii_middleware.stores.base import (
    DeadWorkerError,
    Drawn,
    DrawRequest,
    Operation,
    Promotion,
    Settled,
    Settlement,
    ShortCreditError,
    Store,
    UnwritableError,
)
from askii_middleware.writer import LedgerWriter
from tests.stores.support import Client, Clock, budget

LIMIT = 1_000_000


class Wire(DelegatingStore):
    """Tells what came over it, and fails on command."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.seen: list[str] = []
        self.fails: dict[str, Exception] = {}
        """By operation: what it raises, having done nothing."""
        self.unanswered: set[str] = set()
        """Operations that are done and not answered."""
        self.gate = asyncio.Event()
        self.gate.set()

    async def _pass(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        self.seen.append(name)
        await self.gate.wait()
        if name in self.fails:
            work.close()
            raise self.fails[name]
        answer = await work
        if name in self.unanswered:
            raise StoreError("no answer")
        return answer

    async def open(self) -> None:
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        return await self._store.heartbeat(worker, ttl_s)

    async def reserve(self, request: ReserveRequest) -> Admission:
        return await self._pass("reserve", self._store.reserve(request))  # type: ignore[no-any-return]

    async def extend(self, request: Any) -> Any:
        return await self._pass("extend", self._store.extend(request))

    async def settle(self, settlement: Settlement) -> Settled:
        return await self._pass("settle", self._store.settle(settlement))  # type: ignore[no-any-return]

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        name = f"settle {len(settlements)}"
        return await self._pass(name, self._store.settle_many(settlements))  # type: ignore[no-any-return]

    async def release(self, call_id: str) -> None:
        await self._pass("release", self._store.release(call_id))

    async def defer(self, operation: Operation) -> bool:
        return await self._pass("defer", self._store.defer(operation))  # type: ignore[no-any-return]

    async def draw(self, request: DrawRequest) -> Drawn:
        return await self._pass("draw", self._store.draw(request))  # type: ignore[no-any-return]

    async def promote(self, promotion: Promotion) -> None:
        await self._pass("promote", self._store.promote(promotion))


class Monotonic:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def wire(clock: Clock, tmp_path: Path) -> Wire:
    return Wire(open_store(f"sqlite:///{tmp_path / 'askii.db'}", clock=clock))


@pytest.fixture
def ticks() -> Monotonic:
    """Monotonic time, which stands still."""
    return Monotonic()


@pytest.fixture
async def client(wire: Wire, clock: Clock, ticks: Monotonic) -> AsyncIterator[Client]:
    store = LeasedStore(wire, monotonic=ticks)
    await store.open()
    await store.heartbeat("w", 86_400)
    client = Client(store, clock, [budget("tenant=*", LIMIT)])
    client.index.update(*await store.forms())
    yield client
    wire.fails.clear()
    wire.gate.set()
    await store.close()


async def warm(client: Client, wire: Wire, hold: int = 100) -> None:
    """A call through the store, after which there is credit for about ten."""
    await client.reserve("warm", hold)
    await client.store.release("warm")
    ticks = client.store._monotonic  # type: ignore[attr-defined]
    while "draw" not in wire.seen or await client.spent_held() == (0, 0):
        await asyncio.sleep(0.002)
        ticks.now_s += 0.002
    await asyncio.sleep(0.01)
    wire.seen.clear()


async def test_a_call_is_admitted_and_released_without_a_word_to_the_store(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    assert (await client.reserve("a", 100)).candidate == 0
    await client.store.release("a")
    assert wire.seen == []


async def test_an_admission_from_credit_does_not_even_suspend(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    work = client.store.reserve(client.request("a", 100))
    with pytest.raises(StopIteration):
        work.send(None)


async def test_ended_calls_go_out_at_once_and_those_that_follow_within_10_ms_together(
    client: Client, wire: Wire
) -> None:
    await warm(client, wire)
    for n in range(8):
        await client.reserve(f"a{n}", 100)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert (await client.settle("a0", 50)).coins == 0
    assert wire.seen == ["settle 1"]
    at_once_s = loop.time() - began_s
    await asyncio.gather(*(client.settle(f"a{n}", 50) for n in range(1, 8)))
    assert wire.seen == ["settle 1", "settle 7"]
    assert at_once_s < 0.01 <= loop.time() - began_s
    assert (await client.spent_held())[0] == 400


async def test_no_batch_is_larger_than_100_and_a_full_one_does_not_wait(client: Client, wire: Wire) -> None:
    await asyncio.gather(*(client.settle(f"a{n}", 1) for n in range(250)))
    assert wire.seen == ["settle 100", "settle 100", "settle 50"]
    assert await client.spent_held() == (250, 0)


async def test_each_caller_gets_its_own_answer(client: Client) -> None:
    settled = await asyncio.gather(
        client.settle("a", 1, rate="5000000000"),
        client.settle("b", 2**60),
        client.settle("c", 3, rate="5000000000"),
        client.settle("a", 1, rate="5000000000"),
        return_exceptions=True,
    )
    assert settled[0] == Settled(5, late=False, duplicate=False)
    assert isinstance(settled[1], UnwritableError)
    assert settled[2] == Settled(15, late=False, duplicate=False)
    assert settled[3] == Settled(5, late=False, duplicate=True)


async def test_a_caller_that_gives_up_hurts_no_other(client: Client, wire: Wire) -> None:
    wire.gate.clear()
    under_way = asyncio.create_task(client.settle("a", 1))
    other = asyncio.create_task(client.settle("b", 2))
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(client.settle("c", 4))
    await asyncio.sleep(0)
    under_way.cancel()
    waiting.cancel()
    await asyncio.sleep(0.02)
    wire.gate.set()
    assert not (await other).duplicate
    assert (await client.settle("a", 1)).duplicate
    assert not (await client.settle("c", 4)).duplicate
    assert await client.spent_held() == (7, 0)


async def test_a_batch_the_store_did_not_take_fails_for_all_and_may_be_repeated(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    await client.reserve("b", 100)
    wire.fails["settle 2"] = StoreError("away")
    failed = await asyncio.gather(client.settle("a", 40), client.settle("b", 40), return_exceptions=True)
    assert [type(error) for error in failed] == [StoreError, StoreError]
    held = (await client.spent_held())[1]
    wire.fails.clear()
    await asyncio.gather(client.settle("a", 40), client.settle("b", 40))
    assert await client.spent_held() == (80, held - 80)


async def test_a_journals_settlement_still_names_its_credit_after_the_store_was_away(
    client: Client, wire: Wire
) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.unanswered.add("settle 1")
    with pytest.raises(StoreError):
        await client.settle("a", 40)
    wire.unanswered.clear()
    held = (await client.spent_held())[1]
    (settled,) = await client.store.settle_many([client.settlement("a", 40)])
    assert settled == Settled(0, late=False, duplicate=True)
    assert await client.spent_held() == (40, held)


async def test_holds_of_direct_calls_settle_in_the_same_batches(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("here", 100)
    await client.reserve("there", 900_000)
    wire.seen.clear()
    await asyncio.gather(client.settle("here", 10), client.settle("there", 20))
    assert "settle 2" in wire.seen
    assert (await client.spent_held())[0] == 30


async def test_a_shortage_here_refuses_nobody(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    admitted = 0
    while not wire.seen:
        assert (await client.reserve(f"a{admitted}", 100)).candidate == 0
        admitted += 1
    assert wire.seen == ["reserve"]
    assert admitted > 5


async def test_a_call_is_refused_only_when_no_credit_lies_idle_here(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    assert (await client.spent_held())[1] > 0
    assert (await client.reserve("big", LIMIT)).candidate == 0
    assert wire.seen == ["reserve", "draw", "reserve"]
    assert (await client.spent_held()) == (0, LIMIT)
    refused = await client.reserve("next", 1)
    assert (refused.candidate, refused.reason) == (None, "held")
    assert wire.seen[3:] == ["reserve"]


async def test_of_refused_calls_at_the_same_time_one_gives_back_for_all(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    answers = await asyncio.gather(*(client.reserve(f"big{n}", LIMIT // 2) for n in range(4)))
    assert sorted(answer.candidate is None for answer in answers) == [False, False, True, True]
    assert wire.seen.count("draw") <= 2


async def test_a_stream_grows_on_credit_and_beyond_it_on_a_hold(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    assert (await client.extend("a", 150)).hold_nano_usd == 150
    assert wire.seen == []
    assert (await client.extend("a", 100_000, sequence=2)).hold_nano_usd == 100_000
    assert wire.seen[:2] == ["promote", "extend"]
    assert (await client.extend("a", 100_500, sequence=3)).hold_nano_usd == 100_500
    assert wire.seen[2:] == ["extend"]
    await client.settle("a", 100_400)
    assert (await client.spent_held())[0] == 100_400


async def test_a_stream_whose_promotion_is_not_answered_may_ask_again(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.unanswered.add("promote")
    with pytest.raises(StoreError):
        await client.extend("a", 100_000)
    wire.unanswered.clear()
    assert (await client.extend("a", 100_000)).hold_nano_usd == 100_000
    await client.store.release("a")
    await client.store.close()
    await client.store.open()
    assert await client.spent_held() == (0, 0)


async def test_a_stream_whose_credit_is_gone_is_refused_for_now_and_is_not_in_doubt(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.fails["promote"] = ShortCreditError("only 0")
    with pytest.raises(ShortCreditError):
        await client.extend("a", 100_000)
    assert wire.seen == ["promote", "draw", "promote"]
    wire.fails.clear()
    wire.seen.clear()
    assert (await client.extend("a", 200)).granted
    assert wire.seen == []
    await client.store.release("a")
    assert wire.seen == []


async def test_a_promotion_that_finds_no_credit_draws_and_tries_again(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    ledger, asked = wire._store, []
    promote = ledger.promote

    async def short_at_first(promotion: Promotion) -> None:
        asked.append(promotion.call_id)
        if len(asked) == 1:
            raise ShortCreditError("only 0")
        await promote(promotion)

    ledger.promote = short_at_first  # type: ignore[method-assign]
    assert (await client.extend("a", 100_000)).hold_nano_usd == 100_000
    assert wire.seen[:4] == ["promote", "draw", "promote", "extend"]


async def test_a_short_answer_says_nothing_of_an_earlier_promotion_that_was_not_answered(
    client: Client, wire: Wire
) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.fails["promote"] = StoreError("no answer")
    assert await client.defer("a")
    wire.fails["promote"] = ShortCreditError("only 0")
    with pytest.raises(ShortCreditError):
        await client.extend("a", 100_000)
    call = client.store._book.open_call("a")  # type: ignore[attr-defined]
    assert call is not None
    assert call.doubtful


@pytest.mark.parametrize("landed", [True, False])
async def test_a_released_call_whose_promotion_was_in_doubt_leaves_nothing_held(
    client: Client, wire: Wire, landed: bool
) -> None:
    await warm(client, wire)
    for n in range(5):
        await client.reserve(f"a{n}", 100)
        if landed:
            wire.unanswered.add("promote")
        else:
            wire.fails["promote"] = StoreError("no answer")
        assert await client.defer(f"a{n}")
        wire.fails.clear()
        wire.unanswered.clear()
        await client.store.release(f"a{n}")
    await client.store.close()
    await client.store.open()
    assert await client.spent_held() == (0, 0)
    assert await client.store.credits() == []


@pytest.mark.parametrize("end", ["release", "settle"])
async def test_a_call_may_end_while_its_promotion_is_on_the_way(client: Client, wire: Wire, end: str) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.gate.clear()
    deferring = asyncio.create_task(client.defer("a"))
    await asyncio.sleep(0.005)
    ending = asyncio.create_task(_end(client, end))
    await asyncio.sleep(0.02)
    wire.gate.set()
    await ending
    assert await deferring
    await client.store.close()
    await client.store.open()
    assert await client.spent_held() == (30 if end == "settle" else 0, 0)


async def _end(client: Client, end: str) -> None:
    if end == "settle":
        await client.settle("a", 30)
    else:
        await client.store.release("a")


async def test_an_operation_takes_its_hold_along(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    assert await client.defer("a")
    assert wire.seen == ["promote", "defer"]
    assert (await client.store.totals()).held_nano_usd == 100
    await client.settle("a", 70)
    assert await client.store.operation("k:a") is None
    assert (await client.spent_held())[0] == 70


async def test_an_operation_whose_credit_cannot_become_a_hold_is_kept_all_the_same(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.fails["promote"] = StoreError("no credit")
    assert await client.defer("a")
    assert await client.store.operation("k:a") is not None
    held = (await client.spent_held())[1]
    await client.settle("a", 70)
    assert await client.spent_held() == (70, held - 70)


async def test_a_block_that_finds_no_credit_takes_its_requests_hold_to_the_store(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    await client.reserve("request", 100)
    admission = await client.reserve("block", 900_000, replaces="request")
    assert admission.candidate == 0
    assert wire.seen[:2] == ["promote", "reserve"]
    assert (await client.store.totals()).held_nano_usd == 900_000


async def test_when_draws_fail_credit_lapses_and_calls_go_to_the_store(
    client: Client, wire: Wire, ticks: Monotonic
) -> None:
    await warm(client, wire)
    wire.fails["draw"] = StoreError("away")
    ticks.now_s += 0.9
    assert (await client.reserve("a", 100)).candidate == 0
    assert "reserve" not in wire.seen
    ticks.now_s += 0.1
    assert (await client.reserve("b", 100)).candidate == 0
    assert "reserve" in wire.seen
    wire.fails["reserve"] = StoreError("away")
    with pytest.raises(StoreError):
        await client.reserve("c", 100)
    wire.fails.clear()
    ticks.now_s += 1
    await client.reserve("d", 100)
    await asyncio.sleep(0.05)
    wire.seen.clear()
    assert (await client.reserve("e", 100)).candidate == 0
    assert wire.seen == []


async def test_an_edit_from_here_takes_effect_at_once_and_one_from_elsewhere_with_the_next_draw(
    wire: Wire, clock: Clock, ticks: Monotonic
) -> None:
    store = LeasedStore(wire, monotonic=ticks)
    await store.open()
    await store.heartbeat("w", 86_400)
    await store.set_budget(budget("tenant=*", LIMIT))
    client = Client(store, clock)
    await client.refresh()
    await warm(client, wire)
    await store.set_budget(budget("tenant=*", 10))
    assert (await client.reserve("a", 100)).candidate is None
    await store.set_budget(budget("tenant=*", LIMIT))
    await warm(client, wire)
    await wire._store.set_budget(budget("tenant=*", 10))
    assert (await client.reserve("b", 1)).candidate == 0
    ticks.now_s += 0.4
    await client.reserve("c", 1)
    ticks.now_s += 0.6
    assert (await client.reserve("d", 100)).candidate is None
    assert await store.remove_budget("tenant=*|daily")
    await client.refresh()
    assert (await client.reserve("e", 100)).candidate == 0
    await store.close()


async def test_closing_sends_what_waits_and_gives_everything_back(client: Client, wire: Wire, clock: Clock) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    await client.reserve("b", 100)
    await client.settle("a", 10)
    settling = asyncio.create_task(client.settle("b", 20))
    await asyncio.sleep(0)
    await client.store.close()
    assert not (await settling).late
    await client.store.open()
    assert await client.spent_held() == (30, 0)


async def test_a_close_that_the_store_does_not_answer_ends_all_the_same(client: Client, wire: Wire) -> None:
    await warm(client, wire)
    wire.fails["draw"] = StoreError("away")
    await client.store.close()
    await client.store.open()
    assert (await client.spent_held())[1] > 0


async def test_a_worker_the_store_takes_for_dead_uses_no_credit_and_says_so_as_before(
    client: Client, wire: Wire, clock: Clock, ticks: Monotonic
) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    clock.advance(2 * 86_400)
    ticks.now_s += 2 * 86_400
    with pytest.raises(DeadWorkerError):
        await client.reserve("b", 100)
    assert not await client.store.heartbeat("w", 60)
    assert await client.store.heartbeat("w2", 60)
    assert (await client.reserve("b", 100, worker="w2")).candidate == 0
    assert not (await client.settle("a", 30, at_s=clock.now_s - 2 * 86_400)).late


async def test_two_loops_in_turn_use_one_store_and_its_credit(tmp_path: Path) -> None:
    store = LeasedStore(open_store(f"sqlite:///{tmp_path / 'askii.db'}"))

    async def use(n: int) -> int:
        await store.open()
        await store.heartbeat("w", 60)
        client = Client(store, Clock(), [budget("tenant=*", LIMIT)])
        client.index.update(*await store.forms())
        await client.settle(f"a{n}", 5)
        await store.close()
        return n

    assert await asyncio.to_thread(lambda: [asyncio.run(use(n)) for n in range(2)]) == [0, 1]


async def test_upkeep_is_the_stores_own(tmp_path: Path) -> None:
    inner = open_store(f"sqlite:///{tmp_path / 'askii.db'}")
    store = LeasedStore(inner)
    with pytest.raises(StoreError, match="not open"):
        await store.tend()
    await store.open()
    await store.tend()
    await store.close()


# Configuration --------------------------------------------------------------------------------------------------------


def test_a_ledger_of_one_process_has_nothing_to_lease() -> None:
    with pytest.raises(ConfigurationError, match="nothing to lease"):
        CostTracker(store="memory://", lease=True)
    with pytest.raises(ConfigurationError, match="nothing to lease"):
        load_settings(store="memory://", lease=True)


def test_a_lease_is_to_be_shorter_than_the_holds_live(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'askii.db'}"
    with pytest.raises(ConfigurationError, match="half of hold_ttl_s"):
        CostTracker(store=url, lease=True, lease_s=31)
    with pytest.raises(ConfigurationError, match="half of hold_ttl_s"):
        load_settings(store=url, lease=True, lease_s=31)
    with pytest.raises(ConfigurationError, match="lease_s"):
        CostTracker(store=url, lease=True, lease_s=0)


def test_the_settings_make_a_tracker_with_leases(tmp_path: Path) -> None:
    settings = load_settings(store=f"sqlite:///{tmp_path / 'askii.db'}", lease=True, lease_s=0.5)
    assert isinstance(CostTracker.from_settings(settings).store, LeasedStore)
    assert not isinstance(CostTracker(store=settings.store).store, LeasedStore)


async def test_a_tracker_with_leases_counts_every_call_and_leaves_no_credit_behind(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'askii.db'}"
    tracker = CostTracker(
        store=url,
        lease=True,
        budgets=[budget("tenant=*", 10**12)],
        prices={"m": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1)},
    )

    async def call() -> None:
        async with tracker.track_tokens("acme", "m", expected_input_tokens=100, max_output_tokens=100) as usage:
            usage["input_tokens"], usage["output_tokens"] = 100, 50

    async with tracker:
        for _ in range(5):
            await asyncio.gather(*(call() for _ in range(100)))
    ledger = open_store(url)
    await ledger.open()
    totals = await ledger.totals()
    assert (totals.calls, totals.cost_nano_usd) == (500, 500 * 150_000)
    assert (totals.held_nano_usd, totals.lost) == (0, 0)
    assert await ledger.credits() == []
    await ledger.close()


async def test_a_charge_that_waited_in_a_journal_uses_up_its_credit_whoever_writes_it(
    client: Client, wire: Wire, tmp_path: Path
) -> None:
    await warm(client, wire)
    await client.reserve("a", 100)
    wire.fails["settle 1"] = StoreError("away")
    writer = LedgerWriter(client.store, Journal(str(tmp_path / "journal")))
    assert await writer.settle(client.settlement("a", 60)) is None
    await writer.close()
    (before,) = await wire.credits()
    adopter = LedgerWriter(wire, Journal(str(tmp_path / "journal")))
    await adopter.open()
    await adopter.adopt_orphans()
    await adopter.replay()
    (after,) = await wire.credits()
    assert after.used_nano_usd - before.used_nano_usd == 60
    assert after.granted_nano_usd == before.granted_nano_usd
    await adopter.close()
