"""The forms of InvokeModel's bodies: how each is known, where it limits the output, whose models take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .bedrock_media import Media, blocks_bound
from .bounds import Bound, chat_bound, messages_bound
from .fields import is_set, read_value

Path = tuple[str, ...]


class Form(NamedTuple):
    """One shape of a body."""

    name: str
    limits: tuple[Path, ...] = ()
    """Where it may limit the output; the largest of those that are set bounds it."""
    makers: tuple[str, ...] = ()
    """What the names of the models that take it have in them."""
    writes: bool = True
    """An output limit that is not set can be written: the first of `limits` is known by all its models."""

    def fits(self, model: str) -> bool:
        """Whether a model takes it."""
        name = model.casefold()
        return any(maker in name for maker in self.makers)

    def unset_limit(self, model: str | None) -> tuple[Path, ...]:
        """Where a limit is to be written that no member sets; nowhere if that depends on a model that is not known."""
        if model is not None and "openai." in model.casefold() and self is CHAT:
            return (("max_completion_tokens",),)
        return self.limits[:1] if self.writes else ()


ANTHROPIC = Form("anthropic", (("max_tokens",),), ("anthropic.",))
ANTHROPIC_PROMPT = Form("anthropic prompt", (("max_tokens_to_sample",),), ("anthropic.claude-v", "anthropic.claude-i"))
TITAN = Form("titan", (("textGenerationConfig", "maxTokenCount"),), ("amazon.titan-text", "amazon.titan-tg1"))
NOVA = Form("nova", (("inferenceConfig", "maxTokens"), ("inferenceConfig", "max_new_tokens")), ("amazon.nova",))
COMMAND = Form("command", (("max_tokens",),), ("cohere.command-r",))
LLAMA = Form("llama", (("max_gen_len",),), ("meta.",))
CHAT = Form(
    "chat",
    (("max_tokens",), ("max_completion_tokens",)),
    ("mistral.", "ai21.jamba", "deepseek.", "openai.", "qwen.", "moonshot", "minimax.", "zai.", "google.", "writer."),
)
PROMPT = Form(
    "prompt",
    (("max_tokens",), ("max_gen_len",), ("maxTokens",)),
    ("mistral.", "deepseek.", "cohere.command-text", "cohere.command-light", "ai21.j2"),
    writes=False,
)
"""Many makers' models take a `prompt`, and name its limit differently."""
UNKNOWN = Form("unknown")


def form_of(fields: Mapping[str, msgspec.Raw]) -> Form:
    """Which of them a body has."""
    if "messages" in fields:
        if "anthropic_version" in fields:
            return ANTHROPIC
        return NOVA if _is_nova(fields) else CHAT
    if "inputText" in fields:
        return TITAN
    if "message" in fields:
        return COMMAND
    if "prompt" in fields:
        if "anthropic_version" in fields or "max_tokens_to_sample" in fields:
            return ANTHROPIC_PROMPT
        return LLAMA if "max_gen_len" in fields and "max_tokens" not in fields else PROMPT
    return UNKNOWN


def invoke_bound(form: Form, fields: Mapping[str, msgspec.Raw], body_bytes: int) -> Bound:
    """The prompt of a body of this form."""
    if form is ANTHROPIC:
        return messages_bound(fields, body_bytes)
    if form is NOVA:
        return blocks_bound(fields, body_bytes)
    if form is CHAT:
        return chat_bound(fields, body_bytes)
    media = Media()
    for name in ("images", "image", "inputImage"):
        if is_set(fields, name):
            value = read_value(fields, name)
            for image in value if isinstance(value, list) else (value,):
                media.image(image)
    # What lies in Amazon's storage is named by its address, whatever the member.
    media.remote = any(b"s3://" in bytes(raw) or b"s3Location" in bytes(raw) for raw in fields.values())
    return media.bound(body_bytes)


def _is_nova(fields: Mapping[str, msgspec.Raw]) -> bool:
    """By members that only Nova has, or by blocks without a `type`, which all others have."""
    if "inferenceConfig" in fields or "schemaVersion" in fields:
        return True
    messages: Any = read_value(fields, "messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    blocks = first.get("content") if isinstance(first, dict) else None
    return isinstance(blocks, list) and any(isinstance(block, dict) and "type" not in block for block in blocks)
