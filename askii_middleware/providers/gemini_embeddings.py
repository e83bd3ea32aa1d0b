"""Embeddings of Gemini's API. The older models send no usage at all: such a call is estimated.

Source: google-genai SDK 3.4 (`models.py`: `_EmbedContent*`, `types.py`: `EmbedContentResponse`), a recorded answer of
gemini-embedding-001 (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, Rewrite, StreamReader
from .counts import member, total
from .fields import DECODE_ERRORS, encode_members, raw_value, read_value
from .gemini_bounds import Media, bound_of, contents_bound
from .gemini_common import GeminiApi, either, gemini_usage, labelled_user, served_tier
from .sse import SseReader

_decode_items = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


class EmbedContentApi(GeminiApi):
    """`POST …/models/{model}:embedContent` and `:batchEmbedContents`. The body may name the model once more."""

    name = "gemini.embeddings"
    family = "gemini.embeddings"
    kind = "embedding"
    suffixes = ("/{model}:embedContent", "/{model}:batchEmbedContents")
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "content" in fields or "requests" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = contents_bound(fields, body_bytes, "content")
        media = Media()
        requests = read_value(fields, "requests") if "requests" in fields else None
        for request in requests if isinstance(requests, list) else ():
            media.contents(request.get("content") if isinstance(request, dict) else None)
        if requests is not None:
            bound = bound_of(media, body_bytes)
        return CallRequest(
            model=None,
            output_limit=0,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            end_user=labelled_user(fields),
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None:
            named = raw_value(f"models/{change.model}")
            if "model" in fields:
                fields["model"] = named
            if "requests" in fields:
                fields["requests"] = _renamed(fields["requests"], named)
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - embeddings are never streamed
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        embedded = isinstance(answer.get("embedding"), dict) or isinstance(answer.get("embeddings"), list)
        return embedded and (either(answer, "usageMetadata") is not None or _counted_each(answer) is not None)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.failed = report.failed or bool(answer.get("error"))
        metadata = either(answer, "usageMetadata")
        usage = gemini_usage(metadata, gap_is_input=True)
        if usage is not None:
            report.usage = usage
            report.service_tier = served_tier(metadata) or report.service_tier
            report.finished = True
        elif (tokens := _counted_each(answer)) is not None:
            report.usage = TokenUsage.from_totals(tokens, 0)
            report.finished = True


def _counted_each(answer: Mapping[str, Any]) -> int | None:
    """The tokens of all embeddings where each has its own count, as the SDK hands Vertex's predictions out; None where
    none has.
    """
    embeddings = answer.get("embeddings")
    entries = [entry for entry in embeddings if isinstance(entry, dict)] if isinstance(embeddings, list) else []
    counts = [total(member(entry, "statistics"), "tokenCount", "token_count") for entry in entries]
    found = [tokens for tokens in counts if tokens is not None]
    return sum(found) if found else None


def _renamed(requests: msgspec.Raw, model: msgspec.Raw) -> msgspec.Raw:
    """A list of requests with another model in each that names one."""
    try:
        items = _decode_items(requests)
    except DECODE_ERRORS:
        return requests
    changed = [encode_members({**item, "model": model} if "model" in item else item) for item in items]
    return msgspec.Raw(b"[" + b",".join(changed) + b"]")
