"""Reading whatever an SDK hands back: for `usage.record(...)`, where the caller has a response and no wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..usage import Report
from . import APIS, gemini_live, realtime_usage
from .anthropic_batches import BATCH
from .anthropic_common import anthropic_usage
from .cohere_common import cohere_usage
from .counts import member, text
from .fields import decode_object
from .openai_common import absorb_cost, openai_usage
from .sse import Framer

_BULK = {"data"}
"""Members that only hold results, such as embeddings, and are not worth dumping."""
_BARE = {"promptTokenCount": ("usageMetadata",), "inputTokens": ("usage", "metadata")}
"""Members of a usage object by itself (Gemini's, Bedrock's), and where it stands in an answer, from inside out."""
_MAX_DEPTH = 6


def read_response(response: object) -> Report:
    """A provider's response object (anything with pydantic's `model_dump`), a mapping, JSON as text or bytes, or one
    stream chunk in any of these forms; what it does not say leaves the report as it is. Raises TypeError for an object
    of another kind, ValueError for text that is neither JSON nor server-sent events nor JSON in lines.
    """
    report = Report()
    record_into(report, response)
    return report


def record_into(report: Report, response: object) -> None:
    """Merge a response or the next stream chunk of the same call into a report. See `read_response`."""
    for answer in _answers(response):
        result = _batch_result(answer)
        if result:
            _absorbed(report, result)
            report.service_tier = BATCH
            continue
        if not _absorbed(report, answer):
            if answer.get("error"):
                report.failed = True
            else:
                _absorb_counts(report, answer)
        _absorb_headers(report, answer)


def _absorbed(report: Report, answer: Mapping[str, Any]) -> bool:
    if realtime_usage.absorb_event(report, answer) or gemini_live.absorb_message(report, answer):
        return True
    api = next((api for api in APIS if api.recognises(answer)), None)
    if api is not None:
        api.absorb(report, answer)
    return api is not None


def _batch_result(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer in one line of a batch's results, Anthropic's or OpenAI's; empty for anything else."""
    if "custom_id" not in answer:
        return {}
    return member(member(answer, "result"), "message") or member(member(answer, "response"), "body")


def _answers(response: object) -> list[Mapping[str, Any]]:
    if isinstance(response, str):
        response = response.encode(errors="surrogatepass")
    if isinstance(response, bytes | bytearray | memoryview):
        return [_wire_names(answer) for answer in _parsed(bytes(response))]
    if isinstance(response, Mapping):
        return [_wire_names(dict(response))]
    inner = getattr(response, "data", None)
    if callable(getattr(inner, "model_dump", None)):  # Mistral's SDK wraps the events of its streams
        response = inner
    dump = getattr(response, "model_dump", None)
    if callable(dump):
        dumped = dump(by_alias=True, exclude=_BULK, warnings=False)
        if isinstance(dumped, dict):
            # Their models fill in what did not come.
            return [_wire_names({name: value for name, value in dumped.items() if value is not None})]
    raise TypeError(
        f"cannot read usage from {type(response).__qualname__}: pass the response itself or each chunk of a stream, "
        "not the stream, the HTTP response or a coroutine"
    )


def _parsed(data: bytes) -> list[dict[str, Any]]:
    answer = decode_object(data)
    if answer is not None:
        return [answer]
    framer = Framer()
    events = [block.data for block in framer.push(data) + framer.finish() if block.data is not None]
    answers = [answer for event in events or data.splitlines() if (answer := decode_object(event)) is not None]
    if not answers and events != [b"[DONE]"]:
        raise ValueError("neither a JSON object nor a server-sent event")
    return answers


def _wire_names(answer: dict[str, Any]) -> dict[str, Any]:
    """Google's SDK has its members in Python's spelling; on the wire they are in JavaScript's."""
    if not any(name in answer for name in ("usage_metadata", "prompt_token_count")):
        return answer
    renamed: dict[str, Any] = _camel(answer, _MAX_DEPTH)
    return renamed


def _camel(value: Any, depth: int) -> Any:
    if not depth:
        return value
    if isinstance(value, list):
        return [_camel(item, depth - 1) for item in value]
    if not isinstance(value, dict):
        return value
    return {_camel_name(name): _camel(inner, depth - 1) for name, inner in value.items() if inner is not None}


def _camel_name(name: object) -> str:
    first, *rest = str(name).split("_")
    return first + "".join(word.capitalize() for word in rest)


def _absorb_counts(report: Report, answer: Mapping[str, Any]) -> None:
    """A usage object by itself, or an object that has one: known by its members' names. Other objects say nothing,
    such as the events that SDKs derive from those on the wire.
    """
    for mark, places in _BARE.items():
        if mark in answer:
            whole = answer
            for place in places:
                whole = {place: whole}
            if _absorbed(report, whole):
                return
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        usage = answer
    cached_apart = "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage
    if "billed_units" in usage:
        found = cohere_usage(usage)
    elif cached_apart and "prompt_tokens" not in usage:
        found = anthropic_usage(usage, report.usage)
    else:
        found = openai_usage(usage)
    if found is not None:
        report.usage = found
        report.model = text(answer, "model") or report.model
        absorb_cost(report, usage)


def _absorb_headers(report: Report, answer: Mapping[str, Any]) -> None:
    """boto3 hands the headers on beside the answer: some of Bedrock's models tell their counts only there."""
    headers = member(member(answer, "ResponseMetadata"), "HTTPHeaders")
    if headers:
        sent = {str(name).lower().encode(): str(value).encode() for name, value in headers.items()}
        for api in APIS:
            if not api.answer_headers.isdisjoint(sent):
                api.absorb_headers(report, sent)
                return
