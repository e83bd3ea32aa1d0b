"""Damaged answers and requests, through the whole middleware: nothing raises out of it, the client receives what the
provider sent, no count or charge is negative, and nothing stays held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askii_middleware import AskiiMiddleware, CostTracker
from askii_middleware.pricing import ModelPrice
from askii_middleware.providers import find_apis
from askii_middleware.records import UsageRecord, decode_record

from .providers.support import NO_CORPUS
from .support.asgi import Answer, Message, Scripted, ask, http_scope, piece, start
from .support.ledgers import Clock, Ledger
from .support.mutations import mutate, split
from .support.recordings import Recording, Request, recordings, request_for

RECORDINGS = [r for r in recordings() if r.entry["method"] == "POST" and not r.is_socket and find_apis(r.path)]
pytestmark = pytest.mark.skipif(not RECORDINGS, reason=NO_CORPUS)
quick = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SEEDS = st.integers(0, 2**32)
DEFERRED = {"openai_responses/json_background_queued_no_usage.json"}
"""Operations that go on: these stay held."""
ENCODED = (b"gzip", b"deflate", b"br", b"zstd", b"x-gzip", b"identity", b"gzip, br")


class Loop:
    """A ledger on an event loop of its own, for tests of many requests each."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        price = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)
        clock = Clock()
        self.tracker = CostTracker(store="memory://", unknown_price="default", default_price=price, clock=clock)
        self.runner.run(self.tracker.start())
        self.book = Ledger(self.tracker, clock)
        self.position = self.held = 0

    def close(self) -> None:
        self.runner.run(self.tracker.stop())
        self.runner.close()

    def ask(self, app: Scripted, request: Request) -> tuple[Answer, list[UsageRecord]]:
        """The answer of the wrapped application, and the records that it brought."""
        # Usage is not asked for on the client's behalf: taking it out again is another matter.
        wrapped = AskiiMiddleware(
            app, tracker=self.tracker, identify=lambda _: "acme", inject_usage=False, default_model="big"
        )
        path, _, query = request.path.partition("?")
        scope = http_scope(path, headers=[(b"content-type", request.content_type.encode())])
        scope["query_string"] = query.encode()
        return self.runner.run(self._ask(wrapped, request.body, scope))

    def newly_held(self) -> int:
        """Nano-USD held since the last look."""
        held = self.runner.run(self.book.totals()).held_nano_usd
        before, self.held = self.held, held
        return held - before

    async def _ask(self, app: AskiiMiddleware, body: bytes, scope: Message) -> tuple[Answer, list[UsageRecord]]:
        answer = await ask(app, body, scope=scope)
        await self.book.idle()
        fresh = await self.tracker.store.records(self.position)
        if fresh:
            self.position = fresh[-1][0]
        return answer, [decode_record(record) for _, record in fresh]


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


def check(records: list[UsageRecord]) -> None:
    for record in records:
        assert record.cost_nano_usd >= 0
        assert all(count >= 0 for count in (getattr(record.usage, name) for name in record.usage.__struct_fields__))
        assert all(charge.quantity >= 0 and charge.nano_usd >= 0 for charge in record.charges)
        assert sum(charge.nano_usd for charge in record.charges) == record.cost_nano_usd


@quick
@given(st.sampled_from(RECORDINGS), SEEDS)
def test_a_damaged_answer_reaches_its_client_as_it_came(loop: Loop, recording: Recording, seed: int) -> None:
    rng = Random(seed)
    body = mutate(rng, recording.wire)
    headers = recording.headers
    if rng.random() < 0.1:  # an encoding that is not the body's
        headers = [*headers, (b"content-encoding", rng.choice(ENCODED))]
    status = rng.choice((recording.entry["http_status"],) * 9 + (500,))
    messages = [piece(part) for part in split(rng, body)]
    app = Scripted([start(*headers, status=status), *messages, piece(b"", more=False)])
    answer, records = loop.ask(app, request_for(recording))
    assert answer.error is None
    assert (answer.status, answer.body, answer.complete) == (status, body, True)
    assert len(records) <= 1
    check(records)
    assert loop.newly_held() == 0 or recording.name in DEFERRED


@quick
@given(st.sampled_from(RECORDINGS), SEEDS)
def test_a_damaged_request_is_refused_or_passed_on(loop: Loop, recording: Recording, seed: int) -> None:
    rng = Random(seed)
    request = request_for(recording)
    damaged = Request(request.path, mutate(rng, request.body), request.content_type)
    app = Scripted([start(*recording.headers, status=200), piece(recording.wire, more=False)])
    answer, records = loop.ask(app, damaged)
    assert answer.error is None
    assert answer.complete
    if app.bodies:
        assert (answer.status, answer.body) == (200, recording.wire)
        check(records)
    else:
        assert 400 <= answer.status < 500, answer.body
        assert records == []
    assert loop.newly_held() == 0 or recording.name in DEFERRED
