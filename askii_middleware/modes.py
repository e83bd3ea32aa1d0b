"""Whether a tenant's budgets are enforced: for all, for a stable part of the tenants, or only on paper."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

Mode = Literal["enforce", "shadow", "off"]

_SPAN = 1 << 64


class Modes:
    """Which mode each tenant is in.

    Args:
        enforcement: `enforce`; `shadow`: nothing is refused or changed, and records say what would have happened;
            `off`: nothing is held either.
        rollout: the share of tenants (0 to 1) that are enforced, the others being in shadow. A tenant that is in at
            one share is in at every larger one.
    """

    __slots__ = ("_enforced_below", "enforcement", "rollout")

    def __init__(self, enforcement: Mode, rollout: float) -> None:
        self.enforcement = enforcement
        self.rollout = rollout
        self._enforced_below = _SPAN if rollout >= 1 else int(rollout * _SPAN)

    def of(self, tenant: str) -> Mode:
        """The mode of a tenant's calls."""
        if self.enforcement != "enforce" or self._enforced_below == _SPAN:
            return self.enforcement
        return "enforce" if tenant_share(tenant) < self._enforced_below else "shadow"

    def why(self, tenant: str) -> str:
        """The setting that puts a tenant into its mode, in a few words."""
        if self.enforcement != "enforce" or self._enforced_below == _SPAN:
            return f"enforcement is {self.enforcement}"
        inside = self.of(tenant) == "enforce"
        return f"the tenant is {'inside' if inside else 'outside'} the rollout of {self.rollout:g}"


def tenant_share(tenant: str) -> int:
    """Where a tenant stands between 0 and 2⁶⁴, the same in every process and version."""
    return int.from_bytes(blake2b(tenant.encode(errors="surrogatepass"), digest_size=8).digest())
