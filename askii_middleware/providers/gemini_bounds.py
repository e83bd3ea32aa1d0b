"""Upper bounds of a Gemini prompt, and the limits of its answer. See `bounds` for text.

- Images: up to 384 px a side 258 tokens, else tiles of 256 to 768 px with 258 each after scaling to at most 3,072 px,
  24 at most; from Gemini 3 on 280 to 2,240 by `mediaResolution`.
- Audio: 32 tokens/s; the duration follows from the payload only through the bit rate.
- Video (258 to 290 tokens/s, more at higher frame rates) and PDFs (258 to 1,120 tokens a page, and their text) grow
  when they are unpacked: nothing about them is known here, so they are remote input, as are files and URIs.
- Text sent as a file is text: its base64 is longer than it.

`maxOutputTokens` includes the thoughts: measured in github.com/googleapis/python-genai/issues/2062 (2026-11).
Source: ai.google.dev/gemini-api/docs/tokens for tiles of 258, audio and video (2026-11). Unverified: the smallest tile
and the largest size, from which the 24 follow, and the numbers for PDFs and from Gemini 3 on. Members come in camel or
in snake case: protobuf reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
from .fields import (
    DECODE_ERRORS,
    MAX_CHOICES,
    MAX_OUTPUT_LIMIT,
    encode_members,
    is_set,
    raw_value,
    read_int,
    read_raw_object,
    read_value,
)
from .gemini_common import either, snake

IMAGE_TOKENS = 24 * 258
_MAX_DEPTH = 12
_CONFIG = "generationConfig"
_LIMIT = "maxOutputTokens"
_CHOICES = "candidateCount"
_CACHED = "cachedContent"
_CLIENT_TOOLS = frozenset(("functionDeclarations", "function_declarations", "computerUse", "computer_use"))
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/x-javascript", "application/x-python")
_SPELLINGS = {name: (name, snake(name)) for name in (_CONFIG, _LIMIT, _CHOICES, _CACHED)}


class _Part(
    msgspec.Struct,
    rename={"inline": "inlineData", "file": "fileData", "answer": "functionResponse"},
    gc=False,
):
    inline: msgspec.Raw | None = None
    inline_data: msgspec.Raw | None = None
    file: msgspec.Raw | None = None
    file_data: msgspec.Raw | None = None
    answer: msgspec.Raw | None = None
    function_response: msgspec.Raw | None = None
    parts: msgspec.Raw | None = None


class _Content(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    parts: list[_Part] = []
    role: Any = None


_NO_MEDIA = _Part()
_decode_contents = msgspec.json.Decoder(list[_Content] | _Content).decode


class Media:
    """Adds up what media in a prompt weigh beyond (or, for payloads, below) the bytes they stand in."""

    def __init__(self) -> None:
        self.tokens = 0
        self.estimate = 0
        self.payload_bytes = 0
        self.remote = False
        self.seen = False
        """There are images or audio."""

    def payload(self, mime_type: object, data: object) -> None:
        """Base64 data of a type; None or anything but text as data: it is elsewhere."""
        kind = mime_type.lower() if isinstance(mime_type, str) else ""
        if not isinstance(data, str):
            self.remote = True
        elif kind.startswith(_TEXT_TYPES):
            self.estimate += len(data) // 6
            self.payload_bytes += len(data)
        else:
            size = len(data)
            self.payload_bytes += size
            self.tokens -= size
            if kind.startswith("image/"):
                self.seen = True
                self.tokens += IMAGE_TOKENS
                self.estimate += LIKELY_IMAGE_TOKENS
            elif kind.startswith("audio/"):
                self.seen = True
                self.tokens += AUDIO_WINDOW_TOKENS + size // AUDIO_CHARS_PER_TOKEN
                self.estimate += 1 + size // LIKELY_AUDIO_CHARS_PER_TOKEN
            else:
                self.remote = True

    def contents(self, value: object, depth: int = _MAX_DEPTH) -> None:
        """A content, a part, or a list of either. Nested more deeply than any API allows, it counts as remote."""
        if not depth:
            self.remote = True
        elif isinstance(value, list):
            for item in value:
                self.contents(item, depth - 1)
        elif isinstance(value, dict):
            inline = either(value, "inlineData")
            if isinstance(inline, dict):
                self.payload(either(inline, "mimeType"), inline.get("data"))
            self.remote = self.remote or either(value, "fileData") is not None
            for inner in (value.get("parts"), either(value, "functionResponse")):
                if inner is not None:
                    self.contents(inner, depth - 1)


class Limits(NamedTuple):
    """What a generation config says of the answer: tokens per candidate (None: no limit), candidates, and whether it
    asks for anything but text.
    """

    output: int | None
    choices: int
    media: bool


def contents_bound(fields: Mapping[str, msgspec.Raw], body_bytes: int, *names: str) -> Bound:
    """The bound of a request whose content stands in some of its members."""
    media = Media()
    for name in names:
        for spelling in {name, snake(name)}:
            if spelling in fields and not _all_text(fields[spelling]):
                media.contents(read_value(fields, spelling))
    tools, server_tools = _tools(fields)
    cached = any(is_set(fields, name) for name in _SPELLINGS[_CACHED])
    media.remote = media.remote or server_tools or cached
    return bound_of(media, body_bytes, tools)


def bound_of(media: Media, body_bytes: int, tools: int = 0) -> Bound:
    """The bound of a body and the media in it."""
    estimate = max(body_bytes - media.payload_bytes, 0) // BYTES_PER_TOKEN + media.estimate
    tokens = body_bytes + TEMPLATE_TOKENS + tools + media.tokens
    return Bound(tokens, media.remote, max(estimate, 1), media.seen)


def limits(fields: Mapping[str, msgspec.Raw]) -> Limits:
    """The answer's limits; of several spellings the larger value bounds. Raises InvalidRequestError."""
    outputs: list[int | None] = []
    choices, media = 1, False
    for name in _SPELLINGS[_CONFIG]:
        if not is_set(fields, name):
            continue
        config = read_raw_object(fields, name)
        outputs.append(_largest(config, _LIMIT, name, minimum=0, maximum=MAX_OUTPUT_LIMIT) or None)
        choices = max(choices, _largest(config, _CHOICES, name, minimum=0, maximum=MAX_CHOICES) or 1)
        media = media or _wants_media(config)
    known = [limit for limit in outputs if limit is not None]
    return Limits(max(known) if known and len(known) == len(outputs) else None, choices, media)


