"""A background response is charged once: by the first answer that tells its usage, else as an estimate."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, Budget, CostTracker
from askii_middleware.polling import polls
from askii_middleware.records import UsageRecord, decode_record

USAGE = {"input_tokens": 40, "output_tokens": 10, "total_tokens": 50}


def operation(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "model": "gpt-4o", "background": True, "status": status, **fields}


class Upstream:
    """Answers a background response at once, and its state when asked."""

    def __init__(self) -> None:
        self.state = operation("in_progress", usage=None)

    async def create(self, _request: Request) -> Response:
        return JSONResponse(operation("queued", usage=None))

    async def show(self, _request: Request) -> Response:
        return JSONResponse(self.state)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/responses", self.create, methods=["POST"]),
                Route("/v1/responses/{id}", self.show, methods=["GET"]),
            ]
        )


async def records(tracker: CostTracker) -> list[UsageRecord]:
    return [decode_record(body) for _, body in await tracker.store.records()]


def tracker_over(limit_usd: int = 10) -> CostTracker:
    return CostTracker(store="memory://", budgets=[Budget(scope="tenant=*", limit_usd=limit_usd)])


async def begin(client: httpx.AsyncClient) -> None:
    body = {"model": "gpt-4o", "input": "hello", "max_output_tokens": 20, "background": True}
    answer = await client.post("/v1/responses", json=body)
    assert answer.json()["status"] == "queued"


async def test_the_first_complete_sight_settles_and_further_ones_do_not() -> None:
    upstream = Upstream()
    tracker = tracker_over()
    app = AskiiMiddleware(upstream.app(), tracker=tracker, identify=lambda _scope: "acme")
    async with (
        tracker,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await begin(client)
        assert await records(tracker) == []
        (line,) = await tracker.budget_enforcer.status("tenant=acme")
        assert line.held_usd > 0

        assert (await client.get("/v1/responses/resp_1")).json() == upstream.state
        assert await records(tracker) == []

        upstream.state = operation("completed", usage=USAGE)
        for _ in range(3):
            assert (await client.get("/v1/responses/resp_1")).json() == upstream.state
        await tracker.deferrals.finish_all(5)
        (record,) = await records(tracker)
        # 40 tokens at 2.50 USD and 10 at 10 USD per million
        assert record.cost_nano_usd == 40 * 2500 + 10 * 10_000
        assert (record.outcome, record.estimated, record.late) == ("completed", False, False)
        (line,) = await tracker.budget_enforcer.status("tenant=acme")
        assert line.held_usd == 0
        assert not tracker.awaits_operations


async def test_without_a_sight_the_hold_is_charged_as_an_estimate_at_the_end() -> None:
    tracker = tracker_over()
    app = AskiiMiddleware(Upstream().app(), tracker=tracker, identify=lambda _scope: "acme")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await tracker.start()
        await begin(client)
        (line,) = await tracker.budget_enforcer.status("tenant=acme")
        held = line.held_usd
        store = tracker.store
        await tracker.deferrals.finish_all(5)
        (record,) = [decode_record(body) for _, body in await store.records()]
        assert (record.outcome, record.estimated) == ("deferred_estimate", True)
        assert record.cost_nano_usd == int(held * 10**9)
        await tracker.stop()


@pytest.mark.parametrize(
    ("path", "polled"),
    [
        ("/v1/responses/resp_1", True),
        ("/openai/v1/responses/resp_1/", True),
        ("/v1/responses", False),
        ("/v1/responses/", False),
        ("/v1/responses/resp_1/input_items", False),
        ("/v1/files/resp_1", False),
    ],
)
def test_only_an_operations_own_path_is_watched(path: str, polled: bool) -> None:
    assert polls(path) is polled


async def test_an_answer_about_somebody_elses_operation_changes_nothing() -> None:
    upstream = Upstream()
    tracker = tracker_over()
    app = AskiiMiddleware(upstream.app(), tracker=tracker, identify=lambda _scope: "acme")
    async with (
        tracker,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await begin(client)
        upstream.state = json.loads(json.dumps(operation("completed", usage=USAGE)).replace("resp_1", "resp_2"))
        await client.get("/v1/responses/resp_2")
        assert await records(tracker) == []
        assert tracker.awaits_operations
