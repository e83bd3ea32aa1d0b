"""OpenAI moderations, and Mistral's under the same path.

OpenAI's are free and report nothing: each call counts as one `request`, which the catalogue prices at 0. Mistral's
report tokens. Sources: openai SDK 3.54 (`types/moderation_create_params.py`), mistralai SDK 3.7
(`moderationresponse.py`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, StreamReader
from .bounds import text_bound
from .fields import read_model
from .openai_common import OpenAiApi, absorb_cost, absorb_head, openai_usage
from .sse import SseReader

DEFAULT_MODEL = "omni-moderation-latest"
"""What OpenAI runs where a request names none."""
_ONE_CALL = TokenUsage(request=1)


class ModerationsApi(OpenAiApi):
    """`POST …/moderations`."""

    name = "openai.moderations"
    family = "openai.moderations"
    kind = "moderation"
    suffixes = ("/moderations",)
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "input" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = text_bound(body_bytes)
        return CallRequest(
            model=read_model(fields) or DEFAULT_MODEL,
            output_limit=0,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            units=_ONE_CALL,
            billed_by_request=_ONE_CALL,
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - moderations are never streamed
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        results = answer.get("results")
        return (
            isinstance(results, list) and bool(results) and isinstance(results[0], dict) and "categories" in results[0]
        )

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_head(report, answer)
        report.failed = report.failed or bool(answer.get("error"))
        absorb_cost(report, answer.get("usage"))
        report.usage = openai_usage(answer.get("usage"), gap_is_input=True) or report.usage
        report.finished = report.finished or "results" in answer or "usage" in answer
