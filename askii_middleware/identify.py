"""From an ASGI scope to an identity: API keys of ours, verified JWTs, `scope["state"]`, headers of trusted proxies, or
the application's own callable, in the configured order.

A key of ours is judged before any source is asked: one that fails ends the search, or a revoked key could live on
behind a forged header or the default tenant. Every failure is a value with a clear message; nothing a client sends
raises.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from inspect import isawaitable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import msgspec

from .errors import ConfigurationError
from .identity import MAX_VALUE_CHARS, Identity
from .keys import SECRET_PREFIX, KeyDirectory, KeyProblem
from .stores.base import KeyRow

if TYPE_CHECKING:
    from .jwt_tokens import JwtVerifier
    from .key_ring import KeyRing
    from .settings import Settings

CARRIERS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))
_MARK = SECRET_PREFIX.encode()
_FIELDS = frozenset(("tenant", "key", "user", "team", "end_user", "tags", "models"))
_STATE_FIELDS = (("user", "user_id"), ("team", "team_id"), ("end_user", "end_user_id"), ("tags", "tags"))

_STATE_OTHERS = frozenset(theirs for _, theirs in _STATE_FIELDS)


class IdentityFailure(msgspec.Struct, frozen=True):
    """Why a request has no identity. `message` is fit for the client; `status` is the refusal's."""

    kind: Literal["missing", "unknown", "revoked", "expired", "ambiguous", "malformed", "invalid", "refused"]
    message: str
    status: int = 401


Answer = Identity | IdentityFailure | None
IdentifyCallable = Callable[[Any], Any]
"""Gets the ASGI scope; returns, or resolves to, a tenant, an Identity, a table of its fields, an IdentityFailure, or
None for "not found".
"""
_Read = Callable[[Mapping[str, Any]], Answer]
_AsyncRead = Callable[[Mapping[str, Any]], Awaitable[Answer]]

MISSING = IdentityFailure("missing", f"no identity: send an API key, as in 'Authorization: Bearer {SECRET_PREFIX}…'")
AMBIGUOUS = IdentityFailure("ambiguous", "the request carries several different API keys: send one")
MALFORMED = IdentityFailure(
    "malformed", "send the API key alone, as 'Authorization: Bearer KEY', x-api-key, api-key or x-goog-api-key"
)
_KEY_FAILURES = {
    KeyProblem.UNKNOWN: IdentityFailure("unknown", "this API key is unknown"),
    KeyProblem.REVOKED: IdentityFailure("revoked", "this API key is revoked"),
    KeyProblem.EXPIRED: IdentityFailure("expired", "this API key has expired"),
}


