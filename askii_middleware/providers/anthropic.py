"""Anthropic messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .anthropic_common import (
    EVENTS,
    FAST,
    MessagesReader,
    absorb_messages,
    anthropic_usage,
    cut_messages,
    error_body,
    message_limit,
    other_models,
)
from .base import Api, CallRequest, Kind, Refusal, Rewrite, StreamReader
from .body import BodyReader, read_body
from .bounds import messages_bound
from .costs import COST_HEADERS, absorb_cost_headers
from .fields import (
    as_end_user,
    encode_members,
    is_set,
    raw_value,
    read_bool,
    read_model,
    read_text,
    read_value,
)
from .openai_common import retry_headers
from .visible import claude_shows, client_tools_only

__all__ = ["MessagesApi", "anthropic_usage"]

_HIDING_MEMBERS = ("mcp_servers", "container", "context_management")
"""What makes the provider generate text, or run tools, behind the stream."""
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")


class MessagesApi(Api):
    """`POST …/messages`."""

    name = "anthropic.messages"
    family = "anthropic"
    kind: Kind = "text"
    provider = "anthropic"
    suffixes = ("/messages",)
    answer_headers = COST_HEADERS

    def absorb_headers(self, report: Report, headers: Mapping[bytes, bytes]) -> None:
        absorb_cost_headers(report, headers)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "messages" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = messages_bound(fields, body_bytes)
        metadata = read_value(fields, "metadata")
        return CallRequest(
            model=read_model(fields),
            other_models=other_models(fields),
            stream=read_bool(fields, "stream"),
            output_limit=message_limit(fields),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            end_user=as_end_user(metadata.get("user_id")) if isinstance(metadata, dict) else None,
            service_tier=FAST if read_text(fields, "speed") == FAST else read_text(fields, "service_tier"),
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None:
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None:
            fields["max_tokens"] = raw_value(change.output_limit)
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return MessagesReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        kind = answer.get("type")
        return type(kind) is str and kind in EVENTS

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_messages(report, answer)

    def shows_output(self, request: CallRequest, model: str) -> bool:
        fields = request.fields
        if any(is_set(fields, name) for name in _HIDING_MEMBERS):
            return False
        return claude_shows(model, fields) and client_tools_only(fields, *_CLIENT_TOOLS)

    def cut(self, report: Report, refusal: Refusal) -> bytes:
        return cut_messages(report, refusal)

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode(error_body(refusal)), retry_headers(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode(error_body(refusal)) + b"\n\n"
