"""One call on its way through: who makes it, what was held for it, and how it may end. Values only, no I/O."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .usage import NOTHING_USED, TokenUsage

if TYPE_CHECKING:
    from .admission import BudgetState, Match, Window
    from .currency import Rate
    from .errors import Denial
    from .identity import Identity
    from .pricing import Price
    from .providers.base import BatchItems
    from .tracing import Trace
    from .tracker import CostTracker


def new_call_id(now_s: float | None = None) -> str:
    """A version 7 UUID as text: unique, and ordered by time, which keeps the ledger's index compact."""
    ms = int((time.time() if now_s is None else now_s) * 1000) & 0xFFFF_FFFF_FFFF
    tail = os.urandom(10).hex()
    head = f"{ms:012x}"
    return f"{head[:8]}-{head[8:]}-7{tail[:3]}-{'89ab'[int(tail[3], 16) & 3]}{tail[4:7]}-{tail[7:19]}"


@dataclass(slots=True, kw_only=True)
class CallSpec:
    """What is known of a call before it is admitted.

    Attributes:
        api: the wire format, such as `openai.chat`; `code` for blocks.
        provider: whose prices apply where the model's name does not say.
        kind: what the call produces, as `providers.base.Kind` names it; the `*` fallbacks cover `text` only.
        input_tokens: upper bound of the prompt.
        counted_input: an encoding and the prompt's exact bound in it, for models that use it.
        count_input: finds `counted_input`; asked only where the bytes' bound does not fit, and dropped then, because it
            keeps the request's body.
        input_estimate: the likely number, charged when the answer brings no usage.
        output_tokens: upper bound of the answer, all choices together; None where the client set no limit.
        choices: answers per prompt, multiplying a limit the client did not set.
        remote_input: part of the prompt is not in the request.
        background: the operation may go on after its answer, for a day.
        media: images or audio may be in the prompt or the answer.
        other_models: further models the request lets the provider call, billed besides.
        alternatives: models that may answer instead; the dearest is held for.
        units: upper bounds of what is billed besides tokens.
        billed_by_request: what the call is billed where its answer reports nothing, known from the request alone.
        items: what a batch asks of each model.
        accepts: whether the request can be rewritten to a model; None: to any.
        takes_limit: a limit of the answer can be written into the request.
        shows_output: whether all output that a model bills passes visibly in the stream; None: it does not.
    """

    model: str
    api: str = "code"
    family: str = "code"
    kind: str = "text"
    provider: str | None = None
    deployment: str | None = None
    input_tokens: int = 0
    input_estimate: int = 0
    counted_input: tuple[str, int] | None = None
    count_input: Callable[[], tuple[str, int] | None] | None = None
    output_tokens: int | None = None
    choices: int = 1
    remote_input: bool = False
    background: bool = False
    media: bool = False
    stream: bool = False
    service_tier: str | None = None
    other_models: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    units: TokenUsage = NOTHING_USED
    billed_by_request: TokenUsage | None = None
    items: tuple[BatchItems, ...] = ()
    accepts: Callable[[str], bool] | None = None
    takes_limit: bool = True
    shows_output: Callable[[str], bool] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Call:
    """An admitted call. `held` says whether a hold stands for it in the store."""

    id: str
    spec: CallSpec
    identity: Identity
    model: str
    """The admitted model, in the spelling to send."""
    price: Price | None
    """None where the model has no price and `unknown_price` allows it."""
    held_nano_usd: int
    held: bool
    input_bound: int
    output_bound: int
    covered_tokens: int
    """Output tokens that the hold pays for: the bound, or what a metered stream may produce before it is extended."""
    write_output_limit: int | None
    """A limit per choice to write into the request, because the client set none and the model's is unknown, or
    because no more fitted the budgets.
    """
    clamped: bool
    """The limit is lower than the request allows."""
    matches: tuple[Match, ...]
    windows: dict[str, tuple[Window, Window]]
    rate: Rate
    admitted_at_s: float
    started_s: float
    """Monotonic, for the duration."""
    states: tuple[BudgetState, ...] = ()
    fallback_reason: str | None = None
    shadow: str | None = None
    """In shadow: what would have happened, such as `denied:spent:tenant`; None: the same."""
    extensions: int = 0
    """How often more was asked for, by whoever watches it."""
    trace: Trace | None = None
    """The span that tells of it, if one does."""
    closed: bool = False
    """Settled, released or deferred: nothing more may be written for it by this process."""


class RequestContext:
    """What the middleware knows of the request that code runs in. Made by the middleware before the application runs
    and mutated, never replaced: a context variable set further down would not be visible above.
    """

    __slots__ = ("blocks", "call", "denied", "identity", "over", "resolve", "scope", "settle_own", "taken", "tracker")

    def __init__(self, scope: Mapping[str, Any], resolve: Any, tracker: CostTracker | None = None) -> None:
        self.scope = scope
        self.tracker = tracker
        """Whose middleware it is."""
        self.resolve = resolve
        """Async callable without arguments: the request's Identity, or None."""
        self.identity: Identity | None = None
        self.call: Call | None = None
        self.blocks = 0
        self.taken = False
        """A block has taken over the request's hold, so the request's own answer is not charged."""
        self.settle_own: Callable[[], Awaitable[None]] | None = None
        """Charges the request by its own answer, which ended while a block had taken over; for a block that settles
        nothing after all.
        """
        self.over = False
        """The application has ended: nobody but a block that still runs will settle the request's call."""
        self.denied: Denial | None = None
        """What the last block that was not admitted was told. Where the application has nothing better to answer than
        500, this is the answer.
        """


current_request: ContextVar[RequestContext | None] = ContextVar("askii_request", default=None)
