"""Events of ours and of Lago's as lines that can be compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .auditing import Line

if TYPE_CHECKING:
    from .lago_api import LagoApi
    from .lago_events import Event


class _Body(msgspec.Struct):
    transaction_id: str
    external_subscription_id: str
    code: str
    properties: dict[str, Any]


_decode = msgspec.json.Decoder(_Body).decode


def sent_lines(events: Iterable[Event], metrics: Mapping[str, str]) -> list[Line]:
    """Events as they are sent. `metrics` are the properties that are summed, by code."""
    return [_line(_decode(event.body), metrics) for event in events]


async def stored_lines(
    api: LagoApi, metrics: Mapping[str, str], subscription: str | None, from_s: float | None, to_s: float | None
) -> AsyncIterator[Line]:
    """The events Lago has of these metrics. Raises LagoApiError."""
    for code in metrics:
        async for event in api.events(subscription, code, from_s=from_s, to_s=to_s):
            yield _line(event, metrics)


def _line(event: Any, metrics: Mapping[str, str]) -> Line:
    value = event.properties.get(metrics.get(event.code, ""), "")
    return Line(event.external_subscription_id, event.transaction_id, event.code, str(value))
