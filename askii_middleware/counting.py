"""Counts made in code: what counts as one, and the mapping that a `track_tokens` block hands out."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec

from .log_fields import fields
from .providers.response import record_into
from .usage import Report, TokenUsage

if TYPE_CHECKING:
    from .calls import Call

logger = logging.getLogger(__name__)

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
)
_TOTALS = frozenset(("input_tokens", "output_tokens"))
MAX_COUNT = 1_000_000_000
"""No call uses as much; what is larger is a mistake of the caller's."""
MAX_NAME_CHARS = 256
MAX_METADATA_BYTES = 16_384


def whole_count(name: str, value: Any) -> int:
    """A count as an integer. Raises ValueError for what is none: fractions, booleans, negative and absurd numbers."""
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count <= MAX_COUNT:
        raise ValueError(f"{name} takes a whole number from 0 to {MAX_COUNT}, not {str(value)[:64]!r}")
    return count


def check_usage(usage: TokenUsage) -> TokenUsage:
    """Return it. Raises ValueError where a field is no count."""
    for name in usage.__struct_fields__:
        if name != "anomalous":
            whole_count(f"usage.{name}", getattr(usage, name))
    return usage


def check_model(model: Any) -> str:
    """Return it. Raises ValueError for what cannot name a model."""
    return check_name("model", model)


def check_name(what: str, name: Any) -> str:
    """Return it. Raises ValueError for what is no text, empty, too long, or cannot be written as UTF-8."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_CHARS or "\0" in name or not _is_text(name):
        raise ValueError(f"{what} takes a name of 1 to {MAX_NAME_CHARS} characters, not {str(name)[:64]!r}")
    return name


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy as JSON has it. Raises ValueError for what JSON cannot carry, or for too much of it."""
    if not metadata:
        return {}
    try:
        text = msgspec.json.encode(dict(metadata))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"metadata takes a mapping that fits into JSON: {error}") from None
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata takes at most {MAX_METADATA_BYTES} bytes of JSON, not {len(text)}")
    copy: dict[str, Any] = msgspec.json.decode(text)
    return copy


class Usage(MutableMapping[str, Any]):
    """What a block has used: a mapping of counts (0 where nothing was set), filled by `record` or by hand.

    Keys: `input_tokens`, `output_tokens`, `cached_input_tokens`, `cache_write_tokens`, `reasoning_tokens`,
    `audio_input_tokens`, `audio_output_tokens`, and `model`, the model that the counts are charged at. Setting a count
    sets the sum so far; what is recorded afterwards adds to it. None means "not known" and sets nothing.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reports: list[Report] = []
        self._by_hand: dict[str, int] = {}
        """What was set by hand, as the difference to what was recorded at that time."""
        self._model: str | None = None
        self._begun = False
        self._late: Callable[[], bool] | None = None

    @property
    def model(self) -> str:
        """The admitted model: the one to call."""
        return self._call.model

    @property
    def requested_model(self) -> str:
        return self._call.spec.model

    @property
    def fallback_reason(self) -> str | None:
        """Why `model` is not the requested one; None where it is."""
        return self._call.fallback_reason

    @property
    def max_output_tokens(self) -> int:
        """The output that is held for: pass it as the call's limit, and it cannot cost more than its hold."""
        return self._call.output_bound

    @property
    def call_id(self) -> str:
        return self._call.id

    # Filling ------------------------------------------------------------------------------------------------------

    def record(self, response: Any) -> None:
        """Take the usage out of any provider's response, a dict, JSON, or one chunk of a stream. Chunks of one stream
        replace each other (their usage is cumulative); further responses add up. What carries no usage is ignored.
        Raises TypeError or ValueError for what is no response.
        """
        fresh = Report()
        record_into(fresh, response)
        last = self._reports[-1] if self._reports else None
        if last is None or _is_another(last, fresh):
            # A bare usage object has no chunks before or after it.
            fresh.finished = fresh.finished or (fresh.usage is not None and fresh.provider_request_id is None)
            self._reports.append(fresh)
        else:
            record_into(last, response)
        if self._reports[-1].usage is not None:
            self._counted_late()

    def begin(self) -> None:
        """The model has begun to answer: from now on a failure costs something."""
        self._begun = True

    def __getitem__(self, key: str) -> Any:
        if key == "model":
            return self._model or self._call.model
        return self._recorded(_known(key)) + self._by_hand.get(key, 0)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "model":
            self._model = check_model(value)
            return
        if value is None:
            return
        self._by_hand[key] = whole_count(f"usage[{key!r}]", value) - self._recorded(_known(key))
        if self._by_hand.keys() >= _TOTALS:
            self._counted_late()

    def __delitem__(self, key: str) -> None:
        """Forget what was set by hand."""
        self._by_hand.pop(_known(key), None)

    def clear(self) -> None:
        """Forget all that was set by hand."""
        self._by_hand.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(COUNTS)

    def __len__(self) -> int:
        return len(COUNTS)

    def _recorded(self, key: str) -> int:
        return sum(_count(report.usage, key) for report in self._reports if report.usage is not None)

    # For the block ------------------------------------------------------------------------------------------------

    def when_late(self, late: Callable[[], bool]) -> None:
        """Call `late` at once when counts come after the block has ended; it answers False where they come too late."""
        self._late = late

    def _counted_late(self) -> None:
        if self._late is not None and not self._late():
            logger.warning(
                "call %s: these counts come after it was settled and are not charged",
                self._call.id,
                extra=fields("counts_late", call_id=self._call.id, tenant=self._call.identity.tenant),
            )

    @property
    def is_counted(self) -> bool:
        """Whether there are counts to charge."""
        return bool(self._by_hand) or any(report.usage is not None for report in self._reports)

    @property
    def has_begun(self) -> bool:
        """Whether some of an answer was seen, with counts or without."""
        return self._begun or any(_shows_something(report) for report in self._reports)

    @property
    def goes_on(self) -> bool:
        """Whether the provider was last seen at work on an answer, in the background: it costs something yet."""
        return bool(self._reports) and self._reports[-1].deferred

    @property
    def has_failed(self) -> bool:
        """Whether all that was recorded is errors."""
        return bool(self._reports) and all(r.failed and not _shows_something(r) for r in self._reports)

    @property
    def chosen_model(self) -> str | None:
        """The model set by hand, which all of it is then charged at."""
        return self._model

    def reports(self) -> list[Report]:
        """What each response said, with what was set by hand in the last one."""
        found = [report for report in self._reports if _shows_something(report)]
        if self._by_hand:
            last = found.pop() if found else Report()
            usage = _added(last.usage or TokenUsage(), self._by_hand)
            found.append(msgspec.structs.replace(last, usage=usage, finished=True))
        if self._model is not None:
            found = [msgspec.structs.replace(report, model=self._model) for report in found]
        return found


