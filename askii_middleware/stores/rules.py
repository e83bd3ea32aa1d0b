"""What every store decides in the same way, pure: whether a call fits its lines, what may be written, and how long
things are kept. A store adds only where the numbers live and what makes the operation atomic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..admission import (
    PPM,
    Admission,
    BudgetState,
    BudgetTerms,
    Candidate,
    ExtendRequest,
    Extension,
    ReserveRequest,
    decide,
    decide_extension,
)
from ..budgets import Budget, Scope
from ..currency import MAX_NANO_USD, PICO
from .base import (
    CHANNEL_PREFIX,
    MAX_ASKED,
    MAX_EDGES,
    MAX_KEY_CHARS,
    MAX_PAYLOAD_BYTES,
    CreditAsk,
    CreditLine,
    DeadWorkerError,
    DrawRequest,
    KeyRow,
    Operation,
    Outcome,
    Promotion,
    Settlement,
    ShortCreditError,
    StaleFormsError,
    UnwritableError,
)
from .lines import Amounts, Crowding, Line, Resolve, gather, lines_of, standing_on, state_of

MARKER_S = 86_400.0
"""How long a released call is remembered."""
COUNTER_S = 8 * 86_400.0
"""How long counters outlive their window, and expired and lost holds their end."""
OVERDUE_S = 3600.0
"""How long the hold of an operation outlives its time, for a worker to come and settle it."""
ELSEWHERE = "~elsewhere"
"""The worker that holds for operations. It sends no heartbeats and never dies."""
UNUSED_S = 30 * 86_400.0
"""A channel that was not leased for so long keeps no alerts from being forgotten."""


class _Asked(Sequence[Sequence[BudgetState]]):
    """The lines of each candidate, looked up when the decision asks for them: mostly the first one's will do."""

    def __init__(
        self, candidates: Sequence[Candidate], resolve: Resolve, read: Callable[[str], Amounts], crowding: Crowding
    ) -> None:
        self._candidates = candidates
        self._ask = resolve, read, crowding
        self._states: dict[int, list[BudgetState]] = {}
        self.lines: dict[int, tuple[Line, ...]] = {}

    def __len__(self) -> int:
        return len(self._candidates)

    def __getitem__(self, index: Any) -> Any:
        states = self._states.get(index)
        if states is None:
            states = self._states[index] = self._look(index)
        return states

    def _look(self, index: int) -> list[BudgetState]:
        resolve, read, crowding = self._ask
        lines = gather(resolve(self._candidates[index].matches), crowding)
        # Candidates have most lines in common: each is read once.
        seen: dict[int, BudgetState] = {}
        for before, found in self.lines.items():
            seen.update(zip(map(id, found), self._states[before], strict=True))
        self.lines[index] = lines
        if not seen:
            return [state_of(line, read(line.counter)) for line in lines]
        return [seen.get(id(line)) or state_of(line, read(line.counter)) for line in lines]


def admit(
    request: ReserveRequest,
    resolve: Resolve,
    read: Callable[[str], Amounts],
    crowding: Crowding,
    now_s: float,
) -> tuple[Admission, tuple[Line, ...]]:
    """Decide a reserve on what `read` says of each counter. Returns the answer and the lines to hold on."""
    candidates = request.candidates
    if not candidates:
        raise ValueError("a reserve needs at least one candidate")
    for candidate in candidates:
        check_amount(candidate.hold_nano_usd, "a hold", least=0)
    asked = _Asked(candidates, resolve, read, crowding)
    admission = decide(candidates, asked, admitted_at_s=now_s, downgrade_at_ppm=request.downgrade_at_ppm)
    if request.shadow:
        admission = Admission(
            candidate=0,
            admitted_at_s=now_s,
            states=tuple(asked[0]),
            hold_nano_usd=candidates[0].hold_nano_usd,
            shadow=admission,
        )
    if admission.candidate is None:
        return admission, ()
    hold = admission.hold_nano_usd
    for state in admission.states:
        if state.spent_nano_usd + state.held_nano_usd + hold > MAX_NANO_USD:
            check_amount(state.spent_nano_usd + state.held_nano_usd + hold, state.counter)
    return admission, asked.lines[admission.candidate]


def enlarge(
    request: ExtendRequest,
    held_nano_usd: int,
    counters: Sequence[str],
    admitted_at_s: float,
    stored: Mapping[str, BudgetTerms],
    read: Callable[[str], Amounts],
) -> Extension:
    """Decide the extension of a live hold that stands on `counters`, in the windows of its admission. What does not
    bind the hold, such as a budget that came later, does not bind its extension.
    """
    check_amount(request.target_nano_usd, "a hold", least=0)
    bound = lines_of(
        request.matches, stored, request.windows, admitted_at_s, request.rate, standing_on(counters), compute=True
    )
    states = [state_of(line, read(line.counter)) for line in bound if line.counter in counters]
    extension = decide_extension(states, held_nano_usd, request)
    more = extension.hold_nano_usd - held_nano_usd
    if more:
        for counter in counters:
            check_amount(sum(read(counter)) + more, counter)
    return extension


