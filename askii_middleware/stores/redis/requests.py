"""What the scripts are asked, in MessagePack: the order of the fields stands at the head of each script.

Lines come as plans, which are encoded once for each match. No number leaves here that a script could not hold exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import add

import msgspec

from ...admission import PPM, Admission, ExtendRequest, Match, ReserveRequest, Window
from ...budgets import window
from ...currency import MAX_NANO_USD
from ..base import AggregateRow, DrawRequest, Operation, Promotion, Settlement, UnwritableError, partition_of
from ..plans import PlanLine, TermsCopy
from ..rules import hour_of, may_alert, owing

_BEYOND = MAX_NANO_USD + 1
"""Stands for every amount that is too large. A script still holds it exactly, and refuses it."""
_COST = re.compile(rb'"cost_nano_usd":(-?\d{1,40})')
_encode = msgspec.msgpack.Encoder().encode
Windows = Mapping[str, tuple[Window, Window]]


class _Everything(dict[str, tuple[Window, Window]]):
    """For plans whose windows follow from a hold, or are worked out afterwards."""

    def __contains__(self, key: object) -> bool:
        return True


_ANY = _Everything()


class Planner:
    """Encodes requests with the plans of their matches. Its methods raise UnwritableError for what no script can hold,
    and StaleFormsError for windows that were not sent.
    """

    def __init__(self) -> None:
        self.terms = TermsCopy(_encode)
        self._downgrade_at_ppm = PPM
        """Of the last reserve. Plans are asked for with it everywhere, so that they stay known."""
        self._alerting = -1, False
        """A version of the terms, and whether some of its budgets report crossings."""

    def _plans(self, matches: Iterable[Match], windows: Windows, rate: tuple[int, int]) -> list[msgspec.Raw]:
        plan, mark = self.terms.plan, self._downgrade_at_ppm
        return [plan(match, windows, rate, mark)[1] for match in matches]

    def reserve(self, request: ReserveRequest) -> bytes:
        if not request.candidates:
            raise ValueError("a reserve needs at least one candidate")
        self._downgrade_at_ppm = request.downgrade_at_ppm
        windows, rate = request.windows, request.rate
        candidates = []
        for _, hold, matches, least in request.candidates:
            candidates.append(
                (_clipped(hold), None if least is None else _clipped(least), self._plans(matches, windows, rate))
            )
        return _written(
            (
                request.call_id,
                request.worker,
                request.forms_version,
                self.terms.version,
                request.deadline_s,
                request.replaces or "",
                request.shadow,
                _text(request.about),
                windows,
                candidates,
            )
        )

    def extend(self, request: ExtendRequest) -> bytes:
        return _written(
            (
                request.call_id,
                self.terms.version,
                request.sequence,
                _clipped(request.target_nano_usd),
                _clipped(request.least_nano_usd),
                self._plans(request.matches, _ANY, request.rate),
            )
        )

    def settle(self, settlement: Settlement, *, planned: bool) -> tuple[bytes, bytes]:
        """The request, and the record without its last brace. `planned`: with the lines of its matches, which a call
        needs that has no hold, and one that may alert.
        """
        plans, spans = None, None
        if planned:
            plans, spans = self._at(settlement.matches, settlement.windows, settlement.admitted_at_s, settlement.rate)
        record, hour = settlement.record, hour_of(settlement.admitted_at_s)
        packed = _written(
            (
                settlement.call_id,
                settlement.admitted_at_s,
                _clipped(settlement.cost_nano_usd),
                self.terms.version,
                settlement.subscription,
                str(settlement.coins),
                settlement.pico_coins,
                settlement.tenant,
                partition_of(settlement.tenant),
                str(hour),
                str(hour // 24),
                _rows(settlement.aggregates),
                _cost_of(record),
                plans,
                spans,
                settlement.credit,
            )
        )
        return packed, record[:-1]

    def status(self, asked: Sequence[tuple[Match, ...]], windows: Windows, rate: tuple[int, int], at_s: float) -> bytes:
        """Most matches are those of several calls, such as the global one: each plan travels once."""
        matches = list({id(match): match for matches in asked for match in matches}.values())
        numbers = {id(match): number for number, match in enumerate(matches, 1)}
        plans, spans = self._at(matches, windows, at_s, rate)
        return _written(
            (self.terms.version, spans, plans, [[numbers[id(match)] for match in matches] for matches in asked])
        )

    def _at(
        self, matches: Sequence[Match], windows: Windows, at_s: float, rate: tuple[int, int]
    ) -> tuple[list[msgspec.Raw], dict[str, tuple[Window]]]:
        """Plans, and for each of their lines the window that holds the moment: one that was sent, else computed."""
        spans: dict[str, tuple[Window]] = {}
        plans = []
        for match in matches:
            lines, encoded = self.terms.plan(match, _ANY, rate, self._downgrade_at_ppm)
            plans.append(encoded)
            for line in lines:
                if line.window not in spans:
                    spans[line.window] = (_span(line, windows, at_s),)
        return plans, spans

    def draw(self, request: DrawRequest) -> bytes:
        plan, windows, rate, mark = self.terms.plan, request.windows, request.rate, self._downgrade_at_ppm
        asks = [
            (plan(match, windows, rate, mark)[1], _clipped(more), min(share_ppm, PPM), min(ceiling_ppm, PPM))
            for match, more, share_ppm, ceiling_ppm in request.asks
        ]
        return _written(
            (
                request.holder,
                request.sequence,
                request.forms_version,
                self.terms.version,
                [(counter, _clipped(nano_usd)) for counter, nano_usd in request.returns],
                windows,
                asks,
            )
        )

    def may_alert(self, settlement: Settlement) -> bool:
        terms = self.terms
        if self._alerting[0] != terms.version:
            self._alerting = terms.version, terms.alerting
        return may_alert(settlement, stored=self._alerting[1])


def defer(operation: Operation) -> bytes:
    return _written(
        (operation.call_id, operation.key, operation.tenant, float(operation.until_s), _text(operation.payload))
    )


def promote(promotion: Promotion, tell: Callable[[Admission], bytes]) -> bytes:
    """`tell` writes the answer that a repetition gets."""
    holder, counters, _ = promotion.credit
    admission = promotion.admission
    try:
        (owed, free), answer = owing(promotion), tell(admission)
    except UnwritableError:  # the script says so, if it comes to that
        owed, free, answer = [], [], b""
    return _written(
        (
            promotion.call_id,
            holder,
            counters,
            _clipped(admission.hold_nano_usd),
            promotion.deadline_s,
            _text(promotion.about),
            _text(answer),
            admission.candidate,
            admission.admitted_at_s,
            owed,
            free,
        )
    )


def _text(data: bytes) -> msgspec.Raw:
    """Bytes as a text: servers' MessagePack knows no others."""
    size = len(data)
    return msgspec.Raw((b"\xda" + size.to_bytes(2) if size < 1 << 16 else b"\xdb" + size.to_bytes(4)) + data)


