"""JSON Web Tokens as an identity source: HS256 with a shared secret, RS256 with the issuer's public key (RFC 7519).

The algorithm follows from the configured key, never from the token. Verifying costs tens of microseconds, so verified
claims are remembered, by the token's digest, until the token expires.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from .settings_tables import JwtSettings

MAX_TOKEN_BYTES = 16_384
_FAR_S = 1e12


class _Verified(NamedTuple):
    claims: dict[str, Any]
    not_before_s: float
    expires_at_s: float


class JwtVerifier:
    """Verifies tokens. Raises MissingExtraError without the extra `jwt`, ConfigurationError for an unusable key.

    Args:
        key: the shared secret (HS256), or the public key in PEM (RS256).
        algorithm: `HS256` or `RS256`.
        tenant_claim, user_claim: where the token names them; the tenant is required.
        audience, issuer: what `aud` and `iss` must hold; None: they are not looked at.
        leeway_s: how far clocks may differ.
        max_entries: how many verified tokens are remembered.
    """

    def __init__(
        self,
        key: str,
        *,
        algorithm: str,
        tenant_claim: str = "tenant",
        user_claim: str = "sub",
        audience: str | None = None,
        issuer: str | None = None,
        leeway_s: float = 0.0,
        clock: Callable[[], float] = time.time,
        max_entries: int = 10_000,
    ) -> None:
        try:
            import jwt  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtraError("jwt", "the identity source 'jwt'") from None
        if algorithm not in ("HS256", "RS256"):
            raise ConfigurationError(f"identity.jwt: algorithm {algorithm!r} is neither HS256 nor RS256")
        self._jwt = jwt
        try:
            self._key = jwt.get_algorithm_by_name(algorithm).prepare_key(key)
        except (jwt.InvalidKeyError, ValueError, TypeError, NotImplementedError):
            raise ConfigurationError(f"identity.jwt: the key cannot be used for {algorithm}") from None
        self._algorithm = algorithm
        self._tenant_claim = tenant_claim
        self._user_claim = user_claim
        self._audience = audience
        self._issuer = issuer
        self._leeway_s = leeway_s
        self._clock = clock
        self._max_entries = max_entries
        self._verified: dict[bytes, _Verified] = {}

    @classmethod
    def from_settings(cls, settings: JwtSettings, *, clock: Callable[[], float] = time.time) -> JwtVerifier:
        chosen, algorithm = (settings.secret, "HS256") if settings.secret else (settings.public_key, "RS256")
        return cls(
            chosen.get_secret_value() if chosen else "",
            algorithm=algorithm,
            tenant_claim=settings.tenant_claim,
            user_claim=settings.user_claim,
            audience=settings.audience,
            issuer=settings.issuer,
            leeway_s=settings.leeway_s,
            clock=clock,
        )

    def verify(self, token: bytes) -> Mapping[str, Any] | str | None:
        """`tenant` and `user` of a valid token; the reason if its signature is right and it is refused all the same;
        None for a token that somebody else signed.
        """
        if len(token) > MAX_TOKEN_BYTES:
            return None
        digest = sha256(token).digest()
        seen = self._verified.get(digest)
        if seen is None:
            read = self._read(token)
            if not isinstance(read, _Verified):
                return read
            seen = read
            if len(self._verified) >= self._max_entries:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = seen
        now = self._clock()
        if now >= seen.expires_at_s + self._leeway_s:
            self._verified.pop(digest, None)
            return "this token has expired"
        if now < seen.not_before_s - self._leeway_s:
            return "this token is not valid yet"
        return seen.claims

    def _read(self, token: bytes) -> _Verified | str | None:
        jwt = self._jwt
        try:
            # Times are judged by our own clock; their kinds and the other claims here.
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": ["exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": self._audience is not None,
                    "verify_sub": False,
                },
            )
        except (jwt.DecodeError, jwt.InvalidAlgorithmError):
            return None
        except jwt.InvalidTokenError as error:
            return f"this token is refused: {type(error).__name__.removesuffix('Error')}"
        tenant = claims.get(self._tenant_claim)
        if tenant is None or tenant == "":
            return f"this token has no claim {self._tenant_claim!r}"
        times = (claims.get("nbf", 0), claims["exp"])
        if not all(isinstance(at, int | float) and not isinstance(at, bool) and abs(at) < _FAR_S for at in times):
            return "this token's exp or nbf is no time"  # an endless exp (inf, nan) included
        return _Verified({"tenant": tenant, "user": claims.get(self._user_claim)}, *times)
