"""OpenAI completions (the older API with `prompt`), and fill-in-the-middle APIs of the same shape.

Source: openai SDK 3.54 (`types/completion_create_params.py`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .base import CallRequest
from .bounds import text_bound
from .fields import MAX_CHOICES, MAX_OUTPUT_LIMIT, as_end_user, read_bool, read_int, read_model, read_text, read_value
from .openai_choices import ChoicesApi, asks_for_usage


class CompletionsApi(ChoicesApi):
    """`POST …/completions`."""

    name = "openai.completions"
    family = "openai.completions"
    kind = "text"
    suffixes = ("/completions",)
    chunk_object = "text_completion"
    default_output_limit = 16

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "prompt" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = text_bound(body_bytes)
        stream = read_bool(fields, "stream")
        n = read_int(fields, "n", minimum=1, maximum=MAX_CHOICES) or 1
        best_of = read_int(fields, "best_of", minimum=1, maximum=MAX_CHOICES) or 1
        return CallRequest(
            model=read_model(fields),
            stream=stream,
            output_limit=read_int(fields, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT),
            choices=_prompts(fields) * max(n, best_of),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            usage_requested=stream and asks_for_usage(fields),
            end_user=as_end_user(read_text(fields, "user")),
            service_tier=read_text(fields, "service_tier"),
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> str:  # noqa: ARG002 - the same for every model
        return "max_tokens"

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "choices" in answer and answer.get("object") == "text_completion"


def _prompts(fields: Mapping[str, msgspec.Raw]) -> int:
    """How many prompts a request has: a string and a list of tokens are one, a list of either is as many. Each of
    them gets its own `n` answers.
    """
    if bytes(fields["prompt"])[:1] != b"[":
        return 1
    prompts = read_value(fields, "prompt")
    return max(len(prompts), 1) if prompts and type(prompts[0]) is not int else 1
