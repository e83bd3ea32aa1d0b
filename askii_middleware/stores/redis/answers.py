"""What the scripts answer, read into the answers of the interface."""

from __future__ import annotations

from typing import Any

import msgspec

from ...admission import Admission, BudgetState, Extension
from ...errors import Reason, StoreError
from ..base import (
    CreditLine,
    CreditRow,
    DeadWorkerError,
    Drawn,
    Operation,
    Settled,
    ShortCreditError,
    StaleFormsError,
    UnwritableError,
)


class _State(msgspec.Struct, array_like=True, gc=False):
    """A line. A limit of -1: none."""

    counter: str
    scope: str
    period: str
    limit_nano_usd: int
    spent_nano_usd: int
    held_nano_usd: int
    resets_at_s: int
    soft: bool


class _Admission(msgspec.Struct, array_like=True, gc=False):
    """A candidate of -1 is none; `deciding` and `shadow` have one member or none."""

    candidate: int
    admitted_at_s: float
    states: list[_State]
    reason: str
    deciding: list[_State]
    hold_nano_usd: int
    shadow: list[_Admission]


class _Extension(msgspec.Struct, array_like=True, gc=False):
    granted: bool
    hold_nano_usd: int
    reason: str
    deciding: list[_State]


class _CreditLine(msgspec.Struct, array_like=True, gc=False):
    state: _State
    start_s: int
    granted_nano_usd: int
    needs_store: bool


class _Drawn(msgspec.Struct, array_like=True, gc=False):
    now_s: float
    budgets_version: int
    lines: list[list[_CreditLine]]


_encode = msgspec.msgpack.Encoder().encode
_decode_drawn = msgspec.msgpack.Decoder(_Drawn).decode
_decode_admission = msgspec.msgpack.Decoder(_Admission).decode
_decode_extension = msgspec.msgpack.Decoder(_Extension).decode
_decode_states = msgspec.msgpack.Decoder(list[list[_State]]).decode
_REASONS: dict[str, Reason | None] = {"": None, "held": "held", "spent": "spent"}


def _state(told: _State) -> BudgetState:
    limit = told.limit_nano_usd
    return BudgetState(
        counter=told.counter,
        scope=told.scope,
        period=told.period,
        limit_nano_usd=None if limit < 0 else limit,
        spent_nano_usd=told.spent_nano_usd,
        held_nano_usd=told.held_nano_usd,
        resets_at_s=told.resets_at_s,
        soft=told.soft,
    )


def _admission(told: _Admission) -> Admission:
    return Admission(
        candidate=None if told.candidate < 0 else told.candidate,
        admitted_at_s=told.admitted_at_s,
        states=tuple([_state(state) for state in told.states]),
        reason=_REASONS[told.reason],
        deciding=_state(told.deciding[0]) if told.deciding else None,
        hold_nano_usd=told.hold_nano_usd,
        shadow=_admission(told.shadow[0]) if told.shadow else None,
    )


def drawn(answer: Any) -> Drawn:
    if type(answer) is not bytes:
        raise refusal(answer)
    told = _decode_drawn(answer)
    lines = tuple(
        [
            tuple(
                [CreditLine(_state(line.state), line.start_s, line.granted_nano_usd, line.needs_store) for line in part]
            )
            for part in told.lines
        ]
    )
    return Drawn(told.now_s, told.budgets_version, lines)


def credit_rows(answer: list[list[Any]]) -> list[CreditRow]:
    rows = [
        CreditRow(counter.decode(), holder.decode(), int(granted), int(used), alive == 1)
        for counter, holder, granted, used, alive in answer
    ]
    return sorted(rows)


def told_admission(given: Admission) -> bytes:
    """An admission as a script would have written it."""
    return _encode(_told(given))


def _told(given: Admission) -> _Admission:
    return _Admission(
        -1 if given.candidate is None else given.candidate,
        given.admitted_at_s,
        [_told_state(state) for state in given.states],
        given.reason or "",
        [] if given.deciding is None else [_told_state(given.deciding)],
        given.hold_nano_usd,
        [] if given.shadow is None else [_told(given.shadow)],
    )


def _told_state(state: BudgetState) -> _State:
    limit = state.limit_nano_usd
    return _State(
        state.counter,
        state.scope,
        state.period,
        -1 if limit is None else limit,
        state.spent_nano_usd,
        state.held_nano_usd,
        state.resets_at_s,
        state.soft,
    )


def admission(answer: Any) -> Admission:
    if type(answer) is bytes:
        return _admission(_decode_admission(answer))
    if answer[0] == b"done":
        marker = Marker(answer[1])
        return Admission(candidate=marker.candidate, admitted_at_s=marker.admitted_at_s)
    raise refusal(answer)


def extension(answer: Any) -> Extension:
    if type(answer) is not bytes:
        raise refusal(answer)
    told = _decode_extension(answer)
    return Extension(
        granted=told.granted,
        hold_nano_usd=told.hold_nano_usd,
        reason=_REASONS[told.reason],
        deciding=_state(told.deciding[0]) if told.deciding else None,
    )


def states(answer: bytes) -> list[list[BudgetState]]:
    return [[_state(told) for told in part] for part in _decode_states(answer)]


def settled(answer: list[bytes]) -> Settled | UnwritableError:
    if answer[0] == b"ok":
        return Settled(int(answer[1]), answer[2] == b"1", duplicate=False)
    if answer[0] == b"done":
        marker = Marker(answer[1])
        return Settled(marker.coins, marker.late, duplicate=True)
    if answer[0] == b"unwritable":
        return unwritable(answer)
    raise refusal(answer)


def operation(row: list[bytes]) -> Operation:
    key, call_id, tenant, until_s, payload = row
    return Operation(
        key=key.decode(), call_id=call_id.decode(), tenant=tenant.decode(), until_s=float(until_s), payload=payload
    )


class Marker:
    """What is kept of a settled call, `d:<call>`, for 25 hours."""

    __slots__ = ("admitted_at_s", "candidate", "coins", "late")

    def __init__(self, text: bytes) -> None:
        coins, late, candidate, admitted_at_s = text.split(b" ")
        self.coins, self.late = int(coins), late == b"1"
        self.candidate, self.admitted_at_s = int(candidate), float(admitted_at_s)


def unwritable(answer: list[bytes]) -> UnwritableError:
    what = answer[1].decode("utf-8", "replace")
    return UnwritableError(f"{what}: the amount would leave the range of 2**53 - 1 nano-USD, all a counter can hold")


def refusal(answer: list[Any]) -> StoreError:
    """What a script's refusal means."""
    kind, *rest = [part.decode("utf-8", "replace") for part in answer]
    if kind == "forms":
        return StaleFormsError(f"budget forms are at version {rest[0]}")
    if kind == "window":
        return StaleFormsError(f"no window that was sent holds the store's time {rest[0]}")
    if kind == "dead":
        return DeadWorkerError("the worker has no live heartbeat: send one before holding")
    if kind == "credit":
        return ShortCreditError(
            f"only {rest[1]} nano-USD of credit are left on {rest[0]}: draw first, or reserve the call"
        )
    if kind == "unwritable":
        return unwritable(answer)
    return StoreError(
        f"the server answered {kind!r}, which this version does not know: does a newer one use the ledger?"
    )
