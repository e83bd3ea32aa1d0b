"""Who delivers which partitions, pure: the same answer in every store."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .rows import PARTITIONS


def share_of(owner: str, askers: Collection[str]) -> int:
    """How many partitions one of those that ask may have. The shares of all add up to all partitions and differ by 1
    at most; the larger ones go to the first names in the order of their code points.
    """
    each, rest = divmod(PARTITIONS, len(askers))
    return each + (sorted(askers).index(owner) < rest)


def hand_of(owner: str, share: int, holders: Sequence[tuple[str | None, float]], now_s: float) -> list[int]:
    """The partitions an owner has from now on, given each one's last owner and the end of its lease: of its own and,
    after these, of the free ones the first, up to its share.
    """
    own = [n for n, (holder, _) in enumerate(holders) if holder == owner]
    free = [n for n, (holder, until_s) in enumerate(holders) if holder != owner and until_s <= now_s]
    return sorted((own + free)[:share])
