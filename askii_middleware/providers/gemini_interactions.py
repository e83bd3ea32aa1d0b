"""Gemini's Interactions: one turn of a model or of an agent, streamed or in the background.

`total_tokens` = input + tool use + output + thoughts; the cached tokens are a part of the input. A background
interaction is answered at once; a GET of its id tells what it used.
Source: google-genai SDK 3.4 (`_gaos/types/interactions/`: `usage.py`, `createmodelinteraction.py`, `interaction*.py`,
`stepdelta*.py`, `errorevent.py`), a recorded answer with searches (2026-11). The event names before SDK 2
(`interaction.start`, `content.delta`, `interaction.complete`) are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, Refusal, Rewrite, StreamReader
from .bounds import TOOLS_TOKENS
from .counts import count, member, part, text, text_bytes, total
from .fields import (
    MAX_OUTPUT_LIMIT,
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
from .gemini_bounds import Media, bound_of
from .gemini_common import GeminiApi, add_searches, billed_searches, labelled_user, modalities, per_prompt, usage_of
from .gemini_stream import PathsReader
from .openai_common import details, retry_headers
from .sse import SseReader

_PATHS = (
    *(("id",), ("model",), ("object",), ("status",), ("service_tier",), ("usage",), ("error",)),
    *(("steps", "*", "type"), ("steps", "*", "arguments", "queries")),
)
_RUNNING = frozenset(("in_progress", "queued"))
_REMOTE = ("previous_interaction_id", "cached_content", "environment", "agent", "continuation_token")
_CLIENT_TOOLS = frozenset(("function", "computer_use"))
_MEDIA_TYPES = {"image": "image/", "audio": "audio/", "video": "video/", "document": "application/pdf"}
_HOLDERS = ("content", "result", "parts")
_MAX_DEPTH = 12
_STARTS = ("interaction.", "step.", "content.")


class InteractionsApi(GeminiApi):
    """`POST …/interactions`."""

    name = "gemini.interactions"
    family = "gemini.interactions"
    kind = "text"
    suffixes = ("/interactions",)
    sights = ("/interactions/{id}",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return ("model" in fields or "agent" in fields) and ("input" in fields or "continuation_token" in fields)

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        config = read_raw_object(fields, "generation_config")
        media = Media()
        raw = fields.get("input")
        if raw is not None and bytes(raw)[:1] != b'"':
            _weigh(media, read_value(fields, "input"), _MAX_DEPTH)
        tools, server_tools = _tools(fields)
        media.remote = media.remote or server_tools or any(is_set(fields, name) for name in _REMOTE)
        bound = bound_of(media, body_bytes, tools)
        asked = bytes(fields["response_modalities"]).lower() if "response_modalities" in fields else b""
        return CallRequest(
            model=read_model(fields) or read_text(fields, "agent"),
            stream=read_bool(fields, "stream"),
            background=read_bool(fields, "background"),
            output_limit=read_int(config, "max_output_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT) or None,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media or b"image" in asked or b"audio" in asked,
            remote_input=bound.remote,
            end_user=labelled_user(fields),
            service_tier=read_text(fields, "service_tier"),
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None and "agent" not in fields:
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None and "agent" not in fields:  # agents take no generation config
            config = read_raw_object(fields, "generation_config")
            config["max_output_tokens"] = raw_value(change.output_limit)
            fields["generation_config"] = msgspec.Raw(encode_members(config))
        return encode_members(fields)

    def takes_limit(self, request: CallRequest) -> bool:
        return "agent" not in request.fields

    def accepts(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - no model stands in for an agent
        return "agent" not in request.fields

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return SseReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return PathsReader(self.absorb, _PATHS)

    def read_body(self, body: bytes) -> Report:
        reader = self.body_reader()
        reader.feed(body)
        reader.finish()
        return reader.report

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        event = answer.get("event_type")
        if type(event) is str:
            return event.startswith(_STARTS)
        return answer.get("object") == "interaction" or ("steps" in answer and "status" in answer)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        event = answer.get("event_type")
        if type(event) is not str:
            _absorb_interaction(report, answer, event=False)
        elif event.endswith(".delta"):
            _absorb_usage(report, member(answer, "metadata").get("total_usage"))
            delta = member(answer, "delta")
            size = sum(text_bytes(delta.get(name)) for name in ("text", "arguments", "content"))
            report.visible_bytes += size
            report.visible_deltas += size > 0
        elif event == "error":
            report.failed = True
        else:
            _absorb_usage(report, answer.get("usage"))
            _absorb_interaction(report, member(answer, "interaction"), event=True)
            if event in ("interaction.completed", "interaction.complete"):
                report.finished = True

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode({"error": _error(refusal)}), retry_headers(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        event = {"event_type": "error", "error": _error(refusal)}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


def interactions_usage(usage: object) -> TokenUsage | None:
    """A usage object of an interaction; None if it counts nothing."""
    if not isinstance(usage, dict):
        return None
    prompt, answer = total(usage, "total_input_tokens"), total(usage, "total_output_tokens")
    everything = total(usage, "total_tokens")
    if prompt is None and answer is None and everything is None:
        return None
    cached = "cached_tokens_by_modality"
    return usage_of(
        prompt,
        answer,
        everything,
        tools=part(usage, "total_tool_use_tokens"),
        thoughts=part(usage, "total_thought_tokens"),
        cached=part(usage, "total_cached_tokens"),
        media_in=modalities(usage, "input_tokens_by_modality", "tool_use_tokens_by_modality"),
        media_cached=modalities(usage, cached) if usage.get(cached) is not None else None,
        media_out=modalities(usage, "output_tokens_by_modality"),
    )


def _absorb_interaction(report: Report, interaction: Mapping[str, Any], *, event: bool) -> None:
    if not interaction:
        return
    report.model = text(interaction, "model") or report.model
    report.provider_request_id = text(interaction, "id") or report.provider_request_id
    report.service_tier = text(interaction, "service_tier") or report.service_tier
    _absorb_usage(report, interaction.get("usage"))
    steps = interaction.get("steps")
    listed = steps if isinstance(steps, list) else []
    queries = [query for step in listed if isinstance(step, dict) for query in _queries(step)]
    add_searches(report, billed_searches(queries, report.model))
    status = text(interaction, "status")
    report.failed = report.failed or status == "failed" or bool(interaction.get("error"))
    if not event:
        report.deferred = status in _RUNNING
        report.finished = report.finished or (status is not None and not report.deferred)


def _absorb_usage(report: Report, usage: object) -> None:
    found = interactions_usage(usage)
    if found is None:
        return
    searches = report.usage.web_search if report.usage is not None else 0
    tools = usage.get("grounding_tool_count") if isinstance(usage, dict) else None
    report.usage = found
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") == "google_search":
            counted = count(tool.get("count")) or 0
            searches = max(searches, min(counted, 1) if per_prompt(report.model) else counted)
    add_searches(report, searches)


def _queries(step: Mapping[str, Any]) -> list[Any]:
    queries = member(step, "arguments").get("queries") if step.get("type") == "google_search_call" else None
    return queries if isinstance(queries, list) else []


def _weigh(media: Media, value: object, depth: int) -> None:
    """Content, steps or turns, and lists of them."""
    if not depth:
        media.remote = True
    elif isinstance(value, list):
        for item in value:
            _weigh(media, item, depth - 1)
    elif isinstance(value, dict):
        kind = value.get("type")
        media.remote = media.remote or value.get("uri") is not None
        if type(kind) is str and kind in _MEDIA_TYPES:
            media.payload(value.get("mime_type") or _MEDIA_TYPES[kind], value.get("data"))
        for name in _HOLDERS:
            if name in value:
                _weigh(media, value[name], depth - 1)


def _tools(fields: Mapping[str, msgspec.Raw]) -> tuple[int, bool]:
    """Tokens that tools add beside their descriptions, and whether the server runs any of them itself."""
    tools = read_value(fields, "tools") if "tools" in fields else None
    if not tools:
        return 0, False
    kinds = [member({"tool": tool}, "tool").get("type") for tool in tools] if isinstance(tools, list) else [None]
    client = all(type(kind) is str and kind in _CLIENT_TOOLS for kind in kinds)
    return TOOLS_TOKENS * (1 + len(kinds)), not client


def _error(refusal: Refusal) -> dict[str, str]:
    """Here the code is a word; a number would not fit the SDK's type."""
    return {"code": refusal.code, "message": refusal.message, **details(refusal)}
