"""Who signed a webhook of Lago's. Pure but for fetching a public key.

Facts: lago-api and Lago's documentation of webhooks (2026-08). `X-Lago-Signature` carries, as
`X-Lago-Signature-Algorithm` says, either the base64 of HMAC-SHA256 over the raw body (`hmac`), keyed with the text of
the organisation's HMAC key, or a compact RS256 token (`jwt`, also where the header is missing) whose claim `data` is
the raw body as text and whose `iss` is Lago's own address. Neither carries a time. `GET {api}/webhooks/json_public_key`
answers `{"webhook": {"public_key": base64 of a PEM}}`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from .errors import ConfigurationError, MissingExtraError

LEEWAY_S: Final = 300
"""For tokens that carry times after all: how far clocks may differ."""
REFETCH_S: Final = 60.0
"""So often a key is fetched anew, at most, because something did not verify with the last one."""
FIRST_FETCH_S: Final = 1.0
"""So often it is tried to fetch the first one."""
FetchKey = Callable[[], Awaitable[str]]
"""Gives a public key in PEM, or in base64 of it as Lago's API does. Raises OSError where it cannot be had now."""


class Verifier(Protocol):
    """Says whether the holder of the right key signed `body`. Raises OSError where that cannot be told now."""

    async def __call__(self, signature: str, body: bytes) -> bool: ...


class HmacVerifier:
    """`hmac`: the key is shared with Lago (Developers > Webhooks > HMAC signature token)."""

    def __init__(self, key: str) -> None:
        if not key:
            raise ConfigurationError("lago_webhooks: the HMAC key is empty")
        self._key = key.encode()

    async def __call__(self, signature: str, body: bytes) -> bool:
        # The texts are compared: there is one way only to write a signature.
        wanted = base64.b64encode(hmac.digest(self._key, body, "sha256"))
        return hmac.compare_digest(signature.encode("utf-8", "replace"), wanted)


class JwtVerifier:
    """`jwt`: RS256 and nothing else, whatever the token says of itself.

    Args:
        key: the public key, in PEM or in base64 of it; or where to fetch it at the first webhook, and again after it
            may have changed.
        issuer: what `iss` must be; None: it is not looked at.
    """

    def __init__(
        self, key: str | FetchKey, *, issuer: str | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            import jwt  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtraError("jwt", "verifying Lago's JWT signatures") from None
        self._jwt = jwt
        self._issuer = issuer
        self._monotonic = monotonic
        self._fetch: FetchKey | None = None
        self._fetched_s = float("-inf")
        self._key: Any = None
        if isinstance(key, str):
            self._key = self._prepared(key)
        else:
            self._fetch = key

    async def __call__(self, signature: str, body: bytes) -> bool:
        if self._key is not None and self._signed(signature, body):
            return True
        if self._fetch is None:
            return False
        if self._monotonic() - self._fetched_s < (FIRST_FETCH_S if self._key is None else REFETCH_S):
            if self._key is None:
                raise OSError("Lago's public key could not be fetched a moment ago")
            return False
        self._fetched_s = self._monotonic()
        self._key = self._prepared(await self._fetch())
        return self._signed(signature, body)

    def _prepared(self, key: str) -> Any:
        text = key.strip()
        try:
            if not text.startswith("-----"):
                text = base64.b64decode(text).decode("ascii")
            return self._jwt.get_algorithm_by_name("RS256").prepare_key(text)
        except (self._jwt.InvalidKeyError, binascii.Error, UnicodeDecodeError, ValueError, TypeError):
            raise ConfigurationError("lago_webhooks: the public key is neither PEM nor base64 of PEM") from None

    def _signed(self, token: str, body: bytes) -> bool:
        try:
            claims = self._jwt.decode(
                token,
                self._key,
                algorithms=["RS256"],
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"verify_aud": False, "verify_sub": False, "verify_iat": False},
            )
        except (self._jwt.InvalidTokenError, ValueError):  # ValueError: text that no token is made of
            return False
        data = claims.get("data")
        return isinstance(data, str) and hmac.compare_digest(data.encode("utf-8", "replace"), body)


def fetched_from(url: str, api_key: str, *, timeout_s: float = 10.0) -> FetchKey:
    """Where Lago gives its public key: `url` is the API's base, which ends in `/api/v1`. Raises ConfigurationError for
    one that crosses a network unencrypted: whoever sits on the way could hand out a key of his own.
    """
    from .sinks.http import is_exposed  # noqa: PLC0415 - httpx is slow to import, and needed only here

    if is_exposed(url):
        raise ConfigurationError("lago_webhooks: url must be https, because who can change the key can forge webhooks")

    async def fetch() -> str:
        import httpx  # noqa: PLC0415 - slow to import, and needed only here

        try:
            async with httpx.AsyncClient(timeout=timeout_s) as client:
                answer = await client.get(
                    f"{url.rstrip('/')}/webhooks/json_public_key", headers={"authorization": f"Bearer {api_key}"}
                )
            answer.raise_for_status()
            key = answer.json()["webhook"]["public_key"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise OSError(f"Lago's public key cannot be fetched: {type(error).__name__}: {error}") from None
        if not isinstance(key, str):
            raise OSError("Lago's public key cannot be fetched: its answer has none")
        return key

    return fetch
