"""What InvokeModel's answers say, in each maker's form. See `bedrock_invoke`."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .anthropic_common import EVENTS, absorb_messages
from .bedrock_common import absorb_converse, bedrock_usage, count_text, is_error
from .counts import GARBAGE, count, member, text
from .fields import decode_object
from .openai_stream import absorb_choices

METRICS = "amazon-bedrock-invocationMetrics"
MEMBERS = frozenset(
    (
        *("id", "type", "usage", "stop_reason", "stopReason", "serviceTier", "message", "Message", "__type", "error"),
        *("inputTextTokenCount", "results", "totalOutputTextTokenCount"),
        *("prompt_token_count", "generation_token_count", METRICS),
    )
)
"""Top-level members of whole answers that count."""
_CONVERSE = frozenset(("output", "messageStart", "contentBlockStart", "contentBlockDelta", "messageStop", "metadata"))
_TEXTS = ("outputText", "generation", "completion", "text")
_LISTS = ("results", "outputs", "generations", "completions")


def absorb_invocation(report: Report, answer: Mapping[str, Any]) -> None:
    """Merge a whole answer, or one event of its stream: `{"chunk": {"bytes": …}}` with base64 as on the wire or, as
    boto3 hands it out, without.
    """
    if "chunk" in answer:
        inner = _inner(member(answer, "chunk").get("bytes"))
        if inner is None:
            return
        answer = inner
    elif is_error(answer) and "type" not in answer:
        report.failed = True
        return
    kind = answer.get("type")
    if type(kind) is str and kind in EVENTS:
        absorb_messages(report, answer)
    elif not _CONVERSE.isdisjoint(answer) or "inputTokens" in member(answer, "usage"):
        absorb_converse(report, answer)
    elif "choices" in answer or "prompt_tokens" in member(answer, "usage"):
        absorb_choices(report, answer)
    else:
        _absorb_plain(report, answer)
    report.model = None
    metrics = answer.get(METRICS)
    if isinstance(metrics, dict):
        report.usage = _measured(metrics, report.usage)
        report.finished = True


def _inner(data: object) -> dict[str, Any] | None:
    if type(data) is str:
        try:
            data = b64decode(data)
        except ValueError:
            return None
    return decode_object(data) if type(data) is bytes else None


def _absorb_plain(report: Report, answer: Mapping[str, Any]) -> None:
    """Amazon's Titan and Meta's Llama count in members of their own; the others not at all."""
    report.provider_request_id = report.provider_request_id or text(answer, "id")
    known = report.usage or TokenUsage()
    titan, llama = answer.get("inputTextTokenCount"), answer.get("prompt_token_count")
    output = answer.get("generation_token_count", answer.get("totalOutputTextTokenCount"))
    results = answer.get("results")
    if output is None and isinstance(results, list):
        output = sum(max(_whole(entry.get("tokenCount")), 0) for entry in results if isinstance(entry, dict))
    prompt = titan if titan is not None else llama
    if prompt is not None or (report.usage is not None and output is not None):
        report.usage = bedrock_usage(
            known.input if prompt is None else _whole(prompt), known.output_tokens if output is None else _whole(output)
        )
    for piece in _pieces(answer):
        count_text(report, piece)


def _pieces(answer: Mapping[str, Any]) -> Iterator[object]:
    """Generated text, wherever the makers put it."""
    for name in _TEXTS:
        yield answer.get(name)
    for name in _LISTS:
        entries = answer.get(name)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                yield from (entry.get(key) for key in _TEXTS)
                yield member(entry, "data").get("text")


def _measured(metrics: Mapping[str, Any], known: TokenUsage | None) -> TokenUsage | None:
    """Bedrock's own counts laid over the model's, which alone says how long caches live and what was reasoning."""
    if count(metrics.get("inputTokenCount")) is None:
        return known
    before = known or TokenUsage()
    written = _whole(metrics.get("cacheWriteInputTokenCount", before.cache_write_tokens))
    output = _whole(metrics.get("outputTokenCount", before.output_tokens))
    built = bedrock_usage(
        _whole(metrics.get("inputTokenCount")),
        output,
        read=_whole(metrics.get("cacheReadInputTokenCount", before.cache_read)),
        written=written,
        written_1h=min(before.cache_write_1h, max(written, 0)),
    )
    reasoning = min(before.reasoning, built.output)
    return msgspec.structs.replace(
        built, output=built.output - reasoning, reasoning=reasoning, web_search=before.web_search
    )


def _whole(value: object) -> int:
    """A count; none for `null`, `GARBAGE` for what is no count."""
    if value is None:
        return 0
    found = count(value)
    return GARBAGE if found is None else found
