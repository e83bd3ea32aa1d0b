"""Token counts in disjoint buckets, and what an answer says about itself.

Providers report totals with parts inside them (cached tokens inside the prompt, reasoning inside the completion),
each in its own way. A price applies to disjoint buckets, so the parts are taken out of the totals once, here.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one call used. Every field is a count that no other field contains; the totals are properties.

    Units: tokens, except `web_search` and `request` (calls), `page` (pages), `character` (characters) and
    `second` (seconds of audio).
    """

    input: int = 0
    """Uncached text on the prompt side, and every prompt token with no bucket of its own."""
    cache_read: int = 0
    cache_write: int = 0
    """Written to a cache that lives 5 minutes, or whose life time the provider did not name."""
    cache_write_1h: int = 0
    input_audio: int = 0
    cache_read_audio: int = 0
    input_image: int = 0
    cache_read_image: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    output_image: int = 0
    web_search: int = 0
    request: int = 0
    page: int = 0
    character: int = 0
    second: int = 0
    anomalous: bool = False
    """True where the reported counts contradicted each other and were clamped."""
    largest_prompt: int = 0
    """Of a sum over several calls: the tokens of the largest prompt, by which a price's tier is chosen. 0: one call."""

    @property
    def input_tokens(self) -> int:
        return (
            self.input
            + self.cache_read
            + self.cache_write
            + self.cache_write_1h
            + self.input_audio
            + self.cache_read_audio
            + self.input_image
            + self.cache_read_image
        )

    @property
    def output_tokens(self) -> int:
        return self.output + self.reasoning + self.output_audio + self.output_image

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def cached_input_tokens(self) -> int:
        return self.cache_read + self.cache_read_audio + self.cache_read_image

    @property
    def cache_write_tokens(self) -> int:
        return self.cache_write + self.cache_write_1h

    @property
    def audio_input_tokens(self) -> int:
        return self.input_audio + self.cache_read_audio

    @classmethod
    def from_totals(
        cls,
        input_tokens: int,
        output_tokens: int,
        *,
        cached_input_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        audio_input_tokens: int = 0,
        cached_audio_tokens: int = 0,
        image_input_tokens: int = 0,
        cached_image_tokens: int = 0,
        reasoning_tokens: int = 0,
        audio_output_tokens: int = 0,
        image_output_tokens: int = 0,
        web_search: int = 0,
    ) -> TokenUsage:
        """Take the parts out of the totals. Negative counts become 0 and parts never exceed their whole; either sets
        `anomalous`. `cache_write_1h_tokens` is a part of `cache_write_tokens`; `cached_audio_tokens` and
        `cached_image_tokens` are parts of `cached_input_tokens` and of their modality.
        """
        anomalous = False

        def part(count: int, left: int) -> int:
            nonlocal anomalous
            if 0 <= count <= left:
                return count
            anomalous = True
            return 0 if count < 0 else left

        left = part(input_tokens, max(input_tokens, 0))
        cached = part(cached_input_tokens, left)
        left -= cached
        written = part(cache_write_tokens, left)
        left -= written
        written_1h = part(cache_write_1h_tokens, written)
        cached_audio = part(cached_audio_tokens, cached)
        cached_image = part(cached_image_tokens, cached - cached_audio)
        # Where a provider says how much was cached but not of which kind, the overlap is unknown: audio and images
        # then take what the cached text left of the total, which is the dearer reading only where audio is dearer.
        audio = part(max(audio_input_tokens - cached_audio, 0), left) if audio_input_tokens >= 0 else part(-1, 0)
        left -= audio
        image = part(max(image_input_tokens - cached_image, 0), left) if image_input_tokens >= 0 else part(-1, 0)
        left -= image
        out = part(output_tokens, max(output_tokens, 0))
        reasoning = part(reasoning_tokens, out)
        out -= reasoning
        audio_out = part(audio_output_tokens, out)
        out -= audio_out
        image_out = part(image_output_tokens, out)
        out -= image_out
        return cls(
            input=left,
            cache_read=cached - cached_audio - cached_image,
            cache_write=written - written_1h,
            cache_write_1h=written_1h,
            input_audio=audio,
            cache_read_audio=cached_audio,
            input_image=image,
            cache_read_image=cached_image,
            output=out,
            reasoning=reasoning,
            output_audio=audio_out,
            output_image=image_out,
            web_search=part(web_search, max(web_search, 0)),
            anomalous=anomalous,
        )


NOTHING_USED = TokenUsage()
TIER_STARTS = (100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000)
"""Prompt sizes above which makers charge whole calls at other prices (every start in genai-prices 0.2 from 100,000
on). Sums of calls keep to prompts between two of these, so that each is charged at its own tier.
"""


def prompt_class(usage: TokenUsage) -> int:
    """Between which two of `TIER_STARTS` the prompt of one call lies."""
    return bisect_left(TIER_STARTS, usage.input_tokens)


def added(one: TokenUsage, other: TokenUsage) -> TokenUsage:
    """The sum of what several calls used, bucket by bucket."""
    names = [name for name in one.__struct_fields__ if name not in ("anomalous", "largest_prompt")]
    return TokenUsage(
        **{name: getattr(one, name) + getattr(other, name) for name in names},
        anomalous=one.anomalous or other.anomalous,
        largest_prompt=max(one.largest_prompt or one.input_tokens, other.largest_prompt or other.input_tokens),
    )


class Report(msgspec.Struct, kw_only=True):
    """What a reader has learnt from an answer so far. Readers fill it in as bytes pass."""

    usage: TokenUsage | None = None
    """The last complete cumulative usage, or None while none has been seen."""
    model: str | None = None
    """The model that answered, as the provider names it."""
    service_tier: str | None = None
    """The tier that was served (not the one asked for)."""
    provider_request_id: str | None = None
    other_usage: tuple[tuple[str, TokenUsage], ...] = ()
    """Tokens of further models that are billed outside the top level, such as an adviser's."""
    generated_tokens: int | None = None
    """Output tokens, all of them, where the provider counts these but leaves the prompt's open."""
    cost_nano_usd: int | None = None
    """What the provider or a gateway says the call cost, rounded half-even; None where it says nothing."""
    finished: bool = False
    """The answer came to its own end (a last chunk, a stop event, a whole body)."""
    failed: bool = False
    """The answer is, or ended in, the provider's error."""
    deferred: bool = False
    """The operation goes on elsewhere; its usage comes with a later answer."""
    visible_bytes: int = 0
    """UTF-8 bytes of generated text that passed: the basis of an estimate when no usage comes."""
    text: list[str] | None = None
    """Where set, readers that can add the pieces that pass, for whoever counts their tokens and empties it."""
    counted_tokens: int | None = None
    """The tokens of the text that passed, where somebody has counted them."""
    frame_tokens: int = 0
    """At most so many tokens that are no text: names of tools, and the marks around their calls."""
    choices: int = 1
    """How many answers stand side by side in the stream."""
    open_block: int | None = None
    """The index of the content block that has begun and not ended."""
    visible_deltas: int = 0
    """Pieces of generated text that passed; providers send about one token in each."""

    @property
    def visible_tokens(self) -> int:
        """The output that passed, in tokens, as counted or estimated: never below the number of pieces."""
        counted = self.counted_tokens
        return max(self.visible_deltas, -(-self.visible_bytes // 4) if counted is None else counted)
