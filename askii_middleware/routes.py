"""Which paths are metered, and what happens to the others."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_CLASS_CHARS = 64


class Routes:
    """Patterns are shell-style (`/internal/*`) and match the whole path.

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

    def metered(self, path: str) -> bool:
        """Whether a known API under this path is metered."""
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
