"""What sinks over HTTP share: one connection pool, every exchange bounded in time and size, and how to read what any
receiver may say.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib import import_module
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from askii_middleware._version import __version__
from askii_middleware.errors import SinkError

from .base import BACK_OFF, Verdict

HOLD_S: Final = 60.0
"""How often to look whether a refused key or a wrong URL has been put right."""
MAX_WAIT_S: Final = 300.0
"""The longest wait a receiver can ask for."""
MAX_ANSWER_BYTES: Final = 1 << 20
"""No answer to a batch comes near."""
FAILURES: Final = (httpx.RequestError, TimeoutError)
"""What `request` raises where there was no answer."""
NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ConnectTimeout)
"""Of these, the ones where nothing was sent."""
_EPOCH_S = 1e8
"""A reset above this is a moment, not a span: some proxies send Unix time."""
_MAX_REASON_CHARS = 300


class Answer(NamedTuple):
    """Exactly one of the three is set, except that verdicts of some events leave the others to be sent again."""

    verdicts: dict[int, Verdict] = {}  # noqa: RUF012 - a NamedTuple's default, never written to
    """By the event's index in the request."""
    split: str = ""
    """Why the request is unacceptable as a whole: send fewer at a time. Of a lone event it is the verdict."""
    pause_s: float | None = None
    """Stop sending, as in `Delivery`; `reason`, `alarm` and `suspect` go with it."""
    reason: str = ""
    alarm: str = ""
    suspect: bool = False


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    """Decoded, cut to the bound; empty where it comes in an encoding nobody asked for."""


class Connection:
    """Where a receiver is and how to get in. A token stands in the `Authorization` header only.

    Args:
        url: as `base_url` returns it.
        token: sent as `Authorization: Bearer`.
        what: what errors call the token, such as "the Lago API key".
        timeout_s: for one request as a whole, its answer read.
        client: to share connections or set certificates; it stays open when this closes.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        what: str,
        timeout_s: float = 10.0,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._headers = {
            "user-agent": f"askii-middleware/{__version__}",
            # Small answers: compressing them gains nothing, and a few of these bytes can unfold to gigabytes.
            "accept-encoding": "identity",
        }
        if token is not None:
            if not token or not token.isascii() or not token.isprintable() or " " in token:
                # A transport would quote a malformed header in its error; this message does not.
                raise SinkError(f"{what} is empty or has characters that no header can carry")
            self._headers["authorization"] = f"Bearer {token}"
        self._given_client = client
        self._client: httpx.AsyncClient | None = None
        # Loading certificates, and what httpx imports with the first request only, takes tens of milliseconds: at
        # construction, not while the event loop serves requests. A context without any certificates trusts nobody,
        # and plain http never asks it.
        for module in ("httpcore", "anyio._backends._asyncio"):
            with suppress(ImportError):
                import_module(module)
        secure = client is None and self.url.startswith("https:")
        self._tls = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def request(
        self,
        method: str,
        path: str = "",
        *,
        params: Mapping[str, str | int] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Reply:
        """Raises one of `FAILURES`. Redirects are not followed: a redirected POST would arrive as a GET."""
        client = self._given_client or self._client
        if client is None:
            client = self._client = httpx.AsyncClient(verify=self._tls, timeout=self.timeout_s)
        async with (
            asyncio.timeout(self.timeout_s),
            client.stream(
                method,
                self.url + path,
                params=params,
                content=content,
                headers={**self._headers, **(headers or {})},
                follow_redirects=False,
            ) as response,
        ):
            return Reply(response.status_code, response.headers, await _read(response, max_bytes))

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def base_url(url: str, *, what: str, example: str) -> str:
    """The URL without a slash at its end. Raises SinkError, without repeating the URL: it may have a password in it."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or "?" in url or "#" in url or not url.isprintable() or " " in url:
        raise SinkError(f"{what} must be http(s)://host/path without user, query or fragment, such as {example}")
    return url.rstrip("/")


def is_exposed(url: str) -> bool:
    """Whether what is sent there crosses a network unencrypted."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname is None:
        return False
    try:
        return not ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname != "localhost"


def no_answer(error: Exception) -> Answer:
    """What one of `FAILURES` means for a batch."""
    # Once the receiver had the bytes, or part of them, its answer to the same bytes says whether it kept them.
    return Answer(pause_s=BACK_OFF, reason=describe(error), suspect=not isinstance(error, NOT_CONNECTED))


def hold(alarm: str) -> Answer:
    """Nothing moves until a person has put something right."""
    return Answer(pause_s=HOLD_S, reason=alarm, alarm=alarm)


def asked_wait_s(headers: Mapping[str, str], now_s: float) -> float:
    """How long a receiver asks to wait, at most 300 s; `BACK_OFF` where it does not say.

    Lago sends `X-RateLimit-Reset` in seconds; most others send `Retry-After` in seconds or as an HTTP date.
    """
    for name in ("x-ratelimit-reset", "retry-after"):
        text = headers.get(name)
        if text is None:
            continue
        try:
            wait_s = float(text)
            if wait_s > _EPOCH_S:
                wait_s -= now_s
        except ValueError:
            try:
                moment = parsedate_to_datetime(text)
                wait_s = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now_s
            except (ValueError, OverflowError):  # the latter for years that no date has
                continue
        if math.isfinite(wait_s) and wait_s > 0:
            return min(wait_s, MAX_WAIT_S)
    return BACK_OFF


def excerpt(body: bytes) -> str:
    """The beginning of an answer, fit for a dead letter."""
    return body[:_MAX_REASON_CHARS].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body up to the bound. Some proxies compress whatever is asked for, so gzip and deflate are undone here,
    within the same bound.
    """
    if response.is_stream_consumed:  # a hook of the given client has read it
        return response.content[:max_bytes]
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        return b""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= max_bytes:
            del body[max_bytes:]
            break
    if encoding in ("identity", ""):
        return bytes(body)
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(bytes(body), max_bytes)
    except zlib.error:
        return b""
