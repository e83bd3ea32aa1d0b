"""Groq puts a stream's usage, and why a stream broke off, into `x_groq`; newer answers repeat the usage at the usual
place. Its compound systems also break the usage down by the models they called (`usage_breakdown`): these are the same
tokens once more, so only the total counts.

Source: groq SDK 1.7 (`chat_completion_chunk.py`), recorded streams, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...usage import Report
from ..counts import member
from .base import Dialect


def _absorb(report: Report, answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    own = member(answer, "x_groq")
    if own.get("error"):
        report.failed = True
    usage = own.get("usage")
    return usage if isinstance(usage, dict) else None


DIALECT = Dialect(
    name="groq",
    answer_marks=frozenset(("x_groq",)),
    absorb=_absorb,
)
