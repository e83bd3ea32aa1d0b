"""The dialects of OpenAI's formats: whoever speaks them by the common rule (`openai_common.openai_usage`) needs none.

To add one, write a module with its `DIALECT` and name it in `DIALECTS`. Dialects never exclude each other: gateways
pass on the members of the providers behind them, so each corrects what its own members say. vLLM, Voyage, Azure's
model inference and Gemini's compatible mode speak by the common rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..costs import to_nano_usd
from . import (
    azure,
    deepseek,
    groq,
    huggingface,
    litellm,
    mistral,
    openrouter,
    perplexity,
    pydantic_gateway,
    sglang,
    xai,
)
from .base import Counts, Dialect

DIALECTS: tuple[Dialect, ...] = (
    azure.DIALECT,
    deepseek.DIALECT,
    groq.DIALECT,
    huggingface.DIALECT,
    litellm.DIALECT,
    mistral.DIALECT,
    openrouter.DIALECT,
    perplexity.DIALECT,
    pydantic_gateway.DIALECT,
    sglang.DIALECT,
    xai.DIALECT,
)

REFUSING_MODELS = tuple(prefix for dialect in DIALECTS for prefix in dialect.refusing_models)
REFUSING_MEMBERS = frozenset[str]().union(*(dialect.refusing_members for dialect in DIALECTS))
ANSWER_DIALECTS = tuple((mark, d.absorb) for d in DIALECTS if d.absorb is not None for mark in sorted(d.answer_marks))
"""By the member of an answer: what reads it."""


def correct_counts(counts: Counts, usage: Mapping[str, Any], of_prompt: Mapping[str, Any]) -> None:
    """Let each dialect whose members stand in a usage object (or its prompt details) correct what was read from it."""
    for dialect in _marked(_CORRECTING, usage, of_prompt):
        if dialect.correct is not None:
            dialect.correct(counts, usage)


def reported_cost(usage: Mapping[str, Any]) -> int | None:
    """What a usage object of any API says that the call cost, in nano-USD; None where it says nothing. Of several
    amounts the one that stands last counts: gateways append theirs.
    """
    cost = None
    for dialect in _marked(_PRICING, usage):
        if dialect.cost_usd is not None:
            found = to_nano_usd(dialect.cost_usd(usage))
            cost = cost if found is None else found
    return cost


def _by_mark(dialects: Iterable[Dialect]) -> dict[str, tuple[Dialect, ...]]:
    marks: dict[str, tuple[Dialect, ...]] = {}
    for dialect in dialects:
        for mark in dialect.marks:
            marks[mark] = (*marks.get(mark, ()), dialect)
    return marks


_CORRECTING = _by_mark(dialect for dialect in DIALECTS if dialect.correct is not None)
_PRICING = _by_mark(dialect for dialect in DIALECTS if dialect.cost_usd is not None)


def _marked(index: Mapping[str, tuple[Dialect, ...]], *members: Mapping[str, Any]) -> Iterable[Dialect]:
    """Each dialect once, in the order of its first mark."""
    names = [name for holder in members for name in holder if name in index]
    return dict.fromkeys(dialect for name in names for dialect in index[name]) if names else ()
