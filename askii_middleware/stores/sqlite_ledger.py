"""Admission and settlement on SQLite. Each function runs inside one transaction that the caller opened, and may run
again if that could not begin. They decide nothing themselves: `rules` does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ..admission import (
    Admission,
    BudgetState,
    BudgetTerms,
    ExtendRequest,
    Extension,
    Match,
    ReserveRequest,
    Window,
)
from . import sqlite_alerts as alerts
from .base import Operation, Settled, Settlement, complete_record
from .lines import Amounts, Crowding, Line, crossings, lines_for, lines_of, standing_on, state_of
from .rules import (
    COUNTER_S,
    ELSEWHERE,
    MARKER_S,
    NO_HOLD,
    OVERDUE_S,
    UNUSED_S,
    admit,
    carry,
    check_amount,
    check_forms,
    check_operation,
    check_worker,
    enlarge,
    hour_of,
    may_alert,
    repeated,
)
from .sqlite_sql import SQL

_encode_answer = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Admission).decode
_encode_counters = msgspec.json.Encoder().encode
_decode_counters = msgspec.json.Decoder(list[tuple[str, int]]).decode
_decode_shares = msgspec.json.Decoder(tuple[int, ...]).decode


class _Tail(msgspec.Struct):
    """The members of a record that its settlement added."""

    late: bool
    askii_coins: int


_decode_tail = msgspec.json.Decoder(_Tail).decode

_LOOK = SQL["look"]
_SETTLED = SQL["settled"]
_TERMS = SQL["terms"]
_AMOUNTS = SQL["amounts"]
_LAPSED = SQL["lapsed"]
_HOLD = SQL["hold"]
_PLACE = SQL["place"]
_FADE = SQL["fade"]
_DROP = SQL["drop"]
_ADD = SQL["add"]
_TAKE = SQL["take"]
_CARRIED = SQL["carried"]
_CARRY = SQL["carry"]
_AGGREGATE = SQL["aggregate"]
_RECORD = SQL["record"]
_FORGET = SQL["forget"]
_SOME_ALERT = SQL["some_alert"]
_SPENT = SQL["spent"]
_CROWDING = SQL["crowding"]
_SEAT = SQL["seat"]
_EXTEND = SQL["extend"]
_SOME_LAPSED = SQL["some_lapsed"]


class _Hold(NamedTuple):
    """A row of `holds`, with its worker's lease."""

    state: str
    until_s: float
    worker: str
    nano_usd: int
    counters: str
    candidate: int
    admitted_at_s: float
    sequence: int
    alive_until_s: float | None

    def is_live(self, now_s: float) -> bool:
        return (
            self.state == "held"
            and self.until_s > now_s
            and self.alive_until_s is not None
            and self.alive_until_s > now_s
        )


def _find_hold(db: sqlite3.Connection, call_id: str) -> _Hold | None:
    row = db.execute(_HOLD, (call_id,)).fetchone()
    return None if row is None else _Hold(*row)


def reserve(db: sqlite3.Connection, request: ReserveRequest, now_s: float) -> Admission:
    """See `Store.reserve`."""
    forms_version, alive_until_s, answer, is_settled, some_lapsed = db.execute(
        _LOOK, (request.worker, request.call_id, now_s)
    ).fetchone()
    if answer is not None:
        return _decode_answer(answer)
    if is_settled:
        candidate, admitted_at_s, _ = db.execute(_SETTLED, (request.call_id,)).fetchone()
        return Admission(candidate=candidate, admitted_at_s=admitted_at_s)
    check_forms(request, forms_version)
    check_worker(request.worker, alive_until_s, now_s)
    lapsed = db.execute(_LAPSED, (now_s,)).fetchall() if some_lapsed else []
    gone = [(nano_usd, counters) for _, _, nano_usd, counters in lapsed]
    old = _find_hold(db, request.replaces) if request.replaces is not None else None
    if old is not None and old.is_live(now_s):
        gone.append((old.nano_usd, old.counters))
    stored = _terms(db, (candidate.matches for candidate in request.candidates)) if forms_version else {}

    def resolve(matches: tuple[Match, ...]) -> list[tuple[Line, ...]]:
        return [lines_for(match, stored, request.windows, now_s, request.rate) for match in matches]

    admission, lines = admit(request, resolve, _reader(db, now_s, _on_counters(gone)), _crowding(db), now_s)

    for call_id, worker, nano_usd, counters in lapsed:
        _lift(db, worker, nano_usd, counters)
        db.execute(_FADE, (call_id, "expired", now_s + COUNTER_S))
    if admission.candidate is None:
        return admission
    if request.replaces is not None:
        release(db, request.replaces, now_s)
    hold = admission.hold_nano_usd
    db.execute(
        _PLACE,
        (
            request.call_id,
            now_s + request.deadline_s,
            request.worker,
            hold,
            _encode_counters([(line.counter, line.end_s) for line in lines]).decode(),
            admission.candidate,
            now_s,
            _encode_answer(admission),
            request.about,
        ),
    )
    if hold:
        db.executemany(_ADD, [(line.counter, request.worker, hold, line.end_s) for line in lines])
    _seat(db, lines)
    return admission


