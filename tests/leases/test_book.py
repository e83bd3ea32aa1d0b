"""What one worker admits by itself, and what it leaves to the store."""

from __future__ import annotations

from typing import Any

import pytest

from askii_middleware.admission import ExtendRequest
from askii_middleware.leased.draws import GRACE_S, MAX_MATCHES, SWEEP_S
from askii_middleware.leased.sizes import Demand, most, share_ppm
from askii_middleware.stores.base import CreditUse
from askii_middleware.stores.memory import MemoryStore
from tests.stores.support import COUNTER, DAY_S, NOON_S, Clock, budget

from .support import LEASE_S, Desk, now

LIMIT = 1_000_000
END_S = int(NOON_S) + DAY_S // 2


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def desk(store: MemoryStore, clock: Clock) -> Desk:
    """A worker with credit for tenant acme."""
    desk = Desk(store, clock, budget("tenant=*", LIMIT))
    desk.warm()
    return desk


# Admission ------------------------------------------------------------------------------------------------------------


def test_a_busy_budgets_calls_are_admitted_without_the_store(desk: Desk) -> None:
    admission = desk.locally("a", 100)
    assert admission is not None
    assert (admission.candidate, admission.hold_nano_usd, admission.admitted_at_s) == (0, 100, NOON_S)
    (state,) = admission.states
    assert (state.counter, state.limit_nano_usd, state.spent_nano_usd, state.held_nano_usd) == (COUNTER, LIMIT, 0, 0)


def test_credit_counts_as_held_from_the_moment_it_is_granted(desk: Desk) -> None:
    granted = desk.free()
    assert granted > 0
    assert desk.spent_held() == (0, granted)
    desk.locally("a", 100)
    assert desk.spent_held() == (0, granted)
    assert desk.free() == granted - 100


def test_a_charge_uses_up_credit_and_the_rest_of_its_hold_is_free_again(desk: Desk) -> None:
    granted = desk.free()
    desk.locally("a", 100)
    assert not desk.settle("a", 40).late
    assert desk.spent_held() == (40, granted - 40)
    assert desk.free() == granted - 40


def test_a_released_call_leaves_its_credit_and_tells_the_store_nothing(desk: Desk) -> None:
    granted = desk.free()
    desk.locally("a", 100)
    assert desk.book.release("a")
    assert desk.free() == granted
    assert not desk.book.release("a")


def test_local_calls_never_hold_more_than_the_credit_and_the_next_one_goes_to_the_store(desk: Desk) -> None:
    granted, count = desk.free(), 0
    while desk.locally(f"a{count}", 70) is not None:
        count += 1
    assert count == granted // 70
    admission, here = desk.reserve("next", 70)
    assert (admission.candidate, here) == (0, False)
    assert desk.spent_held() == (0, granted + 70)


def test_a_hold_is_taken_whole_from_credit_or_not_at_all(desk: Desk) -> None:
    granted = desk.free()
    assert desk.locally("a", granted + 1, least=1) is None
    assert desk.free() == granted


def test_every_matched_budget_needs_credit(store: MemoryStore, clock: Clock) -> None:
    desk = Desk(store, clock, budget("tenant=*", LIMIT), budget("global", 150))
    desk.directly("first", 100)
    assert desk.draw() is not None
    assert desk.book._credits[COUNTER].free > 100
    assert desk.locally("a", 100) is None
    admission, here = desk.reserve("a", 100)
    assert (admission.candidate, admission.reason, here) == (None, "held", False)


def test_budgets_that_cannot_refuse_need_no_credit_and_are_charged(store: MemoryStore, clock: Clock) -> None:
    desk = Desk(store, clock, budget("tenant=*", LIMIT), budget("global", None), budget("model=*", 5, soft=True))
    desk.warm()
    assert len(desk.book._credits) == 3
    admission = desk.locally("a", 100)
    assert admission is not None
    assert len(admission.states) == 3
    desk.settle("a", 60)
    assert {s.scope: s.spent_nano_usd for s in now(desk.client.status())} == {
        "tenant=acme": 60,
        "global": 60,
        "model=m": 60,
    }


