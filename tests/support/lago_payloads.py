"""Webhooks as Lago sends them: the objects of its documentation and serializers (2026-08), signed either way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

HMAC_KEY = "7f0d8a6e-1c1e-4d0b-9e56-0f4d0a9c1c11"
ISSUER = "https://lago.example.com"
ORGANIZATION = "3c901a90-1a90-1a90-1a90-1a901a901a90"
WALLET = "b7ab2926-1de8-4428-9bcd-779314ac129b"

_CUSTOMER = {
    "lago_id": "1a901a90-1a90-1a90-1a90-1a901a901a90",
    "external_id": "acme",
    "name": "Acme Corp",
    "currency": "USD",
    "timezone": "UTC",
    "created_at": "2025-06-01T08:00:00Z",
}
_SUBSCRIPTION = {
    "lago_id": "5eb02857-a71e-4ea2-bcf9-57d8885990ba",
    "external_id": "acme",
    "lago_customer_id": _CUSTOMER["lago_id"],
    "external_customer_id": "acme",
    "name": None,
    "plan_code": "llm_usage",
    "plan_amount_cents": 0,
    "plan_amount_currency": "USD",
    "status": "active",
    "billing_time": "calendar",
    "subscription_at": "2025-06-01T08:00:00Z",
    "started_at": "2025-06-01T08:00:00.000Z",
    "trial_ended_at": None,
    "ending_at": None,
    "terminated_at": None,
    "canceled_at": None,
    "created_at": "2025-06-01T08:00:00Z",
    "previous_plan_code": None,
    "next_plan_code": None,
    "downgrade_plan_date": None,
    "current_billing_period_started_at": "2026-01-01T00:00:00Z",
    "current_billing_period_ending_at": "2026-01-31T23:59:59Z",
    "on_termination_credit_note": None,
    "on_termination_invoice": "generate",
    "progressive_billing_disabled": False,
    "consolidate_invoice": True,
    "customer": _CUSTOMER,
    "plan": {"lago_id": "2b901a90-1a90-1a90-1a90-1a901a901a90", "code": "llm_usage", "name": "LLM usage"},
    "payment_method": {"payment_method_id": None, "payment_method_type": "provider"},
}
_WALLET = {
    "lago_id": WALLET,
    "lago_customer_id": _CUSTOMER["lago_id"],
    "external_customer_id": "acme",
    "status": "active",
    "currency": "USD",
    "name": "Prepaid coins",
    "rate_amount": "1.0",
    "credits_balance": "10.0",
    "credits_ongoing_balance": "-0.2",
    "credits_ongoing_usage_balance": "10.2",
    "balance_cents": 1000,
    "ongoing_balance_cents": -20,
    "ongoing_usage_balance_cents": 1020,
    "consumed_credits": "90.0",
    "created_at": "2025-06-01T08:00:00Z",
    "expiration_at": None,
    "last_balance_sync_at": "2025-12-31T23:00:00Z",
    "last_consumed_credit_at": "2025-12-31T23:00:00Z",
    "terminated_at": None,
    "invoice_require_successful_payment": False,
}
_TRANSACTION: dict[str, Any] = {
    "lago_id": "6a1f6a39-3b1c-4e7e-9d6f-5cf4b2a1b3c4",
    "lago_wallet_id": WALLET,
    "lago_invoice_id": "9c0d6a39-3b1c-4e7e-9d6f-5cf4b2a1b3c4",
    "lago_credit_note_id": None,
    "lago_voided_invoice_id": None,
    "billing_entity_code": "default",
    "status": "settled",
    "source": "manual",
    "transaction_status": "purchased",
    "transaction_type": "inbound",
    "amount": "100.0",
    "credit_amount": "100.0",
    "remaining_amount_cents": 10000,
    "remaining_credit_amount": "100.0",
    "priority": 50,
    "purchase_order_number": None,
    "settled_at": "2026-01-01T00:00:00Z",
    "failed_at": None,
    "created_at": "2025-12-31T23:59:00Z",
    "invoice_requires_successful_payment": False,
    "metadata": [],
    "name": None,
    "payment_method": {"payment_method_id": None, "payment_method_type": "provider"},
}
_ALERT = {
    "lago_id": "0f1f6a39-3b1c-4e7e-9d6f-5cf4b2a1b3c4",
    "lago_organization_id": ORGANIZATION,
    "lago_alert_id": "4d901a90-1a90-1a90-1a90-1a901a901a90",
    "lago_subscription_id": _SUBSCRIPTION["lago_id"],
    "external_subscription_id": "acme",
    "lago_wallet_id": None,
    "external_customer_id": "acme",
    "billable_metric_code": "askii_coins",
    "alert_name": "Half of the month's coins",
    "alert_code": "half",
    "alert_type": "billable_metric_current_usage_units",
    "current_value": "500123.0",
    "previous_value": "499000.0",
    "crossed_thresholds": [{"code": "half", "value": "500000.0", "recurring": False}],
    "triggered_at": "2026-01-01T00:00:00Z",
}
OBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "subscription.terminated": (
        "subscription",
        {**_SUBSCRIPTION, "status": "terminated", "terminated_at": "2026-01-01T00:00:00Z"},
    ),
    "subscription.started": ("subscription", {**_SUBSCRIPTION, "started_at": "2026-01-01T00:00:00.123Z"}),
    "wallet.depleted_ongoing_balance": ("wallet", _WALLET),
    "wallet_transaction.created": ("wallet_transaction", _TRANSACTION),
    "wallet_transaction.updated": ("wallet_transaction", _TRANSACTION),
    "alert.triggered": ("triggered_alert", _ALERT),
}


def webhook(type_: str, *, organization: str | None = ORGANIZATION, **changes: Any) -> bytes:
    """The body of a webhook; `changes` to its object."""
    name, object_ = OBJECTS.get(type_, ("invoice", {"lago_id": "x"}))
    message = {"webhook_type": type_, "object_type": name, name: {**object_, **changes}}
    if organization is not None:
        message["organization_id"] = organization
    return json.dumps(message, separators=(",", ":")).encode()


def signed(body: bytes, *, key: str = HMAC_KEY, unique: str | None = "f2b0c0de") -> dict[str, str]:
    """The headers of a webhook signed with `hmac`."""
    signature = base64.b64encode(hmac.new(key.encode(), body, hashlib.sha256).digest()).decode()
    return _headers(signature, "hmac", unique)


def signed_jwt(
    body: bytes,
    *,
    pem: str | None = None,
    algorithm: str = "RS256",
    unique: str | None = "f2b0c0de",
    named: str | None = "jwt",
    **claims: Any,
) -> dict[str, str]:
    """The headers of a webhook signed with `jwt`, as the server does it: no times, and the body as text."""
    token = jwt.encode({"data": body.decode(), "iss": ISSUER, **claims}, pem or pems()[0], algorithm)
    return _headers(token, named, unique)


def _headers(signature: str, algorithm: str | None, unique: str | None) -> dict[str, str]:
    headers = {
        "x-lago-signature": signature,
        "x-lago-signature-algorithm": algorithm,
        "x-lago-unique-key": unique,
        "content-type": "application/json",
    }
    return {name: value for name, value in headers.items() if value is not None}


@cache
def pems() -> tuple[str, str]:
    """A private key and its public half."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()
