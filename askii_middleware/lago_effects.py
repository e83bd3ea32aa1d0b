"""What a webhook of Lago's means for tenants. Pure: a type and an object in, an effect out.

Facts: the serializers and services of lago-api (2026-08). A plan change ends the old subscription with the same
`subscription.terminated` as a real end, but names the plan that follows; a wallet's transaction names its wallet and
not its customer; credits are there once an inbound transaction is `settled`, whether `purchased` or `granted`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from .tenants import Cause

MAX_ID_CHARS: Final = 256


class Effect(NamedTuple):
    """What to do. What is suspended about a subscription or wallet only that very one lifts.

    Attributes:
        action: `suspend` and `lift` concern the tenants that the ids below stand for; `alert` is only told.
        subscription, customer: external ids, as the other side gave them to Lago.
        wallet: Lago's own id.
        text: the reason of a suspension, or what an alert says.
        at_s: when it happened, Unix seconds, by which what comes late is known; None: the object does not say.
        dated: whether `at_s` is close to when the webhook was made. That of an empty wallet is not: it is when its
            balance last changed, and the usage that empties it may come months later.
    """

    action: Literal["suspend", "lift", "alert"]
    cause: Cause = "subscription"
    subscription: str | None = None
    customer: str | None = None
    wallet: str | None = None
    text: str = ""
    at_s: float | None = None
    dated: bool = True

    @property
    def about(self) -> str | None:
        """The subscription or wallet it concerns."""
        return self.wallet if self.cause == "wallet" else self.subscription


def read_effect(type_: str, message: Mapping[str, Any]) -> Effect | None:
    """The effect of a webhook; None: it has none. Raises ValueError for an object that lacks what it should have."""
    if type_ not in _READERS:
        return None
    name, read = _READERS[type_]
    found = message.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"a webhook of type {type_} has no {name!r}")  # noqa: TRY004 - told like the others
    return read(found)


def _terminated(subscription: Mapping[str, Any]) -> Effect | None:
    if subscription.get("next_plan_code") is not None:
        return None  # the next plan goes on under the same id
    id_ = _id(subscription, "external_id")
    at = subscription.get("terminated_at")
    return Effect("suspend", subscription=id_, text=f"Lago: the subscription {id_} was terminated", at_s=_latest(at))


def _started(subscription: Mapping[str, Any]) -> Effect:
    times = _latest(subscription.get("started_at"), subscription.get("created_at"))
    return Effect("lift", subscription=_id(subscription, "external_id"), at_s=times)


def _depleted(wallet: Mapping[str, Any]) -> Effect:
    customer = _id(wallet, "external_customer_id")
    text = f"Lago: the wallet of customer {customer} is empty"
    # A top-up is settled before it moves the balance, so an empty wallet that knows of it is never the older one.
    at_s = _latest(wallet.get("last_balance_sync_at"), wallet.get("created_at"))
    id_ = _id(wallet, "lago_id")
    return Effect("suspend", "wallet", customer=customer, wallet=id_, text=text, at_s=at_s, dated=False)


def _transaction(transaction: Mapping[str, Any]) -> Effect | None:
    topped_up = (
        transaction.get("transaction_type") == "inbound"
        and transaction.get("status") == "settled"
        and transaction.get("transaction_status") in ("purchased", "granted")
    )
    if not topped_up:
        return None
    return Effect(
        "lift",
        "wallet",
        wallet=_id(transaction, "lago_wallet_id"),
        at_s=_latest(transaction.get("settled_at"), transaction.get("created_at")),
    )


def _alert(alert: Mapping[str, Any]) -> Effect:
    crossed = alert.get("crossed_thresholds")
    values = [str(each.get("value")) for each in crossed if isinstance(each, dict)] if isinstance(crossed, list) else []
    whose = alert.get("external_subscription_id") or alert.get("external_customer_id")
    text = (
        f"{alert.get('alert_code')} ({alert.get('alert_type')}) of {whose}: {alert.get('current_value')} "
        f"has crossed {', '.join(values) or 'a threshold'}"
    )
    return Effect("alert", text=text[:500], at_s=_latest(alert.get("triggered_at")))


_READERS: Final[dict[str, tuple[str, Callable[[Mapping[str, Any]], Effect | None]]]] = {
    "subscription.terminated": ("subscription", _terminated),
    "subscription.started": ("subscription", _started),
    "wallet.depleted_ongoing_balance": ("wallet", _depleted),
    "wallet_transaction.created": ("wallet_transaction", _transaction),
    "wallet_transaction.updated": ("wallet_transaction", _transaction),
    "alert.triggered": ("triggered_alert", _alert),
}
TYPES: Final = frozenset(_READERS)
"""The types that may have an effect."""


def _id(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or "\0" in value:
        raise ValueError(f"{name} is no id of 1 to {MAX_ID_CHARS} characters")
    return value


def _latest(*texts: object) -> float | None:
    """The latest of some RFC 3339 times; None where there is none. Raises ValueError."""
    found = []
    for text in texts:
        if text is None:
            continue
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        if moment is None or moment.tzinfo is None:
            raise ValueError("a time is not RFC 3339 with an offset")
        found.append(moment.timestamp())
    return max(found, default=None)
