"""What the blocks of Converse messages weigh, which Nova's own form has too: images, audio, documents and videos.

See `bounds` for what is documented of audio and of what a request only refers to.
Source: botocore 1.44 (`data/bedrock-runtime/2023-09-30/service-2.json`: `ContentBlock` and what it holds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .base import InvalidRequestError
from .bounds import (
    AUDIO_CHARS_PER_TOKEN,
    AUDIO_WINDOW_TOKENS,
    BYTES_PER_TOKEN,
    LIKELY_AUDIO_CHARS_PER_TOKEN,
    LIKELY_IMAGE_TOKENS,
    TEMPLATE_TOKENS,
    TOOLS_TOKENS,
    Bound,
)
from .counts import member
from .fields import is_set, read_raw_object, read_value

IMAGE_TOKENS = 16_384
"""The most that any model on Bedrock makes of one image: Qwen3-VL's default limit of pixels, one token for each 32 by
32 (its model card); Anthropic's and Meta's make a third of it and less.
"""
_PLAIN = frozenset(
    (
        *("text", "json", "toolUse", "reasoningContent", "citationsContent", "searchResult", "cachePoint"),
        *("document", "toolAddition", "toolRemoval", "qualifiers"),
    )
)
"""Parts that are all text. What nobody knows yet counts as remote."""
_PLAIN_DOCUMENTS = frozenset(("txt", "md", "csv", "html"))
_MAX_DEPTH = 8


def blocks_bound(fields: Mapping[str, msgspec.Raw], body_bytes: int) -> Bound:
    """`messages`, `system` and `toolConfig`."""
    media = Media()
    for name in ("messages", "system"):
        raw = bytes(fields.get(name, b""))
        if b"source" in raw or b"\\u" in raw:  # every medium has a source, the name of which may be escaped
            value = read_value(fields, name)
            media.messages(value) if name == "messages" else media.blocks(value)
    tools, server_tools = _tools(fields)
    bound = media.bound(body_bytes)
    return bound._replace(tokens=bound.tokens + tools, remote=bound.remote or server_tools)


class Media:
    """Adds up what the blocks of Converse messages weigh beyond (or, for payloads, below) the bytes they stand in."""

    def __init__(self) -> None:
        self.tokens = 0
        self.payload_bytes = 0
        self.estimate = 0
        self.remote = False
        self.found = False

    def bound(self, body_bytes: int) -> Bound:
        """The whole prompt, whose text has `body_bytes` at most with all that was found."""
        estimate = max(body_bytes - self.payload_bytes, 0) // BYTES_PER_TOKEN + self.estimate
        return Bound(body_bytes + TEMPLATE_TOKENS + self.tokens, self.remote, max(estimate, 1), self.found)

    def messages(self, messages: object) -> None:
        """A list of messages. What is none of these has no media that a model would be shown."""
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict):
                self.blocks(message.get("content"))

    def blocks(self, blocks: object, depth: int = _MAX_DEPTH) -> None:
        for block in blocks if isinstance(blocks, list) else ():
            if not isinstance(block, dict):
                continue
            if not depth:
                self.remote = True
                return
            self._block(block, depth - 1)

    def image(self, payload: object) -> None:
        """An image, inline where the payload is text (base64)."""
        self.found = True
        self.tokens += IMAGE_TOKENS
        self.estimate += LIKELY_IMAGE_TOKENS
        self._not_text(payload)

    def _block(self, block: Mapping[str, Any], depth: int) -> None:
        for kind in block:
            part = member(block, kind)
            source = member(part, "source")
            if kind == "image":
                self.image(source.get("bytes"))
            elif kind == "audio":
                self._audio(source.get("bytes"))
            elif kind == "video" or (kind == "document" and "bytes" in source and not _is_plain(part)):
                # How long a video is, or how many pages a document has, shows only when it is unpacked.
                self.found = True
                self.remote = True
                self._not_text(source.get("bytes"))
            elif kind == "toolResult":
                self.blocks(part.get("content"), depth)
            elif kind == "guardContent":
                self.blocks([part], depth)
            elif kind not in _PLAIN:
                self.remote = True
            if "s3Location" in source:
                self.remote = True

    def _audio(self, payload: object) -> None:
        self.found = True
        if type(payload) is str:
            self.tokens += AUDIO_WINDOW_TOKENS + len(payload) // AUDIO_CHARS_PER_TOKEN
            self.estimate += 1 + len(payload) // LIKELY_AUDIO_CHARS_PER_TOKEN
            self._not_text(payload)

    def _not_text(self, payload: object) -> None:
        if type(payload) is str:
            self.tokens -= len(payload)
            self.payload_bytes += len(payload)


def _is_plain(document: Mapping[str, Any]) -> bool:
    kind = document.get("format")
    return type(kind) is str and kind in _PLAIN_DOCUMENTS


def _tools(fields: Mapping[str, msgspec.Raw]) -> tuple[int, bool]:
    """Tokens that tools add beside their descriptions, and whether Amazon runs any of them itself."""
    config = read_raw_object(fields, "toolConfig")
    if not is_set(config, "tools"):
        return 0, False
    tools = read_value(config, "tools")
    if not isinstance(tools, list):
        raise InvalidRequestError("toolConfig.tools must be a list")
    own = sum(isinstance(tool, dict) and "systemTool" in tool for tool in tools)
    return TOOLS_TOKENS * (1 + own) if tools else 0, own > 0
