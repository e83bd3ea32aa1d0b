"""Mistral's own APIs: fill-in-the-middle, agents, OCR and conversations. Its chat and embeddings share OpenAI's paths.

Usage comes with every stream, and asking for it is refused. An agent is called by its id: the model stands in the
answer. A conversation's earlier turns, and mostly its model, are kept at Mistral.
Source: mistralai SDK 3.7 (`fim.py`, `agents.py`, `ocr.py`, `conversations.py` and their models), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, InvalidRequestError, Refusal, Rewrite, StreamReader
from .bounds import Bound, chat_bound, text_bound
from .counts import member, text, text_bytes, total
from .fields import (
    MAX_CHOICES,
    MAX_OUTPUT_LIMIT,
    checked_model,
    encode_members,
    is_set,
    raw_value,
    read_bool,
    read_int,
    read_model,
    read_raw_object,
    read_text,
    read_value,
)
from .openai_common import OpenAiApi, absorb_cost, details, is_error, openai_usage, retry_headers
from .openai_stream import ChoicesReader, absorb_choices, cut_choices
from .sse import SseReader
from .visible import shows_text

MAX_PAGES = 1_000
"""The longest document that is taken (docs.mistral.ai/capabilities/document_ai)."""
_STATUS_TYPES = {401: "unauthorized", 402: "insufficient_quota", 403: "forbidden", 429: "rate_limited"}


class MistralApi(OpenAiApi):
    """The parts that do not differ: they are like OpenAI's, but for the errors."""

    provider = "mistral"

    def limit_field(self, request: CallRequest, model: str) -> str | None:  # noqa: ARG002 - the same for every model
        return "max_tokens"

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode(self._error(refusal)), retry_headers(refusal)

    @staticmethod
    def _error(refusal: Refusal) -> dict[str, Any]:
        error = {
            "object": "error",
            "message": refusal.message,
            "type": _STATUS_TYPES.get(refusal.status, "invalid_request_error"),
            "param": None,
            "code": refusal.code,
        }
        return error | details(refusal)


