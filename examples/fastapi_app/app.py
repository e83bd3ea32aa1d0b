"""A chat service whose tenants have budgets: FastAPI, with Askii around it and any OpenAI-compatible provider behind.

- `POST /chat` calls the provider in code, through `track_tokens`.
- `POST /v1/chat/completions` passes OpenAI's API on; the middleware meters it by itself.
- `GET /stats` says what the caller's tenant has used today.
- `/askii` has the dashboard and the billing API: keys, budgets, prices, reports.

`askii.toml` holds budgets and fallbacks; `PROVIDER_URL` and `PROVIDER_KEY` name the provider, `ADMIN_TOKEN` (at least
16 characters) opens the dashboard.
"""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse

from askii_middleware import AskiiMiddleware, CostTracker, Identity, load_settings

MODEL = "gpt-4o"
MAX_OUTPUT_TOKENS = 400
TEMPLATE_TOKENS = 100
"""What a provider puts around a message, at most."""


class Question(BaseModel):
    text: str = Field(min_length=1, max_length=8_000)


class Answer(BaseModel):
    text: str
    model: str
    call_id: str


def create_app() -> FastAPI:
    """The application: `uvicorn --factory app:create_app`."""
    settings = load_settings()
    tracker = CostTracker.from_settings(settings)
    provider_url = os.environ.get("PROVIDER_URL", "http://127.0.0.1:8080/v1")
    provider_key = os.environ.get("PROVIDER_KEY", "none")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            AsyncOpenAI(base_url=provider_url, api_key=provider_key) as llm,
            httpx.AsyncClient(timeout=httpx.Timeout(10, read=600)) as http,
        ):
            app.state.llm, app.state.http = llm, http
            yield

    app = FastAPI(title="Chat with budgets", lifespan=lifespan)
    app.add_middleware(AskiiMiddleware, tracker=tracker, settings=settings)
    # It knows its callers by itself. Without a token there are no admins and no pages, and keys see their own data.
    app.mount("/askii", tracker.api(os.environ.get("ADMIN_TOKEN")))

    async def caller() -> Identity:
        """Who calls, by the API key that the middleware has checked."""
        identity = await tracker.request_identity()
        if identity is None:
            raise HTTPException(401, "send an API key of this service as a bearer token")
        return identity

    Caller = Annotated[Identity, Depends(caller)]  # noqa: N806 - a type

    @app.post("/chat")
    async def chat(question: Question, who: Caller, request: Request) -> Answer:
        llm: AsyncOpenAI = request.app.state.llm
        # A token covers at least one byte. The block holds for the worst case and charges what was used; where the
        # budget is short it offers a cheaper model, and where it is spent the caller gets a 402 from the middleware.
        async with tracker.track_tokens(
            who,
            MODEL,
            expected_input_tokens=len(question.text.encode()) + TEMPLATE_TOKENS,
            max_output_tokens=MAX_OUTPUT_TOKENS,
        ) as usage:
            try:
                completion = await llm.chat.completions.create(
                    model=usage.model,
                    messages=[{"role": "user", "content": question.text}],
                    max_tokens=MAX_OUTPUT_TOKENS,
                )
            except APIError as error:
                raise HTTPException(502, f"the provider failed: {error.message}") from error
            usage.record(completion)
        return Answer(text=completion.choices[0].message.content or "", model=completion.model, call_id=usage.call_id)

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> StreamingResponse:
        # By now the body may name a cheaper model than the client's: it is passed on as it is.
        http: httpx.AsyncClient = request.app.state.http
        forwarded = http.build_request(
            "POST",
            f"{provider_url}/chat/completions",
            content=await request.body(),
            headers={"authorization": f"Bearer {provider_key}", "content-type": "application/json"},
        )
        try:
            answer = await http.send(forwarded, stream=True)
        except httpx.HTTPError as error:
            raise HTTPException(502, "the provider cannot be reached") from error
        return StreamingResponse(pieces(answer), answer.status_code, media_type=answer.headers.get("content-type"))

    @app.get("/stats")
    async def stats(who: Caller) -> dict[str, Any]:
        figures = await tracker.get_tenant_stats(who.tenant)
        # JSON has no infinity, which is what is left without a budget.
        return {name: None if value == math.inf else value for name, value in figures.items()}

    return app


async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The provider's answer as it comes; let go when the client leaves."""
    try:
        async for piece in answer.aiter_bytes():
            yield piece
    finally:
        await answer.aclose()
