"""Signatures of what is posted to others, as Standard Webhooks 1.0.0 has it (its `spec/standard-webhooks.md`, read
2026-01).
"""

from __future__ import annotations

import base64
import hmac

from .errors import ConfigurationError

PREFIX = "whsec_"


def signing_key(secret: str) -> bytes:
    """The bytes of a `whsec_` secret. Raises ConfigurationError, without repeating it."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True) if secret.startswith(PREFIX) else b""
    except ValueError:  # binascii's own error is one, and so is what other characters than ASCII give
        key = b""
    if not 24 <= len(key) <= 64:
        raise ConfigurationError("a webhook secret is whsec_ and the base64 of 24 to 64 random bytes")
    return key


def signature(key: bytes, id_: str, timestamp: str, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    digest = hmac.digest(key, f"{id_}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(digest).decode()
