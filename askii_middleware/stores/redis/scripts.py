"""The Lua scripts that are this store's operations, one file each, put together from fragments where they include them.

A line `-- include: NAME.lua` stands for that file, once for a script.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

_INCLUDE = re.compile(r"^-- include: ([a-z_]+\.lua)$", re.MULTILINE)


class Script(NamedTuple):
    """A script and the digest by which a server knows it."""

    name: str
    source: bytes
    digest: str
    writes: bool


@cache
def script(name: str) -> Script:
    """By file name without `.lua`. Raises FileNotFoundError."""
    source = _assembled(f"{name}.lua", set()).encode()
    writes = not source.startswith(b"#!lua flags=no-writes\n")
    return Script(name, source, sha1(source, usedforsecurity=False).hexdigest(), writes)


def _assembled(name: str, known: set[str]) -> str:
    if name in known:
        return ""
    known.add(name)
    text = files(__package__).joinpath("lua", name).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: _assembled(found[1], known), text)