def test_a_call_of_no_budget_is_admitted_once_the_forms_are_known_to_be_current(
    store: MemoryStore, clock: Clock
) -> None:
    desk = Desk(store, clock, budget("team=*", 100))
    assert desk.locally("a", 100) is None
    desk.warm()
    assert desk.locally("a", 100) is not None
    desk.settle("a", 7)
    now(store.set_budget(budget("tenant=*", 1)))
    clock.advance(LEASE_S)
    assert desk.locally("b", 100) is None


def test_a_free_model_needs_no_credit_but_lines_that_are_fresh(desk: Desk) -> None:
    while desk.locally(f"a{desk.free()}", 100) is not None:
        pass
    assert desk.locally("free", 0) is not None
    desk.clock.advance(LEASE_S)
    assert desk.locally("free too", 0) is None


@pytest.mark.parametrize("options", [{"max_values": 10}, {}])
def test_crowding_values_and_limits_of_0_are_the_stores_to_judge(
    store: MemoryStore, clock: Clock, options: dict[str, int]
) -> None:
    desk = Desk(store, clock, budget("tenant=*", LIMIT if options else 0, **options), budget("global", LIMIT))
    for n in range(4):
        desk.directly(f"warm{n}", 100)
    desk.draw()
    desk.draw()
    assert desk.locally("a", 100) is None
    assert desk.locally("b", 0) is None


def test_shadow_and_other_forms_and_rates_and_workers_go_to_the_store(desk: Desk) -> None:
    others: list[dict[str, Any]] = [
        *({"shadow": True}, {"forms_version": 7}, {"rate": "5"}),
        *({"downgrade_at_ppm": 800_000}, {"candidates": ()}),
    ]
    for n, options in enumerate(others):
        assert desk.locally(f"a{n}", 100, **options) is None
    assert desk.book.admit(desk.client.request("b", 100, worker="v"), desk.s) is None
    assert desk.locally("c", -1) is None
    assert desk.locally("d", 2**60) is None
    assert desk.locally("e", 100) is not None


def test_a_repeated_call_gets_its_first_answer(desk: Desk) -> None:
    first = desk.locally("a", 100)
    granted = desk.free()
    desk.clock.advance(2 * LEASE_S)
    assert desk.locally("a", 555) is first
    assert desk.free() == granted


def test_fallbacks_come_first_above_their_mark_so_credit_ends_there(store: MemoryStore, clock: Clock) -> None:
    desk = Desk(store, clock, budget("tenant=*", 100_000))
    now(store.reserve(desk.client.request("other", 39_000)))
    for n in range(4):
        desk.directly(f"warm{n}", 100, 10, downgrade_at_ppm=400_000)
    drawn = desk.draw()
    assert drawn is not None
    ((line,),) = drawn.lines
    assert 0 <= line.state.held_nano_usd <= 40_000
    assert desk.locally("free", 0, 0, downgrade_at_ppm=400_000) is None


# Replacing, extending, promoting --------------------------------------------------------------------------------------


def test_a_block_takes_over_its_requests_hold_and_looks_through_it(desk: Desk) -> None:
    granted = desk.free()
    assert desk.locally("request", granted - 50) is not None
    assert desk.locally("other", 60) is None
    assert desk.locally("block", granted, replaces="request") is not None
    assert desk.free() == 0
    assert desk.book.open_call("request") is None
    assert desk.locally("next", 10, replaces="unknown") is None