NO_HOLD = Extension(granted=False, hold_nano_usd=0, reason="held")
"""The answer for a hold that does not count any more."""


def repeated(request: ExtendRequest, held_nano_usd: int) -> Extension:
    """The answer to an extension that was answered before."""
    granted = held_nano_usd >= request.least_nano_usd
    return Extension(granted=granted, hold_nano_usd=held_nano_usd, reason=None if granted else "held")


def grant(ask: CreditAsk, line: Line, amounts: Amounts, granted_nano_usd: int = 0) -> int:
    """How much credit a line gives to an ask: what is asked for, within a share of what is left and the room below the
    ceiling. Lines that cannot refuse need none, and a limit of 0 has none. Lines whose values crowd are not asked.

    Args:
        ask: its shares are of the whole at most.
        line: with the limit that rules it.
        amounts: what is spent and held on its counter, all credit included; less than nothing spent counts as nothing.
        granted_nano_usd: what the holder was granted there before; the sum stays what a counter can hold.
    """
    limit = line.limit_nano_usd
    if not limit or line.soft:
        return 0
    spent, held = amounts
    taken = max(spent, 0) + held
    share = (limit - taken) * min(ask.share_ppm, PPM) // PPM
    room = limit * min(ask.ceiling_ppm, PPM) // PPM - taken
    return max(min(ask.more_nano_usd, share, room, MAX_NANO_USD - granted_nano_usd), 0)


def answer_draw(
    request: DrawRequest,
    parts: Sequence[tuple[Line, ...]],
    crowding: Crowding,
    read: Callable[[str], Amounts],
    granted: Callable[[str], int],
    give: Callable[[Line, int], None] | None,
) -> tuple[tuple[CreditLine, ...], ...]:
    """Answer each ask from the lines of its match, `parts`, in order. `granted` reads what the holder was granted on a
    counter; `give` writes a grant, which `read` and `granted` show from then on. Without it, the draw was answered
    before.
    """
    answers = []
    for ask, part in zip(request.asks, parts, strict=True):
        crowded = {gather(((line,),), crowding)[0].counter for line in part if line.crowd is not None}
        found = []
        for line in gather((part,), crowding):
            counter = line.counter
            needs_store = counter in crowded or (line.limit_nano_usd == 0 and not line.soft)
            if give is not None and not needs_store:
                more = grant(ask, line, read(counter), granted(counter))
                if more:
                    give(line, more)
            found.append(CreditLine(state_of(line, read(counter)), line.start_s, granted(counter), needs_store))
        answers.append(tuple(found))
    return tuple(answers)


def check_draw(request: DrawRequest) -> None:
    """Raise UnwritableError for what a counter cannot hold."""
    for ask in request.asks:
        check_amount(ask.more_nano_usd, "credit", least=0)
    for counter, nano_usd in request.returns:
        check_amount(nano_usd, f"credit given back on {counter}", least=0)


def owing(promotion: Promotion) -> tuple[list[str], list[str]]:
    """The counters of a promotion on which it takes as much credit as it holds, and those on which it needs none: its
    answer says that their lines cannot refuse. Raises UnwritableError for a hold no counter can hold.
    """
    admission = promotion.admission
    if admission.candidate is None:
        raise ValueError(f"call {promotion.call_id} was refused: only an admission can be promoted")
    unbound = {state.counter for state in admission.states if state.limit_nano_usd is None or state.soft}
    owed: list[str] = []
    free: list[str] = []
    if check_amount(admission.hold_nano_usd, "a hold", least=0):
        for counter, _ in promotion.credit.counters:
            (free if counter in unbound else owed).append(counter)
    return owed, free


def check_promotion(
    promotion: Promotion, left: Callable[[str], int], read: Callable[[str], Amounts]
) -> Sequence[tuple[str, int]]:
    """What credit a promotion takes, by counter. Raises ShortCreditError where `left`, what the holder has not used, is
    too little, and UnwritableError like `owing` or where a counter without credit cannot hold more.
    """
    needed = promotion.admission.hold_nano_usd
    owed, free = owing(promotion)
    for counter in owed:
        if left(counter) < needed:
            raise ShortCreditError(
                f"call {promotion.call_id}: worker {promotion.credit.holder!r} has {left(counter)} nano-USD of credit "
                f"on {counter}, and the hold takes {needed}: draw first, or reserve the call"
            )
    for counter in free:
        check_amount(sum(read(counter)) + needed, counter)
    return [(counter, needed) for counter in owed]


def scope_of(counter: str) -> str:
    """The scope, in text form, that a counter belongs to."""
    return counter.rsplit("|", 3)[0]


