"""What Gemini's APIs share: usage, served tier, searches, and error envelopes.

`totalTokenCount` = prompt + candidates + thoughts + results of tools that the server ran; cached tokens are a part of
the prompt. Protobuf leaves zeros out of its JSON, so a missing count is 0 where another one is there. Live calls the
candidates `responseTokenCount`, and its total leaves the thoughts out.
Source: google-genai SDK 3.4 (`types.py`: `GenerateContentResponseUsageMetadata`, `UsageMetadata`, `TrafficType`,
`MediaModality`; `errors.py`) and recorded traffic of AI Studio, Vertex and Live (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import Api, CallRequest, Refusal, Rewrite, StreamReader
from .body import BodyReader, read_body
from .counts import GARBAGE, part, text, total
from .fields import as_end_user, encode_members, read_value
from .openai_common import details, retry_headers

MAX_SEARCHES = 1_000
_TRAFFIC_TIERS = {
    "ON_DEMAND": "standard",
    "ON_DEMAND_PRIORITY": "priority",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "offpeak",
    "PROVISIONED_THROUGHPUT": "provisioned_throughput",
}
"""Vertex's words for what AI Studio calls `serviceTier`."""
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
_PER_PROMPT = ("gemini-1", "gemini-2")
"""Models whose grounded prompts cost the same however often they search."""
_MEDIA = ("audio", "image")


def either(source: Mapping[str, Any], name: str) -> Any:
    """A member in the wire's spelling (`usageMetadata`) or, as Python's SDK dumps it and requests may have it, in
    snake case; None where it has neither.
    """
    value = source.get(name)
    return source.get(snake(name)) if value is None else value


def snake(name: str) -> str:
    """`maxOutputTokens` to `max_output_tokens`."""
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)


def gemini_usage(metadata: object, *, web_search: int = 0, gap_is_input: bool = False) -> TokenUsage | None:
    """A `usageMetadata` object of any Gemini API, Live included; None if it counts neither prompt nor answer.

    Where the total is more than its known parts, the gap is output: early thinking models counted their thoughts in
    the total only. `gap_is_input` for APIs without output. Video and documents have no bucket of their own and are
    plain input. Never raises.
    """
    if not isinstance(metadata, dict):
        return None
    counts = metadata if "promptTokenCount" in metadata or "totalTokenCount" in metadata else _camel(metadata)
    prompt = total(counts, "promptTokenCount")
    answer = total(counts, "candidatesTokenCount", "responseTokenCount")
    everything = total(counts, "totalTokenCount")
    if prompt is None and answer is None and everything is None:
        return None
    # Embeddings have their details under a name without the s.
    of_prompt = "promptTokensDetails" if "promptTokensDetails" in counts else "promptTokenDetails"
    return usage_of(
        prompt,
        answer,
        everything,
        tools=part(counts, "toolUsePromptTokenCount"),
        thoughts=part(counts, "thoughtsTokenCount"),
        cached=part(counts, "cachedContentTokenCount"),
        media_in=modalities(counts, of_prompt, "toolUsePromptTokensDetails"),
        media_cached=modalities(counts, "cacheTokensDetails") if "cacheTokensDetails" in counts else None,
        media_out=modalities(counts, "candidatesTokensDetails", "responseTokensDetails"),
        web_search=web_search,
        gap_is_input=gap_is_input,
    )


def usage_of(
    prompt: int | None,
    answer: int | None,
    everything: int | None,
    *,
    tools: int,
    thoughts: int,
    cached: int,
    media_in: tuple[int, int],
    media_cached: tuple[int, int] | None,
    media_out: tuple[int, int],
    web_search: int = 0,
    gap_is_input: bool = False,
) -> TokenUsage:
    """Counts that add up to a total, in buckets. Media are tokens of audio and of images; `media_cached` None: what
    was cached is not told by kind.
    """
    reported = (prompt or 0, answer or 0, tools, thoughts)
    read, made, tools, thoughts = (max(value, 0) for value in reported)
    read += tools
    made += thoughts
    gap = max((everything or 0) - read - made, 0)
    if gap_is_input or (prompt is None and answer is not None):
        read += gap
    else:
        made += gap
    audio, image = media_in
    if media_cached is None:
        # Media among what was cached are what does not fit into the rest of the prompt.
        hidden = max(audio, 0) + max(image, 0) - (read - cached)
        hidden_audio = max(min(hidden, audio, cached), 0)
        media_cached = hidden_audio, max(min(hidden - hidden_audio, image, cached - hidden_audio), 0)
    usage = TokenUsage.from_totals(
        read,
        made,
        cached_input_tokens=cached,
        audio_input_tokens=audio,
        cached_audio_tokens=media_cached[0],
        image_input_tokens=image,
        cached_image_tokens=media_cached[1],
        reasoning_tokens=thoughts,
        audio_output_tokens=media_out[0],
        image_output_tokens=media_out[1],
        web_search=web_search,
    )
    return msgspec.structs.replace(usage, anomalous=True) if min(reported) < 0 else usage


