"""Refusals: what is said, how it is counted, and how it is sent in the envelope of the API that was called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .budgets import scope_text
from .errors import BudgetExceededError
from .headers import RawHeaders, iso
from .identify import IdentityFailure
from .providers import find_apis
from .providers.base import Refusal

if TYPE_CHECKING:
    from starlette.types import Send

    from .admission import Extension
    from .identity import Identity
    from .providers.base import Api

HELD_RETRY_S = 1
LEDGER_RETRY_S = 2
_ENVELOPE = find_apis("/chat/completions")[0]
"""Outside of any API, refusals look like OpenAI's."""


class RefusedError(Exception):
    """Ends a request that may not run: the answer, and the two labels it is counted under."""

    def __init__(self, refusal: Refusal, scope_kind: str, reason: str) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.scope_kind = scope_kind
        self.reason = reason


def budget_refused(
    error: BudgetExceededError, call_id: str, *, identity: Identity | None, status: int, expose_amounts: bool
) -> RefusedError:
    """402 (or the configured status) when the money is spent, 429 when running calls hold what is left. Amounts are
    said of budgets of the caller's own only: what others share a budget with, or have, is not for everyone.
    """
    kind = ",".join(part.partition("=")[0] for part in error.scope.split(","))
    held = error.reason == "held"
    if expose_amounts and identity is not None and _is_own(error.scope, identity):
        message = error.message
    else:
        message = f"a {kind} budget " + ("is held by running calls; try again shortly" if held else "is spent")
    refusal = Refusal(
        status=429 if held else status,
        code="budget_held" if held else "budget_exceeded",
        message=message,
        reason=error.reason,
        scope_kind=kind,
        resets_at=iso(error.resets_at.timestamp()),
        retry_after_s=HELD_RETRY_S if held else None,
        call_id=call_id,
    )
    return RefusedError(refusal, kind, error.reason)


def _is_own(scope: str, identity: Identity) -> bool:
    """Whether a scope begins with the caller's own tenant, key or user."""
    first = scope.partition(",")[0]
    name = first.partition("=")[0]
    value = getattr(identity, name) if name in ("tenant", "key", "user") else None
    return value is not None and first == scope_text({name: value})


def unauthorized(failure: IdentityFailure, call_id: str) -> RefusedError:
    code = "unauthorized" if failure.status == 401 else "forbidden"
    refusal = Refusal(status=failure.status, code=code, message=failure.message, call_id=call_id)
    return RefusedError(refusal, "identity", failure.kind)


def tenant_suspended(call_id: str) -> RefusedError:
    message = "this tenant is suspended; whoever runs this service can resume it"
    refusal = Refusal(status=403, code="tenant_suspended", message=message, call_id=call_id)
    return RefusedError(refusal, "tenant", "suspended")


def invalid_request(message: str, call_id: str) -> RefusedError:
    refusal = Refusal(status=400, code="invalid_request", message=message, call_id=call_id)
    return RefusedError(refusal, "request", "invalid")


def unreadable_body(message: str, call_id: str) -> RefusedError:
    refusal = Refusal(status=400, code="invalid_request", message=message, call_id=call_id)
    return RefusedError(refusal, "body", "unreadable")


def body_too_large(limit: int, call_id: str) -> RefusedError:
    message = f"the request body is larger than {limit} bytes (max_body_bytes)"
    refusal = Refusal(status=413, code="request_too_large", message=message, call_id=call_id)
    return RefusedError(refusal, "body", "too_large")


def model_not_priced(message: str, call_id: str) -> RefusedError:
    refusal = Refusal(status=400, code="model_not_priced", message=message, call_id=call_id)
    return RefusedError(refusal, "model", "not_priced")


def model_not_allowed(model: str, call_id: str) -> RefusedError:
    message = f"this key may not call the model {model[:256]!r}"
    refusal = Refusal(status=403, code="model_not_allowed", message=message, call_id=call_id)
    return RefusedError(refusal, "model", "not_allowed")


def unmetered_route(call_id: str) -> RefusedError:
    message = "this route is not metered, and this service refuses unmetered requests"
    refusal = Refusal(status=404, code="route_not_metered", message=message, call_id=call_id)
    return RefusedError(refusal, "route", "unmetered")


def mints_refused(call_id: str) -> RefusedError:
    message = (
        "this route hands out keys of the provider, with which calls would bypass every budget; the operator can "
        "allow it in routes.exempt"
    )
    refusal = Refusal(status=403, code="route_mints_credentials", message=message, call_id=call_id)
    return RefusedError(refusal, "route", "mints")


def ledger_unavailable(call_id: str) -> RefusedError:
    message = "the ledger is not reachable, so the call cannot be admitted; try again shortly"
    refusal = Refusal(
        status=503, code="ledger_unavailable", message=message, retry_after_s=LEDGER_RETRY_S, call_id=call_id
    )
    return RefusedError(refusal, "ledger", "unavailable")


def stream_cut(extension: Extension | None, call_id: str) -> Refusal:
    """Why a stream was cut, for APIs whose streams can say so. None: the ledger did not answer."""
    if extension is None:
        return ledger_unavailable(call_id).refusal
    held = extension.reason == "held"
    line = extension.deciding
    return Refusal(
        status=429 if held else 402,
        code="budget_held" if held else "budget_exceeded",
        message="the answer ends here: its budget " + ("is held by other running calls" if held else "is spent"),
        reason=extension.reason,
        scope_kind=None if line is None else ",".join(part.partition("=")[0] for part in line.scope.split(",")),
        resets_at=None if line is None else iso(line.resets_at_s),
        call_id=call_id,
    )


async def send_refusal(api: Api | None, refusal: Refusal, send: Send) -> None:
    """Answer with a refusal in an API's envelope."""
    body, more = (api or _ENVELOPE).refusal(refusal)
    headers: RawHeaders = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-askii-call-id", refusal.call_id.encode()),
        *more,
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
