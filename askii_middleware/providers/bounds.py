"""Upper bounds of a prompt's tokens, from the request alone and for any model.

**Text**: a token covers at least one byte of UTF-8 (byte-level BPE and SentencePiece with byte fallback alike), and
JSON never makes text shorter: escapes, quotes and keys only add bytes. So the length of the body bounds its text
strictly, and the some 25 bytes of JSON around each message bound the 3 to 7 control tokens a chat template puts
around it. What templates add beside the messages is in `TEMPLATE_TOKENS` and `TOOLS_TOKENS`.

**Media** in the body are base64 and would count many times too much as text, so their payload is taken out and their
documented size put in its place. Providers size them by model, and the model may change after the request is read
(fallbacks, aliases), so these are the largest documented sizes:

- images, OpenAI: tiles of 512 px after scaling to at most 2048 by 768, that is 8 at most; the dearest model of the
  tile kind, gpt-4o-mini, counts 2,833 + 5,667 each; patch models cap at 10,000 and less
  (platform.openai.com/docs/guides/images-vision, 2026-11); `detail: low` is one base amount;
- images, Anthropic: width by height / 750, about 1,600; up to 4,784 from the high-resolution models on
  (platform.claude.com/docs/en/build-with-claude/vision, 2026-11);
- audio: 10 tokens/s at OpenAI, 32 tokens/s at Gemini's compatible API, 12.5 tokens/s in windows of 30 s at Mistral.
  The duration follows from the payload only through the bit rate; 8 kbit/s, the least that MP3 and Opus speech has,
  makes it 1 token per 32 base64 characters or less.

**Elsewhere**: what a request only refers to (files, stored prompts and conversations) and what a server's own tools
will add (searches, remote tool servers) is not in it: `remote`. So are PDFs, whose pages grow when they are unpacked.
A part of an unknown type counts as remote too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .counts import member
from .fields import DECODE_ERRORS, is_set, read_value

TEMPLATE_TOKENS = 256
"""A default system prompt of a chat template; the longest seen, Harmony's (gpt-oss), has about 80."""
TOOLS_TOKENS = 1024
"""What tells a model that it has tools: at most 735 tokens documented (Anthropic's computer use), once for tools as
such and once for each tool the provider itself describes.
"""
OPENAI_IMAGE_TOKENS = 2_833 + 8 * 5_667
OPENAI_LOW_IMAGE_TOKENS = 2_833
ANTHROPIC_IMAGE_TOKENS = 4_784
AUDIO_CHARS_PER_TOKEN = 32
AUDIO_WINDOW_TOKENS = 1_024
BYTES_PER_TOKEN = 4
LIKELY_IMAGE_TOKENS = 1_000
"""Between a 1024 px square at OpenAI (765) and one at Anthropic (about 1,400)."""
LIKELY_AUDIO_CHARS_PER_TOKEN = 2_000
"""MP3 at 128 kbit/s and 10 tokens/s."""

_PLAIN = frozenset(
    (
        *("text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal", "thinking"),
        *("redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use", "search_result", "reference"),
        *("function_call", "custom_tool_call", "reasoning", "compaction", "fallback", "web_search_tool_result"),
        *("code_execution_tool_result", "bash_code_execution_tool_result", "advisor_tool_result"),
        *("text_editor_code_execution_tool_result", "tool_search_tool_result", "tool_reference"),
        *("local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output", "apply_patch_call"),
        *("apply_patch_call_output", "computer_call", "web_search_call", "mcp_approval_response", "mcp_list_tools"),
        *("mcp_call", "mcp_approval_request", "code_interpreter_call"),
    )
)
"""Parts that are all text, or whose own members are."""
_UNTYPED = ("image_url", "input_audio", "audio_url", "video_url", "file")
"""Members by which some servers (vLLM) know a part that has no type."""
_MAX_DEPTH = 8
_CHAT_REFERENCES = frozenset(("web_search_options", "data_sources", "search_parameters", "plugins"))
_RESPONSES_REFERENCES = frozenset(("previous_response_id", "conversation", "prompt"))
_ANTHROPIC_REFERENCES = frozenset(("mcp_servers", "container", "context_management"))


