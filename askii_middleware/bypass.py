"""Answers of requests that pass unmetered, looked at as they go by: one that reports token usage is most likely a call
that nobody pays for.

The look is nearly free: three substring tests per chunk, and more only where one of them hits. It keeps the end of the
last chunk, and of an object that is not whole yet at most `MAX_OBJECT_BYTES`.
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

from .encodings import AnswerDecoder, codings, is_readable
from .log_fields import fields

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from .calls import RequestContext
    from .metrics import Metrics

logger = logging.getLogger(__name__)

MAX_TOLD = 1000
MAX_OBJECT_BYTES = 4096
MAX_DECODED_BYTES = 1 << 20
"""Of an encoded answer no more is unpacked."""
_SLICE_BYTES = 1 << 16
_OVERLAP_BYTES = 64
_OBJECTS = re.compile(rb'"(?:usage|usageMetadata|usage_metadata|billed_units)"\s*:\s*(?=\{)')
"""OpenAI's and nearly everybody's; Gemini's; LangChain's; Cohere's."""
_NUMBERS = re.compile(rb'"(?:prompt_)?eval_count"\s*:\s*[1-9]')
"""Ollama's."""
_decode = json.JSONDecoder().raw_decode


class Bypasses:
    """Counts likely bypasses by the class of their path, and tells the log once of each class."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._told: set[str] = set()

    def watch(self, path_class: str, context: RequestContext, send: Send) -> Send:
        """A `send` that looks at what passes, and leaves it as it is."""
        return _Watch(self, path_class, context, send).send

    def found(self, path_class: str) -> None:
        self._metrics.bypassed(path_class)
        if path_class in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(path_class)
        logger.warning(
            "POST %s is not metered, but its answer reports token usage: most likely a call that no budget paid for. "
            "Check routes.include; if the route's API is not known here, report it, or account for it with a "
            'track_tokens block in the application; unmetered = "deny" refuses such routes, routes.exclude and '
            "routes.exempt name those that may pass",
            path_class,
            extra=fields("bypass_seen", path_class=path_class),
        )


class _Watch:
    __slots__ = ("_bypasses", "_carry", "_context", "_decoder", "_looks", "_path_class", "_send")

    def __init__(self, bypasses: Bypasses, path_class: str, context: RequestContext, send: Send) -> None:
        self._bypasses = bypasses
        self._path_class = path_class
        self._context = context
        self._send = send
        self._looks = False
        self._decoder: AnswerDecoder | None = None
        self._carry = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._looks = 200 <= message["status"] < 300 and self._may_tell(message)
        elif self._looks and message["type"] == "http.response.body":
            self._look(bytes(message.get("body", b"")))
        await self._send(message)

    def _may_tell(self, message: Message) -> bool:
        content_type, encodings = b"", []
        for name, value in message.get("headers", ()):
            lower = name.lower()
            if lower == b"content-type":
                content_type = value.lower()
            elif lower == b"content-encoding":
                encodings.append(value)
        if b"json" not in content_type and b"event" not in content_type:
            return False
        encoding = b",".join(encodings)
        if not all(map(is_readable, codings(encoding))):
            return False
        if encodings:
            self._decoder = AnswerDecoder(encoding, MAX_DECODED_BYTES)
        return True

    def _look(self, body: bytes) -> None:
        pieces = (body,) if self._decoder is None else self._decoder.feed(body)
        for piece in pieces:
            for start in range(0, len(piece), _SLICE_BYTES):
                if self._tells(piece[start : start + _SLICE_BYTES]):
                    self._looks = False
                    self._carry = b""
                    # A block in the application has accounted for the call.
                    if not self._context.blocks:
                        self._bypasses.found(self._path_class)
                    return

    def _tells(self, data: bytes) -> bool:
        window = self._carry + data
        keep = max(0, len(window) - _OVERLAP_BYTES)
        if b'"usage' in window or b'"billed_units"' in window or b'eval_count"' in window:
            for hit in _OBJECTS.finditer(window):
                counts = _object(window[hit.end() : hit.end() + MAX_OBJECT_BYTES])
                if counts is not None and _has_tokens(counts):
                    return True
                if counts is None and len(window) - hit.end() < MAX_OBJECT_BYTES:
                    keep = min(keep, hit.start())
            if _NUMBERS.search(window) is not None:
                return True
        self._carry = window[keep:]
        return False


def _object(text: bytes) -> Any:
    """The JSON object that the text begins with; None where it is not whole."""
    if b"}" not in text:
        return None
    try:
        return _decode(text.decode(errors="replace"))[0]
    except (ValueError, RecursionError):
        return None


def _has_tokens(counts: Any) -> bool:
    """A positive number stands under a name such as `prompt_tokens`, `totalTokenCount` or `search_units`."""
    return isinstance(counts, dict) and any(
        value.__class__ in (int, float) and value > 0 and ("token" in name.lower() or name == "search_units")
        for name, value in counts.items()
    )
