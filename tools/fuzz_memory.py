"""How much readers keep of answers that never end."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from askii_middleware.providers import APIS
from askii_middleware.providers.eventstream import FrameReader
from askii_middleware.providers.json_array import ArrayFramer
from askii_middleware.providers.json_lines import LineFramer
from askii_middleware.providers.jsonscan import TopLevelScanner
from askii_middleware.providers.sse import Framer
from tests.support.mutations import event_stream_frame

from .fuzz_checks import WANTED

ENDLESS_CHUNKS = 50
"""Of 64 kB each."""
MAX_HELD_BYTES = 3 << 19
"""An event or line of 1 MB, or a dozen members of 64 kB, and what is made of them."""


def memory() -> tuple[int, list[str]]:
    """How many kinds of readers were given answers that never end, and what grew without bound then."""
    grown, made = [], 0
    for what, make in memory_targets():
        made += 1
        for kind, chunk in endless():
            reader = make()
            take = reader.feed if hasattr(reader, "feed") else reader.push
            take(chunk)  # some know only now what they read
            with_low_limits(reader)
            for _ in range(ENDLESS_CHUNKS):
                take(chunk)
            kept = held_bytes(reader, set())
            if kept > MAX_HELD_BYTES:
                grown.append(f"{what} keeps {kept:,} bytes of {ENDLESS_CHUNKS * len(chunk):,} of {kind}")
    return made, grown


def memory_targets() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What reads without end, and how to make it: each kind of reader once."""
    yield "sse.Framer", Framer
    yield "LineFramer", LineFramer
    yield "ArrayFramer", ArrayFramer
    yield "FrameReader", FrameReader
    yield "TopLevelScanner", lambda: TopLevelScanner(WANTED)
    kinds: set[type] = set()
    for api in APIS:
        hiding = partial(api.stream_reader, hide_usage=True)
        for make in (partial(api.stream_reader, hide_usage=False), hiding, api.body_reader):
            kind = type(make())
            if kind not in kinds:
                kinds.add(kind)
                yield f"{api.name}: {kind.__name__}", make


def with_low_limits(reader: Any) -> Any:
    """The same reader, which holds a megabyte at most of one event, line or element."""
    for name, value in [*getattr(reader, "__dict__", {}).items()]:
        if name.startswith("_max_") and name.endswith("_bytes"):
            setattr(reader, name, min(value, 1 << 20))
        elif name in ("_framer", "_lines", "_array", "_elements", "_reader", "_frames"):
            with_low_limits(value)
    return reader


def held_bytes(value: Any, seen: set[int]) -> int:
    """Roughly what an object keeps, all that it refers to included."""
    if id(value) in seen or isinstance(value, type) or callable(value):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        inner: Iterable[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | deque):
        inner = value
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    return size + sum(held_bytes(item, seen) for item in inner)


def endless() -> Iterator[tuple[str, bytes]]:
    """Answers that never end: 64 kB that come again and again."""
    size = 1 << 16
    yield "one line", b"a" * size
    yield "one string", b'"' + b"a" * (size - 1)
    yield "one event", b"data: " + b"a" * (size - 7) + b"\n"
    yield "empty lines", b"\n" * size
    yield "carriage returns", b"\r" * size
    yield "opening brackets", b"[" * size
    yield "opening braces", b'{"a":' * (size // 5)
    yield "members", b'"id":"x","model":"y","usage":{"prompt_tokens":1},' * (size // 49)
    event = b'data: {"id":"x","model":"y","choices":[{"delta":{"content":"z"}}],"usage":{"prompt_tokens":1}}\n\n'
    yield "events", event * (size // len(event))
    yield "binary", bytes(range(256)) * (size // 256)
    frame = event_stream_frame(b"", b'{"usage":{"inputTokens":1}}')
    yield "frames", frame * (size // len(frame))
