"""Where a gateway's requests go and what their headers become on the way. Pure: no I/O, no clock.

**Paths.** An upstream's url ends in the version segment of its API (`https://host/v1`) or has none. The client's path
is appended to it byte for byte; only where the url ends in a version segment (`v1`, `v1beta`, ...) and the client's
path begins with the same segments, the longest such run is written once:

    https://host/v1         + /v1/chat/completions         = https://host/v1/chat/completions
    https://host/v1         + /chat/completions            = https://host/v1/chat/completions
    https://host            + /v1/chat/completions         = https://host/v1/chat/completions
    https://host/openai/v1  + /v1/chat/completions         = https://host/openai/v1/chat/completions
    https://host/openai/v1  + /openai/v1/chat/completions  = https://host/openai/v1/chat/completions
    https://host/v1         + /v1beta/models               = https://host/v1/v1beta/models

Paths with `.` or `..` segments, encoded or not, are refused: an upstream that resolves them would leave its prefix, our
key in hand.

**Credentials.** Where the upstream has a key of its own, every carrier of credentials the client sent is removed,
whatever it holds. Where it has none, the client's pass, except a key of this gateway, which never leaves it.

**Models.** The first upstream with a pattern that matches (whole name, any case) takes the call; else the first without
patterns. A request that names no model goes to the only upstream, else to the first without patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from types import MappingProxyType
from urllib.parse import urlsplit

from .errors import ConfigurationError

RawHeaders = Iterable[tuple[bytes, bytes]]

CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
OWN_KEY_PREFIX = b"sk-askii-"
_CARRIERS = {"anthropic": "x-api-key", "azure": "api-key", "gemini": "x-goog-api-key", "google": "x-goog-api-key"}

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, section 7.6.1, and what older senders use: these speak about one connection only."""
_REWRITTEN = frozenset({b"host", b"content-length", b"accept-encoding", b"expect"})
"""Set anew for the upstream's connection; `expect` has been answered by the server in front."""
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close"})
_VERSION = re.compile(r"v\d+(?:(?:alpha|beta)\d*)?")
_MEMO_ENTRIES = 1024
_MEMO_CHARS = 256


class BadTargetError(ValueError):
    """The request's path cannot be forwarded; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One `[upstreams.NAME]`.

    Attributes:
        name: how messages call it.
        url: such as `https://host/v1`; no user, query or fragment.
        api_key: put in the place of the client's credentials; None leaves those in.
        models: patterns such as `gpt-*`; none: every model.
        provider: `openai`, `anthropic`, `azure`, `google`, ...; decides which header carries the key.
        auth_header: another header for the key. `authorization` gets `Bearer`, every other the bare key.
        headers: sent with every request, instead of the client's of the same name.
    """

    name: str
    url: str
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    provider: str = "openai"
    auth_header: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)


class Route:
    """An upstream, compiled. Raises ConfigurationError for what could never work."""

    __slots__ = ("_base", "_dropped", "_forwards_credentials", "_overlaps", "_pattern", "_sent", "name")

    def __init__(self, upstream: Upstream, *, accept_encoding: str | None = "identity") -> None:
        self.name = upstream.name
        where = f"upstreams.{upstream.name}"
        self._base, self._overlaps = _compile_url(where, upstream.url)
        if any(not pattern for pattern in upstream.models):
            raise ConfigurationError(f"{where}.models has an empty pattern; leave models out to serve every model")
        self._pattern = re.compile("|".join(translate(p.lower()) for p in upstream.models)) if upstream.models else None

        sent = {name.lower(): value for name, value in upstream.headers.items()}
        if accept_encoding is not None:
            sent.setdefault("accept-encoding", accept_encoding)
        dropped = (_HOP_BY_HOP | _REWRITTEN) - ({b"accept-encoding"} if accept_encoding is None else set())
        if upstream.api_key is not None:
            carrier = (upstream.auth_header or _CARRIERS.get(upstream.provider, "authorization")).lower()
            sent[carrier] = f"Bearer {upstream.api_key}" if carrier == "authorization" else upstream.api_key
            dropped |= CREDENTIALS
        for name, value in sent.items():
            if not name or not (name + value).isascii() or not (name + value).isprintable() or " " in name:
                raise ConfigurationError(f"{where}: the header {name!r} must be printable ASCII")
        self._sent = tuple(sent.items())
        self._dropped = dropped | {name.encode() for name in sent}
        self._forwards_credentials = upstream.api_key is None

    @property
    def takes_all(self) -> bool:
        """It has no patterns."""
        return self._pattern is None

    @property
    def forwards_credentials(self) -> bool:
        """It has no key of its own: the client's goes on."""
        return self._forwards_credentials

    def serves(self, model: str) -> bool:
        """Whether one of its patterns matches `model`, which is in lower case."""
        return self._pattern is not None and self._pattern.match(model) is not None

    def target(self, raw_path: bytes, query: bytes) -> str:
        """The address of a request, by the rule above. Raises BadTargetError."""
        path = _text_of_target(raw_path)
        if not path.startswith("/"):
            raise BadTargetError("the request target must be a path")
        if "." in path or "%2e" in path or "%2E" in path:
            _refuse_dot_segments(path)
        for overlap in self._overlaps:
            if path.startswith(overlap) and path[len(overlap) : len(overlap) + 1] in {"", "/"}:
                path = path[len(overlap) :]
                break
        return f"{self._base}{path}?{_text_of_target(query)}" if query else self._base + path

    def request_headers(self, raw: RawHeaders) -> list[tuple[str, str]]:
        """The client's headers as the upstream gets them: ours added, hop-by-hop and rewritten ones left out."""
        dropped = self._dropped
        if named := named_by_connection(raw):
            dropped |= named
        try:
            headers = [(name.decode(), value.decode()) for name, value in raw if name not in dropped]
        except UnicodeDecodeError:
            headers = [(_text(name), _text(value)) for name, value in raw if name not in dropped]
        if self._forwards_credentials:
            own = OWN_KEY_PREFIX.decode()
            headers = [(n, v) for n, v in headers if own not in v or n.encode() not in CREDENTIALS]
        headers.extend(self._sent)
        return headers


