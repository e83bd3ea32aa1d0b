"""What the scripts are asked, in MessagePack: the order of the fields stands at the head of each script.

Lines come as plans, which are encoded once for each match. No number leaves here that a script could not hold exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ...admission import PPM, ExtendRequest, Match, ReserveRequest, Window
from ...budgets import window
from ...currency import MAX_NANO_USD
from ..base import DrawRequest, Operation, Promotion, Settlement, UnwritableError, partition_of
from ..plans import PlanLine, TermsCopy
from ..rules import check_draw, hour_of, may_alert, owing

_BEYOND = MAX_NANO_USD + 1
"""Stands for every amount that is too large. A script still holds it exactly, and refuses it."""
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

    def settle(self, settlement: Settlement, *, planned: bool) -> bytes:
        """`planned`: with the lines of its matches, which a call needs that has no hold, and one that may alert."""
        plans, spans = None, None
        if planned:
            plans, spans = self._at(settlement.matches, settlement.windows, settlement.admitted_at_s, settlement.rate)
        return _written(
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
                hour_of(settlement.admitted_at_s),
                [(*row[:3], *map(_clipped, row[3:])) for row in settlement.aggregates],
                _text(settlement.record),
                plans,
                spans,
                settlement.credit,
            )
        )

    def status(self, matches: Sequence[Match], windows: Windows, rate: tuple[int, int], at_s: float) -> bytes:
        plans, spans = self._at(matches, windows, at_s, rate)
        return _written((self.terms.version, spans, plans))

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
        check_draw(request)
        plan, windows, rate, mark = self.terms.plan, request.windows, request.rate, self._downgrade_at_ppm
        asks = [
            (plan(match, windows, rate, mark)[1], more, min(share_ppm, PPM), min(ceiling_ppm, PPM))
            for match, more, share_ppm, ceiling_ppm in request.asks
        ]
        return _written(
            (
                request.holder,
                request.sequence,
                request.forms_version,
                self.terms.version,
                request.returns,
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


def promote(promotion: Promotion, answer: bytes) -> bytes:
    owed, free = owing(promotion)
    holder, counters = promotion.credit
    admission = promotion.admission
    return _written(
        (
            promotion.call_id,
            holder,
            counters,
            admission.hold_nano_usd,
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
