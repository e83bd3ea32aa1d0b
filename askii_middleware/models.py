"""Model names: one canonical form for comparing, one family for everything dated.

The same model is called `gpt-4o`, `GPT-4o`, `openai/gpt-4o`, `azure/gpt-4o` or, as the answer names it,
`gpt-4o-2024-11-20`. Budgets, prices and fallbacks compare canonical names, and let a dated name stand for its family
where it has no entry of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

MAX_MODEL_CHARS = 256
"""Callers refuse longer names before they come here; the caches below hold whole names."""

SELF_HOSTED = frozenset(
    {"local", "ollama", "ollama_chat", "vllm", "hosted_vllm", "llamacpp", "llama_cpp", "llamafile", "lm_studio", "tgi"}
)
"""Prefixes and upstreams that run on the user's own machines: no catalogue knows what they cost."""

_CATALOGUE_ID = {
    "ai21": "ai21",
    "anthropic": "anthropic",
    "azure": "azure",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "databricks": "databricks",
    "deepinfra": "deepinfra",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "github_copilot": "github-copilot",
    "google": "google",
    "groq": "groq",
    "mistral": "mistral",
    "moonshot": "moonshotai",
    "novita": "novita",
    "nvidia_nim": "nvidia_nim",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "sambanova": "sambanova",
    "together": "together",
    "together_ai": "together",
    "vertex": "google",
    "vertex_ai": "google",
    "voyage": "voyageai",
    "x-ai": "x-ai",
    "xai": "x-ai",
    "zai": "zai",
    **{name: name for name in SELF_HOSTED},
}
"""Provider names in model prefixes (LiteLLM's, OpenRouter's and the SDKs') to the catalogue's identifiers.
Organisations that publish weights (`meta-llama/`, `mistralai/`, `deepseek-ai/`) are parts of the name, not prefixes.
"""

_ARN_MODELS = (":foundation-model/", ":inference-profile/")
"""What Amazon's resource names are that end in a model's. Others (provisioned, custom and imported models, application
profiles, prompts) end in an id of their owner's and stay whole: they have the price that is given for them.
"""

_DATE = r"20[0-9]{2}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12][0-9]|3[01])"
_DATED = re.compile(rf"[-@](?:{_DATE}|latest)(?:-v[0-9]+(?::[0-9]+)?)?$")
"""`-2024-11-20`, `-20241022`, `@20240620` (Vertex), `-20241022-v2:0` (Bedrock), `-latest`."""

_MONTH_DAY = re.compile(
    # OpenAI (gpt-4-0613), xAI (grok-4-0709), DeepSeek (deepseek-r1-0528) and Moonshot (kimi-k2-0905) date by -MMDD,
    # Gemini previews (gemini-2.5-pro-preview-05-06) by -MM-DD; elsewhere four digits are a version or a size.
    r"^((?:gpt-3\.5|gpt-35|gpt-4|grok|deepseek|kimi).*)-(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])$"
    r"|^(gemini-.*-(?:preview|exp))-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])$"
)
_YEAR_MONTH = re.compile(
    # Mistral dates by -YYMM (mistral-large-2411).
    r"^((?:open-)?(?:mistral|ministral|codestral|devstral|magistral|mixtral|pixtral|voxtral).*)"
    r"-2[3-9](?:0[1-9]|1[0-2])$"
)

NO_ALIASES: Mapping[str, str] = MappingProxyType({})


def catalogue_provider(name: str) -> str:
    """The catalogue's identifier of a provider, an API family or an upstream; unknown names come back as they are."""
    folded = name.strip().casefold()
    return _CATALOGUE_ID.get(folded, folded)


def is_provider(name: str) -> bool:
    """Whether a name is a provider's, as the catalogue or a common SDK writes it."""
    folded = name.strip().casefold()
    return folded in _CATALOGUE_ID or folded in _CATALOGUE_ID.values()


@lru_cache(maxsize=4096)
def split_provider(name: str) -> tuple[str | None, str]:
    """The provider that the first prefix names (by the catalogue's identifier) and the rest, case-folded.
    `openrouter/anthropic/claude-3-opus` gives `("openrouter", "anthropic/claude-3-opus")`.
    """
    rest = name.strip().casefold()
    if rest.startswith(("publishers/", "projects/")):  # Vertex: projects/…/publishers/google/models/gemini-2.5-pro
        _, found, model = rest.partition("/models/")
        if found and model:
            return "google", model
    if rest.startswith("arn:"):
        # Bedrock: arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-…
        kind = next((kind for kind in _ARN_MODELS if kind in rest), None)
        model = rest.partition(kind)[2] if kind else ""
        return ("aws", model) if model else (None, rest)
    if rest.startswith("models/") and len(rest) > 7:  # Gemini's resource name, which names no provider
        rest = rest[7:]
    prefix, found, model = rest.partition("/")
    if found and model and prefix in _CATALOGUE_ID:
        return _CATALOGUE_ID[prefix], model
    return None, rest


@lru_cache(maxsize=4096)
def strip(name: str) -> str:
    """The name case-folded and without provider prefixes; aliases are not applied."""
    rest = name
    while True:
        provider, shorter = split_provider(rest)
        if provider is None:
            return shorter
        rest = shorter


def canonical(name: str, aliases: Mapping[str, str] = NO_ALIASES) -> str:
    """The form in which names are compared: case-folded, without provider prefixes (`openai/`, `azure/`,
    `models/`, …; organisations such as `meta-llama/` stay), and with `aliases` applied once. The keys of `aliases`
    are canonical; their values may be any name.
    """
    short = strip(name)
    if short in aliases:
        return strip(aliases[short])
    return short


@lru_cache(maxsize=4096)
def family(name: str) -> str:
    """The canonical name without its date: `gpt-4o-2024-11-20`, `claude-3-5-haiku-latest`, `claude-sonnet-4@20250514`,
    `gpt-4-0613` and `mistral-large-2411` lose their endings; a name without a date is its own family.
    """
    short = strip(name)
    dated = _DATED.search(short)
    if dated and dated.start():
        return short[: dated.start()]
    match = _MONTH_DAY.match(short) or _YEAR_MONTH.match(short)
    return next(part for part in match.groups() if part) if match else short