def test_an_extension_comes_from_credit_and_is_counted_once(desk: Desk) -> None:
    desk.locally("a", 100)
    free = desk.free()
    request = _extend(desk, "a", 180, 1)
    for _ in range(2):
        extension = desk.book.extend(request, desk.s)
        assert extension is not None
        assert (extension.granted, extension.hold_nano_usd) == (True, 180)
    assert desk.free() == free - 80
    assert desk.book.extend(_extend(desk, "a", 180 + free, 2), desk.s) is None
    assert desk.book.extend(_extend(desk, "unknown", 100, 1), desk.s) is None
    less = desk.book.extend(_extend(desk, "a", 50, 3), desk.s)
    assert less is not None
    assert less.hold_nano_usd == 180


def test_a_hold_past_its_deadline_is_not_extended_and_keeps_its_credit_for_a_while(desk: Desk) -> None:
    desk.locally("a", 100, deadline_s=0.5)
    granted = desk.free()
    desk.clock.advance(0.5)
    extension = desk.book.extend(_extend(desk, "a", 150, 1), desk.s)
    assert extension is not None
    assert (extension.granted, extension.hold_nano_usd, extension.reason) == (False, 0, "held")
    assert desk.free() == granted
    desk.clock.advance(GRACE_S)
    desk.book.plan(desk.s)
    assert desk.book.open_call("a") is None


def test_a_promoted_call_takes_its_credit_along(desk: Desk) -> None:
    desk.locally("a", 100)
    free, held = desk.free(), desk.spent_held()
    call = desk.book.open_call("a")
    assert call is not None
    now(desk.store.promote(desk.book.promotion(call, desk.s)))
    desk.book.promoted(call)
    assert (desk.free(), desk.spent_held()) == (free, held)
    desk.draw()
    desk.settle("a", 30)
    desk.draw(everything=True)
    assert desk.spent_held() == (30, 0)


@pytest.mark.parametrize("lands", ["before", "after", "never"])
@pytest.mark.parametrize("end", ["settle", "release"])
def test_a_promotion_in_doubt_never_makes_credit_of_a_hold(desk: Desk, lands: str, end: str) -> None:
    desk.locally("a", 100)
    call = desk.book.open_call("a")
    assert call is not None
    call.doubtful = True
    promotion = desk.book.promotion(call, desk.s)
    if lands == "before":
        now(desk.store.promote(promotion))
    if end == "settle":
        desk.settle("a", 20)
    elif not desk.book.release("a"):
        now(desk.store.release("a"))
    if lands == "after":
        now(desk.store.promote(promotion))
    _check_knows_no_more_than_there_is(desk)
    desk.draw()
    _check_knows_no_more_than_there_is(desk)
    desk.draw(everything=True)
    _check_knows_no_more_than_there_is(desk)
    assert desk.spent_held()[0] == (20 if end == "settle" else 0)


@pytest.mark.parametrize("lands", [True, False])
def test_a_released_calls_credit_is_free_again_once_no_hold_can_come_of_it(desk: Desk, lands: bool) -> None:
    desk.locally("a", 100, deadline_s=5.0)
    call = desk.book.open_call("a")
    assert call is not None
    call.doubtful = True
    if lands:
        now(desk.store.promote(desk.book.promotion(call, desk.s)))
    assert not desk.book.release("a")
    now(desk.store.release("a"))
    _tend(desk, 4.9)
    assert [credit.calls for credit in desk.book._credits.values()] == [1]
    _tend(desk, SWEEP_S + 5 * LEASE_S)
    assert now(desk.store.credits()) == []
    assert desk.spent_held() == (0, 0)
    assert desk.book.next_draw() == float("inf")


def test_a_second_answer_ends_the_doubt_about_a_released_call(desk: Desk) -> None:
    desk.locally("a", 100)
    free, call = desk.free(), desk.book.open_call("a")
    assert call is not None
    call.doubtful = True
    now(desk.store.promote(desk.book.promotion(call, desk.s)))
    desk.book.release("a")
    now(desk.store.promote(desk.book.promotion(call, desk.s)))
    for _ in range(2):
        desk.book.promoted(call)
        assert [(c.free, c.calls) for c in desk.book._credits.values()] == [(free, 0)]
    _check_knows_no_more_than_there_is(desk)


