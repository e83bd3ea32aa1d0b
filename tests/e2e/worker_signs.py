"""What a test and the application in its workers both know."""

from __future__ import annotations

import contextlib
from pathlib import Path

USED = 37
"""Tokens of output of each answer."""


def connected(pid: int | str) -> list[str]:
    """Inodes of a process's connected sockets: by them the kernel knows a socket in every process."""
    inodes = set()
    for line in [*_table("tcp"), *_table("tcp6")]:
        fields = line.split()
        if fields[3] == "01":
            inodes.add(fields[9])
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # what lists them is among them
            found.append(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    return sorted(inodes.intersection(found))


def _table(name: str) -> list[str]:
    return Path(f"/proc/self/net/{name}").read_text("ascii").splitlines()[1:]
