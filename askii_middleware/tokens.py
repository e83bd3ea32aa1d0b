"""Exact token counts, where the extra `tokenizer` is installed and knows a model's encoding.

A prompt is counted as the JSON it came in. That is a bound of what the provider counts: every text of the prompt
stands in the JSON, escapes only make it longer, and the keys, quotes and braces around a message come to more tokens
than the three or four of a chat template's own (shown by test for the encodings used here).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

try:
    import toktok

    _toktok: Any = toktok
except ImportError:
    _toktok = None

MAX_COUNTED_BYTES = 1 << 17
"""Counting takes about 15 ms for each megabyte; larger prompts are bounded by their bytes."""

_ENCODINGS = (
    # OpenAI's own assignment of encodings to models (its tokenizer library's model table, 2026-11).
    ("o200k_base", ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "chatgpt-4o", "o1", "o3", "o4-mini")),
    ("cl100k_base", ("gpt-4", "gpt-3.5-turbo", "gpt-35-turbo", "text-embedding-3", "text-embedding-ada-002")),
)


def warm() -> None:
    """Load the encodings (about half a second each), so that no call waits for them."""
    if _toktok is not None:
        for encoding, _ in _ENCODINGS:
            _toktok.batch_count([""], encoding, threads=1)


@lru_cache(maxsize=4096)
def encoding_of(model: str) -> str | None:
    """The encoding of a model by its canonical name; None where it is not known or the extra is missing."""
    if _toktok is None:
        return None
    for encoding, families in _ENCODINGS:
        if model.startswith(families):
            return encoding
    return None


def count_tokens(text: bytes, encoding: str) -> int | None:
    """Tokens of UTF-8 text in an encoding; None for what cannot be counted."""
    if len(text) > MAX_COUNTED_BYTES:
        return None
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return None
    counted: list[int] = _toktok.batch_count([decoded], encoding, threads=1)
    return counted[0]
