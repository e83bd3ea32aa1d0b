"""What the OpenAI-shaped APIs share: usage, requests' common members, error envelopes.

Gateways and other providers forward their own dialects under OpenAI's paths, so usage is read by a rule that holds for
all of them; what one of them does otherwise stands in `dialects`. Sources: the types of the openai SDK 3.54, and
recorded bodies of many providers (2026-11).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import Api, CallRequest, Refusal, Rewrite, StreamReader
from .body import BodyReader, read_body
from .costs import COST_HEADERS, absorb_cost_headers
from .counts import MAX_COUNT, member, part, text, total
from .dialects import correct_counts, reported_cost
from .dialects.base import Counts
from .fields import encode_members, raw_value

_PLAIN_MEMBERS = frozenset(
    ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
)
_PREDICTED = frozenset(("accepted_prediction_tokens", "rejected_prediction_tokens"))
"""Parts of the completion that cost what the rest of it costs."""
_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
    503: "server_error",
}


def openai_usage(usage: object, *, gap_is_input: bool = False, web_search: int = 0) -> TokenUsage | None:
    """A usage object of the chat, completions, responses or embeddings shape; None if it leaves the prompt's size open.

    The rule that holds for everybody: parts stand in the details of their total, under any of the names in use. Then
    whichever dialects have members in the object correct what was read. Where `total_tokens` is still more than prompt
    and completion, the gap is the reported input audio if it matches exactly (Mistral's Voxtral), else output
    (reasoning that xAI and Gemini's compatible mode leave out of the completion); `gap_is_input` for APIs without
    output (Voyage reports only a total).
    """
    if not isinstance(usage, dict):
        return None
    plain = _plain_usage(usage)
    if plain is not None and not web_search:
        return plain
    prompt = total(usage, "prompt_tokens", "input_tokens")
    completion = total(usage, "completion_tokens", "output_tokens")
    everything = total(usage, "total_tokens")
    if prompt is None:
        if everything is None:  # without the prompt's share no price is right: not reported
            return None
        prompt = 0 if completion is None else max(everything - max(completion, 0), 0)
    of_input = member(usage, "prompt_tokens_details", "input_tokens_details")
    of_output = member(usage, "completion_tokens_details", "output_tokens_details")
    counts = Counts(
        prompt=prompt,
        completion=completion or 0,
        cached=part(of_input, "cached_tokens"),
        cache_write=part(of_input, "cache_write_tokens"),
        audio=part(of_input, "audio_tokens"),
        cached_audio=part(member(of_input, "cached_tokens_details"), "audio_tokens"),
        image=part(of_input, "image_tokens"),
        reasoning=part(of_output, "reasoning_tokens"),
        audio_out=part(of_output, "audio_tokens"),
        image_out=part(of_output, "image_tokens"),
        web_search=web_search,
    )
    correct_counts(counts, usage, of_input)
    gap = (everything or 0) - max(counts.prompt, 0) - max(counts.completion, 0)
    if gap > 0:
        if gap_is_input or gap == counts.audio:
            counts.prompt = max(counts.prompt, 0) + gap
        else:
            counts.completion = max(counts.completion, 0) + gap
    return counts.usage()


def _plain_usage(usage: dict[str, Any]) -> TokenUsage | None:
    """The usage nearly every answer has: totals that add up, with text, cached and reasoning tokens only. None: it
    has anything else, and takes the long way.
    """
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if (
        type(prompt) is not int
        or type(completion) is not int
        or usage.get("total_tokens") != prompt + completion
        or not 0 <= prompt <= MAX_COUNT
        or not 0 <= completion <= MAX_COUNT
        or not usage.keys() <= _PLAIN_MEMBERS
    ):
        return None
    cached = reasoning = 0
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        details = usage.get(name)
        if details is None:
            continue
        if type(details) is not dict:
            return None
        for key, value in details.items():
            if key == "cached_tokens" and type(value) is int and 0 <= value <= prompt:
                cached = value
            elif key == "reasoning_tokens" and type(value) is int and 0 <= value <= completion:
                reasoning = value
            elif value and key not in _PREDICTED:
                return None
    return TokenUsage(input=prompt - cached, cache_read=cached, output=completion - reasoning, reasoning=reasoning)


def absorb_cost(report: Report, usage: object) -> None:
    """What a usage object of any API says that the call cost, and the tier that some name there."""
    if isinstance(usage, dict):
        cost = reported_cost(usage)
        if cost is not None:
            report.cost_nano_usd = cost
        if "service_tier" in usage:
            absorb_tier(report, usage)


def is_error(answer: Mapping[str, Any]) -> bool:
    """An error in OpenAI's form, or in Mistral's and vLLM's, which has the error's members at the top level."""
    return bool(answer.get("error")) or answer.get("object") == "error"


def absorb_head(report: Report, answer: Mapping[str, Any]) -> None:
    """Model, id and served tier. The first id stays (some gateways send a new one with each chunk); `auto` is what
    was asked for, not what was served.
    """
    report.model = text(answer, "model") or report.model
    report.provider_request_id = report.provider_request_id or text(answer, "id")
    absorb_tier(report, answer)


def absorb_tier(report: Report, answer: Mapping[str, Any]) -> None:
    """The served tier, if an answer or its usage names it."""
    tier = text(answer, "service_tier")
    if tier is not None and tier != "auto":
        report.service_tier = tier


class OpenAiApi(Api):
    """The parts that do not differ between OpenAI's APIs."""

    provider = "openai"
    answer_headers = COST_HEADERS

    @abstractmethod
    def limit_field(self, request: CallRequest, model: str) -> str | None:
        """The member that limits the output when `model` is called; None where the API has none."""

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None:
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None:
            field = self.limit_field(request, change.model or request.model or "")
            if field is not None:
                fields[field] = raw_value(change.output_limit)
        return encode_members(fields)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def absorb_headers(self, report: Report, headers: Mapping[bytes, bytes]) -> None:
        absorb_cost_headers(report, headers)

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode({"error": self._error(refusal)}), retry_headers(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        return b"data: " + msgspec.json.encode({"error": self._error(refusal)}) + b"\n\n"

    @staticmethod
    def _error(refusal: Refusal) -> dict[str, Any]:
        spent = refusal.code == "budget_exceeded"
        error = {
            "message": refusal.message,
            "type": "insufficient_quota" if spent else _TYPES.get(refusal.status, "invalid_request_error"),
            "param": None,
            "code": refusal.code,
        }
        return error | details(refusal)


def details(refusal: Refusal) -> dict[str, str]:
    """The members of a refusal that no provider's envelope has; those that are not known are left out."""
    members = {"reason": refusal.reason, "scope_kind": refusal.scope_kind, "resets_at": refusal.resets_at}
    return {name: value for name, value in members.items() if value is not None}


def retry_headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Whether the SDKs should try again, and when: they sleep as long as `retry-after` says, days if need be, so it
    only stands where trying again soon makes sense.
    """
    if refusal.retry_after_s is None:
        return [(b"x-should-retry", b"false")]
    return [(b"retry-after", b"%d" % refusal.retry_after_s), (b"x-should-retry", b"true")]
