"""Named values that operators change at run time."""

from __future__ import annotations

from ..base import Item
from .base import RedisBase
from .wire import Part, text


class RedisItems(RedisBase):
    """Values by kind and name."""

    async def put_item(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None = None, only_new: bool = False
    ) -> bool:
        until = "" if until_s is None else float(until_s)
        args: tuple[Part, ...] = kind, name, until, only_new
        return bool(await self._run("put_item", args if value is None else (*args, value)))

    async def items(self, kind: str) -> list[Item]:
        found = await self._run("items", (kind,))
        return sorted(Item(text(name), value) for name, value in zip(found[::2], found[1::2], strict=True))

    async def item_versions(self) -> dict[str, int]:
        found = await self._run("item_versions")
        return {text(kind): int(version) for kind, version in zip(found[::2], found[1::2], strict=True)}
