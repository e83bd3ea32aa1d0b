"""Named values of a ledger in memory."""

from __future__ import annotations

from typing import NamedTuple

from .base import Item


class _Value(NamedTuple):
    value: bytes
    until_s: float | None


class ItemBook:
    """A kind's version counts its changes, the end of a value's time among them, whether it was seen by then or not."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, _Value]] = {}
        self._versions: dict[str, int] = {}
        """Without the values whose time is up and that still stand in `_kinds`."""

    def put(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None, only_new: bool, now_s: float
    ) -> bool:
        """See `Store.put_item`."""
        self._drop(kind, now_s)
        values = self._kinds.get(kind, {})
        if (only_new and name in values) if value is not None else name not in values:
            return False
        if value is None:
            del values[name]
        else:
            self._kinds.setdefault(kind, {})[name] = _Value(value, until_s)
        self._versions[kind] = self._versions.get(kind, 0) + 1
        return True

    def _drop(self, kind: str, now_s: float) -> None:
        for name in self._over(kind, now_s):
            del self._kinds[kind][name]
            self._versions[kind] += 1

    def _over(self, kind: str, now_s: float) -> list[str]:
        values = self._kinds.get(kind, {})
        return [name for name, (_, until_s) in values.items() if until_s is not None and until_s <= now_s]

    def items(self, kind: str, now_s: float) -> list[Item]:
        """See `Store.items`."""
        values, over = self._kinds.get(kind, {}), self._over(kind, now_s)
        return [Item(name, values[name].value) for name in sorted(values) if name not in over]

    def versions(self, now_s: float) -> dict[str, int]:
        """See `Store.item_versions`."""
        return {kind: version + len(self._over(kind, now_s)) for kind, version in self._versions.items()}
