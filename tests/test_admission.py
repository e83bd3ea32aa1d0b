"""The decision itself, against a model that says the same in the contract's words."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from askii_middleware.admission import (
    PPM,
    Admission,
    BudgetRef,
    BudgetState,
    BudgetTerms,
    Candidate,
    ExtendRequest,
    Extension,
    Match,
    applicable,
    decide,
    decide_extension,
    fitting,
    limit_of,
)
from askii_middleware.currency import MAX_NANO_USD, parse_rate, split_coins


def line(
    limit: int | None,
    spent: int = 0,
    held: int = 0,
    *,
    resets_at_s: int = 100,
    scope: str = "s",
    soft: bool = False,
) -> BudgetState:
    return BudgetState(
        counter=f"{scope}|daily|UTC|0",
        scope=scope,
        period="daily",
        limit_nano_usd=limit,
        spent_nano_usd=spent,
        held_nano_usd=held,
        resets_at_s=resets_at_s,
        soft=soft,
    )


Hold = int | tuple[int, int]
"""All of it or nothing; or from so much on."""


def ask(*candidates: tuple[Hold, list[BudgetState]], downgrade_at_ppm: int = PPM) -> Admission:
    asked = []
    for n, (hold, _) in enumerate(candidates):
        whole, least = (hold, None) if isinstance(hold, int) else hold
        asked.append(Candidate(f"m{n}", whole, (), least))
    return decide(asked, [states for _, states in candidates], admitted_at_s=7.5, downgrade_at_ppm=downgrade_at_ppm)


# One hold on one line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "spent", "held", "hold", "answer"),
    [
        (10, 0, 0, 10, True),
        (10, 0, 0, 11, False),
        (10, 4, 3, 3, True),
        (10, 4, 3, 4, False),
        (10, 10, 0, 1, False),
        (None, 10**15, 10**15, 10**15, True),
        (10, 10, 0, 0, True),
        (10, 12, 5, 0, True),
        (0, 0, 0, 0, False),
        (0, 0, 0, 1, False),
        (None, 0, 0, 0, True),
        (MAX_NANO_USD, MAX_NANO_USD - 1, 0, 1, True),
        (MAX_NANO_USD, MAX_NANO_USD - 1, 0, 2, False),
    ],
)
def test_a_hold_fits_up_to_the_limit_and_a_free_one_under_any_limit_but_zero(
    limit: int | None, spent: int, held: int, hold: int, answer: bool
) -> None:
    assert fitting([line(limit, spent, held)], hold) == (hold if answer else None)
    assert fitting([line(limit, spent, held, soft=True)], hold) == hold


@pytest.mark.parametrize(
    ("state", "remaining"), [(line(10, 3, 2), 5), (line(10, 8, 5), 0), (line(None, 8, 5), None), (line(0), 0)]
)
def test_what_remains_is_neither_spent_nor_held_and_never_negative(state: BudgetState, remaining: int | None) -> None:
    assert state.remaining_nano_usd == remaining


# One candidate -------------------------------------------------------------------------------------------------------


def test_a_call_without_budgets_is_admitted() -> None:
    assert ask((5, [])) == Admission(candidate=0, admitted_at_s=7.5, hold_nano_usd=5)


def test_a_call_must_fit_every_line() -> None:
    roomy, tight = line(100, scope="tenant=a"), line(10, 6, scope="key=k")
    assert ask((4, [roomy, tight])) == Admission(candidate=0, admitted_at_s=7.5, states=(roomy, tight), hold_nano_usd=4)
    assert ask((5, [roomy, tight])) == Admission(
        candidate=None, admitted_at_s=7.5, states=(roomy, tight), reason="spent", deciding=tight
    )


def test_money_that_is_gone_is_spent_and_money_that_runs_is_held() -> None:
    assert ask((5, [line(10, 6, 0)])).reason == "spent"
    assert ask((5, [line(10, 6, 4)])).reason == "spent"
    assert ask((5, [line(10, 5, 1)])).reason == "held"
    assert ask((11, [line(10)])).reason == "spent"
    assert ask((0, [line(0)])).reason == "spent"


def test_a_budget_that_is_spent_outweighs_one_that_is_held() -> None:
    held, spent = line(10, 0, 10, resets_at_s=900, scope="held"), line(10, 10, 0, resets_at_s=5, scope="spent")
    answer = ask((1, [held, spent]))
    assert (answer.reason, answer.deciding) == ("spent", spent)


def test_the_deciding_line_is_the_failing_one_that_resets_last() -> None:
    lines = [line(10, 10, resets_at_s=50), line(10, 10, resets_at_s=70, scope="last"), line(10, 0, resets_at_s=99)]
    assert ask((1, lines)).deciding == lines[1]
    held = [line(10, 0, 10, resets_at_s=50), line(10, 0, 10, resets_at_s=70, scope="last"), line(10, resets_at_s=99)]
    answer = ask((1, held))
    assert (answer.reason, answer.deciding) == ("held", held[1])


def test_where_a_part_will_do_as_much_is_held_as_fits_all_lines() -> None:
    roomy, tight = line(100), line(20, 6, 4)
    assert ask(((15, 3), [roomy, tight])).hold_nano_usd == 10
    assert ask(((15, 10), [tight, roomy])).hold_nano_usd == 10
    assert ask(((9, 3), [roomy, tight])).hold_nano_usd == 9
    assert ask(((15, 11), [roomy, tight])).candidate is None
    assert ask((15, [roomy, tight])).candidate is None


def test_a_refused_part_is_told_by_the_least_that_would_have_done() -> None:
    assert ask(((15, 5), [line(10, 6)])).reason == "spent"
    assert ask(((15, 5), [line(10, 5, 1)])).reason == "held"
    overdrawn_by_holds = line(10, 5, 9)
    answer = ask(((15, 0), [overdrawn_by_holds]))
    assert (answer.reason, answer.deciding) == ("held", overdrawn_by_holds)
    assert ask(((15, 0), [line(10, 11)])).reason == "spent"


def test_a_part_that_may_be_nothing_is_refused_by_limit_zero() -> None:
    answer = ask(((15, 0), [line(0)]))
    assert (answer.candidate, answer.reason, answer.deciding) == (None, "spent", line(0))
    assert ask(((15, 0), [line(10, 10)])).hold_nano_usd == 0


def test_a_soft_budget_is_shown_and_refuses_nothing() -> None:
    soft = line(0, 5, soft=True)
    assert ask((15, [soft])) == Admission(candidate=0, admitted_at_s=7.5, states=(soft,), hold_nano_usd=15)
    assert ask((15, [soft]), (15, [soft]), downgrade_at_ppm=0).candidate == 0
    hard = line(10, 10, resets_at_s=1)
    assert ask((15, [soft, hard])).deciding == hard


# Extensions ----------------------------------------------------------------------------------------------------------


def more(target: int, least: int) -> ExtendRequest:
    return ExtendRequest(
        call_id="c", sequence=1, target_nano_usd=target, least_nano_usd=least, matches=(), windows={}, rate=(1, 1)
    )


def test_an_extension_raises_the_hold_to_its_target_or_as_far_as_there_is_room() -> None:
    assert decide_extension([line(100, 20, 30)], 10, more(40, 15)) == Extension(granted=True, hold_nano_usd=40)
    assert decide_extension([line(100, 60, 30)], 10, more(40, 15)) == Extension(granted=True, hold_nano_usd=20)
    assert decide_extension([line(100, 65, 30)], 10, more(40, 15)) == Extension(granted=True, hold_nano_usd=15)
    assert decide_extension([], 10, more(40, 15)) == Extension(granted=True, hold_nano_usd=40)


def test_an_extension_without_room_for_the_least_leaves_the_hold_as_it_was() -> None:
    held, spent = line(100, 66, 30), line(100, 86, 10, scope="spent")
    assert decide_extension([held], 10, more(40, 15)) == Extension(
        granted=False, hold_nano_usd=10, reason="held", deciding=held
    )
    assert decide_extension([held, spent], 10, more(40, 15)) == Extension(
        granted=False, hold_nano_usd=10, reason="spent", deciding=spent
    )


def test_a_hold_never_shrinks_and_what_it_has_may_be_enough() -> None:
    assert decide_extension([line(10, 10, 10)], 10, more(5, 5)) == Extension(granted=True, hold_nano_usd=10)
    assert decide_extension([line(10, 10, 10)], 10, more(20, 10)) == Extension(granted=True, hold_nano_usd=10)
    assert decide_extension([line(0, 0, 10)], 10, more(20, 8)) == Extension(granted=True, hold_nano_usd=10)


def test_limit_zero_refuses_an_extension_and_a_soft_budget_does_not() -> None:
    assert decide_extension([line(0, 0, 10)], 10, more(20, 11)).reason == "spent"
    assert decide_extension([line(1, 5, 10, soft=True)], 10, more(20, 11)).hold_nano_usd == 20


@given(
    st.lists(st.builds(line, st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)), max_size=3),
    st.integers(0, 9),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_an_extension_never_passes_a_limit_and_always_says_why_it_is_refused(
    lines: list[BudgetState], held: int, target: int, least: int
) -> None:
    answer = decide_extension(lines, held, more(target, least))
    assert held <= answer.hold_nano_usd <= max(held, target)
    for state in lines:
        if answer.hold_nano_usd > held:
            assert state.limit_nano_usd
            assert state.spent_nano_usd + state.held_nano_usd + answer.hold_nano_usd - held <= state.limit_nano_usd
    if answer.granted:
        assert answer.hold_nano_usd >= min(least, target)
    else:
        assert (answer.hold_nano_usd, answer.deciding in lines) == (held, True)
        needed = min(least, target)
        room = [(s.limit_nano_usd or 0) - s.spent_nano_usd - s.held_nano_usd for s in lines]
        assert needed > held
        assert min(room) < needed - held or any(s.limit_nano_usd == 0 for s in lines)


# Several candidates --------------------------------------------------------------------------------------------------


def test_the_first_candidate_that_fits_wins_with_its_own_lines() -> None:
    dear, cheap, cheaper = [line(10, 8)], [line(10, 8, scope="model=mini")], [line(10, 8, scope="model=nano")]
    answer = ask((3, dear), (2, cheap), (1, cheaper))
    assert (answer.candidate, answer.states) == (1, tuple(cheap))


def test_a_free_fallback_serves_an_exhausted_tenant_but_not_one_with_limit_zero() -> None:
    assert ask((3, [line(10, 10)]), (0, [line(10, 10)])).candidate == 1
    assert ask((3, [line(0)]), (0, [line(0)])).candidate is None


def test_a_refusal_shows_the_requested_models_lines() -> None:
    first, second = [line(10, 10, scope="a")], [line(10, 10, scope="b")]
    answer = ask((3, first), (2, second))
    assert (answer.candidate, answer.states, answer.deciding) == (None, tuple(first), first[0])


def test_a_refusal_is_held_if_any_candidate_would_fit_once_running_calls_end() -> None:
    spent, held = [line(10, 9, 1, scope="a")], [line(10, 8, 2, scope="b")]
    answer = ask((3, spent), (2, held))
    assert (answer.reason, answer.deciding, answer.states) == ("held", held[0], tuple(spent))


@pytest.mark.parametrize(
    ("spent", "held", "winner"),
    [(79, 0, 0), (80, 0, 0), (40, 40, 0), (80, 1, 1), (81, 0, 1), (100, 0, 1)],
)
def test_fallbacks_come_first_only_above_the_threshold(spent: int, held: int, winner: int) -> None:
    lines = [line(100, spent, held)]
    assert ask((0, lines), (0, lines), downgrade_at_ppm=800_000).candidate == winner


def test_above_the_threshold_the_requested_model_still_serves_as_the_last() -> None:
    mine, theirs = [line(100, 90)], [line(100, 100, scope="model=mini")]
    assert ask((5, mine), (5, theirs), downgrade_at_ppm=800_000).candidate == 0


def test_the_largest_utilisation_of_the_requested_models_lines_counts() -> None:
    calm, busy, unlimited = line(100, 1), line(100, 90, scope="busy"), line(None, 10**9)
    assert ask((1, [calm, busy]), (1, [calm]), downgrade_at_ppm=800_000).candidate == 1
    assert ask((1, [calm, unlimited]), (1, [busy]), downgrade_at_ppm=800_000).candidate == 0


def test_at_threshold_zero_the_first_spent_nano_usd_brings_the_fallbacks_forward() -> None:
    assert ask((1, [line(100)]), (1, [line(100)]), downgrade_at_ppm=0).candidate == 0
    assert ask((1, [line(100, 1)]), (1, [line(100, 1)]), downgrade_at_ppm=0).candidate == 1


def test_without_a_fallback_the_threshold_changes_nothing() -> None:
    assert ask((1, [line(100, 90)]), downgrade_at_ppm=100_000).candidate == 0


# The model -----------------------------------------------------------------------------------------------------------

small = st.integers(0, 6)
states_st = st.builds(
    line,
    st.none() | small,
    small,
    small,
    resets_at_s=st.integers(1, 4),
    scope=st.sampled_from(["a", "b"]),
    soft=st.booleans(),
)
holds_st = small | st.tuples(small, small).map(lambda pair: (max(pair), min(pair)))
candidates_st = st.lists(st.tuples(holds_st, st.lists(states_st, max_size=3)), min_size=1, max_size=4)


def grants(states: list[BudgetState], hold: Hold, *, ever: bool = False) -> list[int]:
    """Every amount that may be held. The contract: spent + held + hold <= limit; a hold of zero skips it, except that
    limit 0 refuses.
    """
    most, least = (hold, hold) if isinstance(hold, int) else hold
    limits = [
        (state.limit_nano_usd, state.spent_nano_usd + (0 if ever else state.held_nano_usd))
        for state in states
        if state.limit_nano_usd is not None and not state.soft
    ]
    return [
        amount
        for amount in range(least, most + 1)
        if all(limit > 0 and (most == 0 or used + amount <= limit) for limit, used in limits)
    ]


@given(candidates_st, st.sampled_from([0, 250_000, 500_000, 800_000, PPM]))
@example([(0, [line(4, 6)]), (0, [])], PPM)
@example([((6, 0), [line(4, 6)])], PPM)
def test_the_decision_is_the_contracts(candidates: list[tuple[Hold, list[BudgetState]]], ppm: int) -> None:
    hard = [s for s in candidates[0][1] if not s.soft]
    shares = [Fraction(s.spent_nano_usd + s.held_nano_usd, s.limit_nano_usd) for s in hard if s.limit_nano_usd]
    exhausted = any(s.limit_nano_usd == 0 and s.spent_nano_usd + s.held_nano_usd for s in hard)
    above = exhausted or (bool(shares) and max(shares) > Fraction(ppm, PPM))
    order = [*range(1, len(candidates)), 0] if above else list(range(len(candidates)))
    winners = [i for i in order if grants(candidates[i][1], candidates[i][0])]

    answer = ask(*candidates, downgrade_at_ppm=ppm)

    if winners:
        hold, states = candidates[winners[0]]
        assert answer == Admission(
            candidate=winners[0], admitted_at_s=7.5, states=tuple(states), hold_nano_usd=max(grants(states, hold))
        )
        return
    waiting = [i for i in order if grants(candidates[i][1], candidates[i][0], ever=True)]
    judged = waiting[0] if waiting else 0
    hold, lines = candidates[judged]
    failing = [s for s in lines if not grants([s], hold, ever=not waiting)]
    assert answer.candidate is None
    assert answer.hold_nano_usd == 0
    assert answer.reason == ("held" if waiting else "spent")
    assert answer.states == tuple(candidates[0][1])
    assert answer.deciding in failing
    assert answer.deciding is not None
    assert answer.deciding.resets_at_s == max(s.resets_at_s for s in failing)


@given(states_st, small, small)
def test_a_smaller_hold_never_fits_worse_unless_it_is_already_refused(state: BudgetState, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert fitting([state], low) is not None or fitting([state], high) is None


@given(st.lists(st.tuples(small, states_st), max_size=12))
def test_holds_that_are_admitted_one_after_another_never_pass_a_limit(calls: list[tuple[int, BudgetState]]) -> None:
    limit, held = 6, 0
    for hold, _ in calls:
        if ask((hold, [line(limit, 0, held)])).candidate == 0:
            held += hold
        assert held <= limit


# Limits in coins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coins", "rate", "nano_usd"),
    [
        ("1000000", "1000000", 1_000_000_000),
        ("0.15", "1000000", 150),
        ("0.0001", "1000000", 0),
        ("10", "3", 3_333_333_333),
        ("10", "0.5", 20_000_000_000),
        ("0", "1", 0),
        ("1", "1234567", 810),
        ("9007199254740991", "1e-30", MAX_NANO_USD),
    ],
)
def test_a_limit_in_coins_is_turned_into_nano_usd_at_the_rate_rounded_down(
    coins: str, rate: str, nano_usd: int
) -> None:
    assert limit_of(BudgetTerms(limit_coins=coins), parse_rate(rate).ratio) == nano_usd


def test_a_limit_in_usd_does_not_depend_on_the_rate() -> None:
    for rate in ("1", "1000000", "0.001"):
        assert limit_of(BudgetTerms(limit_nano_usd=5), parse_rate(rate).ratio) == 5
        assert limit_of(BudgetTerms(), parse_rate(rate).ratio) is None


@given(
    st.decimals(0, 10**9, places=6).map(lambda d: format(d, "f")),
    st.sampled_from(["1", "1000", "1e6", "1234567", "0.37", "3"]),
)
def test_a_limit_in_coins_never_grows_by_its_conversion(coins: str, rate_text: str) -> None:
    rate = parse_rate(rate_text)
    limit = limit_of(BudgetTerms(limit_coins=coins), rate.ratio)
    assert limit is not None
    exact = Fraction(Decimal(coins)) * 10**9 / Fraction(*rate.ratio)
    assert limit == min(int(exact), MAX_NANO_USD)
    whole, pico = split_coins(limit, rate)
    assert Fraction(whole) + Fraction(pico, 10**12) <= Fraction(Decimal(coins)) + Fraction(1, 10**12)


# Which budgets govern ------------------------------------------------------------------------------------------------

ON, OFF, EXEMPT = BudgetTerms(limit_nano_usd=5), BudgetTerms(limit_nano_usd=5, enabled=False), BudgetTerms()


def match(*levels: dict[str, BudgetTerms | None]) -> Match:
    return Match("c", tuple(tuple(BudgetRef(key, terms) for key, terms in level.items()) for level in levels))


def test_nothing_governs_a_match_without_budgets() -> None:
    assert applicable(match({"exact": None}, {"all": None}), {}) == []
    assert applicable(match({"exact": OFF}), {}) == []


def test_the_first_level_with_an_enabled_budget_applies_with_all_its_ties() -> None:
    levels = match({"exact": None}, {"left": ON, "middle": OFF, "right": EXEMPT}, {"all": ON})
    assert applicable(levels, {}) == [("left", ON), ("right", EXEMPT)]
    assert applicable(match({"exact": OFF}, {"all": ON}), {}) == [("all", ON)]


def test_a_stored_budget_wins_over_the_declared_one() -> None:
    other = BudgetTerms(limit_nano_usd=9)
    assert applicable(match({"exact": ON}), {"exact": other}) == [("exact", other)]
    assert applicable(match({"exact": None}, {"all": ON}), {"exact": other}) == [("exact", other)]
    assert applicable(match({"exact": ON}, {"all": ON}), {"exact": OFF}) == [("all", ON)]
    assert applicable(match({"exact": OFF}, {"all": ON}), {"exact": EXEMPT}) == [("exact", EXEMPT)]


terms_st = st.sampled_from([None, ON, OFF, EXEMPT])
levels_st = st.lists(st.dictionaries(st.sampled_from("abc"), terms_st, max_size=3), max_size=3)


@given(levels_st, st.dictionaries(st.sampled_from("abc"), st.sampled_from([ON, OFF, EXEMPT])))
def test_what_governs_is_what_remains_after_overriding_and_disabling(
    levels: list[dict[str, BudgetTerms | None]], stored: dict[str, BudgetTerms]
) -> None:
    effective = [[(key, stored.get(key) or declared) for key, declared in level.items()] for level in levels]
    enabled = [[(key, terms) for key, terms in level if terms is not None and terms.enabled] for level in effective]
    assert applicable(match(*levels), stored) == next((level for level in enabled if level), [])
