"""Scopes, budgets, periods, and which budgets a call meets. Pure: no I/O, the time is an argument.

A *form* is a shape (which dimensions a scope names) together with a period. Matching walks the forms in use, so it
costs what the number of forms costs, not what the number of budgets does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import combinations, product
from string import ascii_letters, digits
from typing import NamedTuple
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .admission import PPM, BudgetRef, BudgetTerms, Match, Window
from .currency import MAX_NANO_USD, usd_to_nano
from .errors import ConfigurationError

DIMENSIONS = ("tenant", "key", "user", "team", "end_user", "tag", "model", "provider", "deployment")
PERIODS = ("daily", "weekly", "monthly", "yearly", "total")
ROLLING = re.compile(r"([1-9][0-9]{0,4})([mhd])")
FOREVER_S = 253_402_300_800
"""9999-12-31T24:00Z, the end of the window of a `total` budget."""
MAX_DECIMALS = 30
INVENTED = frozenset(("end_user", "tag"))
"""Dimensions whose values clients can choose freely."""
MAX_INVENTED_VALUES = 10_000
KNOWN_MATCHES = 4096
"""How many matches an index remembers; building one takes some microseconds, finding it a fraction of one."""

_PLAIN = ascii_letters + digits + "!\"#$&'()+-./:;<>?@[\\]^_`{}~"
"""What stands for itself in a scope's text."""
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Scope:
    """A conjunction of dimensions. `*` means each value has a counter of its own; no dimension at all means
    everything. Text form: `tenant=acme,model=gpt-4o`, or `global`; spaces, `%`, `,`, `=`, `|`, a literal `*` and what
    is not printable ASCII are percent-encoded inside values, so that different values never share a text.
    """

    tenant: str | None = None
    key: str | None = None
    user: str | None = None
    team: str | None = None
    end_user: str | None = None
    tag: str | None = None
    model: str | None = None
    provider: str | None = None
    deployment: str | None = None

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"scope: {name} must be text, or None where it does not matter")

    @property
    def shape(self) -> tuple[str, ...]:
        """The dimensions it names, in canonical order."""
        return tuple(name for name in DIMENSIONS if getattr(self, name) is not None)

    @property
    def text(self) -> str:
        return scope_text({name: getattr(self, name) for name in self.shape}, stars=True)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read the text form. Raises ConfigurationError for an unknown or repeated dimension or an empty value, and for
        a `*` that is only a part of a value: there are no patterns.
        """
        values: dict[str, str] = {}
        for part in () if text.strip() in ("", "global") else text.split(","):
            name, sign, value = part.strip().partition("=")
            if name not in DIMENSIONS or not sign or not value or name in values:
                raise ConfigurationError(
                    f"scope {text!r}: expected 'global' or dimension=value pairs separated by commas, with each of "
                    f"{', '.join(DIMENSIONS)} at most once"
                )
            values[name] = value if value == "*" else _unquoted(text, value)
        return cls(**values)


def scope_text(values: Mapping[str, str], *, stars: bool = False) -> str:
    """The text form of dimension values that are in canonical order. With `stars`, `*` stays a wildcard."""
    if not values:
        return "global"
    return ",".join(f"{name}={'*' if stars and v == '*' else _quoted(v)}" for name, v in values.items())


def _quoted(value: str) -> str:
    if not value.strip(_PLAIN):
        return value
    # Lone surrogates get bytes of their own: replaced by anything readable, two tenants could share a counter.
    return quote(value, safe=_PLAIN, errors="surrogatepass")


def _unquoted(text: str, value: str) -> str:
    try:
        plain = unquote(value, errors="surrogatepass")
    except UnicodeDecodeError:
        raise ConfigurationError(f"scope {text!r}: {value!r} is not percent-encoded UTF-8") from None
    if "*" in value or plain == "*":
        raise ConfigurationError(f"scope {text!r}: `*` stands alone and means each; {value!r} can have no budget")
    return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit over a period on a scope.

    Args:
        scope: a `Scope` or its text form.
        limit_usd: USD; None means no limit (which exempts from `*`), 0 means nothing at all, free models included.
        limit_coins: instead of `limit_usd`, in coins, turned into USD at the rate of each admission.
        period: daily, weekly (from Monday), monthly, yearly, total, or `Nm`, `Nh`, `Nd`.
        zone: an IANA time zone whose midnights bound the window.
        alert_at: shares of the limit (0 to 1, exclusive of 0) whose crossing is reported.
        soft: it reports and never refuses.
        max_values: so many values of the scope's `*` have counters of their own in one window, all further ones share
            one. None: 10,000 where a client chooses the value freely (`end_user`, `tag`), else any number. Where such a
            `*` stands beside others (`tenant=*,end_user=*`), only its values are counted, for each tenant anew.
        enabled: a disabled budget is as if it were not there, so `*` applies again.
    """

    scope: Scope | str
    limit_usd: Decimal | int | float | str | None = None
    limit_coins: Decimal | int | float | str | None = None
    period: str = "daily"
    zone: str = "UTC"
    alert_at: tuple[float, ...] = ()
    soft: bool = False
    max_values: int | None = None
    enabled: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.scope, str):
            object.__setattr__(self, "scope", Scope.parse(self.scope))
        elif not isinstance(self.scope, Scope):
            raise ConfigurationError(f"budget: {self.scope!r} is neither a Scope nor its text form")
        if self.period not in PERIODS and not ROLLING.fullmatch(self.period):
            raise ConfigurationError(
                f"budget {self.scope}: period {self.period!r} is none of {', '.join(PERIODS)}, Nm, Nh, Nd"
            )
        zone_of(self.zone)
        if self.limit_usd is not None and self.limit_coins is not None:
            raise ConfigurationError(f"budget {self.scope}: give limit_usd or limit_coins, not both")
        if any(not 0 < share <= 1 for share in self.alert_at):
            raise ConfigurationError(f"budget {self.scope}: alert_at takes shares above 0 and up to 1")
        if self.max_values is not None and (type(self.max_values) is not int or self.max_values < 1):
            raise ConfigurationError(f"budget {self.scope}: max_values is a whole number of at least 1")
        self.terms  # noqa: B018 - validates the amounts now rather than at the first call

    @property
    def key(self) -> str:
        """What a store files it under: `<scope>|<period>`."""
        return f"{self.scope}|{self.period}"

    @property
    def terms(self) -> BudgetTerms:
        """The part a store needs to decide. Raises ConfigurationError for an amount that is no amount."""
        coins = None
        if self.limit_coins is not None:
            try:
                coins = format(_amount(self.limit_coins), "f")
            except ValueError as error:
                raise ConfigurationError(f"budget {self.scope}: limit_coins: {error}") from None
        limit = None
        if self.limit_usd is not None:
            try:
                limit = usd_to_nano(_amount(self.limit_usd))
            except ValueError as error:
                raise ConfigurationError(f"budget {self.scope}: limit_usd: {error}") from None
        return BudgetTerms(
            limit_nano_usd=limit,
            limit_coins=coins,
            zone=self.zone,
            enabled=self.enabled,
            soft=self.soft,
            alert_at_ppm=tuple(sorted({round(share * PPM) for share in self.alert_at})),
            max_values=self._max_values(),
        )

    def _max_values(self) -> int | None:
        """Only where a `*` stands: one named value cannot be many."""
        starred = {name for name in DIMENSIONS if getattr(self.scope, name) == "*"}
        if self.max_values is not None or starred.isdisjoint(INVENTED):
            return self.max_values if starred else None
        return MAX_INVENTED_VALUES


