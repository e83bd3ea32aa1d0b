"""How far a budget is used, in one word. Pure."""

from __future__ import annotations

from typing import Literal

from .admission import PPM

Standing = Literal["ok", "caution", "warning", "exceeded"]
"""Below 80 % of the limit; from 80 %, 90 % and 100 % on."""
WORDS: tuple[Standing, ...] = ("ok", "caution", "warning", "exceeded")
"""From the best to the worst."""

_FROM_PPM: tuple[tuple[int, Standing], ...] = ((PPM, "exceeded"), (900_000, "warning"), (800_000, "caution"))


def standing(used_nano_usd: int, limit_nano_usd: int | None) -> Standing:
    """The word for so much of a limit; `ok` without one. A limit of 0 allows nothing, so it is always exceeded."""
    if limit_nano_usd is None:
        return "ok"
    for share_ppm, word in _FROM_PPM:
        if used_nano_usd * PPM >= limit_nano_usd * share_ppm:
            return word
    return "ok"


def share_used(used_nano_usd: int, limit_nano_usd: int | None) -> float:
    """`used / limit`, for people; 0.0 without a limit, and for a limit of 0 fully used."""
    if limit_nano_usd is None:
        return 0.0
    return used_nano_usd / limit_nano_usd if limit_nano_usd else 1.0
