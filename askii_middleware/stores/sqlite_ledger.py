"""Admission and settlement on SQLite. Each function runs inside one transaction that the caller opened, and may run
again if that could not begin. They decide nothing themselves: `rules` does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ..admission import Admission, ExtendRequest, Extension, Match, ReserveRequest
from . import sqlite_alerts as alerts
from .base import Operation, Settled, Settlement, UnwritableError, complete_record, partition_of
from .lines import Crowding, Line, crossings, lines_for, lines_of, standing_on
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
from .sqlite_counters import (
    crowding,
    decode_counters,
    find_hold,
    lift,
    on_counters,
    present_reader,
    reader,
    seat,
    spent,
    terms,
)
from .sqlite_errors import refusal
from .sqlite_sql import SQL

_encode_answer = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Admission).decode
_encode_counters = msgspec.json.Encoder().encode


class _Tail(msgspec.Struct):
    """The members of a record that its settlement added."""

    late: bool
    askii_coins: int


_decode_tail = msgspec.json.Decoder(_Tail).decode

_LOOK = SQL["look"]
_SETTLED = SQL["settled"]
_LAPSED = SQL["lapsed"]
_PLACE = SQL["place"]
_FADE = SQL["fade"]
_DROP = SQL["drop"]
_ADD = SQL["add"]
_CARRIED = SQL["carried"]
_CARRY = SQL["carry"]
_AGGREGATE = SQL["aggregate"]
_RECORD = SQL["record"]
_FORGET = SQL["forget"]
_SOME_ALERT = SQL["some_alert"]
_USE_CREDIT = SQL["use_credit"]
_EXTEND = SQL["extend"]


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
    old = find_hold(db, request.replaces) if request.replaces is not None else None
    if old is not None and old.is_live(now_s):
        gone.append((old.nano_usd, old.counters))
    stored = terms(db, (candidate.matches for candidate in request.candidates)) if forms_version else {}

    def resolve(matches: tuple[Match, ...]) -> list[tuple[Line, ...]]:
        return [lines_for(match, stored, request.windows, now_s, request.rate) for match in matches]

    admission, lines = admit(request, resolve, reader(db, now_s, on_counters(gone)), crowding(db), now_s)

    for call_id, worker, nano_usd, counters in lapsed:
        lift(db, worker, nano_usd, counters)
        db.execute(_FADE, (call_id, "expired", now_s + COUNTER_S))
    if admission.candidate is None:
        return admission
    if request.replaces is not None:
        release(db, request.replaces, now_s)
    counters = [(line.counter, line.end_s) for line in lines]
    place(db, request.call_id, request.worker, counters, admission, now_s + request.deadline_s, request.about)
    seat(db, lines)
    return admission


def is_known(db: sqlite3.Connection, call_id: str) -> bool:
    """Whether a call has a hold, or a marker that it had one or was settled."""
    return bool(db.execute(SQL["is_known"], (call_id,)).fetchone()[0])


def place(
    db: sqlite3.Connection,
    call_id: str,
    worker: str,
    counters: Sequence[tuple[str, int]],
    admission: Admission,
    until_s: float,
    about: bytes,
) -> None:
    """Write a call's hold on these counters, which come with the ends of their windows."""
    hold = admission.hold_nano_usd
    standing = _encode_counters(counters).decode()
    answer = _encode_answer(admission)
    db.execute(
        _PLACE,
        (call_id, until_s, worker, hold, standing, admission.candidate, admission.admitted_at_s, answer, about),
    )
    if hold:
        db.executemany(_ADD, [(counter, worker, hold, end_s) for counter, end_s in counters])


def extend(db: sqlite3.Connection, request: ExtendRequest, now_s: float) -> Extension:
    """See `Store.extend`."""
    hold = find_hold(db, request.call_id)
    if hold is None or not hold.is_live(now_s):
        return NO_HOLD
    if request.sequence <= hold.sequence:
        return repeated(request, hold.nano_usd)
    read = present_reader(db, now_s)
    ends = dict(decode_counters(hold.counters))
    extension = enlarge(request, hold.nano_usd, list(ends), hold.admitted_at_s, terms(db, [request.matches]), read)
    more = extension.hold_nano_usd - hold.nano_usd
    if more:
        db.executemany(_ADD, [(counter, hold.worker, more, end_s) for counter, end_s in ends.items()])
    db.execute(_EXTEND, (request.call_id, extension.hold_nano_usd, request.sequence))
    return extension


