"""The static files. They are read once and found by name, so no path can lead anywhere else."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
"""What is served, by the end of its name."""


class Asset(NamedTuple):
    """One file."""

    content: bytes
    content_type: str


class Assets:
    """All files that browsers may ask for. `version` changes with any of them, so that each can be kept for good."""

    def __init__(self) -> None:
        self._files = dict(_found(files(__package__).joinpath("static"), ""))
        told = sha256()
        for name, asset in sorted(self._files.items()):
            told.update(b"%d %s %d " % (len(name), name.encode(), len(asset.content)) + asset.content)
        self.version = told.hexdigest()[:12]

    def find(self, name: str) -> Asset | None:
        """A file by its path below `static`, as it is written there."""
        return self._files.get(name)


def _found(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _found(entry, f"{prefix}{entry.name}/")
            continue
        kind = next((kind for end, kind in TYPES.items() if entry.name.endswith(end)), None)
        if kind is not None:
            found.append((prefix + entry.name, Asset(entry.read_bytes(), kind)))
    return found