class FimApi(MistralApi):
    """`POST …/fim/completions`."""

    name = "mistral.fim"
    family = "mistral.fim"
    kind = "text"
    suffixes = ("/fim/completions",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "prompt" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        return _choices_request(fields, text_bound(body_bytes), read_model(fields))

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return ChoicesReader()

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the chat API reads these, too
        return False

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_choices(report, answer)

    def shows_output(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - an agent's is not known
        return shows_text(model)

    def cut(self, report: Report, refusal: Refusal) -> bytes:
        return cut_choices(report, refusal, "chat.completion.chunk")


class AgentsApi(FimApi):
    """`POST …/agents/completions`. What an agent was told beforehand is not in the request."""

    name = "mistral.agents"
    family = "mistral.agents"
    suffixes = ("/agents/completions",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "messages" in fields and "agent_id" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        request = _choices_request(fields, chat_bound(fields, body_bytes), _agent(fields))
        return msgspec.structs.replace(request, remote_input=True)

    def accepts(self, request: CallRequest, model: str) -> bool:
        return model == request.model  # an agent's model is its own

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        return super().rewrite(request, Rewrite(output_limit=change.output_limit))


class OcrApi(MistralApi):
    """`POST …/ocr`, billed by the page."""

    name = "mistral.ocr"
    family = "mistral.ocr"
    kind = "ocr"
    suffixes = ("/ocr",)
    default_output_limit = 0
    answer_members = frozenset(("model", "usage_info", "object", "message", "error"))

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return is_set(fields, "document") and bytes(fields["document"])[:1] == b"{"

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:  # noqa: ARG002 - pages are billed
        return CallRequest(
            model=read_model(fields), output_limit=0, units=TokenUsage(page=_most_pages(fields)), fields=fields
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - never streamed
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "usage_info" in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.model = text(answer, "model") or report.model
        report.failed = report.failed or is_error(answer)
        pages = total(member(answer, "usage_info"), "pages_processed")
        if pages is not None:
            report.usage = TokenUsage(page=max(pages, 0), anomalous=pages < 0)
            report.finished = True


class ConversationsApi(MistralApi):
    """`POST …/conversations`, and what goes on with one: `…/conversations/{id}` and `…/{id}/restart`."""

    name = "mistral.conversations"
    family = "mistral.conversations"
    kind = "text"
    suffixes = ("/conversations", "/conversations/{id}", "/conversations/{id}/restart")
    answer_members = frozenset(("object", "conversation_id", "outputs", "usage", "message", "error"))

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "inputs" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        # Its entries have the shape of messages.
        entries = {"messages": fields["inputs"]} | {name: fields[name] for name in ("tools",) if name in fields}
        bound = chat_bound(entries, body_bytes)
        arguments = read_raw_object(fields, "completion_args")
        named = read_model(fields)
        return CallRequest(
            model=named or _agent(fields),
            stream=read_bool(fields, "stream"),
            output_limit=read_int(arguments, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote or named is None,
            fields=fields,
        )

    def accepts(self, request: CallRequest, model: str) -> bool:
        return is_set(request.fields, "model") or model == request.model

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None and is_set(fields, "model"):
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None:
            arguments = read_raw_object(fields, "completion_args") | {"max_tokens": raw_value(change.output_limit)}
            fields["completion_args"] = msgspec.Raw(encode_members(arguments))
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        kind = text(answer, "type") or ""
        return answer.get("object") == "conversation.response" or kind.startswith(_EVENTS)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.provider_request_id = report.provider_request_id or text(answer, "conversation_id")
        kind = text(answer, "type")
        if kind == "conversation.response.error" or is_error(answer):
            report.failed = True
        usage = openai_usage(answer.get("usage"))
        if usage is not None:
            report.usage = usage
            absorb_cost(report, answer.get("usage"))
            report.finished = True
        if kind is not None:
            report.model = text(answer, "model") or report.model
            _count(report, answer)
            return
        outputs = answer.get("outputs")
        for entry in outputs if isinstance(outputs, list) else ():
            if isinstance(entry, dict):
                report.model = text(entry, "model") or report.model
                if usage is None and "usage" in answer:
                    _count(report, entry)

    def stream_error(self, refusal: Refusal) -> bytes:
        event = {"type": "conversation.response.error", "message": refusal.message, "code": refusal.status}
        return b"event: conversation.response.error\ndata: " + msgspec.json.encode(event) + b"\n\n"


_EVENTS = ("conversation.response.", "message.output.", "tool.execution.", "agent.handoff.", "function.call.")


def _choices_request(fields: dict[str, msgspec.Raw], bound: Bound, model: str | None) -> CallRequest:
    return CallRequest(
        model=model,
        stream=read_bool(fields, "stream"),
        output_limit=read_int(fields, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT),
        choices=read_int(fields, "n", minimum=1, maximum=MAX_CHOICES) or 1,
        input_bound=bound.tokens,
        input_estimate=bound.estimate,
        media=bound.media,
        remote_input=bound.remote,
        service_tier=read_text(fields, "service_tier"),
        fields=fields,
    )


def _agent(fields: Mapping[str, msgspec.Raw]) -> str | None:
    """An agent's id takes the place of a model's name."""
    if not is_set(fields, "agent_id"):
        return None
    agent = read_value(fields, "agent_id")
    if type(agent) is not str or not agent:
        raise InvalidRequestError("agent_id must be a string")
    return checked_model(agent)


def _most_pages(fields: Mapping[str, msgspec.Raw]) -> int:
    """As many pages as are asked for; an image is one; other documents may have as many as are taken."""
    pages = read_value(fields, "pages")
    if isinstance(pages, list):
        return min(len(pages), MAX_PAGES)
    if pages is not None and type(pages) is not str:
        raise InvalidRequestError("pages must be a list of page numbers or a string of ranges")
    kind = read_text(read_raw_object(fields, "document"), "type")
    return 1 if kind == "image_url" else MAX_PAGES


def _count(report: Report, entry: Mapping[str, Any]) -> None:
    for piece in (entry.get("content"), entry.get("arguments")):
        size = text_bytes(piece)
        report.visible_bytes += size
        report.visible_deltas += size > 0
