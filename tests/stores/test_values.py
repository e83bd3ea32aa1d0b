"""Values that clients invent: the first of a window have counters of their own, all further ones share one."""

from __future__ import annotations

import asyncio

import pytest

from askii_middleware.admission import Admission
from askii_middleware.budgets import MAX_INVENTED_VALUES

from .support import DAY_S, Client, budget

SHARED = "end_user=*"


async def ask(client: Client, end_user: str, hold: int = 10, **options: str) -> Admission:
    return await client.reserve(f"{end_user}-{client.clock.now_s}", hold, values={"end_user": end_user, **options})


def scopes(answer: Admission) -> list[str]:
    return [state.scope for state in answer.states]


async def state(client: Client, end_user: str) -> tuple[str, int, int]:
    (found,) = await client.status(end_user=end_user)
    return found.scope, found.spent_nano_usd, found.held_nano_usd


async def test_the_first_values_have_their_own_counters_and_all_others_share_one(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=2))
    for name in ("ann", "bob"):
        assert scopes(await ask(client, name, 60)) == [f"end_user={name}"]
    for name in ("cyn", "dan"):
        assert scopes(await ask(client, name, 40)) == [SHARED]
    refused = await ask(client, "eve", 40)
    assert (refused.candidate, scopes(refused)) == (None, [SHARED])
    assert await state(client, "ann") == ("end_user=ann", 0, 60)
    assert await state(client, "never seen") == (SHARED, 0, 80)


async def test_a_refused_value_takes_no_place(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=1))
    assert (await ask(client, "ann", 101)).candidate is None
    assert await state(client, "bob") == ("end_user=bob", 0, 0)
    assert scopes(await ask(client, "bob", 100)) == ["end_user=bob"]
    assert await state(client, "ann") == (SHARED, 0, 0)


async def test_a_value_keeps_its_place_through_the_window_and_begins_anew_in_the_next(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=1))
    await ask(client, "ann", 0)
    await client.store.release(f"ann-{client.clock.now_s}")
    assert scopes(await ask(client, "bob")) == [SHARED]
    assert await state(client, "ann") == ("end_user=ann", 0, 0)
    client.clock.advance(DAY_S)
    assert scopes(await ask(client, "bob")) == ["end_user=bob"]
    assert await state(client, "ann") == (SHARED, 0, 0)


async def test_a_charge_without_a_hold_goes_where_its_value_has_a_place(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=1))
    for n, name in enumerate(("ann", "bob", "ann", "cyn")):
        await client.settle(f"c{n}", 10, values={"end_user": name})
    assert await state(client, "ann") == ("end_user=ann", 20, 0)
    assert await state(client, "bob") == (SHARED, 20, 0)


async def test_a_call_is_charged_and_extended_where_it_was_held(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=1, alert_at=(0.5,)))
    await ask(client, "ann")
    assert scopes(await ask(client, "bob")) == [SHARED]
    call_id, values = f"bob-{client.clock.now_s}", {"end_user": "bob"}
    await client.set(budget("end_user=*", 100, max_values=5, alert_at=(0.5,)))
    assert await state(client, "bob") == ("end_user=bob", 0, 0)
    refused = await client.extend(call_id, 101, values=values)
    assert refused.deciding is not None
    assert (refused.reason, refused.deciding.scope, refused.deciding.held_nano_usd) == ("spent", SHARED, 10)
    assert (await client.extend(call_id, 60, values=values, sequence=2)).hold_nano_usd == 60
    await client.settle(call_id, 60, values=values)
    assert [(alert.scope, alert.spent_nano_usd) for alert in await client.alerts()] == [(SHARED, 60)]


async def test_what_was_spent_before_the_bound_came_keeps_its_counter(client: Client) -> None:
    await client.set(budget("tenant=*", 100))
    await client.settle("a", 70, tenant="ann")
    await client.reserve("held", 10, tenant="bob")
    await client.set(budget("tenant=*", 100, max_values=1))
    await client.settle("c", 30, tenant="cyn")
    answers = [await client.reserve(name, 20, tenant=name) for name in ("ann", "bob", "cyn", "dan")]
    assert [scopes(answer) for answer in answers] == [["tenant=ann"], ["tenant=*"], ["tenant=cyn"], ["tenant=*"]]
    assert [answer.states[0].spent_nano_usd for answer in answers] == [70, 0, 30, 0]


