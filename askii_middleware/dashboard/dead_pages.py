"""Dead letters: records that a sink has rejected for good, and another try for them."""

from __future__ import annotations

from starlette.responses import Response

from ..delivery_age import TOO_OLD
from .visits import PageError, Visit

SHOWN = 100


async def listed(visit: Visit) -> Response:
    """What each sink has rejected, the longest ago first."""
    tracker = visit.tracker
    await tracker.ready()
    pending = await tracker.store.pending()
    letters = {sink: await tracker.store.dead_letters(sink, SHOWN + 1) for sink in sorted(pending)}
    told = visit.asked("retried", 20)
    return visit.page(
        "dead_letters.html",
        title="Dead letters",
        sinks=[
            {
                "name": sink,
                "pending": pending[sink],
                "letters": found[:SHOWN],
                "more": len(found) > SHOWN,
                "old": sum(letter.reason.startswith(TOO_OLD) for letter in found),
            }
            for sink, found in letters.items()
        ],
        shown=SHOWN,
        retried=int(told) if told.isascii() and told.isdigit() else None,
    )


async def retry(visit: Visit) -> Response:
    """Make a sink's dead letters due again."""
    sink = visit.field("sink", 256)
    await visit.tracker.ready()
    if sink not in await visit.tracker.store.pending():
        raise PageError(404, "No such sink", "No sink of this name has a place in the outbox.")
    return visit.to("/dead-letters", retried=str(await visit.tracker.store.retry_dead(sink)))