def test_the_answer_to_a_promotion_whose_call_has_ended_meanwhile_changes_nothing(desk: Desk) -> None:
    desk.locally("a", 100)
    call = desk.book.open_call("a")
    assert call is not None
    promotion = desk.book.promotion(call, desk.s)
    call.doubtful = True
    desk.settle("a", 10)
    now(desk.store.promote(promotion))
    desk.book.promoted(call)
    assert [credit.calls for credit in desk.book._credits.values()] == [0]
    _check_knows_no_more_than_there_is(desk)


# Time -----------------------------------------------------------------------------------------------------------------


def test_credit_is_not_used_after_the_workers_own_deadline(desk: Desk) -> None:
    desk.clock.advance(LEASE_S - 0.001)
    assert desk.locally("a", 100) is not None
    desk.clock.advance(0.001)
    assert desk.locally("b", 100) is None
    assert desk.reserve("b", 100)[0].candidate == 0


def test_the_deadline_counts_from_the_question_and_the_stores_time_from_the_answer(
    store: MemoryStore, clock: Clock
) -> None:
    desk = Desk(store, clock, budget("tenant=*", LIMIT), offset_s=123_456.0)
    desk.warm()
    desk.draw(took_s=0.6)
    clock.advance(0.3)
    admission = desk.locally("a", 100)
    assert admission is not None
    assert admission.admitted_at_s == pytest.approx(NOON_S + 0.3, abs=1e-6)
    clock.advance(0.11)
    assert desk.locally("b", 100) is None


def test_credit_ends_with_its_window_and_near_its_end_the_store_decides(store: MemoryStore, clock: Clock) -> None:
    clock.now_s = END_S - 0.5
    desk = Desk(store, clock, budget("tenant=*", LIMIT))
    desk.warm()
    clock.advance(0.4)
    admission = desk.locally("a", 100)
    assert admission is not None
    assert admission.states[0].resets_at_s == END_S
    clock.now_s = END_S - 0.005
    assert desk.locally("b", 100) is None
    clock.now_s = END_S + 0.1
    assert desk.locally("b", 100) is None
    desk.settle("a", 60)
    assert desk.book.open_call("a") is None
    desk.warm()
    new = desk.locally("c", 100)
    assert new is not None
    assert new.states[0].spent_nano_usd == 0
    assert store._book.spent[COUNTER] == 60


def test_an_edit_of_a_budget_takes_effect_within_the_lease_and_brings_all_credit_back(
    store: MemoryStore, clock: Clock
) -> None:
    now(store.set_budget(budget("tenant=*", LIMIT)))
    desk = Desk(store, clock)
    desk.warm()
    now(desk.store.set_budget(budget("tenant=*", 10)))
    assert desk.locally("a", 1) is not None
    desk.draw()
    assert desk.locally("b", 1) is None
    desk.draw()
    assert desk.spent_held() == (0, 1)
    assert desk.reserve("c", 100)[0].candidate is None


def test_a_removed_limit_needs_no_credit_and_gives_it_back(desk: Desk) -> None:
    now(desk.store.set_budget(budget("tenant=*", None)))
    for _ in range(3):
        desk.client.index.update(*now(desk.store.forms()))
        desk.warm()
    assert desk.locally("a", LIMIT * 5) is not None
    assert now(desk.store.credits()) == []


def test_a_dead_worker_uses_none_of_its_credit_and_settles_under_its_old_name(desk: Desk) -> None:
    desk.beat(20.0)
    desk.warm()
    desk.locally("a", 100)
    granted = desk.spent_held()[1]
    desk.clock.advance(20.0)
    assert desk.locally("b", 100) is None
    desk.beat()
    assert desk.book.holder is None
    desk.name = "w2"
    desk.beat()
    assert desk.spent_held() == (0, granted)
    desk.settle("a", 30)
    assert desk.spent_held() == (30, granted - 30)
    desk.warm()
    assert desk.locally("c", 100) is not None
    assert now(desk.store.reclaim())[0].holder == "w"


