"""Budgets: all of them with where they come from, and one to edit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, NamedTuple

from starlette.responses import Response

from ..admission import PPM
from ..budget_status import BudgetStatus
from ..budgets import DIMENSIONS, PERIODS, Budget, Scope
from ..errors import ConfigurationError
from ..known_budgets import KnownBudget, known_budget, known_budgets
from .standings import lines_of
from .visits import PageError, Visit

if TYPE_CHECKING:
    from ..tracker import CostTracker

PAGE = 50
DONE = {
    "set": "The budget is set. Every worker applies it at its next call.",
    "removed": "The budget is removed. If the configuration declares one for the same scope and period, it applies.",
    "none": "There was no budget of this scope and period to remove.",
}
GONE = "Somebody has removed this budget meanwhile. Saving once more sets it again."
THERE_IS = (
    "There is a budget of this scope and period with {} now, which this form has not shown. Saving once more "
    "replaces it."
)


class Listed(NamedTuple):
    """A budget, where it comes from, and how full it is where its scope names one counter."""

    budget: Budget
    source: Literal["store", "config"]
    declared: bool
    """Whether the configuration has one of the same scope and period."""
    line: BudgetStatus | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What stands in the form, as it was typed."""

    scope: str = ""
    period: str = "daily"
    unit: str = "usd"
    limit: str = ""
    zone: str = "UTC"
    alert_at: str = ""
    max_values: str = ""
    soft: bool = False
    enabled: bool = True
    fixed: bool = False
    """Whether it changes a budget that is there, whose scope and period stay."""
    seen: str = ""
    """What there was of this scope and period when the form was shown, see `_seen`."""


async def listed(visit: Visit) -> Response:
    """A page of the budgets, by their key; those whose scope has a text in it, where one is asked for."""
    tracker, wanted, after = visit.tracker, visit.asked("find", 256).strip(), visit.asked("after", 1024)
    await tracker.ready()
    found = await known_budgets(tracker, after=after, limit=PAGE + 1, contains=wanted)
    shown = await _with_lines(tracker, found[:PAGE])
    return visit.page(
        "budgets.html",
        title="Budgets",
        budgets=shown,
        wanted=wanted,
        after=after,
        next=shown[-1].budget.key if len(found) > PAGE else "",
        done=DONE.get(visit.asked("done")),
    )


async def edit(visit: Visit) -> Response:
    """The form: of a budget that is there, or of a new one, perhaps for a scope."""
    scope, period = visit.asked("scope"), visit.asked("period", 32)
    await visit.tracker.ready()
    draft = Draft(scope=scope)
    if period:
        known = await known_budget(visit.tracker, f"{scope}|{period}")
        if known is None:
            raise PageError(404, "No such budget", "There is no budget of this scope and period. It may be removed.")
        draft = _draft(known.budget)
    return _form(visit, draft)


async def save(visit: Visit) -> Response:
    """Set a budget; what is wrong with it is told beside the form."""
    draft = Draft(
        **{name: visit.field(name, 1024) for name in ("scope", "period", "unit", "limit", "zone", "alert_at")},
        max_values=visit.field("max_values", 32),
        soft=bool(visit.field("soft")),
        enabled=bool(visit.field("enabled")),
        fixed=bool(visit.field("fixed")),
        seen=visit.field("seen", 64),
    )
    try:
        budget = visit.tracker.names.budget(_budget(draft))
        await visit.tracker.ready()
        known = await known_budget(visit.tracker, budget.key)
        # Neither what somebody else has set meanwhile nor what is there already is replaced unseen.
        if (present := "" if known is None else _seen(known.budget)) not in (draft.seen, _seen(budget)):
            told = GONE if known is None else THERE_IS.format(_limit_of(known.budget))
            return _form(visit, replace(draft, seen=present), told)
        await visit.tracker.budget_enforcer.set_budget(budget)
    except ConfigurationError as error:
        return _form(visit, draft, str(error))
    return visit.to("/budgets", done="set", find=None if draft.scope == "global" else draft.scope)


async def remove(visit: Visit) -> Response:
    """Forget a budget that was set at run time."""
    try:
        gone = await visit.tracker.budget_enforcer.remove_budget(visit.field("scope"), visit.field("period", 32))
    except ConfigurationError as error:
        raise PageError(400, "No such budget", str(error)) from None
    return visit.to("/budgets", done="removed" if gone else "none")


