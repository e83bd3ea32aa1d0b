"""What Cohere's APIs share: billed units, error envelopes, and streams of either kind.

Cohere charges `billed_units`; `tokens` beside them has its hidden preamble in it, and `cached_tokens` is a part of
that. A search unit is one query with up to 100 documents (cohere.com/pricing).
Source: cohere SDK 7.3 (`api_meta_billed_units.py`, `usage.py`), recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import Api, CallRequest, Refusal, Rewrite, StreamReader
from .body import BodyReader, read_body
from .counts import member, part, text, total
from .fields import encode_members, raw_value
from .json_lines_reader import JsonLinesReader
from .openai_common import absorb_cost, details, openai_usage, retry_headers
from .sse import SseReader


class CohereApi(Api):
    """The parts that do not differ."""

    provider = "cohere"
    answer_members = frozenset(("id", "response_id", "generation_id", "model", "meta", "usage", "error", "message"))
    limit: str | None = None
    """The member that limits the output."""

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None:
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None and self.limit is not None:
            fields[self.limit] = raw_value(change.output_limit)
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return EitherReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode(_envelope(refusal)), retry_headers(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        event = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": refusal.message}}
        return b"event: message-end\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _envelope(refusal: Refusal) -> dict[str, str]:
    return {"message": refusal.message, "id": refusal.call_id, "code": refusal.code} | details(refusal)


def cohere_usage(reported: Mapping[str, Any]) -> TokenUsage | None:
    """A `usage` or `meta` object; None where it bills nothing that is known. Images that are counted and not measured
    in tokens come one to a call, and are billed like calls; so are search units.
    """
    billed = member(reported, "billed_units")
    if not billed:
        return _of_tokens(reported)
    images, read = part(billed, "image_tokens"), total(billed, "input_tokens")
    parts = max(part(billed, "text_tokens"), 0) + max(images, 0)
    made, searches = total(billed, "output_tokens"), total(billed, "search_units", "classifications", "images")
    pages = total(billed, "pages")
    if read is None and not parts:
        read = total(billed, "total_tokens")  # as LiteLLM passes other makers' rerankers on
    if read is None and not parts and searches is None and pages is None:
        return None
    usage = TokenUsage.from_totals(max(read or 0, parts) if parts else read or 0, made or 0, image_input_tokens=images)
    return msgspec.structs.replace(usage, request=max(searches or 0, 0), page=max(pages or 0, 0))


def _of_tokens(reported: Mapping[str, Any]) -> TokenUsage | None:
    """Private deployments bill nothing, and still count."""
    tokens = member(reported, "tokens")
    read = total(tokens, "input_tokens")
    if read is None:
        return None
    made = total(tokens, "output_tokens") or 0
    return TokenUsage.from_totals(read, made, cached_input_tokens=part(reported, "cached_tokens"))


def absorb_end(report: Report, answer: Mapping[str, Any]) -> None:
    """What a whole answer, or the last event of a stream, says of itself: in `usage` (version 2) or `meta`. Other
    makers' rerankers use OpenAI's form.
    """
    report.model = text(answer, "model") or report.model
    own_id = text(answer, "id") or text(answer, "response_id") or text(answer, "generation_id")
    report.provider_request_id = report.provider_request_id or own_id
    reported = member(answer, "usage", "meta")
    usage = cohere_usage(reported)
    if usage is None and reported and reported is answer.get("usage"):
        usage = openai_usage(reported, gap_is_input=True)
    if usage is not None:
        report.usage = usage
        report.finished = True
    absorb_cost(report, reported)


def absorb_plain(report: Report, answer: Mapping[str, Any]) -> None:
    """A whole answer. Errors of all versions are `{"message": "…"}`; a message that was generated is an object."""
    absorb_end(report, answer)
    error = answer.get("error") or member(answer, "delta").get("error")
    report.failed = report.failed or type(answer.get("message")) is str or bool(error)


class EitherReader(StreamReader):
    """Version 1 streams lines of JSON, or events where the client accepts these; version 2 events. The first byte
    tells which.
    """

    def __init__(self, absorb: Callable[[Report, Mapping[str, Any]], None]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._reader: SseReader | JsonLinesReader | None = None

    def feed(self, chunk: bytes) -> bytes:
        if self._reader is not None:
            return self._reader.feed(chunk)
        text = chunk.lstrip()  # space before the stream tells nothing
        if text:
            self._reader = (JsonLinesReader if text[:1] == b"{" else SseReader)(self._absorb)
            self._reader.report = self.report
            self._reader.feed(text)
        return chunk

    def finish(self) -> bytes:
        return b"" if self._reader is None else self._reader.finish()

    @property
    def unfinished(self) -> int:
        return 0 if self._reader is None else self._reader.unfinished