# Drawing --------------------------------------------------------------------------------------------------------------


def test_idle_credit_goes_back_and_its_budget_is_forgotten(desk: Desk) -> None:
    assert desk.spent_held()[1] > 0
    desk.clock.advance(LEASE_S + 0.1)
    desk.draw()
    assert desk.spent_held() == (0, 0)
    assert desk.draw() is None
    assert desk.book.next_draw() == float("inf")


def test_closing_gives_everything_back_but_what_open_calls_hold(desk: Desk) -> None:
    desk.locally("a", 100)
    desk.draw(everything=True)
    assert desk.spent_held() == (0, 100)
    desk.settle("a", 100)
    assert desk.spent_held() == (100, 0)


def test_renewals_come_every_third_of_the_lease_and_sooner_where_credit_is_short(desk: Desk) -> None:
    assert desk.book.next_draw() == pytest.approx(desk.s + LEASE_S / 3)
    assert not desk.book.hungry
    while desk.locally(f"a{desk.free()}", 50) is not None:
        pass
    assert desk.book.hungry
    assert desk.book.next_draw() == pytest.approx(desk.s + LEASE_S / 100)


def test_a_lost_answer_is_made_good_by_the_next_one(desk: Desk) -> None:
    desk.warm(1000)
    desk.send()
    desk.book.failed()
    _check_knows_no_more_than_there_is(desk)
    desk.draw()
    _check_knows_no_more_than_there_is(desk)
    assert desk.free() == desk.spent_held()[1]


def test_an_older_draws_late_answer_is_not_listened_to(desk: Desk) -> None:
    late = desk.send()
    assert late is not None
    desk.book.failed()
    desk.locally("a", 100)
    desk.settle("a", 100)
    desk.draw(everything=True)
    desk.book.answered(*late, sent=desk.s, received=desk.s)
    assert desk.locally("b", 1) is None
    _check_knows_no_more_than_there_is(desk)


