"""What a ledger in Redis forgets and what it keeps, so that its memory stays bounded and its sums stay right."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import PARTITIONS, AggregateRow, StaleFormsError
from askii_middleware.stores.redis import RedisStore, forgetting
from askii_middleware.stores.redis.wire import Part

from .support import ACME, DAY_S, NOON_S, Client, Clock, budget, dead, delivered


@pytest.fixture
async def ledger(redis_url: str, clock: Clock) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_url, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def caller(ledger: RedisStore, clock: Clock) -> Client:
    await ledger.heartbeat("w", 300 * DAY_S)
    return Client(ledger, clock)


async def ids(client: Client, after: int = 0) -> list[str]:
    return [msgspec.json.decode(record)["call_id"] for _, record in await client.store.records(after)]


async def test_records_go_8_days_after_the_last_sink_has_passed_them_and_their_sums_stay(
    ledger: RedisStore, caller: Client
) -> None:
    await ledger.register_sinks(["s", "slow"])
    for n in range(6):
        await caller.settle(f"a{n}", 10)
        await caller.settle(f"o{n}", 10, tenant="other")
    await caller.deliver("s", *(delivered(seq) for seq in range(1, 7)), *(delivered(seq, 0) for seq in range(1, 7)))
    await caller.deliver("slow", *(delivered(seq) for seq in range(1, 4)), dead(4))
    caller.clock.advance(8 * DAY_S - 1)
    await ledger.heartbeat("w", 300 * DAY_S)
    assert len(await ids(caller)) == 12
    caller.clock.advance(1)
    await ledger.heartbeat("w", 300 * DAY_S)
    assert await ids(caller) == ["o0", "o1", "o2", "o3", "a4", "o4", "a5", "o5"]
    assert await ids(caller, 9) == ["o4", "a5", "o5"]
    assert [await ledger.record(call_id) is None for call_id in ("a3", "a4", "o0")] == [True, False, False]
    assert await caller.waiting("slow") == ["o0", "o1", "o2", "o3", "a4", "o4", "a5", "o5"]
    (letter,) = await ledger.dead_letters("slow")
    assert (letter.call_id, msgspec.json.decode(letter.record)["call_id"]) == ("a3", "a3")
    totals = await ledger.totals()
    assert (totals.calls, totals.cost_nano_usd, totals.records, totals.records_nano_usd) == (12, 120, 12, 120)
    await caller.settle("a6", 10)
    (entry,) = [entry for entry in await ledger.fetch("s", range(PARTITIONS), 9) if entry.call_id == "a6"]
    assert entry.seq == 7
    await ledger.retry_dead("slow")
    assert (await caller.waiting("slow"))[0] == "a3"


async def test_without_a_sink_records_go_after_8_days_a_bounded_number_at_a_time(
    ledger: RedisStore, caller: Client
) -> None:
    await ledger.settle_many([caller.settlement(f"c{n}", 1) for n in range(1200)])
    caller.clock.advance(8 * DAY_S)
    left = []
    for _ in range(4):
        await ledger.heartbeat("w", 300 * DAY_S)
        left.append(len(await ledger.records(limit=5000)))
    assert left == [700, 200, 0, 0]
    assert await ledger._call("HLEN", "records") == 0
    assert (await ledger.totals()).records == 1200


async def test_what_a_ledger_keeps_without_an_end_does_not_grow_with_its_calls(
    ledger: RedisStore, caller: Client
) -> None:
    """Everything else expires by itself."""
    await ledger.register_sinks(["s"])
    await caller.set(budget("tenant=*", 1_000_000, alert_at=(0.001,)))

    async def sizes(days: int) -> dict[str, int]:
        for day in range(days):
            for n in range(10):
                await caller.reserve(f"{caller.clock.now_s} {n}", 300)
                await caller.settle(f"{caller.clock.now_s} {n}", 200)
            await caller.reserve(f"{caller.clock.now_s} open", 5)
            await caller.reserve(f"{caller.clock.now_s} gone", 5)
            await ledger.release(f"{caller.clock.now_s} gone")
            entries = await ledger.fetch("s", range(PARTITIONS), 100)
            await caller.deliver("s", *(delivered(entry.seq, entry.partition) for entry in entries))
            await ledger.put_item("kind", f"{day}", b"1", until_s=caller.clock.now_s + 60)
            caller.clock.advance(DAY_S)
            await ledger.heartbeat("w", 300 * DAY_S)
        found: Counter[str] = Counter()
        for key in await ledger._link.call("KEYS", f"{ledger._prefix}*"):
            if await ledger._link.call("TTL", key) == -1:
                kind = await ledger._link.call("TYPE", key)
                size = {b"hash": "HLEN", b"set": "SCARD", b"zset": "ZCARD", b"stream": "XLEN"}[kind]
                name = key.decode().removeprefix(ledger._prefix)
                found[name.partition(" ")[0].partition(":")[0]] += await ledger._link.call(size, key)
        return found

    early = await sizes(30)
    assert await sizes(10) == early
    assert early["o"] == early["records"] == 70
    assert sum(early.values()) < 400


async def test_aggregates_expire_400_days_after_their_day(ledger: RedisStore, caller: Client) -> None:
    await caller.settle("a", 10)
    day = int(NOON_S) // DAY_S
    for name in (
        f"a:{day}:tenant=acme",
        "ad:tenant=acme",
        f"t:d{day}:tenant=",
        f"tp:{day}",
        f"t:h{int(NOON_S) // 3600}",
    ):
        left = await ledger._call("TTL", name)
        assert 400 * DAY_S <= left <= 401 * DAY_S, name
    await caller.settle("b", 10, at_s=NOON_S - 10 * DAY_S)
    assert 400 * DAY_S - 5 <= await ledger._call("TTL", f"a:{day - 10}:tenant=acme") <= 400 * DAY_S


async def test_the_highest_spend_is_summed_from_hours_at_the_edges_and_days_between(
    ledger: RedisStore, caller: Client
) -> None:
    midnight = int(NOON_S) - DAY_S // 2
    costs = {-3601: 1, -3600: 20, 0: 300, DAY_S: 4000, 2 * DAY_S - 1: 50_000, 2 * DAY_S: 600_000, 2 * DAY_S + 3600: 7}
    for after, cost in costs.items():
        await caller.settle(f"{after}", cost, at_s=midnight + after)

    async def highest(start_s: float, end_s: float) -> list[int]:
        return [row.cost_nano_usd for row in await ledger.top_spend("tenant=", start_s, end_s, 5)]

    assert await highest(midnight - 3600, midnight + 2 * DAY_S + 3600) == [654_320]
    assert await highest(0, 1 << 53) == [654_328]
    assert await highest(midnight, midnight + DAY_S) == [300]
    assert await highest(midnight, midnight) == []
    assert await ledger._call("EXISTS", "t:sums") == 0


async def test_names_of_models_and_providers_may_hold_anything(ledger: RedisStore, caller: Client) -> None:
    names = [("a:b|c", "d"), ("a", ":b|cd"), ("", "x"), ("x", ""), ("é\n\0", "1:2"), ("12:3", "12:3")]
    for n, (model, provider) in enumerate(names):
        row = AggregateRow("tenant=acme", model, provider, 1, 2, 3, 10**n)
        await caller.settle(f"c{n}", 10**n, aggregates=(row,))
    rows = await ledger.spend("tenant=acme", NOON_S, NOON_S + 3600)
    assert {(row.model, row.provider): row.cost_nano_usd for row in rows} == {
        name: 10**n for n, name in enumerate(names)
    }


async def test_sums_beyond_what_a_float_holds_stay_exact(ledger: RedisStore, caller: Client) -> None:
    most = (1 << 53) - 1
    for n in range(3):
        await caller.settle(
            f"c{n}", most, tenant=f"t{n}", aggregates=(AggregateRow("tenant=t", "m", "p", 1, 1, 1, most),)
        )
    assert [row.cost_nano_usd for row in await ledger.spend("tenant=t", NOON_S, NOON_S + 3600)] == [3 * most]
    totals = await ledger.totals()
    assert (totals.cost_nano_usd, totals.records_nano_usd) == (3 * most, 3 * most)


async def test_the_cost_of_a_record_is_its_own_member_whatever_its_metadata_says(
    ledger: RedisStore, caller: Client
) -> None:
    record = b'{"metadata":{"cost_nano_usd":5,"t":"\\"cost_nano_usd\\":6"},"cost_nano_usd":-7,"price_version":"x"}'
    await caller.settle("a", -7, record=record)
    assert (await ledger.totals()).records_nano_usd == -7


async def test_another_process_learns_only_what_has_changed(ledger: RedisStore, caller: Client, redis_url: str) -> None:
    other = RedisStore(redis_url, clock=caller.clock)
    await other.open()
    await caller.set(budget("tenant=a", 1), budget("tenant=b", 2))
    await other.load_terms()
    assert set(other._terms.terms) == {"tenant=a|daily", "tenant=b|daily"}
    known = other._terms.version
    caller.clock.advance(60)
    await ledger.remove_budget("tenant=a|daily")
    await ledger.set_budget(budget("tenant=c", 3))
    newest, *changes = await ledger._run("changed_budgets", (known,))
    assert changes[::2] == [b"tenant=a|daily", b"tenant=c|daily"]
    assert changes[1] == b""
    await other.load_terms()
    assert set(other._terms.terms) == {"tenant=b|daily", "tenant=c|daily"}
    assert other._terms.version == int(newest) > known
    await other.close()


async def test_a_server_that_has_lost_edits_of_budgets_is_believed(ledger: RedisStore, caller: Client) -> None:
    await caller.set(budget("tenant=acme", 100))
    await ledger._link.call("UNLINK", *await ledger._link.call("KEYS", f"{ledger._prefix}*"))
    await ledger.heartbeat("w", 3600)
    await caller.refresh()
    assert (await caller.reserve("a", 500)).states == ()
    await caller.set(budget("tenant=acme", 50))
    assert (await caller.reserve("b", 60)).candidate is None


async def restored(ledger: RedisStore, kept: list[tuple[bytes, bytes]]) -> None:
    """The server again as it was, as after a failover to a replica that lacked the last writes."""
    await ledger._link.call("UNLINK", *await ledger._link.call("KEYS", f"{ledger._prefix}*"))
    for key, dump in kept:
        await ledger._link.call("RESTORE", key, 0, dump)


async def kept(ledger: RedisStore) -> list[tuple[bytes, bytes]]:
    keys = await ledger._link.call("KEYS", f"{ledger._prefix}*")
    return [(key, await ledger._link.call("DUMP", key)) for key in keys]


async def test_versions_of_forms_and_values_are_not_used_again_after_edits_were_lost(
    ledger: RedisStore, caller: Client
) -> None:
    await caller.set(budget("tenant=*", 1000))
    await ledger.put_item("suspended", "a", b"1")
    earlier = await kept(ledger)
    caller.clock.advance(1)
    await caller.set(budget("team=*", 1000))
    await ledger.put_item("suspended", "b", b"1")
    lost = (await ledger.forms())[0], (await ledger.item_versions())["suspended"]
    await restored(ledger, earlier)
    caller.clock.advance(1)
    await ledger.set_budget(budget("model=big", 0))
    await ledger.put_item("suspended", "c", b"1")
    with pytest.raises(StaleFormsError):  # what the caller knows lacks the new form
        await caller.reserve("a")
    assert (await ledger.forms())[0] > lost[0]
    assert (await ledger.item_versions())["suspended"] > lost[1]


async def test_an_answer_that_comes_late_takes_no_terms_back(
    ledger: RedisStore, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await caller.set(*(budget(f"tenant={name}", 100) for name in "abc"))
    await ledger.load_terms()
    before = await kept(ledger)
    run, late = ledger._run, asyncio.Event()

    async def slow(name: str, args: Sequence[Part] = (), **options: Any) -> Any:
        answer = await run(name, args, **options)
        await late.wait()
        return answer

    async def asking() -> asyncio.Task[None]:
        """The server has answered, and the answer is under way."""
        monkeypatch.setattr(ledger, "_run", slow)
        task = asyncio.create_task(ledger.load_terms())
        await asyncio.sleep(0.1)
        monkeypatch.setattr(ledger, "_run", run)
        return task

    def known() -> dict[str, int | None]:
        return {key: terms.limit_nano_usd for key, terms in ledger._terms.terms.items()}

    await ledger.set_budget(budget("tenant=a", 200))
    edited = await asking()
    caller.clock.advance(1)
    await ledger.set_budget(budget("tenant=c", 300))
    await ledger.load_terms()
    newest = ledger._terms.version
    late.set()
    await edited
    assert ledger._terms.version == newest
    assert known() == {"tenant=a|daily": 200, "tenant=b|daily": 100, "tenant=c|daily": 300}

    late.clear()
    caller.clock.advance(1)
    await ledger.set_budget(budget("tenant=b", 400))
    lost = await asking()
    await restored(ledger, before)
    await ledger.load_terms()
    late.set()
    await lost
    assert known() == {"tenant=a|daily": 100, "tenant=b|daily": 100, "tenant=c|daily": 100}


async def test_records_may_be_pruned_before_their_time_but_none_that_a_sink_has_not_passed(
    ledger: RedisStore, caller: Client
) -> None:
    await ledger.register_sinks(["s"])
    for n in range(6):
        await caller.settle(f"a{n}", 10)
    await caller.deliver("s", delivered(1), dead(2), delivered(3), delivered(5))
    before = await ledger.totals()
    caller.clock.advance(25 * 3600)
    now_s = caller.clock.now_s
    assert await ledger.prune(records_before_s=now_s, aggregates_before_s=None, limit=9) == 0
    caller.clock.advance(1)
    assert await ledger.prune(records_before_s=NOON_S, aggregates_before_s=None, limit=9) == 0
    assert await ledger.prune(records_before_s=now_s, aggregates_before_s=None, limit=2) == 2
    assert await ledger.prune(records_before_s=now_s, aggregates_before_s=None, limit=9) == 1
    assert await ids(caller) == ["a3", "a4", "a5"]
    assert [letter.call_id for letter in await ledger.dead_letters("s")] == ["a1"]
    assert await caller.waiting("s") == ["a3", "a5"]
    await caller.deliver("s", delivered(4), delivered(6))
    assert await ledger.prune(records_before_s=now_s, aggregates_before_s=None, limit=9) == 2
    assert await ids(caller) == ["a5"]  # the newest of its partition
    assert [number for number, _ in await ledger.latest("acme", 9)] == [6]
    assert await ledger.totals() == before


async def test_aggregates_may_be_pruned_by_whole_days(ledger: RedisStore, caller: Client) -> None:
    midnight = NOON_S - DAY_S / 2
    scopes = ("tenant=acme", "tenant=acme,user=u", "key=k", "global/0")
    for n, at_s in enumerate((midnight - 3600, midnight, midnight + 3600)):
        rows = tuple(AggregateRow(scope, "m", "p", 1, 1, 1, 10**n) for scope in scopes)
        await caller.settle(f"c{n}", 10**n, at_s=at_s, aggregates=rows)
    before = await ledger.totals()
    assert await ledger.prune(records_before_s=None, aggregates_before_s=midnight + 7200, limit=3) == 3
    assert await ledger.prune(records_before_s=None, aggregates_before_s=midnight + 7200, limit=3) == 1
    assert await ledger.prune(records_before_s=None, aggregates_before_s=midnight + 7200, limit=3) == 0
    for scope in scopes:
        (row,) = await ledger.spend(scope, 0, NOON_S)
        assert row.cost_nano_usd == 110, scope
    (top,) = await ledger.top_spend("tenant=acme,user=", 0, NOON_S, 9)
    assert top.cost_nano_usd == 110
    assert await ledger.totals() == before
    assert await ledger._call("EXISTS", f"tp:{int(midnight) // DAY_S - 1}") == 0


async def test_a_tenants_list_of_newest_records_stays_short_and_goes_with_them(
    ledger: RedisStore, caller: Client
) -> None:
    await ledger.settle_many([caller.settlement(f"c{n}", 1) for n in range(450)])
    assert 100 <= await ledger._call("LLEN", "l:acme") <= 200
    assert [number for number, _ in await ledger.latest("acme", 100)] == list(range(450, 350, -1))
    assert 8 * DAY_S - 5 <= await ledger._call("TTL", "l:acme") <= 8 * DAY_S


async def test_an_erasure_that_another_one_has_overtaken_stops(
    ledger: RedisStore, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.settle_many([caller.settlement(f"c{n}", 1) for n in range(1200)])
    before = await ledger.records(limit=2000)
    own_run = ledger._run

    async def overtaken(name: str, args: Sequence[Part] = (), **options: Any) -> Any:
        if name == "rewrite" and args[2] != 0:
            await ledger._call("HSET", "meta", f"n{ACME}", "somebody else")
        return await own_run(name, args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "PIECE", 500)
        patch.setattr(ledger, "_run", overtaken)
        with pytest.raises(StoreError, match="another erasure has begun"):
            await ledger.erase("acme")
    assert await ledger.records(limit=2000) == before
    assert (await ledger.erase("acme")).records == 1200
    assert await ledger._call("EXISTS", f"on:{ACME}") == 0
    assert await ledger._call("TTL", f"o:{ACME}") == -1


async def test_what_is_settled_and_trimmed_during_an_erasure_is_where_it_belongs(
    ledger: RedisStore, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.settle_many([caller.settlement(f"c{n}", 1) for n in range(1200)])
    own_run, meanwhile = ledger._run, iter(range(9))

    async def busy(name: str, args: Sequence[Part] = (), **options: Any) -> Any:
        answer = await own_run(name, args, **options)
        if name == "rewrite" and args[3] != "":
            number = next(meanwhile)
            await caller.settle(f"new{number}", 1)
            await ledger._call("XTRIM", f"o:{ACME}", "MINID", f"{3 + 2 * number}-0")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "PIECE", 500)
        patch.setattr(ledger, "_run", busy)
        assert (await ledger.erase("acme")).records == 1200
    records = await ledger.records(limit=2000)
    assert [number for number, _ in records] == list(range(5, 1203))
    assert await ids(caller, 1200) == ["new0", "new1"]
    again = await caller.settle("new1", 1)
    assert again.duplicate
    await caller.settle("next", 1)
    assert await ids(caller, 1202) == ["next"]
