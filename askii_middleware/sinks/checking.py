"""What a sink can say about its receiver before anything is sent: for `askii check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable


class Finding(NamedTuple):
    """One thing that was looked at."""

    result: Literal["ok", "warning", "failed", "unreachable"]
    """`unreachable`: the receiver gave no answer, so nothing more can be said."""
    detail: str


@runtime_checkable
class Checked(Protocol):
    """A sink that can look at its receiver. `subscriptions` are the external ids of the known tenants, by tenant;
    empty where a tenant has none. Never raises for what the receiver does.
    """

    name: str

    async def check(self, subscriptions: Mapping[str, str]) -> list[Finding]: ...

    async def close(self) -> None: ...
