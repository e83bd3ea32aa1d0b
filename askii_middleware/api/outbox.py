"""What waits for the sinks, and what they refused for good."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from ..delivery_age import DESPITE_AGE
from .operation import Answer, Asked, Body, Limit, NoBody, NoQuery, Operation, Query
from .problems import not_found

COUNTED: Final = 1000
"""Dead letters come with their records: beyond so many they are not counted."""
DESPITE_AGE_S: Final = 3600.0


class SinkAnswer(Answer):
    """A sink's place in the outbox."""

    sink: str
    configured: bool
    """Whether this process delivers to it."""
    pending: int
    dead: int
    """Refused for good; 1,000 stands for at least as many."""
    failures: int
    """How many sends in a row have failed."""
    retry_at: datetime | None


class OutboxAnswer(Answer):
    sinks: tuple[SinkAnswer, ...]


class DeadLetterAnswer(Answer):
    """A record that a sink will never take as it is."""

    call_id: str
    tenant: str
    reason: str
    attempts: int
    first_attempt: datetime
    last_attempt: datetime


class DeadLettersAnswer(Answer):
    """The longest rejected first."""

    sink: str
    dead_letters: tuple[DeadLetterAnswer, ...]


class RetriedAnswer(Answer):
    sink: str
    retried: int


class DeadLettersQuery(Query):
    limit: Limit = 100


class RetryBody(Body):
    """`despite_age`: also send what is too old, because the receiver is known not to have it."""

    despite_age: bool = False


async def get_outbox(asked: Asked[NoQuery, NoBody]) -> OutboxAnswer:
    tracker = asked.desk.tracker
    await tracker.ready()
    now_s, here = tracker.clock(), {sink.name for sink in tracker.sinks}
    rows = []
    for sink, pending in sorted((await tracker.store.pending()).items()):
        places = await tracker.store.places(sink)
        paused = [place.retry_at_s for place in places if place.retry_at_s > now_s]
        rows.append(
            SinkAnswer(
                sink=sink,
                configured=sink in here,
                pending=pending,
                dead=len(await tracker.store.dead_letters(sink, COUNTED)),
                failures=max((place.failures for place in places), default=0),
                retry_at=_time(min(paused)) if paused else None,
            )
        )
    return OutboxAnswer(sinks=tuple(rows))


async def list_dead(asked: Asked[DeadLettersQuery, NoBody]) -> DeadLettersAnswer:
    sink = await _known(asked)
    letters = await asked.desk.tracker.store.dead_letters(sink, asked.query.limit)
    return DeadLettersAnswer(
        sink=sink,
        dead_letters=tuple(
            DeadLetterAnswer(
                call_id=letter.call_id,
                tenant=letter.tenant,
                reason=letter.reason,
                attempts=letter.attempts,
                first_attempt=_time(letter.first_attempt_s),
                last_attempt=_time(letter.last_attempt_s),
            )
            for letter in letters
        ),
    )


async def retry_dead(asked: Asked[NoQuery, RetryBody]) -> RetriedAnswer:
    sink, tracker = await _known(asked), asked.desk.tracker
    if asked.body.despite_age:
        until_s = tracker.clock() + DESPITE_AGE_S
        await tracker.store.put_item(DESPITE_AGE, sink, b"{}", until_s=until_s)
    return RetriedAnswer(sink=sink, retried=await tracker.store.retry_dead(sink))


async def _known(asked: Asked[DeadLettersQuery, NoBody] | Asked[NoQuery, RetryBody]) -> str:
    tracker, sink = asked.desk.tracker, asked.path["sink"]
    await tracker.ready()
    if sink not in await tracker.store.pending():
        raise not_found()
    return sink


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/outbox",
        name="get_outbox",
        summary="How many records wait for each sink, and how many it refused for good.",
        handler=get_outbox,
        answer=OutboxAnswer,
    ),
    Operation(
        method="GET",
        path="/api/billing/outbox/{sink}/dead",
        name="list_dead_letters",
        summary="Records that a sink refused for good.",
        handler=list_dead,
        query=DeadLettersQuery,
        answer=DeadLettersAnswer,
    ),
    Operation(
        method="POST",
        path="/api/billing/outbox/{sink}/retry",
        name="retry_dead_letters",
        summary="Send a sink's dead letters again.",
        handler=retry_dead,
        body=RetryBody,
        answer=RetriedAnswer,
    ),
)
