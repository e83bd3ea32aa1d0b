"""Gemini's batches: `batchGenerateContent` and `asyncBatchEmbedContent`.

The answer is an operation named `batches/<id>` whose work goes on elsewhere. A GET of that name tells its state and,
once it is done, each item's answer with its usage, in two places: under `response` and under `metadata.output`. Only
one of them is counted. A batch that names an uploaded file says nothing about its size, and its results, in a file as
well, nothing about its usage here. What is done is billed at the batch tier, whatever each answer says.
Source: google-genai SDK 3.4 (`batches.py`), a recorded batch of two requests (2026-11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage, added, prompt_class
from .base import BatchItems, CallRequest, InvalidRequestError, Rewrite, StreamReader
from .counts import member, text, total
from .fields import DECODE_ERRORS, decode_json, encode_members, is_set, raw_value, read_raw_object, read_text
from .gemini_bounds import contents_bound, limits
from .gemini_common import GeminiApi, gemini_usage, snake
from .json_paths import PathScanner
from .sse import SseReader

BATCH_TIER = "batch"
_PREFIX = "batches/"
_HEAD_PATHS = (("name",), ("done",), ("error",), ("metadata", "model"), ("metadata", "state"))
_LISTS = ("inlinedResponses", "inlinedEmbedContentResponses")
_COUNTS = ("usageMetadata", "tokenCount")
_PLACES = (("response",), ("metadata", "output"))
_COUNT_PATHS = {
    (*place, name, "inlinedResponses", "*", "response", counts): place
    for place in _PLACES
    for name in _LISTS
    for counts in _COUNTS
}
_CONTENT_MEMBERS = ("contents", "systemInstruction", "content")
_ENDED_BADLY = ("_FAILED", "_CANCELLED", "_EXPIRED")
_decode_items = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


class GeminiBatchesApi(GeminiApi):
    """`POST …/models/{model}:batchGenerateContent` and `:asyncBatchEmbedContent`."""

    name = "gemini.batches"
    kind = "batch"
    suffixes = ("/{model}:batchGenerateContent", "/{model}:asyncBatchEmbedContent")
    sights = ("/batches/{id}",)
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "batch" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        batch = read_raw_object(fields, "batch")
        requests = _requests(batch)
        entering = estimate = leaving = unlimited = 0
        media, remote = False, requests is None
        for request in requests or ():
            bound = contents_bound(request, sum(map(len, map(bytes, request.values()))), *_CONTENT_MEMBERS)
            entering += bound.tokens
            estimate += bound.estimate
            media = media or bound.media
            remote = remote or bound.remote
            if "content" not in request:
                answer = limits(request)
                media = media or answer.media
                if answer.output is None:
                    unlimited += answer.choices
                else:
                    leaving += answer.output * answer.choices
        named = (read_text(batch, "model") or "").removeprefix("models/")
        return CallRequest(
            model=None,
            output_limit=0,
            input_bound=entering or body_bytes,
            input_estimate=estimate,
            media=media,
            remote_input=remote,
            background=True,
            service_tier=BATCH_TIER,
            items=(BatchItems(named, entering, leaving, unlimited),) if requests else (),
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        batch = read_raw_object(fields, "batch")
        if change.model is not None and is_set(batch, "model"):
            batch["model"] = raw_value(f"models/{change.model}")
            fields["batch"] = msgspec.Raw(encode_members(batch))
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - operations are never streamed
        return SseReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return BatchReader()

    def read_body(self, body: bytes) -> Report:
        reader = BatchReader()
        reader.feed(body)
        reader.finish()
        return reader.report

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return (text(answer, "name") or "").startswith(_PREFIX) and ("metadata" in answer or "done" in answer)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        output = member(member(answer, "metadata"), "output")
        sums = _Sums()
        for usage in list(_usages(member(answer, "response"))) or list(_usages(output)):
            sums.add(usage)
        _absorb(report, answer, sums.ranked())


class BatchReader(StreamReader):
    """Adds up the items of an operation as it passes, however many there are."""

    def __init__(self) -> None:
        self.report = Report()
        self._scanner = PathScanner((*_HEAD_PATHS, *_COUNT_PATHS))
        self._head: dict[str, Any] = {"metadata": {}}
        self._sums = {place: _Sums() for place in _PLACES}

    def feed(self, chunk: bytes) -> bytes:
        self._scanner.push(chunk)
        found, self._scanner.found = self._scanner.found, []
        for path, data, _ in found:
            try:
                value = decode_json(data)
            except (ValueError, RecursionError):
                continue  # no counts look like this
            place = _COUNT_PATHS.get(path)
            if place is not None:
                self._sums[place].add(_usage({path[-1]: value}))
            elif len(path) == 1:
                self._head[path[0]] = value
            else:
                self._head["metadata"][path[-1]] = value
        return chunk

    def finish(self) -> bytes:
        _absorb(self.report, self._head, self._sums[_PLACES[0]].ranked() or self._sums[_PLACES[1]].ranked())
        self.report.finished = self._scanner.closed
        return b""


def _requests(batch: Mapping[str, msgspec.Raw]) -> list[dict[str, msgspec.Raw]] | None:
    """The requests that stand in the body; None where they are in a file. Raises InvalidRequestError."""
    for name in ("inputConfig", snake("inputConfig")):
        holder = read_raw_object(read_raw_object(batch, name), "requests")
        if is_set(holder, "requests"):
            try:
                items = _decode_items(holder["requests"])
            except DECODE_ERRORS as error:
                raise InvalidRequestError(f"batch.{name}.requests.requests cannot be read: {error!s:.100}") from None
            return [read_raw_object(item, "request") for item in items]
    return None


def _absorb(report: Report, head: Mapping[str, Any], sums: list[TokenUsage]) -> None:
    metadata = member(head, "metadata")
    name = text(head, "name") or ""
    if name.startswith(_PREFIX):
        report.provider_request_id = name.removeprefix(_PREFIX) or None
    report.model = (text(metadata, "model") or "").removeprefix("models/") or report.model
    ended_badly = bool(head.get("error")) or (text(metadata, "state") or "").endswith(_ENDED_BADLY)
    report.failed = report.failed or ended_badly
    if head.get("done") is True or ended_badly:
        report.service_tier = BATCH_TIER
        if sums:
            report.usage = sums[0]
            report.other_usage = tuple([(report.model or "", usage) for usage in sums[1:]])
    # What failed as a whole cost nothing; what was done but is not counted here is estimated at its end.
    report.deferred = bool(name) and not ended_badly and report.usage is None


def _usages(holder: Mapping[str, Any]) -> Iterator[TokenUsage]:
    for name in _LISTS:
        items = member(holder, name).get("inlinedResponses")
        for item in items if isinstance(items, list) else ():
            usage = _usage(member(item, "response")) if isinstance(item, dict) else None
            if usage is not None:
                yield usage


def _usage(answer: Mapping[str, Any]) -> TokenUsage | None:
    """What one item used; embeddings may have no more than a `tokenCount`."""
    usage = gemini_usage(answer.get("usageMetadata"))
    tokens = total(answer, "tokenCount")
    return usage if usage is not None or tokens is None else TokenUsage.from_totals(tokens, 0)


class _Sums:
    """Counts of many items, added up by the class of their prompts."""

    def __init__(self) -> None:
        self._by_class: dict[int, TokenUsage] = {}

    def add(self, usage: TokenUsage | None) -> None:
        if usage is not None:
            key = prompt_class(usage)
            known = self._by_class.get(key)
            self._by_class[key] = usage if known is None else added(known, usage)

    def ranked(self) -> list[TokenUsage]:
        """The largest sum first; empty if nothing was counted."""
        return sorted(self._by_class.values(), key=lambda usage: usage.total_tokens, reverse=True)