def _form(visit: Visit, draft: Draft, problem: str = "") -> Response:
    return visit.page(
        "budget.html",
        422 if problem else 200,
        title="Edit budget" if draft.fixed else "New budget",
        draft=draft,
        problem=problem,
        periods=PERIODS,
        dimensions=DIMENSIONS,
    )


async def _with_lines(tracker: CostTracker, budgets: list[KnownBudget]) -> list[Listed]:
    """How full those are that have a limit and one counter."""
    values = [_values(each.budget) for each in budgets]
    asked = [each for each in values if each is not None]
    told = iter(await lines_of(tracker, asked))
    return [
        Listed(*each, None if mine is None else _line_of(each.budget, next(told)))
        for each, mine in zip(budgets, values, strict=True)
    ]


def _values(budget: Budget) -> dict[str, str] | None:
    scope = budget.scope if isinstance(budget.scope, Scope) else Scope.parse(budget.scope)
    values = {name: str(getattr(scope, name)) for name in scope.shape}
    unlimited = budget.limit_usd is None and budget.limit_coins is None
    return None if "*" in values.values() or unlimited or not budget.enabled else values


def _line_of(budget: Budget, lines: list[BudgetStatus]) -> BudgetStatus | None:
    mine = (str(budget.scope), budget.period)
    return next((line for line in lines if (line.scope, line.period) == mine), None)


def _draft(budget: Budget) -> Draft:
    unit, limit = ("coins", budget.limit_coins) if budget.limit_coins is not None else ("usd", budget.limit_usd)
    shares = budget.terms.alert_at_ppm
    return Draft(
        scope=str(budget.scope),
        period=budget.period,
        unit="none" if limit is None else unit,
        limit="" if limit is None else format(Decimal(str(limit)).normalize(), "f"),
        zone=budget.zone,
        alert_at=", ".join(format((Decimal(ppm) * 100 / PPM).normalize(), "f") for ppm in shares),
        max_values="" if budget.max_values is None else str(budget.max_values),
        soft=budget.soft,
        enabled=budget.enabled,
        fixed=True,
        seen=_seen(budget),
    )


def _seen(budget: Budget) -> str:
    """Changes with everything a budget says."""
    told = repr((budget.key, budget.zone, budget.enabled, budget.terms))
    return sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]


def _limit_of(budget: Budget) -> str:
    draft = _draft(budget)
    return "no limit" if draft.unit == "none" else f"a limit of {draft.limit} {draft.unit.replace('usd', 'USD')}"


def _budget(draft: Draft) -> Budget:
    """Raises ConfigurationError, saying what is wrong."""
    if not draft.scope:
        raise ConfigurationError("scope: say what the budget is for, such as tenant=acme; or global for everything")
    if draft.unit not in ("usd", "coins", "none"):
        raise ConfigurationError("limit: choose USD, coins or no limit")
    if draft.unit != "none" and not draft.limit:
        raise ConfigurationError("limit: give an amount, or choose no limit")
    if draft.max_values and not (draft.max_values.isascii() and draft.max_values.isdigit()):
        raise ConfigurationError(f"counters: {draft.max_values[:32]!r} is not a whole number of at least 1")
    plain = Budget(
        scope=draft.scope,
        period=draft.period,
        zone=draft.zone or "UTC",
        alert_at=tuple(_share(part.strip()) for part in draft.alert_at.split(",") if part.strip()),
        soft=draft.soft,
        max_values=int(draft.max_values) if draft.max_values else None,
        enabled=draft.enabled,
    )
    if draft.unit == "none":
        return plain
    amount = draft.limit.replace("_", "")
    return replace(plain, limit_usd=amount) if draft.unit == "usd" else replace(plain, limit_coins=amount)


def _share(text: str) -> float:
    try:
        share = Decimal(text.removesuffix("%").strip()) / 100
    except InvalidOperation:
        share = Decimal(0)
    if not (share.is_finite() and 0 < share <= 1):
        raise ConfigurationError(f"alerts: {text[:32]!r} is not a percentage above 0 and up to 100")
    return float(share)
