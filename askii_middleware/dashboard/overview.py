"""The first page: spend today against limits, who and what it goes to, and how delivery goes. Its middle part asks for
itself every two seconds, and is sent only when it has changed.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import Response

from ..gauges import DEAD_LETTERS
from ..records import decode_record
from .standings import lines_of, tightest, today, top_tenants
from .visits import HEADERS, Visit

if TYPE_CHECKING:
    from ..tracker import CostTracker

TOP = 8
LATEST = 10
MAX_SEEN_CHARS = 64


class Outgoing(NamedTuple):
    """How delivery to a sink goes."""

    sink: str
    pending: int
    dead: int
    dead_is_cut: bool


async def page(visit: Visit) -> Response:
    """The overview."""
    values = await _gathered(visit.tracker)
    return visit.page("overview.html", title="Overview", seen=_digest(visit, values), **values)


async def live(visit: Visit) -> Response:
    """Its middle part, where it is not what the browser has already."""
    values = await _gathered(visit.tracker)
    seen = _digest(visit, values)
    if visit.asked("seen", MAX_SEEN_CHARS) == seen:
        return Response(status_code=204, headers=HEADERS)
    return visit.page("live.html", seen=seen, **values)


async def _gathered(tracker: CostTracker) -> dict[str, Any]:
    await tracker.ready()
    spent = await today(tracker, TOP)
    tenants = await top_tenants(tracker, 1, TOP)
    everything, *own = await lines_of(tracker, [{}, *({"tenant": tenant} for tenant, _ in tenants)])
    pending = await tracker.store.pending()
    dead = {sink: len(await tracker.store.dead_letters(sink, DEAD_LETTERS)) for sink in pending}
    return {
        "today": spent,
        "peak": max((hour.cost_nano_usd for hour in spent.hours), default=0),
        "limits": [line for line in everything if line.limit_usd is not None],
        "tenants": [(tenant, sums, tightest(lines)) for (tenant, sums), lines in zip(tenants, own, strict=True)],
        "turned": await tracker.turned.read(),
        "outbox": [Outgoing(sink, count, dead[sink], dead[sink] >= DEAD_LETTERS) for sink, count in pending.items()],
        "calls": [decode_record(record) for _, record in await tracker.store.latest(None, LATEST)],
    }


def _digest(visit: Visit, values: dict[str, Any]) -> str:
    """Changes with everything the live part shows."""
    told = repr((visit.tracker.rates.current(), values))
    return sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]
