"""Sending webhooks to a receiver of Lago's, and looking at what they did."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from askii_middleware.lago_webhooks import LagoWebhooks
from askii_middleware.tracker import CostTracker

from .asgi import ask
from .lago_payloads import HMAC_KEY, ORGANIZATION, signed, webhook
from .service import opened

TERMINATED = webhook("subscription.terminated")
OTHER = webhook("subscription.terminated", external_id="globex")
STARTED = webhook("subscription.started")
DEPLETED = webhook("wallet.depleted_ongoing_balance")
TOPPED_UP = webhook("wallet_transaction.updated")


async def post(app: Any, body: bytes, headers: Mapping[str, str] | None = None, **more: Any) -> tuple[int, str]:
    """Status and result of one request; signed with HMAC unless `headers` say otherwise."""
    headers = signed(body) if headers is None else headers
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    got = await ask(app, body, path="/webhooks/lago", headers=raw, **more)
    assert got.error is None, got.error
    return got.status, got.json["result"]


def hooks(tracker: CostTracker, **options: Any) -> LagoWebhooks:
    if "public_key" in options:
        return LagoWebhooks(tracker, **{"organization_id": ORGANIZATION, **options})
    return LagoWebhooks(tracker, **{"hmac_key": HMAC_KEY, **options})


@contextlib.asynccontextmanager
async def receiving(
    tmp_path: Path, kind: str = "memory", **options: Any
) -> AsyncIterator[tuple[CostTracker, LagoWebhooks]]:
    tracker_options = {name: options.pop(name) for name in ("clock", "subscription_of") if name in options}
    async with opened(kind, tmp_path, **tracker_options) as tracker:
        yield tracker, hooks(tracker, **options)


def suspended(tracker: CostTracker, *tenants: str) -> list[bool]:
    return [tracker.tenants.find(tenant) is not None for tenant in tenants]
