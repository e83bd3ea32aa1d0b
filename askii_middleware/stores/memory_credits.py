"""Credit in the hands of workers, of a ledger in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from .base import CreditRow
from .rules import scope_of


class _Credit(msgspec.Struct, gc=False):
    granted: int = 0
    used: int = 0


class CreditBook:
    """Invariants: nobody has used more than was granted, and `left` is what all holders together have not used."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        """By counter, where there is any."""
        self._credits: dict[str, dict[str, _Credit]] = {}
        """By counter, then by holder."""

    def granted(self, counter: str, holder: str) -> int:
        credit = self._find(counter, holder)
        return 0 if credit is None else credit.granted

    def left_to(self, counter: str, holder: str) -> int:
        credit = self._find(counter, holder)
        return 0 if credit is None else credit.granted - credit.used

    def _find(self, counter: str, holder: str) -> _Credit | None:
        return self._credits.get(counter, {}).get(holder)

    def give(self, counter: str, holder: str, nano_usd: int) -> None:
        self._credits.setdefault(counter, {}).setdefault(holder, _Credit()).granted += nano_usd
        self._add(counter, nano_usd)

    def take(self, counter: str, holder: str, nano_usd: int) -> None:
        """Take back so much, or what there is."""
        credit = self._find(counter, holder)
        if credit is not None:
            taken = min(nano_usd, credit.granted - credit.used)
            credit.granted -= taken
            self._add(counter, -taken)

    def use(self, counters: Iterable[tuple[str, int]], holder: str, nano_usd: int) -> None:
        """Use up as much on each counter, or what there is."""
        for counter, _ in counters:
            credit = self._find(counter, holder)
            if credit is not None:
                used = max(min(nano_usd, credit.granted - credit.used), 0)
                credit.used += used
                self._add(counter, -used)

    def _add(self, counter: str, nano_usd: int) -> None:
        left = self.left.get(counter, 0) + nano_usd
        if left:
            self.left[counter] = left
        else:
            self.left.pop(counter, None)

    def forget(self, counter: str) -> None:
        self._credits.pop(counter, None)
        self.left.pop(counter, None)

    def rows(self, is_alive: Callable[[str], bool]) -> list[CreditRow]:
        """See `Store.credits`."""
        return list(self._rows(is_alive))

    def _rows(self, is_alive: Callable[[str], bool]) -> Iterator[CreditRow]:
        for counter in sorted(self.left):
            for holder, credit in sorted(self._credits[counter].items()):
                if credit.granted > credit.used:
                    yield CreditRow(counter, holder, credit.granted, credit.used, is_alive(holder))

    def reclaim(self, scope: str | None, is_alive: Callable[[str], bool]) -> list[CreditRow]:
        """See `Store.reclaim`."""
        taken = [
            row for row in self._rows(is_alive) if not row.alive and (scope is None or scope_of(row.counter) == scope)
        ]
        for row in taken:
            self._add(row.counter, row.used_nano_usd - row.granted_nano_usd)
            del self._credits[row.counter][row.holder]
        return taken