def check_forms(request: ReserveRequest | DrawRequest, forms_version: int) -> None:
    if request.forms_version != forms_version:
        raise StaleFormsError(f"budget forms are at version {forms_version}, not {request.forms_version}")


def check_worker(worker: str, alive_until_s: float | None, now_s: float) -> None:
    """`alive_until_s`: the end of the worker's lease; None if there is none, or if it was declared dead."""
    if alive_until_s is None or alive_until_s <= now_s:
        raise DeadWorkerError(f"worker {worker!r} has no live heartbeat: send one before holding")


def check_amount(nano_usd: int, what: str, *, least: int = -MAX_NANO_USD) -> int:
    """Raise UnwritableError for what a counter cannot hold exactly."""
    if not least <= nano_usd <= MAX_NANO_USD:
        raise UnwritableError(
            f"{what}: {nano_usd} nano-USD is outside {least} to {MAX_NANO_USD}, which is all a counter can hold"
        )
    return nano_usd


def check_asked(asked: Sequence[object]) -> None:
    """Raise ValueError where an operation would take too long for those who wait for it."""
    if len(asked) > MAX_ASKED:
        raise ValueError(f"{len(asked)} calls are more than the {MAX_ASKED} that can be looked up at once")


def check_operation(operation: Operation) -> None:
    """Raise UnwritableError for what is too long to be kept."""
    for what, size, most in (
        ("key", len(operation.key), MAX_KEY_CHARS),
        ("payload", len(operation.payload), MAX_PAYLOAD_BYTES),
    ):
        if size > most:
            raise UnwritableError(f"call {operation.call_id}: its operation's {what} is longer than {most}: {size}")


def check_sinks(names: Sequence[str]) -> None:
    for name in names:
        if name.startswith(CHANNEL_PREFIX):
            raise ValueError(f"sink {name!r}: names that begin with {CHANNEL_PREFIX!r} are those of alert channels")


def check_channels(names: Sequence[str]) -> None:
    for name in names:
        if not name.startswith(CHANNEL_PREFIX):
            raise ValueError(f"alert channel {name!r}: its name has to begin with {CHANNEL_PREFIX!r}")


def may_alert(settlement: Settlement, *, stored: bool) -> bool:
    """Whether a settlement has to look for crossings. `stored`: some budget in the store reports them."""
    return stored or any(match.alerts for match in settlement.matches)


def check_outcomes(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.result not in ("delivered", "dead", "again"):
            raise ValueError(f"outcome {outcome.result!r} is none of delivered, dead, again")


def due_again(due: int, fresh: int, limit: int) -> int:
    """How many entries that are due again go into a batch of `limit`: they come first, but while there are new ones,
    with no more than half of it, so that those which always fail never keep the others waiting.
    """
    return min(due, max(limit - fresh, limit // 2))


def form_of(budget: Budget) -> tuple[str, str, str]:
    """A budget's shape, period and zone, as `Store.forms` has them."""
    scope = budget.scope if isinstance(budget.scope, Scope) else Scope.parse(budget.scope)
    return ",".join(scope.shape), budget.period, budget.zone


def digests_of(row: KeyRow) -> set[str]:
    """All digests that open a key: no other key may have one of them."""
    return {row.sha256} if row.former_sha256 is None else {row.sha256, row.former_sha256}


def carry(held: tuple[int, int], settlement: Settlement) -> tuple[int, tuple[int, int]]:
    """Whole coins to bill and the new carry, given the subscription's carry as whole coins (never above 0: credits
    that no charge has used up yet) and 10⁻¹² coin (0 to 10¹² - 1). Bills are never negative.
    """
    overflow, rest = divmod(held[1] + settlement.pico_coins, PICO)
    whole = held[0] + settlement.coins + overflow
    return max(whole, 0), (min(whole, 0), rest)


def hour_of(at_s: float) -> int:
    return int(at_s // 3600)


def hours(start_s: float, end_s: float) -> tuple[int, int]:
    """The half-open range of hours that begin in [start, end)."""
    return -int(-start_s // 3600), -int(-end_s // 3600)


def hours_between(edges_s: Sequence[float]) -> list[int]:
    """The first hour that begins at each edge or after it. Raises ValueError for edges that do not ascend, and for too
    many.
    """
    if len(edges_s) > MAX_EDGES:
        raise ValueError(f"{len(edges_s)} edges are more than the {MAX_EDGES} that spend can be read over at once")
    found = [-int(-edge_s // 3600) for edge_s in edges_s]
    if any(left > right for left, right in pairwise(found)):
        raise ValueError("the edges of spans have to ascend")
    return found


def is_one(prefix: str, scope: str) -> bool:
    """Whether a scope is a prefix and one value, and nothing else."""
    return scope.startswith(prefix) and "," not in scope[len(prefix) :]


def is_tenant(scope: str) -> bool:
    """Whether a scope is one tenant and nothing else: the aggregates that together hold every call once."""
    return is_one("tenant=", scope)
