"""How often a webhook counts, whatever breaks off, and which bodies are read at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.lago_memory import CLAIM_S, KIND, REMEMBER_S
from askii_middleware.lago_webhooks import MAX_BODY_BYTES
from askii_middleware.tracker import CostTracker

from .support.asgi import http_scope
from .support.lago_hooks import DEPLETED, OTHER, STARTED, TERMINATED, TOPPED_UP, hooks, post, receiving, suspended
from .support.lago_payloads import signed, webhook
from .support.service import Clock, FaultyStore, both_stores, faulty, make_tracker, url_of

# Replays and crashes --------------------------------------------------------------------------------------------------


@both_stores
@pytest.mark.parametrize("unique", ["f2b0c0de", "another", None], ids=["same key", "another key", "no key"])
async def test_a_replay_is_acknowledged_and_does_nothing(unique: str | None, kind: str, tmp_path: Path) -> None:
    async with receiving(tmp_path, kind) as (tracker, app):
        await post(app, TERMINATED)
        await post(app, STARTED, signed(STARTED, unique="2"))
        assert await post(app, TERMINATED, signed(TERMINATED, unique=unique)) == (200, "replayed")
        assert suspended(tracker, "acme") == [False]


async def test_another_body_under_a_key_that_was_seen_is_a_replay(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        await post(app, TERMINATED)
        assert await post(app, OTHER) == (200, "replayed")
        assert suspended(tracker, "globex") == [False]


async def test_another_process_knows_the_replay(tmp_path: Path) -> None:
    url = url_of("sqlite", tmp_path)
    async with make_tracker(url) as here, make_tracker(url) as there:
        assert await post(hooks(here), TERMINATED) == (200, "done")
        assert await post(hooks(there), TERMINATED) == (200, "replayed")


async def test_what_is_older_than_the_memory_is_not_done_again(tmp_path: Path) -> None:
    clock = Clock()
    async with receiving(tmp_path, clock=clock) as (tracker, app):
        await post(app, DEPLETED, signed(DEPLETED, unique="1"))
        await post(app, TOPPED_UP, signed(TOPPED_UP, unique="2"))
        clock.advance(REMEMBER_S + 1)
        body = webhook("wallet.depleted_ongoing_balance", last_balance_sync_at="2026-01-01T00:00:00Z")
        assert await post(app, body, signed(body, unique="3")) == (200, "done")
        assert await post(app, TOPPED_UP, signed(TOPPED_UP, unique="2")) == (200, "replayed")
        assert suspended(tracker, "acme") == [True]
        names = {item.name for item in await tracker.store.items(KIND)}
        assert names >= {"key 3", "key 1"}  # an empty wallet's time says nothing of its age: kept for good
        assert "key 2" not in names


@both_stores
async def test_an_empty_wallet_is_not_replayed_however_old(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with receiving(tmp_path, kind, clock=clock) as (tracker, app):
        await post(app, DEPLETED, signed(DEPLETED, unique="1"))
        await tracker.resume_tenant("acme")
        clock.advance(REMEMBER_S * 13)
        for unique in ("1", "2", None):
            assert await post(app, DEPLETED, signed(DEPLETED, unique=unique)) == (200, "replayed")
        assert suspended(tracker, "acme") == [False]


async def test_a_wallet_whose_balance_moved_long_ago_is_empty_all_the_same(tmp_path: Path) -> None:
    clock = Clock()
    async with receiving(tmp_path, clock=clock) as (tracker, app):
        clock.advance(REMEMBER_S * 2)
        assert await post(app, DEPLETED) == (200, "done")
        assert suspended(tracker, "acme") == [True]


# Out of order ---------------------------------------------------------------------------------------------------------

EARLY, LATE = "2025-12-31T22:00:00Z", "2026-01-01T00:00:10Z"
ENDED_EARLY = webhook("subscription.terminated", terminated_at=EARLY)
ENDED_LATE = webhook("subscription.terminated", terminated_at=LATE)
STARTED_EARLY = webhook("subscription.started", started_at=EARLY, created_at=EARLY)
EMPTY_LATE = webhook("wallet.depleted_ongoing_balance", last_balance_sync_at=LATE)
PAID_EARLY = webhook("wallet_transaction.updated", settled_at=EARLY, created_at=EARLY)


@both_stores
@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        (STARTED, ENDED_EARLY, False),
        (ENDED_LATE, STARTED_EARLY, True),
        (TOPPED_UP, DEPLETED, False),
        (EMPTY_LATE, PAID_EARLY, True),
    ],
    ids=["start, end", "end, start", "top-up, empty", "empty, top-up"],
)
async def test_the_later_webhook_counts_whichever_comes_last(
    first: bytes, second: bytes, stays: bool, kind: str, tmp_path: Path
) -> None:
    async with receiving(tmp_path, kind) as (tracker, app):
        assert await post(app, first, signed(first, unique="1")) == (200, "done")
        assert await post(app, second, signed(second, unique="2")) == (200, "late")
        assert suspended(tracker, "acme") == [stays]
        assert await post(app, second, signed(second, unique="2")) == (200, "replayed")


async def test_what_comes_late_for_one_is_in_time_for_others(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        await post(app, STARTED, signed(STARTED, unique="1"))
        other = webhook("subscription.terminated", external_id="globex", terminated_at=EARLY)
        assert await post(app, other, signed(other, unique="2")) == (200, "done")
        assert await post(app, DEPLETED, signed(DEPLETED, unique="3")) == (200, "done")
        assert suspended(tracker, "globex", "acme") == [True, True]


async def test_two_workers_never_work_on_one_subscription_at_once(tmp_path: Path) -> None:
    store, tracker, clock = _crashing(tmp_path)
    async with tracker:
        store.faults["put_item"] = [*["ok"] * 3, "hang"]
        dying = asyncio.create_task(post(hooks(tracker), ENDED_LATE, signed(ENDED_LATE, unique="1")))
        while store.calls.count("put_item") < 4:
            await asyncio.sleep(0)
        assert await post(hooks(tracker), STARTED, signed(STARTED, unique="2")) == (503, "unavailable")
        dying.cancel()
        await asyncio.wait([dying])
        clock.advance(CLAIM_S)
        assert await post(hooks(tracker), STARTED, signed(STARTED, unique="2")) == (200, "done")


async def test_what_is_remembered_of_others_is_not_read(tmp_path: Path) -> None:
    store, tracker, _ = _crashing(tmp_path)
    async with tracker:
        asked: list[str] = []
        items = store.items

        async def watched(kind: str) -> Any:
            asked.append(kind)
            return await items(kind)

        store.items = watched  # type: ignore[method-assign]
        await post(hooks(tracker), TERMINATED)
        await post(hooks(tracker), TERMINATED)
        assert KIND not in asked
        assert len([kind for kind in asked if kind.startswith("lago-latest:")]) == 1


def _crashing(tmp_path: Path) -> tuple[FaultyStore, CostTracker, Clock]:
    clock = Clock()
    store = faulty("memory", tmp_path, clock)
    return store, make_tracker(store, clock=clock), clock


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("fault", ["fail", "after"])
async def test_wherever_it_breaks_off_lagos_next_try_has_the_effect_once(fault: str, step: int, tmp_path: Path) -> None:
    store, tracker, clock = _crashing(tmp_path)
    async with tracker:
        app = hooks(tracker)
        store.faults["put_item"] = [*["ok"] * step, fault]
        assert await post(app, TERMINATED) == (503, "unavailable")
        assert (await post(app, TERMINATED))[0] in (200, 503)  # at once: somebody may still be at it
        clock.advance(CLAIM_S)
        status, result = await post(app, TERMINATED)
        assert (status, result) in ((200, "done"), (200, "replayed"))
        assert suspended(tracker, "acme") == [True]
        clock.advance(CLAIM_S)
        await post(app, STARTED, signed(STARTED, unique="2"))
        assert await post(app, TERMINATED) == (200, "replayed")
        assert suspended(tracker, "acme") == [False]


async def test_a_worker_killed_between_the_effect_and_remembering_it_leaves_it_to_the_next(tmp_path: Path) -> None:
    store, tracker, clock = _crashing(tmp_path)
    async with tracker:
        store.faults["put_item"] = [*["ok"] * 4, "hang"]
        dying = asyncio.create_task(post(hooks(tracker), TERMINATED))
        while store.calls.count("put_item") < 5:
            await asyncio.sleep(0)
        dying.cancel()
        await asyncio.wait([dying])
        assert await post(hooks(tracker), TERMINATED) == (503, "unavailable")
        clock.advance(3.0)  # Lago's first pause
        assert await post(hooks(tracker), TERMINATED) == (200, "done")
        assert [state.tenant for state in await tracker.tenant_states()] == ["acme"]


async def test_while_the_store_is_away_lago_is_asked_to_try_again(tmp_path: Path) -> None:
    store, tracker, clock = _crashing(tmp_path)
    async with tracker:
        store.down = True
        assert await post(hooks(tracker), TERMINATED) == (503, "unavailable")
        store.down = False
        clock.advance(CLAIM_S)
        assert await post(hooks(tracker), TERMINATED) == (200, "done")


# Bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"webhook_type":3}',
        b'{"webhook_type":["a"]}',
        b'{"object_type":"subscription"}',
        b'{"webhook_type":"subscription.terminated","subscription":"acme"}',
        webhook("subscription.terminated", external_id=None),
        webhook("subscription.terminated", external_id="x" * 257),
        webhook("subscription.terminated", external_id="a\0"),
        webhook("subscription.terminated", terminated_at="yesterday"),
        webhook("subscription.terminated", terminated_at="2026-01-01T00:00:00"),
        webhook("wallet.depleted_ongoing_balance", lago_id=7),
        webhook("wallet_transaction.updated", lago_wallet_id=None),
    ],
)
async def test_what_is_signed_and_makes_no_sense_is_400(body: bytes, tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        assert await post(app, body) == (400, "malformed")
        assert await tracker.tenant_states() == []
        assert await tracker.store.items(KIND) == []


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_its_bound_is_refused_unread(announced: bool, tmp_path: Path) -> None:
    body = b"x" * (MAX_BODY_BYTES + 1)
    async with receiving(tmp_path) as (_, app):
        headers = signed(body) | ({"content-length": str(len(body))} if announced else {})
        assert await post(app, body, headers) == (413, "too large")
        assert await post(app, b"", signed(b"") | {"content-length": "9" * 40}) == (413, "too large")
        exact = webhook("invoice.created")
        exact += b" " * (MAX_BODY_BYTES - len(exact))
        assert await post(app, exact) == (200, "ignored")


async def test_a_slow_body_is_not_waited_for(tmp_path: Path) -> None:
    async with receiving(tmp_path, body_timeout_s=0.02) as (_, app):
        sent: list[Any] = []
        first = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Any:
            if not first:
                await asyncio.Event().wait()
            return first.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await app(http_scope("/", "POST", []), receive, send)
        assert sent[0]["status"] == 408


async def test_a_sender_that_leaves_is_not_answered(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (_, app):
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(http_scope("/", "POST", []), receive, send)
        assert sent == []
