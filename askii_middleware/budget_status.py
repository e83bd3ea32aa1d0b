"""Budget lines as people and programs read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from .admission import BudgetState, BudgetTerms, Match, applicable
from .currency import Rate, nano_to_coins
from .errors import LAST_S
from .standing import WORDS, Standing, share_used, standing


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget line now. Amounts are exact; None where there is no limit."""

    scope: str
    period: str
    limit_usd: Decimal | None
    spent_usd: Decimal
    held_usd: Decimal
    remaining_usd: Decimal | None
    limit_coins: Decimal | None
    spent_coins: Decimal
    held_coins: Decimal
    remaining_coins: Decimal | None
    resets_at: datetime
    source: str
    """`store` where it was set at run time, `config` where it is declared."""
    zone: str = "UTC"
    soft: bool = False
    status: Standing = "ok"
    """What is spent, as a word: `ok`, `caution` from 80 % of the limit, `warning` from 90 %, `exceeded` from 100 %."""

    @property
    def spent_share(self) -> float:
        """Spent / limit; 0.0 without a limit, 1.0 for a limit of 0."""
        return _share(self.spent_usd, self.limit_usd)

    @property
    def held_share(self) -> float:
        """Held / limit; 0.0 without a limit, and for a limit of 0."""
        return float(self.held_usd / self.limit_usd) if self.limit_usd else 0.0

    @property
    def utilisation(self) -> float:
        """(spent + held) / limit; 0.0 without a limit, 1.0 for a limit of 0."""
        return _share(self.spent_usd + self.held_usd, self.limit_usd)

    def table(self) -> dict[str, Any]:
        """All of it for JSON: amounts as decimal strings, times as ISO 8601."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class BudgetUtilization:
    """How much of one budget's limit is used: shares of 1, and the sum of both in percent."""

    scope: str
    period: str
    spent_share: float
    held_share: float
    utilization_percent: float
    status: Standing
    """Of what is spent: holds come and go."""
    message: str


@dataclass(frozen=True, slots=True)
class BudgetSummary:
    """The budgets that bind a scope, taken together.

    Attributes:
        status: the worst of all, of what is spent.
        can_make_request: whether every budget that can refuse has something left that is neither spent nor held.
        tightest: the one of those that can refuse with the least left; None without any.
        budgets: all of them.
    """

    scope: str
    status: Standing
    can_make_request: bool
    tightest: BudgetStatus | None
    budgets: tuple[BudgetStatus, ...]


def utilization_of(line: BudgetStatus) -> BudgetUtilization:
    """The shares of a line."""
    return BudgetUtilization(
        scope=line.scope,
        period=line.period,
        spent_share=line.spent_share,
        held_share=line.held_share,
        utilization_percent=line.utilisation * 100,
        status=line.status,
        message=f"{line.status}: {line.spent_share * 100:.1f} % of the {line.period} budget of {line.scope} is spent, "
        f"{line.held_share * 100:.1f} % held",
    )


def summed_up(scope: str, lines: Iterable[BudgetStatus]) -> BudgetSummary:
    """All lines of a scope in one."""
    budgets = tuple(lines)
    hard = [(line.remaining_usd, line) for line in budgets if line.remaining_usd is not None and not line.soft]
    least = min(hard, key=lambda pair: pair[0], default=None)
    return BudgetSummary(
        scope=scope,
        status=max((line.status for line in budgets), key=WORDS.index, default="ok"),
        can_make_request=least is None or least[0] > 0,
        tightest=None if least is None else least[1],
        budgets=budgets,
    )


def _share(used_usd: Decimal, limit_usd: Decimal | None) -> float:
    return share_used(_nano(used_usd), None if limit_usd is None else _nano(limit_usd))


def _nano(amount_usd: Decimal) -> int:
    return int(amount_usd.scaleb(9))


def usd(nano_usd: int) -> Decimal:
    """Nano-USD as an exact amount in USD."""
    return Decimal(nano_usd).scaleb(-9)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: exact decimals as strings without exponents or empty places, times in ISO 8601."""
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value


def status_of(state: BudgetState, rate: Rate, source: str) -> BudgetStatus:
    """A store's line as people read it."""
    limit, remaining = state.limit_nano_usd, state.remaining_nano_usd
    return BudgetStatus(
        scope=state.scope,
        period=state.period,
        limit_usd=None if limit is None else usd(limit),
        spent_usd=usd(state.spent_nano_usd),
        held_usd=usd(state.held_nano_usd),
        remaining_usd=None if remaining is None else usd(remaining),
        limit_coins=None if limit is None else nano_to_coins(limit, rate),
        spent_coins=nano_to_coins(state.spent_nano_usd, rate),
        held_coins=nano_to_coins(state.held_nano_usd, rate),
        remaining_coins=None if remaining is None else nano_to_coins(remaining, rate),
        resets_at=datetime.fromtimestamp(min(state.resets_at_s, LAST_S), UTC),
        source=source,
        zone=_zone(state),
        soft=state.soft,
        status=standing(state.spent_nano_usd, limit),
    )


def statuses(
    states: Iterable[BudgetState], matches: Iterable[Match], stored: Mapping[str, BudgetTerms], rate: Rate
) -> list[BudgetStatus]:
    """The lines that matches met, with where their budgets come from: `stored` holds those set at run time."""
    own = [
        (*match.counter.rsplit("|", 1), terms.zone)
        for match in matches
        for key, terms in applicable(match, dict(stored))
        if key in stored
    ]
    return [
        status_of(
            state,
            rate,
            "store"
            if any(
                (period, zone) == (state.period, _zone(state)) and _within(s, state.scope) for s, period, zone in own
            )
            else "config",
        )
        for state in states
    ]


def _zone(state: BudgetState) -> str:
    return state.counter.rsplit("|", 2)[1]


def _within(values: str, scope: str) -> bool:
    """Whether values are those of a counter's scope, in which `*` stands for the values that share the counter."""
    if values == scope:
        return True
    pairs = list(zip(values.split(","), scope.split(","), strict=False))
    return "*" in scope and all(
        theirs == mine or (theirs.endswith("=*") and mine.startswith(theirs[:-1])) for mine, theirs in pairs
    )