async def test_only_what_clients_invent_is_shared_and_each_tenant_has_places_of_its_own(client: Client) -> None:
    await client.set(budget("tenant=*,end_user=*", 100, max_values=1))
    for tenant in ("acme", "other"):
        for name, scope in (("ann", f"tenant={tenant},end_user=ann"), ("bob", f"tenant={tenant},end_user=*")):
            answer = await client.reserve(f"{tenant}-{name}", 10, tenant=tenant, values={"end_user": name})
            assert scopes(answer) == [scope]


async def test_a_bound_on_values_that_nobody_invents_is_kept_too(client: Client) -> None:
    await client.set(budget("tenant=*", 100, max_values=1), budget("tenant=*,model=*", 100))
    await client.reserve("a", 10)
    answer = await client.reserve("b", 10, tenant="other")
    assert scopes(answer) == ["tenant=*", "tenant=other,model=m"]


async def test_new_values_of_one_call_do_not_take_one_place_together(client: Client) -> None:
    await client.set(budget("tag=*", 100, max_values=2))
    matches = client.index.matches({"tag": ("x", "y", "z", "x")})
    request = client.request("a", 10)
    candidate = request.candidates[0]._replace(matches=matches)
    answer = await client.reserve("a", 10, candidates=(candidate,))
    assert scopes(answer) == ["tag=x", "tag=y", "tag=*"]
    assert {s.scope: s.held_nano_usd for s in await client.store.status(matches, {}, (1, 1))} == {
        "tag=x": 10,
        "tag=y": 10,
        "tag=*": 10,
    }


async def test_a_candidate_that_is_not_chosen_takes_no_place(client: Client) -> None:
    await client.set(budget("end_user=*,model=*", 100, max_values=1), budget("model=dear", 0))
    by_model = [
        (name, client.index.matches({"tenant": "acme", "end_user": "ann", "model": name})) for name in ("dear", "cheap")
    ]
    request = client.request("a", 10, 10)
    candidates = tuple(c._replace(matches=m) for c, (_, m) in zip(request.candidates, by_model, strict=True))
    answer = await client.reserve("a", 10, candidates=candidates)
    assert (answer.candidate, scopes(answer)) == (1, ["end_user=ann,model=cheap"])
    bob = client.index.matches({"tenant": "acme", "end_user": "bob", "model": "dear"})
    assert [s.scope for s in await client.store.status(bob, {}, (1, 1))] == ["end_user=bob,model=dear", "model=dear"]


async def test_no_value_can_be_named_like_the_shared_counter(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=1))
    await ask(client, "ann")
    for name in ("*", "%2A", "end_user=*"):
        assert scopes(await ask(client, name)) == [SHARED]
    client.clock.advance(DAY_S)
    assert scopes(await ask(client, "*")) == ["end_user=%2A"]


async def test_values_that_come_at_once_take_no_more_places_than_there_are(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=3))
    answers = await asyncio.gather(*(ask(client, f"u{n}", 1) for n in range(20)))
    assert [scopes(answer) for answer in answers].count([SHARED]) == 17


async def test_invented_values_are_bounded_without_asking(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_INVENTED_VALUES == 10_000
    monkeypatch.setattr("askii_middleware.budgets.MAX_INVENTED_VALUES", 2)
    await client.set(budget("end_user=*", 100))
    for n in range(4):
        await ask(client, f"u{n}")
    assert await state(client, "u1") == ("end_user=u1", 0, 10)
    assert await state(client, "u3") == (SHARED, 0, 20)


async def test_places_are_forgotten_with_their_counters(client: Client) -> None:
    await client.set(budget("end_user=*", 100, max_values=1))
    await ask(client, "ann", 0)
    await ask(client, "bob", 0)
    began_s = client.clock.now_s
    client.clock.advance(9 * DAY_S)
    await client.store.heartbeat("w", DAY_S)
    client.clock.now_s = began_s
    assert await state(client, "cyn") == ("end_user=cyn", 0, 0)
