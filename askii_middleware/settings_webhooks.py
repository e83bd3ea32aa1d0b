"""The settings of Lago's webhooks."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .settings_tables import Secret, Table, Text, WebUrl


class LagoWebhookSettings(Table):
    """`[lago_webhooks]`: where `askii serve` takes Lago's webhooks. `hmac_key` is for endpoints with the signature
    `hmac`; `public_key` (PEM, or base64 of it), or `url` and `api_key` to fetch it from Lago, for those with `jwt`.
    """

    path: Annotated[str, Field(pattern="^/.")]
    hmac_key: Secret | None = None
    public_key: Secret | None = None
    url: WebUrl | None = None
    """Lago's API with its path, which ends in `/api/v1`."""
    api_key: Secret | None = None
    issuer: Text | None = None
    """What tokens must name as their issuer."""
    organization_id: Text | None = None
    """Whose webhooks count, by Lago's id of the organisation; a must for the signature `jwt`."""
    subscriptions: dict[Text, tuple[Text, ...]] | None = None
    """External subscription ids and the tenants they stand for; None: see `LagoWebhooks`."""
    customers: dict[Text, tuple[Text, ...]] | None = None

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if (self.url is None) != (self.api_key is None):
            raise ValueError("url and api_key come together")
        if self.public_key is not None and self.url is not None:
            raise ValueError("give public_key, or url and api_key to fetch it from, not both")
        if self.hmac_key is None and self.public_key is None and self.url is None:
            raise ValueError("give hmac_key, or public_key, or url and api_key: unsigned webhooks are forged")
        if self.organization_id is None and (self.public_key is not None or self.url is not None):
            raise ValueError(
                "public_key, and url, need organization_id: a Lago signs for all its organisations with one key"
            )
        if self.url is not None and _is_exposed(self.url):
            raise ValueError("url must be https beyond this machine: who can change the key can forge webhooks")
        if self.issuer is not None and self.public_key is None and self.url is None:
            raise ValueError("issuer does nothing without public_key, or url and api_key: only tokens name one")
        return self


def _is_exposed(url: str) -> bool:
    from .sinks.http import is_exposed  # noqa: PLC0415 - httpx only where it will be used

    return is_exposed(url)
