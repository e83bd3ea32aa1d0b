"""How much calls usually produce, learnt from those that ended: by tenant and model, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import UsageRecord

FIRST_SLICE_TOKENS = 512
"""What a stream begins with while nothing is known of its tenant and model."""
MAX_SLICE_TOKENS = 4_096
MAX_KNOWN = 10_000
_WEIGHT = 0.2


class Expectations:
    """Moving averages of output tokens and of their deviation. Forgets whoever has not been seen for longest."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, float]] = {}

    def learn_from(self, model: str, record: UsageRecord) -> None:
        """A call of `model` is charged. One that was estimated, or broken off, says only how much it was at least."""
        output_tokens = record.usage.output_tokens
        if not output_tokens:
            return
        whole = record.outcome == "completed" and not record.estimated
        if whole or output_tokens > self.output_tokens(record.tenant, model):
            self.learn(record.tenant, model, output_tokens)

    def learn(self, tenant: str, model: str, output_tokens: int) -> None:
        """A call has ended."""
        key = (tenant, model)
        known = self._known.pop(key, None)
        if known is None:
            self._known[key] = (float(output_tokens), output_tokens / 2)
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
            return
        mean, deviation = known
        error = output_tokens - mean
        self._known[key] = (mean + _WEIGHT * error, deviation + _WEIGHT * (abs(error) - deviation))

    def output_tokens(self, tenant: str, model: str) -> int:
        """The expected output of a call."""
        known = self._known.get((tenant, model))
        return FIRST_SLICE_TOKENS if known is None else max(round(known[0]), 1)

    def first_slice(self, tenant: str, model: str) -> int:
        """Room for most calls, so that few have to ask for more."""
        known = self._known.get((tenant, model))
        if known is None:
            return FIRST_SLICE_TOKENS
        return min(max(round(known[0] + 2 * known[1]), FIRST_SLICE_TOKENS // 4), MAX_SLICE_TOKENS)
