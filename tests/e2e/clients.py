"""The official SDKs over real sockets, with a look at what goes over the wire."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai

LOOPBACK: dict[str, Any] = {"verify": False, "trust_env": False, "timeout": 30}
"""Loads no certificates, heeds no proxy settings."""


@dataclass
class Wire:
    """Every request an SDK sent, retries included, and every answer's head. Their types are those of the HTTP client
    that the SDK brings.
    """

    requests: list[Any] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    async def sent(self, request: Any) -> None:
        self.requests.append(request)

    async def came(self, response: Any) -> None:
        self.answers.append(response)

    @property
    def headers(self) -> Any:
        """The last answer's."""
        return self.answers[-1].headers

    @property
    def call_id(self) -> str:
        return str(self.headers["x-askii-call-id"])


@dataclass(frozen=True)
class Sdks:
    """Both SDKs with their own defaults, retries included."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    wire: Wire


def http_client() -> httpx.AsyncClient:
    """A client without an SDK around it."""
    return httpx.AsyncClient(**LOOPBACK)


@contextlib.asynccontextmanager
async def sdks(url: str, secret: str) -> AsyncIterator[Sdks]:
    """Clients of the server at `url`, which may or may not be a gateway."""
    wire = Wire()
    options = {**LOOPBACK, "event_hooks": {"request": [wire.sent], "response": [wire.came]}}
    async with (
        openai.DefaultAsyncHttpxClient(**options) as first,
        anthropic.DefaultAsyncHttpxClient(**options) as second,
    ):
        yield Sdks(
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, http_client=first),
            anthropic.AsyncAnthropic(base_url=url, api_key=secret, http_client=second),
            wire,
        )
