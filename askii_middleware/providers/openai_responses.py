"""OpenAI responses.

A stream ends with `response.completed`, `.incomplete` or `.failed`, whose `response` is the whole answer; there is no
`[DONE]`. A background response is answered at once with `queued` and no usage: the work goes on elsewhere.
Source: openai SDK 3.54 (`types/responses/`), recorded streams of OpenAI, Azure and xAI (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, InvalidRequestError, Refusal, StreamReader
from .bounds import responses_bound
from .counts import member, part, text, text_bytes, total
from .fields import DECODE_ERRORS, MAX_OUTPUT_LIMIT, as_end_user, is_set, read_bool, read_int, read_model, read_text
from .openai_common import OpenAiApi, absorb_cost, absorb_head, openai_usage
from .openai_stream import CALL_TOKENS
from .sse import SseReader
from .visible import client_tools_only, shows_text

_REQUEST_MEMBERS = frozenset(("input", "prompt", "previous_response_id", "conversation"))
_RUNNING = ("queued", "in_progress")
_IMAGE_MODEL = "gpt-image-1"
"""What the image tool runs where neither the request nor the answer names a model."""
_TEXT_EVENTS = frozenset(
    f"response.{name}.delta"
    for name in (
        *("output_text", "refusal", "reasoning_text", "reasoning_summary_text", "function_call_arguments"),
        *("custom_tool_call_input", "mcp_call_arguments", "code_interpreter_call_code", "audio.transcript"),
    )
)


class ResponsesApi(OpenAiApi):
    """`POST …/responses`."""

    name = "openai.responses"
    family = "openai.responses"
    kind = "text"
    suffixes = ("/responses",)
    sights: tuple[str, ...] = ("/responses/{id}",)
    answer_members = OpenAiApi.answer_members | {"tools"}

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return not _REQUEST_MEMBERS.isdisjoint(fields)

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = responses_bound(fields, body_bytes)
        background = read_bool(fields, "background")
        if background and is_set(fields, "request_id"):
            # vLLM names the response by it, and two operations of one name could not be told apart.
            raise InvalidRequestError("request_id cannot be chosen for a background response; leave it out")
        return CallRequest(
            model=read_model(fields),
            stream=read_bool(fields, "stream"),
            background=background,
            output_limit=read_int(fields, "max_output_tokens", minimum=1, maximum=MAX_OUTPUT_LIMIT),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            end_user=as_end_user(read_text(fields, "safety_identifier") or read_text(fields, "user")),
            service_tier=read_text(fields, "service_tier"),
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> str | None:  # noqa: ARG002 - the same for every model
        return "max_output_tokens"

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return ResponsesReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        kind = answer.get("type")
        return str(answer.get("object")).startswith("response") or (type(kind) is str and kind.startswith("response."))

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        kind = answer.get("type")
        if type(kind) is str and kind.startswith("response."):
            _absorb_response(report, member(answer, "response"), event=True)
            if kind.endswith(".delta") and kind != "response.audio.delta":
                delta = answer.get("delta")
                size = text_bytes(delta)
                report.visible_bytes += size
                report.visible_deltas += size > 0
                if report.text is not None and type(delta) is str:
                    report.text.append(delta)
            elif kind == "response.output_item.added":
                name = member(answer, "item").get("name")
                if name:
                    report.frame_tokens += CALL_TOKENS + text_bytes(name)
        elif kind == "error":
            report.failed = True
        else:
            _absorb_response(report, answer, event=False)

    def shows_output(self, request: CallRequest, model: str) -> bool:
        fields = request.fields
        # A stored prompt may bring tools of its own; what runs in the background goes on behind a cut.
        if request.background or any(is_set(fields, name) for name in ("prompt", "reasoning", "modalities")):
            return False
        return shows_text(model) and client_tools_only(fields, "function", "custom")

    def cut(self, report: Report, refusal: Refusal) -> bytes:
        response = {
            "id": report.provider_request_id or refusal.call_id,
            "object": "response",
            "created_at": 0,
            "status": "incomplete",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"},
            "model": report.model or "",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        event = {"type": "response.incomplete", "sequence_number": report.visible_deltas, "response": response}
        return b"event: response.incomplete\ndata: " + msgspec.json.encode(event) + b"\n\n"

    def stream_error(self, refusal: Refusal) -> bytes:
        event = {"type": "error", "error": self._error(refusal)}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


class CompactApi(ResponsesApi):
    """`POST …/responses/compact`: a whole answer that replaces a conversation. Takes no output limit."""

    name = "openai.responses.compact"
    suffixes = ("/responses/compact",)
    sights = ()

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def takes_limit(self, request: CallRequest) -> bool:  # noqa: ARG002 - as above
        return False

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the responses API reads these, too
        return False


def _absorb_response(report: Report, response: Mapping[str, Any], *, event: bool) -> None:
    if not response:
        return
    absorb_head(report, response)
    tools = member(response, "tool_usage")
    searches = max(part(member(tools, "web_search"), "num_requests"), 0)
    usage = openai_usage(response.get("usage"), web_search=searches)
    if usage is not None:
        report.usage = usage
    absorb_cost(report, response.get("usage"))
    images = _image_usage(member(tools, "image_gen"))
    if images is not None:
        report.other_usage = ((_image_model(response), images),)
    if response.get("error"):
        report.failed = True
    status = response.get("status")
    if status in _RUNNING:
        # In a stream every response begins as running; only one in the background goes on without its stream.
        report.deferred = not event or response.get("background") is True
    elif status is not None:
        report.deferred = False
        report.finished = True
        report.failed = report.failed or status in ("failed", "cancelled")
    elif usage is not None:
        report.finished = True
    if not event:
        for item in response["output"] if isinstance(response.get("output"), list) else ():
            if isinstance(item, dict):
                size = text_bytes(item.get("content")) + text_bytes(item.get("arguments"))
                report.visible_bytes += size
                report.visible_deltas += size > 0


def _image_usage(images: Mapping[str, Any]) -> TokenUsage | None:
    """Tokens of images made by the hosted tool, which another model is billed for. None if there are none."""
    read = total(images, "input_tokens")
    made = total(images, "output_tokens")
    if not read and not made:
        return None
    cached = member(images, "cached_tokens_details")
    of_output = member(images, "output_tokens_details")
    return TokenUsage.from_totals(
        read or 0,
        made or 0,
        cached_input_tokens=part(images, "cached_tokens"),
        cached_image_tokens=part(cached, "cached_image_tokens"),
        image_input_tokens=part(member(images, "input_tokens_details"), "image_tokens"),
        # What is not said to be text is images.
        image_output_tokens=part(of_output, "image_tokens") if "image_tokens" in of_output else made or 0,
    )


def _image_model(response: Mapping[str, Any]) -> str:
    tools = response.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") == "image_generation":
            return text(tool, "model") or _IMAGE_MODEL
    return _IMAGE_MODEL


class _Delta(msgspec.Struct, gc=False):
    type: str
    delta: str


_decode_delta = msgspec.json.Decoder(_Delta).decode


class ResponsesReader(SseReader):
    """A stream of typed events."""

    _prefixes = frozenset(f"event: {kind}\ndata: ".encode() for kind in _TEXT_EVENTS)

    def _ordinary(self, data: bytes) -> bool:
        try:
            event = _decode_delta(data)
        except DECODE_ERRORS:
            return False
        if event.type not in _TEXT_EVENTS:
            return False
        if event.delta:
            report = self.report
            report.visible_bytes += len(event.delta) if event.delta.isascii() else len(event.delta.encode())
            report.visible_deltas += 1
            if report.text is not None:
                report.text.append(event.delta)
        return True
