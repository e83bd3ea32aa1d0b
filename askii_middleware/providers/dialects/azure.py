"""Azure OpenAI. Its usage is OpenAI's.

Source: learn.microsoft.com/azure/ai-foundry/openai/references/on-your-data, 2026-11.
"""

from __future__ import annotations

from .base import Dialect

DIALECT = Dialect(
    name="azure",
    refusing_members=frozenset(("data_sources",)),
)
