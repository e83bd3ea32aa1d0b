"""Which requests are metered, and what happens to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from posixpath import normpath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote

from .providers import APIS, find_apis
from .providers.free import is_free
from .providers.paths import PathTemplate
from .providers.sockets import find_socket

if TYPE_CHECKING:
    from .providers.base import Api
    from .providers.socket_base import SocketApi
    from .settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MINTS = (
    *("/realtime/client_secrets", "/realtime/sessions", "/realtime/transcription_sessions", "/realtime/calls"),
    *("/realtime/translations/client_secrets", "/auth_tokens"),
)
"""Where OpenAI (openai 3.54, `resources/realtime`) and Gemini (google-genai 3.4, `tokens.py`) make short-lived keys, or
open a call that goes past whoever stands before them.
"""
MAX_CLASS_CHARS = 64
MAX_CLASS_SEGMENTS = 3
MAX_WORD_CHARS = 24
MAX_CACHED_CHARS = 256
_MAX_UNQUOTINGS = 3
_ID = "{id}"
_LOWERED = tuple(
    (PathTemplate(suffix.lower()), api) for api in APIS for suffix in api.suffixes if suffix != suffix.lower()
)
"""Path endings with capitals in them, for paths that are all in small letters."""
_NO_CONTROLS = dict.fromkeys((*range(0x21), 0x7F))


def route_path(scope: Mapping[str, Any]) -> str:
    """The path below the place where the application is mounted, without repeated slashes and dots.

    Servers and frameworks differ in whether `path` begins with `root_path`, and those further on in whether `//` is
    `/` and what `/../` leads to. Here it is decided as they would, so that nobody passes under another path's rules.
    """
    path = _resolved(scope["path"])
    root: str = scope.get("root_path") or ""
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path


def _resolved(path: str) -> str:
    return "/" + normpath(path).lstrip("/") if "//" in path or "/." in path else path


class _Found(NamedTuple):
    apis: tuple[Api, ...]
    plain: str
    """The path as the most lenient of those further on may read it."""


def _find(path: str) -> _Found:
    plain = undisguised(path)
    lower = plain.casefold()
    ending = lower.rstrip("/")
    capitals = [api for template, api in _LOWERED if template.matches(ending)]
    return _Found(tuple(dict.fromkeys((*find_apis(path), *find_apis(plain), *find_apis(lower), *capitals))), plain)


_find_cached = lru_cache(maxsize=1024)(_find)


def undisguised(path: str) -> str:
    """What may become of a path on its way. An application that hands on the decoded path has it decoded once more at
    the other end, and has its `?` and `#` end it there; URL parsers drop line ends and blanks, or take a backslash for
    a slash; some servers drop what stands behind a semicolon.
    """
    for _ in range(_MAX_UNQUOTINGS):
        if "%" not in path:
            break
        path = unquote(path)
    path = path.partition("?")[0].partition("#")[0].translate(_NO_CONTROLS).replace("\\", "/")
    if ";" in path:
        path = "/".join([segment.partition(";")[0] for segment in path.split("/")])
    return _resolved(path)


class Routes:
    """Which requests are metered. Patterns are shell-style (`/internal/*`) and match the whole of a `route_path`.

    Args:
        include: where given, only these paths are metered.
        exclude: these paths are not.
        exempt: these pass even where `unmetered` is `deny`.
        unmetered: what happens to every other request that is not metered.
    """

    def __init__(
        self,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        exempt: Iterable[str] = (),
        unmetered: Literal["allow", "deny"] = "allow",
    ) -> None:
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._exempt = tuple(exempt)
        self._deny = unmetered == "deny"

    @classmethod
    def from_settings(cls, settings: Settings) -> Routes:
        routes = settings.routes
        return cls(include=routes.include, exclude=routes.exclude, exempt=routes.exempt, unmetered=settings.unmetered)

    def apis(self, method: str, path: str) -> tuple[Api, ...]:
        """The APIs a request may belong to; empty if it is not metered. What may become a call further on is one here:
        paths in other cases, escaped twice, with parameters (see `undisguised`), and methods in small letters.

        The APIs that the path belongs to as it stands come first. One that it belongs to in disguise only, and whose
        paths hold the model's name, cannot say what is called: such a request is to be refused.
        """
        if method != "POST" and method.upper() != "POST":
            return ()
        found = _find_cached(path) if len(path) <= MAX_CACHED_CHARS else _find(path)
        return found.apis if found.apis and self._chosen(path, found.plain) else ()

    def socket(self, path: str) -> SocketApi | None:
        """The API a WebSocket belongs to; None if it is not metered. Disguised paths count as those of requests do."""
        plain = undisguised(path)
        found = find_socket(path) or find_socket(plain)
        return found if found is not None and self._chosen(path, plain) else None

    def _chosen(self, path: str, plain: str) -> bool:
        """A path in disguise is excluded only where it is so in every form, and included where it is so in any."""
        if self._exclude and _fits(path, self._exclude) and (plain == path or _fits(plain, self._exclude)):
            return False
        forms = (path, plain, plain.casefold())
        return not self._include or any(_fits(form, self._include) for form in forms)

    def denies(self, method: str, path: str) -> bool:
        """Whether an unmetered request is refused. One in disguise passes only where it may in every form."""
        if not self._deny or method in SAFE_METHODS:
            return False
        return not all(_fits(form, self._exempt) or is_free(form) for form in (path, undisguised(path)))

    def exempts(self, path: str) -> bool:
        """Whether the operator said that a path may pass, in every form of it."""
        return all(_fits(form, self._exempt) for form in (path, undisguised(path)))

    def watches(self, method: str, path: str) -> bool:
        """Whether an unmetered request counts as one, and its answer is looked at: a POST that nobody has said may
        pass, and that is not known to be free.
        """
        if method.upper() != "POST":
            return False
        named = self._exclude + self._exempt
        return not all(_fits(form, named) or is_free(form) for form in (path, undisguised(path)))

    @staticmethod
    def path_class(path: str) -> str:
        """A short label for a path: its first three segments in small letters, with what looks like a name or number
        of something as `{id}`, of both sides of a colon. The metric bounds how many there are.
        """
        segments = [segment for segment in path.split("/", MAX_CLASS_SEGMENTS + 8) if segment][:MAX_CLASS_SEGMENTS]
        words = [":".join([_word(part) for part in segment.split(":", 2)[:2]]) for segment in segments]
        return ("/" + "/".join(words))[:MAX_CLASS_CHARS]


def mints_credentials(path: str) -> bool:
    """Whether a path hands out short-lived keys of the provider, with which calls bypass whoever stands before it."""
    return any(form.rstrip("/").casefold().endswith(MINTS) for form in (path, undisguised(path)))


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _word(text: str) -> str:
    """The text itself where it may stand in a documented route, such as `v1beta1` or `count_tokens`; else `{id}`. Words
    have at most two digits and 24 characters; what is generated mostly has more.
    """
    if len(text) > MAX_WORD_CHARS or not text.isascii():
        return _ID
    letters = text.translate(_NO_JOINTS)
    if not letters.isalnum():
        return _ID
    digits = sum(map(str.isdigit, letters))
    if digits == len(letters) or digits > 2 or (digits and not letters[0].isalpha()):
        return _ID
    return text.lower()


_NO_JOINTS = dict.fromkeys(map(ord, "-_."))
