"""Wire formats: one module per dialect, found by the end of a request's path.

To add a dialect, write a module with its `Api` and name it in `APIS`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .anthropic import MessagesApi
from .base import Api
from .openai_chat import ChatApi
from .openai_completions import CompletionsApi
from .openai_embeddings import EmbeddingsApi
from .openai_responses import CompactApi, ResponsesApi

APIS: tuple[Api, ...] = (
    ChatApi(),
    CompletionsApi(),
    ResponsesApi(),
    CompactApi(),
    EmbeddingsApi(),
    MessagesApi(),
)


def find_apis(path: str) -> tuple[Api, ...]:
    """The APIs whose path ending this path has, under any mount prefix; the most specific one first. Empty for a path
    that belongs to none.
    """
    if "//" in path:
        # Some servers take a doubled slash for one: such a path must not slip by.
        path = "/".join(["", *(segment for segment in path.split("/") if segment)])
    path = path.rstrip("/")
    return tuple(api for suffix, api in _BY_LAST_SEGMENT.get(_last_segment(path), ()) if path.endswith(suffix))


def choose_api(apis: tuple[Api, ...], fields: Mapping[str, msgspec.Raw]) -> Api | None:
    """The one of a path's APIs that a body belongs to; None if it lacks the required members of them all."""
    return next((api for api in apis if api.owns(fields)), None)


def _last_segment(path: str) -> str:
    """What the index is keyed by: the last segment, or the verb behind its colon (`models/x:generateContent`)."""
    return path.rpartition("/")[2].rpartition(":")[2]


def _index() -> dict[str, tuple[tuple[str, Api], ...]]:
    pairs = [(suffix, api) for api in APIS for suffix in api.suffixes]
    pairs.sort(key=lambda pair: len(pair[0]), reverse=True)
    index: dict[str, tuple[tuple[str, Api], ...]] = {}
    for suffix, api in pairs:
        key = _last_segment(suffix)
        index[key] = (*index.get(key, ()), (suffix, api))
    return index


_BY_LAST_SEGMENT = _index()
