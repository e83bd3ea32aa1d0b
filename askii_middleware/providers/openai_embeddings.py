"""OpenAI embeddings, and the providers that speak like them.

Source: openai SDK 3.54 (`types/embedding_create_params.py`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .base import CallRequest, StreamReader
from .bounds import text_bound
from .fields import as_end_user, read_model, read_text
from .openai_common import OpenAiApi, absorb_cost, absorb_head, is_error, openai_usage
from .sse import SseReader


class EmbeddingsApi(OpenAiApi):
    """`POST …/embeddings`."""

    name = "openai.embeddings"
    family = "openai.embeddings"
    kind = "embedding"
    suffixes = ("/embeddings",)
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "input" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = text_bound(body_bytes)
        return CallRequest(
            model=read_model(fields),
            output_limit=0,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            end_user=as_end_user(read_text(fields, "user")),
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - embeddings are never streamed
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("object") == "list" and "usage" in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_head(report, answer)
        report.failed = report.failed or is_error(answer)
        report.usage = openai_usage(answer.get("usage"), gap_is_input=True) or report.usage
        absorb_cost(report, answer.get("usage"))
        report.finished = report.finished or "usage" in answer
