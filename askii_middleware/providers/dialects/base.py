"""What can differ between those who speak OpenAI's formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import msgspec

from ...usage import Report, TokenUsage


class Counts(msgspec.Struct, kw_only=True):
    """What a usage object says by the common rule, before it is taken apart into buckets: totals, and parts of them.
    May hold anything; `usage` clamps it.
    """

    prompt: int
    completion: int
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    audio: int = 0
    cached_audio: int = 0
    image: int = 0
    reasoning: int = 0
    audio_out: int = 0
    image_out: int = 0
    web_search: int = 0
    second: int = 0

    def usage(self) -> TokenUsage:
        usage = TokenUsage.from_totals(
            self.prompt,
            self.completion,
            cached_input_tokens=self.cached,
            cache_write_tokens=self.cache_write,
            cache_write_1h_tokens=self.cache_write_1h,
            audio_input_tokens=self.audio,
            cached_audio_tokens=self.cached_audio,
            image_input_tokens=self.image,
            reasoning_tokens=self.reasoning,
            audio_output_tokens=self.audio_out,
            image_output_tokens=self.image_out,
            web_search=self.web_search,
        )
        return msgspec.structs.replace(usage, second=self.second) if self.second > 0 else usage


class Dialect(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """How one provider or gateway differs from the common rule. Everything left out does not differ."""

    name: str
    marks: frozenset[str] = frozenset()
    """Members of a usage object (or of its prompt details) by which it is known. Where several dialects share one,
    each looks whether it is meant.
    """
    correct: Callable[[Counts, Mapping[str, Any]], None] | None = None
    """Changes what the common rule reads from a usage object that has one of the marks. Never raises."""
    cost_usd: Callable[[Mapping[str, Any]], Fraction | None] | None = None
    """What a usage object with one of the marks says that the call cost, in USD. Never raises."""
    answer_marks: frozenset[str] = frozenset()
    """Top-level members of a chunk or an answer that say more than OpenAI's do."""
    absorb: Callable[[Report, Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    """Merges an answer with one of `answer_marks` into the report; returns the usage object it keeps elsewhere than
    in `usage`, if any. Never raises.
    """
    refusing_models: tuple[str, ...] = ()
    """How the names of models begin, in lower case, whose API refuses to be asked for usage in a stream."""
    refusing_members: frozenset[str] = frozenset()
    """Members of a request together with which the API refuses to be asked for it."""
