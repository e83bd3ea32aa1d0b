"""Corrections of what was charged. Pure: amounts, what was corrected before, and the record and settlement of one more.

The adjustments of a call are a chain: their ids are `<call id>~adjustment~1`, `~2` and so on. Whoever writes the next
one has read all before it, and a ledger takes each id once: two writers can never both credit a call's last cent, and
whatever was cut short is finished by doing it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .aggregates import aggregates
from .currency import MAX_NANO_USD, NANO, Rate, nano_to_usd_text, parse_rate, split_coins
from .errors import AskiiError
from .records import Charge, UsageCounts, UsageRecord, encode_settled_part
from .settling import timestamp_text
from .stores.base import Settlement

if TYPE_CHECKING:
    from .admission import Match
    from .identity import Identity

ADJUSTMENT = "adjustment"
"""The bucket of what somebody corrected, and the model and API of what corrects no call in particular."""
REPRICE = "reprice"
"""The bucket of what pricing a call again came to."""
ADJUSTMENT_ID = "adjustment_id"
"""The member of an adjustment's metadata that tells a repeated command from another one."""
MAX_REASON_CHARS = 500
MAX_ADJUSTMENTS = 1000
"""Of one call."""
_PLAIN = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,9})?")


class AdjustmentError(AskiiError, ValueError):
    """A correction that cannot be made as it was asked for. Nothing was changed."""


class UnknownCallError(AdjustmentError):
    """The ledger has no record of the call that is to be corrected."""

    def __init__(self, call_id: str) -> None:
        super().__init__(
            f"the ledger has no record of the call {call_id!r}: it is not settled yet, the id is wrong, or the record "
            "was pruned; without a reference the amount is booked now, on the tenant"
        )
        self.call_id = call_id


def nano_of(usd: object) -> int:
    """Nano-USD for a signed amount in USD, exactly. Raises AdjustmentError for what is no plain finite number, 0, more
    than 9 digits after the point, and more than a counter holds. A float is taken as it is printed.
    """
    amount: Decimal | None = None
    if isinstance(usd, bool):
        pass
    elif isinstance(usd, int):
        amount = Decimal(usd) if abs(usd) <= MAX_NANO_USD else Decimal(MAX_NANO_USD)
    elif isinstance(usd, float):
        amount = Decimal(float.__repr__(usd))
    elif isinstance(usd, Decimal):
        amount = usd
    elif isinstance(usd, str) and len(usd) <= 64 and _PLAIN.fullmatch(usd):
        amount = Decimal(usd)
    if amount is None or not amount.is_finite():
        raise AdjustmentError(f"{_shown(usd)} is not an amount in USD: write it plainly, such as -1.25")
    if not amount:
        raise AdjustmentError("an adjustment of 0 USD changes nothing")
    if amount.adjusted() >= 16:
        raise AdjustmentError(f"{_shown(usd)} USD are more than a counter holds ({nano_to_usd_text(MAX_NANO_USD)})")
    if amount.adjusted() < -9:
        raise AdjustmentError(f"{_shown(usd)} USD: the ledger counts 9 digits after the point")
    numerator, denominator = amount.as_integer_ratio()
    nano, rest = divmod(numerator * NANO, denominator)
    if rest:
        raise AdjustmentError(f"{_shown(usd)} USD: the ledger counts 9 digits after the point")
    if abs(nano) > MAX_NANO_USD:
        raise AdjustmentError(f"{_shown(usd)} USD are more than a counter holds ({nano_to_usd_text(MAX_NANO_USD)})")
    return nano


def _shown(value: object) -> str:
    try:
        return repr(value)[:64]
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return f"a {type(value).__name__} of many digits"


def check_reason(reason: Any) -> str:
    """Return it. Raises AdjustmentError unless it is text of 1 to 500 characters without NUL."""
    if not isinstance(reason, str) or not reason.strip() or len(reason) > MAX_REASON_CHARS or "\0" in reason:
        raise AdjustmentError(f"an adjustment takes a reason of 1 to {MAX_REASON_CHARS} characters without NUL")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise AdjustmentError("the reason cannot be written as UTF-8") from None
    return reason


def own_id(nano_usd: int, reason: str) -> str:
    """The id of a call's adjustment that was given none: the same for the same amount and reason."""
    return sha256(f"{nano_usd}|{reason}".encode()).hexdigest()[:16]


class History(NamedTuple):
    """A call as it was charged, and its adjustments so far in order."""

    call_id: str
    """As the ledger knows the call."""
    call: UsageRecord
    made: tuple[UsageRecord, ...]
    next_id: str
    """Of the adjustment that comes next."""

    @property
    def net_nano_usd(self) -> int:
        """The charge with all adjustments."""
        return self.call.cost_nano_usd + sum(record.cost_nano_usd for record in self.made)

    @property
    def priced_nano_usd(self) -> int:
        """The charge at the price it has come to by now, without what was corrected by hand."""
        return self.call.cost_nano_usd + sum(r.cost_nano_usd for r in self.made if bucket_of(r) == REPRICE)

    def find(self, adjustment_id: str) -> UsageRecord | None:
        """The adjustment by hand with this id."""
        for record in self.made:
            if bucket_of(record) == ADJUSTMENT and record.metadata.get(ADJUSTMENT_ID) == adjustment_id:
                return record
        return None

    def check_credit(self, nano_usd: int) -> None:
        """Raise AdjustmentError for a credit of more than the call has cost."""
        net = self.net_nano_usd
        if nano_usd < 0 and net + nano_usd < 0:
            raise AdjustmentError(
                f"the call {self.call_id!r} was charged {nano_to_usd_text(self.call.cost_nano_usd)} USD, of which "
                f"{nano_to_usd_text(max(net, 0))} are left: {nano_to_usd_text(-nano_usd)} USD are more than can be "
                "credited to it; credit the tenant without a reference, or allow it (allow_beyond, --force)"
            )


