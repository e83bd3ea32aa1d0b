"""Which requests are metered, and what happens to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from posixpath import normpath
from typing import TYPE_CHECKING, Any, Literal

from .providers import find_apis

if TYPE_CHECKING:
    from .providers.base import Api
    from .settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_CLASS_CHARS = 64


def route_path(scope: Mapping[str, Any]) -> str:
    """The path below the place where the application is mounted, without repeated slashes and dots.

    Servers and frameworks differ in whether `path` begins with `root_path`, and those further on in whether `//` is
    `/` and what `/../` leads to. Here it is decided as they would, so that nobody passes under another path's rules.
    """
    path: str = scope["path"]
    if "//" in path or "/." in path:
        path = "/" + normpath(path).lstrip("/")
    root: str = scope.get("root_path") or ""
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path


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
        """The APIs a request may belong to; empty if it is not metered. Some servers further on ignore the case of
        paths or drop what stands behind a semicolon, and some clients write methods in capitals or not: what may
        become a call there is one here.
        """
        if method != "POST" and method.upper() != "POST":
            return ()
        plain = "/".join([segment.partition(";")[0] for segment in path.split("/")]) if ";" in path else path
        found = find_apis(plain)
        if not plain.islower():
            found += find_apis(plain.lower())
        return found if found and self._chosen(path) else ()

    def _chosen(self, path: str) -> bool:
        if self._exclude and any(fnmatchcase(path, pattern) for pattern in self._exclude):
            return False
        return not self._include or any(fnmatchcase(path, pattern) for pattern in self._include)

    def denies(self, method: str, path: str) -> bool:
        """Whether an unmetered request is refused."""
        if not self._deny or method in SAFE_METHODS:
            return False
        return not any(fnmatchcase(path, pattern) for pattern in self._exempt)

    @staticmethod
    def path_class(path: str) -> str:
        """A short label for a path: its first segment. The metric bounds how many there are."""
        return "/" + path.lstrip("/").partition("/")[0][:MAX_CLASS_CHARS]