class Identifier:
    """Decides who makes a request.

    Args:
        sources: in order, `key`, `jwt`, `state`, `header:NAME` or a callable; the first that finds somebody wins.
        keys: needed by the source `key`.
        jwt: needed by the source `jwt`.
        trusted_proxies: networks whose peers may set the headers of `header:NAME`.
        default_tenant: pays where nothing is found; None: such a request fails.
        state_attribute: the name under which `state` carries the tenant.
        admit: may turn an identity that was found into a failure, for instance of a suspended tenant.
    """

    def __init__(
        self,
        sources: Iterable[str | IdentifyCallable] = ("key",),
        *,
        keys: KeyDirectory | None = None,
        jwt: JwtVerifier | None = None,
        trusted_proxies: Iterable[str | IPv4Network | IPv6Network] = (),
        default_tenant: str | None = None,
        state_attribute: str = "tenant_id",
        admit: Callable[[Identity], IdentityFailure | None] | None = None,
    ) -> None:
        sources = tuple(sources)
        if "key" in sources and keys is None:
            raise ConfigurationError('the identity source "key" needs a key directory')
        self._keys = keys if "key" in sources else None
        self._admit = admit
        trusts = _trust(trusted_proxies)
        self._sources: list[tuple[_Read | None, _AsyncRead | None]] = []
        for source in sources:
            if not isinstance(source, str):
                self._sources.append((None, _callable_source(source)))
            elif source == "key":
                self._sources.append((None, None))
            elif source == "state":
                self._sources.append((_state_source(state_attribute), None))
            elif source == "jwt" and jwt is not None:
                self._sources.append((_jwt_source(jwt), None))
            elif source.startswith("header:") and len(source) > len("header:"):
                self._sources.append((_header_source(source.partition(":")[2], trusts), None))
            else:
                raise ConfigurationError(
                    f'identity source {source!r} is none of "key", "jwt" (with its table), "state", "header:NAME"'
                )
        self._otherwise: Identity | IdentityFailure = MISSING
        if default_tenant is not None:
            self._otherwise = _identity("default", {"tenant": default_tenant})
            if isinstance(self._otherwise, IdentityFailure):
                raise ConfigurationError(f"default_tenant: {self._otherwise.message}")

    @classmethod
    def from_settings(
        cls, settings: Settings, keys: KeyDirectory | None = None, *, clock: Callable[[], float] = time.time
    ) -> Identifier:
        """As configured. Without `keys` only those declared in the settings are known."""
        identity = settings.identity
        verifier = None
        if identity.jwt is not None:
            from .jwt_tokens import JwtVerifier  # noqa: PLC0415 - an extra

            verifier = JwtVerifier.from_settings(identity.jwt, clock=clock)
        return cls(
            identity.sources,
            keys=keys or KeyDirectory(settings.keys, clock=clock),
            jwt=verifier,
            trusted_proxies=identity.trusted_proxies,
            default_tenant=settings.default_tenant,
            state_attribute=identity.state_attribute,
        )

    async def identify(self, scope: Mapping[str, Any]) -> Identity | IdentityFailure:
        """Who makes the request, or why nobody does. Raises StoreError if a key cannot be looked up now."""
        holder: Answer = None
        if self._keys is not None:
            secret = presented_secret(scope["headers"])
            if secret is not None:
                if isinstance(secret, IdentityFailure):
                    return secret
                row = self._keys.find_cached(secret) or await self._keys.find(secret)
                holder = _KEY_FAILURES[row] if isinstance(row, KeyProblem) else _holder(row)
                if isinstance(holder, IdentityFailure):
                    return holder
        found: Answer = None
        for read, ask in self._sources:
            if read is not None:
                found = read(scope)
            elif ask is not None:
                found = await ask(scope)
            else:
                found = holder
            if found is not None:
                break
        answer = self._otherwise if found is None else found
        if self._admit is not None and isinstance(answer, Identity):
            return self._admit(answer) or answer
        return answer


def key_directory(settings: Settings, keys: KeyRing) -> KeyDirectory:
    """The keys of a tracker, and those that these settings declare besides: one set for all that identify callers and
    for those who list and change keys. Raises ConfigurationError.
    """
    keys.directory.declare(settings.keys)
    return keys.directory


def presented_secret(headers: Iterable[tuple[bytes, bytes]]) -> str | IdentityFailure | None:
    """The key of ours that the headers carry. Credentials of other makers are none of our business: None."""
    found: bytes | None = None
    for name, value in headers:
        if (carrier := name.lower()) not in CARRIERS or _MARK not in value:
            continue
        words = value.split()
        if not [word for word in words if word.startswith(_MARK)]:
            continue
        if carrier == b"authorization" and words.pop(0).lower() != b"bearer":
            return MALFORMED
        if len(words) != 1:
            return MALFORMED
        if found is not None and found != words[0]:
            return AMBIGUOUS
        found = words[0]
    return None if found is None else found.decode("latin-1")


def late_tenant(scope: Mapping[str, Any], attribute: str = "tenant_id") -> str | None:
    """The tenant that `scope["state"]` carries now. Asked after the application ran, it tells a dependency that set it
    too late for the budget check.
    """
    tenant = _state_value(scope, attribute)
    try:
        return _text(attribute, tenant) or None
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _holder(row: KeyRow) -> Identity | IdentityFailure:
    return _identity(
        "key",
        {
            "tenant": row.tenant,
            "key": row.id,
            "user": row.user,
            "team": row.team,
            "tags": row.tags,
            "models": row.models,
        },
    )


def _identity(source: str, values: Mapping[str, Any]) -> Identity | IdentityFailure:
    try:
        read: dict[str, Any] = {
            name: _texts(name, value) if name in ("tags", "models") else _text(name, value)
            for name, value in values.items()
        }
        return Identity(source=source, **read)
    except ValueError as error:
        return IdentityFailure("invalid", f"the identity from {source} cannot be used: {error}")


