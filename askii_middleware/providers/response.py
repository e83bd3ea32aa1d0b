"""Reading whatever an SDK hands back: for `usage.record(...)`, where the caller has a response and no wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..usage import Report
from . import APIS
from .anthropic import anthropic_usage
from .counts import text
from .fields import decode_object
from .openai_common import openai_usage
from .sse import Framer

_BULK = {"data"}
"""Members that only hold results, such as embeddings, and are not worth dumping."""


def read_response(response: object) -> Report:
    """A provider's response object (anything with pydantic's `model_dump`), a mapping, JSON as text or bytes, or one
    stream chunk in any of these forms; what it does not say leaves the report as it is. Raises TypeError for an object
    of another kind, ValueError for text that is neither JSON nor a server-sent event.
    """
    report = Report()
    record_into(report, response)
    return report


def record_into(report: Report, response: object) -> None:
    """Merge a response or the next stream chunk of the same call into a report. See `read_response`."""
    for answer in _answers(response):
        api = next((api for api in APIS if api.recognises(answer)), None)
        if api is not None:
            api.absorb(report, answer)
        elif answer.get("error"):
            report.failed = True
        else:
            _absorb_counts(report, answer)


def _answers(response: object) -> list[Mapping[str, Any]]:
    if isinstance(response, str):
        response = response.encode(errors="surrogatepass")
    if isinstance(response, bytes | bytearray | memoryview):
        return _parsed(bytes(response))
    if isinstance(response, Mapping):
        return [dict(response)]
    dump = getattr(response, "model_dump", None)
    if callable(dump):
        dumped = dump(exclude=_BULK, warnings=False)
        if isinstance(dumped, dict):
            return [dumped]
    raise TypeError(
        f"cannot read usage from {type(response).__qualname__}: pass the response itself or each chunk of a stream, "
        "not the stream, the HTTP response or a coroutine"
    )


def _parsed(data: bytes) -> list[Mapping[str, Any]]:
    answer = decode_object(data)
    if answer is not None:
        return [answer]
    framer = Framer()
    events = [block.data for block in framer.push(data) + framer.finish() if block.data is not None]
    answers = [answer for event in events if (answer := decode_object(event)) is not None]
    if not answers and events != [b"[DONE]"]:
        raise ValueError("neither a JSON object nor a server-sent event")
    return list(answers)


def _absorb_counts(report: Report, answer: Mapping[str, Any]) -> None:
    """A usage object by itself, or an object that has one: known by its members' names. Other objects say nothing,
    such as the events that SDKs derive from those on the wire.
    """
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        usage = answer
    cached_apart = "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage
    if cached_apart and "prompt_tokens" not in usage:
        found = anthropic_usage(usage, report.usage)
    else:
        found = openai_usage(usage)
    if found is not None:
        report.usage = found
        report.model = text(answer, "model") or report.model
