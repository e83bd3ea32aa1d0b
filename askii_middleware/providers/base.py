"""What every wire format has to tell: which requests are its own, what bounds them, how to rewrite them, where the
usage stands in the answer, and how to refuse. All of it is pure: bytes in, values out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from ..usage import NOTHING_USED, Report, TokenUsage

Kind = Literal["text", "embedding", "image", "speech", "transcription", "moderation", "rerank", "ocr", "batch"]
"""What a call produces. A fallback stays within one family and one kind; `*` covers `text` only."""


class InvalidRequestError(ValueError):
    """The body belongs to this API but cannot be metered; the message says which field is wrong and why."""


class BatchItems(NamedTuple):
    """The calls of a batch that go to one model, added up."""

    model: str
    input_tokens: int
    """Upper bound of all their prompts."""
    output_tokens: int
    """Sum of the limits (times choices) of those that set one."""
    unlimited: int
    """How many answers may come without a limit of their own."""


class CallRequest(msgspec.Struct, kw_only=True):
    """What a request says about its own size.

    Attributes:
        model: as the client named it; None where it left it out.
        other_models: further models the request allows the provider to bill (an adviser, the provider's own
            fallbacks); empty for nearly every call.
        alternatives: models that may answer instead, by the request's own wish.
        stream: whether the answer is asked for as a stream.
        output_limit: tokens per choice the client allows; None where it set no limit. 0 for APIs without output.
        choices: how many answers are generated for one prompt.
        input_bound: an upper bound of the prompt's tokens, counting what stands in the request.
        input_estimate: its likely tokens (a quarter of the text's bytes, and media by size); charged only where an
            answer brings no usage.
        media: images or audio stand in the prompt or are asked for in the answer.
        background: the operation may go on after its answer.
        remote_input: some of the prompt is not in the request (a stored prompt, a file id, a URL).
        usage_requested: the client itself asked for usage in the stream (`include_usage: true`; an explicit false
            counts as not asked).
        end_user: the body's own user field, if it has one; cut to 256 characters.
        service_tier: the tier asked for.
        units: upper bounds of what is billed besides tokens: seconds, characters, pages, searches, calls.
        billed_by_request: what the call is billed, where that is known from the request alone and the answer reports
            nothing (the characters of a text to be spoken, the images of a call that is billed per image).
        items: what a batch asks of each model; empty for single calls and where the batch does not say.
        fields: the decoded top level, each value as the bytes it came in.
    """

    model: str | None
    other_models: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    stream: bool = False
    output_limit: int | None = None
    choices: int = 1
    input_bound: int = 0
    input_estimate: int = 0
    media: bool = False
    background: bool = False
    remote_input: bool = False
    usage_requested: bool = False
    end_user: str | None = None
    service_tier: str | None = None
    units: TokenUsage = NOTHING_USED
    billed_by_request: TokenUsage | None = None
    items: tuple[BatchItems, ...] = ()
    fields: dict[str, msgspec.Raw]


class Rewrite(msgspec.Struct, kw_only=True):
    """What may change in a request: nothing else does. None leaves a value alone."""

    model: str | None = None
    output_limit: int | None = None
    inject_usage: bool = False


class StreamReader(ABC):
    """Reads one streamed answer as its bytes pass. Memory is bounded; any split of the bytes reads the same."""

    report: Report

    @abstractmethod
    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the answer; returns the bytes the client should get for them. Without injected usage
        to hide these are the same object. Never raises for what the bytes contain.
        """

    @abstractmethod
    def finish(self) -> bytes:
        """The answer has ended; returns what was still held back."""

    @property
    def unfinished(self) -> int:
        """How many of the last bytes that `feed` returned belong to an event that is not complete yet."""
        return 0

    def closing(self, event: bytes) -> bytes:
        """The bytes that end the stream after what has passed, its last event being `event` as `Api.cut` makes it."""
        return event


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request is refused, before it takes the shape of an API's error envelope."""

    status: int
    code: str
    """`budget_exceeded`, `budget_held`, `model_not_priced`, `invalid_request`, `unauthorized`, ..."""
    message: str
    reason: str | None = None
    scope_kind: str | None = None
    """The deciding scope's shape, such as `tenant`: never its values, which may be another's."""
    resets_at: str | None = None
    """ISO 8601."""
    retry_after_s: int | None = None
    """Set where trying again soon makes sense; otherwise the envelope says `x-should-retry: false`."""
    call_id: str


class Api(ABC):
    """One metered API: one path suffix, one request shape, one answer shape."""

    name: str
    """Such as `openai.chat`."""
    family: str
    """Fallbacks stay within it: `openai.chat`, `anthropic`, ... An alias for `name` unless several APIs share it."""
    kind: Kind
    provider: str
    """Whose prices apply where neither the model nor the upstream names a provider: `openai`, `anthropic`."""
    suffixes: tuple[str, ...]
    """Path endings, each beginning with `/`. `{model}` stands for the model's name, of one segment as it is sent:
    `/model/{model}/converse`, `/{model}:generateContent`.
    """
    names_deployment: bool = False
    """The name in the path is a deployment's, which its owner chose."""
    sights: tuple[str, ...] = ()
    """Endings of GET paths whose answers tell the state of an operation that this API began: `/responses/{id}`."""
    stream_types: tuple[bytes, ...] = (b"text/event-stream",)
    """How the content types begin in which this API streams. One that plain answers have as well (`application/json`)
    means a stream only where the request asked for one.
    """
    takes_forms: bool = False
    """Requests may come as multipart forms: their fields are then read like JSON members (`true`, `false` and whole
    numbers as such, other text as strings), and each file as an object `{"file_bytes": n}`.
    """
    answer_headers: frozenset[bytes] = frozenset()
    """Headers of the answer, in lower case, that `absorb_headers` wants to see."""
    can_inject_usage: bool = False
    """Streams carry usage only when asked for, and asking can be undone for the client."""
    counts_as_it_goes = False
    """Every event of a stream tells how many tokens have been generated up to it."""
    default_output_limit: int | None = None
    """What the API itself is documented to apply where a request sets no limit; None: only the model's maximum."""
    answer_members: frozenset[str] = frozenset(
        (
            *("id", "model", "object", "type", "status", "background", "error"),
            *("usage", "service_tier", "tool_usage", "x_groq"),
        )
    )
    """Top-level members of an answer that `absorb` needs; of large answers only these are kept."""

    names_model_in_path: bool = False
    """Set for a class by its suffixes."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.names_model_in_path = any("{model}" in suffix for suffix in getattr(cls, "suffixes", ()))

    @abstractmethod
    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        """Whether a JSON object has this API's required fields (the model may be missing)."""

    @abstractmethod
    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        """Read what bounds the call. `body_bytes` is the length of the body in UTF-8 (after re-encoding, where it came
        in another form). Raises InvalidRequestError for values of the wrong type or out of range.
        """

    @abstractmethod
    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        """The body with only the given values changed; all others byte for byte as they came."""

    def injects_usage(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - for those that differ by model
        """Whether usage should be asked for on the client's behalf when `model` is called, and hidden again."""
        return self.can_inject_usage and request.stream and not request.usage_requested

    def query_takes_usage(self, query: bytes) -> bool:  # noqa: ARG002 - the version mostly stands in the path
        """Whether the API's version, where the query names it, knows the option that asks for usage."""
        return True

    @abstractmethod
    def stream_reader(self, *, hide_usage: bool) -> StreamReader:
        """A fresh reader. With `hide_usage` the usage the middleware asked for is taken out again."""

    @abstractmethod
    def body_reader(self) -> StreamReader:
        """A fresh reader for a plain JSON answer that passes in pieces: `feed` returns its argument, and memory stays
        bounded however large the answer is.
        """

    @abstractmethod
    def read_body(self, body: bytes) -> Report:
        """Usage from a whole answer of any status. Never raises; a body that says nothing gives an empty report."""

    @abstractmethod
    def recognises(self, answer: Mapping[str, Any]) -> bool:
        """Whether a decoded answer or stream event has this API's shape. At most one API says yes to an answer."""

    @abstractmethod
    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        """Merge what one decoded answer or stream event says into `report`. Never raises for odd values."""

    def absorb_headers(self, report: Report, headers: Mapping[bytes, bytes]) -> None:  # noqa: B027 - most say nothing
        """Merge what the answer's own headers say, once its body has been read: those of `answer_headers` that came,
        by lower-case name. Never raises.
        """

    def accepts(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - bodies mostly fit any model
        """Whether the request can be rewritten to `model`: False where the body has one maker's form."""
        return True

    def takes_limit(self, request: CallRequest) -> bool:  # noqa: ARG002 - nearly all do
        """Whether `rewrite` can limit this request's output: else its hold is never cut to a limit that fits."""
        return True

    def shows_output(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - an API that is not asked hides
        """Whether all the output that `model` bills for this request passes visibly in its stream, so that it can be
        held for as it goes.
        """
        return False

    def cut(self, report: Report, refusal: Refusal) -> bytes:  # noqa: ARG002 - most have their own
        """The bytes that end a stream between two events as if the output's limit had been reached; by default the
        API's error event. `report` is what its reader has learnt so far.
        """
        return self.stream_error(refusal)

    @abstractmethod
    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Body and further headers (content type and length excluded) of a refusal in this API's error envelope."""

    @abstractmethod
    def stream_error(self, refusal: Refusal) -> bytes:
        """The bytes that end a stream with this API's own error event."""
