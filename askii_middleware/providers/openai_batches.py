"""OpenAI batches (Azure's and Groq's alike), and Mistral's batch jobs: calls from an uploaded file, answered later.

What the calls are stands in the file, so a request says nothing about their size; Mistral also takes them inline. The
batch object tells its state and, once it is over, the usage of all its calls together (OpenAI, since September 2025;
Groq's and Mistral's never do). Whatever was served this way has the prices of the tier `batch`. Sources: openai SDK
3.54 (`types/batch.py`), mistralai SDK 3.7 (`createbatchjobrequest.py`, `batchjob.py`), a recorded batch, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from ..usage import Report
from .base import BatchItems, CallRequest, StreamReader
from .bounds import TEMPLATE_TOKENS
from .counts import member, text, total
from .fields import is_set, read_model, read_text, read_value
from .openai_common import OpenAiApi, absorb_head, openai_usage
from .sse import SseReader

_GOING_ON = frozenset(("validating", "in_progress", "finalizing", "cancelling"))
_MISTRAL_GOING_ON = frozenset(("queued", "running", "cancellation_requested"))
_BROKEN_OFF = frozenset(("failed", "cancelled"))
_FILES = ("input_file_id", "input_files")
_WITHOUT_OUTPUT = ("/embeddings", "/moderations", "/classifications")


class BatchesApi(OpenAiApi):
    """`POST …/batches`, `…/batch/jobs`; `GET …/batches/{id}`, `…/batch/jobs/{id}` tell how far it is."""

    name = "openai.batches"
    family = "openai.batches"
    kind = "batch"
    suffixes = ("/batches", "/batch/jobs")
    sights = ("/batches/{id}", "/batch/jobs/{id}")
    default_output_limit = 0
    answer_members = OpenAiApi.answer_members | {"request_counts", "completed_requests"}

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "endpoint" in fields and any(name in fields for name in (*_FILES, "requests"))

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        return CallRequest(
            model=read_model(fields),
            background=True,
            output_limit=0,
            input_bound=body_bytes,
            remote_input=any(is_set(fields, name) for name in _FILES),
            service_tier="batch",
            items=_items(fields, body_bytes),
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - batches are never streamed
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("object") == "batch"

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_head(report, answer)
        state = (text(answer, "status") or "").lower()
        # Members come one by one where the answer is large: everything is decided anew from those there are.
        report.deferred = state in _GOING_ON or state in _MISTRAL_GOING_ON
        over = bool(state) and not report.deferred
        usage = openai_usage(answer.get("usage")) if over else None
        done = total(member(answer, "request_counts"), "completed") or total(answer, "completed_requests")
        if done and usage is not None and not usage.total_tokens:
            usage = None  # zeros stand there until somebody has counted
        # Of the prompts only the sum is told: the average decides their tier.
        report.usage = usage and replace(usage, largest_prompt=-(-usage.input_tokens // max(done or 1, 1)))
        nothing_done = state in _BROKEN_OFF and report.usage is None and not done
        report.failed = bool(answer.get("error")) or nothing_done
        report.finished = over
        if state:
            report.service_tier = "batch"


def _items(fields: Mapping[str, msgspec.Raw], body_bytes: int) -> tuple[BatchItems, ...]:
    """Calls that stand in the request itself, all of one model; none where there are others in a file, too."""
    calls = read_value(fields, "requests")
    model = read_model(fields)
    if not isinstance(calls, list) or not calls or model is None or any(is_set(fields, name) for name in _FILES):
        return ()
    limited = unlimited = 0
    if not (read_text(fields, "endpoint") or "").endswith(_WITHOUT_OUTPUT):
        for call in calls:
            body = member(call, "body") if isinstance(call, dict) else {}
            choices = max(total(body, "n") or 1, 1)
            limit = total(body, "max_tokens")
            if limit is None or limit < 0:
                unlimited += choices
            else:
                limited += choices * limit
    return (BatchItems(model, body_bytes + TEMPLATE_TOKENS * len(calls), limited, unlimited),)
