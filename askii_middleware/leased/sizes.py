"""How much credit a worker draws for a budget. Pure: estimates and shares, no book-keeping.

Two forces: enough for what calls will want until the next renewal, so that they need no round trip; and little against
what is left, so that credit which lies idle here refuses nobody elsewhere. The second one wins.
"""

from __future__ import annotations

from math import exp

PPM = 1_000_000
FRESH_PPM = 40_000
"""A worker's share of an untouched limit. It falls in proportion to what is left, so the credit itself falls with the
square: at 512 workers all of it together stays below 1 % of the limit once 2 % of it are left."""
FIRST_PPM = 10_000
"""The share asked for where nothing is known yet of what is left."""
RETURN_ABOVE = 2
"""So many times what is wanted may lie here before the surplus goes back."""


class Demand:
    """What calls have wanted of late, forgotten at the pace of the lease. Rates are estimates, hence floats."""

    __slots__ = ("_largest", "_sum", "_updated_s", "_wanted", "_weight_s", "largest_nano_usd", "used_s")

    def __init__(self, now_s: float) -> None:
        self.largest_nano_usd = 0
        """About the largest hold of late."""
        self.used_s = now_s
        """When a call came last."""
        self._updated_s = now_s
        self._wanted = self._largest = 0
        self._sum = self._weight_s = 0.0

    def note(self, hold_nano_usd: int, now_s: float) -> None:
        """A call wants so much, wherever it is admitted."""
        self._wanted += hold_nano_usd
        self._largest = max(self._largest, hold_nano_usd)
        self.used_s = now_s

    def needs(self, now_s: float, lease_s: float) -> int:
        """Nano-USD of holds that calls will want until a renewal comes back."""
        pace_s = lease_s / 2
        passed_s = max(now_s - self._updated_s, 0.0)
        kept = exp(-passed_s / pace_s)
        self._updated_s = now_s
        fresh_s = pace_s * (1 - kept)
        self._sum = self._sum * kept + self._wanted * (fresh_s / passed_s if passed_s else 1.0)
        self._weight_s = self._weight_s * kept + fresh_s
        self.largest_nano_usd = max(self._largest, int(self.largest_nano_usd * kept))
        self._wanted = self._largest = 0
        a_second = self._sum / max(self._weight_s, lease_s / 20)
        # Renewals come every third of a lease; the rest is for their way and for chance.
        return int(a_second * lease_s / 2) + 2 * self.largest_nano_usd


def most(limit_nano_usd: int, left_nano_usd: int, hold_nano_usd: int) -> int:
    """The credit that may lie with one worker while so much of a limit is neither spent nor held. 0 where that is less
    than a call takes: then calls go to the store.
    """
    share = max(left_nano_usd, 0) ** 2 * FRESH_PPM // (limit_nano_usd * PPM)
    return share if share >= max(hold_nano_usd, 1) else 0


def share_ppm(limit_nano_usd: int, left_nano_usd: int) -> int:
    """The same as a share of what is left, for the store to apply to what is left by then."""
    return max(FRESH_PPM * max(left_nano_usd, 0) // limit_nano_usd, 1)
