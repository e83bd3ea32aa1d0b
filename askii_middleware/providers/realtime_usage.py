"""The usage of realtime sessions: of responses, and of transcriptions of what was heard.

Source: openai SDK 3.54 (`types/realtime/realtime_response_usage.py`,
`conversation_item_input_audio_transcription_completed_event.py`), recorded sessions of OpenAI and xAI (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .counts import MAX_COUNT, member, part, text, total

HEARD = "conversation.item.input_audio_transcription.completed"
BY_SECONDS, BY_TOKENS = "whisper-1", "gpt-4o-transcribe"
"""What transcribes by seconds, and the dearest that does by tokens: the event does not name its model."""


def absorb_event(report: Report, event: Mapping[str, Any]) -> bool:
    """Merge one event of a session that says what was used, where somebody records it by itself. False for others:
    events named `response.done` are in some streams of responses as well, which count in another form.
    """
    kind, usage = event.get("type"), member(event, "usage")
    if kind == HEARD:
        report.model = BY_SECONDS if usage.get("type") == "duration" else BY_TOKENS
        report.provider_request_id = text(event, "item_id")
        report.usage = transcription_usage(usage) or report.usage
    elif kind == "response.done":
        response = member(event, "response")
        own = member(response, "usage")
        if response.get("object") != "realtime.response" and "input_token_details" not in {**own, **usage}:
            return False
        report.provider_request_id = text(response, "id") or report.provider_request_id
        report.usage = realtime_usage(own) or realtime_usage(usage) or report.usage
        report.failed = response.get("status") == "failed"
    else:
        return False
    report.finished = True
    return True


def realtime_usage(usage: Mapping[str, Any]) -> TokenUsage | None:
    """The usage of a response; None if it does not count. Cached tokens are told by kind. Where the total is more than
    its parts, the gap is output. xAI counts the seconds of audio besides. Never raises.
    """
    read, made = total(usage, "input_tokens"), total(usage, "output_tokens")
    if read is None and made is None:
        return None
    of_input = member(usage, "input_token_details", "input_tokens_details")
    of_output = member(usage, "output_token_details", "output_tokens_details")
    cached = member(of_input, "cached_tokens_details")
    gap = (total(usage, "total_tokens") or 0) - max(read or 0, 0) - max(made or 0, 0)
    found = TokenUsage.from_totals(
        read or 0,
        (made or 0) + max(gap, 0),
        cached_input_tokens=part(of_input, "cached_tokens"),
        audio_input_tokens=part(of_input, "audio_tokens"),
        cached_audio_tokens=part(cached, "audio_tokens"),
        image_input_tokens=part(of_input, "image_tokens"),
        cached_image_tokens=part(cached, "image_tokens"),
        reasoning_tokens=part(of_output, "reasoning_tokens"),
        audio_output_tokens=part(of_output, "audio_tokens"),
    )
    seconds = max(part(usage, "billable_audio_seconds"), 0)
    return msgspec.structs.replace(found, second=seconds) if seconds else found


def transcription_usage(usage: Mapping[str, Any]) -> TokenUsage | None:
    """The usage of a transcription, by tokens or by seconds (begun ones count); None if it does not count."""
    seconds = usage.get("seconds")
    if not isinstance(seconds, int | float) or "input_tokens" in usage:
        return realtime_usage(usage)
    return TokenUsage(second=ceil(seconds)) if 0 <= seconds <= MAX_COUNT else None