def with_limit(fields: Mapping[str, msgspec.Raw], limit: int) -> dict[str, msgspec.Raw]:
    """The request with another output limit: written wherever one stands, else into the generation config."""
    changed = dict(fields)
    present = [name for name in _SPELLINGS[_CONFIG] if is_set(fields, name)] or [_CONFIG]
    for name in present:
        config = read_raw_object(fields, name)
        standing = [spelling for spelling in _SPELLINGS[_LIMIT] if spelling in config]
        for spelling in standing or [_SPELLINGS[_LIMIT][name != _CONFIG]]:
            config[spelling] = raw_value(limit)
        changed[name] = msgspec.Raw(encode_members(config))
    return changed


def _largest(config: Mapping[str, msgspec.Raw], name: str, where: str, *, minimum: int, maximum: int) -> int | None:
    try:
        values = [read_int(config, spelling, minimum=minimum, maximum=maximum) for spelling in _SPELLINGS[name]]
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}.{error}") from None
    return max((value for value in values if value is not None), default=None)


def _wants_media(config: Mapping[str, msgspec.Raw]) -> bool:
    asked = [bytes(config[name]).upper() for name in ("responseModalities", "response_modalities") if name in config]
    return any(b"IMAGE" in value or b"AUDIO" in value for value in asked)


def _tools(fields: Mapping[str, msgspec.Raw]) -> tuple[int, bool]:
    """Tokens that tools add beside their descriptions, and whether the server runs any of them itself."""
    tools = read_value(fields, "tools") if "tools" in fields else None
    if tools is None or tools == []:
        return 0, False
    tokens, remote = TOOLS_TOKENS, False
    for tool in tools if isinstance(tools, list) else [tools]:
        kinds = tool.keys() if isinstance(tool, dict) else {"unknown"}
        if not kinds <= _CLIENT_TOOLS:
            remote = True
        tokens += TOOLS_TOKENS * len(kinds)
    return tokens, remote


def _all_text(raw: msgspec.Raw) -> bool:
    """Whether contents in their usual form hold nothing but text. The quick answer for nearly all requests."""
    try:
        contents = _decode_contents(raw)
    except DECODE_ERRORS:
        return False
    parts = [part for content in (contents if isinstance(contents, list) else [contents]) for part in content.parts]
    return all(part == _NO_MEDIA for part in parts)