def place_of(model: str, provider: str) -> str:
    """One text for both that tells them apart whatever they are made of."""
    return f"{len(model.encode('utf-8', 'surrogatepass'))}:{model}{provider}"


def _rows(aggregates: Sequence[AggregateRow]) -> list[tuple[object, ...]]:
    """Each scope, model and provider once."""
    rows: dict[tuple[str, str], list[int]] = {}
    for scope, model, provider, *amounts in aggregates:
        names = scope, place_of(model, provider)
        known = rows.get(names)
        rows[names] = amounts if known is None else list(map(add, known, amounts))
    return [(*names, *map(_clipped, amounts)) for names, amounts in rows.items()]


def _cost_of(record: bytes) -> int:
    """What a usage record says it cost. The last such member is its own: metadata comes before it."""
    found = _COST.match(record, max(record.rfind(b'"cost_nano_usd":'), 0))
    return 0 if found is None else _clipped(int(found[1]))


def _clipped(nano_usd: int) -> int:
    return max(-_BEYOND, min(nano_usd, _BEYOND))


def _span(line: PlanLine, windows: Windows, at_s: float) -> Window:
    for span in windows.get(line.window, ()):
        if span.start_s <= at_s < span.end_s:
            return span
    period, _, zone = line.window.partition("|")
    return window(period, zone, at_s)


def _written(fields: tuple[object, ...]) -> bytes:
    try:
        return _encode(fields)
    except UnicodeEncodeError as error:
        raise UnwritableError(f"{str(fields[0])!r}: its texts are no Unicode: {error}") from error