def modalities(counts: Mapping[str, Any], *names: str) -> tuple[int, int]:
    """Tokens of audio and of images in lists of `{"modality": "AUDIO", "tokenCount": 5}`."""
    found = {"audio": 0, "image": 0}
    for name in names:
        listed = counts.get(name)
        for entry in listed if isinstance(listed, list) else ():
            modality = entry.get("modality") if isinstance(entry, dict) else None
            if isinstance(modality, str) and modality.lower() in _MEDIA:
                tokens = part(entry, "tokenCount", "token_count", "tokens")
                if tokens < 0:
                    return GARBAGE, GARBAGE
                found[modality.lower()] += tokens
    return found["audio"], found["image"]


def served_tier(metadata: Mapping[str, Any]) -> str | None:
    """The tier that served a call, by its `usageMetadata`; None where it does not say."""
    tier = text(metadata, "serviceTier")
    return tier.lower() if tier is not None else _TRAFFIC_TIERS.get(text(metadata, "trafficType") or "")


def billed_searches(queries: object, model: str | None) -> int:
    """How many searches a call is billed for. From Gemini 3 on each different query counts, and empty ones do not;
    earlier models are billed once per grounded prompt. Source: Google's documentation as quoted in
    discuss.ai.google.dev/t/168136, and the answer in /t/102927 (2026-11).
    """
    if not isinstance(queries, list):
        return 0
    different = len({query for query in queries[:MAX_SEARCHES] if type(query) is str and query.strip()})
    return min(different, 1) if per_prompt(model) else different


def per_prompt(model: str | None) -> bool:
    """Whether a model's searches are billed once per prompt."""
    return model is not None and model.rpartition("/")[2].startswith(_PER_PROMPT)


def add_searches(report: Report, searches: int) -> None:
    """Raise the searches of a usage that has been reported; an answer may name them more than once."""
    if report.usage is not None and searches > report.usage.web_search:
        report.usage = msgspec.structs.replace(report.usage, web_search=searches)


def labelled_user(fields: Mapping[str, msgspec.Raw]) -> str | None:
    """Gemini has no field for the end user; Vertex's free `labels` may name one."""
    labels = read_value(fields, "labels") if "labels" in fields else None
    if not isinstance(labels, dict):
        return None
    return as_end_user(labels.get("end_user")) or as_end_user(labels.get("user"))


class GeminiApi(Api):
    """The parts that do not differ between Google's APIs."""

    provider = "google"
    family = "gemini"
    answer_members = frozenset(("usageMetadata", "modelVersion", "responseId", "error", "promptFeedback"))

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:  # noqa: ARG002 - the model is in the path
        return encode_members(request.fields)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode(gemini_error(refusal)), retry_headers(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        return b"data: " + msgspec.json.encode(gemini_error(refusal)) + b"\r\n\r\n"


def gemini_error(refusal: Refusal) -> dict[str, Any]:
    """Google's envelope. SDKs look only at `code`, `message` and `status`; what tells programs more stands in
    `details`, in the form of a `google.rpc.ErrorInfo`.
    """
    status = _STATUSES.get(refusal.status, "INTERNAL" if refusal.status >= 500 else "FAILED_PRECONDITION")
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.code.upper(),
        "metadata": {"code": refusal.code, **details(refusal)},
    }
    return {"error": {"code": refusal.status, "message": refusal.message, "status": status, "details": [info]}}


def _camel(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with its keys as they stand on the wire."""
    return {
        head + "".join(word.title() for word in words): value
        for key, value in metadata.items()
        if type(key) is str
        for head, *words in (key.split("_"),)
    }
