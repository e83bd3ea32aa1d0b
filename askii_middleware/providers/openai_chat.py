"""OpenAI chat completions, as OpenAI, Azure and most other providers and gateways speak them.

Source: openai SDK 3.54 (`types/chat/completion_create_params.py`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .base import CallRequest, Rewrite, StreamReader
from .bounds import chat_bound
from .fields import (
    MAX_CHOICES,
    MAX_OUTPUT_LIMIT,
    as_end_user,
    encode_members,
    is_set,
    raw_value,
    read_bool,
    read_int,
    read_model,
    read_raw_object,
    read_text,
)
from .openai_common import OpenAiApi
from .openai_stream import ChoicesReader, HidingReader, absorb_choices

OLD_LIMIT = "max_tokens"
NEW_LIMIT = "max_completion_tokens"
_NEW_LIMIT_FAMILIES = ("o1", "o3", "o4", "o5", "gpt-5", "gpt-6", "gpt-7")
"""OpenAI's reasoning families, which refuse `max_tokens`."""
_MISTRAL_FAMILIES = (
    *("mistral-", "ministral-", "codestral-", "magistral-", "devstral-", "pixtral-", "voxtral-", "open-mi"),
)
"""Mistral's own API answers 422 to `stream_options` and sends usage anyway. Its open weights served by others carry
the publisher before a slash.
"""


class ChoicesApi(OpenAiApi):
    """What chat completions and completions have in common."""

    can_inject_usage = True

    def injects_usage(self, request: CallRequest, model: str) -> bool:
        return (
            super().injects_usage(request, model)
            and not model.lower().startswith(_MISTRAL_FAMILIES)
            # Azure refuses `stream_options` together with its own data sources.
            and not is_set(request.fields, "data_sources")
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


class ChatApi(ChoicesApi):
    """`POST …/chat/completions`."""

    name = "openai.chat"
    family = "openai.chat"
    kind = "text"
    suffixes = ("/chat/completions",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "messages" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        old = read_int(fields, OLD_LIMIT, minimum=1, maximum=MAX_OUTPUT_LIMIT)
        new = read_int(fields, NEW_LIMIT, minimum=1, maximum=MAX_OUTPUT_LIMIT)
        bound = chat_bound(fields, body_bytes)
        stream = read_bool(fields, "stream")
        return CallRequest(
            model=read_model(fields),
            stream=stream,
            # Servers differ in which of two limits wins; the larger one bounds them all.
            output_limit=new if old is None else old if new is None else max(old, new),
            choices=read_int(fields, "n", minimum=1, maximum=MAX_CHOICES) or 1,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            usage_requested=stream and asks_for_usage(fields),
            end_user=as_end_user(read_text(fields, "safety_identifier") or read_text(fields, "user")),
            service_tier=read_text(fields, "service_tier"),
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> str:
        if is_set(request.fields, NEW_LIMIT):
            return NEW_LIMIT
        name = model.lower().rpartition("/")[2]
        return NEW_LIMIT if name.startswith(_NEW_LIMIT_FAMILIES) else OLD_LIMIT

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = request.fields
        if is_set(fields, OLD_LIMIT) and (change.model is not None or change.output_limit is not None):
            field = self.limit_field(request, change.model or request.model or "")
            if field == NEW_LIMIT and not is_set(fields, NEW_LIMIT):
                # The fallback takes the limit under its new name only.
                renamed = ((NEW_LIMIT if name == OLD_LIMIT else name, raw) for name, raw in fields.items())
                fields = dict(renamed)
            elif field == NEW_LIMIT and change.output_limit is not None:
                # Of two limits servers take different ones: both get the new value.
                fields = fields | {OLD_LIMIT: raw_value(change.output_limit)}
        return super().rewrite(msgspec.structs.replace(request, fields=fields), change)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "choices" in answer and answer.get("object") != "text_completion"


def asks_for_usage(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether `stream_options.include_usage` is true."""
    return "stream_options" in fields and read_bool(read_raw_object(fields, "stream_options"), "include_usage")