class Router:
    """Picks the route of a model. Answers are remembered, bounded, because models come from clients."""

    __slots__ = ("_memo", "_without_model", "routes")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        if not self.routes:
            raise ConfigurationError("a gateway needs at least one upstream: --upstream URL or [upstreams.NAME]")
        names = [route.name for route in self.routes]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"two upstreams have the same name: {', '.join(sorted(names))}")
        takers = [route for route in self.routes if route.takes_all]
        self._without_model = self.routes[0] if len(self.routes) == 1 else next(iter(takers), None)
        self._memo: dict[str, Route | None] = {}

    @property
    def needs_model(self) -> bool:
        """Whether the model decides anything."""
        return len(self.routes) > 1 or not self.routes[0].takes_all

    def pick(self, model: str | None) -> Route | None:
        """The route for `model`; None where nothing serves it."""
        if model is None or not self.needs_model:
            return self._without_model
        try:
            return self._memo[model]
        except KeyError:
            route = self._search(model.lower())
            if len(self._memo) < _MEMO_ENTRIES and len(model) <= _MEMO_CHARS:
                self._memo[model] = route
            return route

    def _search(self, model: str) -> Route | None:
        for route in self.routes:
            if route.serves(model):
                return route
        return next((route for route in self.routes if route.takes_all), None)


def response_headers(raw: RawHeaders, *, keep_length: bool) -> list[tuple[bytes, bytes]]:
    """The upstream's headers as the client gets them, names in lower case. `keep_length` is False for statuses that
    have no body, where a length would only promise one.
    """
    lowered = [(name.lower(), value) for name, value in raw]
    dropped = _HOP_BY_HOP | named_by_connection(lowered)
    if not keep_length:
        dropped |= {b"content-length"}
    return [pair for pair in lowered if pair[0] not in dropped]


def named_by_connection(raw: RawHeaders) -> frozenset[bytes]:
    """Header names that a `connection` header declares to be about this connection only."""
    named: frozenset[bytes] = frozenset()
    for name, value in raw:
        if name == b"connection" and value not in _PLAIN_CONNECTION:
            named |= {token.strip() for token in value.lower().split(b",")}
    return named


def _compile_url(where: str, url: str) -> tuple[str, tuple[str, ...]]:
    """The url without a trailing slash, and the beginnings of a client's path that repeat its end, longest first."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError(f"{where}.url must look like https://host/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{where}.url must not carry credentials: use api_key")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{where}.url must not have a query or fragment")
    path = parts.path.rstrip("/")
    segments = path.split("/")[1:]
    overlaps: tuple[str, ...] = ()
    if segments and _VERSION.fullmatch(segments[-1]):
        overlaps = tuple("/" + "/".join(segments[start:]) for start in range(len(segments)))
    return f"{parts.scheme}://{parts.netloc}{path}", overlaps


def _refuse_dot_segments(path: str) -> None:
    """Also segments seen only by an upstream that decodes before it splits, takes a backslash for a slash, or cuts off
    what follows a semicolon.
    """
    plain = path.lower().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace("%3b", ";")
    if any(segment.partition(";")[0] in (".", "..") for segment in plain.replace("\\", "/").split("/")):
        raise BadTargetError("the path must not have '.' or '..' segments")


def _text_of_target(raw: bytes) -> str:
    """Bytes of a request target as text. What may not stand in one (`#`, bytes above 127) is percent-encoded."""
    if raw.isascii() and b"#" not in raw:
        return raw.decode("ascii")
    return "".join(f"%{byte:02X}" if byte > 127 or byte == 0x23 else chr(byte) for byte in raw)


def _text(raw: bytes) -> str:
    """The client library writes header text as UTF-8; other bytes, which nothing here sends, are read as Latin-1."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