def _known(key: str) -> str:
    if key not in COUNTS:
        raise KeyError(f"{key!r}: usage has {', '.join(COUNTS)} and model")
    return key


def _shows_something(report: Report) -> bool:
    return report.usage is not None or report.visible_deltas > 0 or report.visible_bytes > 0


def _is_another(last: Report, fresh: Report) -> bool:
    """Whether a response is a new one rather than the next chunk of the last."""
    if last.usage is None:
        return False
    if last.provider_request_id is not None and fresh.provider_request_id is not None:
        return last.provider_request_id != fresh.provider_request_id
    return last.finished and (fresh.usage is not None or fresh.provider_request_id is not None)


def _count(usage: TokenUsage, key: str) -> int:
    if key == "reasoning_tokens":
        return usage.reasoning
    if key == "audio_output_tokens":
        return usage.output_audio
    return int(getattr(usage, key))


def _added(base: TokenUsage, more: Mapping[str, int]) -> TokenUsage:
    """Recorded usage with the differences set by hand; buckets that cannot be set stay as they are."""
    counts = {key: _count(base, key) + more.get(key, 0) for key in COUNTS}
    usage = TokenUsage.from_totals(
        counts["input_tokens"],
        counts["output_tokens"],
        cached_input_tokens=counts["cached_input_tokens"],
        cache_write_tokens=counts["cache_write_tokens"],
        cache_write_1h_tokens=base.cache_write_1h,
        audio_input_tokens=counts["audio_input_tokens"],
        cached_audio_tokens=base.cache_read_audio,
        image_input_tokens=base.input_image + base.cache_read_image,
        cached_image_tokens=base.cache_read_image,
        reasoning_tokens=counts["reasoning_tokens"],
        audio_output_tokens=counts["audio_output_tokens"],
        image_output_tokens=base.output_image,
        web_search=base.web_search,
    )
    return msgspec.structs.replace(
        usage,
        request=base.request,
        page=base.page,
        character=base.character,
        second=base.second,
        anomalous=usage.anomalous or base.anomalous,
        largest_prompt=base.largest_prompt,
    )