def bucket_of(adjustment: UsageRecord) -> str:
    """`ADJUSTMENT` or `REPRICE`."""
    return adjustment.charges[0].bucket if adjustment.charges else ADJUSTMENT


def slot(call_id: str, number: int) -> str:
    """The id of a call's adjustment of this number, from 1."""
    return f"{call_id}~{ADJUSTMENT}~{number}"


class Correction(NamedTuple):
    """An adjustment about to be written."""

    record: UsageRecord
    settlement: Settlement


def of_call(
    history: History,
    nano_usd: int,
    *,
    reason: str,
    price_version: str,
    matches: tuple[Match, ...],
    now_s: float,
    adjustment_id: str | None = None,
) -> Correction:
    """The next adjustment of a call. It belongs where the call does: to its moment, and thus its windows, its payer,
    model and subscription, and its rate, so that a credit of the whole charge takes back all its coins. Without an
    `adjustment_id` it comes from pricing the call again.
    """
    call = history.call
    record = msgspec.structs.replace(
        call,
        kind="adjustment",
        call_id=history.next_id,
        metadata=call.metadata if adjustment_id is None else {**call.metadata, ADJUSTMENT_ID: adjustment_id},
        reason=reason,
        reference=history.call_id,
        provider_request_id=None,
        stream=False,
        outcome="completed",
        status=None,
        estimated=False,
        anomalous=False,
        unpriced=False,
        shadow=None,
        duration_ms=max(round((now_s - moment_of(call)) * 1000, 1), 0.0),
        usage=UsageCounts(),
        charges=_charges(REPRICE if adjustment_id is None else ADJUSTMENT, nano_usd),
        cost_nano_usd=nano_usd,
        provider_cost_nano_usd=None,
        price_version=price_version,
        late=False,
        askii_coins=0,
    )
    return Correction(record, _settlement(record, moment_of(call), matches, rate_of(call)))


def of_tenant(
    identity: Identity,
    nano_usd: int,
    *,
    adjustment_id: str,
    subscription: str,
    reason: str,
    price_version: str,
    matches: tuple[Match, ...],
    rate: Rate,
    now_s: float,
) -> Correction:
    """An adjustment that corrects no call in particular: it belongs to the present."""
    record = UsageRecord(
        kind="adjustment",
        call_id=f"{ADJUSTMENT}:{identity.tenant}:{adjustment_id}",
        timestamp=timestamp_text(now_s),
        tenant=identity.tenant,
        subscription=subscription,
        key=identity.key,
        user=identity.user,
        team=identity.team,
        end_user=identity.end_user,
        tags=identity.tags,
        metadata={ADJUSTMENT_ID: adjustment_id},
        reason=reason,
        api=ADJUSTMENT,
        provider="",
        requested_model=ADJUSTMENT,
        served_model=ADJUSTMENT,
        usage=UsageCounts(),
        charges=_charges(ADJUSTMENT, nano_usd),
        cost_nano_usd=nano_usd,
        price_version=price_version,
        exchange_rate=rate.value,
    )
    return Correction(record, _settlement(record, now_s, matches, rate))


def dimensions_of(call: UsageRecord, model_name: Callable[[str], str]) -> dict[str, str | tuple[str, ...] | None]:
    """The dimension values by which a call met its budgets. `model_name`: as budgets know models."""
    return {
        "tenant": call.tenant,
        "key": call.key,
        "user": call.user,
        "team": call.team,
        "end_user": call.end_user,
        "tag": call.tags or None,
        "model": model_name(admitted_model(call)),
        "provider": call.provider or None,
        "deployment": call.deployment,
    }


def admitted_model(call: UsageRecord) -> str:
    """The model a call was admitted for: the one asked for, or the fallback, which is known by what served."""
    return call.requested_model if call.fallback_reason is None else call.served_model


def moment_of(record: UsageRecord) -> float:
    """Unix seconds, to the millisecond, of a record's admission."""
    return datetime.fromisoformat(record.timestamp).timestamp()


def rate_of(record: UsageRecord) -> Rate:
    """The rate a record was made at."""
    return _rate(record.exchange_rate)


@lru_cache(maxsize=64)
def _rate(value: float) -> Rate:
    return parse_rate(repr(value))


def _charges(bucket: str, nano_usd: int) -> tuple[Charge, ...]:
    return (Charge(bucket=bucket, quantity=1, nano_usd=nano_usd),)


def _settlement(record: UsageRecord, at_s: float, matches: tuple[Match, ...], rate: Rate) -> Settlement:
    coins, pico = split_coins(record.cost_nano_usd, rate)
    return Settlement(
        call_id=record.call_id,
        admitted_at_s=at_s,
        cost_nano_usd=record.cost_nano_usd,
        matches=matches,
        windows={},  # of a moment that may be long ago: each store works them out
        rate=rate.ratio,
        subscription=record.subscription,
        coins=coins,
        pico_coins=pico,
        tenant=record.tenant,
        aggregates=tuple(aggregates(record, requests=0)),
        record=encode_settled_part(record),
    )
