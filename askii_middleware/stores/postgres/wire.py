"""What the functions of the PostgreSQL ledger are sent and what they answer: JSON, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ...admission import (
    PPM,
    Admission,
    BudgetState,
    BudgetTerms,
    ExtendRequest,
    Extension,
    Match,
    ReserveRequest,
    Window,
)
from ...currency import MAX_NANO_USD
from ..base import (
    CreditRow,
    Drawn,
    DrawRequest,
    Operation,
    Promotion,
    Settled,
    Settlement,
    UnwritableError,
    partition_of,
)
from ..lines import lines_for
from ..plans import TermsCopy, plan_settled
from ..rules import hour_of, owing

Answer = tuple[str | None, msgspec.Raw]
"""What was asked for, or the kind of refusal and its message."""
Windows = Mapping[str, tuple[Window, Window]]

_encode = msgspec.json.Encoder().encode
decode_answer: Callable[[bytes], Answer] = msgspec.json.Decoder(Answer).decode
decode_answers: Callable[[bytes], list[Answer]] = msgspec.json.Decoder(list[Answer]).decode
decode_admission = msgspec.json.Decoder(Admission).decode
decode_extension = msgspec.json.Decoder(Extension).decode
decode_states = msgspec.json.Decoder(list[list[BudgetState]]).decode
decode_drawn = msgspec.json.Decoder(Drawn).decode
decode_credits = msgspec.json.Decoder(list[CreditRow]).decode
decode_operation = msgspec.json.Decoder(Operation).decode
decode_operations = msgspec.json.Decoder(list[Operation]).decode
decode_text = msgspec.json.Decoder(str).decode
decode_time = msgspec.json.Decoder(float).decode
_decode_settled = msgspec.json.Decoder(list[tuple[int, bool, bool] | str]).decode


def encode(value: object) -> bytes:
    """JSON. Raises UnwritableError for text that is not UTF-8."""
    try:
        return _encode(value)
    except UnicodeEncodeError as error:
        raise UnwritableError(f"the ledger holds no text that is not UTF-8: {error.reason}") from None


class _AnyWindow(dict[str, tuple[Window, Window]]):
    """For plans of calls that stand on counters already, or whose windows the engine asks for if it misses them."""

    def __contains__(self, name: object) -> bool:
        return True


_ANY_WINDOW = _AnyWindow()


def unwritable(error: Exception) -> Answer:
    """The refusal that an error of the engine comes to."""
    return "unwritable", msgspec.Raw(_encode(str(error)))


def _held(nano_usd: int) -> int:
    """An amount as the engine can read it. One that no counter can hold stays one."""
    return min(max(nano_usd, -1), MAX_NANO_USD + 1)


class _Plans:
    """The plans of a request, each match once."""

    def __init__(self, terms: TermsCopy, windows: Windows, rate: tuple[int, int], downgrade_at_ppm: int = PPM) -> None:
        self.matches: list[msgspec.Raw] = []
        self.windows: dict[str, tuple[Window, Window]] = {}
        self._places: dict[int, int] = {}
        self._ask = terms, windows, rate, downgrade_at_ppm

    def places(self, matches: Sequence[Match]) -> list[int]:
        terms, windows, rate, downgrade_at_ppm = self._ask
        found = []
        for match in matches:
            place = self._places.get(id(match))
            if place is None:
                lines, raw = terms.plan(match, windows, rate, downgrade_at_ppm)
                for line in lines:
                    self.windows[line.window] = windows[line.window]
                place = self._places[id(match)] = len(self.matches)
                self.matches.append(raw)
            found.append(place)
        return found


def reserve(request: ReserveRequest, terms: TermsCopy) -> bytes:
    """Raises StaleFormsError if a window is missing."""
    plans = _Plans(terms, request.windows, request.rate, request.downgrade_at_ppm)
    candidates = [
        (_held(c.hold_nano_usd), None if c.least_nano_usd is None else _held(c.least_nano_usd), plans.places(c.matches))
        for c in request.candidates
    ]
    return encode(
        {
            "call_id": request.call_id,
            "worker": request.worker,
            "forms": request.forms_version,
            "budgets": terms.version,
            "candidates": candidates,
            "matches": plans.matches,
            "windows": plans.windows,
            "deadline_s": request.deadline_s,
            "replaces": request.replaces,
            "shadow": request.shadow,
            "about": request.about.decode(),
        }
    )


def extend(request: ExtendRequest, terms: TermsCopy) -> bytes:
    return encode(
        {
            "call_id": request.call_id,
            "sequence": request.sequence,
            "budgets": terms.version,
            "target": _held(request.target_nano_usd),
            "least": _held(request.least_nano_usd),
            "matches": [terms.plan(match, _ANY_WINDOW, request.rate)[1] for match in request.matches],
        }
    )


def settle(settlements: Sequence[Settlement], terms: Mapping[str, BudgetTerms]) -> bytes:
    return encode([_settlement(settlement, terms) for settlement in settlements])


def _settlement(settlement: Settlement, terms: Mapping[str, BudgetTerms]) -> dict[str, Any]:
    at_s, credit = settlement.admitted_at_s, settlement.credit
    lines = [
        line
        for match in settlement.matches
        for line in lines_for(match, terms, settlement.windows, at_s, settlement.rate, compute=True)
    ]
    return {
        "call_id": settlement.call_id,
        "tenant": settlement.tenant,
        "partition": partition_of(settlement.tenant),
        "cost": settlement.cost_nano_usd,
        "lines": plan_settled(lines),
        "subscription": settlement.subscription,
        "coins": settlement.coins,
        "pico": settlement.pico_coins,
        "hour": hour_of(at_s),
        "at": at_s,
        "aggregates": settlement.aggregates,
        "record": settlement.record.decode(),
        "credit": None if credit is None else credit._asdict(),
    }


def read_settled(answer: bytes) -> list[Settled | UnwritableError]:
    return [UnwritableError(found) if isinstance(found, str) else Settled(*found) for found in _decode_settled(answer)]


def draw(request: DrawRequest, terms: TermsCopy) -> bytes:
    """Raises StaleFormsError if a window is missing."""
    plans = _Plans(terms, request.windows, request.rate)
    return encode(
        {
            "holder": request.holder,
            "sequence": request.sequence,
            "forms": request.forms_version,
            "budgets": terms.version,
            "candidates": [(0, None, plans.places([ask.match])) for ask in request.asks],
            "asks": [ask[1:] for ask in request.asks],
            "returns": request.returns,
            "matches": plans.matches,
            "windows": plans.windows,
        }
    )


def promote(promotion: Promotion) -> bytes:
    """Raises ValueError and UnwritableError like `rules.owing`."""
    owed, free = owing(promotion)
    return encode(
        {
            "call_id": promotion.call_id,
            "holder": promotion.credit.holder,
            "counters": promotion.credit.counters,
            "owed": owed,
            "free": free,
            "admission": promotion.admission,
            "deadline_s": promotion.deadline_s,
            "about": promotion.about.decode(),
        }
    )


def status(
    asked: Sequence[tuple[Match, ...]], windows: Windows, rate: tuple[int, int], terms: TermsCopy
) -> tuple[bytes, set[str]]:
    """The request, and all windows it needs."""
    plans = {id(match): terms.plan(match, _ANY_WINDOW, rate) for matches in asked for match in matches}
    places = {match: place for place, match in enumerate(plans)}
    needed = {line.window for lines, _ in plans.values() for line in lines}
    request = {
        "candidates": [(0, None, [places[id(match)] for match in matches]) for matches in asked],
        "matches": [raw for _, raw in plans.values()],
        "windows": {name: windows[name] for name in needed if name in windows},
    }
    return encode(request), needed
