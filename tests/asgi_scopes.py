"""Requests as servers hand them over, and the keys they carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from askii_middleware.identify import (
    Identifier,
    IdentityFailure,
)
from askii_middleware.identity import Identity
from askii_middleware.keys import KeyDirectory, hash_secret
from askii_middleware.stores.base import KeyRow

GOOD, SECOND, GONE, OLD, BAD = (f"sk-askii-{name}" for name in ("good", "second", "gone", "old", "bad"))
ROWS = (
    KeyRow(id="k1", sha256=hash_secret(GOOD), tenant="acme", team="research", tags=("batch",), models=("gpt-4o",)),
    KeyRow(id="k2", sha256=hash_secret(SECOND), tenant="globex"),
    KeyRow(id="k3", sha256=hash_secret(GONE), tenant="acme", revoked=True),
    KeyRow(id="k4", sha256=hash_secret(OLD), tenant="acme", expires_at_s=500.0),
)
ACME = Identity(tenant="acme", key="k1", team="research", tags=("batch",), models=("gpt-4o",), source="key")
TENANT = (b"x-tenant-id", b"acme")
BY_HEADER = Identity(tenant="acme", source="header")
Header = tuple[bytes, bytes]


def keys() -> KeyDirectory:
    return KeyDirectory(ROWS, clock=lambda: 1000.0)


def scope(*headers: Header, client: object = ("203.0.113.9", 50000), **more: Any) -> dict[str, Any]:
    """A request as uvicorn hands it over."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": client,
        "scheme": "http",
        "root_path": "",
        "headers": [(b"host", b"localhost:8000"), (b"content-type", b"application/json"), *headers],
        "state": {},
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        **more,
    }


def bearer(token: str) -> Header:
    return (b"authorization", b"Bearer " + token.encode())


async def failure(identifier: Identifier, request: Mapping[str, Any]) -> IdentityFailure:
    found = await identifier.identify(request)
    assert isinstance(found, IdentityFailure)
    return found
