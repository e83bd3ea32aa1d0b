"""What the APIs that answer with `choices` share: asking for usage in a stream, and reading it.

Source: openai SDK 3.54 (`types/chat/chat_completion_stream_options_param.py`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .base import CallRequest, Refusal, Rewrite, StreamReader
from .dialects import REFUSING_MEMBERS, REFUSING_MODELS
from .fields import encode_members, is_set, raw_value, read_bool, read_raw_object
from .openai_common import OpenAiApi
from .openai_stream import ChoicesReader, HidingReader, absorb_choices, cut_choices
from .visible import claude_shows, client_tools_only, shows_text

_HIDING_MEMBERS = frozenset(
    (
        # Rejected predictions are billed unseen; speech, searches and plugins are more than text.
        *("prediction", "audio", "modalities", "web_search_options", "plugins"),
        # OpenRouter's and Groq's ways to leave the reasoning out, and what makes models reason that mostly do not.
        *("reasoning", "include_reasoning", "reasoning_format", "reasoning_effort", "exclude_reasoning"),
        # Answers that are made and thrown away.
        "best_of",
    )
)


class ChoicesApi(OpenAiApi):
    """Streams tell their usage in a chunk that has to be asked for, and that can be taken out again."""

    can_inject_usage = True
    chunk_object: str
    """What `object` says in the chunks of a stream."""

    def injects_usage(self, request: CallRequest, model: str) -> bool:
        return (
            super().injects_usage(request, model)
            and not model.lower().startswith(REFUSING_MODELS)
            and not any(is_set(request.fields, name) for name in REFUSING_MEMBERS)
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        if not change.inject_usage:
            return super().rewrite(request, change)
        options = read_raw_object(request.fields, "stream_options")
        options["include_usage"] = raw_value(True)
        fields = request.fields | {"stream_options": msgspec.Raw(encode_members(options))}
        return super().rewrite(msgspec.structs.replace(request, fields=fields), change)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:
        return HidingReader() if hide_usage else ChoicesReader()

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_choices(report, answer)

    def shows_output(self, request: CallRequest, model: str) -> bool:
        if any(is_set(request.fields, name) for name in _HIDING_MEMBERS):
            return False
        if not client_tools_only(request.fields, "function", "custom"):
            return False
        return claude_shows(model, request.fields) if "claude" in model.lower() else shows_text(model)

    def cut(self, report: Report, refusal: Refusal) -> bytes:
        return cut_choices(report, refusal, self.chunk_object)


def asks_for_usage(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether `stream_options.include_usage` is true."""
    return "stream_options" in fields and read_bool(read_raw_object(fields, "stream_options"), "include_usage")