def _amount(value: Decimal | float | str) -> Decimal:
    shown = str(value)[:64]
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{shown!r} is not a number") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{shown!r} is not a finite amount of at least 0")
    if amount > MAX_NANO_USD:
        raise ValueError(f"{shown!r} is too large")
    if int(amount.as_tuple().exponent) < -MAX_DECIMALS:
        raise ValueError(f"{shown!r} has more than {MAX_DECIMALS} decimals")
    return amount


@lru_cache(maxsize=256)
def zone_of(name: str) -> ZoneInfo:
    """An IANA time zone. Raises ConfigurationError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"time zone {name!r} is unknown; use an IANA name such as 'Europe/Berlin'") from None


def window(period: str, zone: str, at_s: float) -> Window:
    """The window of `period` in `zone` that holds the moment `at_s` (Unix seconds).

    Days, weeks, months and years run between local midnights, so a day may have 23, 24 or 25 hours. `Nd` counts days
    from 1970-01-01 local, `Nh` and `Nm` count from the Unix epoch whatever the zone.
    """
    at = math.floor(at_s)
    if period == "total":
        return Window(0, FOREVER_S)
    rolling = ROLLING.fullmatch(period)
    if rolling and rolling[2] != "d":
        length = int(rolling[1]) * _SECONDS[rolling[2]]
        start = at // length * length
        return Window(start, start + length)
    tz = zone_of(zone)
    days = int(rolling[1]) if rolling else 0
    first, last = _span(period, days, datetime.fromtimestamp(at, tz).date())
    if (end := _midnight(last, tz)) <= at:
        # The clocks went back over a midnight that had already been reached: this hour belongs to the new day.
        first, last = _span(period, days, last)
        end = _midnight(last, tz)
    return Window(_midnight(first, tz), end)


def _span(period: str, days: int, today: date) -> tuple[date, date]:
    """The first day of the period that holds `today`, and the first day of the next one."""
    if days:
        first = today - timedelta(days=(today - date(1970, 1, 1)).days % days)
        return first, first + timedelta(days=days)
    if period == "daily":
        return today, today + timedelta(days=1)
    if period == "weekly":
        first = today - timedelta(days=today.weekday())
        return first, first + timedelta(days=7)
    if period == "monthly":
        first = today.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1)
    if period == "yearly":
        return date(today.year, 1, 1), date(today.year + 1, 1, 1)
    raise ConfigurationError(f"period {period!r} is unknown")


def day_start_s(day: date, zone: str) -> int:
    """The first moment of a local day, in Unix seconds. Raises ConfigurationError for a zone that is none."""
    return _midnight(day, zone_of(zone))


def _midnight(day: date, tz: ZoneInfo) -> int:
    """The first moment of a local day: of two midnights the first, and where there is none the end of the gap."""
    at = int(datetime(day.year, day.month, day.day, tzinfo=tz).timestamp())
    back = datetime.fromtimestamp(at, tz)
    return at if back.date() == day and (back.hour, back.minute) == (0, 0) else _first_instant(day, tz, at)


def _first_instant(day: date, tz: ZoneInfo, near_s: int) -> int:
    low, high = near_s - 4 * 3600, near_s + 4 * 3600
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, tz).date() >= day:
            high = middle
        else:
            low = middle
    return high


class Form(NamedTuple):
    """A shape of scopes with a period, and the zones its budgets use."""

    shape: tuple[str, ...]
    period: str


class BudgetIndex:
    """Which budgets a call meets. Holds the declared budgets (from the configuration) and the forms in use (declared
    ones and those the store reports), and turns dimension values into `Match`es for the store.
    """

    def __init__(self, declared: Iterable[Budget] = ()) -> None:
        self.declared: dict[str, Budget] = {}
        for budget in declared:
            if budget.key in self.declared:
                raise ConfigurationError(f"budget {budget.key!r} is given twice")
            self.declared[budget.key] = budget
        self._terms = {key: budget.terms for key, budget in self.declared.items()}
        self.version = -1
        """The version of the store's forms that this index has seen; -1 before the first look."""
        self._stored: frozenset[tuple[Form, str]] = frozenset()
        self._windows: dict[tuple[str, str], tuple[Window, Window]] = {}
        self._rebuild()

    def update(self, version: int, stored: Iterable[tuple[str, str, str]]) -> None:
        """Take over the store's forms: `(shape joined by commas, period, zone)` each."""
        self.version = version
        self._stored = frozenset((Form(tuple(s.split(",")) if s else (), period), zone) for s, period, zone in stored)
        self._rebuild()

    def _rebuild(self) -> None:
        own = {(Form(b.scope.shape, b.period), b.zone) for b in self.declared.values() if isinstance(b.scope, Scope)}
        used = own | self._stored
        self.forms: tuple[Form, ...] = tuple(sorted({form for form, _ in used}))
        self._zones = tuple(sorted({(form.period, zone) for form, zone in used}))
        self.by_model = any({"model", "provider", "deployment"} & set(form.shape) for form in self.forms)
        """Whether the candidates of one call can meet different budgets."""
        self._plans = {form: _plan(form) for form in self.forms}
        starred = {key for plan in self._plans.values() for level in plan for key, places in level if not places}
        self._starred = {key: BudgetRef(key, self._terms.get(key)) for key in starred}
        self._any_alerts = any(terms.alert_at_ppm for terms in self._terms.values())
        self._windows.clear()
        self._match = lru_cache(maxsize=KNOWN_MATCHES)(self._new_match)

    def windows(self, at_s: float) -> dict[str, tuple[Window, Window]]:
        """The current and the next window of each `period|zone` in use. The store's clock picks between them."""
        result = {}
        for pair in self._zones:
            known = self._windows.get(pair)
            if known is None or not known[0].start_s <= at_s < known[0].end_s:
                now = window(*pair, at_s)
                known = self._windows[pair] = (now, window(*pair, now.end_s) if now.end_s < FOREVER_S else now)
            result["|".join(pair)] = known
        return result

    def matches(self, values: Mapping[str, str | tuple[str, ...] | None]) -> tuple[Match, ...]:
        """One `Match` for each form that the call's values fill, and for each of its tags where a form names them.
        Absent and empty values fill nothing.
        """
        found: list[Match] = []
        for form in self.forms:
            filled = tuple([values.get(name) for name in form.shape])
            if not all(filled):
                continue
            if tuple in map(type, filled):
                choices = [dict.fromkeys(v) if isinstance(v, tuple) else (v,) for v in filled]
                found.extend(self._match(form, combination) for combination in product(*choices))
            else:
                found.append(self._match(form, filled))
        return tuple(found)

    def _new_match(self, form: Form, values: tuple[str, ...]) -> Match:
        quoted = [_quoted(value) for value in values]
        terms = self._terms
        levels = []
        for level in self._plans[form]:
            refs = []
            for pieces, places in level:
                if not places:  # the same for all values
                    refs.append(self._starred[pieces])
                    continue
                key = pieces % tuple([quoted[place] for place in places])
                refs.append(BudgetRef(key, terms.get(key)))
            levels.append(tuple(refs))
        alerts = self._any_alerts and any(
            declared is not None and declared.alert_at_ppm for level in levels for _, declared in level
        )
        return Match(levels[0][0].key, tuple(levels), alerts)


def _plan(form: Form) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
    """The keys of the budgets that may govern a form's matches, level by level from the exact one: each as a text with
    `%s` in the places of values, and which values those are.
    """
    levels = []
    for stars in range(len(form.shape) + 1):
        keys = []
        for starred in combinations(form.shape, stars):
            text = ",".join(f"{name}={'*' if name in starred else '%s'}" for name in form.shape) or "global"
            places = tuple(place for place, name in enumerate(form.shape) if name not in starred)
            keys.append((f"{text}|{form.period}", places))
        levels.append(tuple(keys))
    return tuple(levels)


assert tuple(field.name for field in fields(Scope)) == DIMENSIONS
