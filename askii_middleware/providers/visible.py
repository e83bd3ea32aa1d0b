"""Which models show all that they bill: a stream of theirs can be held for as it goes.

Hidden reasoning is billed and never passes: OpenAI's reasoning models and whatever families come after them, Grok from
3 on, Gemini from 2.5 on, Claude where it thinks (what is shown is a summary). Open weights show their reasoning. A
name that is not known here hides some of its output, perhaps; models on the user's own machines do not.

Sources: developers.openai.com/api/docs/guides/reasoning, platform.claude.com/docs/en/build-with-claude/thinking,
ai.google.dev/gemini-api/docs/thinking, docs.x.ai/docs/guides/reasoning, openrouter.ai/docs/use-cases/reasoning-tokens
(2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from ..models import SELF_HOSTED, canonical, split_provider
from .fields import is_set, read_value

_OPEN = (
    *("gpt-3.5", "gpt-35", "gpt-4", "chatgpt-4o", "gpt-5-chat", "gpt-oss", "davinci-002", "babbage-002"),
    *("gemini-1.5-", "gemini-2.0-", "gemma", "nova-micro", "nova-lite", "nova-pro", "nova-premier", "titan-text"),
    *("llama", "meta-llama", "tinyllama", "mistral", "ministral", "mixtral", "codestral", "devstral", "pixtral"),
    *("open-mistral", "open-mixtral", "open-codestral", "deepseek", "qwen", "qwq", "phi-", "phi3", "phi4"),
    *("command", "c4ai-", "kimi", "moonshot", "glm-", "granite", "olmo", "falcon", "jamba", "hermes", "smollm"),
)
_HIDING = ("audio", "search", "realtime", "research", "thinking", "image", "live", ":online", "-tts")
"""Words in the names of members of these families that search, speak, draw, or hide what they think."""
_MAKERS = ("anthropic.", "amazon.", "meta.", "mistral.", "cohere.", "deepseek.", "qwen.", "openai.", "ai21.", "google.")
"""What Amazon puts before a model's name, behind the region."""
_QUIET_CLAUDES = (
    *("claude-2", "claude-3", "claude-instant"),
    *("claude-opus-4", "claude-sonnet-4", "claude-haiku-4"),
)
"""They think only where the request asks for it; later generations unless it forbids it."""


def shows_text(model: str) -> bool:
    """Whether a model is known to stream all the output that it bills. Claude is another question: see
    `claude_shows`.
    """
    return split_provider(model)[0] in SELF_HOSTED or _is_open(_own_name(model))


def claude_shows(model: str, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether Claude shows all its output for a request with these members."""
    thinking = read_value(fields, "thinking") if is_set(fields, "thinking") else None
    name = _own_name(model)
    if thinking is None:
        return name.startswith(_QUIET_CLAUDES) and not hides(name)
    return (
        name.startswith("claude-")
        and not hides(name)
        and isinstance(thinking, dict)
        and thinking.get("type") == "disabled"
    )


def client_tools_only(fields: Mapping[str, msgspec.Raw], *kinds: str) -> bool:
    """Whether the tools of a request are all run by the client: their `type` is one of `kinds` (or begins with it,
    where it ends in an underscore), or missing. What the provider runs itself it may bill unseen.
    """
    tools = read_value(fields, "tools") if is_set(fields, "tools") else []
    prefixes = tuple(kind for kind in kinds if kind.endswith("_"))
    if not isinstance(tools, list):
        return False
    return all(
        isinstance(tool, dict) and (tool.get("type") in (None, *kinds) or str(tool.get("type")).startswith(prefixes))
        for tool in tools
    )


@lru_cache(maxsize=4096)
def _is_open(name: str) -> bool:
    return name.startswith(_OPEN) and not hides(name)


def hides(name: str) -> bool:
    """Whether a word in a model's name says that it bills more than its text."""
    return any(word in name for word in _HIDING)


@lru_cache(maxsize=4096)
def _own_name(model: str) -> str:
    """The name without organisation, region and maker: `meta-llama/llama-3.1-8b` and `us.meta.llama3-1-8b-…`."""
    name = canonical(model).rpartition("/")[2].removeprefix("ft:")
    for maker in _MAKERS:
        before, found, rest = name.partition(maker)
        if found and rest and len(before) <= len("apac."):
            return rest
    return name
