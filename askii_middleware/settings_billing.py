"""`[billing]`: which external subscription pays for a call; and the `BILLING_ALERT_…` variables of the guides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from .identity import Identity
from .settings_tables import Table, Text

ALERT_VARIABLES: Final = {
    "BILLING_ALERT_FROM_EMAIL": "email_from",
    "BILLING_ALERT_SMTP_HOST": "smtp_host",
    "BILLING_ALERT_SMTP_PORT": "smtp_port",
}
"""Variables without our prefix, and the settings of `[alerts]` they stand for."""


def billing_variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings that the guides' variables stand for. An empty one is none. Only those of alerts: what could switch
    enforcement off counts only in the guides' own programs, see `compat.configuration`.
    """
    table = {name: value for variable, name in ALERT_VARIABLES.items() if (value := environment.get(variable))}
    return {"alerts": table} if table else {}


class BillingSettings(Table):
    """`[billing]` and `[billing.subscriptions]`. Without either, a tenant is its own subscription."""

    subscription: Literal["tenant", "key", "user", "team", "end_user"] = "tenant"
    """The part of the identity that is the subscription's external id."""
    subscriptions: dict[Text, Text] = Field(default_factory=dict)
    """By tenant, the subscription's external id."""
    otherwise: Literal["tenant", "none"] = "tenant"
    """Who pays where the table has no such tenant, or the identity no such part: the tenant, or nobody; sinks that bill
    then put the record aside.
    """

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.subscriptions and self.subscription != "tenant":
            raise ValueError("the table subscriptions is by tenant: give it, or another subscription, not both")
        if self.otherwise == "none" and not self.subscriptions and self.subscription == "tenant":
            raise ValueError(
                'otherwise = "none" does nothing: a tenant is its own subscription unless subscriptions or '
                "subscription say otherwise"
            )
        return self

    @property
    def rule(self) -> Callable[[Identity], str | None] | None:
        """The external subscription of an identity, for `CostTracker(subscription_of=...)`; None: the tenant's name."""
        table, part = self.subscriptions, self.subscription
        if not table and part == "tenant":
            return None
        to_tenant = self.otherwise == "tenant"

        def subscription_of(identity: Identity) -> str | None:
            found: str | None = table.get(identity.tenant) if table else getattr(identity, part)
            return found or (identity.tenant if to_tenant else None)

        return subscription_of
