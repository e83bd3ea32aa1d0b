"""Scopes, budgets, and which budgets a call meets."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.admission import BudgetTerms, applicable
from askii_middleware.budgets import DIMENSIONS, Budget, BudgetIndex, Scope, scope_text
from askii_middleware.errors import ConfigurationError

# Scopes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        (Scope(), "global"),
        (Scope(tenant="acme"), "tenant=acme"),
        (Scope(tenant="*"), "tenant=*"),
        (Scope(model="gpt-4o", tenant="acme"), "tenant=acme,model=gpt-4o"),
        (Scope(team="research", provider="openai"), "team=research,provider=openai"),
        (Scope(tag="batch", tenant="*"), "tenant=*,tag=batch"),
        (Scope(deployment="eu", end_user="e", user="u", key="k"), "key=k,user=u,end_user=e,deployment=eu"),
    ],
)
def test_a_scope_is_written_in_canonical_order_and_read_back(scope: Scope, text: str) -> None:
    assert scope.text == str(scope) == text
    assert Scope.parse(text) == scope


@pytest.mark.parametrize("text", ["", "  ", "global", " global "])
def test_no_dimension_at_all_means_everything(text: str) -> None:
    assert Scope.parse(text) == Scope()
    assert Scope().shape == ()


def test_order_and_blanks_between_pairs_do_not_matter() -> None:
    assert Scope.parse(" model=gpt-4o , tenant=acme ").text == "tenant=acme,model=gpt-4o"


@pytest.mark.parametrize(
    "text",
    ["tenant", "tenant=", "=acme", "colour=red", "tenant=a,tenant=b", "tenant=acme,", "Tenant=acme", "global,tenant=a"],
)
def test_a_scope_with_unknown_repeated_or_empty_parts_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="dimension=value"):
        Scope.parse(text)


@pytest.mark.parametrize("text", ["model=gpt-*", "tenant=**", "tenant=%2A"])
def test_a_star_is_neither_a_pattern_nor_a_value(text: str) -> None:
    with pytest.raises(ConfigurationError, match="stands alone"):
        Scope.parse(text)


def test_a_scope_that_is_not_percent_encoded_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded"):
        Scope.parse("tenant=%FF")


@pytest.mark.parametrize("values", [{"tenant": ""}, {"model": 4}, {"tag": ("a", "b")}])
def test_a_scope_takes_only_text(values: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        Scope(**values)


HOSTILE = [
    "a,b",
    "a=b",
    "a|daily",
    "100%",
    "%2C",
    "a*b",
    " a ",
    "a\nb",
    "global",
    "\u00e9",
    "e\u0301",
    "\ud800",
    "\\ud800",
    "\x1f",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_survive_the_text_form(value: str) -> None:
    text = Scope(tenant=value, model="m").text
    assert Scope.parse(text) == Scope(tenant=value, model="m")
    assert text.count(",") == 1
    assert text.count("=") == 2
    assert text.isascii()
    assert text.isprintable()
    assert not set("|* ") & set(text)


values_st = st.text(min_size=1, max_size=12) | st.sampled_from(HOSTILE)


@given(values_st, values_st)
def test_different_values_never_share_a_text(one: str, other: str) -> None:
    assert (scope_text({"tenant": one}) == scope_text({"tenant": other})) == (one == other)


@given(st.dictionaries(st.sampled_from(DIMENSIONS), values_st.filter(lambda v: v != "*") | st.just("*")))
def test_every_scope_reads_back_as_itself(values: dict[str, str]) -> None:
    assert Scope.parse(Scope(**values).text) == Scope(**values)


# Budgets -------------------------------------------------------------------------------------------------------------


def test_a_budget_takes_its_scope_as_text_or_value() -> None:
    assert Budget(scope="tenant=acme", limit_usd=1) == Budget(scope=Scope(tenant="acme"), limit_usd=1)
    assert Budget(scope="tenant=acme", period="7d").key == "tenant=acme|7d"


@pytest.mark.parametrize(
    ("limit", "nano_usd"),
    [
        (0, 0),
        (10, 10_000_000_000),
        (0.1, 100_000_000),
        ("0.000000001", 1),
        (Decimal("1.9999999999"), 1_999_999_999),
        ("9007199.254740991", 2**53 - 1),
    ],
)
def test_a_limit_in_usd_becomes_nano_usd_rounded_down(limit: Decimal | float | str, nano_usd: int) -> None:
    assert Budget(scope="global", limit_usd=limit).terms == BudgetTerms(limit_nano_usd=nano_usd)


@pytest.mark.parametrize(
    ("limit", "text"), [(5, "5"), ("1e3", "1000"), (0.25, "0.25"), ("1E-30", "0." + "0" * 29 + "1")]
)
def test_a_limit_in_coins_is_kept_as_a_plain_decimal(limit: float | str, text: str) -> None:
    assert Budget(scope="global", limit_coins=limit).terms == BudgetTerms(limit_coins=text)


def test_no_limit_at_all_is_an_exemption() -> None:
    assert Budget(scope="tenant=acme").terms == BudgetTerms(limit_nano_usd=None, limit_coins=None)


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ({"limit_usd": -1}, "limit_usd"),
        ({"limit_usd": "ten"}, "limit_usd"),
        ({"limit_usd": float("nan")}, "limit_usd"),
        ({"limit_usd": float("inf")}, "limit_usd"),
        ({"limit_usd": True}, "limit_usd"),
        ({"limit_usd": "9007199.254740992"}, "limit_usd"),
        ({"limit_usd": 10**30}, "limit_usd"),
        ({"limit_coins": -0.5}, "limit_coins"),
        ({"limit_coins": "1e-999999999"}, "limit_coins"),
        ({"limit_coins": "0e-999999999"}, "limit_coins"),
        ({"limit_coins": "1e999999999"}, "limit_coins"),
        ({"limit_usd": 1, "limit_coins": 1}, "not both"),
        ({"period": "hourly"}, "period"),
        ({"period": "0h"}, "period"),
        ({"period": "07d"}, "period"),
        ({"period": "1w"}, "period"),
        ({"period": "1h\n"}, "period"),
        ({"zone": "Mars/Olympus"}, "time zone"),
        ({"zone": "../../etc/passwd"}, "time zone"),
        ({"zone": ""}, "time zone"),
        ({"alert_at": (0.0,)}, "alert_at"),
        ({"alert_at": (0.5, 1.01)}, "alert_at"),
        ({"scope": 5}, "scope|Scope"),
        ({"scope": "colour=red"}, "scope"),
    ],
)
def test_an_unusable_budget_is_refused_and_says_why(budget: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Budget(**{"scope": "tenant=acme", **budget})  # type: ignore[arg-type]


def test_the_same_scope_and_period_twice_is_refused_and_different_periods_are_not() -> None:
    daily, monthly = Budget(scope="tenant=*", limit_usd=1), Budget(scope="tenant=*", limit_usd=20, period="monthly")
    assert set(BudgetIndex([daily, monthly]).declared) == {"tenant=*|daily", "tenant=*|monthly"}
    with pytest.raises(ConfigurationError, match="twice"):
        BudgetIndex([daily, monthly, Budget(scope="tenant=*", limit_usd=2, zone="Asia/Tokyo")])


# Matching ------------------------------------------------------------------------------------------------------------

CALL = {"tenant": "acme", "key": "k1", "user": None, "team": "", "tag": None, "model": "gpt-4o", "provider": "openai"}


Value = str | tuple[str, ...] | None


def keys_by_level(index: BudgetIndex, values: Mapping[str, Value]) -> dict[str, list[list[str]]]:
    return {m.counter: [[ref.key for ref in level] for level in m.levels] for m in index.matches(values)}


def test_without_budgets_a_call_meets_none() -> None:
    assert BudgetIndex().matches(CALL) == ()
    assert BudgetIndex().windows(0) == {}


def test_a_call_meets_one_counter_for_each_form_it_fills() -> None:
    index = BudgetIndex(
        [
            Budget(scope="global", limit_usd=100),
            Budget(scope="tenant=*", limit_usd=10),
            Budget(scope="tenant=globex", limit_usd=1),
            Budget(scope="tenant=*", limit_usd=200, period="monthly"),
        ]
    )
    assert keys_by_level(index, CALL) == {
        "global|daily": [["global|daily"]],
        "tenant=acme|daily": [["tenant=acme|daily"], ["tenant=*|daily"]],
        "tenant=acme|monthly": [["tenant=acme|monthly"], ["tenant=*|monthly"]],
    }


def test_an_absent_or_empty_dimension_never_matches_a_star() -> None:
    index = BudgetIndex([Budget(scope=f"{name}=*", limit_usd=1) for name in ("user", "team", "end_user", "tag")])
    assert index.matches(CALL) == ()
    assert index.matches({**CALL, "tag": ()}) == ()


def test_levels_go_from_exact_over_partly_starred_to_all_stars() -> None:
    index = BudgetIndex([Budget(scope="tenant=*,model=*", limit_usd=1)])
    assert keys_by_level(index, CALL) == {
        "tenant=acme,model=gpt-4o|daily": [
            ["tenant=acme,model=gpt-4o|daily"],
            ["tenant=*,model=gpt-4o|daily", "tenant=acme,model=*|daily"],
            ["tenant=*,model=*|daily"],
        ]
    }


def governing(budgets: list[Budget], **stored: BudgetTerms) -> list[str]:
    index = BudgetIndex(budgets)
    (match,) = index.matches(CALL)
    return [key for key, _ in applicable(match, stored)]


EXACT = Budget(scope="tenant=acme,model=gpt-4o", limit_usd=1)
BY_TENANT = Budget(scope="tenant=acme,model=*", limit_usd=2)
BY_MODEL = Budget(scope="tenant=*,model=gpt-4o", limit_usd=3)
ALL = Budget(scope="tenant=*,model=*", limit_usd=4)


def test_exact_beats_partly_starred_and_that_beats_all_stars() -> None:
    assert governing([ALL, BY_TENANT, EXACT]) == [EXACT.key]
    assert governing([ALL, BY_TENANT]) == [BY_TENANT.key]
    assert governing([ALL]) == [ALL.key]


def test_ties_all_apply() -> None:
    assert sorted(governing([ALL, BY_MODEL, BY_TENANT])) == sorted([BY_MODEL.key, BY_TENANT.key])


def test_no_limit_exempts_and_a_disabled_budget_falls_back() -> None:
    exempt = Budget(scope="tenant=acme,model=gpt-4o", limit_usd=None)
    off = Budget(scope="tenant=acme,model=gpt-4o", limit_usd=1, enabled=False)
    assert governing([ALL, exempt]) == [exempt.key]
    assert governing([ALL, off]) == [ALL.key]


def test_a_tenant_called_star_is_not_everybody() -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1)])
    assert keys_by_level(index, {"tenant": "*"}) == {"tenant=%2A|daily": [["tenant=%2A|daily"], ["tenant=*|daily"]]}


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_tenant_gets_a_counter_of_its_own(value: str) -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1), Budget(scope="tenant=*,model=*", limit_usd=1)])
    hostile = {m.counter for m in index.matches({"tenant": value, "model": "m"})}
    for other in ("acme", "a", "b", "a,b", "global") + (() if value == "*" else ("*",)):
        if other != value:
            assert not hostile & {m.counter for m in index.matches({"tenant": other, "model": "m"})}
    assert all(counter.count("|") == 1 for counter in hostile)


def test_each_tag_of_a_call_has_its_counter_once() -> None:
    index = BudgetIndex([Budget(scope="tenant=*,tag=*", limit_usd=1)])
    found = index.matches({"tenant": "acme", "tag": ("a", "b", "a")})
    assert [m.counter for m in found] == ["tenant=acme,tag=a|daily", "tenant=acme,tag=b|daily"]


def test_a_declared_budget_travels_with_its_terms() -> None:
    index = BudgetIndex([Budget(scope="tenant=acme", limit_usd=3, zone="Asia/Tokyo")])
    ((exact,), (starred,)) = index.matches(CALL)[0].levels
    assert exact.declared == BudgetTerms(limit_nano_usd=3_000_000_000, zone="Asia/Tokyo")
    assert starred.declared is None


def test_forms_that_only_the_store_knows_are_met_after_an_update() -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1)])
    assert index.version == -1
    assert not index.by_model
    before = index.matches(CALL)
    index.update(3, [("tenant,model", "monthly", "Asia/Tokyo"), ("", "total", "UTC")])
    assert index.version == 3
    assert index.by_model
    counters = [m.counter for m in index.matches(CALL)]
    assert sorted(counters) == ["global|total", "tenant=acme,model=gpt-4o|monthly", "tenant=acme|daily"]
    assert set(index.windows(0)) == {"daily|UTC", "monthly|Asia/Tokyo", "total|UTC"}
    index.update(4, [])
    assert index.matches(CALL) == before
    assert set(index.windows(0)) == {"daily|UTC"}


dims_st = st.lists(st.sampled_from(["tenant", "key", "model", "provider"]), unique=True, max_size=4)


@given(
    st.lists(st.tuples(dims_st, st.integers(0, 15), st.sampled_from(["daily", "1h"])), max_size=8),
    st.dictionaries(st.sampled_from(["tenant", "key", "model", "provider"]), st.sampled_from(["a", "b", "*"])),
)
def test_matching_agrees_with_trying_every_budget(
    shapes: list[tuple[list[str], int, str]], call: dict[str, str]
) -> None:
    """A budget can govern a call if each of its dimensions is present and either starred or equal."""
    budgets = {}
    for dimensions, stars, period in shapes:
        scope = Scope(**{name: "*" if stars >> i & 1 else "a" for i, name in enumerate(dimensions)})
        budget = Budget(scope=scope, limit_usd=1, period=period)
        budgets[budget.key] = budget
    expected = {
        key
        for key, budget in budgets.items()
        if isinstance(budget.scope, Scope)
        and all(name in call and getattr(budget.scope, name) in ("*", call[name]) for name in budget.scope.shape)
        and not any(call[name] == "*" and getattr(budget.scope, name) == "a" for name in budget.scope.shape)
    }
    index = BudgetIndex(budgets.values())
    reachable = {
        ref.key for m in index.matches(call) for level in m.levels for ref in level if ref.declared is not None
    }
    assert reachable == expected
    for match in index.matches(call):
        assert [{ref.key.count("=*") for ref in level} for level in match.levels] == [
            {n} for n in range(len(match.levels))
        ]
