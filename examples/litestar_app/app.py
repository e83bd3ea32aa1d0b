"""A chat service whose tenants have budgets: Litestar, with Askii around it and any OpenAI-compatible provider behind.

- `POST /chat` calls the provider in code, through a function decorated with `@tracked`.
- `POST /v1/chat/completions` passes OpenAI's API on; the middleware meters it by itself.
- `GET /stats` says what the caller's tenant has used today.

`askii.toml` holds budgets and fallbacks; `PROVIDER_URL` and `PROVIDER_KEY` name the provider.
"""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from litestar import Litestar, Request, get, post
from litestar.exceptions import HTTPException, NotAuthorizedException
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from openai import APIError, AsyncOpenAI
from openai.types.chat import ChatCompletion

from askii_middleware import AskiiMiddleware, CostTracker, Identity, load_settings, tracked

MODEL = "gpt-4o"
MAX_OUTPUT_TOKENS = 400
TEMPLATE_TOKENS = 100
"""What a provider puts around a message, at most."""


@dataclass
class Question:
    text: str


@dataclass
class Answer:
    text: str
    model: str


def prompt_bound(text: str) -> int:
    """A token covers at least one byte."""
    return len(text.encode()) + TEMPLATE_TOKENS


def create_app() -> Litestar:
    """The application: `uvicorn --factory app:create_app`."""
    settings = load_settings()
    tracker = CostTracker.from_settings(settings)
    provider_url = os.environ.get("PROVIDER_URL", "http://127.0.0.1:8080/v1")
    provider_key = os.environ.get("PROVIDER_KEY", "none")
    llm = AsyncOpenAI(base_url=provider_url, api_key=provider_key)
    http = httpx.AsyncClient(timeout=httpx.Timeout(10, read=600))

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        # Litestar runs its middleware around requests only, so the application starts and stops the tracker.
        async with tracker, llm, http:
            yield

    async def caller() -> Identity:
        """Who calls, by the API key that the middleware has checked."""
        identity = await tracker.request_identity()
        if identity is None:
            raise NotAuthorizedException("send an API key of this service as a bearer token")
        return identity

    # Without `tenant_id` the request's own tenant pays. Where the budget is short, `model` is a cheaper one; where it
    # is spent, the caller gets a 402 from the middleware.
    @tracked(model=MODEL, tracker=tracker, expected_input_tokens=prompt_bound, max_output_tokens=MAX_OUTPUT_TOKENS)
    async def ask(text: str, *, model: str = MODEL) -> ChatCompletion:
        return await llm.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], max_tokens=MAX_OUTPUT_TOKENS
        )

    @post("/chat", status_code=200)
    async def chat(data: Question) -> Answer:
        await caller()
        try:
            completion = await ask(data.text)
        except APIError as error:
            raise HTTPException(f"the provider failed: {error.message}", status_code=502) from error
        return Answer(completion.choices[0].message.content or "", completion.model)

    @post("/v1/chat/completions", status_code=200)
    async def completions(request: Request[Any, Any, Any]) -> Stream:
        # By now the body may name a cheaper model than the client's: it is passed on as it is.
        forwarded = http.build_request(
            "POST",
            f"{provider_url}/chat/completions",
            content=await request.body(),
            headers={"authorization": f"Bearer {provider_key}", "content-type": "application/json"},
        )
        try:
            answer = await http.send(forwarded, stream=True)
        except httpx.HTTPError as error:
            raise HTTPException("the provider cannot be reached", status_code=502) from error
        kind = answer.headers.get("content-type", "application/json")
        return Stream(pieces(answer), status_code=answer.status_code, media_type=kind)

    @get("/stats")
    async def stats() -> dict[str, Any]:
        figures = await tracker.get_tenant_stats((await caller()).tenant)
        # JSON has no infinity, which is what is left without a budget.
        return {name: None if value == math.inf else value for name, value in figures.items()}

    return Litestar(
        [chat, completions, stats],
        lifespan=[lifespan],
        middleware=[DefineMiddleware(AskiiMiddleware, tracker=tracker, settings=settings)],
    )


async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The provider's answer as it comes; let go when the client leaves."""
    try:
        async for piece in answer.aiter_bytes():
            yield piece
    finally:
        await answer.aclose()
