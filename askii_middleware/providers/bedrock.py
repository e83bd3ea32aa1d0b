"""Bedrock's Converse: one form for all models. See `bedrock_common` for what its answers say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .base import CallRequest, Refusal, Rewrite
from .bedrock_common import OPTIMIZED, BedrockApi, absorb_converse, cut_converse, is_error
from .bedrock_media import blocks_bound
from .bounds import messages_bound
from .counts import member, text
from .fields import (
    MAX_OUTPUT_LIMIT,
    encode_members,
    is_set,
    raw_value,
    read_int,
    read_raw_object,
    read_value,
)
from .visible import claude_shows, shows_text

_EVENTS = frozenset(
    (
        *("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"),
        *("internalServerException", "modelStreamErrorException", "throttlingException", "validationException"),
    )
)
_OWN_LIMITS = ("max_tokens", "max_gen_len", "max_new_tokens", "maxTokens", "maxTokenCount")
"""What models call their output limits, in `additionalModelRequestFields`, where they stand beside the common one."""


_MAKERS = {
    **dict.fromkeys(("thinking", "anthropic_beta", "reasoning_config"), "anthropic."),
    **dict.fromkeys(("inferenceConfig", "reasoningConfig"), "amazon.nova"),
    "max_gen_len": "meta.",
}
"""Members of `additionalModelRequestFields` that only one maker's models know."""


class ConverseApi(BedrockApi):
    """`POST …/model/{model}/converse`."""

    name = "bedrock.converse"
    family = "bedrock.converse"
    kind = "text"
    suffixes = ("/model/{model}/converse",)
    answer_members = frozenset(
        ("usage", "stopReason", "serviceTier", "performanceConfig", "trace", "message", "Message", "__type")
    )
    streams = False
    """Whether the path says that the answer is a stream."""

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:  # noqa: ARG002 - the path says it; nothing is required
        return True

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = blocks_bound(fields, body_bytes)
        own = read_raw_object(fields, "additionalModelRequestFields")
        extra = messages_bound(own, 0)
        # A prompt that is kept at Amazon is named in the path; its variables stand here.
        stored = is_set(fields, "promptVariables") or not is_set(fields, "messages")
        return CallRequest(
            model=None,
            stream=self.streams,
            output_limit=_limit(fields, own),
            input_bound=bound.tokens + extra.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote or extra.remote or stored,
            service_tier=_tier(fields),
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.output_limit is not None:
            limit = raw_value(change.output_limit)
            config = read_raw_object(fields, "inferenceConfig") | {"maxTokens": limit}
            fields["inferenceConfig"] = msgspec.Raw(encode_members(config))
            own = read_raw_object(fields, "additionalModelRequestFields")
            changed = own | {name: limit for name in _OWN_LIMITS if is_set(own, name)}
            if changed != own:
                fields["additionalModelRequestFields"] = msgspec.Raw(encode_members(changed))
        return encode_members(fields)

    def accepts(self, request: CallRequest, model: str) -> bool:
        own = read_raw_object(request.fields, "additionalModelRequestFields")
        return next((maker in model.casefold() for name, maker in _MAKERS.items() if name in own), True)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        if "stopReason" in answer and "output" in answer:
            return True
        # An event, as boto3 hands it out, is the only member; others have a member `metadata` among many.
        return len(answer) == 1 and any(name in _EVENTS and isinstance(value, dict) for name, value in answer.items())

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        if is_error(answer):
            report.failed = True
        else:
            absorb_converse(report, answer)


class ConverseStreamApi(ConverseApi):
    """`POST …/model/{model}/converse-stream`."""

    name = "bedrock.converse.stream"
    suffixes = ("/model/{model}/converse-stream",)
    streams = True

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - Converse does
        return False

    def shows_output(self, request: CallRequest, model: str) -> bool:
        own = read_raw_object(request.fields, "additionalModelRequestFields")
        tools = request.fields.get("toolConfig")
        if tools is not None and b'"systemTool"' in bytes(tools):  # Amazon runs these
            return False
        if is_set(own, "inferenceConfig") or is_set(own, "reasoningConfig") or is_set(own, "reasoning_config"):
            return False
        return claude_shows(model, own) if "claude" in model.lower() else shows_text(model)

    def cut(self, report: Report, refusal: Refusal) -> bytes:  # noqa: ARG002 - frames have no id
        return cut_converse(report)


def _limit(fields: Mapping[str, msgspec.Raw], own: Mapping[str, msgspec.Raw]) -> int | None:
    """The larger of the common limit and the model's own."""
    config = read_raw_object(fields, "inferenceConfig")
    found = [
        read_int(holder, name, minimum=1, maximum=MAX_OUTPUT_LIMIT)
        for holder, names in ((config, ("maxTokens",)), (own, _OWN_LIMITS))
        for name in names
    ]
    return max((limit for limit in found if limit is not None), default=None)


def _tier(fields: Mapping[str, msgspec.Raw]) -> str | None:
    if "performanceConfig" in fields:
        latency = member({"config": read_value(fields, "performanceConfig")}, "config").get("latency")
        if latency == OPTIMIZED:
            return OPTIMIZED
    if "serviceTier" in fields:
        return text(member({"tier": read_value(fields, "serviceTier")}, "tier"), "type")
    return None