def settle(db: sqlite3.Connection, settlement: Settlement, now_s: float) -> Settled:
    """See `Store.settle`."""
    call_id, cost = settlement.call_id, settlement.cost_nano_usd
    hold = find_hold(db, call_id)
    credit = settlement.credit if hold is None else None
    standing: Sequence[tuple[str, int]] | None = None if credit is None else credit.counters
    if hold is None:
        done = db.execute(_SETTLED, (call_id,)).fetchone()
        if done is not None:
            tail = _decode_tail(done[2])
            return Settled(tail.askii_coins, tail.late, duplicate=True)
        late, candidate, admitted_at_s = False, 0, settlement.admitted_at_s
    else:
        standing = decode_counters(hold.counters)
        late, candidate, admitted_at_s = not hold.is_live(now_s), hold.candidate, hold.admitted_at_s
        if hold.state == "held":
            lift(db, hold.worker, hold.nano_usd, hold.counters)
        db.execute(_DROP, (call_id,))
    db.execute(_FORGET, (call_id,))
    check_amount(cost, "a charge")
    lines: tuple[Line, ...] = ()
    if standing is None:
        lines = _lines(db, settlement, crowding(db))
        seat(db, lines)
        standing = [(line.counter, line.end_s) for line in lines]
    elif may_alert(settlement, stored=db.execute(_SOME_ALERT).fetchone()[0]):
        keys = {counter for counter, _ in standing}
        lines = tuple([line for line in _lines(db, settlement, standing_on(keys)) if line.counter in keys])
    alerts.write(db, crossings(lines, lambda counter: spent(db, counter), cost, now_s))
    db.executemany(_ADD, [(counter, "", cost, end_s) for counter, end_s in standing])
    if credit is not None:
        used = min(cost, credit.hold_nano_usd)
        db.executemany(_USE_CREDIT, [(counter, credit.holder, used) for counter, _ in standing])
    carried = db.execute(_CARRIED, (settlement.subscription,)).fetchone()
    coins, rest = carry(carried or (0, 0), settlement)
    db.execute(_CARRY, (settlement.subscription, *rest))
    hour = hour_of(settlement.admitted_at_s)
    db.executemany(_AGGREGATE, [(hour, *row) for row in settlement.aggregates])
    record = complete_record(settlement.record, late=late, coins=coins)
    partition = partition_of(settlement.tenant)
    db.execute(_RECORD, (call_id, settlement.tenant, candidate, admitted_at_s, record, partition, now_s))
    return Settled(coins, late, duplicate=False)


def settle_many(
    db: sqlite3.Connection, settlements: Sequence[Settlement], path: str, now_s: float
) -> list[Settled | UnwritableError]:
    """See `Store.settle_many`. `path`: the file, for the errors."""
    answers: list[Settled | UnwritableError] = []
    for settlement in settlements:
        db.execute("SAVEPOINT call")
        try:
            answers.append(settle(db, settlement, now_s))
        except Exception as error:
            refused = refusal(path, error)
            if refused is None:
                raise
            db.execute("ROLLBACK TO call")
            answers.append(refused)
        db.execute("RELEASE call")
    return answers


def _lines(db: sqlite3.Connection, settlement: Settlement, crowding: Crowding) -> tuple[Line, ...]:
    return lines_of(
        settlement.matches,
        terms(db, [settlement.matches]),
        settlement.windows,
        settlement.admitted_at_s,
        settlement.rate,
        crowding,
        compute=True,
    )


def release(db: sqlite3.Connection, call_id: str, now_s: float) -> None:
    """See `Store.release`."""
    hold = find_hold(db, call_id)
    if hold is not None and hold.state != "released":
        if hold.state == "held":
            lift(db, hold.worker, hold.nano_usd, hold.counters)
        db.execute(_FADE, (call_id, "released", now_s + MARKER_S))
    db.execute(_FORGET, (call_id,))


def defer(db: sqlite3.Connection, operation: Operation, now_s: float) -> bool:
    """See `Store.defer`."""
    check_operation(operation)
    call_id = operation.call_id
    is_deferred, is_taken = db.execute(SQL["is_deferred"], (call_id, operation.key)).fetchone()
    hold = find_hold(db, call_id)
    over = hold.state == "released" if hold is not None else db.execute(_SETTLED, (call_id,)).fetchone() is not None
    if over or is_deferred:
        return True
    if is_taken:
        return False
    db.execute(
        SQL["defer"], (call_id, operation.key, operation.tenant, float(operation.until_s), bytes(operation.payload))
    )
    if hold is not None and hold.state == "held":
        lift(db, hold.worker, hold.nano_usd, hold.counters)
        if hold.is_live(now_s):
            counters = decode_counters(hold.counters) if hold.nano_usd else ()
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


def tend(db: sqlite3.Connection, now_s: float) -> int:
    """Bury the workers whose lease has run out, and delete a bounded number of rows that nobody asks for any more.
    Returns how many holds were found lost.
    """
    lost = 0
    for (worker,) in db.execute(SQL["dead"], (now_s,)).fetchall():
        lost += db.execute(SQL["lose"], (worker, now_s + COUNTER_S)).rowcount
        db.execute(SQL["unhold"], (worker,))
        db.execute(SQL["bury"], (worker, now_s))
    db.execute(SQL["prune_holds"], (now_s,))
    db.execute(SQL["prune_operations"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_counters"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_credits"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_seats"], (now_s - COUNTER_S,))
    db.execute(SQL["prune_alerts"], (now_s - COUNTER_S, now_s - UNUSED_S))
    db.execute(SQL["prune_workers"], (now_s - COUNTER_S,))
    return lost