def extend(db: sqlite3.Connection, request: ExtendRequest, now_s: float) -> Extension:
    """See `Store.extend`."""
    hold = _find_hold(db, request.call_id)
    if hold is None or not hold.is_live(now_s):
        return NO_HOLD
    if request.sequence <= hold.sequence:
        return repeated(request, hold.nano_usd)
    lapsed = db.execute(_LAPSED, (now_s,)).fetchall() if db.execute(_SOME_LAPSED, (now_s,)).fetchone()[0] else []
    read = _reader(db, now_s, _on_counters((row[2], row[3]) for row in lapsed))
    ends = dict(_decode_counters(hold.counters))
    extension = enlarge(request, hold.nano_usd, list(ends), hold.admitted_at_s, _terms(db, [request.matches]), read)
    more = extension.hold_nano_usd - hold.nano_usd
    if more:
        db.executemany(_ADD, [(counter, hold.worker, more, end_s) for counter, end_s in ends.items()])
    db.execute(_EXTEND, (request.call_id, extension.hold_nano_usd, request.sequence))
    return extension


def settle(db: sqlite3.Connection, settlement: Settlement, now_s: float) -> Settled:
    """See `Store.settle`."""
    call_id, cost = settlement.call_id, settlement.cost_nano_usd
    hold = _find_hold(db, call_id)
    lines: tuple[Line, ...] = ()
    if hold is None:
        done = db.execute(_SETTLED, (call_id,)).fetchone()
        if done is not None:
            tail = _decode_tail(done[2])
            return Settled(tail.askii_coins, tail.late, duplicate=True)
        lines = _lines(db, settlement, _crowding(db))
        _seat(db, lines)
        counters = [(line.counter, line.end_s) for line in lines]
        late, candidate, admitted_at_s = False, 0, settlement.admitted_at_s
    else:
        counters = _decode_counters(hold.counters)
        if may_alert(settlement, stored=db.execute(_SOME_ALERT).fetchone()[0]):
            keys = {counter for counter, _ in counters}
            lines = tuple([line for line in _lines(db, settlement, standing_on(keys)) if line.counter in keys])
        late, candidate, admitted_at_s = not hold.is_live(now_s), hold.candidate, hold.admitted_at_s
        if hold.state == "held":
            _lift(db, hold.worker, hold.nano_usd, hold.counters)
        db.execute(_DROP, (call_id,))
    db.execute(_FORGET, (call_id,))
    check_amount(cost, "a charge")
    alerts.write(db, crossings(lines, lambda counter: _spent(db, counter), cost, now_s))
    db.executemany(_ADD, [(counter, "", cost, end_s) for counter, end_s in counters])
    carried = db.execute(_CARRIED, (settlement.subscription,)).fetchone()
    coins, rest = carry(carried[0] if carried else 0, settlement)
    db.execute(_CARRY, (settlement.subscription, rest))
    hour = hour_of(settlement.admitted_at_s)
    db.executemany(_AGGREGATE, [(hour, *row) for row in settlement.aggregates])
    record = complete_record(settlement.record, late=late, coins=coins)
    db.execute(_RECORD, (call_id, settlement.tenant, candidate, admitted_at_s, record))
    return Settled(coins, late, duplicate=False)


def _lines(db: sqlite3.Connection, settlement: Settlement, crowding: Crowding) -> tuple[Line, ...]:
    return lines_of(
        settlement.matches,
        _terms(db, [settlement.matches]),
        settlement.windows,
        settlement.admitted_at_s,
        settlement.rate,
        crowding,
        compute=True,
    )


def release(db: sqlite3.Connection, call_id: str, now_s: float) -> None:
    """See `Store.release`."""
    hold = _find_hold(db, call_id)
    if hold is not None and hold.state != "released":
        if hold.state == "held":
            _lift(db, hold.worker, hold.nano_usd, hold.counters)
        db.execute(_FADE, (call_id, "released", now_s + MARKER_S))
    db.execute(_FORGET, (call_id,))