def test_a_worker_takes_less_the_less_is_left_and_in_the_end_nothing(store: MemoryStore, clock: Clock) -> None:
    desk = Desk(store, clock, budget("tenant=*", LIMIT))
    seen = []
    for share in (0, 50, 90, 99):
        other = now(store.reserve(desk.client.request(f"other{share}", LIMIT * share // 100 - sum(desk.spent_held()))))
        assert other.candidate == 0
        for _ in range(3):
            desk.warm(1000, calls=6)
        seen.append(desk.free())
        desk.draw(everything=True)
        clock.advance(2 * LEASE_S)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] >= 1000
    assert seen[-1] == 0
    assert desk.reserve("last", LIMIT // 100, deadline_s=1)[0].candidate == 0


def test_credit_in_the_way_of_a_refused_call_is_given_back(desk: Desk) -> None:
    free = desk.free()
    request = desk.client.request("big", LIMIT - free + 1, worker="w")
    refusal = now(desk.store.reserve(request))
    assert (refusal.candidate, refusal.reason) == (None, "held")
    assert desk.book.rest({COUNTER}, desk.s)
    desk.draw()
    assert now(desk.store.reserve(request)).candidate == 0
    assert not desk.book.rest({COUNTER}, desk.s)


def test_what_a_call_costs_above_its_hold_comes_out_of_no_other_calls_credit(desk: Desk) -> None:
    granted = desk.free()
    desk.locally("a", 100)
    desk.locally("b", granted - 100)
    desk.settle("a", granted + 500)
    assert desk.spent_held() == (granted + 500, granted - 100)
    assert desk.free() == 0
    desk.settle("b", granted - 100)
    assert desk.spent_held() == (2 * granted + 400, 0)
    desk.draw(everything=True)
    assert (desk.free(), desk.spent_held()[1]) == (0, 0)


def test_calls_that_hold_never_overspend_because_of_one_that_cost_more(desk: Desk) -> None:
    desk.locally("b", 100)
    for n in range(4):
        desk.reserve(f"a{n}", 300)
    desk.settle("b", 50_000)
    room = LIMIT - sum(desk.spent_held())
    other = now(desk.store.reserve(desk.client.request("big", room)))
    assert other.candidate == 0
    desk.settle("big", room)
    for n in range(4):
        desk.settle(f"a{n}", 300)
    assert sum(desk.spent_held()) <= LIMIT


# Idle credit ----------------------------------------------------------------------------------------------------------


def _tend(desk: Desk, for_s: float) -> None:
    """Draw whenever it is due."""
    end_s = desk.s + for_s
    while (due := desk.book.next_draw()) < end_s:
        desk.clock.advance(max(due - desk.s, 0.001))
        desk.draw()
    desk.clock.advance(end_s - desk.s)


def test_credit_of_calls_that_outlast_the_lease_comes_back_soon_after_they_end(desk: Desk) -> None:
    for n in range(5):
        desk.locally(f"a{n}", 100)
    _tend(desk, 10 * LEASE_S)
    assert desk.spent_held() == (0, 500)
    for n in range(4):
        desk.settle(f"a{n}", 30)
    _tend(desk, 3 * LEASE_S)
    assert desk.spent_held() == (120, 100)
    assert desk.book.release("a4")
    _tend(desk, 3 * LEASE_S)
    assert desk.spent_held() == (120, 0)
    assert now(desk.store.credits()) == []
    assert desk.book.next_draw() == float("inf")


def test_an_idle_worker_whose_calls_still_run_draws_rarely(desk: Desk) -> None:
    desk.locally("a", 100)
    _tend(desk, 2 * LEASE_S)
    before = desk.book._sequence
    _tend(desk, 20 * LEASE_S)
    assert 8 <= desk.book._sequence - before <= 11


def test_credit_that_long_calls_left_behind_is_given_back_for_a_refused_call_of_the_same_worker(desk: Desk) -> None:
    desk.locally("a", 100)
    _tend(desk, 5 * LEASE_S)
    desk.settle("a", 10)
    request = desk.client.request("big", LIMIT - 20, worker="w")
    assert now(desk.store.reserve(request)).reason == "held"
    assert desk.book.rest({COUNTER}, desk.s)
    desk.draw()
    assert now(desk.store.reserve(request)).candidate == 0


def test_credit_of_a_window_that_is_over_comes_back_with_its_last_call(store: MemoryStore, clock: Clock) -> None:
    clock.now_s = END_S - 0.5
    desk = Desk(store, clock, budget("tenant=*", LIMIT))
    desk.warm()
    desk.locally("a", 100)
    desk.locally("b", 100)
    clock.now_s = END_S + 0.1
    desk.warm()
    desk.settle("a", 60)
    _tend(desk, 5 * LEASE_S)
    assert [row[:4] for row in now(store.credits())] == [(COUNTER, "w", *_used(store))]
    desk.settle("b", 100)
    for lost in (True, False):
        assert desk.book.next_draw() < float("inf")
        if lost:
            desk.book.plan(desk.s)
            desk.book.failed()
        else:
            _tend(desk, 3 * LEASE_S)
    assert now(store.credits()) == []
    assert desk.book.next_draw() == float("inf")
    assert store._book.spent[COUNTER] == 160


def _used(store: MemoryStore) -> tuple[int, int]:
    book = store._book.credit
    granted = book.granted(COUNTER, "w")
    return granted, granted - book.left_to(COUNTER, "w")


def test_credit_a_budget_does_not_bind_any_more_comes_back_and_a_new_grant_is_not_taken_for_it(
    store: MemoryStore, clock: Clock
) -> None:
    now(store.set_budget(budget("tenant=*", LIMIT)))
    desk = Desk(store, clock)
    desk.warm()
    desk.locally("a", 100)
    now(store.set_budget(budget("tenant=*", LIMIT, soft=True)))
    desk.draw()
    desk.draw()
    desk.settle("a", 40)
    desk.draw()
    assert now(store.credits()) == []
    now(store.set_budget(budget("tenant=*", LIMIT)))
    for _ in range(3):
        desk.clock.advance(0.01)
        desk.warm()
    assert desk.free() == desk.spent_held()[1] > 0


def test_a_charge_that_can_never_be_written_leaves_its_credit(desk: Desk) -> None:
    granted = desk.free()
    desk.locally("a", 100)
    charged = desk.book.charge(desk.client.settlement("a", 90))
    assert charged.credit == CreditUse("w", ((COUNTER, END_S),), 100)
    desk.book.settled("a", written=False)
    assert desk.free() == granted


def test_a_repeated_settlement_is_debited_once_and_names_its_credit_again(desk: Desk) -> None:
    granted = desk.free()
    desk.locally("a", 100)
    first = desk.book.charge(desk.client.settlement("a", 90))
    assert desk.book.charge(desk.client.settlement("a", 90)) == first
    assert desk.free() == granted - 90


def test_only_so_many_matches_are_kept_fresh(store: MemoryStore, clock: Clock) -> None:
    desk = Desk(store, clock, budget("tenant=*", LIMIT))
    for n in range(MAX_MATCHES + 10):
        desk.directly(f"c{n}", 1, tenant=f"t{n}")
    request = desk.book.plan(desk.s)
    assert request is not None
    assert len(request.asks) == MAX_MATCHES


def test_counters_are_remembered_until_their_window_is_long_over(desk: Desk) -> None:
    desk.clock.now_s = END_S + 1
    desk.book.plan(desk.s)
    assert COUNTER in desk.book._credits
    desk.clock.now_s = END_S + 3600 + SWEEP_S
    desk.book.plan(desk.s)
    assert COUNTER not in desk.book._credits


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_the_credit_of_512_workers_is_below_1_percent_of_the_limit_when_2_percent_are_left() -> None:
    left, total = LIMIT * 1000 // 50, 0
    for _ in range(512):
        taken = most(LIMIT * 1000, left, 1)
        total, left = total + taken, left - taken
    assert total < LIMIT * 10
    assert most(LIMIT, LIMIT // 100, 5) == 0
    assert share_ppm(LIMIT, LIMIT // 2) == 20_000
    assert share_ppm(LIMIT, -5) == 1


def test_the_need_is_what_comes_in_half_a_lease_and_two_of_the_largest_holds() -> None:
    demand = Demand(0.0)
    for tick in range(1, 5001):
        demand.note(20, tick / 1000)
        if tick % 100 == 0:
            needs = demand.needs(tick / 1000, LEASE_S)
    assert needs == pytest.approx(20 * 1000 / 2 + 40, rel=0.01)
    assert demand.needs(10.0, LEASE_S) < 10


def _extend(desk: Desk, call_id: str, target: int, sequence: int) -> ExtendRequest:
    return ExtendRequest(
        call_id=call_id,
        sequence=sequence,
        target_nano_usd=target,
        least_nano_usd=target,
        matches=desk.client.matches(),
        windows=desk.client.index.windows(desk.clock.now_s),
        rate=(1_000_000, 1),
    )


def _check_knows_no_more_than_there_is(desk: Desk) -> None:
    left = {row.counter: row.granted_nano_usd - row.used_nano_usd for row in now(desk.store.credits())}
    for credit in desk.book._credits.values():
        assert credit.free <= left.get(credit.counter, 0)
