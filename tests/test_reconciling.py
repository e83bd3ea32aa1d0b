"""Comparing two sides: every difference is found, named and counted, and no other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import reconciling
from askii_middleware.reconciling import (
    Difference,
    Findings,
    Fold,
    Key,
    Ours,
    Running,
    Waiting,
    bucket_of,
    compare,
    key_of,
    ledger_differences,
    rounds,
    whole,
)
from askii_middleware.sinks.auditing import Line

NOTHING = Waiting(frozenset(), 0, {})

# Pure -----------------------------------------------------------------------------------------------------------------

ids = st.sampled_from([f"call-{n}" for n in range(12)])
lines = st.builds(Line, st.sampled_from(["a", "b"]), ids, st.just("coins"), st.sampled_from(["1", "2", "x"]))
sides = st.lists(lines, max_size=12, unique_by=key_of)


@given(sides, sides, st.integers(1, 5))
def test_folding_finds_all_differences_and_no_other(ours: list[Line], theirs: list[Line], most: int) -> None:
    left, right = Fold(), Fold()
    for fold, side in ((left, ours), (right, theirs)):
        for line in side:
            fold.add(line)
    found: list[Difference] = []
    for buckets in rounds(left.differing(right), left, right, most):
        found += compare(*held(ours, theirs, buckets), NOTHING)
    a, b = ({key_of(line): line.value for line in side} for side in (ours, theirs))
    wanted = {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}
    assert {(d.subscription, d.code, d.id): (d.ours, d.theirs) for d in found} == wanted
    assert len(found) == len(wanted)


@given(st.lists(lines, max_size=12), st.lists(lines, max_size=12), st.integers(1, 5))
def test_sides_that_differ_are_never_without_a_difference(ours: list[Line], theirs: list[Line], most: int) -> None:
    """Also where lines come several times."""
    left, right = Fold(), Fold()
    for fold, side in ((left, ours), (right, theirs)):
        for line in side:
            fold.add(line)
    for buckets in rounds(left.differing(right), left, right, most):
        assert compare(*held(ours, theirs, buckets), NOTHING)
    assert (left.differing(right) == []) == (Counter(ours) == Counter(theirs))


def held(
    ours: list[Line], theirs: list[Line], buckets: set[int]
) -> tuple[dict[Key, list[Ours]], dict[Key, list[Line]]]:
    mine: dict[Key, list[Ours]] = {}
    yours: dict[Key, list[Line]] = {}
    for line in ours:
        if bucket_of(line) in buckets:
            mine.setdefault(key_of(line), []).append(Ours(line, (line.subscription, line.id)))
    for line in theirs:
        if bucket_of(line) in buckets:
            yours.setdefault(key_of(line), []).append(line)
    return mine, yours


@given(st.lists(lines, max_size=12))
def test_the_order_of_lines_does_not_matter_and_twice_is_not_once(found: list[Line]) -> None:
    one, other, twice = Fold(), Fold(), Fold()
    for fold, side in ((one, found), (other, found[::-1]), (twice, found + found)):
        for line in side:
            fold.add(line)
    assert one.differing(other) == []
    assert (twice.differing(one) == []) == (not found)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 40))
def test_no_round_holds_more_than_it_may_unless_a_bucket_alone_does(sizes: list[int], most: int) -> None:
    ours, theirs = Fold(), Fold()
    ours.counts[: len(sizes)] = sizes
    groups = rounds(range(len(sizes)), ours, theirs, most)
    assert sorted(number for group in groups for number in group) == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or sum(sizes[number] for number in group) <= most


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("", None),
        ("1.5", None),
        ("1e3", None),
        ("\u0661", None),
        ("9" * 31, None),
        ("-", None),
    ],
)
def test_only_plain_digits_are_summed_up(value: str, number: int | None) -> None:
    assert whole(value) == number


def test_a_line_that_is_missing_is_pending_dead_or_lost() -> None:
    ours = {key_of(Line("s", n, "c", "1")): [Ours(Line("s", n, "c", "1"), ("s", n), n in "abd")] for n in "abcd"}
    found = compare(ours, {}, Waiting({("s", "a")}, 0, {("s", "b"): "HTTP 422"}))
    assert [(d.id, d.kind, d.detail) for d in found] == [
        *(("a", "pending", ""), ("b", "dead letter", "HTTP 422"), ("c", "missing", ""), ("d", "earlier", "")),
    ]


def test_a_line_that_comes_twice_on_one_side_only_is_doubled() -> None:
    one, other = Line("s", "a", "c", "1"), Line("s", "a", "c", "7")
    mine = {key_of(one): [Ours(one, ("s", "a"))]}
    (found,) = compare(mine, {key_of(one): [one, one]}, NOTHING)
    assert (found.kind, found.ours, found.theirs) == ("doubled", "1", "1 + 1")
    (found,) = compare({key_of(one): [Ours(one, ("s", "a")), Ours(other, ("s", "a"))]}, {key_of(one): [one]}, NOTHING)
    assert (found.kind, found.ours, found.theirs) == ("doubled", "1 + 7", "1")
    assert [d.kind for d in compare({}, {key_of(one): [one, one]}, NOTHING)] == ["unknown", "unknown"]


@pytest.mark.parametrize(("more", "agrees"), [(1, False), (2, True), (3, True)])
def test_what_waits_and_cannot_be_named_excuses_no_more_than_its_number(more: int, agrees: bool) -> None:
    findings = Findings()
    findings.add(Difference("missing", "s", id_, "c", "1", None) for id_ in "ab")
    findings.forgive(more)
    assert findings.agrees is agrees
    assert findings.counts == ({"pending": 2} if agrees else {"missing": 2})


def test_differences_are_all_counted_and_the_first_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "MAX_LISTED", 3)
    findings = Findings()
    findings.add(Difference("missing", "s", str(n), "c", "1", None) for n in range(10))
    findings.add([Difference("unknown", "s", "x", "c", None, "1")])
    assert findings.counts == {"missing": 10, "unknown": 1}
    assert len(findings.listed) == 4


def test_a_tenant_whose_calls_are_settled_meanwhile_is_not_accused() -> None:
    assert ledger_differences({"a": 5}, running(5)) == []
    for booked in (5, 6, 7):
        assert ledger_differences({"a": booked}, running(5, 2)) == []
    assert ledger_differences({"a": 9}, running(5, 4, -3)) == []  # a charge and its credit
    (found,) = ledger_differences({"a": 6}, running(5))
    assert (found.kind, found.subscription, found.ours, found.theirs) == ("ledger", "a", "5", "6")
    assert [d.subscription for d in ledger_differences({"b": 1}, running(1))] == ["a", "b"]


@pytest.mark.parametrize("booked", [0, 4, 8])
def test_a_tenant_that_is_busy_meanwhile_is_still_accused_of_what_no_moment_explains(booked: int) -> None:
    (found,) = ledger_differences({"a": booked}, running(5, 2))
    assert (found.ours, found.theirs) == ("7", str(booked))


def running(before: int, *meanwhile: int) -> Running:
    made = Running()
    made.add("a", before)
    made.mark()
    for amount in meanwhile:
        made.add("a", amount)
    return made
