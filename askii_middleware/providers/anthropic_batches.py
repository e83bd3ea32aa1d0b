"""Anthropic's message batches: many messages requests in one, answered within a day at half the price.

The answer to the request is the batch's state, which has no counts. They come with the results, as lines of JSON, each
with one whole message, and are complete only when the last line has passed.
Source: anthropic SDK 2.12 (`types/messages/message_batch*.py`, `batch_create_params.py`), recorded results (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import NOTHING_USED, Report, TokenUsage, added, prompt_class
from .anthropic import MessagesApi
from .anthropic_common import absorb_messages
from .base import BatchItems, CallRequest, InvalidRequestError, Refusal, Rewrite, StreamReader
from .counts import count, member, text
from .fields import DECODE_ERRORS, decode_object, encode_members
from .json_lines import LineFramer

BATCH = "batch"
"""The service tier, which has prices of its own."""
MAX_LINE_BYTES = 8_388_608
"""A message of 128,000 tokens, with what its server tools found, fits many times."""
MAX_MODELS = 100
MAX_SUMS = 8 * MAX_MODELS
_decode_requests = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_params = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MessageBatchesApi(MessagesApi):
    """`POST …/messages/batches`."""

    name = "anthropic.batches"
    kind = "batch"
    suffixes = ("/messages/batches",)
    sights = ("/messages/batches/{id}", "/messages/batches/{id}/results")
    stream_types = (b"application/x-jsonl", b"application/x-ndjson", b"application/jsonl", b"application/binary")
    answer_members = frozenset(("id", "type", "processing_status", "request_counts", "error"))

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "requests" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:  # noqa: ARG002 - each item's count
        items: dict[str, BatchItems] = {}
        batch = CallRequest(model=None, background=True, service_tier=BATCH, fields=fields)
        others: set[str] = set()
        for index, (params, size) in enumerate(_params(fields)):
            try:
                item = super().parse(params, size)
            except InvalidRequestError as error:
                raise InvalidRequestError(f"requests[{index}].params.{error}") from error
            name = item.model
            if name is None:
                raise InvalidRequestError(f"requests[{index}].params.model must be set")
            if name not in items and len(items) == MAX_MODELS:
                raise InvalidRequestError(f"requests: a batch may name at most {MAX_MODELS} models")
            known = items.get(name) or BatchItems(name, 0, 0, 0)
            limit = item.output_limit
            items[name] = BatchItems(
                name,
                known.input_tokens + item.input_bound,
                known.output_tokens + (limit or 0),
                known.unlimited + (limit is None),
            )
            batch.input_bound += item.input_bound
            batch.input_estimate += item.input_estimate
            batch.media = batch.media or item.media
            batch.remote_input = batch.remote_input or item.remote_input
            if len(others) < MAX_MODELS:
                others.update(item.other_models)
        batch.items = tuple(items.values())
        batch.model = batch.items[0].model if batch.items else None
        batch.output_limit = None if any(of.unlimited for of in batch.items) else sum(of[2] for of in batch.items)
        batch.other_models = tuple(sorted(others))
        return batch

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:  # noqa: ARG002 - each item stays as it came
        return encode_members(request.fields)

    def accepts(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - each item names its own
        return False

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - there is none to hide
        return ResultsReader()

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("type") == "message_batch"

    def stream_error(self, refusal: Refusal) -> bytes:
        return self.refusal(refusal)[0] + b"\n"

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        if answer.get("type") == "error" or answer.get("error"):
            report.failed = True
            return
        status = text(answer, "processing_status")
        if status is None:
            return
        report.provider_request_id = text(answer, "id") or report.provider_request_id
        report.service_tier = BATCH
        report.deferred = True
        counts = member(answer, "request_counts")
        if status == "ended" and count(counts.get("succeeded")) == 0:
            report.usage, report.deferred = NOTHING_USED, False


class ResultsReader(StreamReader):
    """Sums the usage of all results, by model and by the class of the prompt. The report says nothing before the last
    line has been read, and stays
    unfinished where a line could not be: part of a sum is no sum.
    """

    def __init__(self) -> None:
        self.report = Report(service_tier=BATCH)
        self._lines = LineFramer(MAX_LINE_BYTES)
        self._sums: dict[tuple[str, int], TokenUsage] = {}
        self._complete = True

    def feed(self, chunk: bytes) -> bytes:
        for line in self._lines.push(chunk):
            self._read(line)
        return chunk

    def finish(self) -> bytes:
        for line in self._lines.finish():
            self._read(line)
        report = self.report
        if self._complete and not self._lines.left_out:
            ranked = sorted(self._sums.items(), key=lambda entry: entry[1].total_tokens, reverse=True)
            (first, _), report.usage = ranked[0] if ranked else (("", 0), NOTHING_USED)
            report.model = first or None  # a result without a model: as the batch's others
            report.other_usage = tuple([(model or first, usage) for (model, _), usage in ranked[1:]])
            report.finished = True
        return b""

    def _read(self, line: bytes) -> None:
        entry = decode_object(line)
        result = member(entry or {}, "result")
        kind = text(result, "type")
        if kind is None:
            self._complete = False
            self.report.failed = self.report.failed or text(entry or {}, "type") == "error"
        elif kind == "succeeded":
            message = Report()
            absorb_messages(message, member(result, "message"))
            if message.usage is None:
                self._complete = False
                return
            for model, usage in ((message.model or "", message.usage), *message.other_usage):
                self._add(model, usage)

    def _add(self, model: str, usage: TokenUsage) -> None:
        key = (model, prompt_class(usage))
        known = self._sums.get(key)
        if known is None and len(self._sums) == MAX_SUMS:
            self._complete = False
            return
        self._sums[key] = usage if known is None else added(known, usage)


def _params(fields: Mapping[str, msgspec.Raw]) -> list[tuple[dict[str, msgspec.Raw], int]]:
    """Each item's messages request, and its length."""
    try:
        requests = _decode_requests(fields["requests"])
    except DECODE_ERRORS:
        raise InvalidRequestError("requests must be a list of objects") from None
    found = []
    for index, request in enumerate(requests):
        params = request.get("params", msgspec.Raw(b"null"))
        try:
            found.append((_decode_params(params), len(bytes(params))))
        except DECODE_ERRORS:
            raise InvalidRequestError(f"requests[{index}].params must be an object") from None
    return found
