"""Path templates: which requests belong to an API by the end of their path, and the name that stands in it.

Clients escape names differently (`%3A`, and `%2F` inside ARNs), and servers hand both the path as it was sent
(`raw_path`) and a decoded one to the application. A name is read from the former, where every `/` separates segments,
and a changed name is written into both.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

_HOLE = re.compile(r"\{[a-z]+\}")
_SAFE = "-_.~!$&'()*+,=@"
"""What a segment may hold unescaped besides letters and digits (RFC 3986, section 3.3), but for `:` and `;`: a colon
separates Google's verbs, and both stand in Amazon's names escaped.
"""


class Target(NamedTuple):
    """Where a request goes: the two forms of its path."""

    path: str
    raw_path: bytes | None
    """As it was sent, without the query; None from servers that do not say."""


class PathTemplate:
    """The end of a path, such as `/chat/completions`, or with one name in it: `/model/{model}/converse`."""

    __slots__ = ("_after", "_before", "_named", "ending", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        holes = _HOLE.findall(text)
        if not text.startswith("/") or len(holes) > 1:
            raise ValueError(f"{text!r}: a template begins with / and has one name at most")
        self._named = bool(holes)
        self._before, _, self._after = text.partition(holes[0]) if holes else (text, "", "")
        self.ending = self._after if holes else self._before
        """What a path has to end in, at the least."""

    @property
    def named(self) -> bool:
        """There is a name in it."""
        return self._named

    def matches(self, path: str) -> bool:
        """Whether a decoded path, without a final slash, ends like this. A name may have decoded slashes in it."""
        if not self._named:
            return path.endswith(self._before)
        if not path.endswith(self._after):
            return False
        head = path[: len(path) - len(self._after)]
        at = head.rfind(self._before)
        return at >= 0 and at + len(self._before) < len(head)

    def name(self, target: Target) -> str | None:
        """The name in a path that matches; None where there is none to be read."""
        span = self._span(target)
        if span is None:
            return None
        where, start, end = span
        return unquote(where[start:end]) if target.raw_path is not None else where[start:end]

    def renamed(self, target: Target, name: str) -> Target:
        """The same path with another name in it. Raises ValueError for a path without one."""
        span = self._span(target)
        if span is None:
            raise ValueError(f"{target.path!r} has no name in the place where {self.text} has one")
        sent, start, end = span
        new = sent[:start] + quote(name, safe=_SAFE) + sent[end:]
        if target.raw_path is None:
            return Target(sent[:start] + name + sent[end:], None)
        return Target(unquote(new), new.encode("ascii"))

    def _span(self, target: Target) -> tuple[str, int, int] | None:
        """The path as it was sent (decoded, where only that is known), and where in it the name stands."""
        if not self._named:
            return None
        path = target.path if target.raw_path is None else target.raw_path.decode("latin-1")
        end = len(path.rstrip("/")) - len(self._after)
        if end < 0 or path[end:].rstrip("/") != self._after:
            return None
        start = path.rfind(self._before, 0, end) + len(self._before)
        if start < len(self._before) or start >= end:
            return None
        # As it is sent, a name is one segment; decoded, its own slashes show.
        return None if target.raw_path is not None and "/" in path[start:end] else (path, start, end)
