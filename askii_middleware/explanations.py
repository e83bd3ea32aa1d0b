"""What `tracker.explain` answers: values only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal

from .budget_status import BudgetStatus, plain
from .errors import Reason
from .modes import Mode

Verdict = Literal["whole", "clamped", "metered", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateExplanation:
    """One model the call could go to.

    Attributes:
        input_tokens, output_tokens: the bounds that are held for.
        hold_usd, hold_coins: for the bounds, or for the first slice of a metered stream.
        least_usd: the least hold that will do; None: all of it.
        fits: whether it would be admitted if it were alone.
        wins: whether it is the one.
        verdict: how it fits: `whole`, `clamped` to `tokens` of output, `metered` with room for `tokens` at first; or
            `refused`.
        reason, deciding: why not (`spent` or `held`), and the deciding budget's line.
        why: the same in a sentence.
        budgets: every line it meets.
    """

    model: str
    provider: str | None
    input_tokens: int
    output_tokens: int
    hold_usd: Decimal
    hold_coins: Decimal
    least_usd: Decimal | None
    fits: bool
    wins: bool
    verdict: Verdict
    tokens: int | None
    reason: Reason | None
    deciding: BudgetStatus | None
    why: str
    budgets: tuple[BudgetStatus, ...]

    def table(self) -> dict[str, Any]:
        """All of it for JSON."""
        found = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        found["deciding"] = None if self.deciding is None else self.deciding.table()
        found["budgets"] = [line.table() for line in self.budgets]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What budgets say to a call now.

    Attributes:
        mode: `enforce`, `shadow` (nothing is refused, the requested model is called) or `off` (nothing is held).
        mode_why: the setting that makes it so.
        verdict: the winner's, or `refused`; in shadow and off it is what would be answered if budgets were enforced.
        winner: the candidate's model; None where all are refused.
        called: the model that is really called; None where the call is refused.
        hold_usd: what would be held; 0 where nothing is.
        reason, deciding: of a refusal.
        why: in a sentence.
        candidates: in the order of the configuration, the requested model first.
    """

    tenant: str
    model: str
    mode: Mode
    mode_why: str
    verdict: Verdict
    winner: str | None
    called: str | None
    hold_usd: Decimal
    hold_coins: Decimal
    reason: Reason | None
    deciding: BudgetStatus | None
    why: str
    candidates: tuple[CandidateExplanation, ...]

    def table(self) -> dict[str, Any]:
        """All of it for JSON: amounts as decimal strings, times as ISO 8601."""
        found = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        found["deciding"] = None if self.deciding is None else self.deciding.table()
        found["candidates"] = [candidate.table() for candidate in self.candidates]
        return found
