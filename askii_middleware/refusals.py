"""Refusals: what is said, and how it is sent in the envelope of the API that was called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .errors import BudgetExceededError
from .headers import RawHeaders, iso
from .identify import IdentityFailure
from .providers.base import Refusal

if TYPE_CHECKING:
    from starlette.types import Send

    from .providers.base import Api

HELD_RETRY_S = 1
LEDGER_RETRY_S = 2


def budget_refusal(error: BudgetExceededError, call_id: str, *, status: int, expose_amounts: bool) -> Refusal:
    """402 (or the configured status) when the money is spent, 429 when running calls hold what is left."""
    kind = ",".join(part.partition("=")[0] for part in error.scope.split(","))
    held = error.reason == "held"
    if expose_amounts and kind.split(",")[0] in ("tenant", "key", "user"):
        message = error.message
    else:
        # A budget that others share says nothing about their spend.
        message = f"a {kind} budget " + ("is held by running calls; try again shortly" if held else "is spent")
    return Refusal(
        status=429 if held else status,
        code="budget_held" if held else "budget_exceeded",
        message=message,
        reason=error.reason,
        scope_kind=kind,
        resets_at=iso(error.resets_at.timestamp()),
        retry_after_s=HELD_RETRY_S if held else None,
        call_id=call_id,
    )


def unauthorized(failure: IdentityFailure, call_id: str) -> Refusal:
    code = "unauthorized" if failure.status == 401 else "forbidden"
    return Refusal(status=failure.status, code=code, message=failure.message, call_id=call_id)


def invalid_request(message: str, call_id: str) -> Refusal:
    return Refusal(status=400, code="invalid_request", message=message, call_id=call_id)


def model_not_priced(message: str, call_id: str) -> Refusal:
    return Refusal(status=400, code="model_not_priced", message=message, call_id=call_id)


def model_not_allowed(model: str, call_id: str) -> Refusal:
    message = f"this key may not call the model {model[:256]!r}"
    return Refusal(status=403, code="model_not_allowed", message=message, call_id=call_id)


def too_large(limit: int, call_id: str) -> Refusal:
    message = f"the request body is larger than {limit} bytes (max_body_bytes)"
    return Refusal(status=413, code="request_too_large", message=message, call_id=call_id)


def unmetered_route(call_id: str) -> Refusal:
    message = "this route is not metered, and this service refuses unmetered requests"
    return Refusal(status=404, code="route_not_metered", message=message, call_id=call_id)


def ledger_unavailable(call_id: str) -> Refusal:
    message = "the ledger is not reachable, so the call cannot be admitted; try again shortly"
    return Refusal(
        status=503, code="ledger_unavailable", message=message, retry_after_s=LEDGER_RETRY_S, call_id=call_id
    )


async def send_refusal(api: Api | None, refusal: Refusal, send: Send) -> None:
    """Answer with a refusal; outside of any API in the OpenAI shape."""
    headers: RawHeaders
    if api is not None:
        body, headers = api.refusal(refusal)
    else:
        body, headers = _plain(refusal)
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"x-askii-call-id", refusal.call_id.encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _plain(refusal: Refusal) -> tuple[bytes, RawHeaders]:
    error = {
        "message": refusal.message,
        "type": refusal.code,
        "param": None,
        "code": refusal.code,
        "reason": refusal.reason,
        "scope_kind": refusal.scope_kind,
        "resets_at": refusal.resets_at,
    }
    headers: RawHeaders = []
    if refusal.retry_after_s is None:
        headers.append((b"x-should-retry", b"false"))
    else:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    return json.dumps({"error": error}).encode(), headers