class Bound(NamedTuple):
    """An upper bound of the prompt's tokens, whether there is more input than the request shows, the likely number
    of tokens (text at four bytes each, the average of English; media at common sizes), and whether there are media.
    """

    tokens: int
    remote: bool
    estimate: int
    media: bool


class _Content(msgspec.Struct, gc=False):
    content: str | list[Any] | None = None
    audio: Any = None


class _Tool(msgspec.Struct, gc=False):
    type: Any = None


_decode_tools = msgspec.json.Decoder(list[_Tool] | None).decode
_decode_messages = msgspec.json.Decoder(list[_Content]).decode


class _Walk:
    """Adds up what parts of a prompt weigh beyond (or, for payloads, below) the bytes they stand in."""

    def __init__(self, image_tokens: int, low_image_tokens: int) -> None:
        self.tokens = 0
        self.remote = False
        self.payload_bytes = 0
        self.media_estimate = 0
        """Likely tokens of the media."""
        self._image_tokens = image_tokens
        self._low_image_tokens = low_image_tokens

    def parts(self, parts: object, depth: int = _MAX_DEPTH) -> None:
        """Content: a string, a part or a list of parts. Nested more deeply than any API allows, it counts as remote."""
        for part in parts if isinstance(parts, list) else (parts,):
            if not isinstance(part, dict):
                continue
            if depth:
                self._part(part, depth - 1)
            else:
                self.remote = True

    def _part(self, part: Mapping[str, Any], depth: int) -> None:
        kind = part.get("type")
        if kind is None:
            kind = next((name for name in _UNTYPED if name in part), "message")
        if type(kind) is not str:
            self.remote = True
        elif kind in _PLAIN:
            pass
        elif kind in ("image_url", "input_image", "computer_screenshot"):
            holder = member(part, "image_url")
            url = holder.get("url") if holder else part.get("image_url")
            detail = holder.get("detail") if holder else part.get("detail")
            inline = type(url) is str and url.startswith("data:")
            self._image(url if inline else None, low=detail == "low")
        elif kind == "image":
            self._image(_member(part, "source", "data"))
        elif kind == "image_generation_call":
            self._image(part.get("result"))
        elif kind == "input_audio":
            self._audio(_member(part, "input_audio", "data"))
        elif kind == "document":
            self._document(part.get("source"), depth)
        elif kind in ("file", "input_file"):
            self._unpacked(_member(part, "file", "file_data") or part.get("file_data"))
        elif kind in ("message", "tool_result"):
            self.parts(part.get("content"), depth)
        elif kind in ("function_call_output", "custom_tool_call_output", "computer_call_output"):
            self.parts(part.get("output"), depth)
        else:  # references, videos, and what nobody knows yet
            self.remote = True

    def _image(self, payload: object, *, low: bool = False) -> None:
        self.tokens += self._low_image_tokens if low else self._image_tokens
        self.media_estimate += LIKELY_IMAGE_TOKENS
        self._not_text(payload)

    def _audio(self, payload: object) -> None:
        if type(payload) is str:
            self.tokens += AUDIO_WINDOW_TOKENS + len(payload) // AUDIO_CHARS_PER_TOKEN
            self.media_estimate += 1 + len(payload) // LIKELY_AUDIO_CHARS_PER_TOKEN
            self._not_text(payload)
        else:
            self.remote = True

    def _unpacked(self, payload: object) -> None:
        """A file: nothing about it is known before it is unpacked, so its payload does not count as text either."""
        self.remote = True
        self._not_text(payload)

    def _not_text(self, payload: object) -> None:
        if type(payload) is str:
            self.tokens -= len(payload)
            self.payload_bytes += len(payload)

    def _document(self, source: object, depth: int) -> None:
        kind = source.get("type") if isinstance(source, dict) else None
        if kind == "content":
            self.parts(_member({"source": source}, "source", "content"), depth)
        elif kind != "text":
            self._unpacked(_member({"source": source}, "source", "data"))


def chat_bound(fields: Mapping[str, msgspec.Raw], body_bytes: int) -> Bound:
    """Chat completions."""
    walk = _messages(fields, OPENAI_IMAGE_TOKENS, OPENAI_LOW_IMAGE_TOKENS)
    tools, server_tools = _tools(fields, ())
    remote = server_tools or _any_set(fields, _CHAT_REFERENCES)
    return _bound(body_bytes, walk, tools, remote=remote, spoken="audio" in fields)


