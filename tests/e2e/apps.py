"""Applications that pass metered calls on to an upstream, as people write them: FastAPI and Litestar."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import fastapi
import httpx
import litestar
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from starlette.responses import Response, StreamingResponse

from askii_middleware import AskiiMiddleware, CostTracker
from askii_middleware.settings import Settings

from .clients import http_client


class Forwarded(NamedTuple):
    """An upstream's answer: whole, or as it comes."""

    status: int
    content_type: str
    body: bytes
    stream: AsyncIterator[bytes] | None


class Forwarder:
    """Sends a request's bytes on, to the upstream of its model."""

    def __init__(self, upstreams: Mapping[str, str]) -> None:
        self._upstreams = upstreams
        self._http = http_client()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __call__(self, path: str, body: bytes) -> Forwarded:
        model: str = json.loads(body)["model"]
        base = self._upstreams["tiny" if model.startswith("tiny") else "simulated"]
        headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        request = self._http.build_request("POST", base + path, content=body, headers=headers)
        answer = await self._http.send(request, stream=True)
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return Forwarded(answer.status_code, kind, b"", _closing(answer))
        return Forwarded(answer.status_code, kind, await answer.aread(), None)


async def _closing(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def fastapi_app(settings: Settings, tracker: CostTracker, upstreams: Mapping[str, str]) -> Any:
    forward = Forwarder(upstreams)

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        await forward.aclose()

    app = fastapi.FastAPI(lifespan=lifespan)
    app.add_middleware(AskiiMiddleware, tracker=tracker, settings=settings)

    @app.post("/v1/{path:path}")
    async def pass_on(path: str, request: fastapi.Request) -> Response:
        answer = await forward(f"/v1/{path}", await request.body())
        if answer.stream is not None:
            return StreamingResponse(answer.stream, answer.status, media_type=answer.content_type)
        return Response(answer.body, answer.status, media_type=answer.content_type)

    return app


def litestar_app(settings: Settings, tracker: CostTracker, upstreams: Mapping[str, str]) -> Any:
    forward = Forwarder(upstreams)

    @contextlib.asynccontextmanager
    async def lifespan(_: litestar.Litestar) -> AsyncIterator[None]:
        # Litestar runs its middleware for requests only, so the application keeps the tracker.
        async with tracker:
            yield
        await forward.aclose()

    @litestar.post("/v1/{path:path}")
    async def pass_on(request: litestar.Request[Any, Any, Any]) -> litestar.Response[Any]:
        answer = await forward(request.scope["path"], await request.body())
        if answer.stream is not None:
            return Stream(answer.stream, status_code=answer.status, media_type=answer.content_type)
        return litestar.Response(answer.body, status_code=answer.status, media_type=answer.content_type)

    return litestar.Litestar(
        [pass_on],
        lifespan=[lifespan],
        middleware=[DefineMiddleware(AskiiMiddleware, tracker=tracker, settings=settings)],
        openapi_config=None,
        logging_config=None,  # it would set the level of the process's root logger
    )
