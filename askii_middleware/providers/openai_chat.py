"""OpenAI chat completions, as OpenAI, Azure and most other providers and gateways speak them.

Source: openai SDK 3.54 (`types/chat/completion_create_params.py`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .base import CallRequest, InvalidRequestError, Rewrite
from .bounds import chat_bound
from .fields import (
    MAX_CHOICES,
    MAX_OUTPUT_LIMIT,
    as_end_user,
    checked_model,
    is_set,
    raw_value,
    read_bool,
    read_int,
    read_model,
    read_text,
    read_value,
)
from .openai_choices import ChoicesApi, asks_for_usage

OLD_LIMIT = "max_tokens"
NEW_LIMIT = "max_completion_tokens"
MAX_ALTERNATIVES = 16
_NEW_LIMIT_FAMILIES = ("o1", "o3", "o4", "o5", "gpt-5", "gpt-6", "gpt-7")
"""OpenAI's reasoning families, which refuse `max_tokens`."""


class ChatApi(ChoicesApi):
    """`POST …/chat/completions`."""

    name = "openai.chat"
    family = "openai.chat"
    kind = "text"
    suffixes = ("/chat/completions",)
    chunk_object = "chat.completion.chunk"

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "messages" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        old, new = _limit(fields, OLD_LIMIT), _limit(fields, NEW_LIMIT)
        bound = chat_bound(fields, body_bytes)
        stream = read_bool(fields, "stream")
        return CallRequest(
            model=read_model(fields),
            alternatives=_alternatives(fields),
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


def _limit(fields: Mapping[str, msgspec.Raw], name: str) -> int | None:
    """A limit; None where there is none. Local servers (llama.cpp, LM Studio) write "none" as -1 or 0."""
    limit = read_int(fields, name, minimum=-1, maximum=MAX_OUTPUT_LIMIT)
    return limit if limit is not None and limit > 0 else None


def _alternatives(fields: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """What a gateway may call instead: OpenRouter's `models` (openrouter.ai/docs, model routing) and LiteLLM's
    `fallbacks`, of names or of objects with a `model` (its proxy's client-side fallbacks).
    """
    found: list[str] = []
    for name in ("models", "fallbacks"):
        if name in fields and is_set(fields, name):
            entries = read_value(fields, name)
            if not isinstance(entries, list) or len(entries) > MAX_ALTERNATIVES:
                raise InvalidRequestError(f"{name} must be a list of at most {MAX_ALTERNATIVES} models")
            for entry in entries:
                model = entry.get("model") if isinstance(entry, dict) else entry
                if type(model) is not str or not model:
                    raise InvalidRequestError(f"{name} must name models")
                found.append(checked_model(model))
    return tuple(found)