def defer(db: sqlite3.Connection, operation: Operation, now_s: float) -> bool:
    """See `Store.defer`."""
    check_operation(operation)
    call_id = operation.call_id
    is_deferred, is_taken = db.execute(SQL["is_deferred"], (call_id, operation.key)).fetchone()
    hold = _find_hold(db, call_id)
    over = hold.state == "released" if hold is not None else db.execute(_SETTLED, (call_id,)).fetchone() is not None
    if over or is_deferred:
        return True
    if is_taken:
        return False
    db.execute(
        SQL["defer"], (call_id, operation.key, operation.tenant, float(operation.until_s), bytes(operation.payload))
    )
    if hold is not None and hold.state == "held":
        _lift(db, hold.worker, hold.nano_usd, hold.counters)
        if hold.is_live(now_s):
            counters = _decode_counters(hold.counters) if hold.nano_usd else ()
            db.executemany(_ADD, [(counter, ELSEWHERE, hold.nano_usd, end_s) for counter, end_s in counters])
            db.execute(SQL["move"], (call_id, ELSEWHERE, operation.until_s + OVERDUE_S))
        else:
            db.execute(_FADE, (call_id, "expired", now_s + COUNTER_S))
    return True


def beat(db: sqlite3.Connection, worker: str, ttl_s: float, now_s: float) -> bool:
    """Renew a worker's lease, or answer False if it has run out."""
    row = db.execute(SQL["worker"], (worker,)).fetchone()
    if row is not None and (row[0] <= now_s or row[1] is not None):
        return False
    db.execute(SQL["beat"], (worker, now_s + ttl_s))
    return True


def tend(db: sqlite3.Connection, now_s: float) -> None:
    """Bury the workers whose lease has run out, and delete a bounded number of rows that nobody asks for any more."""
    for (worker,) in db.execute(SQL["dead"], (now_s,)).fetchall():
        db.execute(SQL["lose"], (worker, now_s + COUNTER_S))
        db.execute(SQL["unhold"], (worker,))
        db.execute(SQL["bury"], (worker, now_s))
    db.execute(SQL["prune_holds"], (now_s,))
    db.execute(SQL["prune_operations"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_counters"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_seats"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_alerts"], (now_s - COUNTER_S, now_s - UNUSED_S))
    db.execute(SQL["prune_workers"], (now_s - COUNTER_S,))


def status(
    db: sqlite3.Connection,
    matches: tuple[Match, ...],
    windows: Mapping[str, tuple[Window, Window]],
    rate: tuple[int, int],
    now_s: float,
) -> list[BudgetState]:
    """See `Store.status`."""
    lines = lines_of(matches, _terms(db, [matches]), windows, now_s, rate, _crowding(db), compute=True)
    away = _on_counters((row[2], row[3]) for row in db.execute(_LAPSED, (now_s,)))
    read = _reader(db, now_s, away)
    return [state_of(line, read(line.counter)) for line in lines]


def _reader(db: sqlite3.Connection, now_s: float, away: Mapping[str, int]) -> Callable[[str], Amounts]:
    """Reads counters as if what `away` holds on them were not there."""

    def read(counter: str) -> Amounts:
        spent, held = db.execute(_AMOUNTS, (counter, now_s)).fetchone()
        return spent, held - away.get(counter, 0)

    return read


def _terms(db: sqlite3.Connection, matched: Iterable[tuple[Match, ...]]) -> dict[str, BudgetTerms]:
    """The stored budgets among those that may govern the matches."""
    found: dict[str, BudgetTerms] = {}
    for key in {ref.key for matches in matched for match in matches for level in match.levels for ref in level}:
        row = db.execute(_TERMS, (key,)).fetchone()
        if row is not None:
            nano_usd, coins, zone, enabled, soft, shares, max_values = row
            found[key] = BudgetTerms(
                limit_nano_usd=nano_usd,
                limit_coins=coins,
                zone=zone,
                enabled=bool(enabled),
                soft=bool(soft),
                alert_at_ppm=() if shares is None else _decode_shares(shares),
                max_values=max_values,
            )
    return found


def _crowding(db: sqlite3.Connection) -> Crowding:
    def crowding(shared: str, own: str) -> int | None:
        is_own, taken = db.execute(_CROWDING, (shared, own)).fetchone()
        return None if is_own else taken

    return crowding


def _seat(db: sqlite3.Connection, lines: Sequence[Line]) -> None:
    """Write which values have got counters of their own."""
    for line in lines:
        for shared in line.seats:
            db.execute(_SEAT, (shared, line.counter, line.end_s))


def _spent(db: sqlite3.Connection, counter: str) -> int:
    row = db.execute(_SPENT, (counter,)).fetchone()
    return 0 if row is None else row[0]


def _on_counters(holds: Iterable[tuple[int, str]]) -> dict[str, int]:
    """What holds, given as amount and counters, come to on each counter."""
    sums: dict[str, int] = {}
    for nano_usd, counters in holds:
        for counter, _ in _decode_counters(counters):
            sums[counter] = sums.get(counter, 0) + nano_usd
    return sums


def _lift(db: sqlite3.Connection, worker: str, nano_usd: int, counters: str) -> None:
    """Take a hold off its counters."""
    if nano_usd:
        db.executemany(_TAKE, [(counter, worker, nano_usd) for counter, _ in _decode_counters(counters)])
