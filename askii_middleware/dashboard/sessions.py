"""Sessions of people who showed the admin token: signed, so that every worker knows them and none keeps them.

A session is `expires.nonce.signature`. The key of the signature comes from the admin token: a changed token ends every
session. What a form has to bring back to be believed is signed with the same key and bound to its session.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Final, NamedTuple

MAX_SESSION_CHARS: Final = 200
_KEY_FOR: Final = b"askii dashboard, sessions, 1"


class Session(NamedTuple):
    """Somebody who is signed in."""

    value: str
    """What the cookie says."""
    csrf: str
    """What the forms of this session say."""


class Sessions:
    """Opens sessions and recognises them.

    Args:
        admin_token: what one has to show.
        session_s: for how long a session lasts.
        clock: Unix seconds.
    """

    def __init__(self, admin_token: str, *, session_s: float, clock: Callable[[], float]) -> None:
        self.session_s = session_s
        self._token = sha256(admin_token.encode()).digest()
        self._key = hmac.digest(self._token, _KEY_FOR, "sha256")
        self._clock = clock

    def begin(self, token: str) -> Session | None:
        """A new session for whoever shows the admin token. Takes the same time whatever is shown."""
        shown = sha256(token.encode("utf-8", "surrogatepass")).digest()
        if not hmac.compare_digest(shown, self._token):
            return None
        body = f"{int(self._clock() + self.session_s)}.{secrets.token_urlsafe(32)}"
        return self._session(f"{body}.{self._signed(body)}")

    def find(self, value: str) -> Session | None:
        """The session of a cookie, unless it is over or none of ours."""
        body, _, signature = value.rpartition(".")
        if len(value) > MAX_SESSION_CHARS or not value.isascii():
            return None
        if not hmac.compare_digest(signature, self._signed(body)):
            return None
        # A shorter setting shortens sessions that began under a longer one.
        left_s = int(body.partition(".")[0]) - self._clock()
        return self._session(value) if 0 < left_s <= self.session_s + 1 else None

    def _session(self, value: str) -> Session:
        return Session(value, self._signed(f"form|{value}"))

    def _signed(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256").hex()


def same(shown: str, expected: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), expected.encode())
