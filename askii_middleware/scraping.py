"""Metrics over HTTP, for whoever may see them."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .tracker import CostTracker


def may_scrape(authorization: bytes, token: str | None) -> bool:
    """Whether a header `Authorization: Bearer <token>` shows the token, if there is one."""
    scheme, _, shown = authorization.partition(b" ")
    return not token or (scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token.encode()))


async def exposition(tracker: CostTracker, accept: str) -> tuple[bytes, str]:
    """Fresh metrics in the text format that was asked for, and its content type. Counters come also while the ledger is
    away: they are worth having all the more then.
    """
    metrics = tracker.metrics
    await metrics.refresh(tracker)
    metrics.flush()
    return await asyncio.to_thread(metrics.encoded, accept)  # calls go on meanwhile


def metrics_app(tracker: CostTracker, *, token: str | None = None) -> ASGIApp:
    """Serve the metrics. With `token`, only to `Authorization: Bearer <token>`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        del receive
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not may_scrape(headers.get(b"authorization", b""), token):
            await _answer(send, 401, b"a token is needed\n", "text/plain; charset=utf-8")
            return
        body, content_type = await exposition(tracker, headers.get(b"accept", b"").decode("latin-1"))
        await _answer(send, 200, body, content_type)

    return app


async def _answer(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
