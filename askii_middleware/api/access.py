"""Who asks, and what they may see: the admin token, a key of ours for its own data, or what the application says.

What a caller may not see is answered exactly as what is not there. Tokens are kept and compared as digests, so that
neither their text nor the time of a comparison tells anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from inspect import isawaitable
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError
from ..identify import CARRIERS
from ..identity import Identity
from ..keys import SECRET_PREFIX, KeyDirectory, KeyProblem
from ..log_fields import fields
from ..logs import WrongTokens
from ..stores.base import KeyRow

logger = logging.getLogger(__name__)

MIN_TOKEN_CHARS: Final = 16
MAX_CREDENTIAL_CHARS: Final = 1024
USER_HEADER: Final = b"x-user-id"
NOBODY: Final = "\0"
"""A user that nobody can be: what an unusable `X-User-ID` stands for."""

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them."""
IdentifyTenant = Callable[[Mapping[str, Any]], str | Awaitable[str | None] | None]
"""Gets the ASGI scope; gives the caller's tenant, or None."""


class Admin(NamedTuple):
    """Whoever shows the admin token. With `user` only what that user's keys are and do."""

    user: str | None = None

    def sees(self, row: KeyRow) -> bool:
        """Whether a key, with its spend and budgets, is this caller's business."""
        return self.user is None or row.user == self.user


class KeyHolder(NamedTuple):
    """Whoever shows the secret of a key."""

    row: KeyRow

    def sees(self, row: KeyRow) -> bool:
        """Whether a key is this caller's own."""
        return row.id == self.row.id and row.tenant == self.row.tenant


class Member(NamedTuple):
    """Whom the surrounding application knows as somebody of a tenant."""

    tenant: str

    def sees(self, row: KeyRow) -> bool:
        """No key is: the application named a tenant only."""
        del row
        return False


Principal = Admin | KeyHolder | Member


class Access:
    """Decides who makes a request.

    Args:
        admin_token: at least 16 characters; None: there is no admin.
        keys: finds the keys of ours.
        ready: opens the ledger before a key is looked up in it.
        identify: the application's own word on a caller's tenant, asked last.
        clock: Unix seconds, for the log.

    Raises ConfigurationError for a token that can be guessed or not be sent.
    """

    def __init__(
        self,
        admin_token: str | None,
        keys: KeyDirectory,
        *,
        ready: Callable[[], Awaitable[object]] | None = None,
        identify: IdentifyTenant | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if admin_token is not None:
            check_token(admin_token)
        self._admin = None if admin_token is None else _digest(admin_token.encode())
        self._keys = keys
        self._ready = ready
        self._identify = identify
        self._denied = WrongTokens(clock)

    @property
    def has_admin(self) -> bool:
        """Whether there is an admin token at all."""
        return self._admin is not None

    def is_admin_token(self, token: str) -> bool:
        """Whether a text is the admin token."""
        return self._admin is not None and compare_digest(_digest(token.encode("utf-8", "surrogatepass")), self._admin)

    async def principal(self, headers: Headers, scope: Mapping[str, Any] | None = None) -> Principal | None:
        """Who sent these headers; None: nobody we know. `scope` is for `identify`. Raises StoreError while a key
        cannot be looked up.
        """
        headers = list(headers)
        shown = _credentials(headers)
        found: Principal | None = None
        if len(shown) == 1:
            (credential,) = shown
            if self._admin is not None and compare_digest(_digest(credential), self._admin):
                found = Admin(_user(headers))
            elif credential.startswith(SECRET_PREFIX.encode()):
                found = await self._holder(credential.decode("latin-1"))
        # A key of ours that fails ends the search: a revoked one must not live on as what the application says.
        if found is None and self._identify is not None and not any(map(_is_ours, shown)):
            found = await self._member({} if scope is None else scope)
        if found is None:
            self._note_denied()
        return found

    def forget(self) -> None:
        """Believe nothing that was remembered of keys; for this process's own changes to them."""
        self._keys.forget()

    async def _holder(self, secret: str) -> KeyHolder | None:
        row = self._keys.find_cached(secret)
        if row is None:
            if self._ready is not None:
                await self._ready()
            row = await self._keys.find(secret)
        return None if isinstance(row, KeyProblem) else KeyHolder(row)

    async def _member(self, scope: Mapping[str, Any]) -> Member | None:
        assert self._identify is not None
        given = self._identify(scope)
        tenant = await given if isawaitable(given) else given
        if tenant is None or tenant == "":
            return None
        try:
            return Member(Identity(tenant=tenant).tenant)
        except ValueError as error:
            raise ConfigurationError(f"api: identify gave what is no tenant: {error}") from None

    def _note_denied(self) -> None:
        count = self._denied.note()
        if count is not None:
            logger.warning(
                "%d requests to the billing API came without valid credentials",
                *(count,),
                extra=fields("api_denied", count=count),
            )


def check_token(token: str) -> None:
    """Raise ConfigurationError unless a text can be the admin token."""
    if not MIN_TOKEN_CHARS <= len(token) <= MAX_CREDENTIAL_CHARS:
        raise ConfigurationError(f"api.admin_token: use {MIN_TOKEN_CHARS} to {MAX_CREDENTIAL_CHARS} random characters")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError("api.admin_token: use printable ASCII without spaces, so that a header can carry it")


def _digest(credential: bytes) -> bytes:
    return sha256(credential).digest()


def _credentials(headers: Headers) -> set[bytes]:
    """What the headers show, each once: `Authorization: Bearer …`, and the headers in which API keys are sent."""
    shown: set[bytes] = set()
    for name, value in headers:
        carrier = name.lower()
        if carrier not in CARRIERS:
            continue
        credential = value.strip()
        if carrier == b"authorization":
            scheme, _, credential = credential.partition(b" ")
            credential = credential.strip() if scheme.lower() == b"bearer" else b""
        if credential and len(credential) <= MAX_CREDENTIAL_CHARS:
            shown.add(credential)
    return shown


def _is_ours(credential: bytes) -> bool:
    return credential.startswith(SECRET_PREFIX.encode())


def _user(headers: Headers) -> str | None:
    """The user an admin asks for. A header that names none sees nothing, rather than everything."""
    values = [value for name, value in headers if name.lower() == USER_HEADER]
    if not values:
        return None
    try:
        user = values[0].decode().strip()
        return Identity(tenant="-", user=user).user if user and len(values) == 1 else NOBODY
    except ValueError:  # neither UTF-8 nor within an identity's bounds
        return NOBODY
