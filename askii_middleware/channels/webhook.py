"""Alerts to an HTTP endpoint, signed as Standard Webhooks 1.0.0 has it (its `spec/standard-webhooks.md`, read
2026-01): headers `webhook-id`, `webhook-timestamp`, `webhook-signature`; body with `type`, `timestamp` and `data`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import msgspec

from askii_middleware.errors import ConfigurationError
from askii_middleware.signing import signature, signing_key

from .base import AlertError, AlertNotice

TYPE = "budget.alert"


class WebhookChannel:
    """Posts each alert as JSON. Only an answer of 2xx takes it; redirections are not followed.

    Args:
        url: http or https.
        secret: `whsec_` and the base64 of 24 to 64 bytes, shared with the receiver; None: unsigned.
        timeout_s: for the whole exchange.
        clock: Unix seconds, for the signed time of each try.
    """

    def __init__(
        self,
        url: str,
        secret: str | None = None,
        *,
        timeout_s: float = 10.0,
        name: str = "webhook",
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"alert channel {name!r}: a webhook's URL begins with http:// or https://")
        self.name = name
        self._url = url
        self._key = None if secret is None else signing_key(secret)
        self._timeout_s = timeout_s
        self._clock = clock
        self._tls: ssl.SSLContext | None = None

    async def send(self, alert: AlertNotice) -> None:
        body = msgspec.json.encode({"type": TYPE, "timestamp": alert.timestamp, "data": alert})
        sent_s = str(int(self._clock()))
        headers = {"content-type": "application/json", "webhook-id": alert.id, "webhook-timestamp": sent_s}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, alert.id, sent_s, body)
        if self._tls is None:
            # It reads all certificates of the machine, which takes some 10 ms.
            self._tls = await asyncio.to_thread(httpx.create_ssl_context)
        # Alerts are rare: no connection is worth being kept, and so nothing has to be closed.
        with _unlogged(httpx.URL(self._url)):
            async with (
                asyncio.timeout(self._timeout_s),
                httpx.AsyncClient(verify=self._tls, timeout=self._timeout_s) as client,
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                if not answer.is_success:
                    raise AlertError(f"the endpoint answered {answer.status_code}")


@contextmanager
def _unlogged(url: httpx.URL) -> Iterator[None]:
    """Keep a URL out of httpx's log, which has that of each request: in a webhook's there is often its key."""

    def keeps(record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and url in record.args)

    log = logging.getLogger("httpx")
    log.addFilter(keeps)
    try:
        yield
    finally:
        log.removeFilter(keeps)
