"""What is left of a tenant that was erased, and of everybody else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from askii_middleware.errors import StoreError
from askii_middleware.records import UsageCounts, UsageRecord, decode_record, encode_settled_part
from askii_middleware.stores.base import AggregateRow, Erased, KeyRow, SpendRow, Store
from askii_middleware.stores.forgetting import anonymous, is_tombstone

from .support import DAY_S, NOON_S, Client, budget, dead, delivered

NOTHING = Erased(records=0, aggregates=0, keys=0, budgets=0)
SECRETS = ("acme", "ann", "laptop", "k-acme", "chatcmpl-9", "because of ann", "red team")


def record(call_id: str, tenant: str, cost: int) -> UsageRecord:
    return UsageRecord(
        call_id=call_id,
        timestamp="2026-01-01T12:00:00.123Z",
        tenant=tenant,
        subscription=tenant,
        key=f"k-{tenant}",
        user="ann",
        team="red team",
        end_user="ann@laptop",
        tags=("laptop",),
        metadata={"who": {"name": "ann"}},
        reason="because of ann",
        api="openai.chat",
        provider="p",
        requested_model="m",
        served_model="m",
        provider_request_id="chatcmpl-9",
        shadow="would have been refused by tenant=acme",
        duration_ms=812.4,
        usage=UsageCounts(input_tokens=10, output_tokens=5),
        cost_nano_usd=cost,
        price_version="v1",
        exchange_rate=150.001,
    )


async def call(client: Client, call_id: str, cost: int, tenant: str = "acme", **options: Any) -> None:
    scopes = (f"tenant={tenant}", f"tenant={tenant},user=ann", f"key=k-{tenant}", "user=ann", "global/3")
    rows = tuple(AggregateRow(scope, "m", "p", 1, 10, 5, cost) for scope in scopes)
    body = encode_settled_part(record(call_id, tenant, cost))
    await client.settle(call_id, cost, tenant=tenant, aggregates=rows, record=body, **options)


async def cost_of(store: Store, scope: str) -> int:
    return sum(row.cost_nano_usd for row in await store.spend(scope, 0, NOON_S + 9 * DAY_S))


def key(tenant: str) -> KeyRow:
    return KeyRow(id=f"k-{tenant}", sha256=f"{len(tenant):064x}", tenant=tenant, user="ann")


async def test_the_sums_of_the_ledger_stay_and_belong_to_nobody(client: Client) -> None:
    store = client.store
    await store.put_key(key("acme"))
    for n in range(4):
        await call(client, f"a{n}", 100 + n, at_s=NOON_S + 1800 * n)
        await call(client, f"o{n}", 7, "other")
    before = await store.totals()
    assert await store.erase("acme") == Erased(records=4, aggregates=6, keys=1, budgets=0)
    assert await store.totals() == before
    assert before[:4] == (8, 434, 8, 434)
    assert await store.spend("tenant=acme", 0, NOON_S + DAY_S) == []
    assert await store.spend("tenant=deleted", 0, NOON_S + DAY_S) == [SpendRow("m", "p", 4, 40, 20, 406)]
    assert [await cost_of(store, f"tenant={t},user=ann") for t in ("acme", "other", "deleted")] == [0, 28, 0]
    assert (await cost_of(store, "tenant=other"), await cost_of(store, "global/3")) == (28, 434)
    top = await store.top_spend("tenant=", 0, NOON_S + DAY_S, 9)
    assert [(sums.scope, sums.cost_nano_usd) for sums in top] == [("tenant=deleted", 406), ("tenant=other", 28)]


async def test_records_keep_their_places_and_what_was_used_and_charged(client: Client) -> None:
    store = client.store
    await store.register_sinks(["s"])
    await call(client, "a1", 100)
    await call(client, "o1", 7, "other")
    await call(client, "a2", 200)
    await client.deliver("s", delivered(1), delivered(2))
    before = await store.records()
    await store.erase("acme")
    after = await store.records()
    assert [seq for seq, _ in after] == [seq for seq, _ in before]
    assert after[1] == before[1]
    for index in (0, 2):
        left = decode_record(after[index][1])
        assert left == msgspec.structs.replace(
            decode_record(before[index][1]),
            tenant="deleted",
            subscription="deleted",
            key=None,
            user=None,
            team=None,
            end_user=None,
            tags=(),
            metadata={},
            reason=None,
            provider_request_id=None,
            shadow=None,
        )
        assert not [word for word in SECRETS if word.encode() in after[index][1]]
    assert await store.record("a2") == after[2][1]
    assert await store.latest("acme", 9) == []
    assert await store.latest(None, 9) == after[::-1]
    await call(client, "a3", 300, "next")
    assert [entry.call_id for entry in await store.fetch("s", range(16), 9)] == ["o1", "a3"]


async def test_keys_budgets_and_alerts_of_the_tenant_are_forgotten_and_nobody_elses(client: Client) -> None:
    store = client.store
    await store.put_key(key("acme"))
    await store.put_key(key("other"))
    theirs = ("tenant=acme", "tenant=acme,user=*", "key=k-acme", "key=k-acme,model=m")
    others = ("tenant=*", "tenant=acme2", "key=k-acme2", "user=acme", "global", "tenant=other")
    await client.set(*(budget(scope, 1000, alert_at=(0.01,)) for scope in (*theirs, *others)))
    version, _ = await store.forms()
    await call(client, "a", 100, values={"key": "k-acme"})
    await call(client, "o", 100, "other")
    alerts = {alert.scope for alert in await store.recent_alerts(99)}
    assert {"tenant=acme", "key=k-acme", "global", "tenant=other"} <= alerts
    found = await store.erase("acme")
    assert (found.keys, found.budgets) == (1, 4)
    assert (await store.keys(tenant="acme"), await store.keys(tenant="other")) == ([], [key("other")])
    assert await store.find_key(key("acme").sha256) is None
    assert sorted(str(item.scope) for item in await store.budgets()) == sorted(others)
    assert (await store.forms())[0] > version  # two shapes are gone
    assert {alert.scope for alert in await store.recent_alerts(99)} == alerts - {
        "tenant=acme",
        "key=k-acme",
        "key=k-acme,model=m",
    }
    assert await cost_of(store, "key=k-acme") == 0
    assert await cost_of(store, "key=k-other") == await cost_of(store, "tenant=other") == 100
    await client.refresh()
    await store.put_key(msgspec.structs.replace(key("acme"), tenant="third"))  # its digest is free again
    assert (await client.reserve("next", tenant="other")).candidate == 0


async def test_of_a_key_only_its_id_is_left_and_opens_nothing(client: Client) -> None:
    store = client.store
    await store.put_key(msgspec.structs.replace(key("acme"), former_sha256="f" * 64, former_until_s=4e9, name="ann's"))
    for found in (Erased(0, 0, 1, 0), NOTHING):
        assert await store.erase("acme") == found
        (left,) = await store.keys()
        assert left == KeyRow(id="k-acme", sha256=left.sha256, tenant="deleted", revoked=True)
        assert is_tombstone(left)
        assert await store.key("k-acme") == left
        assert await store.keys(tenant="deleted") == [left]
        assert await store.keys(tenant="acme") == []
        assert [await store.find_key(digest) for digest in (key("acme").sha256, "f" * 64)] == [None, None]
    assert not all(digit in "0123456789abcdef" for digit in left.sha256)  # no secret has it


async def test_channels_read_on_over_forgotten_alerts(client: Client) -> None:
    store = client.store
    await store.register_channels(["alert:log"])
    await client.set(budget("tenant=*", 1000, alert_at=(0.1, 0.2)))
    for name, tenant in (("a", "acme"), ("o", "other"), ("b", "acme"), ("p", "other")):
        await client.settle(name, 100, tenant=tenant)
    assert [alert.scope for alert in await store.fetch_alerts("alert:log", 9)] == [
        "tenant=acme",
        "tenant=other",
        "tenant=acme",
        "tenant=other",
    ]
    await store.erase("acme")
    left = await store.fetch_alerts("alert:log", 9)
    assert [alert.scope for alert in left] == ["tenant=other", "tenant=other"]
    (lease,) = await store.lease("alert:log", "me", 60)
    assert await store.acknowledge_alerts("alert:log", lease.token, left[0].seq)
    assert await store.fetch_alerts("alert:log", 9) == left[1:]


async def test_a_carry_is_still_owed(client: Client) -> None:
    await client.settle("a", 1, rate="600000000")  # 0.6 coin
    await client.store.erase("acme")
    assert (await client.settle("b", 1, rate="600000000")).coins == 1


async def waits(client: Client) -> None:
    await call(client, "a2", 100)


async def is_dead(client: Client) -> None:
    await call(client, "a2", 100)
    await client.deliver("s", dead(2))


async def is_held_back(client: Client) -> None:
    await call(client, "a2", 100)
    await call(client, "a3", 100)
    await client.deliver("s", delivered(3))


@pytest.mark.parametrize("trouble", [waits, is_dead, is_held_back])
async def test_a_tenant_whose_records_a_sink_has_not_got_is_left_as_it_is(client: Client, trouble: Any) -> None:
    store = client.store
    await store.register_sinks(["s"])
    await store.put_key(key("acme"))
    await client.set(budget("tenant=acme", 1000, alert_at=(0.1,)))
    await call(client, "a1", 100)
    await client.deliver("s", delivered(1))
    await trouble(client)

    async def told() -> list[Any]:
        found: list[Any] = [await store.keys(), await store.budgets(), await store.records(), await store.totals()]
        found += [await store.spend("tenant=acme", 0, 4e9), await store.recent_alerts(9), await store.pending()]
        return [*found, await store.dead_letters("s"), await store.latest("acme", 9)]

    before = await told()
    with pytest.raises(StoreError, match=r"'acme'.*'s' has not got all of its records.*nothing was changed"):
        await store.erase("acme")
    assert await told() == before
    assert (await store.erase("other")) == NOTHING
    await store.forget_sink("s")
    assert (await store.erase("acme")).records == len(before[2])


async def test_erasing_again_finds_only_what_came_since(client: Client) -> None:
    store = client.store
    await call(client, "a", 100)
    await client.reserve("open")
    assert await store.erase("nobody") == NOTHING
    assert (await store.erase("acme")).records == 1
    assert await store.erase("acme") == NOTHING
    await call(client, "open", 50)
    assert await store.erase("acme") == Erased(records=1, aggregates=2, keys=0, budgets=0)
    assert await cost_of(store, "tenant=deleted") == 150
    assert [decode_record(body).tenant for _, body in await store.records()] == ["deleted", "deleted"]


async def test_a_settled_call_stays_settled(client: Client) -> None:
    await client.reserve("a")
    await client.settle("a")
    await client.store.erase("acme")
    again = await client.settle("a")
    assert (again.duplicate, again.coins) == (True, 0)
    assert (await client.reserve("a")).candidate == 0
    assert (await client.store.totals()).calls == 1


async def test_more_than_a_piece_is_erased_whole(client: Client) -> None:
    rows = (AggregateRow("tenant=acme", "m", "p", 1, 10, 5, 1),)
    await client.store.settle_many(
        [client.settlement(f"c{n}", 1, at_s=NOON_S - 3600 * n, aggregates=rows) for n in range(1200)]
    )
    before = await client.store.totals()
    found = await client.store.erase("acme")
    assert (found.records, found.aggregates) == (1200, 1200)
    assert await client.store.totals() == before
    assert await client.store.latest("acme", 1) == []


async def test_names_that_look_alike_are_told_apart(client: Client) -> None:
    tenant = "a,b=*|%ü"
    scope = "tenant=a%2Cb%3D%2A%7C%25%C3%BC"
    for name, whose in (("x", tenant), ("y", "a")):
        text = scope if whose == tenant else "tenant=a"
        rows = tuple(AggregateRow(part, "m", "p", 1, 1, 1, 5) for part in (text, f"{text},user=u"))
        await client.settle(name, 5, tenant=whose, aggregates=rows)
    assert await client.store.erase(tenant) == Erased(records=1, aggregates=2, keys=0, budgets=0)
    assert await cost_of(client.store, "tenant=a") == await cost_of(client.store, "tenant=a,user=u") == 5
    assert await cost_of(client.store, scope) == await cost_of(client.store, f"{scope},user=u") == 0


async def test_the_name_that_erased_tenants_share_cannot_be_erased(client: Client) -> None:
    with pytest.raises(StoreError, match="stands for all that were erased"):
        await client.store.erase("deleted")


def test_an_anonymous_record_is_otherwise_the_same_bytes() -> None:
    body = b'{"call_id":"a","tenant":"acme","exchange_rate":1000000.10,"cost_nano_usd":92233720368547758079}'
    assert anonymous(body) == body.replace(b"acme", b"deleted")
    assert anonymous(b'{"cost_nano_usd":1}') == b'{"cost_nano_usd":1}'
