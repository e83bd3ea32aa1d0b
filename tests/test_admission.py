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
    Match,
    applicable,
    decide,
    fits,
    limit_of,
)
from askii_middleware.currency import MAX_NANO_USD, parse_rate, split_coins


def line(limit: int | None, spent: int = 0, held: int = 0, *, resets_at_s: int = 100, scope: str = "s") -> BudgetState:
    return BudgetState(
        counter=f"{scope}|daily|UTC|0",
        scope=scope,
        period="daily",
        limit_nano_usd=limit,
        spent_nano_usd=spent,
        held_nano_usd=held,
        resets_at_s=resets_at_s,
    )


def ask(*candidates: tuple[int, list[BudgetState]], downgrade_at_ppm: int = PPM) -> Admission:
    holds, lines = [hold for hold, _ in candidates], [states for _, states in candidates]
    return decide(holds, lines, admitted_at_s=7.5, downgrade_at_ppm=downgrade_at_ppm)


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
    assert fits(line(limit, spent, held), hold) is answer


@pytest.mark.parametrize(
    ("state", "remaining"), [(line(10, 3, 2), 5), (line(10, 8, 5), 0), (line(None, 8, 5), None), (line(0), 0)]
)
def test_what_remains_is_neither_spent_nor_held_and_never_negative(state: BudgetState, remaining: int | None) -> None:
    assert state.remaining_nano_usd == remaining


# One candidate -------------------------------------------------------------------------------------------------------


def test_a_call_without_budgets_is_admitted() -> None:
    assert ask((5, [])) == Admission(candidate=0, admitted_at_s=7.5)


def test_a_call_must_fit_every_line() -> None:
    roomy, tight = line(100, scope="tenant=a"), line(10, 6, scope="key=k")
    assert ask((4, [roomy, tight])) == Admission(candidate=0, admitted_at_s=7.5, states=(roomy, tight))
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
    line, st.none() | small, small, small, resets_at_s=st.integers(1, 4), scope=st.sampled_from(["a", "b"])
)
candidates_st = st.lists(st.tuples(small, st.lists(states_st, max_size=3)), min_size=1, max_size=4)


def has_room(state: BudgetState, hold: int, used: int) -> bool:
    """The contract: spent + held + hold <= limit; a hold of zero skips it, except that limit 0 refuses."""
    if state.limit_nano_usd is None:
        return True
    if state.limit_nano_usd == 0:
        return False
    return hold == 0 or used + hold <= state.limit_nano_usd


def now_fits(state: BudgetState, hold: int) -> bool:
    return has_room(state, hold, state.spent_nano_usd + state.held_nano_usd)


def ever_fits(state: BudgetState, hold: int) -> bool:
    return has_room(state, hold, state.spent_nano_usd)


@given(candidates_st, st.sampled_from([0, 250_000, 500_000, 800_000, PPM]))
@example([(0, [line(4, 6)]), (0, [])], PPM)
def test_the_decision_is_the_contracts(candidates: list[tuple[int, list[BudgetState]]], ppm: int) -> None:
    shares = [
        Fraction(s.spent_nano_usd + s.held_nano_usd, s.limit_nano_usd) for s in candidates[0][1] if s.limit_nano_usd
    ]
    exhausted = any(s.limit_nano_usd == 0 and s.spent_nano_usd + s.held_nano_usd for s in candidates[0][1])
    above = exhausted or (bool(shares) and max(shares) > Fraction(ppm, PPM))
    order = [*range(1, len(candidates)), 0] if above else list(range(len(candidates)))
    fitting = [i for i in order if all(now_fits(s, candidates[i][0]) for s in candidates[i][1])]

    answer = ask(*candidates, downgrade_at_ppm=ppm)

    if fitting:
        assert answer == Admission(candidate=fitting[0], admitted_at_s=7.5, states=tuple(candidates[fitting[0]][1]))
        return
    waiting = [i for i in order if all(ever_fits(s, candidates[i][0]) for s in candidates[i][1])]
    judged = waiting[0] if waiting else 0
    hold, lines = candidates[judged]
    failing = [s for s in lines if not (now_fits if waiting else ever_fits)(s, hold)]
    assert answer.candidate is None
    assert answer.reason == ("held" if waiting else "spent")
    assert answer.states == tuple(candidates[0][1])
    assert answer.deciding in failing
    assert answer.deciding is not None
    assert answer.deciding.resets_at_s == max(s.resets_at_s for s in failing)


@given(states_st, small, small)
def test_a_smaller_hold_never_fits_worse_unless_it_is_already_refused(state: BudgetState, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert fits(state, low) or not fits(state, high)


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
