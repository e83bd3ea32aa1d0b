"""The most tokens a model generates in one answer, where its maker documents it.

It bounds the hold of a request that sets no limit of its own. Only whole families that the makers' own pages name are
here, read on 2026-11-21 or, for retired models, from their last published table; a name that is not in the table has
no documented bound, and the caller then writes one into the request. Reasoning counts in all of these figures.

Sources:
    OpenAI: developers.openai.com/api/docs/models, "max output tokens" on each model's page.
    Anthropic: platform.claude.com/docs/en/about-claude/models/overview and /docs/en/models/<name>/overview
        ("128K" is 128,000 there). The batch API's larger beta limit is not used: batches are not held this way.
    Google: ai.google.dev/gemini-api/docs/models, "output token limit".
    DeepSeek: api-docs.deepseek.com/quick_start/pricing ("384K", read as the larger 393,216).
"""

from __future__ import annotations

from .models import canonical, family

_FAMILIES: dict[int, str] = {
    # OpenAI
    4_096: "gpt-3.5-turbo gpt-3.5-turbo-instruct gpt-4-turbo gpt-4-turbo-preview gpt-4-1106-preview "
    "gpt-4-0125-preview gpt-4-vision-preview gpt-4o-2024-05-13 gpt-4o-realtime-preview gpt-4o-mini-realtime-preview "
    "gpt-realtime gpt-realtime-mini "
    # Anthropic
    "claude-3-haiku claude-3-sonnet claude-3-opus",
    8_192: "gpt-4 claude-3-5-haiku claude-3-5-sonnet gemini-1.5-flash gemini-1.5-pro gemini-2.0-flash "
    "gemini-2.0-flash-001 gemini-2.0-flash-lite gemini-2.0-flash-lite-001",
    16_384: "gpt-4o gpt-4o-mini chatgpt-4o gpt-4o-audio-preview gpt-4o-mini-audio-preview gpt-4o-search-preview "
    "gpt-4o-mini-search-preview gpt-audio gpt-audio-mini gpt-5-chat gpt-5.1-chat gpt-5.2-chat gpt-5.3-chat",
    32_000: "claude-opus-4 claude-opus-4-0 claude-opus-4-1",
    32_768: "gpt-4.1 gpt-4.1-mini gpt-4.1-nano o1-preview",
    64_000: "claude-3-7-sonnet claude-sonnet-4 claude-sonnet-4-0 claude-sonnet-4-5 claude-haiku-4-5 claude-opus-4-5",
    65_536: "o1-mini gemini-2.5-pro gemini-2.5-flash gemini-2.5-flash-lite gemini-3-pro-preview gemini-3-flash-preview "
    "gemini-3.8-flash",
    100_000: "o1 o1-pro o3 o3-mini o3-pro o4-mini o3-deep-research o4-mini-deep-research codex-mini",
    128_000: "gpt-5 gpt-5-mini gpt-5-nano gpt-5-codex gpt-5.1 gpt-5.1-codex gpt-5.1-codex-max gpt-5.1-codex-mini "
    "gpt-5.2 gpt-5.2-codex gpt-5.2-pro gpt-5.4 gpt-5.4-mini gpt-5.4-nano gpt-5.4-pro gpt-5.5 gpt-5.6 gpt-5.6-sol "
    "gpt-6-astra gpt-6-sol gpt-6-luna gpt-6.1-sol "
    "claude-opus-4-6 claude-opus-4-7 claude-opus-4-8 claude-sonnet-4-6 claude-opus-5 claude-opus-5-5 claude-sonnet-5 "
    "claude-sonnet-5-5 claude-fable-5 claude-fable-5-1",
    272_000: "gpt-5-pro",
    393_216: "deepseek-flash deepseek-v4-flash deepseek-v4-pro",
}

_LIMITS = {name: tokens for tokens, names in _FAMILIES.items() for name in names.split()}


def max_output_tokens(model: str) -> int | None:
    """The documented maximum of a model, by its canonical name or that of its family; None where none is."""
    name = canonical(model)
    limit = _LIMITS.get(name) or _LIMITS.get(family(name))
    if limit is None and "claude-" in name:
        # Amazon writes us.anthropic.claude-…-v1:0, OpenRouter claude-3.5-sonnet.
        at = name.index("claude-")
        limit = _LIMITS.get(family(name[at:].replace(".", "-")))
    return limit
