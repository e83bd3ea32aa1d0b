"""SGLang: reasoning tokens stand at the top level, as a part of the completion.

Source: sglang `entrypoints/openai/protocol.py` (`UsageInfo`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..counts import part
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    counts.reasoning = counts.reasoning or part(usage, "reasoning_tokens")


DIALECT = Dialect(
    name="sglang",
    marks=frozenset(("reasoning_tokens",)),
    correct=_correct,
)