@lru_cache(maxsize=4096)
def _tenant_alone(source: str, tenant: str) -> Identity | IdentityFailure:
    return _identity(source, {"tenant": tenant})


def _text(name: str, value: object) -> str | None:
    """Text within an identity's bounds; ids are often integers or UUIDs."""
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        value = str(value)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_VALUE_CHARS or "\0" in value):
        raise ValueError(f"{name} must be text of at most {MAX_VALUE_CHARS} characters without NUL")
    return value


def _texts(name: str, values: object) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, list | tuple | set | frozenset) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name} must be a list of texts")
    return tuple(values)


# Sources -------------------------------------------------------------------------------------------------------------


def _state_value(scope: Mapping[str, Any], attribute: str) -> Any:
    state = scope.get("state")
    return state.get(attribute) if isinstance(state, Mapping) else getattr(state, attribute, None)


def _state_source(attribute: str) -> _Read:
    def read(scope: Mapping[str, Any]) -> Answer:
        state = scope.get("state")
        if type(state) is dict and _STATE_OTHERS.isdisjoint(state) and type(state.get(attribute)) is str:
            return _tenant_alone("state", state[attribute]) if state[attribute] else None
        tenant = _state_value(scope, attribute)
        if tenant is None or tenant == "":
            return None
        values = {name: _state_value(scope, theirs) for name, theirs in _STATE_FIELDS}
        return _identity("state", {"tenant": tenant, **values})

    return read


def _header_source(name: str, trusts: Callable[[str], bool]) -> _Read:
    wanted = name.lower().encode("ascii")

    def read(scope: Mapping[str, Any]) -> Answer:
        client = scope.get("client")
        if not client or not trusts(client[0]):
            return None
        values = [value for header, value in scope["headers"] if header.lower() == wanted]
        if len(values) > 1:
            return IdentityFailure("ambiguous", f"the header {name} was sent more than once")
        try:
            tenant = values[0].decode().strip() if values else ""
        except UnicodeDecodeError:
            return IdentityFailure("invalid", f"the header {name} is not UTF-8 text")
        return _tenant_alone("header", tenant) if tenant else None

    return read


def _trust(networks: Iterable[str | IPv4Network | IPv6Network]) -> Callable[[str], bool]:
    try:
        trusted = tuple(ip_network(network) for network in networks)
    except ValueError as error:
        raise ConfigurationError(f"trusted_proxies: {error}") from None

    @lru_cache(maxsize=4096)
    def trusts(host: str) -> bool:
        try:
            peer = ip_address(host.partition("%")[0])
        except ValueError:
            return False  # a name or a socket's path is nobody's address
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in trusted)

    return trusts


def _jwt_source(verifier: JwtVerifier) -> _Read:
    def read(scope: Mapping[str, Any]) -> Answer:
        bearers = {value for name, value in scope["headers"] if name.lower() == b"authorization"}
        tokens = [words[1] for value in bearers if len(words := value.split()) == 2 and words[0].lower() == b"bearer"]
        if len(tokens) > 1:
            return IdentityFailure("ambiguous", "the request carries several different bearer tokens: send one")
        claims = verifier.verify(tokens[0]) if tokens else None
        if isinstance(claims, str):
            return IdentityFailure("refused", claims)
        return None if claims is None else _identity("jwt", claims)

    return read


def _callable_source(function: IdentifyCallable) -> _AsyncRead:
    async def ask(scope: Mapping[str, Any]) -> Answer:
        given = function(scope)
        if isawaitable(given):
            given = await given
        if given is None or given == "":
            return None
        if isinstance(given, str | int | UUID):
            return _identity("callable", {"tenant": given})
        if isinstance(given, Identity | IdentityFailure):
            return given
        if isinstance(given, Mapping):
            if unknown := set(given) - _FIELDS:
                raise ConfigurationError(
                    f"the identify callable gave {', '.join(map(repr, sorted(map(str, unknown))))}; "
                    f"an identity has {', '.join(sorted(_FIELDS))}"
                )
            return None if given.get("tenant") in (None, "") else _identity("callable", given)
        raise ConfigurationError(
            f"the identify callable returned {type(given).__name__}; expected a tenant, an Identity, a table or None"
        )

    return ask