def responses_bound(fields: Mapping[str, msgspec.Raw], body_bytes: int) -> Bound:
    """Responses: `input` is a string or a list of items, of which messages are one kind."""
    walk = _Walk(OPENAI_IMAGE_TOKENS, OPENAI_LOW_IMAGE_TOKENS)
    raw = fields.get("input")
    if raw is not None and bytes(raw)[:1] != b'"':
        walk.parts(read_value(fields, "input"))
    tools, server_tools = _tools(fields, ("local_shell", "apply_patch"))
    return _bound(body_bytes, walk, tools, remote=server_tools or _any_set(fields, _RESPONSES_REFERENCES))


def messages_bound(fields: Mapping[str, msgspec.Raw], body_bytes: int) -> Bound:
    """Anthropic messages. Context management reads the context once more to compact it."""
    walk = _messages(fields, ANTHROPIC_IMAGE_TOKENS, ANTHROPIC_IMAGE_TOKENS)
    tools, server_tools = _tools(fields, ("bash_", "text_editor_", "computer_", "memory_"))
    return _bound(body_bytes, walk, tools, remote=server_tools or _any_set(fields, _ANTHROPIC_REFERENCES))


def text_bound(body_bytes: int) -> Bound:
    """Requests that hold nothing but text, or tokens as numbers, each of which takes more than one byte."""
    return _bound(body_bytes, None, 0, remote=False)


def _bound(body_bytes: int, walk: _Walk | None, tools: int, *, remote: bool, spoken: bool = False) -> Bound:
    tokens = body_bytes + TEMPLATE_TOKENS + tools
    if walk is None:
        return Bound(tokens, remote, -(-body_bytes // BYTES_PER_TOKEN), spoken)
    estimate = max(body_bytes - walk.payload_bytes, 0) // BYTES_PER_TOKEN + walk.media_estimate
    return Bound(tokens + walk.tokens, remote or walk.remote, max(estimate, 1), spoken or walk.media_estimate > 0)


def _messages(fields: Mapping[str, msgspec.Raw], image_tokens: int, low_image_tokens: int) -> _Walk | None:
    """What the messages weigh beyond their bytes, and whether any of them refers to something elsewhere (`audio` in
    a message names an earlier spoken answer). None: they are nothing but text.
    """
    raw = fields.get("messages")
    if raw is None:
        return None
    try:
        messages = _decode_messages(raw)
    except DECODE_ERRORS:  # contents of another type: an odd dialect, or a request that will be refused upstream
        walk = _Walk(image_tokens, low_image_tokens)
        walk.parts(read_value(fields, "messages"))
        return walk
    mixed = [message for message in messages if message.content.__class__ is list or message.audio is not None]
    if not mixed:
        return None
    walk = _Walk(image_tokens, low_image_tokens)
    for message in mixed:
        walk.parts(message.content)
        walk.remote = walk.remote or message.audio is not None
    return walk


def _tools(fields: Mapping[str, msgspec.Raw], client_kinds: tuple[str, ...]) -> tuple[int, bool]:
    """Tokens that tools add beside their descriptions, and whether the server runs any of them itself. Kinds that
    begin with one of `client_kinds` are run by the client though the provider describes them.
    """
    if "tools" not in fields:
        return (TOOLS_TOKENS if "functions" in fields else 0), False
    try:
        kinds = [tool.type for tool in _decode_tools(fields["tools"]) or ()]
    except DECODE_ERRORS:
        tools = read_value(fields, "tools")
        kinds = [member({"tool": tool}, "tool").get("type", "") for tool in tools] if isinstance(tools, list) else []
    if not kinds:
        return 0, False
    tokens, remote = TOOLS_TOKENS, False
    for kind in kinds:
        if kind in (None, "function", "custom"):
            continue
        tokens += TOOLS_TOKENS
        if type(kind) is not str or not kind.startswith(client_kinds):
            remote = True
    return tokens, remote


def _any_set(fields: Mapping[str, msgspec.Raw], names: frozenset[str]) -> bool:
    return not names.isdisjoint(fields) and any(is_set(fields, name) for name in names)


def _member(part: Mapping[str, Any], outer: str, inner: str) -> Any:
    return member(part, outer).get(inner)
