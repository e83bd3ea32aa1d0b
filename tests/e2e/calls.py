"""The calls every way through has to pass: each API, streamed and not, through an SDK."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from .clients import Sdks

MESSAGES: Any = [{"role": "user", "content": "Count the tokens of this, please."}]
CHANGING = frozenset({"id", "item_id", "created", "created_at", "completed_at", "timings"})
"""Members that differ from one answer to the next."""


class Answer(NamedTuple):
    """What an SDK gave out, without what changes each time, and the usage it showed: input, output."""

    said: list[Any]
    usage: tuple[int, int] | None


class Case(NamedTuple):
    """One call. `upstream` is who serves it."""

    api: str
    model: str
    run: Callable[[Sdks], Awaitable[Answer]]
    stream: bool = False
    upstream: str = "tiny"
    asked: bool = True
    """The client asked for usage, or its API always shows it."""

    @property
    def name(self) -> str:
        return self.run.__name__


def stable(value: Any) -> Any:
    """A dump without the members that change from call to call."""
    if isinstance(value, dict):
        return {name: stable(member) for name, member in value.items() if name not in CHANGING}
    if isinstance(value, list):
        return [stable(item) for item in value]
    return value


def _answer(objects: list[Any], usage: Any) -> Answer:
    """Any SDK's objects, and the object with the counts (OpenAI has two names for each)."""
    counts = None
    if usage is not None:
        given = usage.model_dump()
        counts = (
            given.get("input_tokens", given.get("prompt_tokens")),
            given.get("output_tokens", given.get("completion_tokens", 0)),
        )
    return Answer([stable(item.model_dump(warnings=False)) for item in objects], counts)


async def chat(sdk: Sdks) -> Answer:
    answer = await sdk.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=9, temperature=0, seed=7
    )
    return _answer([answer], answer.usage)


async def chat_stream_with_usage(sdk: Sdks) -> Answer:
    stream = await sdk.openai.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_completion_tokens=9,
        temperature=0,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    return _answer(chunks, chunks[-1].usage)


async def chat_stream(sdk: Sdks) -> Answer:
    stream = await sdk.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=9, temperature=0, seed=7, stream=True
    )
    return _answer([chunk async for chunk in stream], None)


async def reasoning_stream(sdk: Sdks) -> Answer:
    stream = await sdk.openai.chat.completions.create(
        model="o4-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    return _answer(chunks, chunks[-1].usage)


async def completion(sdk: Sdks) -> Answer:
    answer = await sdk.openai.completions.create(model="tiny", prompt="Once", max_tokens=9, temperature=0, seed=7)
    return _answer([answer], answer.usage)


async def completion_stream(sdk: Sdks) -> Answer:
    stream = await sdk.openai.completions.create(
        model="tiny",
        prompt="Once",
        max_tokens=9,
        temperature=0,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    return _answer(chunks, chunks[-1].usage)


async def response(sdk: Sdks) -> Answer:
    answer = await sdk.openai.responses.create(model="tiny", input="Once", max_output_tokens=9, temperature=0)
    return _answer([answer], answer.usage)


async def response_stream(sdk: Sdks) -> Answer:
    stream = await sdk.openai.responses.create(
        model="tiny", input="Once", max_output_tokens=9, temperature=0, stream=True
    )
    events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.completed"
    return _answer(events, last.response.usage)


async def embeddings(sdk: Sdks) -> Answer:
    answer = await sdk.openai.embeddings.create(
        model="text-embedding-3-small", input=["a question", "an answer"], dimensions=8
    )
    return _answer([answer], answer.usage)


async def message(sdk: Sdks) -> Answer:
    answer = await sdk.anthropic.messages.create(
        model="tiny", max_tokens=9, messages=MESSAGES, extra_body={"temperature": 0}
    )
    return _answer([answer], answer.usage)


async def message_stream(sdk: Sdks) -> Answer:
    stream = await sdk.anthropic.messages.create(
        model="tiny", max_tokens=9, messages=MESSAGES, extra_body={"temperature": 0}, stream=True
    )
    events = [event async for event in stream]
    entering = next(event.message.usage.input_tokens for event in events if event.type == "message_start")
    leaving = next(event.usage.output_tokens for event in events if event.type == "message_delta")
    return _answer(events, None)._replace(usage=(entering, leaving))


CASES = [
    Case("openai.chat", "tiny", chat),
    Case("openai.chat", "tiny", chat_stream_with_usage, stream=True),
    Case("openai.chat", "tiny", chat_stream, stream=True, asked=False),
    Case("openai.chat", "o4-mini", reasoning_stream, stream=True, upstream="simulated"),
    Case("openai.completions", "tiny", completion),
    Case("openai.completions", "tiny", completion_stream, stream=True),
    Case("openai.responses", "tiny", response),
    Case("openai.responses", "tiny", response_stream, stream=True),
    Case("openai.embeddings", "text-embedding-3-small", embeddings, upstream="simulated"),
    Case("anthropic.messages", "tiny", message),
    Case("anthropic.messages", "tiny", message_stream, stream=True),
]
ASKING = {"chat_stream": chat_stream_with_usage}
"""By name of the case, the same call by a client that wants to see the usage."""
