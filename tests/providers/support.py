"""Feeding readers, finding recorded bodies, and building streams as providers send them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from askii_middleware.providers import choose_api, find_apis
from askii_middleware.providers.base import Api, CallRequest, StreamReader
from askii_middleware.usage import Report

CORPUS = Path(__file__).parents[2] / ".." / "shared" / "corpus"
NO_CORPUS = "the recorded provider bodies (../shared/corpus) are not here"


def api(name: str) -> Api:
    """The API of this name, found by its path as a request would find it."""
    paths = {
        "openai.chat": "/v1/chat/completions",
        "openai.completions": "/v1/completions",
        "openai.responses": "/v1/responses",
        "openai.responses.compact": "/v1/responses/compact",
        "openai.embeddings": "/v1/embeddings",
        "anthropic.messages": "/v1/messages",
    }
    return find_apis(paths[name])[0]


def raw_fields(body: bytes | dict[str, Any]) -> dict[str, msgspec.Raw]:
    """The top level as the middleware hands it over: by msgspec, else by the standard library and encoded again."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in json.loads(data).items()}


def parse(name: str, body: bytes | dict[str, Any]) -> CallRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api(name).parse(raw_fields(data), len(data))


def entries() -> list[dict[str, Any]]:
    """Manifest entries of recorded answers whose path belongs to one of our APIs."""
    manifest = CORPUS / "manifest.json"
    if not manifest.exists():
        return []
    return [e for e in json.loads(manifest.read_text())["entries"] if entry_api(e) is not None]


def entry_api(entry: dict[str, Any]) -> Api | None:
    """The API that a recorded answer was given by: of those that share its path, the one the request belongs to."""
    found = find_apis(unquote(entry["request_path"].partition("?")[0]))
    if entry["method"] != "POST" or len(found) < 2:
        return found[0] if found and entry["method"] == "POST" else None
    from tests.support.recordings import Recording, request_for  # noqa: PLC0415 - it imports this module

    return choose_api(found, raw_fields(request_for(Recording(0, entry)).body))


def is_streamed(entry: dict[str, Any]) -> bool:
    from tests.support.recordings import Recording  # noqa: PLC0415 - as above

    return Recording(0, entry).streamed


def read_headers(api: Api, entry: dict[str, Any], report: Report) -> None:
    """Merge what the recorded answer's own headers say, as the middleware does once the body was read."""
    given = {name.lower().encode(): value.encode() for name, value in entry["response_headers"].items()}
    found = {name: value for name, value in given.items() if name in api.answer_headers}
    if found:
        api.absorb_headers(report, found)


def recorded(entry: dict[str, Any]) -> bytes:
    body = (CORPUS / entry["file"]).read_bytes()
    return gzip.decompress(body) if entry["content_encoding"] == "gzip" else body


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def feed(reader: StreamReader, chunks: Iterable[bytes]) -> bytes:
    """Everything the client gets."""
    out = [reader.feed(chunk) for chunk in chunks]
    return b"".join([*out, reader.finish()])


def event(data: object, *, name: str = "", end: bytes = b"\n") -> bytes:
    """One server-sent event; text stays as it is, other data becomes compact JSON."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    head = f"event: {name}".encode() + end if name else b""
    return head + b"data: " + text.encode() + end + end


def chat_chunk(content: str | None = None, **changes: Any) -> dict[str, Any]:
    """A chunk of a chat stream in OpenAI's order of members."""
    delta = {} if content is None else {"content": content}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}],
    } | changes


USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
